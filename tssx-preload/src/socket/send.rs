//! Sending: `write`, `send`, `sendmsg` and their relatives, on a selected stream.
//!
//! A blocking call returns when every byte is accepted, a non-blocking one when the ring is full, as send(2) has it. A peer
//! that is gone gives EPIPE and SIGPIPE: by letting the kernel say so, with the program's own call.

#![allow(unsafe_code, reason = "hands the caller's memory to the ring")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use core::sync::atomic::fence;

use tssx_core::ledger::layout::{MODE_KERNEL, MODE_RING};
use tssx_core::ring::producer::Producer;
use tssx_core::segment::Segment;
use tssx_core::{doorbell, switchover};

use super::{alive, establish, fallback, recall, wait};
use crate::endpoint::{Locked, Way, lock_stream};
use crate::errno::{self, Errno, Result};
use crate::init;
use crate::user_buf::Parts;

/// What one look at a locked direction led to.
enum Attempt {
    /// So many bytes are in the ring.
    Wrote(usize),
    /// No room.
    Full,
    /// The peer is gone: the kernel answers.
    Gone,
    /// The peer wrote something impossible.
    Corrupt,
}

/// Sends `parts` on the stream at `fd`. `plain` is the program's own call, made where the kernel shall carry (or refuse) it.
pub(crate) fn send(fd: c_int, parts: &Parts<'_>, flags: c_int, plain: impl Fn() -> isize) -> Result<usize> {
    let mut sent = 0;
    loop {
        let Some(tx) = lock_stream(fd, Way::Tx) else {
            return if sent > 0 { Ok(sent) } else { errno::from_bytes(plain()) };
        };
        if let Some(segment) = tx.segment.filter(|segment| recall::is_due(tx.slot, segment)) {
            match recall::go_first(fd, tx, &segment, flags) {
                Ok(()) => continue,
                Err(errno) => return if sent > 0 { Ok(sent) } else { Err(errno) },
            }
        }
        let in_ring = match (tx.slot.tx_mode.load(Relaxed), tx.segment) {
            (MODE_RING, Some(segment)) => Some(segment),
            (MODE_KERNEL, Some(segment)) => {
                switchover::pause_for_consent(tx.slot, &segment, init::pause_us());
                if may_switch(fd, &tx, &segment) {
                    continue; // looks at the ring with fresh eyes: the consent may be revoked by now
                }
                None
            }
            _ => None,
        };
        // Nothing to carry, or nothing a ring could carry: flags the kernel knows and we do not.
        let Some(segment) = in_ring.filter(|_| parts.total() > 0 && flags & !fallback::SEND_FLAGS == 0) else {
            if in_ring.is_some() && parts.total() > 0 {
                fallback::leave_ring(fd, tx, fallback::reason_for_send(flags))?;
                continue;
            }
            return if sent > 0 { Ok(sent) } else { through_kernel(fd, tx, &plain) };
        };
        match attempt(fd, &tx, &segment, parts, sent) {
            Attempt::Wrote(count) => {
                // One operation of the program, however many looks it takes.
                tx.slot.ring_tx_calls.fetch_add(u64::from(sent == 0), Relaxed);
                sent += count;
                if sent >= parts.total() {
                    return Ok(sent);
                }
            }
            Attempt::Corrupt => return if sent > 0 { Ok(sent) } else { Err(Errno(libc::ECONNRESET)) },
            Attempt::Gone => {
                drop(tx);
                return if sent > 0 { Ok(sent) } else { errno::from_bytes(plain()) };
            }
            Attempt::Full => {
                if let Err(errno) = wait_for_room(fd, tx, &segment, flags, sent > 0) {
                    return if sent > 0 { Ok(sent) } else { Err(errno) };
                }
            }
        }
    }
}

fn may_switch(fd: c_int, tx: &Locked, segment: &Segment) -> bool {
    let switched = init::ledger().is_some_and(|ledger| switchover::try_switch(fd, ledger, tx.slot, segment));
    // "state, then consent" here against "consent, then state" in a consumer that revokes: one of the two sees the other.
    fence(SeqCst);
    switched
}

/// The program's own call on the kernel socket, counted.
fn through_kernel(fd: c_int, tx: Locked, plain: &impl Fn() -> isize) -> Result<usize> {
    let endpoint = tx.endpoint;
    let pin = tx.pin();
    switchover::kernel_send_begins(tx.slot, tx.segment.as_ref());
    let slot = tx.slot;
    drop(tx);
    let result = errno::from_bytes(plain());
    {
        let _guard = tssx_core::lock::acquire(&slot.tx_lock, crate::process::pid());
        let sent = result.ok().filter(|sent| *sent > 0).map(|sent| sent as u64);
        switchover::kernel_send_ends(slot, endpoint.segment(slot).as_ref(), sent);
    }
    establish::after_kernel_operation(fd, endpoint);
    drop(pin);
    result
}

fn attempt(fd: c_int, tx: &Locked, segment: &Segment, parts: &Parts<'_>, sent: usize) -> Attempt {
    if tx.slot.tx_shutdown.load(Relaxed) != 0 || doorbell::reader_gone(segment) || !alive::is_believed(fd, tx.endpoint, segment) {
        return Attempt::Gone;
    }
    let Ok(mut producer) = Producer::open(segment) else {
        fallback::mark_corrupt(fd, tx.slot);
        return Attempt::Corrupt;
    };
    let room = usize::try_from(producer.room(u64::from(tx.slot.tx_limit.load(Relaxed)))).unwrap_or(usize::MAX);
    if room == 0 {
        return Attempt::Full;
    }
    // SAFETY: `walk` passes addresses of the caller's memory, which send(2) requires to be readable.
    let count = parts.walk(sent, room, |from, length| unsafe { producer.copy_in(from, length) });
    producer.publish();
    tx.slot.ring_tx_bytes.fetch_add(count as u64, Relaxed);
    // A doorbell that cannot be sent means that the peer has gone since we looked, perhaps after it read these very bytes: they
    // were written to a living peer, and the next call is refused.
    if doorbell::rouse(fd, tx.slot, segment).is_err() {
        tx.endpoint.last_alive.store(0, Relaxed);
    }
    // The peer gave its ring up meanwhile: these bytes go back too. The fence is the doorbell's.
    if recall::is_due(tx.slot, segment) {
        tssx_core::recall::serve(fd, tx.slot, segment);
    }
    Attempt::Wrote(count)
}

/// Room to write, as far as can be seen without the lock; impossible positions count as room, so that the caller looks.
fn has_room(segment: &Segment, limit: u64) -> bool {
    Producer::open(segment).map_or(true, |producer| producer.room(limit) > 0) || doorbell::reader_gone(segment)
}

/// Waits until there may be room. `partly`: some bytes of the call are in the ring already, so a signal for a broken pipe is not due.
fn wait_for_room(fd: c_int, tx: Locked, segment: &Segment, flags: c_int, partly: bool) -> Result<()> {
    let slot = tx.slot;
    let limit = u64::from(slot.tx_limit.load(Relaxed));
    let blocking = flags & libc::MSG_DONTWAIT == 0 && slot.nonblocking.load(Relaxed) == 0;
    let pin = tx.pin();
    let endpoint = tx.endpoint;
    if blocking {
        drop(tx);
        if endpoint.spin.spin(|| has_room(segment, limit)) {
            slot.spin_hits.fetch_add(1, Relaxed);
            return Ok(());
        }
        let Some(tx) = lock_stream(fd, Way::Tx).filter(|tx| core::ptr::eq(tx.endpoint, endpoint)) else {
            return Ok(()); // closed by another thread: the caller finds out
        };
        return sleep_for_room(fd, tx, segment, flags, partly);
    }
    if doorbell::hold_unwritable(fd, slot, segment).is_err() || has_room(segment, limit) {
        return Ok(());
    }
    drop(tx);
    drop(pin);
    Err(Errno::AGAIN)
}

fn sleep_for_room(fd: c_int, tx: Locked, segment: &Segment, flags: c_int, partly: bool) -> Result<()> {
    let slot = tx.slot;
    let limit = u64::from(slot.tx_limit.load(Relaxed));
    if doorbell::hold_unwritable(fd, slot, segment).is_err() || has_room(segment, limit) {
        return Ok(());
    }
    // Counted as a send in progress, so that nobody ends the ring while our byte may still be on its way.
    slot.kernel_tx_inflight.fetch_add(1, AcqRel);
    slot.sleeps.fetch_add(1, Relaxed);
    let pin = tx.pin();
    drop(tx);
    let flags = if partly { flags | libc::MSG_NOSIGNAL } else { flags };
    let result = wait::send_one(fd, flags);
    {
        let _guard = tssx_core::lock::acquire(&slot.tx_lock, crate::process::pid());
        let before = slot.kernel_tx_inflight.load(Relaxed);
        slot.kernel_tx_inflight.store(before.saturating_sub(1), Relaxed);
        if let Ok(count) = result {
            doorbell::count_sent(slot, segment, count as u64);
        }
    }
    drop(pin);
    result.map(drop)
}

/// Sends by the program's own call on a stream whose sending direction is on the kernel socket, and counts it.
pub(crate) fn send_plainly(fd: c_int, plain: impl Fn() -> isize) -> Result<usize> {
    match lock_stream(fd, Way::Tx) {
        Some(tx) => through_kernel(fd, tx, &plain),
        None => errno::from_bytes(plain()),
    }
}
