//! Recall: a consumer gives its ring up at once, because the descriptor goes where no ring can be read.
//!
//! `exec` and passing the descriptor itself leave no time for the producer to end the ring by itself. The consumer *revokes*
//! its consent: from that store on it never touches the ring again. The producer, at its next operation of any kind,
//! takes back what is unread and sends it through the kernel socket, before anything else ([`take_back`], [`flush`]). Nothing is lost and the order
//! is kept, because the kernel socket carries nothing else meanwhile.
//!
//! Both sides store and then look: the consumer stores `consent`, fences, and waits for the producer's answer; the
//! producer publishes bytes, fences (in [`crate::doorbell::rouse`]), and looks at `consent`. So a producer that wrote without
//! seeing the recall sees it right after, and takes those bytes back too.

#![allow(unsafe_code, reason = "lets the kernel read from the ring")]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use crate::layout::{CONSENT_REVOKED, STATE_KERNEL, STATE_RING};
use crate::ledger::layout::{MODE_FINAL, MODE_RECALLED, MODE_RING, Slot};
use crate::reason::Reason;
use crate::ring::producer::Producer;
use crate::segment::Segment;
use crate::switchover;
use crate::sys::{self, Errno};

/// Consumer, under the receiving lock: reads no more from the ring, now and for ever.
pub fn revoke(slot: &Slot, segment: &Segment) {
    segment.rx().consent.store(CONSENT_REVOKED, SeqCst);
    fence(SeqCst);
    slot.rx_mode.store(MODE_FINAL, Release);
}

/// Consumer, after [`revoke`]: whether the producer has answered, so that nothing but its answer is in the kernel socket.
/// A producer that never moved into the ring has nothing to answer.
#[must_use]
pub fn is_answered(segment: &Segment) -> bool {
    segment.rx().state.load(Acquire) != STATE_RING
}

/// Consumer, after the answer: takes the doorbells that were sent before it. After this the kernel's queue holds the program's bytes only.
pub fn take_last_doorbells(fd: i32, slot: &Slot, segment: &Segment) {
    if segment.rx().state.load(Acquire) == STATE_KERNEL {
        return;
    }
    let _ = crate::doorbell::drain(fd, slot, segment);
}

/// Producer: whether the consumer has revoked.
#[inline]
#[must_use]
pub fn is_wanted(segment: &Segment) -> bool {
    segment.tx().consent.load(Acquire) == CONSENT_REVOKED
}

/// Producer, under the sending lock, direction in the ring, no kernel send in progress: ends the ring where the consumer stopped
/// reading, and notes what has to go back through the kernel. Bytes that contradict the ring are dropped with it.
pub fn take_back(fd: i32, slot: &Slot, segment: &Segment) {
    let direction = segment.tx();
    let (head, unread) = Producer::open(segment).map_or((0, 0), |producer| (producer.head(), producer.unread()));
    slot.recalled_at.store(head, Relaxed);
    slot.recalled_left.store(unread, Relaxed);
    direction.tail.store(head, Relaxed);
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
            Err(Errno::AGAIN) => return false,
            Err(_) => return finish(slot), // nobody is there to read it
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
    if slot.tx_mode.load(Relaxed) == MODE_RING && is_wanted(segment) && slot.kernel_tx_inflight.load(Relaxed) == 0 {
        take_back(fd, slot, segment);
    }
    slot.tx_mode.load(Relaxed) == MODE_RECALLED && !flush(fd, slot, segment)
}
