//! Processes: who we are, and what fork does to our state.
//!
//! The ledger and the segments are shared mappings, so a forked child has them; each connection counts one more holder.
//! What is private to the process (the table, endpoints, epoll notes) is copied by the fork, and whatever another
//! thread of the parent had locked in it is unlocked in the child. Words in the ledger that the parent's threads hold are
//! left alone: they are theirs.

#![allow(unsafe_code, reason = "calls libc's fork")]

use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use core::sync::atomic::{AtomicU32, AtomicUsize};

use core::ffi::c_int;

use libc::pid_t;
use tssx_core::{clock, sys};

use crate::endpoint::{self, Holder};
use crate::fd_table::{self, Entry};
use crate::readiness;
use crate::socket::mailboxes;

pub(crate) mod descriptors;
pub(crate) mod held;
mod identity;
pub(crate) mod images;
pub(crate) mod log;
pub(crate) mod remainder;

pub(crate) use identity::{is_borrowed, owner, pid, pid_for_relatives, start};

/// Upgrade steps in progress; `FORKING` while a fork keeps new ones out.
static GATE: AtomicU32 = AtomicU32::new(0);
const FORKING: u32 = 1 << 31;

/// Longest that a fork waits for threads inside the gate, microseconds; they leave it within a few system calls.
const GATE_US: u64 = 50_000;

/// The thread that forks (its thread pointer): handlers that it runs meanwhile may open and close.
static FORKER: AtomicUsize = AtomicUsize::new(0);

/// Keeps forks away while connections are selected, duplicated, closed or upgraded: a fork counts every connection of the table,
/// and the child must have just those.
pub(crate) struct Gate {
    counted: bool,
}

/// Waits for a fork that is under way, and keeps others away. Never entered twice by one thread.
pub(crate) fn enter_gate() -> Gate {
    loop {
        if let Some(gate) = try_enter_gate() {
            return gate;
        }
        if FORKER.load(Acquire) == thread_pointer() {
            return Gate { counted: false };
        }
        sys::yield_now();
    }
}

/// What tells threads of a process apart without thread-locals of ours: the ABI's thread pointer.
#[inline]
fn thread_pointer() -> usize {
    let pointer: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the psABI keeps the thread pointer at fs:0.
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: user space may read its thread pointer.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer
}

/// Enters an upgrade step, unless a fork is under way.
pub(crate) fn try_enter_gate() -> Option<Gate> {
    if GATE.fetch_add(1, AcqRel) & FORKING != 0 {
        GATE.fetch_sub(1, AcqRel);
        return None;
    }
    Some(Gate { counted: true })
}

impl Drop for Gate {
    fn drop(&mut self) {
        GATE.fetch_sub(u32::from(self.counted), AcqRel);
    }
}

fn each_stream(mut visit: impl FnMut(c_int, &'static endpoint::Endpoint)) {
    // A connection with duplicates is one holder, so it is visited at its first descriptor only.
    fd_table::for_each(0, u32::MAX, |fd, entry| {
        if let Entry::Stream(endpoint) = entry
            && endpoint.is_first_visit(fd)
        {
            visit(fd, endpoint);
        }
    });
}

/// Before a fork: the child has the epoll instances too, as the kernel knows them.
fn share_sets() {
    readiness::postponed::settle();
    fd_table::for_each(0, u32::MAX, |_, entry| {
        if let Entry::Epoll(set) = entry {
            set.share();
        }
    });
}

/// fork(2) through `fork`, which is libc's `fork` or `_Fork`.
pub(crate) fn fork(fork: impl Fn() -> pid_t) -> pid_t {
    if crate::init::active().is_none() || FORKER.load(Acquire) == thread_pointer() {
        return fork();
    }
    // One fork at a time; then those inside the gate leave it.
    while GATE.fetch_or(FORKING, AcqRel) & FORKING != 0 {
        sys::yield_now();
    }
    FORKER.store(thread_pointer(), Release);
    // Bounded: a signal handler that forks may have interrupted its own thread inside the gate.
    let start = clock::ticks();
    while GATE.load(Acquire) & !FORKING != 0 && clock::ticks().wrapping_sub(start) < GATE_US * clock::ticks_per_us() {
        sys::yield_now();
    }
    share_sets();
    // Counted before the child exists, so that neither process can be the last holder by mistake.
    each_stream(|fd, endpoint| endpoint.count_child(fd));
    let child = fork();
    match child {
        0 => {
            // Unless a handler of pthread_atfork(3) was the first to ask who we are.
            if FORKER.load(Acquire) == thread_pointer() {
                in_counted_child();
            }
        }
        child => {
            if child < 0 {
                each_stream(|_, endpoint| endpoint.change_holders(Holder::NoChild));
            }
            FORKER.store(0, Release);
            GATE.fetch_and(!FORKING, Release);
        }
    }
    child
}

/// After a call in which libc may have forked by itself: if this is the child, it is the holder now.
pub(crate) fn became_child() {
    if identity::remembered() != sys::getpid() {
        in_child();
        each_stream(|_, endpoint| endpoint.unname_holder());
    }
}

/// In a child of which no entry point of ours told: one holder more, from here on.
fn forked_unseen() {
    if FORKER.load(Acquire) == thread_pointer() {
        in_counted_child();
    } else {
        in_child();
        each_stream(|_, endpoint| endpoint.change_holders(Holder::Own(true)));
    }
}

/// In a child whose parent has counted it as a holder.
pub(crate) fn in_counted_child() {
    in_child();
    each_stream(|_, endpoint| endpoint.name_holder());
}

/// In a forked child, before anything else: it has one thread, and its state is its own.
fn in_child() {
    identity::remember_in_child();
    FORKER.store(0, Release);
    GATE.store(0, Release);
    endpoint::pool_after_fork_in_child();
    readiness::interest::pool_after_fork_in_child();
    readiness::control::after_fork_in_child();
    readiness::postponed::after_fork_in_child();
    readiness::pending::pool_after_fork_in_child();
    mailboxes::after_fork_in_child();
    fd_table::for_each(0, u32::MAX, |fd, entry| match entry {
        Entry::Stream(endpoint) => endpoint.after_fork_in_child(),
        Entry::Epoll(set) => {
            set.share(); // also where no entry point of ours told of the fork
            set.after_fork_in_child();
        }
        Entry::Mailbox(_) => {
            // The parent's; it goes on listening there. The endpoint forgets it with the rest.
            let _ = fd_table::set(fd, None);
            sys::close(fd);
        }
        Entry::Listener(_) | Entry::Unconnected { .. } | Entry::Registered(_) => {}
    });
}

/// The process is about to end: gives up its share of every connection in the ledger, which a forked family may go on using.
/// The table stays as it is, because other destructors may still write; the kernel closes the descriptors.
pub(crate) fn leaving() {
    // A child that shares our memory, or that has never touched a connection, is no holder.
    if identity::remembered() == sys::getpid() {
        each_stream(|fd, endpoint| endpoint.leave(fd));
    }
}
