//! Receiving between consent and switch: kernel bytes are taken only under the lock, without waiting, up to the switch.
//!
//! So the count is exact at every moment, and a doorbell that announces the first bytes in the ring is told from data
//! by its position (tssx-core's switchover.rs). Waiting is done by looking (MSG_PEEK), which takes nothing.

#![allow(unsafe_code, reason = "hands the caller's memory to the kernel and to the ring")]

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use libc::iovec;
use tssx_core::layout::{CONSENT_ENOUGH, STATE_ENDED};
use tssx_core::ledger::layout::Slot;
use tssx_core::ring::consumer::Consumer;
use tssx_core::segment::Segment;
use tssx_core::switchover::{self, Arrival};
use tssx_core::{doorbell, sys};

use super::abandon::guarded;
use super::receive::{Call, Step, holds_bytes};
use super::{ended, fallback, recall, reset, wait};
use crate::endpoint::Locked;
use crate::errno::Errno;
use crate::process::log;
use crate::user_memory::Access;

/// Parts handed to the kernel in one call here; a caller with more goes round again.
const PARTS: usize = 64;

/// One look at the kernel's queue.
pub(super) fn step(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let (fd, slot) = (call.fd, rx.slot);
    let step = look(call, rx, segment);
    log::say_if_receiving(fd, slot);
    step
}

fn look(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let undisturbed = sys::Undisturbed::begin(); // until what is taken is counted
    let (arrival, safe) = match switchover::safe_bytes(call.fd, rx.slot, segment) {
        (Arrival::Ring, _) => return Step::Again,
        (Arrival::Corrupt, _) => {
            fallback::mark_corrupt(call.fd, rx.slot);
            return call.finish(Err(Errno(libc::ECONNRESET)));
        }
        (Arrival::Kernel(left), bytes) => (left, usize::try_from(bytes).unwrap_or(usize::MAX)),
    };
    if call.got > 0 && sys::at_mark(call.fd) {
        return Step::Return(Ok(call.got)); // where the kernel stops
    }
    // Only where they were asked for after the upgrade, which then is to end.
    call.credentials = safe > 0 && segment.rx().consent.load(Relaxed) == CONSENT_ENOUGH && ended::has_credentials(call.fd, rx.slot);
    // Nothing that is safe to take: a look tells end of file, an error, or that there is nothing, and takes nothing.
    let received = if safe == 0 { sys::receive(call.fd, &mut [0], libc::MSG_PEEK) } else { receive_now(call, safe) };
    match received {
        Ok(0) => {
            // The peer may have switched, written to the ring and closed since we looked.
            if switchover::arrival(rx.slot, segment) == Arrival::Ring {
                Step::Again
            } else {
                call.finish(reset::end_of_file(call.fd, rx.slot, segment))
            }
        }
        Ok(_) if safe == 0 => Step::Again,
        Ok(received) => {
            count(call, &rx, received);
            drop(undisturbed);
            took(call, &rx, segment, received, safe, arrival)
        }
        Err(Errno::AGAIN) if call.blocks(rx.slot) => {
            drop(undisturbed);
            wait_for_kernel(call, rx, segment)
        }
        Err(errno) => call.finish(reset::failed(rx.slot, segment, errno)),
    }
}

/// Sleeps until the kernel has something for this direction.
pub(super) fn wait_for_kernel(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let (endpoint, slot) = (rx.endpoint, rx.slot);
    slot.sleeps.fetch_add(1, Relaxed);
    call.keep(&rx);
    drop(rx);
    call.patience.falls_asleep();
    let in_poll = wait::is_in_poll(call, slot);
    let waited = guarded(&|| endpoint.unpin(), || {
        if in_poll {
            wait::for_event(call.fd, libc::POLLIN, call.patience.since)
        } else {
            wait::look_for_one(call.fd).map(|_| true)
        }
    });
    call.waited = waited.map_or_else(Err, |_| call.waited);
    call.follow();
    recall::look_elsewhere(segment);
    match waited {
        Ok(open) => {
            if !open && sys::poll_now(call.fd, libc::POLLIN) == Ok(0) {
                call.interrupted = Some(Errno(libc::EINTR));
            }
            Step::Again
        }
        Err(errno) => call.finish(reset::failed(slot, segment, errno)),
    }
}

/// Notes bytes that came from the kernel.
pub(super) fn count(call: &mut Call<'_, '_>, rx: &Locked, received: usize) {
    if !call.peeks() {
        rx.slot.kernel_rx_bytes.fetch_add(received as u64, Relaxed);
        rx.slot.kernel_rx_calls.fetch_add(1, Relaxed);
    }
    call.got += received;
}

/// Kernel bytes were taken: what else there is for this call now. `left` is what lay before the switch, if that is known.
fn took(call: &mut Call<'_, '_>, rx: &Locked, segment: &Segment, received: usize, safe: usize, left: Option<u64>) -> Step {
    // The kernel ends a receive behind them, and joins no bytes with and without credentials. But a look that is cut short here tells of those behind the ring's end too.
    let cut = call.peeks() && left == Some(received as u64) && segment.rx().state.load(Acquire) == STATE_ENDED;
    if (call.has_descriptors() || call.credentials) && !(cut && look_again(call.fd, received + 1) > received) {
        return Step::Return(Ok(call.got));
    }
    if call.peeks() {
        // A look that saw all up to the switch goes on in the ring, as far as it is there.
        if call.has_room() && left == Some(received as u64) {
            let seen = peek_into_ring(call, segment);
            if seen.is_some_and(|seen| call.has_room() && ended::is_reached(segment, seen)) {
                call.got += peek_behind_ring(call, rx.slot, segment);
            }
        }
        return Step::Return(Ok(call.got));
    }
    let more = call.has_room()
        && match switchover::arrival(rx.slot, segment) {
            Arrival::Ring => holds_bytes(segment),
            // Cut short by the number of parts.
            Arrival::Kernel(_) => received < safe && received == first_parts(call, received, safe),
            Arrival::Corrupt => true,
        };
    let over = call.is_satisfied(rx.slot) || sys::at_mark(call.fd);
    if over && !more { Step::Return(Ok(call.got)) } else { Step::Again }
}

/// Bytes that the first [`PARTS`] parts had room for, before `received` of them were filled; at most `most`.
pub(super) fn first_parts(call: &Call<'_, '_>, received: usize, most: usize) -> usize {
    let mut parts = 0;
    call.parts.walk(call.got - received, most, |_, length| {
        parts += 1;
        if parts <= PARTS { length } else { 0 }
    })
}

/// Looks at what the ring holds; up to which position of it.
fn peek_into_ring(call: &mut Call<'_, '_>, segment: &Segment) -> Option<u64> {
    let mut consumer = Consumer::open(segment).ok()?;
    let wanted = (call.parts.total() - call.got).min(usize::try_from(consumer.available()).unwrap_or(0));
    let good = call.parts.accessible(call.got, wanted, Access::Write);
    // SAFETY: `walk` passes addresses of the caller's memory, as far as it was found to be writable.
    call.got += call.parts.walk(call.got, good, |to, length| unsafe { consumer.copy_out(to, length) });
    Some(consumer.position())
}

/// A look that has seen all that came before the switch and the ring to its end: what the kernel has behind that.
/// The bytes from before the switch and the doorbells lie in front of it in the queue, and are looked at again to come there; where they
/// are too many, the look ends with the ring.
fn peek_behind_ring(call: &Call<'_, '_>, slot: &Slot, segment: &Segment) -> usize {
    let mut scratch = [0_u8; SKIP];
    let skip = usize::try_from(doorbell::before_resume(slot, segment)).unwrap_or(usize::MAX);
    if skip > SKIP * PARTS / 2 {
        return 0;
    }
    let mut parts = NO_PARTS;
    let count = pass_over(&mut scratch, skip, &mut parts);
    let count = fill(call, usize::MAX, &mut parts, count);
    look_at(call.fd, &mut parts, count).saturating_sub(skip)
}

/// Bytes that the kernel shows to a look with room for `most`, without what comes with them; `most` itself if that is too many.
fn look_again(fd: i32, most: usize) -> usize {
    if most > SKIP * PARTS / 2 {
        return most;
    }
    let (mut scratch, mut parts) = ([0_u8; SKIP], NO_PARTS);
    let count = pass_over(&mut scratch, most, &mut parts);
    look_at(fd, &mut parts, count)
}

/// Bytes of memory into which all is read that is only to be passed over.
const SKIP: usize = 4096;

/// Makes the first parts room for `length` bytes, all in the same place; how many parts.
fn pass_over(scratch: &mut [u8; SKIP], length: usize, parts: &mut [iovec; PARTS]) -> usize {
    let mut count = 0;
    for part in parts.iter_mut().take(length.div_ceil(SKIP)) {
        *part = iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: SKIP.min(length - count * SKIP) };
        count += 1;
    }
    count
}

/// recvmsg(2) with MSG_PEEK into the first parts; 0 where nothing can be seen.
fn look_at(fd: i32, parts: &mut [iovec; PARTS], count: usize) -> usize {
    let mut message = message_of(parts, count);
    // SAFETY: a scratch of the caller's, and the program's memory, which recv(2) requires to be writable.
    unsafe { sys::recvmsg(fd, &mut message, libc::MSG_PEEK) }.unwrap_or(0)
}

const NO_PARTS: [iovec; PARTS] = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; PARTS];

/// Puts the caller's memory from where the call stands, at most `limit` bytes, behind the first `count` parts; how many there are then.
fn fill(call: &Call<'_, '_>, limit: usize, parts: &mut [iovec; PARTS], mut count: usize) -> usize {
    call.parts.walk(call.got, limit, |to, length| match parts.get_mut(count) {
        Some(part) => {
            *part = iovec { iov_base: to.cast(), iov_len: length };
            count += 1;
            length
        }
        None => 0,
    });
    count
}

/// A message that is received into the first `count` parts, with nothing beside it.
fn message_of(parts: &mut [iovec; PARTS], count: usize) -> libc::msghdr {
    // SAFETY: all zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (parts.as_mut_ptr(), count);
    message
}

/// recvmsg(2) with MSG_DONTWAIT into the caller's memory from where the call stands, at most `limit` bytes.
pub(super) fn receive_now(call: &mut Call<'_, '_>, limit: usize) -> Result<usize, Errno> {
    let flags = call.flags & (libc::MSG_PEEK | libc::MSG_CMSG_CLOEXEC);
    let mut parts = NO_PARTS;
    let count = fill(call, limit, &mut parts, 0);
    let mut message = message_of(&mut parts, count);
    // SAFETY: null, or the header that the program passed to recvmsg(2), which writes it.
    let header = unsafe { call.message.as_mut() };
    if let Some(header) = &header {
        // All the room that the program gave, also if an earlier part of this call has used none of it.
        (message.msg_name, message.msg_control) = (header.msg_name, header.msg_control);
        (message.msg_namelen, message.msg_controllen) = call.room;
    }
    // SAFETY: the parts are the caller's memory, which recv(2) requires to be writable; so are name and control.
    let result = unsafe { sys::recvmsg(call.fd, &mut message, flags) };
    // A look whose room is used up still learns what comes with the next message, if there is one: the kernel has it so.
    let next = call.peeks() && call.got == call.parts.total() && sys::queued_bytes(call.fd).unwrap_or(0) > 0;
    let told = |received: &usize| *received > 0 || next;
    // Without room for them, this is all that tells of descriptors; or of credentials, which end nothing.
    if message.msg_flags & libc::MSG_CTRUNC != 0 && result.is_ok() {
        call.descriptors = sys::getsockopt::<i32>(call.fd, libc::SO_PASSCRED) == Ok(0);
    }
    if let Some(header) = header.filter(|_| result.as_ref().is_ok_and(told)) {
        (header.msg_namelen, header.msg_controllen, header.msg_flags) =
            (message.msg_namelen, message.msg_controllen, message.msg_flags);
        call.told = true;
    }
    result
}
