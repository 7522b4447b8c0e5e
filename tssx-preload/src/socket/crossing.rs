//! Receiving between consent and switch: kernel bytes are taken only under the lock, without waiting, up to the switch.
//!
//! So the count is exact at every moment, and a doorbell that announces the first bytes in the ring is told from data
//! by its position (tssx-core's switchover.rs). Waiting is done by looking (MSG_PEEK), which takes nothing.

#![allow(unsafe_code, reason = "hands the caller's memory to the kernel")]

use core::sync::atomic::Ordering::Relaxed;

use libc::iovec;
use tssx_core::segment::Segment;
use tssx_core::switchover::{self, Arrival};
use tssx_core::sys;

use super::receive::{Call, Step};
use super::{fallback, reset, wait};
use crate::endpoint::Locked;
use crate::errno::Errno;

/// Parts handed to the kernel in one call here; a read that returns fewer bytes than asked for is always allowed.
const PARTS: usize = 16;

/// One look at the kernel's queue.
pub(super) fn step(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let safe = match switchover::safe_bytes(call.fd, rx.slot, segment) {
        (Arrival::Ring, _) => return Step::Again,
        (Arrival::Corrupt, _) => {
            fallback::mark_corrupt(call.fd, rx.slot);
            return call.finish(Err(Errno(libc::ECONNRESET)));
        }
        (Arrival::Kernel(_), bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
    };
    // Nothing that is safe to take: a look tells end of file, an error, or that there is nothing, and takes nothing.
    let received = if safe == 0 { sys::receive(call.fd, &mut [0], libc::MSG_PEEK) } else { receive_now(call, safe) };
    match received {
        Ok(0) => {
            // The peer may have switched, written to the ring and closed since we looked.
            if switchover::arrival(rx.slot, segment) == Arrival::Ring { Step::Again } else { call.finish(Ok(0)) }
        }
        Ok(_) if safe == 0 => Step::Again,
        Ok(received) => {
            if !call.peeks() {
                rx.slot.kernel_rx_bytes.fetch_add(received as u64, Relaxed);
                rx.slot.kernel_rx_calls.fetch_add(1, Relaxed);
            }
            call.got += received;
            let whole = call.flags & libc::MSG_WAITALL == 0 || call.peeks() || call.got >= call.parts.total();
            if whole { Step::Return(Ok(call.got)) } else { Step::Again }
        }
        Err(Errno::AGAIN) if call.blocks(rx.slot) => {
            rx.slot.sleeps.fetch_add(1, Relaxed);
            let (pin, slot) = (rx.pin(), rx.slot);
            drop(rx);
            let (waited, _) = wait::receive_one(call.fd, true);
            drop(pin);
            match waited {
                Ok(_) => Step::Again,
                Err(errno) => call.finish(reset::failed(slot, segment, errno)),
            }
        }
        Err(errno) => call.finish(reset::failed(rx.slot, segment, errno)),
    }
}

/// recvmsg(2) with MSG_DONTWAIT into the caller's memory from where the call stands, at most `limit` bytes.
fn receive_now(call: &Call<'_, '_>, limit: usize) -> Result<usize, Errno> {
    let mut parts = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; PARTS];
    let mut count = 0;
    call.parts.walk(call.got, limit, |to, length| match parts.get_mut(count) {
        Some(part) => {
            *part = iovec { iov_base: to.cast(), iov_len: length };
            count += 1;
            length
        }
        None => 0,
    });
    // SAFETY: all zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = count;
    // SAFETY: null, or the header that the program passed to recvmsg(2), which writes it.
    let header = unsafe { call.message.as_mut() };
    if let Some(header) = &header {
        (message.msg_name, message.msg_namelen) = (header.msg_name, header.msg_namelen);
        (message.msg_control, message.msg_controllen) = (header.msg_control, header.msg_controllen);
    }
    // SAFETY: the parts are the caller's memory, which recv(2) requires to be writable; so are name and control.
    let result = unsafe { sys::recvmsg(call.fd, &mut message, call.flags & (libc::MSG_PEEK | libc::MSG_CMSG_CLOEXEC)) };
    if let (Some(header), Ok(1..)) = (header, &result) {
        (header.msg_namelen, header.msg_controllen, header.msg_flags) =
            (message.msg_namelen, message.msg_controllen, message.msg_flags);
    }
    result
}
