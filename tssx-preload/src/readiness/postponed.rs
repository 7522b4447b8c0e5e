//! A removal from an epoll set that may be taken back: EPOLL_CTL_DEL, then EPOLL_CTL_ADD of the same stream.
//!
//! Programs with an event loop of their own (redis' ae is one) take a stream out of the set when they have got what they waited for and put it in
//! again for what comes next: twice for each message. The kernel frees and makes an entry each time, which costs more than the
//! message does in a ring. So the kernel is told of a removal only when it matters; if the stream is put in before, the entry is changed, or
//! left as it is.
//!
//! A removal matters to whoever asks the kernel about the set. So it is made up for ([`settle`]) before every wait of the kernel's, before every other
//! epoll_ctl, before a descriptor of ours is closed or duplicated, before a fork and before anything goes to another process. Until then nobody can
//! see the entry: there is one thread, which is here; the set belongs to no other process; the stream is in this set alone, by its only
//! descriptor; and rings, which know of the removal, tell what there is to tell of the others. There is one postponed removal at most.

#![allow(unsafe_code, reason = "calls libc's epoll_ctl")]

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64};

use libc::epoll_event;
use tssx_core::ledger::layout::MODE_RING;

use super::interest::EpollSet;
use super::{edge, state};
use crate::endpoint::{Endpoint, Way, lock_stream};
use crate::{errno, fd_table, next};

/// Nothing is postponed.
const NONE: u32 = 0;
/// Being changed: a signal handler that finds this leaves it to the code that it interrupted.
const BUSY: u32 = 1;
/// A removal is.
const SET: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(NONE);
static REMOVAL: Removal = Removal {
    epoll: AtomicI32::new(-1),
    set: AtomicPtr::new(ptr::null_mut()),
    fd: AtomicI32::new(-1),
    endpoint: AtomicPtr::new(ptr::null_mut()),
    events: AtomicU32::new(0),
    data: AtomicU64::new(0),
};

/// What was to be removed, and what the kernel's entry says.
struct Removal {
    epoll: AtomicI32,
    set: AtomicPtr<EpollSet>,
    fd: AtomicI32,
    endpoint: AtomicPtr<Endpoint>,
    events: AtomicU32,
    data: AtomicU64,
}

/// The events of entries that may stay in the kernel while nobody looks: level-triggered ones.
const PLAIN: u32 = (libc::EPOLLIN
    | libc::EPOLLOUT
    | libc::EPOLLRDHUP
    | libc::EPOLLPRI
    | libc::EPOLLERR
    | libc::EPOLLHUP
    | libc::EPOLLRDNORM
    | libc::EPOLLWRNORM)
    .cast_unsigned();

/// What is left to do for an EPOLL_CTL_ADD.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revived {
    /// All: nothing was postponed.
    No,
    /// The kernel's entry has to be changed.
    Changed,
    /// Nothing: it is the same.
    Same,
}

/// Whether a removal is postponed.
#[inline]
pub(crate) fn any() -> bool {
    STATE.load(Relaxed) == SET
}

/// Makes up for the removal, if one is postponed.
#[inline]
pub(crate) fn settle() {
    if any() {
        remove();
    }
}

#[cold]
fn remove() {
    if STATE.compare_exchange(SET, BUSY, AcqRel, Relaxed).is_err() {
        return;
    }
    let kept = errno::get();
    let mut unused = epoll_event { events: 0, u64: 0 };
    // SAFETY: one live event. The numbers lead where they did: whatever changes that settles first.
    unsafe { next::epoll_ctl(REMOVAL.epoll.load(Relaxed), libc::EPOLL_CTL_DEL, REMOVAL.fd.load(Relaxed), &raw mut unused) };
    errno::set(kept);
    STATE.store(NONE, Release);
}

/// EPOLL_CTL_DEL: postpones it, if nobody can see that. The caller's notes about the set are to forget the stream all the same.
pub(crate) fn postpone(epoll: c_int, fd: c_int) -> bool {
    let (Some(endpoint), Some(set)) = (fd_table::stream(fd), fd_table::epoll(epoll)) else { return false };
    let Some((events, data)) = entry(set, fd, endpoint).filter(|_| is_unseen(set, fd, endpoint)) else { return false };
    settle();
    if STATE.compare_exchange(NONE, BUSY, AcqRel, Relaxed).is_err() {
        return false;
    }
    REMOVAL.epoll.store(epoll, Relaxed);
    REMOVAL.set.store(ptr::from_ref(set).cast_mut(), Relaxed);
    REMOVAL.fd.store(fd, Relaxed);
    REMOVAL.endpoint.store(ptr::from_ref(endpoint).cast_mut(), Relaxed);
    REMOVAL.events.store(events, Relaxed);
    REMOVAL.data.store(data, Relaxed);
    STATE.store(SET, Release);
    true
}

/// What the kernel's entry of a stream says, if it is one that may stay.
fn entry(set: &'static EpollSet, fd: c_int, endpoint: &'static Endpoint) -> Option<(u32, u64)> {
    let mut open = set.open();
    let index = open.find(fd, endpoint)?;
    let watch = open.get(index).filter(|watch| watch.events & !PLAIN == 0 && !watch.nudged)?;
    Some((watch.events, watch.data))
}

/// See the module's text.
fn is_unseen(set: &'static EpollSet, fd: c_int, endpoint: &'static Endpoint) -> bool {
    if !next::is_single_threaded() || set.is_shared() || endpoint.watchers.count() != 1 || !endpoint.has_one_descriptor() {
        return false;
    }
    let Some(rx) = lock_stream(fd, Way::Rx) else { return false };
    let Some(segment) = rx.segment else { return false };
    state::receives_in_ring(rx.slot, &segment)
        && rx.slot.tx_mode.load(Relaxed) == MODE_RING
        && rx.slot.holder_count() == 1
        && edge::ends(rx.slot, &segment) == 0
}

/// EPOLL_CTL_ADD: takes the postponed removal back, if it was of this stream in this set; makes up for it, if it was another's.
pub(crate) fn revive(epoll: c_int, fd: c_int, event: epoll_event) -> Revived {
    if STATE.compare_exchange(SET, BUSY, Acquire, Relaxed).is_err() {
        return Revived::No;
    }
    let same = |set: &EpollSet, endpoint: &Endpoint| {
        ptr::eq(REMOVAL.set.load(Relaxed), set) && ptr::eq(REMOVAL.endpoint.load(Relaxed), endpoint)
    };
    let ours = fd_table::epoll(epoll).zip(fd_table::stream(fd)).is_some_and(|(set, endpoint)| same(set, endpoint))
        && REMOVAL.fd.load(Relaxed) == fd
        && event.events & !PLAIN == 0;
    if !ours {
        STATE.store(SET, Release);
        settle();
        return Revived::No;
    }
    let unchanged = REMOVAL.events.load(Relaxed) == event.events && REMOVAL.data.load(Relaxed) == { event.u64 };
    STATE.store(NONE, Release);
    if unchanged { Revived::Same } else { Revived::Changed }
}

/// In a forked child: what is postponed is the parent's to do.
pub(crate) fn after_fork_in_child() {
    STATE.store(NONE, Relaxed);
}
