//! Properties of the move into the ring (switchover.rs):
//!
//! - consent is given only if every byte that had entered the kernel's queue was counted by the producer, whatever
//!   moves past the library, and whatever sends and receives are half done;
//! - if nothing moves past the library, no comparison finds a difference;
//! - the stream arrives whole and in order across the switch, no doorbell is taken for data, nobody sleeps through it.

#![allow(unsafe_code, reason = "copies through the ring's interface")]

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use loom::thread;

use super::kernel::{self, JUNK};
use super::support::{explore, relaxed_if};
use super::world::World;
use crate::layout::CONSENT_GIVEN;
use crate::ledger::layout::MODE_RING;
use crate::ring::consumer::Consumer;
use crate::ring::producer::Producer;
use crate::switchover::{self, Arrival};
use crate::{doorbell, lock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Kernel sends are not announced by an odd sequence.
    SendsUnmarked,
    /// A receive in progress is not counted as one.
    ReceivesUnmarked,
    CountsRelaxed,
    CompareRelaxed,
    SwitchRelaxed,
    /// The queue is measured after the peer is asked whether it has switched.
    MeasuredLate,
}

/// Ring capacity: the least that a limit may be.
const CAPACITY: u64 = 4096;

/// send.rs, `through_kernel`: one byte.
fn send_through_kernel(world: &World, byte: u8, flaw: Flaw) {
    let segment = world.producing();
    if flaw != Flaw::SendsUnmarked {
        switchover::kernel_send_begins(&world.tx, Some(&segment), 0);
    }
    assert_eq!(kernel::send(0, &[byte]), Ok(1));
    relaxed_if(flaw == Flaw::CountsRelaxed, || switchover::kernel_send_ends(&world.tx, Some(&segment), Some(1)));
}

/// receive.rs, `through_kernel`: one byte, blocking, then the comparison.
fn receive_through_kernel(world: &World, pid: u64, guard: lock::Guard<'_>, flaw: Flaw) -> u8 {
    let slot = &world.rx;
    let marked = flaw != Flaw::ReceivesUnmarked;
    slot.kernel_rx_inflight.fetch_add(u32::from(marked), Relaxed);
    drop(guard);
    let byte = kernel::receive_one(false);
    let _guard = lock::acquire(&slot.rx_lock, pid);
    slot.kernel_rx_inflight.fetch_sub(u32::from(marked), Relaxed);
    slot.kernel_rx_bytes.fetch_add(1, Relaxed);
    byte
}

/// establish.rs, after a kernel operation; under the receiving lock. True if consent was given now.
fn compare(world: &World, flaw: Flaw) -> bool {
    let segment = world.consuming();
    let before = segment.rx().consent.load(Relaxed);
    let outcome = relaxed_if(flaw == Flaw::CompareRelaxed, || switchover::try_consent(0, &world.rx, &segment, 0));
    assert_eq!(outcome, Ok(()), "one comparison is no certainty");
    before != CONSENT_GIVEN && segment.rx().consent.load(Relaxed) == CONSENT_GIVEN
}

/// One end sends two bytes, another thread of it sends `past` bytes past the library; of the two readers of the other end one
/// receives and one compares.
fn comparison(past: u64, flaw: Flaw) {
    explore(&format!("comparison, {past} bytes past the library, {flaw:?}"), 2, move || {
        let world = World::new(CAPACITY);
        let (one, two, three) = (Arc::clone(&world), Arc::clone(&world), Arc::clone(&world));
        let producer = thread::spawn(move || {
            send_through_kernel(&one, 1, flaw);
            send_through_kernel(&one, 2, flaw);
        });
        let bypass = (past > 0).then(|| thread::spawn(move || kernel::send(0, &[9]).expect("room")));
        let reader = thread::spawn(move || {
            let guard = lock::acquire(&two.rx.rx_lock, 2);
            receive_through_kernel(&two, 2, guard, flaw)
        });
        {
            let _guard = lock::acquire(&three.rx.rx_lock, 1);
            if compare(&three, flaw) {
                let counted = three.consuming().rx().tx_bytes.load(Acquire);
                assert!(counted >= three.socket.entered_at_look(), "consent with uncounted bytes");
            }
        }
        producer.join().expect("producer");
        reader.join().expect("reader");
        let disagreements = world.rx.disagreements.load(Relaxed);
        assert!(bypass.is_some() || disagreements == 0, "a difference where there is none");
        bypass.map(thread::JoinHandle::join);
    });
}

/// send.rs, `send`: one byte, by whichever way.
fn send(world: &World, byte: u8, flaw: Flaw) {
    let (slot, segment) = (&world.tx, world.producing());
    let in_ring = slot.tx_mode.load(Relaxed) == MODE_RING
        || relaxed_if(flaw == Flaw::SwitchRelaxed, || switchover::enter_ring(0, slot, &segment));
    if !in_ring {
        return send_through_kernel(world, byte, flaw);
    }
    let mut producer = Producer::open(&segment).expect("sane");
    // SAFETY: one live byte.
    assert_eq!(unsafe { producer.copy_in(&raw const byte, 1) }, 1);
    assert!(relaxed_if(flaw == Flaw::SwitchRelaxed, || producer.publish()));
    doorbell::rouse(0, slot, &segment).expect("alive");
}

/// switchover.rs, `safe_bytes`, or what it would be if it were careless.
fn safe_bytes(world: &World, flaw: Flaw) -> (Arrival, u64) {
    let segment = world.consuming();
    if flaw == Flaw::MeasuredLate {
        let arrival = switchover::arrival(&world.rx, &segment);
        return (arrival, kernel::queued_bytes(0).expect("alive"));
    }
    switchover::safe_bytes(0, &world.rx, &segment)
}

/// crossing.rs, `step`. One byte, unless the caller must look again.
fn cross(world: &World, guard: lock::Guard<'_>, flaw: Flaw) -> Option<u8> {
    let mut byte = [JUNK];
    match safe_bytes(world, flaw) {
        (Arrival::Ring, _) => return None,
        (Arrival::Corrupt, _) => panic!("more bytes than were sent"),
        (Arrival::Kernel(_), 0) if kernel::receive(0, &mut byte, libc::MSG_PEEK).is_err() => {
            drop(guard);
            kernel::receive_one(true);
            return None;
        }
        (Arrival::Kernel(_), 0) => return None,
        (Arrival::Kernel(_), _) => {}
    }
    assert_eq!(kernel::receive(0, &mut byte, 0), Ok(1));
    world.rx.kernel_rx_bytes.fetch_add(1, Relaxed);
    Some(byte[0])
}

/// receive.rs, `from_ring` and `sleep` of the only reader.
fn from_ring(world: &World, guard: lock::Guard<'_>) -> Option<u8> {
    let segment = world.consuming();
    let stale = doorbell::stale(&world.rx, &segment);
    let mut consumer = Consumer::open(&segment).expect("sane");
    let mut byte = 0;
    // SAFETY: one live byte.
    if unsafe { consumer.copy_out(&raw mut byte, 1) } == 1 {
        assert!(consumer.publish().is_some());
        return Some(byte);
    }
    if stale > 0 {
        doorbell::drain(0, &world.rx, &segment, stale);
    }
    doorbell::announce(&segment);
    if Consumer::open(&segment).expect("sane").available() == 0 {
        drop(guard);
        assert_eq!(kernel::receive_one(true), JUNK, "a doorbell is expected, the program's byte would be lost");
        // A doorbell that is not counted yet must not keep loom here for ever.
        kernel::yield_now();
    }
    None
}

/// receive.rs, `receive`: one byte, blocking.
fn receive(world: &World, flaw: Flaw) -> u8 {
    let slot = &world.rx;
    loop {
        let guard = lock::acquire(&slot.rx_lock, 1);
        let consented = world.consuming().rx().consent.load(Relaxed) == CONSENT_GIVEN;
        let received = if slot.rx_mode.load(Relaxed) == MODE_RING {
            from_ring(world, guard)
        } else if consented {
            cross(world, guard, flaw)
        } else {
            let byte = receive_through_kernel(world, 1, guard, flaw);
            let _guard = lock::acquire(&slot.rx_lock, 1);
            compare(world, flaw);
            Some(byte)
        };
        if let Some(byte) = received {
            return byte;
        }
    }
}

/// One end sends three bytes and switches when it may; the other receives them. With `consented`, the first byte was sent and
/// received, and the counts compared, before.
fn crossing(consented: bool, flaw: Flaw) {
    let preemptions = if consented { 3 } else { 2 };
    explore(&format!("crossing, consent given: {consented}, {flaw:?}"), preemptions, move || {
        let world = World::new(CAPACITY);
        let first = if consented { 2 } else { 1 };
        if consented {
            send_through_kernel(&world, 1, Flaw::None);
            assert_eq!(receive(&world, Flaw::None), 1);
        }
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || (first..=3).for_each(|byte| send(&world, byte, flaw)))
        };
        for byte in first..=3 {
            assert_eq!(receive(&world, flaw), byte, "the stream as the program sees it");
        }
        producer.join().expect("producer");
    });
}

/// Consent is given only if every byte that had entered the kernel's queue was counted, though one moves past the library.
///
/// Bound: four threads, two counted sends, one past the library, one receive, one comparison.
#[test]
fn consent_means_that_every_byte_was_counted() {
    comparison(1, Flaw::None);
}

/// A comparison finds no difference where nothing moves past the library.
///
/// Bound: three threads, two sends, one receive, one comparison.
#[test]
fn counts_agree_when_nothing_moves_past_the_library() {
    comparison(0, Flaw::None);
}

/// The stream arrives whole and in order, no doorbell is taken for data and nobody sleeps on, whenever consent is given and the switch happens.
///
/// Bound: two threads, three bytes, consent and switch anywhere.
#[test]
fn the_stream_is_whole_across_consent_and_switch() {
    crossing(false, Flaw::None);
}

/// The same with consent given before, and more preemptions.
///
/// Bound: two threads, three bytes of which the first is through, the switch anywhere.
#[test]
fn the_stream_is_whole_across_the_switch() {
    crossing(true, Flaw::None);
}

#[test]
#[should_panic(expected = "a difference where there is none")]
fn flaw_sends_that_are_not_marked() {
    comparison(0, Flaw::SendsUnmarked);
}

#[test]
#[should_panic(expected = "consent with uncounted bytes")]
fn flaw_receives_that_are_not_marked() {
    comparison(1, Flaw::ReceivesUnmarked);
}

#[test]
#[should_panic(expected = "a difference where there is none")]
fn flaw_counts_published_without_release() {
    comparison(0, Flaw::CountsRelaxed);
}

#[test]
#[should_panic(expected = "a difference where there is none")]
fn flaw_counts_compared_without_acquire() {
    comparison(0, Flaw::CompareRelaxed);
}

#[test]
#[should_panic]
fn flaw_a_switch_stored_without_release() {
    crossing(true, Flaw::SwitchRelaxed);
}

#[test]
#[should_panic(expected = "the stream as the program sees it")]
fn flaw_the_queue_measured_after_the_question() {
    crossing(true, Flaw::MeasuredLate);
}
