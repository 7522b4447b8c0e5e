//! Leaving the ring for what it cannot carry, without splitting the stream.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::ledger::layout::{MODE_RING, Slot};
use tssx_core::reason::Reason;
use tssx_core::{doorbell, switchover};

use super::{establish, wait};
use crate::endpoint::{Locked, Way, lock_stream};
use crate::errno::{Errno, Result};

/// Flags of send(2) that mean the same for a ring.
pub(crate) const SEND_FLAGS: c_int =
    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE | libc::MSG_EOR | libc::MSG_CONFIRM | libc::MSG_DONTROUTE;

/// Why a send with such flags leaves the ring.
pub(crate) fn reason_for_send(flags: c_int) -> Reason {
    if flags & libc::MSG_OOB != 0 { Reason::OutOfBand } else { Reason::SocketOption }
}

/// Ends the sending direction's ring where it is; from here on the kernel carries what this end sends. Nothing is lost: the
/// peer reads the ring up to here first.
///
/// # Errors
/// What a send that must wait gives (EAGAIN, EINTR …) while another thread is asleep in a send on the same socket: its
/// byte must be counted before the ring may end.
pub(crate) fn leave_ring(fd: c_int, tx: Locked, reason: Reason) -> Result<()> {
    let Some(segment) = tx.segment else { return Ok(()) };
    if tx.slot.kernel_tx_inflight.load(Relaxed) == 0 {
        switchover::end_ring(fd, tx.slot, &segment, reason);
        return Ok(());
    }
    let slot = tx.slot;
    if slot.nonblocking.load(Relaxed) != 0 {
        return Err(Errno::AGAIN);
    }
    doorbell::hold_unwritable(fd, slot, &segment)?;
    let pin = tx.pin();
    drop(tx);
    let result = wait::send_one(fd, libc::MSG_NOSIGNAL);
    if let Ok(count) = result {
        let _guard = tssx_core::lock::acquire(&slot.tx_lock, crate::process::pid());
        doorbell::count_sent(slot, &segment, count as u64);
    }
    drop(pin);
    result.map(drop)
}

/// Before a call that makes libc or the kernel write to `fd` by itself: the sending direction is on the kernel socket afterwards,
/// and a connection that is not in a ring yet stays plain if `for_good`.
///
/// # Errors
/// As [`leave_ring`].
pub(crate) fn before_foreign_write(fd: c_int, reason: Reason, for_good: bool) -> Result<()> {
    while let Some(tx) = lock_stream(fd, Way::Tx) {
        if tx.slot.tx_mode.load(Relaxed) != MODE_RING {
            drop(tx);
            if for_good {
                establish::give_up(fd, reason);
            }
            return Ok(());
        }
        leave_ring(fd, tx, reason)?;
    }
    Ok(())
}

/// The peer wrote something impossible. The connection is reset: both directions of the kernel socket are shut down, so that the
/// program gets errors and end of file instead of waiting for ever.
pub(crate) fn mark_corrupt(fd: c_int, slot: &Slot) {
    if slot.reason.swap(Reason::Corrupt as u32, Relaxed) != Reason::Corrupt as u32 {
        if let Some(entry) = crate::init::ledger().and_then(|ledger| ledger.path_entry(slot.path.load(Relaxed) as usize))
            && let Some(counter) = entry.reasons.get(Reason::Corrupt as usize)
        {
            counter.fetch_add(1, Relaxed);
        }
        super::options::shut_down_kernel(fd);
    }
}
