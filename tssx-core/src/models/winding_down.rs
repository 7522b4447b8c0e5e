//! Property: who asks for the end of a ring that has not begun, and then reads the kernel's socket alone, reads the stream whole and nothing
//! else, though the producer moves at that very moment.

#![allow(unsafe_code, reason = "copies through the ring's interface")]

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use loom::thread;

use super::kernel;
use super::support::{explore, unfenced_if};
use super::world::World;
use crate::layout::CONSENT_GIVEN;
use crate::ledger::layout::{MODE_FINAL, MODE_KERNEL};
use crate::ring::producer::Producer;
use crate::{doorbell, lock, recall, switchover};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The producer does not see what was asked before it moved.
    MovesUnfenced,
    /// The one that asks does not see that the producer has moved.
    AsksUnfenced,
}

/// Ring capacity: the least that a limit may be.
const CAPACITY: u64 = 4096;

/// send.rs: one byte, by the ring if the direction moves.
fn send(world: &World, byte: u8, flaw: Flaw) {
    let (slot, segment) = (&world.tx, world.producing());
    let _guard = lock::acquire(&slot.tx_lock, 2);
    if unfenced_if(flaw == Flaw::MovesUnfenced, || switchover::enter_ring(0, slot, &segment)) {
        let mut producer = Producer::open(&segment).expect("sane");
        // SAFETY: one live byte.
        assert_eq!(unsafe { producer.copy_in(&raw const byte, 1) }, 1);
        assert!(producer.publish());
        doorbell::rouse(0, slot, &segment).expect("alive");
    } else {
        assert_eq!(kernel::send(0, &[byte]), Ok(1));
    }
}

fn asked(flaw: Flaw) {
    explore(&format!("the end of a ring that has not begun, {flaw:?}"), 4, move || {
        let world = World::new(CAPACITY);
        world.tx.tx_mode.store(MODE_KERNEL, Relaxed);
        world.rx.rx_mode.store(MODE_KERNEL, Relaxed);
        world.consuming().rx().consent.store(CONSENT_GIVEN, Relaxed);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || send(&world, 7, flaw))
        };
        let (slot, segment) = (&world.rx, world.consuming());
        let guard = lock::acquire(&slot.rx_lock, 1);
        unfenced_if(flaw == Flaw::AsksUnfenced, || recall::ask_for_end(slot, &segment));
        let by_kernel = slot.rx_mode.load(Relaxed) == MODE_FINAL;
        drop(guard);
        if by_kernel {
            assert_eq!(kernel::receive_one(false), 7, "what the program sees");
        }
        producer.join().expect("producer");
    });
}

/// Who asks for the end of a ring that has not begun reads the stream whole, and no doorbell as a byte of it.
///
/// Bound: two threads, one send of a byte and one question.
#[test]
fn who_asks_for_the_end_of_no_ring_reads_no_doorbell() {
    asked(Flaw::None);
}

#[test]
#[should_panic(expected = "what the program sees")]
fn flaw_a_producer_that_does_not_see_the_question() {
    asked(Flaw::MovesUnfenced);
}

#[test]
#[should_panic(expected = "what the program sees")]
fn flaw_a_question_that_does_not_see_the_move() {
    asked(Flaw::AsksUnfenced);
}
