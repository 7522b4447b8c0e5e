//! EPOLLET: a stream is reported when something about it is new, epoll(7).
//!
//! The kernel knows edges of its own queue, in which doorbells come and go. So what was reported is remembered: arrivals by the ring
//! position, room by the number of sends that were refused before.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::ledger::layout::{MODE_RING, Slot};
use tssx_core::segment::Segment;
use tssx_core::{doorbell, switchover};

use super::epoll::{self, READABLE, WRITABLE};
use super::interest::EpollSet;
use super::records::Watch;
use crate::endpoint::Locked;

/// No arrival and no room was reported yet.
pub(super) const NOTHING_REPORTED: u64 = u64::MAX;
pub(super) const EDGE: u32 = libc::EPOLLET.cast_unsigned();

/// Whether the kernel's `events` are news of a stream that is `ready` for this; of one that is not edge-triggered they always are.
pub(super) fn has_news(set: &'static EpollSet, watch: &Watch, rx: &Locked, fd: c_int, events: u32, ready: u32) -> bool {
    let Some(segment) = rx.segment.filter(|_| watch.events & EDGE != 0) else { return true };
    let in_ring = rx.slot.rx_mode.load(Relaxed) == MODE_RING;
    // After a nudge the kernel tells of all that holds, whether it was told or not.
    let news = events & if watch.echo || watch.nudged { !watch.told } else { u32::MAX };
    let bytes = ready & READABLE != 0 && (!in_ring || is_new_edge(set, watch, fd, rx.slot, &segment, news));
    let room = ready & WRITABLE != 0 && is_new_room(set, watch, rx.slot);
    // Any news tells of all that holds, as in the kernel.
    bytes || room || ready & news & !(READABLE | WRITABLE) != 0
}

/// Notes what is reported: `ready`, if anything. `refused`: [`refusals`] before the look.
pub(super) fn note(set: &'static EpollSet, watch: &Watch, ready: u32, refused: u64) {
    if ready == 0 || watch.events & EDGE == 0 {
        return;
    }
    epoll::update(set, watch, |same| {
        same.told = ready;
        if ready & WRITABLE != 0 {
            same.refusals = refused;
        }
    });
}

/// Whether bytes have arrived since the last report, or the peer has ended the stream.
fn is_new_edge(set: &'static EpollSet, watch: &Watch, fd: c_int, slot: &Slot, segment: &Segment, events: u32) -> bool {
    let ended = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();
    let (tail, ends) = (segment.rx().tail.load(Acquire), ends(slot, segment));
    let fresh =
        tail != watch.reported || ends != watch.ends || events & ended != 0 || switchover::kernel_follows(fd, slot, segment);
    epoll::update(set, watch, |same| (same.reported, same.ends) = (tail, ends));
    fresh
}

/// Which ends of the stream have been announced: each is an edge of its own, also where the program has not asked for its event.
pub(super) fn ends(slot: &Slot, segment: &Segment) -> u32 {
    let own = u32::from(doorbell::self_gone(segment)) << 1 | u32::from(slot.tx_shutdown.load(Relaxed) != 0);
    u32::from(doorbell::peer_ending(segment)) << 2 | own
}

/// Whether a send has found too little room since the last report. Doorbells that are taken, and the send buffer's change at the switch, make
/// the kernel report room that was there all the time.
fn is_new_room(set: &'static EpollSet, watch: &Watch, slot: &Slot) -> bool {
    let in_ring = slot.tx_mode.load(Relaxed) == MODE_RING;
    let again = watch.echo || watch.nudged || watch.room_in_ring;
    epoll::update(set, watch, |same| same.room_in_ring = in_ring);
    if !in_ring && !again {
        return true;
    }
    let refusals = refusals(watch);
    epoll::update(set, watch, |same| core::mem::replace(&mut same.refusals, refusals) != refusals).unwrap_or(true)
}

/// Sends that found too little room, and in the highest bit whether the peer has said that it ends: that too is an edge of room.
pub(super) fn refusals(watch: &Watch) -> u64 {
    let ending =
        watch.endpoint.slot().and_then(|slot| watch.endpoint.segment(slot)).is_some_and(|segment| doorbell::peer_ending(&segment));
    watch.endpoint.refusals() & (u64::MAX >> 1) | u64::from(ending) << 63
}
