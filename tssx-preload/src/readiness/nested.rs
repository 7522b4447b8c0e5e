//! An epoll set that is waited for itself, by poll or select: it is readable when one of its streams has something to tell.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, SeqCst};
use core::sync::atomic::fence;

use tssx_core::{doorbell, sys};

use super::interest::EpollSet;
use super::scan;
use super::sleep::{self, Handle};
use super::state::{self, READABLE};
use crate::socket::recall;

/// What the rings of the set's streams say.
pub(super) fn look(set: &'static EpollSet) -> i16 {
    let mut open = set.open();
    let mut from = 0;
    while let Some((index, watch)) = open.at_or_behind(from) {
        if scan::ready_events(watch) != 0 {
            return READABLE;
        }
        from = index + 1;
    }
    0
}

/// Before the kernel's wait: from now on its readiness of the set mirrors the rings. True if there is something already.
pub(super) fn arm(set: &'static EpollSet) -> bool {
    set.sleepers.fetch_add(1, AcqRel);
    fence(SeqCst);
    set.heed();
    sleep::leave_to_kernel(set) || look(set) != 0
}

/// After the kernel's wait.
pub(super) fn disarm(set: &'static EpollSet) {
    sleep::take_back(set);
    set.sleepers.fetch_sub(1, AcqRel);
}

/// What the kernel's answer for the set at `fd` means: it may be about doorbells that nobody needs, which are taken.
pub(super) fn interpret(fd: c_int, set: &'static EpollSet, events: i16, revents: i16) -> i16 {
    if revents & READABLE != 0 {
        take_stale(set);
    }
    let readable = look(set) != 0 || sys::poll_now(fd, libc::POLLIN).unwrap_or(0) & libc::POLLIN != 0;
    (revents & !READABLE) | if readable { READABLE & events } else { 0 }
}

fn take_stale(set: &'static EpollSet) {
    let mut from = 0;
    // Copies: taking doorbells needs the stream's lock, which is never taken inside the set's.
    while let Some((index, watch)) = set.record_from(from) {
        from = index + 1;
        let Some((fd, rx)) = Handle::of(&watch).lock() else { continue };
        let Some(segment) = rx.segment.filter(|segment| state::concerns_us(rx.slot, segment)) else { continue };
        let stale = doorbell::stale(rx.slot, &segment);
        if stale > 0 {
            doorbell::announce(&segment);
            if state::from_rings(rx.slot, &segment) & READABLE == 0 {
                doorbell::take_doorbells(fd, rx.slot, &segment, stale);
            }
            recall::answer_if_due(fd, rx.slot, &segment);
        }
    }
}
