//! Options and state of a selected stream, where a ring changes the kernel's answer.

#![allow(unsafe_code, reason = "reads and writes option values behind the program's pointers")]

use core::ffi::{c_int, c_ulong, c_void};
use core::sync::atomic::Ordering::Relaxed;

use libc::socklen_t;
use tssx_core::layout::CONSENT_GIVEN;
use tssx_core::ledger::layout::MODE_RING;
use tssx_core::reason::Reason;
use tssx_core::ring::consumer::Consumer;
use tssx_core::{doorbell, switchover};

use super::{recall, reset};
use crate::endpoint::{Way, lock_stream, unread_by_peer};
use crate::errno::{self, Result};
use crate::next;

/// shutdown(2): the kernel's, and the same for the rings.
pub(crate) fn shutdown(fd: c_int, how: c_int) -> Result<c_int> {
    // The sending lock keeps a concurrent write from slipping into the ring behind the end of file.
    let tx = lock_stream(fd, Way::Tx);
    // SAFETY: no pointers.
    let result = errno::from_int(unsafe { next::shutdown(fd, how) });
    if let (Some(tx), Ok(_)) = (tx, result) {
        if how == libc::SHUT_WR || how == libc::SHUT_RDWR {
            tx.slot.tx_shutdown.store(1, Relaxed);
            if let Some(segment) = &tx.segment {
                doorbell::say_finished(segment);
            }
        }
        if let Some(segment) = tx.segment.filter(|_| how == libc::SHUT_RD || how == libc::SHUT_RDWR) {
            doorbell::say_gone(&segment, false);
        }
    }
    result
}

/// Both directions of a connection whose memory is corrupt.
pub(crate) fn shut_down_kernel(fd: c_int) {
    // SAFETY: no pointers.
    unsafe { next::shutdown(fd, libc::SHUT_RDWR) };
}

/// Whether getsockopt has an answer of ours: SO_SNDBUF, which we changed, and SO_ERROR, which a ring knows better.
pub(crate) fn getsockopt(fd: c_int, option: c_int) -> Option<c_int> {
    let tx = lock_stream(fd, Way::Tx)?;
    let segment = tx.segment?;
    if tx.slot.tx_mode.load(Relaxed) != MODE_RING {
        return None;
    }
    match option {
        libc::SO_SNDBUF => Some(tx.slot.sndbuf.load(Relaxed).cast_signed()),
        libc::SO_ERROR => {
            if reset::pending(fd, tx.slot, &segment) {
                tx.slot.reset_reported.store(1, Relaxed);
                return Some(libc::ECONNRESET);
            }
            let pending = tssx_core::sys::getsockopt::<c_int>(fd, libc::SO_ERROR).ok()?;
            Some(if pending == libc::ECONNRESET && reset::is_false(tx.slot, &segment) { 0 } else { pending })
        }
        _ => None,
    }
}

/// Before setsockopt at SOL_SOCKET. True if the call is answered: SO_SNDBUF of a direction in a ring is only noted.
pub(crate) fn setsockopt(fd: c_int, option: c_int, value: c_int) -> bool {
    match option {
        libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => set_send_buffer(fd, value),
        libc::SO_PASSCRED | libc::SO_PASSSEC | libc::SO_PEEK_OFF if value != 0 => {
            recall::leave_rings_now(fd, Reason::SocketOption);
            false
        }
        _ => false,
    }
}

fn set_send_buffer(fd: c_int, value: c_int) -> bool {
    /// SOCK_MIN_SNDBUF of include/net/sock.h, as the kernel reports it at least.
    const LEAST: u32 = 4608;
    /// net.core.wmem_max's default; the kernel doubles what it is asked for, up to twice this.
    const MOST: u32 = 212_992;
    let Some(tx) = lock_stream(fd, Way::Tx) else { return false };
    let Some(segment) = tx.segment.filter(|_| tx.slot.tx_mode.load(Relaxed) == MODE_RING) else { return false };
    let buffer = value.max(0).cast_unsigned().min(MOST).saturating_mul(2).max(LEAST);
    tx.slot.sndbuf.store(buffer, Relaxed);
    let limit = u64::from(buffer).clamp(4096, segment.capacity());
    tx.slot.tx_limit.store(u32::try_from(limit).unwrap_or(u32::MAX), Relaxed);
    segment.tx().limit.store(limit, Relaxed);
    true
}

/// An `int` option value behind the program's pointer, if there is one.
///
/// # Safety
/// `value` must be readable for `length` bytes.
pub(crate) unsafe fn option_value(value: *const c_void, length: socklen_t) -> Option<c_int> {
    if value.is_null() || (length as usize) < size_of::<c_int>() {
        return None;
    }
    // SAFETY: checked above; the program's pointer need not be aligned.
    Some(unsafe { value.cast::<c_int>().read_unaligned() })
}

/// FIONREAD and SIOCOUTQ of a stream whose bytes are in rings.
pub(crate) fn queue_length(fd: c_int, request: c_ulong) -> Option<c_int> {
    if request == libc::FIONREAD {
        let rx = lock_stream(fd, Way::Rx)?;
        let segment = rx.segment?;
        if rx.slot.rx_mode.load(Relaxed) != MODE_RING {
            let (arrival, bytes) = switchover::safe_bytes(fd, rx.slot, &segment);
            let consented = segment.rx().consent.load(Relaxed) == CONSENT_GIVEN && arrival != switchover::Arrival::Ring;
            if consented {
                return c_int::try_from(bytes).ok();
            }
        }
        let ring = rx.slot.rx_mode.load(Relaxed) == MODE_RING;
        return ring.then(|| Consumer::open(&segment).ok().and_then(|consumer| c_int::try_from(consumer.available()).ok()))?;
    }
    let tx = lock_stream(fd, Way::Tx)?;
    let segment = tx.segment.filter(|_| tx.slot.tx_mode.load(Relaxed) == MODE_RING)?;
    c_int::try_from(unread_by_peer(&segment)).ok()
}

/// After O_NONBLOCK was set or cleared on the open file description.
pub(crate) fn note_nonblocking(fd: c_int, on: bool) {
    if let Some(tx) = lock_stream(fd, Way::Tx) {
        tx.slot.nonblocking.store(u32::from(on), Relaxed);
    }
}

/// After F_SETFL or FIOASYNC asked for SIGIO: a ring sends none.
pub(crate) fn note_async(fd: c_int) {
    recall::leave_rings_now(fd, Reason::SocketOption);
}
