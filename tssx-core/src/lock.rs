//! A direction's lock: one word in the ledger slot, whose owner may die.
//!
//! Threads and forked processes that share one end of a connection take turns at a direction with it. It lies in the
//! ledger, which only the family of forked processes maps writable, never in the segment: the peer cannot touch it.
//! It is held for a copy and at most a few non-blocking system calls, never while somebody waits for the peer.
//!
//! The word says which thread of which process owns the lock ([`owner`]). An owner that was killed is found by `kill(pid, 0)`
//! after a bounded number of tries and the lock is taken over; that is safe because positions are published by one store, so
//! whatever the dead owner had half done is invisible. (A thread that is cancelled asynchronously inside the library, or a
//! process id that is reused within the same instant, is beyond this: POSIX forbids the first, the kernel makes the second rare.)
//!
//! **Signal handlers.** write(2) and read(2) may be called from a handler, also on the stream that the handler interrupted in
//! the middle of a locked section. The handler's own acquisition finds its own thread's word: it goes on *nested*, and its
//! guard leaves the lock alone. That is sound because the section it interrupted publishes its position only if nobody has
//! moved it meanwhile ([`crate::ring::producer::Producer::publish`]) and begins again if somebody has.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::sync::{AtomicU64, kernel, spin_loop};

/// Bits of a word that hold the process id: the kernel's PID_MAX_LIMIT is 2^22 (include/linux/threads.h).
const PID_BITS: u32 = 22;

/// The word of a thread: its process id and its thread pointer, of which the low 6 bits are 0 and the high 17 unused.
#[inline]
#[must_use]
pub fn owner(pid: u32, thread_pointer: usize) -> u64 {
    ((thread_pointer as u64) >> 6) << PID_BITS | u64::from(pid) & ((1 << PID_BITS) - 1)
}

/// Marks the word of a stranger, see [`stranger`].
const STRANGER: u64 = 1 << 63;

/// The word of a thread of a process that is in another pid namespace than its relatives: `number` takes the place of its id, which another
/// process may have too. Nobody takes its lock over, because nobody can know whether it lives.
#[must_use]
pub fn stranger(number: u32, thread_pointer: usize) -> u64 {
    owner(number, thread_pointer) | STRANGER
}

/// The process of a word.
fn process(word: u64) -> u32 {
    u32::try_from(word & ((1 << PID_BITS) - 1)).unwrap_or(0)
}

/// Tries before the CPU is given away, and between looks for a dead owner.
const TRIES_BEFORE_YIELD: u32 = if cfg!(loom) { 1 } else { 100 };
/// Tries before a caller sleeps between two of them.
const TRIES_BEFORE_REST: u32 = 50_000;
/// How long it sleeps, microseconds.
const REST_US: u32 = 500;

/// Holds the lock until dropped.
#[derive(Debug)]
pub struct Guard<'a> {
    word: &'a AtomicU64,
    nested: bool,
}

/// Takes the lock for the thread `own` (see [`owner`]; never 0). Acquire: what the previous holder published is seen.
#[inline]
pub fn acquire(word: &AtomicU64, own: u64) -> Guard<'_> {
    match word.compare_exchange(0, own, Acquire, Relaxed) {
        Ok(_) => Guard { word, nested: false },
        Err(_) => compete(word, own),
    }
}

#[cold]
fn compete(word: &AtomicU64, own: u64) -> Guard<'_> {
    let mut tries = 0_u32;
    while let Err(owner) = word.compare_exchange_weak(0, own, Acquire, Relaxed) {
        if owner == own {
            return Guard { word, nested: true };
        }
        tries = tries.wrapping_add(1);
        if tries.is_multiple_of(TRIES_BEFORE_YIELD) {
            let long = tries >= TRIES_BEFORE_REST;
            take_over(word, owner, own, long);
            // An owner that was stopped in its section, or waits for a CPU for long, costs us none.
            if long { kernel::rest(REST_US) } else { kernel::yield_now() }
        } else {
            spin_loop();
        }
    }
    Guard { word, nested: false }
}

impl Guard<'_> {
    /// Whether the same thread holds the lock further out: a signal handler interrupted it, or it never came back.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.nested
    }

    /// The holder further out has left its section by a jump and will not come back: from now on this guard is the holder.
    pub fn succeed(&mut self) {
        self.nested = false;
    }
}

/// Frees a lock if `own` is its owner: its section was left by a jump.
pub fn free_if_owned(word: &AtomicU64, own: u64) {
    let _ = word.compare_exchange(own, 0, AcqRel, Relaxed);
}

/// Whether nobody holds the lock; one that was left by a process that has ended is freed. For a process `pid`.
pub(crate) fn is_free(word: &AtomicU64, pid: u32) -> bool {
    let owner = word.load(Acquire);
    if owner != 0 {
        take_over(word, owner, self::owner(pid, 0), true);
    }
    owner == 0 || word.load(Acquire) == 0
}

/// Frees the lock of an owner that has ended; the caller then competes for it like everybody.
fn take_over(word: &AtomicU64, owner: u64, own: u64, thoroughly: bool) {
    if owner != 0 && owner & STRANGER == 0 && process(owner) != process(own) && !kernel::process_lives(process(owner), thoroughly) {
        // Fails if somebody else was faster: then the word is no longer the dead owner's.
        let _ = word.compare_exchange(owner, 0, AcqRel, Relaxed);
    }
}

impl Drop for Guard<'_> {
    /// Releases: what was done under the lock is seen by the next holder. No fence: whoever has published and must look whether the
    /// peer sleeps has its own ([`crate::doorbell::rouse`]).
    fn drop(&mut self) {
        if !self.nested {
            self.word.store(0, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    #[test]
    fn the_lock_of_a_dead_process_is_taken_over() {
        let mut child = std::process::Command::new("true").spawn().expect("spawn true");
        let dead = child.id();
        child.wait().expect("wait");
        let word = AtomicU64::new(owner(dead, 0x7f00_0000_1000));
        drop(acquire(&word, owner(sys::getpid(), 0x7f00_0000_1000)));
        assert_eq!(word.load(Relaxed), 0);
    }

    #[test]
    fn the_lock_of_a_dead_child_that_nobody_has_reaped_is_taken_over() {
        let mut child = std::process::Command::new("true").spawn().expect("spawn true");
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("not reaped");
        while !state().contains(") Z ") {
            std::thread::yield_now();
        }
        let word = AtomicU64::new(owner(child.id(), 0x7f00_0000_1000));
        drop(acquire(&word, owner(sys::getpid(), 0x7f00_0000_1000)));
        assert_eq!(word.load(Relaxed), 0);
        child.wait().expect("wait");
    }

    #[test]
    fn the_lock_of_a_stranger_is_left_alone() {
        let mut child = std::process::Command::new("true").spawn().expect("spawn true");
        child.wait().expect("wait");
        let word = AtomicU64::new(stranger(child.id(), 64));
        assert!(!is_free(&word, sys::getpid()));
    }

    #[test]
    fn a_section_of_the_same_thread_inside_another_leaves_the_lock_alone() {
        let (word, own) = (AtomicU64::new(0), owner(sys::getpid(), 64));
        let outer = acquire(&word, own);
        let mut inner = acquire(&word, own);
        assert!(!outer.is_nested() && inner.is_nested());
        drop(acquire(&word, own));
        assert_eq!(word.load(Relaxed), own);
        inner.succeed();
        drop(inner);
        assert_eq!(word.load(Relaxed), 0);
        core::mem::forget(outer);
    }

    #[test]
    fn words_tell_threads_and_processes_apart() {
        assert_ne!(owner(1, 0x7f12_3456_7740), owner(1, 0x7f12_3456_7780));
        assert_ne!(owner(1, 0x7f12_3456_7740), owner(2, 0x7f12_3456_7740));
        assert_eq!(process(owner(4_194_303, usize::MAX >> 17)), 4_194_303);
        assert_ne!(stranger(1, 0x7f12_3456_7740), owner(1, 0x7f12_3456_7740));
    }

    #[test]
    fn holders_exclude_each_other() {
        let word = AtomicU64::new(0);
        let counter = std::cell::UnsafeCell::new(0_u64);
        struct Shared<'a>(&'a AtomicU64, &'a std::cell::UnsafeCell<u64>);
        #[allow(unsafe_code, reason = "the lock under test is what makes it sound")]
        // SAFETY: the cell is only touched under the lock.
        unsafe impl Sync for Shared<'_> {}
        let shared = Shared(&word, &counter);
        std::thread::scope(|scope| {
            let threads = [1, 2, 3, 4].map(|thread| {
                let shared = &shared;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let _guard = acquire(shared.0, owner(sys::getpid(), thread * 64));
                        // SAFETY: exclusive by the lock.
                        #[allow(unsafe_code, reason = "see above")]
                        unsafe {
                            *shared.1.get() += 1;
                        }
                    }
                })
            });
            // By name: ThreadSanitizer does not see how a scope waits.
            threads.into_iter().for_each(|thread| thread.join().expect("a holder"));
        });
        assert_eq!(counter.into_inner(), 80_000);
    }
}
