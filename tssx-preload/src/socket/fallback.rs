//! Leaving the ring for what it cannot carry, without splitting the stream.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Relaxed, Release};

use tssx_core::in_flight::{self, InFlight};
use tssx_core::ledger::layout::{MODE_FINAL, MODE_KERNEL, MODE_RING, Slot};
use tssx_core::reason::Reason;
use tssx_core::{doorbell, switchover, sys};

use super::{establish, recall, reset, send};
use crate::endpoint::{Locked, Way, lock_stream};
use crate::errno::{Errno, Result};
use crate::process::log::{self, Event};

/// Time between two looks whether the peer has taken what a dead process of the family may have sent, microseconds.
const LOOK_US: u32 = 500;

/// Whether flags of send(2) ask for what only the kernel's socket has. All others a Unix stream ignores, whatever they are
/// (net/unix/af_unix.c, `unix_stream_sendmsg`), but those that say whether to wait and whether to raise SIGPIPE.
pub(crate) fn is_for_kernel(flags: c_int) -> bool {
    flags & libc::MSG_OOB != 0
}

/// Why a send with such flags leaves the ring.
pub(crate) fn reason_for_send(flags: c_int) -> Reason {
    if is_for_kernel(flags) { Reason::OutOfBand } else { Reason::SocketOption }
}

/// Ends the sending direction's ring where it is; from here on the kernel carries what this end sends. Nothing is lost: the
/// peer reads the ring up to here first.
///
/// # Errors
/// What a send that must wait gives (EINTR …, EAGAIN if it does not wait) while another thread is asleep in a send on the same socket:
/// its byte must be counted before the ring may end.
pub(crate) fn leave_ring(fd: c_int, tx: Locked, reason: Reason, waits: bool) -> Result<()> {
    let Some(segment) = tx.segment else { return Ok(()) };
    if reset::pending(fd, tx.slot, &segment) {
        reset::owe(tx.slot, Errno(libc::ECONNRESET)); // what the ring knows is not asked any more
    }
    let in_flight = in_flight::look(fd, tx.slot);
    if in_flight == InFlight::Nothing {
        switchover::end_ring(fd, tx.slot, &segment, reason);
        log::say(fd, tx.slot, Event::RingEnded(reason));
        return Ok(());
    }
    if !waits {
        tx.endpoint.count_refusal();
        return Err(Errno::AGAIN);
    }
    if in_flight == InFlight::Abandoned {
        // A doorbell of our own would be one more that the peer has to take first.
        drop(tx);
        sys::rest(LOOK_US);
        return Ok(());
    }
    doorbell::hold_unwritable(fd, tx.slot, &segment)?;
    let _pin = tx.pin();
    send::send_doorbell(fd, tx, &segment, false)
}

/// A direction that has not moved into a ring never does: the kernel may drop an urgent byte, and the counts would not tell doorbells
/// from bytes any more.
pub(crate) fn stay(slot: &Slot, reason: Reason) {
    if slot.tx_mode.load(Relaxed) == MODE_KERNEL {
        slot.tx_mode.store(MODE_FINAL, Release);
        slot.reason.store(reason as u32, Relaxed);
    }
}

/// Before a call that makes libc or the kernel write to `fd` by itself: the sending direction is on the kernel socket afterwards, with what
/// was taken back from a ring in front.
///
/// # Errors
/// What a send that must wait gives: EINTR …, or EAGAIN where it does not wait, because the call does not (`waits`) or the socket.
pub(crate) fn before_foreign_write(fd: c_int, reason: Reason, waits: bool) -> Result<()> {
    lock_on_kernel(fd, reason, waits).map(drop)
}

/// The same before libc writes by its own internal calls, which nobody counts: a connection that is not in a ring yet stays plain.
///
/// # Errors
/// As [`before_foreign_write`].
pub(crate) fn before_libc_writes(fd: c_int) -> Result<()> {
    if let Some(tx) = lock_on_kernel(fd, Reason::Stdio, true)? {
        stay(tx.slot, Reason::Stdio);
        tx.endpoint.count_refusal(); // libc's will not be counted
        drop(tx);
        establish::give_up(fd, Reason::Stdio);
    }
    Ok(())
}

/// The sending direction, locked, once the kernel socket carries it; `None` if `fd` is no selected stream.
fn lock_on_kernel(fd: c_int, reason: Reason, waits: bool) -> Result<Option<Locked>> {
    while let Some(tx) = lock_stream(fd, Way::Tx) {
        let waits = waits && tx.slot.nonblocking.load(Relaxed) == 0;
        if let Some(segment) = tx.segment.filter(|segment| recall::is_due(tx.slot, segment)) {
            recall::go_first(fd, tx, &segment, waits)?;
        } else if tx.slot.tx_mode.load(Relaxed) == MODE_RING {
            leave_ring(fd, tx, reason, waits)?;
        } else {
            return Ok(Some(tx));
        }
    }
    Ok(None)
}

/// The peer wrote something impossible. The connection is reset: both directions of the kernel socket are shut down, so that the
/// program gets errors and end of file instead of waiting for ever.
pub(crate) fn mark_corrupt(fd: c_int, slot: &Slot) {
    let fresh = count_corrupt(slot);
    super::options::shut_down_kernel(fd);
    if fresh {
        log::say(fd, slot, Event::Corrupt);
    }
}

/// Notes that the peer wrote something impossible. False if that was known.
pub(super) fn count_corrupt(slot: &Slot) -> bool {
    let fresh = slot.reason.swap(Reason::Corrupt as u32, Relaxed) != Reason::Corrupt as u32;
    if fresh
        && let Some(entry) = crate::init::ledger().and_then(|ledger| ledger.path_entry(slot.path.load(Relaxed) as usize))
        && let Some(counter) = entry.reasons.get(Reason::Corrupt as usize)
    {
        counter.fetch_add(1, Relaxed);
    }
    fresh
}
