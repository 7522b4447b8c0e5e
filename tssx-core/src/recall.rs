//! Recall: a consumer gives its ring up at once, because the descriptor goes where no ring can be read.
//!
//! `exec` and passing the descriptor itself leave no time for the producer to end the ring by itself. The consumer *revokes*
//! its consent: from that store on it does not touch the ring, unless it finds that the producer can send nothing back ([`settle`]). The producer, at its next operation of any kind,
//! takes back what is unread and sends it through the kernel socket, before anything else ([`take_back`], [`flush`]). Nothing is lost and the order
//! is kept, because the kernel socket carries nothing else meanwhile.
//!
//! Where the descriptor stays, and only the ring must go, the consumer asks for the end instead ([`ask_for_end`]): it reads on, and
//! the producer ends the ring behind what is there. Nothing depends on an answer then: the bytes stay readable if none comes.
//!
//! Both sides store and then look: the consumer stores `consent`, fences, and waits for the producer's answer; the
//! producer publishes bytes, fences (in [`doorbell::rouse`]), and looks at `consent`. So a producer that wrote without
//! seeing the recall sees it right after, and takes those bytes back too.

#![allow(unsafe_code, reason = "lets the kernel read from the ring")]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::in_flight::{self, InFlight};
use crate::layout::{CONSENT_ENOUGH, CONSENT_REVOKED, STATE_KERNEL, STATE_RING};
use crate::ledger::layout::{MODE_FINAL, MODE_RECALLED, MODE_RING, Slot};
use crate::reason::Reason;
use crate::ring::producer::Producer;
use crate::segment::Segment;
use crate::switchover::Arrival;
use crate::sync::fence;
use crate::sys::{self, Errno};
use crate::{doorbell, switchover};

/// Consumer, under the receiving lock: reads no more from the ring. Until the answer is there and the doorbells that came
/// before it are taken ([`settle`]), the kernel's queue must not be read either. A consumer that has not come to the switch yet goes on
/// to there first.
pub fn revoke(slot: &Slot, segment: &Segment) {
    segment.rx().consent.store(CONSENT_REVOKED, SeqCst);
    doorbell::withdraw(segment); // a doorbell that is rung from now on would find nobody to take it
    fence(SeqCst);
    if slot.rx_mode.load(Relaxed) == MODE_RING || switchover::arrival(slot, segment) == Arrival::Ring {
        slot.rx_mode.store(MODE_RECALLED, Release);
    }
}

/// Consumer, under the receiving lock, after [`revoke`]: takes the doorbells that were sent before the answer, if it is there. True if
/// what the kernel has queued is the program's, or if the ring is read on after all, because the producer can send nothing any more.
pub fn settle(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    if slot.rx_mode.load(Relaxed) != MODE_RECALLED {
        return true;
    }
    // A producer that shuts its direction down looks for a recall first, and then never again: it cannot send any more. Neither can a
    // dead one. Asked before the answer is looked at: who has answered has done so before it ended.
    let ends = sys::poll_now(fd, libc::POLLRDHUP).unwrap_or(0);
    let hung_up = ends & libc::POLLHUP != 0 || (segment.rx().finished.load(Acquire) != 0 && ends & libc::POLLRDHUP != 0);
    let answered = is_answered(segment);
    // And one that had ended the ring by itself leaves the bytes before the end where they are; what is taken back is not.
    let left = answered && segment.rx().tail.load(Acquire) != segment.rx().head.load(Relaxed);
    if left || (hung_up && !answered) {
        segment.rx().consent.store(CONSENT_ENOUGH, SeqCst);
        slot.rx_mode.store(MODE_RING, Release);
        return true;
    }
    doorbell::take_queued(fd, slot, segment);
    if answered {
        slot.rx_mode.store(MODE_FINAL, Release);
    }
    answered
}

/// Consumer, under the receiving lock: asks the producer to end the ring at its next operation, or never to begin one. A producer
/// that has not moved by the time it sees this does not move any more, and one that moves at that very moment looks again and ends its ring
/// before anything is in it: nothing but the program's bytes is in the kernel's queue. One that has moved is read to the ring's end.
pub fn ask_for_end(slot: &Slot, segment: &Segment) {
    segment.rx().consent.store(CONSENT_ENOUGH, SeqCst);
    fence(SeqCst);
    if slot.rx_mode.load(Relaxed) != MODE_RING && segment.rx().state.load(Acquire) == STATE_KERNEL {
        slot.rx_mode.store(MODE_FINAL, Release);
    }
}

/// Consumer, after [`revoke`] or [`ask_for_end`]: whether the producer has answered, so that nothing but its answer is in the kernel socket.
/// A producer that never moved into the ring has nothing to answer.
#[must_use]
pub fn is_answered(segment: &Segment) -> bool {
    segment.rx().state.load(Acquire) != STATE_RING
}

/// Producer: whether the consumer has revoked, or asked for the end.
#[inline]
#[must_use]
pub fn is_wanted(segment: &Segment) -> bool {
    matches!(segment.tx().consent.load(Acquire), CONSENT_REVOKED | CONSENT_ENOUGH)
}

/// Producer, under the sending lock, direction in the ring, no kernel send in progress: ends the ring behind what is there. Whoever
/// waits in the kernel for the consumer must see that there is something.
fn end_behind(fd: i32, slot: &Slot, segment: &Segment) {
    if Producer::open(segment).is_ok_and(|producer| producer.unread() > 0) {
        doorbell::poke(fd, slot, segment);
    }
    switchover::end_ring(fd, slot, segment, Reason::SocketOption);
}

/// Producer, under the sending lock, direction in the ring, no kernel send in progress: ends the ring where the consumer stopped
/// reading, and notes what has to go back through the kernel. Bytes that contradict the ring are dropped with it.
pub fn take_back(fd: i32, slot: &Slot, segment: &Segment) {
    let direction = segment.tx();
    let (head, unread) = Producer::open(segment).map_or((0, 0), |producer| (producer.head(), producer.unread()));
    slot.recalled_at.store(head, Relaxed);
    slot.recalled_left.store(unread, Relaxed);
    direction.tail.store(head, Relaxed);
    // They go through the kernel after all, and are counted there.
    slot.ring_tx_bytes.store(slot.ring_tx_bytes.load(Relaxed).saturating_sub(unread), Relaxed);
    switchover::end_ring(fd, slot, segment, Reason::DescriptorTravels);
    slot.tx_mode.store(MODE_RECALLED, Release);
}

/// Producer, under the sending lock, after [`take_back`]: sends what the kernel takes without waiting. True when all of it is on its way.
pub fn flush(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    loop {
        let (at, left) = (slot.recalled_at.load(Relaxed), slot.recalled_left.load(Relaxed).min(segment.capacity()));
        let Ok(producer) = Producer::open(segment) else { return finish(slot) };
        if left == 0 {
            return finish(slot);
        }
        let (address, length) = producer.piece(at, left);
        // SAFETY: `piece` lies inside the ring.
        match unsafe { sys::send_from(fd, address, length) } {
            Ok(sent) => {
                slot.recalled_at.store(at.wrapping_add(sent as u64), Relaxed);
                slot.recalled_left.store(left.saturating_sub(sent as u64), Relaxed);
                slot.kernel_tx_bytes.fetch_add(sent as u64, Relaxed);
            }
            Err(Errno(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)) => return finish(slot), // nobody is there to read it
            Err(_) => return false,                                                             // no room, or no memory
        }
    }
}

fn finish(slot: &Slot) -> bool {
    slot.recalled_left.store(0, Relaxed);
    slot.tx_mode.store(MODE_FINAL, Release);
    true
}

/// Producer, under the sending lock: does what a recall asks, if there is one. True if the direction is (now or before) on its way back
/// and bytes still have to go.
pub fn serve(fd: i32, slot: &Slot, segment: &Segment) -> bool {
    let can_send = slot.tx_shutdown.load(Relaxed) == 0;
    if can_send && slot.tx_mode.load(Relaxed) == MODE_RING && is_wanted(segment) && in_flight::look(fd, slot) == InFlight::Nothing {
        if segment.tx().consent.load(Acquire) == CONSENT_REVOKED {
            take_back(fd, slot, segment);
        } else {
            end_behind(fd, slot, segment);
        }
    }
    slot.tx_mode.load(Relaxed) == MODE_RECALLED && !flush(fd, slot, segment)
}
