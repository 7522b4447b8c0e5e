//! What one stream is ready for.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::layout::{STATE_ENDED, STATE_KERNEL};
use tssx_core::ledger::layout::{MODE_KERNEL, MODE_RING, Slot};
use tssx_core::ring::producer::Producer;
use tssx_core::segment::Segment;
use tssx_core::{clock, doorbell, switchover, sys, whereabouts};

use crate::endpoint::{Locked, Way, lock_stream};
use crate::process::log;
use crate::socket::{recall, receive, reset};

/// poll(2)'s names for "bytes can be read", and for "bytes can be written".
pub(crate) const READABLE: i16 = libc::POLLIN | libc::POLLRDNORM;
pub(crate) const WRITABLE: i16 = libc::POLLOUT | libc::POLLWRNORM;

/// Whether any direction of the stream is in a ring, or may move there while somebody waits, or bytes that this end sent may be unread in
/// a ring that has ended.
pub(crate) fn concerns_us(slot: &Slot, segment: &Segment) -> bool {
    slot.rx_mode.load(Relaxed) == MODE_RING
        || slot.tx_mode.load(Relaxed) == MODE_RING
        || segment.tx().state.load(Relaxed) == STATE_ENDED
        || (slot.rx_mode.load(Relaxed) == MODE_KERNEL && segment.rx().state.load(Acquire) != STATE_KERNEL)
}

/// What the rings alone say, without asking the kernel: a subset of what is true. The segment must be kept mapped by the caller.
pub(crate) fn from_rings(slot: &Slot, segment: &Segment) -> i16 {
    let mut ready = if holds_bytes(slot, segment) { READABLE } else { 0 };
    if slot.tx_mode.load(Relaxed) == MODE_RING && segment.tx().writer_waiting.load(Relaxed) == 0 {
        let limit = u64::from(slot.tx_limit.load(Relaxed));
        if Producer::open(segment).is_ok_and(|producer| producer.room(limit) > 0) {
            ready |= WRITABLE;
        }
    }
    ready
}

/// Whether the ring that this end reads has bytes. The segment must be kept mapped by the caller.
pub(super) fn holds_bytes(slot: &Slot, segment: &Segment) -> bool {
    let direction = segment.rx();
    slot.rx_mode.load(Relaxed) == MODE_RING && direction.tail.load(Acquire) != direction.head.load(Relaxed)
}

/// Longest time for which poll and select believe the rings alone, microseconds: a peer that was killed cannot say so in the
/// segment.
const ASK_US: u64 = 20;

/// Whether the rings' word for the stream at `fd` is enough for now: both ends are open as far as they said, and the kernel was
/// asked a moment ago.
pub(crate) fn rings_suffice(fd: c_int) -> bool {
    let Some(rx) = lock_stream(fd, Way::Rx) else { return false };
    let Some(segment) = rx.segment.filter(|segment| concerns_us(rx.slot, segment)) else { return false };
    let both = receives_in_ring(rx.slot, &segment) && rx.slot.tx_mode.load(Relaxed) == MODE_RING;
    let fresh = clock::ticks().wrapping_sub(rx.endpoint.asked.load(Relaxed)) < ASK_US * clock::ticks_per_us();
    both && fresh && rx.slot.tx_shutdown.load(Relaxed) == 0 && !doorbell::peer_ending(&segment) && !doorbell::self_gone(&segment)
}

/// Whether all that the peer sends comes through a ring that has not ended: behind an end, an urgent byte may be in the kernel's queue.
pub(super) fn receives_in_ring(slot: &Slot, segment: &Segment) -> bool {
    slot.rx_mode.load(Relaxed) == MODE_RING && segment.rx().state.load(Acquire) != STATE_ENDED
}

/// What the stream at `fd` is ready for according to its rings; `None` if no ring concerns it.
pub(crate) fn look(fd: c_int) -> Option<i16> {
    let rx = lock_stream(fd, Way::Rx)?;
    let segment = rx.segment?;
    concerns_us(rx.slot, &segment).then(|| {
        switch_if_due(fd, &rx, &segment);
        if rx.slot.rx_mode.load(Relaxed) == MODE_RING {
            switchover::try_resume(fd, rx.slot, &segment); // before the kernel is asked about doorbells
        }
        from_rings(rx.slot, &segment) | room_after_end(fd, rx.slot, &segment)
    })
}

/// Room that a send buffer full of doorbells hides from the kernel, as poll's bits.
pub(super) fn room_after_end(fd: c_int, slot: &Slot, segment: &Segment) -> i16 {
    if switchover::only_doorbells_left(fd, slot, segment) { WRITABLE } else { 0 }
}

fn switch_if_due(fd: c_int, rx: &Locked, segment: &Segment) {
    if rx.slot.rx_mode.load(Relaxed) == MODE_KERNEL && switchover::has_consented(segment) {
        let _ = switchover::arrival(rx.slot, segment);
        log::say_if_receiving(fd, rx.slot);
    }
}

/// What the kernel's answer `revents` for the stream means, now that its rings are known. Under the receiving lock, because
/// doorbells are taken where the ring is empty.
pub(crate) fn interpret(fd: c_int, rx: &Locked, segment: &Segment, events: i16, revents: i16) -> i16 {
    let mut revents = revents;
    if recall::is_due(rx.slot, segment) {
        recall::answer(fd);
        // Its send buffer is the program's again.
        revents |= sys::poll_now(fd, events & WRITABLE).unwrap_or(0) & WRITABLE & events;
    }
    switch_if_due(fd, rx, segment);
    // The peer's first doorbell has told an edge-triggered set of bytes before the switch; what it writes behind the switch is a new edge.
    if rx.slot.rx_mode.load(Relaxed) == MODE_KERNEL
        && segment.rx().state.load(Relaxed) != STATE_KERNEL
        && rx.endpoint.watchers.any()
    {
        doorbell::announce(segment);
    }
    // An end that nobody has announced in the segment is known to the kernel alone: it must be asked again.
    let ends = revents & (libc::POLLHUP | libc::POLLRDHUP | libc::POLLERR) != 0;
    rx.endpoint.asked.store(if ends { 0 } else { clock::ticks() }, Relaxed);
    let mut ready = revents;
    if rx.slot.rx_mode.load(Relaxed) == MODE_RING {
        if from_rings(rx.slot, segment) & READABLE != 0 {
            ready |= READABLE & events;
        } else if revents & READABLE != 0 && !is_end(fd, rx, segment) {
            ready &= !READABLE;
        }
        recall::answer_if_due(fd, rx.slot, segment);
    }
    // Doorbells that are not taken yet can make the kernel say "not writable" while the ring has room.
    ready |= from_rings(rx.slot, segment) & WRITABLE & events;
    if events & WRITABLE & !ready != 0 {
        ready |= room_after_end(fd, rx.slot, segment) & events;
    }
    if ready & libc::POLLERR != 0 && reset::is_false(rx.slot, segment) {
        ready &= !libc::POLLERR;
    }
    if ready & libc::POLLHUP != 0 && reset::pending(fd, rx.slot, segment) {
        ready |= libc::POLLERR;
    }
    ready
}

/// The ring is empty and the kernel says "readable": doorbells, which are taken, or the end (true)? Bytes that arrived
/// meanwhile count as the end of waiting too.
fn is_end(fd: c_int, rx: &Locked, segment: &Segment) -> bool {
    if switchover::try_resume(fd, rx.slot, segment) {
        return kernel_is_readable(fd);
    }
    let stale = doorbell::waiting(fd);
    if stale > 0 {
        receive::announce_for_others(rx.endpoint, rx.slot, segment);
    }
    if from_rings(rx.slot, segment) & READABLE != 0 {
        return true;
    }
    if stale > 0 {
        doorbell::take_doorbells(fd, rx.slot, segment, stale);
    }
    let bytes = from_rings(rx.slot, segment) & READABLE != 0;
    bytes || doorbell::is_at_end(fd) || (switchover::try_resume(fd, rx.slot, segment) && kernel_is_readable(fd))
}

/// Back on the kernel socket: its readiness is the program's again.
fn kernel_is_readable(fd: c_int) -> bool {
    sys::poll_now(fd, libc::POLLIN).unwrap_or(0) != 0
}

/// Before the kernel's wait: from now on its readiness of `fd` mirrors the ring. True if there is something already, and no
/// need to wait. Counted as a waiter until [`disarm`].
pub(crate) fn arm(fd: c_int) -> bool {
    let Some(rx) = lock_stream(fd, Way::Rx) else { return false };
    let Some(segment) = rx.segment else { return false };
    rx.slot.rx_waiters.fetch_add(1, Relaxed);
    prepare_to_wait(fd, &rx, &segment)
}

/// Takes stale doorbells, announces a watcher, and looks again.
pub(crate) fn prepare_to_wait(fd: c_int, rx: &Locked, segment: &Segment) -> bool {
    switch_if_due(fd, rx, segment);
    if rx.slot.rx_mode.load(Relaxed) != MODE_RING {
        recall::answer_if_due(fd, rx.slot, segment);
        // The kernel knows; if the peer switches meanwhile, it rings (the segment is born with a watcher announced).
        return false;
    }
    let empty = || from_rings(rx.slot, segment) & READABLE == 0;
    // Counted before the announcement: what is rung for it stays.
    let stale = doorbell::stale(rx.slot, segment);
    doorbell::announce(segment);
    whereabouts::tell(segment);
    if stale > 0 && empty() {
        doorbell::take_doorbells(fd, rx.slot, segment, stale);
    }
    let ready = !empty() || switchover::try_resume(fd, rx.slot, segment);
    recall::answer_if_due(fd, rx.slot, segment);
    ready
}

/// After the kernel's wait.
pub(crate) fn disarm(fd: c_int) {
    if let Some(rx) = lock_stream(fd, Way::Rx).filter(|rx| rx.segment.is_some()) {
        let before = rx.slot.rx_waiters.load(Relaxed);
        rx.slot.rx_waiters.store(before.saturating_sub(1), Relaxed);
    }
}
