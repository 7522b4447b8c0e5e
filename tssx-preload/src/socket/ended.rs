//! Where a ring ends and the kernel's socket goes on: a receive that reaches the end takes what follows it in the same call, as it
//! would have found it in one queue.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::layout::STATE_ENDED;
use tssx_core::ledger::layout::{MODE_FINAL, Slot};
use tssx_core::segment::Segment;
use tssx_core::{doorbell, switchover, sys};

use super::receive::{Call, Step};
use super::{ancillary, crossing, fallback, reset};
use crate::endpoint::Locked;
use crate::errno::{Errno, Result};

/// Whether the ring ends at the position up to which a call has seen it. Not at its tail of now: the producer may have written more, and
/// ended the ring, since the call looked.
pub(super) fn is_reached(segment: &Segment, seen: u64) -> bool {
    let direction = segment.rx();
    direction.state.load(Acquire) == STATE_ENDED && direction.end_at.load(Relaxed) == seen
}

/// Whether what the kernel has behind the ring's end concerns a call that has seen the ring up to a position: if it has room, where the
/// ring ends there; and a look without room is told of the descriptors that come next, however far away they are.
pub(super) fn concerns(call: &Call<'_, '_>, segment: &Segment, seen: u64) -> bool {
    if call.has_room() { is_reached(segment, seen) } else { call.peeks() && segment.rx().state.load(Acquire) == STATE_ENDED }
}

/// Takes what the kernel has behind the end, without waiting.
pub(super) fn follow(call: &mut Call<'_, '_>, rx: &Locked, segment: &Segment) -> Step {
    if call.peeks() {
        // Doorbells are told from what follows by their number, which is final now.
        doorbell::take_queued(call.fd, rx.slot, segment);
    } else if !switchover::try_resume(call.fd, rx.slot, segment) {
        return Step::Again;
    }
    if call.from_ring && has_credentials(call.fd, rx.slot) {
        return Step::Return(Ok(call.got));
    }
    // The kernel stops at a byte that was sent as out-of-band, unless it begins there.
    if call.got > 0 && sys::at_mark(call.fd) {
        return Step::Return(Ok(call.got));
    }
    if call.peeks() && !call.has_room() {
        if let Err(errno) = crossing::receive_now(call, usize::MAX) {
            reset::owe(rx.slot, errno);
        }
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
    let over = call.is_satisfied(rx.slot) || call.has_descriptors() || (call.got > 0 && sys::at_mark(call.fd));
    if over { Step::Return(Ok(call.got)) } else { Step::Again }
}

/// Whether the next message in the kernel's queue comes with its sender's credentials. The kernel does not join it with bytes that have
/// none.
pub(super) fn has_credentials(fd: i32, slot: &Slot) -> bool {
    if sys::getsockopt::<i32>(fd, libc::SO_PASSCRED).is_ok_and(|asked| asked == 0) {
        return false;
    }
    ancillary::next_has_credentials(fd).unwrap_or_else(|errno| {
        reset::owe(slot, errno);
        false
    })
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

/// A call that has bytes already or has waited, on a direction that is back on the kernel socket: takes what is there, and waits there if
/// the call does.
pub(super) fn rest_through_kernel(call: &mut Call<'_, '_>, rx: Locked) -> Step {
    if (call.from_ring && has_credentials(call.fd, rx.slot)) || (call.got > 0 && sys::at_mark(call.fd)) {
        return Step::Return(Ok(call.got));
    }
    let received = crossing::receive_now(call, usize::MAX);
    let Some(segment) = rx.segment else { return call.finish(received) };
    match received {
        Ok(received @ 1..) => {
            crossing::count(call, &rx, received);
            let over = call.peeks() || call.has_descriptors() || call.is_satisfied(rx.slot) || sys::at_mark(call.fd);
            if over { Step::Return(Ok(call.got)) } else { Step::Again }
        }
        Err(Errno::AGAIN) if call.blocks(rx.slot) => crossing::wait_for_kernel(call, rx, &segment),
        end => {
            told_by_part(call, rx.slot, &segment, end);
            call.finish(match end {
                Ok(_) => reset::end_of_file(call.fd, rx.slot, &segment),
                Err(errno) => reset::failed(rx.slot, &segment, errno),
            })
        }
    }
}

/// The connection ended for a call that has less than it waits for: what it has tells of a reset, and no later call does
/// (net/unix/af_unix.c, `unix_stream_read_generic`, takes the error and returns what it has).
fn told_by_part(call: &mut Call<'_, '_>, slot: &Slot, segment: &Segment, end: Result<usize>) {
    if call.got == 0 || call.peeks() || call.is_satisfied(slot) {
        // The kernel would not have looked so far.
        if let Err(errno) = end {
            reset::owe(slot, errno);
        }
        return;
    }
    let _ = match end {
        Ok(0) => reset::end_of_file(call.fd, slot, segment),
        Err(errno @ Errno(libc::ECONNRESET)) => reset::failed(slot, segment, errno),
        other => other,
    };
}

/// The same for the program's own call on the kernel socket, which does not say what ended it.
pub(super) fn tell_if_at_end(call: &mut Call<'_, '_>, slot: &Slot, segment: &Segment) {
    if call.got > 0 && !call.peeks() && !call.is_satisfied(slot) {
        match sys::receive(call.fd, &mut [0], libc::MSG_PEEK) {
            Ok(0) => told_by_part(call, slot, segment, Ok(0)),
            Err(errno) => reset::owe(slot, errno), // something else has ended it
            Ok(_) => {}
        }
    }
}
