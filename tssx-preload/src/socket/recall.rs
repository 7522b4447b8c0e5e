//! Giving rings up at once, for a descriptor that goes where they cannot be read; and doing so when the peer asks.
//!
//! The protocol is tssx-core's recall.rs. Here: when it is due, waiting for the answer, and answering in passing, at whatever the
//! program does with the connection next.

#![allow(unsafe_code, reason = "waits in libc's poll")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::layout::{CONSENT_REVOKED, STATE_RING};
use tssx_core::ledger::layout::{MODE_RECALLED, MODE_RING, Slot};
use tssx_core::reason::Reason;
use tssx_core::segment::Segment;
use tssx_core::{clock, doorbell, in_flight, recall, switchover, sys};

use super::abandon::guarded;
use super::receive::{Call, Step};
use super::{establish, fallback, reset};
use crate::endpoint::{Locked, Way, lock_stream};
use crate::errno::{self, Errno, Result};
use crate::fd_table::{self, Entry};
use crate::next;
use crate::process::log::{self, Event};

/// Longest wait for the peer's answer, microseconds. A peer that is inside a call, or asleep in one, answers at once; one that computes
/// answers at its next call, and until then sends nothing.
const ANSWER_US: u64 = 200_000;
/// A moment in ticks, as far back as there is one.
const LONG_AGO: u64 = 1;

/// Before the descriptor is handed on: afterwards the kernel socket alone carries both directions, or will, in order.
pub(crate) fn leave_rings_now(fd: c_int, reason: Reason) {
    if leave(fd, reason, recall::revoke, true).is_some() {
        wait_while(|| is_waited_for(fd));
    }
    leave_nothing_of_ours(fd);
}

/// Before the process becomes another program: the same for all descriptors that `each` visits. It waits for their peers together, and not
/// for a send that another process of the family is asleep in for longer than that: an exec does not.
pub(crate) fn leave_all_rings_now(each: impl Fn(&mut dyn FnMut(c_int))) {
    // All are revoked before any peer is woken: it may sleep on one of them only, and answers for all that it sees then.
    each(&mut |fd| {
        ask(fd, Reason::DescriptorTravels, recall::revoke);
    });
    each(&mut |fd| {
        leave(fd, Reason::DescriptorTravels, recall::revoke, false);
    });
    wait_while(|| {
        let mut unanswered = false;
        each(&mut |fd| unanswered |= is_waited_for(fd));
        unanswered
    });
    each(&mut leave_nothing_of_ours);
}

/// A ring that is read on, because the peer sends no more: whoever gets the descriptor must not find its doorbells behind it.
fn leave_nothing_of_ours(fd: c_int) {
    if let Some(rx) = lock_stream(fd, Way::Rx).filter(|rx| rx.slot.rx_mode.load(Relaxed) == MODE_RING)
        && let Some(segment) = rx.segment
    {
        doorbell::take_queued(fd, rx.slot, &segment);
        reset::clear_false(fd, rx.slot, &segment);
    }
}

/// Whether an answer is still to come, and may come soon. Each connection is waited for once, however often it is handed on: a peer that
/// has something else to do would hold up every child that a server starts.
fn is_waited_for(fd: c_int) -> bool {
    is_unanswered(fd)
        && fd_table::stream(fd).is_some_and(|endpoint| {
            clock::ticks().wrapping_sub(endpoint.asked_back.load(Relaxed)) < ANSWER_US * clock::ticks_per_us()
        })
}

/// Whether the peer still has to say what becomes of the ring that was taken from it. Takes doorbells meanwhile: a writer that waits for
/// room, asleep in the kernel, goes on when its junk is taken, and answers.
fn is_unanswered(fd: c_int) -> bool {
    let Some(rx) = lock_stream(fd, Way::Rx) else { return false };
    let Some(segment) = rx.segment else { return false };
    let settled = recall::settle(fd, rx.slot, &segment);
    !(settled && (recall::is_answered(&segment) || rx.slot.rx_mode.load(Relaxed) == MODE_RING))
}

/// Before something that only the kernel socket has: both directions end their rings as soon as may be. What is in the ring that we
/// read stays there until the program has read it, whether or not the peer ever answers.
pub(crate) fn wind_down(fd: c_int, reason: Reason) {
    let Some(segment) = leave(fd, reason, recall::ask_for_end, true) else { return };
    // A peer that has said its last word, or is dead, answers no more.
    let gone = || doorbell::peer_ending(&segment) || sys::poll_now(fd, 0).unwrap_or(0) & libc::POLLHUP != 0;
    wait_while(|| !recall::is_answered(&segment) && !gone());
}

/// Asks the peer by `ask` to end the ring that we read.
fn ask(fd: c_int, reason: Reason, ask: fn(&Slot, &Segment)) -> Option<Segment> {
    establish::give_up(fd, reason);
    let rx = lock_stream(fd, Way::Rx)?;
    rx.endpoint.count_refusal(); // those of another process will not be counted
    let segment = rx.segment?;
    // A relative may have asked long ago.
    let since = if rx.slot.rx_mode.load(Relaxed) == MODE_RECALLED { LONG_AGO } else { clock::ticks() };
    ask(rx.slot, &segment);
    if segment.rx().consent.load(Relaxed) == CONSENT_REVOKED {
        let _ = rx.endpoint.asked_back.compare_exchange(0, since, Relaxed, Relaxed);
    }
    Some(segment)
}

/// Ends the sending direction's ring, and asks the peer by `ask` to end the other. `waits`: as long as another thread or process is asleep
/// in a send, else only a while.
fn leave(fd: c_int, reason: Reason, ask: fn(&Slot, &Segment), waits: bool) -> Option<Segment> {
    let segment = self::ask(fd, reason, ask)?;
    wake_peer(fd, &segment);
    // What the peer has taken back goes first, as far as it reads.
    wait_while(|| {
        answer(fd);
        is_giving_back(fd)
    });
    let waits = waits && !is_giving_back(fd);
    if !waits {
        wait_while(|| lock_stream(fd, Way::Tx).is_some_and(|tx| in_flight::any(tx.slot)));
    }
    let _ = fallback::before_foreign_write(fd, reason, waits);
    Some(segment)
}

/// Whether the kernel has not yet taken all that goes back to the peer.
fn is_giving_back(fd: c_int) -> bool {
    lock_stream(fd, Way::Tx).is_some_and(|tx| tx.slot.tx_mode.load(Relaxed) == MODE_RECALLED)
}

/// Waits for the peer, but not for longer than [`ANSWER_US`].
fn wait_while(condition: impl Fn() -> bool) {
    let start = clock::ticks();
    while condition() && clock::ticks().wrapping_sub(start) < ANSWER_US * clock::ticks_per_us() {
        sys::yield_now();
    }
}

/// The peer may be asleep in a receive; if what we send is in a ring, a doorbell is all that can be in the kernel socket. What has not moved
/// yet moves for that, if the peer has moved: it has consented before.
fn wake_peer(fd: c_int, segment: &Segment) {
    let Some(tx) = lock_stream(fd, Way::Tx) else { return };
    let in_ring = tx.slot.tx_mode.load(Relaxed) == MODE_RING;
    let moves = || segment.rx().state.load(Acquire) == STATE_RING && switchover::enter_to_wake(fd, tx.slot, segment);
    if in_ring || moves() {
        doorbell::poke(fd, tx.slot, segment);
    }
}

/// Whether the peer asks for our sending direction, or waits for the rest of it. Once that is shut down nothing can be given back.
#[inline]
pub(crate) fn is_due(slot: &Slot, segment: &Segment) -> bool {
    match slot.tx_mode.load(Relaxed) {
        MODE_RING => recall::is_wanted(segment) && slot.tx_shutdown.load(Relaxed) == 0,
        MODE_RECALLED => true,
        _ => false,
    }
}

/// A receive on a ring that was given up, before the peer has answered: nothing can be had yet, and what is in the kernel's queue is
/// junk.
pub(super) fn wait_for_answer(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    if recall::settle(call.fd, rx.slot, segment) {
        return Step::Again;
    }
    let empty = segment.rx().tail.load(Relaxed) == segment.rx().head.load(Relaxed);
    if empty && doorbell::self_gone(segment) {
        return call.finish(reset::end_of_file(call.fd, rx.slot, segment));
    }
    if !call.blocks(rx.slot) {
        return call.finish(Err(Errno::AGAIN));
    }
    let endpoint = rx.endpoint;
    call.keep(&rx);
    drop(rx);
    // SAFETY: no descriptors, so no pointers.
    let waited = guarded(&|| endpoint.unpin(), || errno::from_int(unsafe { next::poll(core::ptr::null_mut(), 0, 1) }));
    call.patience.slept();
    match waited {
        Ok(_) => Step::Again,
        Err(errno) => call.finish(Err(errno)),
    }
}

/// Does what the peer asks, if it asks. True if bytes still have to go back.
pub(super) fn serve(fd: c_int, slot: &Slot, segment: &Segment) -> bool {
    let in_ring = slot.tx_mode.load(Relaxed) == MODE_RING;
    let waiting = recall::serve(fd, slot, segment);
    if in_ring && slot.tx_mode.load(Relaxed) != MODE_RING {
        log::say(fd, slot, Event::RingEnded(Reason::from_code(slot.reason.load(Relaxed)).unwrap_or(Reason::None)));
    }
    waiting
}

/// In passing, at a receive, a wait or a close: answers if the peer asks. A process that gives one connection up gives up others, and whoever is
/// woken on this one may be asleep on it until those are answered too.
pub(crate) fn answer(fd: c_int) {
    let Some(tx) = lock_stream(fd, Way::Tx) else { return };
    let Some(segment) = tx.segment else { return };
    let asked = tx.slot.tx_mode.load(Relaxed) == MODE_RING && is_due(tx.slot, &segment);
    serve(fd, tx.slot, &segment);
    drop(tx);
    if asked {
        answer_others();
    }
}

/// After doorbells were taken, before anybody waits for the next: one of them may have told of a recall that came after the last look at it.
#[inline]
pub(crate) fn answer_if_due(fd: c_int, slot: &Slot, segment: &Segment) {
    if is_due(slot, segment) {
        answer(fd);
    }
}

/// Woken for nothing on a connection that the peer gives up: it may be for another.
pub(super) fn look_elsewhere(segment: &Segment) {
    if recall::is_wanted(segment) {
        answer_others();
    }
}

/// The caller may hold the receiving lock of one connection: sending locks come last in every order, and nobody waits for a receiving
/// lock while he holds one.
fn answer_others() {
    fd_table::for_each(0, u32::MAX, |fd, entry| {
        if matches!(entry, Entry::Stream(_))
            && let Some(tx) = lock_stream(fd, Way::Tx)
            && let Some(segment) = tx.segment.filter(|segment| is_due(tx.slot, segment))
        {
            serve(fd, tx.slot, &segment);
        }
    });
}

/// The last descriptor is about to be closed: waits, a while, until the kernel has taken what has to go back.
pub(crate) fn answer_at_last(fd: c_int) {
    /// Looks for room, and how long each waits, milliseconds.
    const LOOKS: u32 = 20;
    const LOOK_MS: c_int = 100;
    for _ in 0..LOOKS {
        let waiting = lock_stream(fd, Way::Tx)
            .is_some_and(|tx| tx.segment.is_some_and(|segment| is_due(tx.slot, &segment) && serve(fd, tx.slot, &segment)));
        if !waiting {
            return;
        }
        let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one live entry.
        unsafe { next::poll(&raw mut entry, 1, LOOK_MS) };
    }
}

/// Before a send: what was taken back goes first. Waits for the kernel's queue if the call may.
///
/// # Errors
/// EAGAIN where it may not; EINTR.
pub(super) fn go_first(fd: c_int, tx: Locked, segment: &Segment, blocking: bool) -> Result<()> {
    let asked = tx.slot.tx_mode.load(Relaxed) == MODE_RING;
    let waiting = serve(fd, tx.slot, segment);
    let blocked = waiting || tx.slot.tx_mode.load(Relaxed) == MODE_RING; // a thread is asleep in a send: it answers
    if blocked && !blocking {
        tx.endpoint.count_refusal();
    }
    drop(tx);
    if asked {
        answer_others();
    }
    if !blocked {
        return Ok(());
    }
    if !blocking {
        return Err(Errno::AGAIN);
    }
    if !waiting {
        sys::yield_now();
        return Ok(());
    }
    let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry.
    errno::from_int(unsafe { next::poll(&raw mut entry, 1, -1) }).map(drop)
}
