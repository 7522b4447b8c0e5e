//! A stream socket that is in an epoll set before it is connected, as nginx has its upstreams: what the set was told, so that the record
//! can be made when the connection turns out to be a selected one. Only a socket that socket(2) was seen to make is noted: a note about each
//! eventfd, timer or TCP connection would cost every program that has nothing to do with us.

#![allow(unsafe_code, reason = "a promise about a type's bytes")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64};

use libc::epoll_event;

use super::control;
use super::interest::EpollSet;
use crate::fd_table::{self, Entry};
use crate::memory::{Pool, Pooled, ZeroInit};

/// What one set was told of one socket. Zero is unused.
pub(crate) struct Pending {
    epoll: AtomicI32,
    /// [`EpollSet::generation`] of the set that was at `epoll`.
    generation: AtomicU64,
    events: AtomicU32,
    data: AtomicU64,
    link: AtomicPtr<Pending>,
}

// SAFETY: atomics only; zero is the unused state.
unsafe impl ZeroInit for Pending {}

impl Pooled for Pending {
    fn link(&self) -> &AtomicPtr<Self> {
        &self.link
    }
}

static POOL: Pool<Pending> = Pool::new();

/// Whether an unconnected socket was in a set ever that several numbers led to: it may be connected by any of them.
static DUPLICATES: AtomicBool = AtomicBool::new(false);

/// In a forked child.
pub(crate) fn pool_after_fork_in_child() {
    POOL.after_fork_in_child();
}

impl Pending {
    fn new(epoll: c_int, set: &EpollSet, event: epoll_event) -> Option<&'static Self> {
        let pending = POOL.take()?;
        pending.epoll.store(epoll, Relaxed);
        pending.generation.store(set.generation.load(Relaxed), Relaxed);
        pending.change(event);
        Some(pending)
    }

    fn change(&self, event: epoll_event) {
        self.events.store(event.events, Relaxed);
        self.data.store(event.u64, Relaxed);
    }

    /// The set, if it is still there, and what it was told.
    pub(crate) fn told(&self) -> Option<(&'static EpollSet, epoll_event)> {
        let set = fd_table::epoll(self.epoll.load(Relaxed))?;
        let same = set.generation.load(Relaxed) == self.generation.load(Relaxed);
        same.then(|| (set, epoll_event { events: self.events.load(Relaxed), u64: self.data.load(Relaxed) }))
    }

    /// The socket was closed, connected, or taken out of the set.
    pub(crate) fn forget(&'static self) {
        POOL.give(self);
    }
}

/// Whether one of the process's duplicated sockets may be in a set that did not note it.
pub(crate) fn duplicates_are_in_sets() -> bool {
    DUPLICATES.load(Relaxed)
}

/// After an epoll_ctl(2) that succeeded, on something that is no selected stream: if it is connected later, to a selected name, its
/// record is made then. One set is remembered; once it was in several it stays with the kernel.
pub(super) fn note(epoll: c_int, operation: c_int, fd: c_int, event: Option<epoll_event>) {
    match (fd_table::get(fd), event) {
        (Some(Entry::Unconnected { duplicated: true }), Some(_)) => DUPLICATES.store(true, Relaxed),
        (Some(Entry::Unconnected { .. }), Some(event)) if operation == libc::EPOLL_CTL_ADD => {
            let pending = control::adopt(epoll).and_then(|set| Pending::new(epoll, set, event));
            replace(fd, Entry::Registered(pending));
        }
        (Some(Entry::Registered(Some(_))), _) if operation == libc::EPOLL_CTL_ADD => replace(fd, Entry::Registered(None)),
        (Some(Entry::Registered(Some(pending))), Some(event)) => pending.change(event),
        (Some(Entry::Registered(Some(_))), None) => replace(fd, Entry::Unconnected { duplicated: false }),
        _ => {}
    }
}

fn replace(fd: c_int, entry: Entry) {
    if let Ok(Some(Entry::Registered(Some(before)))) = fd_table::set(fd, Some(entry)) {
        before.forget();
    }
}
