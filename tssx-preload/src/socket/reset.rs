//! End of file and errors of a connection whose bytes are in rings, as the kernel would have told them.
//!
//! When a Unix stream socket is closed with data unread, its peer gets ECONNRESET once, otherwise end of file (unix(7), and
//! `unix_release_sock` in net/unix/af_unix.c). The kernel judges by its own queue, in which an accelerated connection
//! has only doorbells, so the ring decides: bytes that the closed peer had not read make a reset, an unread
//! doorbell does not.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::layout::{GONE_CLOSED, GONE_SHUTDOWN};
use tssx_core::ledger::layout::{MODE_RING, Slot};
use tssx_core::segment::Segment;
use tssx_core::{doorbell, sys};

use crate::endpoint::unread_by_peer;
use crate::errno::{Errno, Result};

/// The kernel said end of file and the ring is empty: what the program gets.
pub(super) fn end_of_file(fd: c_int, slot: &Slot, segment: &Segment) -> Result<usize> {
    if is_reset(fd, slot, segment) && slot.reset_reported.swap(1, Relaxed) == 0 { Err(Errno(libc::ECONNRESET)) } else { Ok(0) }
}

/// The kernel reported an error and the ring is empty: what the program gets.
pub(super) fn failed(slot: &Slot, segment: &Segment, errno: Errno) -> Result<usize> {
    if errno != Errno(libc::ECONNRESET) {
        return Err(errno);
    }
    if slot.tx_mode.load(Relaxed) == MODE_RING && unread_by_peer(segment) == 0 {
        return Ok(0); // the peer left a doorbell unread, nothing else
    }
    slot.reset_reported.store(1, Relaxed);
    Err(errno)
}

/// Whether the peer has closed and left bytes of ours in the ring.
pub(super) fn is_reset(fd: c_int, slot: &Slot, segment: &Segment) -> bool {
    if slot.tx_mode.load(Relaxed) != MODE_RING || unread_by_peer(segment) == 0 {
        return false;
    }
    let said = segment.tx().asleep.load(Relaxed);
    // Hung up without a word: it was killed. If both ends have shut down, a hang-up means nothing more.
    let silent = said & GONE_SHUTDOWN == 0 && !(slot.tx_shutdown.load(Relaxed) != 0 && doorbell::self_gone(segment));
    said & GONE_CLOSED != 0 || (silent && sys::poll_now(fd, 0).unwrap_or(0) & libc::POLLHUP != 0)
}

/// Whether a reset is due that was not reported yet: POLLERR, SO_ERROR.
pub(crate) fn pending(fd: c_int, slot: &Slot, segment: &Segment) -> bool {
    slot.reset_reported.load(Relaxed) == 0 && is_reset(fd, slot, segment)
}

/// Whether an ECONNRESET of the kernel's is only about doorbells.
pub(crate) fn is_false(slot: &Slot, segment: &Segment) -> bool {
    slot.tx_mode.load(Relaxed) == MODE_RING && unread_by_peer(segment) == 0
}
