//! A direction's lock: one word in the ledger slot, whose owner may die.
//!
//! Threads and forked processes that share one end of a connection take turns at a direction with it. It lies in the
//! ledger, which only the family of forked processes maps writable, never in the segment: the peer cannot touch it.
//! It is held for a copy and at most a few non-blocking system calls, never while somebody waits for the peer.
//!
//! The word is the owner's process id. An owner that was killed is found by `kill(pid, 0)` after a bounded number of
//! tries and the lock is taken over; that is safe because positions are published by one store, so whatever the dead
//! owner had half done is invisible. (A thread that is cancelled asynchronously inside the library, or a process id
//! that is reused within the same instant, is beyond this: POSIX forbids the first, the kernel makes the second rare.)

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

use crate::sync::{AtomicU32, kernel, spin_loop};

/// Tries before the CPU is given away, and between looks for a dead owner.
const TRIES_BEFORE_YIELD: u32 = if cfg!(loom) { 1 } else { 100 };

/// Holds the lock until dropped.
#[derive(Debug)]
pub struct Guard<'a> {
    word: &'a AtomicU32,
}

/// Takes the lock for process `pid` (never 0). Acquire: what the previous holder published is seen.
pub fn acquire(word: &AtomicU32, pid: u32) -> Guard<'_> {
    let mut tries = 0_u32;
    while let Err(owner) = word.compare_exchange_weak(0, pid, Acquire, Relaxed) {
        tries = tries.wrapping_add(1);
        if tries.is_multiple_of(TRIES_BEFORE_YIELD) {
            take_over(word, owner, pid);
            kernel::yield_now();
        } else {
            spin_loop();
        }
    }
    Guard { word }
}

/// Frees the lock of an owner that no longer exists; the caller then competes for it like everybody.
fn take_over(word: &AtomicU32, owner: u32, pid: u32) {
    if owner != 0 && owner != pid && !kernel::process_exists(owner) {
        // Fails if somebody else was faster: then the word is no longer the dead owner's.
        let _ = word.compare_exchange(owner, 0, AcqRel, Relaxed);
    }
}

impl Drop for Guard<'_> {
    /// Releases. A swap, not a store: it is also the full fence between "published" and "is the peer asleep?" for callers
    /// that look only after releasing.
    fn drop(&mut self) {
        self.word.swap(0, SeqCst);
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
        let word = AtomicU32::new(dead);
        drop(acquire(&word, sys::getpid()));
        assert_eq!(word.load(Relaxed), 0);
    }

    #[test]
    fn holders_exclude_each_other() {
        let word = AtomicU32::new(0);
        let counter = std::cell::UnsafeCell::new(0_u64);
        struct Shared<'a>(&'a AtomicU32, &'a std::cell::UnsafeCell<u64>);
        #[allow(unsafe_code, reason = "the lock under test is what makes it sound")]
        // SAFETY: the cell is only touched under the lock.
        unsafe impl Sync for Shared<'_> {}
        let shared = Shared(&word, &counter);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let shared = &shared;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let _guard = acquire(shared.0, sys::getpid());
                        // SAFETY: exclusive by the lock.
                        #[allow(unsafe_code, reason = "see above")]
                        unsafe {
                            *shared.1.get() += 1;
                        }
                    }
                });
            }
        });
        assert_eq!(counter.into_inner(), 80_000);
    }
}
