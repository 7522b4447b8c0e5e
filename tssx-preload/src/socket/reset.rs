//! End of file and errors of a connection whose bytes are in rings, as the kernel would have told them.
//!
//! When a Unix stream socket is closed with data unread, its peer gets ECONNRESET once, otherwise end of file (unix(7), and
//! `unix_release_sock` in net/unix/af_unix.c). The kernel judges by its own queue, in which an accelerated connection
//! has only doorbells, so the ring decides: bytes that the closed peer had not read make a reset, an unread
//! doorbell does not.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::layout::{GONE_CLOSED, STATE_ENDED};
use tssx_core::ledger::layout::{MODE_RING, Slot};
use tssx_core::segment::Segment;
use tssx_core::{doorbell, switchover, sys};

use crate::endpoint::{Way, lock_stream, unread_by_peer};
use crate::errno::{Errno, Result};

/// `Slot::reset_reported`: the program knows.
const REPORTED: u32 = 1;
/// `Slot::reset_reported`: the kernel has told us, and the program is to be told when it has read what there is.
const OWED: u32 = 2;

/// The kernel said end of file and the ring is empty: what the program gets.
pub(super) fn end_of_file(fd: c_int, slot: &Slot, segment: &Segment) -> Result<usize> {
    let due = slot.reset_reported.load(Relaxed) == OWED || is_reset(fd, slot, segment);
    if due && slot.reset_reported.swap(REPORTED, Relaxed) != REPORTED { Err(Errno(libc::ECONNRESET)) } else { Ok(0) }
}

/// The kernel reported an error, which it does once, to a call that has bytes to return instead.
pub(crate) fn owe(slot: &Slot, errno: Errno) {
    if errno == Errno(libc::ECONNRESET) {
        let _ = slot.reset_reported.compare_exchange(0, OWED, Relaxed, Relaxed);
    }
}

/// A call that received several messages met an error behind them: the next call tells of it.
pub(crate) fn tell_again(fd: c_int, errno: Errno) {
    if errno == Errno(libc::ECONNRESET)
        && let Some(rx) = lock_stream(fd, Way::Rx)
    {
        rx.slot.reset_reported.store(OWED, Relaxed);
    }
}

/// Whether an error is owed: told, and gone.
pub(super) fn take_owed(slot: &Slot) -> bool {
    slot.reset_reported.compare_exchange(OWED, REPORTED, Relaxed, Relaxed).is_ok()
}

/// The kernel reported an error and the ring is empty: what the program gets.
pub(super) fn failed(slot: &Slot, segment: &Segment, errno: Errno) -> Result<usize> {
    if errno != Errno(libc::ECONNRESET) {
        return Err(errno);
    }
    if is_false(slot, segment) {
        return Ok(0);
    }
    slot.reset_reported.store(REPORTED, Relaxed);
    Err(errno)
}

/// Whether the peer has closed and left bytes of ours in the ring.
pub(super) fn is_reset(fd: c_int, slot: &Slot, segment: &Segment) -> bool {
    // The kernel knows of what was sent behind the ring's end, not of what is unread before it.
    let in_ring = slot.tx_mode.load(Relaxed) == MODE_RING || segment.tx().state.load(Relaxed) == STATE_ENDED;
    in_ring && unread_by_peer(segment) > 0 && is_closed(fd, slot, segment)
}

/// Whether the peer has closed the connection, or was killed.
pub(super) fn is_closed(fd: c_int, slot: &Slot, segment: &Segment) -> bool {
    let said = segment.tx().asleep.load(Relaxed);
    // The kernel says that a connection is hung up once both directions are shut down, by whichever end. Hung up without a word about
    // one of them: the peer was killed.
    let no_more_in = segment.rx().finished.load(Relaxed) != 0 || doorbell::self_gone(segment);
    let no_more_out = doorbell::reader_going(segment) || slot.tx_shutdown.load(Relaxed) != 0;
    let silent = !(no_more_in && no_more_out);
    said & GONE_CLOSED != 0 || (silent && sys::poll_now(fd, 0).unwrap_or(0) & libc::POLLHUP != 0)
}

/// Whether a reset is due that was not reported yet: POLLERR, SO_ERROR.
pub(crate) fn pending(fd: c_int, slot: &Slot, segment: &Segment) -> bool {
    match slot.reset_reported.load(Relaxed) {
        OWED => true,
        REPORTED => false,
        _ => is_reset(fd, slot, segment),
    }
}

/// The same, and the program is told now.
pub(crate) fn take_pending(fd: c_int, slot: &Slot, segment: &Segment) -> bool {
    pending(fd, slot, segment) && slot.reset_reported.swap(REPORTED, Relaxed) != REPORTED
}

/// The pending error of a stream, if there is one: told, and gone.
pub(crate) fn before_batch(fd: c_int) -> Result<()> {
    let Some(tx) = lock_stream(fd, Way::Tx) else { return Ok(()) };
    let Some(segment) = tx.segment else {
        return match sys::getsockopt::<c_int>(fd, libc::SO_ERROR) {
            Ok(errno @ 1..) => Err(Errno(errno)),
            _ => Ok(()),
        };
    };
    if take_pending(fd, tx.slot, &segment) {
        return Err(Errno(libc::ECONNRESET));
    }
    match sys::getsockopt::<c_int>(fd, libc::SO_ERROR) {
        Ok(libc::ECONNRESET) => failed(tx.slot, &segment, Errno(libc::ECONNRESET)).map(drop),
        _ => Ok(()),
    }
}

/// Whether an ECONNRESET of the kernel's means nothing: the peer left only a doorbell unread, or the program knows already.
pub(crate) fn is_false(slot: &Slot, segment: &Segment) -> bool {
    let in_ring = slot.tx_mode.load(Relaxed) == MODE_RING;
    let ours = in_ring && unread_by_peer(segment) == 0 && !doorbell::left_unread(segment);
    slot.reset_reported.load(Relaxed) == REPORTED || (ours && slot.reset_reported.load(Relaxed) != OWED)
}

/// The descriptor goes where nobody knows of doorbells: an error that they alone have made is taken off the kernel's socket.
pub(super) fn clear_false(fd: c_int, slot: &Slot, segment: &Segment) {
    let ours = switchover::nothing_behind_end(slot, segment) && unread_by_peer(segment) == 0 && !doorbell::left_unread(segment);
    if ours && slot.reset_reported.load(Relaxed) != OWED && sys::poll_now(fd, 0).unwrap_or(0) & libc::POLLERR != 0 {
        let _ = sys::getsockopt::<c_int>(fd, libc::SO_ERROR);
    }
}
