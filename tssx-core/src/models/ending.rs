//! Property: where a ring ends, a sleeper that takes what wakes it takes a doorbell, never a byte that the program has sent behind the end; and it
//! is woken, and reads the stream whole.

#![allow(unsafe_code, reason = "copies through the ring's interface")]

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use loom::thread;

use super::kernel::{self, JUNK};
use super::support::explore;
use super::world::World;
use crate::layout::{ALONE, STATE_ENDED, STATE_RING};
use crate::ledger::layout::MODE_RING;
use crate::reason::Reason;
use crate::ring::consumer::Consumer;
use crate::ring::producer::Producer;
use crate::switchover;
use crate::{doorbell, lock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The ring ends and nobody is rung for.
    EndsSilently,
    /// The sleeper does not look whether the ring is ending.
    SeesNoEnd,
}

/// Ring capacity: the least that a limit may be.
const CAPACITY: u64 = 4096;

/// A ring that has been in use: nobody is announced, the send buffer is small.
fn in_ring() -> Arc<World> {
    let world = World::new(CAPACITY);
    world.tx.tx_mode.store(MODE_RING, Relaxed);
    world.rx.rx_mode.store(MODE_RING, Relaxed);
    world.producing().tx().state.store(STATE_RING, Relaxed);
    doorbell::withdraw(&world.consuming());
    world.socket.shrink();
    world
}

/// send.rs, `attempt`: one byte.
fn send(world: &World, byte: u8) {
    let segment = world.producing();
    let mut producer = Producer::open(&segment).expect("sane");
    // SAFETY: one live byte.
    assert_eq!(unsafe { producer.copy_in(&raw const byte, 1) }, 1);
    assert!(producer.publish());
    doorbell::rouse(0, &world.tx, &segment).expect("alive");
}

/// fallback.rs, `leave_ring`, and a send through the kernel: one byte.
fn send_behind_end(world: &World, byte: u8, flaw: Flaw) {
    let segment = world.producing();
    if flaw == Flaw::EndsSilently {
        segment.tx().asleep.fetch_and(!ALONE, Relaxed);
    }
    switchover::end_ring(0, &world.tx, &segment, Reason::OutOfBand);
    assert_eq!(kernel::send(0, &[byte]), Ok(1));
}

/// receive.rs, `receive` by `from_ring` and `sleep` of a process with one thread: one byte, blocking.
fn receive(world: &World, flaw: Flaw) -> u8 {
    let (slot, segment) = (&world.rx, world.consuming());
    loop {
        let guard = lock::acquire(&slot.rx_lock, 1);
        if slot.rx_mode.load(Relaxed) != MODE_RING {
            return kernel::receive_one(false);
        }
        let mut consumer = Consumer::open(&segment).expect("sane");
        let mut byte = 0;
        // SAFETY: one live byte.
        if unsafe { consumer.copy_out(&raw mut byte, 1) } == 1 {
            assert!(consumer.publish().is_some());
            return byte;
        }
        if switchover::try_resume(0, slot, &segment) {
            continue;
        }
        let stale = doorbell::stale(slot, &segment);
        if stale > 0 {
            doorbell::take_doorbells(0, slot, &segment, stale);
        }
        let alone = doorbell::announce_alone(&segment) || flaw == Flaw::SeesNoEnd;
        if !alone {
            doorbell::announce(&segment);
        }
        let direction = segment.rx();
        let holds_bytes = direction.head.load(Relaxed) != direction.tail.load(Acquire);
        // The flaw is a sleeper that has looked before.
        let ended = direction.state.load(Acquire) == STATE_ENDED && flaw != Flaw::SeesNoEnd;
        if holds_bytes || ended {
            doorbell::awake(&segment);
            continue;
        }
        drop(guard);
        let byte = kernel::receive_one(!alone);
        let _guard = lock::acquire(&slot.rx_lock, 1);
        if alone {
            doorbell::awake(&segment);
            assert!(byte == JUNK && !doorbell::took_programs(slot, &segment), "a byte of the program's is taken for a doorbell");
            doorbell::count_taken(slot, &segment, byte, slot.doorbell_rx_bytes.load(Relaxed));
        }
        // A doorbell that is not counted yet must not keep loom here for ever.
        kernel::yield_now();
    }
}

fn end_of_a_ring(flaw: Flaw) {
    explore(&format!("the end of a ring for a sleeper that is alone, {flaw:?}"), 4, move || {
        let world = in_ring();
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                send(&world, 1);
                send_behind_end(&world, 2, flaw);
                assert_eq!(kernel::send(0, &[3]), Ok(1));
            })
        };
        for byte in 1..=3 {
            assert_eq!(receive(&world, flaw), byte, "the stream as the program sees it");
        }
        producer.join().expect("producer");
    });
}

/// A sleeper that takes what wakes it takes a doorbell and no byte behind the ring's end, is woken, and reads the stream whole.
///
/// Bound: two threads, one byte in the ring and two behind its end.
#[test]
fn a_sleeper_that_is_alone_takes_no_byte_behind_the_end() {
    end_of_a_ring(Flaw::None);
}

#[test]
#[should_panic(expected = "a byte of the program's is taken for a doorbell")]
fn flaw_an_end_that_rings_for_nobody() {
    end_of_a_ring(Flaw::EndsSilently);
}

#[test]
#[should_panic(expected = "a byte of the program's is taken for a doorbell")]
fn flaw_a_sleeper_that_does_not_see_the_end() {
    end_of_a_ring(Flaw::SeesNoEnd);
}
