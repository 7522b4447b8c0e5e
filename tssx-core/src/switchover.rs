//! Moving a direction from the kernel socket into the ring, and back, without losing a byte's place.
//!
//! 1. *Join.* Each end maps the segment, publishes how many bytes it has sent ([`publish_counts`]) and sets `joined`.
//! 2. *Consent.* The consumer compares ([`try_consent`]): bytes the producer sent = bytes received + bytes queued. The
//!    producer's number is exact while `tx_sequence` is even and unchanged; ours is exact under the receiving lock while no
//!    kernel receive is in progress. A producer that sends without pause is asked to pause for a moment. Unequal means that bytes moved past the library; the connection stays plain.
//! 3. *Switch.* The producer sees the consent, has no kernel send in progress, and holds the sending lock: from here
//!    on its bytes go into the ring ([`try_switch`]), and `switch_at` says how many came before. Once a consumer has
//!    consented it takes kernel bytes only under its lock, without waiting, and only those that are certainly not doorbells
//!    ([`safe_bytes`]): so a doorbell is never mistaken for data, nor taken while it is needed, whenever the switch happens.
//!    A producer moves only after it has consented for the other direction: so whoever reads a ring can wake its producer
//!    without a byte that the program would see, and get it to end the ring ([`enter_to_wake`]).
//! 4. *End.* For something a ring cannot do, the producer ends the ring where it stands ([`end_ring`]) and sends through
//!    the kernel again; the consumer reads the ring up to there, takes the doorbells that came before, and is back
//!    ([`try_resume`]). There is no second switch.
//!
//! Every step is one-sided: nobody waits for the other end, and either end may die between any two steps.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::clock;
use crate::doorbell;
use crate::in_flight;
use crate::layout::{
    CONSENT_ENOUGH, CONSENT_GIVEN, CONSENT_NONE, CONSENT_REVOKED, CONSENT_WANTED, STATE_ENDED, STATE_KERNEL, STATE_RING,
};
use crate::ledger::layout::{MODE_FINAL, MODE_KERNEL, MODE_RECALLED, MODE_RING, Slot};
use crate::ledger::slots;
use crate::ledger::view::LedgerView;
use crate::packets;
use crate::reason::Reason;
use crate::segment::Segment;
use crate::sync::{fence, kernel};
use crate::sys::{self, Errno};

/// Failed comparisons before an end gives up. One would do: the numbers are exact when they are compared.
const DISAGREEMENTS_MAX: u32 = 3;

/// Times that a consumer that must not spin lets others run before it takes a send for one that goes on.
const YIELDS: u32 = 3;

/// A kernel send of process `pid` is about to begin; under the sending lock.
pub fn kernel_send_begins(slot: &Slot, segment: Option<&Segment>, pid: u32) {
    in_flight::begins(slot, pid);
    if let Some(segment) = segment {
        let sequence = &segment.tx().tx_sequence;
        sequence.store(sequence.load(Relaxed) | 1, Release);
    }
}

/// A kernel send has ended, having sent `sent` bytes if it succeeded; under the sending lock.
pub fn kernel_send_ends(slot: &Slot, segment: Option<&Segment>, sent: Option<u64>) {
    if let Some(sent) = sent {
        slot.kernel_tx_bytes.fetch_add(sent, Relaxed);
        slot.kernel_tx_calls.fetch_add(1, Relaxed);
    }
    in_flight::ends(slot);
    if let Some(segment) = segment {
        publish_counts(slot, segment);
    }
}

/// Tells the peer how many bytes this end has sent, if that is certain now; under the sending lock.
pub fn publish_counts(slot: &Slot, segment: &Segment) {
    let direction = segment.tx();
    let sequence = direction.tx_sequence.load(Relaxed) | 1;
    direction.tx_sequence.store(sequence, Release);
    if !in_flight::any(slot) {
        fence(Release);
        direction.tx_bytes.store(slot.kernel_tx_bytes.load(Relaxed), Release);
        direction.tx_sequence.store(sequence.wrapping_add(1), Release);
    }
}

/// Consumer, under the receiving lock: consents to the switch if both ends count the same bytes. If the producer is in the middle
/// of a send, asks it to pause before the next and waits at most `pause_us` microseconds for that.
///
/// # Errors
/// [`Reason::CountsDisagree`] once it is certain that they do not; the caller marks the connection plain.
pub fn try_consent(fd: i32, slot: &Slot, segment: &Segment, pause_us: u64) -> Result<(), Reason> {
    let direction = segment.rx();
    let waiting = slot.rx_mode.load(Relaxed) == MODE_KERNEL
        && direction.consent.load(Relaxed) == CONSENT_NONE
        && slot.kernel_rx_inflight.load(Relaxed) == 0
        && segment.peer_side().joined.load(Acquire) == 1
        && segment.own_side().refused.load(Relaxed) == 0;
    if !waiting {
        return Ok(());
    }
    let outcome = compare(fd, slot, segment, pause_us);
    // Withdraws a wish that was not fulfilled.
    direction.consent.store(if outcome == Ok(true) { CONSENT_GIVEN } else { CONSENT_NONE }, Release);
    outcome.map(drop)
}

/// Compares both ends' counts. `Ok(false)`: not now, because the producer is sending.
fn compare(fd: i32, slot: &Slot, segment: &Segment, pause_us: u64) -> Result<bool, Reason> {
    let direction = segment.rx();
    let sending = || direction.tx_sequence.load(Acquire) & 1 == 1;
    if sending() && pause_us > 0 {
        direction.consent.store(CONSENT_WANTED, Release);
        spin_while(pause_us, sending);
    } else if sending() {
        // Nobody may spin here. A producer that has just woken us has only to note that its send is over.
        let _ = (0..YIELDS).any(|_| {
            kernel::yield_now();
            !sending()
        });
    }
    let sequence = direction.tx_sequence.load(Acquire);
    let sent = direction.tx_bytes.load(Acquire);
    if sequence & 1 == 1 {
        return Ok(false);
    }
    let Ok(queued) = kernel::queued_bytes(fd) else {
        return Ok(false);
    };
    fence(Acquire);
    if direction.tx_sequence.load(Relaxed) != sequence {
        return Ok(false);
    }
    if slot.kernel_rx_bytes.load(Relaxed).wrapping_add(queued) == sent {
        return Ok(true);
    }
    if slot.disagreements.fetch_add(1, Relaxed) + 1 >= DISAGREEMENTS_MAX {
        segment.own_side().refused.store(1, Release);
        return Err(Reason::CountsDisagree);
    }
    Ok(false)
}

/// Producer, under the sending lock, before a kernel send: pauses if the consumer wants to compare, at most `pause_us`.
/// A producer that sends without pause would otherwise never be caught between two sends.
pub fn pause_for_consent(slot: &Slot, segment: &Segment, pause_us: u64) {
    let consent = &segment.tx().consent;
    if consent.load(Acquire) == CONSENT_WANTED && !in_flight::any(slot) {
        spin_while(pause_us, || consent.load(Acquire) == CONSENT_WANTED);
    }
}

fn spin_while(most_us: u64, condition: impl Fn() -> bool) {
    let (start, budget) = (clock::ticks(), most_us.saturating_mul(clock::ticks_per_us()));
    while condition() && clock::ticks().wrapping_sub(start) < budget {
        core::hint::spin_loop();
    }
}

/// Producer, under the sending lock: moves the direction into the ring if the consumer consents and nothing of ours is under
/// way, and has itself consented for the other direction. Not while the kernel's queue is full: a ring beside it would have room where the program has just been told that there is none.
/// Returns whether the direction is in the ring now.
pub fn try_switch(fd: i32, ledger: &LedgerView, slot: &Slot, segment: &Segment) -> bool {
    let switched = segment.tx().consent.load(Acquire) == CONSENT_GIVEN
        && has_consented(segment)
        && takes_packet(fd)
        && enter_ring(fd, slot, segment);
    if switched {
        slots::mark_upgraded(ledger, slot);
    }
    switched
}

/// [`try_switch`] without the ledger's sums.
pub(crate) fn enter_ring(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    let direction = segment.tx();
    direction.consent.load(Acquire) == CONSENT_GIVEN
        && segment.own_side().refused.load(Relaxed) == 0
        && segment.peer_side().refused.load(Relaxed) == 0
        && move_in(fd, slot, segment)
}

/// Producer, under the sending lock, about to give both rings up while the peer may be asleep on the kernel socket: moves into a ring that will
/// carry nothing, only to be able to ring. Whoever has an unread byte of ours is not asleep.
pub fn enter_to_wake(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    slot.tx_mode.load(Relaxed) == MODE_KERNEL
        && slot.tx_shutdown.load(Relaxed) == 0
        && segment.tx().consent.load(Acquire) == CONSENT_GIVEN
        && sys::unsent_bytes(fd) == Ok(0)
        && move_in(fd, slot, segment)
}

fn move_in(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    let direction = segment.tx();
    if in_flight::any(slot) || doorbell::reader_gone(segment) {
        return false;
    }
    let Ok(buffer) = kernel::getsockopt::<i32>(fd, libc::SO_SNDBUF) else {
        return false;
    };
    // From here on the kernel's buffer only carries doorbells; small, so that a few KiB of junk make it unwritable. What
    // the program sees as SO_SNDBUF stays what it was.
    if kernel::setsockopt(fd, libc::SO_SNDBUF, 1).is_err() {
        return false;
    }
    limit_unread(slot, segment, buffer.max(0).cast_unsigned());
    direction.switch_at.store(slot.kernel_tx_bytes.load(Relaxed), Relaxed);
    direction.state.store(STATE_RING, Release);
    slot.tx_mode.store(MODE_RING, Release);
    // A consumer that asked for the end meanwhile, and saw no ring, takes all that comes for the kernel's: it stores and then looks
    // ([`crate::recall::ask_for_end`]), and so do we.
    fence(SeqCst);
    if direction.consent.load(Acquire) == CONSENT_ENOUGH {
        end_ring(fd, slot, segment, Reason::SocketOption);
        return false;
    }
    true
}

/// Whether the kernel's queue would take one more packet now (net/core/sock.c, `sock_alloc_send_pskb`).
fn takes_packet(fd: i32) -> bool {
    let buffer = sys::getsockopt::<i32>(fd, libc::SO_SNDBUF).map_or(0, |buffer| u64::from(buffer.max(0).cast_unsigned()));
    sys::unsent_bytes(fd).is_ok_and(|queued| queued < buffer)
}

/// Producer: whether the ring has ended and the program has sent nothing since, as far as is known: neither what libc writes by itself is
/// counted nor what waits to be sent.
#[must_use]
pub fn nothing_behind_end(slot: &Slot, segment: &Segment) -> bool {
    let direction = segment.tx();
    direction.state.load(Relaxed) == STATE_ENDED
        && direction.resume_at.load(Relaxed) == carried(slot)
        && slot.reason.load(Relaxed) != Reason::Stdio as u32
        && !in_flight::any(slot)
}

/// Bytes that this end has sent through the kernel, doorbells included.
fn carried(slot: &Slot) -> u64 {
    slot.kernel_tx_bytes.load(Relaxed).wrapping_add(slot.doorbell_tx_bytes.load(Relaxed))
}

/// Producer, after its ring's end: whether all that it has sent is read, and the peer has yet to take doorbells, which alone fill a small send
/// buffer: to a program there is room. True only if the kernel takes a packet, whatever the peer writes into the segment.
#[must_use]
pub fn only_doorbells_left(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    let direction = segment.tx();
    let tail = direction.tail.load(Relaxed);
    slot.tx_mode.load(Relaxed) == MODE_FINAL
        && nothing_behind_end(slot, segment)
        && (tail > 0 || direction.switch_at.load(Relaxed) == 0)
        && direction.head.load(Acquire) == tail
        && slot.doorbell_tx_calls.load(Relaxed) > 0
        && takes_packet(fd)
}

/// Producer, under the sending lock: SO_SNDBUF is `buffer` bytes for the program, and as many may lie unread in the ring.
pub fn limit_unread(slot: &Slot, segment: &Segment, buffer: u32) {
    slot.sndbuf.store(buffer, Relaxed);
    let limit = packets::limit(buffer, segment.capacity());
    slot.tx_limit.store(u32::try_from(limit).unwrap_or(u32::MAX), Relaxed);
    segment.tx().limit.store(limit, Relaxed);
}

/// Whether the consumer has consented: then the producer may have moved, and kernel bytes must be told from doorbells.
#[inline]
#[must_use]
pub fn has_consented(segment: &Segment) -> bool {
    matches!(segment.rx().consent.load(Relaxed), CONSENT_GIVEN | CONSENT_ENOUGH | CONSENT_REVOKED)
}

/// Where the next byte for a consumer that has consented comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// From the kernel; if known, at most this many bytes.
    Kernel(Option<u64>),
    /// From the ring: the direction has moved just now or earlier.
    Ring,
    /// The peer's numbers cannot be true.
    Corrupt,
}

/// Consumer, under the receiving lock, before it takes kernel bytes.
#[must_use]
pub fn arrival(slot: &Slot, segment: &Segment) -> Arrival {
    if slot.rx_mode.load(Relaxed) == MODE_FINAL {
        return Arrival::Kernel(None);
    }
    if segment.rx().state.load(Acquire) == STATE_KERNEL {
        return Arrival::Kernel(None);
    }
    let received = slot.kernel_rx_bytes.load(Relaxed);
    match segment.rx().switch_at.load(Relaxed).checked_sub(received) {
        None => Arrival::Corrupt,
        Some(0) if !is_unused(segment) => {
            let revoked = segment.rx().consent.load(Relaxed) == CONSENT_REVOKED;
            slot.rx_mode.store(if revoked { MODE_RECALLED } else { MODE_RING }, Release);
            Arrival::Ring
        }
        // All that the kernel has queued is the program's.
        Some(_) if is_unused(segment) => {
            slot.rx_mode.store(MODE_FINAL, Release);
            Arrival::Kernel(None)
        }
        Some(left) => Arrival::Kernel(Some(left)),
    }
}

/// Whether the producer's ring has ended with nothing in it, and no doorbell was sent meanwhile.
fn is_unused(segment: &Segment) -> bool {
    let direction = segment.rx();
    direction.state.load(Acquire) == STATE_ENDED
        && direction.end_at.load(Relaxed) == direction.head.load(Relaxed)
        && direction.resume_at.load(Relaxed) == direction.switch_at.load(Relaxed)
}

/// Consumer, under the receiving lock: how many bytes may be taken from the kernel now so that no doorbell is among them.
/// `Kernel(None)` from [`arrival`] means that the peer had not switched when it was asked; what was queued *before* it was
/// asked is therefore the program's: a producer stores `state` before it sends its first doorbell. Where a filter (seccomp(2)) keeps the
/// kernel from saying what is queued, nobody has consented, so that no producer moves, and all of it is the program's.
#[must_use]
pub fn safe_bytes(fd: i32, slot: &Slot, segment: &Segment) -> (Arrival, u64) {
    let consented = segment.rx().consent.load(Relaxed) == CONSENT_GIVEN;
    let queued = kernel::queued_bytes(fd).unwrap_or(if consented { 0 } else { u64::MAX });
    match arrival(slot, segment) {
        Arrival::Kernel(None) => (Arrival::Kernel(None), queued),
        Arrival::Kernel(Some(left)) => (Arrival::Kernel(Some(left)), left),
        other => (other, 0),
    }
}

/// Producer, under the sending lock: ends the ring here. Later bytes go through the kernel socket, behind a doorbell for a sleeper that would take
/// the first of them for one.
pub fn end_ring(fd: i32, slot: &Slot, segment: &Segment, reason: Reason) {
    let direction = segment.tx();
    doorbell::ring_for_lone(fd, slot, segment);
    direction.end_at.store(direction.tail.load(Relaxed), Relaxed);
    direction.resume_at.store(carried(slot), Relaxed);
    direction.state.store(STATE_ENDED, Release);
    slot.tx_mode.store(MODE_FINAL, Release);
    slot.reason.store(reason as u32, Relaxed);
    // The kernel doubles what it is given (socket(7)), so half restores what was there.
    let _ = kernel::setsockopt(fd, libc::SO_SNDBUF, (slot.sndbuf.load(Relaxed) / 2).cast_signed());
}

/// Consumer, under the receiving lock, ring seen empty: goes back to the kernel socket if the producer ended the ring here.
/// Takes the doorbells that were sent before. Returns whether the direction is back.
pub fn try_resume(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    let direction = segment.rx();
    if direction.state.load(Acquire) != STATE_ENDED || direction.end_at.load(Relaxed) != direction.head.load(Relaxed) {
        return false;
    }
    // The doorbells were sent before the ring ended, so they are there, unless the peer lies or is gone; and no byte behind the
    // end is taken for one.
    doorbell::take_queued(fd, slot, segment);
    slot.rx_mode.store(MODE_FINAL, Release);
    true
}

/// Consumer, under the receiving lock: bytes of the program's that the kernel has queued behind the ring's end, 0 if it has none.
///
/// # Errors
/// As SIOCINQ, unix(7).
pub fn behind_end(fd: i32, slot: &Slot, segment: &Segment) -> Result<u64, Errno> {
    if segment.rx().state.load(Acquire) != STATE_ENDED {
        return Ok(0);
    }
    let before = doorbell::before_resume(slot, segment);
    kernel::queued_bytes(fd).map(|queued| queued.saturating_sub(before))
}

/// Whether there are any.
#[must_use]
pub fn kernel_follows(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    behind_end(fd, slot, segment).is_ok_and(|bytes| bytes > 0)
}
