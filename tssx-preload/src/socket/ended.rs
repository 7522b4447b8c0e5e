//! Where a ring ends and the kernel's socket goes on: a receive that reaches the end takes what follows it in the same call, as it
//! would have found it in one queue.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::layout::STATE_ENDED;
use tssx_core::ledger::layout::{MODE_FINAL, Slot};
use tssx_core::segment::Segment;
use tssx_core::{doorbell, switchover, sys};

use super::receive::{Call, Step, counted};
use super::{crossing, fallback, reset};
use crate::endpoint::Locked;
use crate::errno::{Errno, Result};

/// Whether the call has come to the ring's end.
pub(super) fn is_reached(call: &Call<'_, '_>, segment: &Segment) -> bool {
    let direction = segment.rx();
    // The end lies at the tail; a look leaves the head behind.
    let at = if call.peeks() { direction.tail.load(Acquire) } else { direction.head.load(Relaxed) };
    direction.state.load(Acquire) == STATE_ENDED && direction.end_at.load(Relaxed) == at
}

/// Takes what the kernel has behind the end, without waiting.
pub(super) fn follow(call: &mut Call<'_, '_>, rx: &Locked, segment: &Segment) -> Step {
    // The kernel does not join bytes with and without credentials.
    if sys::getsockopt::<i32>(call.fd, libc::SO_PASSCRED).is_ok_and(|asked| asked != 0) && call.is_satisfied(rx.slot) {
        return Step::Return(Ok(call.got));
    }
    if call.peeks() {
        // Doorbells are told from what follows by their number, which is final now.
        while doorbell::take_doorbells(call.fd, rx.slot, segment, doorbell::ALL) > 0 {}
    } else if !switchover::try_resume(call.fd, rx.slot, segment) {
        return Step::Again;
    }
    // The kernel stops at a byte that was sent as out-of-band, unless it begins there.
    if sys::at_mark(call.fd) && call.is_satisfied(rx.slot) {
        return Step::Return(Ok(call.got));
    }
    if call.peeks() && !call.has_room() {
        let _ = crossing::receive_now(call, usize::MAX);
        return Step::Return(Ok(call.got));
    }
    loop {
        let received = match crossing::receive_now(call, usize::MAX) {
            Ok(received @ 1..) => received,
            end => {
                told_by_part(call, rx.slot, segment, end);
                break;
            }
        };
        crossing::count(call, rx, received);
        // Cut short by the number of parts, or all that there is.
        let cut = received == crossing::first_parts(call, received, usize::MAX);
        if !cut || !call.has_room() || call.has_descriptors() || call.peeks() || sys::at_mark(call.fd) {
            break;
        }
    }
    if call.is_satisfied(rx.slot) || call.has_descriptors() { Step::Return(Ok(call.got)) } else { Step::Again }
}

/// The ring has ended, but not where it is empty: bytes that came just before the end, or a lie.
pub(super) fn at_false_end(call: &Call<'_, '_>, rx: &Locked, segment: &Segment) -> Step {
    // The tail is final once the state says so.
    if segment.rx().tail.load(Acquire) != segment.rx().head.load(Relaxed) || switchover::try_resume(call.fd, rx.slot, segment) {
        return Step::Again;
    }
    fallback::mark_corrupt(call.fd, rx.slot);
    rx.slot.rx_mode.store(MODE_FINAL, Relaxed);
    call.finish(Err(Errno(libc::ECONNRESET)))
}

/// The rest of a call that has bytes already, on a direction that is back on the kernel socket: waits there if the call does.
pub(super) fn rest_through_kernel(call: &mut Call<'_, '_>, rx: Locked) -> Result<usize> {
    let (endpoint, slot) = (rx.endpoint, rx.slot);
    let blocks = call.blocks(slot);
    call.keep(&rx);
    let peeks = call.peeks();
    let received =
        counted(rx, peeks, || if blocks { crossing::receive_waiting(call) } else { crossing::receive_now(call, usize::MAX) });
    call.got += received.unwrap_or(0);
    if let Some(segment) = endpoint.segment(slot) {
        told_by_part(call, slot, &segment, received);
    }
    Ok(call.got)
}

/// The connection ended for a call that has bytes to return: they tell of a reset, and no later call does (net/unix/af_unix.c,
/// `unix_stream_read_generic`, takes the error and returns what it has).
fn told_by_part(call: &Call<'_, '_>, slot: &Slot, segment: &Segment, end: Result<usize>) {
    if call.got == 0 || call.peeks() {
        return;
    }
    let _ = match end {
        Ok(0) => reset::end_of_file(call.fd, slot, segment),
        Err(errno @ Errno(libc::ECONNRESET)) => reset::failed(slot, segment, errno),
        other => other,
    };
}
