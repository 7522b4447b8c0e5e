//! Sending: `write`, `send`, `sendmsg` and their relatives, on a selected stream.
//!
//! A blocking call returns when every byte is accepted, a non-blocking one when the ring is full, as send(2) has it. A peer
//! that is gone gives EPIPE and SIGPIPE: by letting the kernel say so, with the program's own call.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

use tssx_core::ledger::layout::{MODE_KERNEL, MODE_RING, Slot};
use tssx_core::packets::Packets;
use tssx_core::reason::Reason;
use tssx_core::ring::producer::Producer;
use tssx_core::segment::Segment;
use tssx_core::{clock, doorbell, in_flight, switchover, whereabouts};

use super::abandon::{guarded, test_cancel};
use super::alive::Belief;
use super::patience::{self, Patience};
use super::{alive, copying, establish, fallback, recall, reset, wait};
use crate::endpoint::{Locked, Pin, Way, lock_stream};
use crate::errno::{self, Errno, Result};
use crate::init;
use crate::process;
use crate::process::log::{self, Event};
use crate::user_buf::Parts;
use crate::user_memory::Access;

/// What one look at a locked direction led to.
enum Attempt {
    /// So many bytes are in the ring.
    Wrote(usize),
    /// No room.
    Full,
    /// A signal handler of this thread used the ring meanwhile: look again.
    Disturbed,
    /// The program's memory cannot be read.
    Fault,
    /// The peer is gone: the kernel answers.
    Gone,
    /// The peer wrote something impossible.
    Corrupt,
}

/// What a call on the kernel socket asks for: if less is sent, there was too little room.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    bytes: usize,
    /// Or a file or pipe had no more.
    source_may_end: bool,
}

impl Asked {
    /// Bytes in memory.
    pub(crate) fn all_of(bytes: usize) -> Self {
        Self { bytes, source_may_end: false }
    }

    /// As many of a file or pipe.
    pub(crate) fn at_most(bytes: usize) -> Self {
        Self { bytes, source_may_end: true }
    }
}

/// One call of the program: what it asked for and what it has sent so far.
struct Call<'a, 'p> {
    parts: &'a Parts<'p>,
    flags: c_int,
    sent: usize,
    /// Once the call has waited it stays with the end that it waited on, whatever becomes of the descriptor's number.
    pin: Option<Pin>,
    /// It was waiting for room while the peer was there: a peer that goes then raises no signal.
    waited: bool,
    /// O_NONBLOCK as it was when the call began holds for all of it.
    blocking: Option<bool>,
    patience: Patience,
}

impl Call<'_, '_> {
    /// What the call returns when it can go no further: what it has sent, else `otherwise`.
    fn partly(&self, otherwise: Result<usize>) -> Result<usize> {
        if self.sent > 0 { Ok(self.sent) } else { otherwise }
    }

    fn blocks(&mut self, slot: &Slot) -> bool {
        let flags = self.flags;
        *self.blocking.get_or_insert_with(|| flags & libc::MSG_DONTWAIT == 0 && slot.nonblocking.load(Relaxed) == 0)
    }
}

/// Sends `parts` on the stream at `fd`. `plain` is the program's own call, made where the kernel shall carry (or refuse) it.
pub(crate) fn send(own: c_int, parts: &Parts<'_>, flags: c_int, plain: impl Fn() -> isize) -> Result<usize> {
    let mut fd = own;
    let mut call = Call { parts, flags, sent: 0, pin: None, waited: false, blocking: None, patience: Patience::default() };
    test_cancel();
    loop {
        let ours = |tx: &Locked| call.pin.as_ref().is_none_or(|pin| core::ptr::eq(pin.endpoint(), tx.endpoint));
        let Some(tx) = lock_stream(fd, Way::Tx).filter(ours) else {
            match call.pin.as_ref().map(|pin| pin.endpoint().other_descriptor()) {
                None => return errno::from_bytes(plain()),
                // The descriptor was closed while the call was asleep: it goes on with the file that it began with.
                Some(Some(spare)) if spare != fd => fd = spare,
                Some(_) => return call.partly(Err(Errno(libc::EBADF))),
            }
            continue;
        };
        let blocking = call.blocks(tx.slot);
        if let Some(segment) = tx.segment.filter(|segment| recall::is_due(tx.slot, segment)) {
            match recall::go_first(fd, tx, &segment, blocking) {
                Ok(()) => continue,
                Err(errno) => return call.partly(Err(errno)),
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
        // Nothing to carry, or nothing a ring could carry.
        let Some(segment) = in_ring.filter(|_| parts.total() > 0 && !fallback::is_for_kernel(flags)) else {
            if in_ring.is_some() && parts.total() > 0 {
                match fallback::leave_ring(fd, tx, fallback::reason_for_send(flags), blocking) {
                    Ok(()) => continue,
                    Err(errno) => return call.partly(Err(errno)),
                }
            }
            if flags & libc::MSG_OOB != 0 {
                fallback::stay(tx.slot, Reason::OutOfBand);
            }
            call.pin = None; // the kernel keeps what its own call waits on
            let sent = call.sent;
            let rest = || if sent == 0 && fd == own { plain() } else { send_rest(fd, parts, sent, flags) };
            match through_kernel(fd, tx, in_ring.is_some(), Asked::all_of(parts.total() - sent), &rest) {
                None => continue,
                Some(result) if sent == 0 => return result,
                Some(result) => return Ok(sent + result.unwrap_or(0)),
            }
        };
        if let Some(result) = into_ring(fd, tx, &segment, &mut call) {
            return result;
        }
        if !call.patience.allows(call.sent) {
            patience::end(fd);
            return call.partly(Err(Errno(libc::ECONNRESET)));
        }
    }
}

/// One attempt to write into the ring, and what follows from it. `None`: look again.
fn into_ring(fd: c_int, tx: Locked, segment: &Segment, call: &mut Call<'_, '_>) -> Option<Result<usize>> {
    let (slot, endpoint) = (tx.slot, tx.endpoint);
    match attempt(fd, &tx, segment, call.parts, call.sent) {
        Attempt::Wrote(count) => {
            // One operation of the program, however many looks it takes.
            if call.sent == 0 {
                slot.count_call_into_ring();
            }
            endpoint.gathering.sent();
            call.sent += count;
            (call.sent >= call.parts.total()).then_some(Ok(call.sent))
        }
        Attempt::Disturbed => None,
        Attempt::Fault => Some(call.partly(Err(Errno(libc::EFAULT)))),
        Attempt::Corrupt => Some(call.partly(Err(Errno(libc::ECONNRESET)))),
        Attempt::Gone if call.sent > 0 => {
            if call.waited {
                reset::take_pending(fd, slot, segment); // the kernel's wait for room takes the error with it
            }
            Some(Ok(call.sent))
        }
        Attempt::Gone => {
            drop(tx);
            if call.waited {
                return Some(Err(broken(fd, slot, segment, Errno(libc::EPIPE))));
            }
            if let Err(errno) = refused(fd, call.flags) {
                return Some(Err(errno));
            }
            if slot.tx_shutdown.load(Relaxed) != 0 {
                return Some(Err(Errno(libc::EPIPE))); // a handler that interrupted shutdown(2)
            }
            // About to go, or not gone at all.
            alive::seen(endpoint);
            call.patience.awaits_leaver(fd);
            None
        }
        Attempt::Full => {
            endpoint.count_refusal();
            call.pin.get_or_insert_with(|| tx.pin());
            let blocking = call.blocks(slot);
            let first = blocking && !call.waited;
            call.waited |= blocking;
            // The peer says so before it reads no more; if it is past that, this call has come too late to wait.
            if first && call.sent == 0 && doorbell::reader_going(segment) {
                drop(tx);
                return refused(fd, call.flags).err().map(Err);
            }
            let errno = wait_for_room(fd, tx, segment, blocking, call).err()?;
            let gone = matches!(errno, Errno(libc::EPIPE | libc::ECONNRESET));
            if gone && call.sent == 0 {
                return Some(Err(broken(fd, slot, segment, errno)));
            }
            if gone {
                reset::take_pending(fd, slot, segment); // told by the part
            }
            Some(call.partly(Err(errno)))
        }
    }
}

/// The kernel's word for a peer that is gone, with its signal: by a send of nothing, which it refuses as any other. Never by the program's
/// own call: if the peer is there after all, its bytes would be taken for doorbells.
fn refused(fd: c_int, flags: c_int) -> Result<()> {
    errno::from_bytes(wait::send_nothing(fd, flags)).map(drop)
}

/// The peer went while the call was waiting for room: then the kernel tells a reset before a broken pipe, and raises no signal
/// (net/core/sock.c, `sock_alloc_send_pskb`).
fn broken(fd: c_int, slot: &Slot, segment: &Segment, errno: Errno) -> Errno {
    let reset = if errno == Errno(libc::EPIPE) {
        reset::take_pending(fd, slot, segment)
    } else {
        reset::failed(slot, segment, errno).is_err()
    };
    Errno(if reset { libc::ECONNRESET } else { libc::EPIPE })
}

fn may_switch(fd: c_int, tx: &Locked, segment: &Segment) -> bool {
    let switched = init::ledger().is_some_and(|ledger| switchover::try_switch(fd, ledger, tx.slot, segment));
    // "state, then consent" here against "consent, then state" in a consumer that revokes: one of the two sees the other.
    fence(SeqCst);
    if switched {
        log::say(fd, tx.slot, Event::Sending);
    }
    switched
}

/// The program's own call on the kernel socket, counted. `None`, and no call, if a signal handler of this thread has moved the
/// direction into the ring since the caller looked; `in_ring` says that it was there and the call is for the kernel all the same.
fn through_kernel(fd: c_int, tx: Locked, in_ring: bool, asked: Asked, plain: &impl Fn() -> isize) -> Option<Result<usize>> {
    let endpoint = tx.endpoint;
    switchover::kernel_send_begins(tx.slot, tx.segment.as_ref(), process::pid_for_relatives());
    if !in_ring && tx.slot.tx_mode.load(Relaxed) == MODE_RING {
        switchover::kernel_send_ends(tx.slot, tx.segment.as_ref(), None);
        return None;
    }
    let pin = tx.pin();
    let slot = tx.slot;
    drop(tx);
    let end = |sent| {
        let _guard = endpoint.lock(slot, Way::Tx);
        switchover::kernel_send_ends(slot, endpoint.segment(slot).as_ref(), sent);
    };
    let undo = || {
        end(None); // what it sent is not known: the comparison of counts finds out
        endpoint.unpin();
    };
    let result = guarded(&undo, || errno::from_bytes(plain()));
    let kept = errno::get();
    let fd = endpoint.descriptor(fd); // the program's may have been closed meanwhile
    let partly = result.is_ok_and(|sent| sent < asked.bytes);
    if let Some(segment) = endpoint.segment(slot) {
        told_by_kernel(fd, slot, &segment, result, partly && !asked.source_may_end);
    }
    if partly || result == Err(Errno::AGAIN) {
        endpoint.count_refusal();
    }
    end(result.ok().filter(|sent| *sent > 0).map(|sent| sent as u64));
    establish::after_kernel_operation(fd, endpoint);
    drop(pin);
    errno::set(kept);
    Some(result)
}

/// The kernel has told of a reset, also by a call that ends early; or it knows of none, because what the peer has left is in a ring. Then
/// the same call tells of it.
fn told_by_kernel(fd: c_int, slot: &Slot, segment: &Segment, result: Result<usize>, partly: bool) {
    match result {
        Ok(sent) if sent > 0 && partly => drop(reset::take_pending(fd, slot, segment)),
        Err(errno) => drop(reset::failed(slot, segment, errno)),
        Ok(_) => {}
    }
}

/// The rest of a call whose first bytes are in the ring, which has ended since: what the kernel's socket takes of it.
fn send_rest(fd: c_int, parts: &Parts<'_>, sent: usize, flags: c_int) -> isize {
    let mut ended = false;
    let count = parts.walk(sent, usize::MAX, |from, length| {
        let result = if ended { Ok(0) } else { wait::send_rest(fd, from, length, flags) };
        ended |= result != Ok(length);
        result.unwrap_or(0)
    });
    isize::try_from(count).unwrap_or(isize::MAX)
}

fn attempt(fd: c_int, tx: &Locked, segment: &Segment, parts: &Parts<'_>, sent: usize) -> Attempt {
    copying::help(tx, segment);
    let Ok(mut producer) = Producer::open_seen(segment, &tx.endpoint.seen_head) else {
        fallback::mark_corrupt(fd, tx.slot);
        return Attempt::Corrupt;
    };
    if tx.slot.tx_shutdown.load(Relaxed) != 0 || doorbell::reader_gone(segment) {
        return Attempt::Gone;
    }
    let now = clock::ticks();
    let belief = alive::look(fd, tx.endpoint, segment, now);
    if belief == Belief::Gone {
        return Attempt::Gone;
    }
    let packets = Packets::new(tx.slot, parts.total());
    let admitted = |room, most| packets.admitted(sent, room, most);
    let mut wanted = copying::room(tx, &producer, segment.capacity(), admitted);
    if wanted < parts.total() - sent {
        // Less than is asked for, as far as was seen.
        if producer.refresh().is_err() {
            fallback::mark_corrupt(fd, tx.slot);
            return Attempt::Corrupt;
        }
        wanted = copying::room(tx, &producer, segment.capacity(), admitted);
    }
    if wanted == 0 {
        return Attempt::Full;
    }
    let mut good = parts.accessible(sent, wanted, Access::Read);
    if good < wanted {
        good = packets.whole(sent, good); // a fault takes back the packet that it is in
        if good == 0 {
            return Attempt::Fault;
        }
    }
    if sent == 0 {
        segment.tx().last_write.store(producer.tail(), Relaxed);
        alive::writes(tx.endpoint, now);
    }
    let from = producer.tail();
    let Some(count) = copying::copy(tx, producer, parts, sent, good) else { return Attempt::Disturbed };
    match doorbell::rouse(fd, tx.slot, segment) {
        Ok(true) => alive::answered(tx.endpoint, now),
        Ok(false) => {}
        Err(_) if belief == Belief::Unproven && alive::take_back(fd, segment, from, from.wrapping_add(count as u64)) => {
            tx.slot.count_bytes_into_ring((count as u64).wrapping_neg());
            return Attempt::Gone;
        }
        // The peer has gone since we looked, perhaps after it read these very bytes: they were written to a living peer, and the next call
        // is refused.
        Err(_) => alive::doubt(tx.endpoint),
    }
    // The peer gave its ring up meanwhile: these bytes go back too. The fence is the doorbell's.
    if recall::is_due(tx.slot, segment) {
        recall::serve(fd, tx.slot, segment);
    }
    Attempt::Wrote(count)
}

/// Room to write, as far as can be seen without the lock; impossible positions count as room, so that the caller looks.
fn has_room(slot: &Slot, segment: &Segment) -> bool {
    let limit = u64::from(slot.tx_limit.load(Relaxed));
    Producer::open(segment).map_or(true, |producer| producer.room(limit) > 0) || doorbell::reader_gone(segment)
}

/// Waits until there may be room; the caller has pinned the endpoint.
fn wait_for_room(fd: c_int, tx: Locked, segment: &Segment, blocking: bool, call: &mut Call<'_, '_>) -> Result<()> {
    let (slot, endpoint) = (tx.slot, tx.endpoint);
    if blocking {
        drop(tx);
        if endpoint.spin.spin_for_peer(whereabouts::peer_is_here(segment), || has_room(slot, segment)) {
            slot.spin_hits.fetch_add(1, Relaxed);
            return Ok(());
        }
        let Some(tx) = lock_stream(fd, Way::Tx).filter(|tx| core::ptr::eq(tx.endpoint, endpoint)) else {
            return Ok(()); // closed by another thread: the caller finds out
        };
        if tx.slot.tx_mode.load(Relaxed) != MODE_RING {
            return Ok(()); // another thread has ended the ring: no doorbell may follow
        }
        return sleep_for_room(fd, tx, segment, call);
    }
    if doorbell::hold_unwritable(fd, slot, segment).is_err() || has_room(slot, segment) {
        return Ok(());
    }
    Err(Errno::AGAIN)
}

fn sleep_for_room(fd: c_int, tx: Locked, segment: &Segment, call: &mut Call<'_, '_>) -> Result<()> {
    let (slot, endpoint, partly) = (tx.slot, tx.endpoint, call.sent > 0);
    if doorbell::hold_unwritable(fd, slot, segment).is_err() || has_room(slot, segment) {
        return Ok(());
    }
    slot.sleeps.fetch_add(1, Relaxed);
    call.patience.slept();
    // If another thread sets it during the sleep, a signal that restarts the call finds it set, and the program is told so.
    let restarts = !partly && slot.nonblocking.load(Relaxed) == 0;
    let result = send_doorbell(fd, tx, segment, partly);
    if result == Err(Errno::AGAIN) && slot.nonblocking.load(Relaxed) != 0 && !restarts {
        // It was set before the sleep, and does not concern this call. poll does not care.
        return guarded(&|| endpoint.unpin(), || wait::for_event(fd, libc::POLLOUT, 0).map(drop));
    }
    result
}

/// Blocks until the kernel socket takes one byte, a doorbell; the caller has pinned the endpoint, and made the socket unwritable. `partly`:
/// every signal ends it. Counted as a send in progress, so that nobody ends the ring while the byte may still be on its way.
pub(super) fn send_doorbell(fd: c_int, tx: Locked, segment: &Segment, partly: bool) -> Result<()> {
    let (slot, endpoint) = (tx.slot, tx.endpoint);
    in_flight::begins(slot, process::pid_for_relatives());
    drop(tx);
    let end = |sent: usize| {
        let _guard = endpoint.lock(slot, Way::Tx);
        in_flight::ends(slot);
        if sent > 0 {
            doorbell::count_sent(slot, segment, sent as u64);
        }
    };
    let undo = || {
        end(0);
        endpoint.unpin();
    };
    // The kernel returns the part when a signal comes, whatever SA_RESTART says.
    let result = guarded(&undo, || if partly { wait::send_one_unless_signalled(fd) } else { wait::send_one(fd) });
    end(result.unwrap_or(0));
    result.map(drop)
}

/// Sends by the program's own call, for something that a ring cannot carry: ends the ring first, if it is in one.
///
/// # Errors
/// As [`fallback::before_foreign_write`], and the call's own.
pub(crate) fn send_by_kernel(fd: c_int, reason: Reason, waits: bool, asked: Asked, plain: impl Fn() -> isize) -> Result<usize> {
    fallback::before_foreign_write(fd, reason, waits)?;
    match lock_stream(fd, Way::Tx) {
        Some(tx) => through_kernel(fd, tx, true, asked, &plain).unwrap_or(Err(Errno::AGAIN)),
        None => errno::from_bytes(plain()),
    }
}
