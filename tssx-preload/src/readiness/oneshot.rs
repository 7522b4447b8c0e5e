//! EPOLLONESHOT: a stream is reported once, and then not before the program arms it again.
//!
//! The kernel disarms by itself what it reports, we what the rings report. Either must do it for the other: what we report is
//! disarmed in the kernel, and what the kernel reported for a doorbell that is nobody's event is armed there again.

#![allow(unsafe_code, reason = "calls libc's epoll_ctl")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use libc::epoll_event;

use super::interest::EpollSet;
use super::records::Watch;
use crate::fd_table::{self, Entry};
use crate::next;

const ONESHOT: u32 = libc::EPOLLONESHOT.cast_unsigned();

/// Whether the record is one of these.
pub(super) fn is_one(watch: &Watch) -> bool {
    watch.events & ONESHOT != 0
}

/// Whether it may be reported now.
pub(super) fn is_armed(watch: &Watch) -> bool {
    watch.armed || !is_one(watch)
}

/// In the kernel: no event before the program arms it again. What it reports without being asked (EPOLLHUP, EPOLLERR) is held back
/// by the record, which is not armed.
pub(super) fn disarm_in_kernel(set: &'static EpollSet, watch: &Watch) {
    change(set, watch, watch.events & (ONESHOT | libc::EPOLLET.cast_unsigned()));
}

/// In the kernel: as the program asked.
pub(super) fn arm_in_kernel(set: &'static EpollSet, watch: &Watch) {
    change(set, watch, watch.events);
}

fn change(set: &'static EpollSet, watch: &Watch, events: u32) {
    let leads_here = |epoll: &c_int| fd_table::epoll(*epoll).is_some_and(|other| core::ptr::eq(other, set));
    let mut epoll = Some(set.number.load(Relaxed)).filter(leads_here);
    if let Some(epoll) = epoll {
        return modify(epoll, watch, events);
    }
    fd_table::for_each(0, u32::MAX, |fd, entry| {
        if matches!(entry, Entry::Epoll(other) if core::ptr::eq(other, set)) {
            epoll = epoll.or(Some(fd));
        }
    });
    if let Some(epoll) = epoll {
        set.number.store(epoll, Relaxed);
        modify(epoll, watch, events);
    }
}

/// Makes the kernel report the stream to a thread that is asleep in the set: as writable, which it most likely is. Whoever gets the event puts
/// things right and looks at the ring.
pub(super) fn nudge(epoll: c_int, watch: &Watch) {
    modify(epoll, watch, watch.events | libc::EPOLLOUT.cast_unsigned());
}

fn modify(epoll: c_int, watch: &Watch, events: u32) {
    let kept = crate::errno::get();
    let mut event = epoll_event { events, u64: watch.data };
    // SAFETY: one live event. The number may lead elsewhere by now: then the kernel refuses, or the set has no such entry.
    unsafe { next::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, watch.fd, &raw mut event) };
    crate::errno::set(kept);
}
