//! Property: a consumer that has gone to sleep while the ring is empty is woken by the next bytes. A sleeper that is missed
//! never ends, which loom reports as a deadlock; ring bytes read before they were written are reported as a race.

#![allow(unsafe_code, reason = "copies through the ring's interface")]

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use loom::thread;

use super::kernel;
use super::support::{explore, relaxed_if, unfenced_if};
use super::world::World;
use crate::doorbell;
use crate::lock;
use crate::ring::consumer::Consumer;
use crate::ring::producer::Producer;

/// What is wrong with the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    AnnounceUnfenced,
    RouseUnfenced,
    NoSecondLook,
    PublishRelaxed,
    OpenRelaxed,
    /// Of two callers that find the ring empty, one takes all doorbells, also those sent since it looked.
    TakesFreshDoorbells,
    /// A sleeper takes the doorbell with it, although others may share the end.
    Eats,
    /// Doorbells that have woken a sleeper are taken before it runs, by one who does not announce anybody.
    TakesUnannounced,
}

/// send.rs, `attempt`: one byte.
fn send(world: &World, byte: u8, flaw: Flaw) {
    let segment = world.producing();
    let mut producer = Producer::open_seen(&segment, &world.seen_head).expect("sane");
    if producer.room(u64::MAX) == 0 {
        producer.refresh().expect("sane");
    }
    producer.warm(1);
    // SAFETY: one live byte.
    assert_eq!(unsafe { producer.copy_in(&raw const byte, 1) }, 1);
    assert!(relaxed_if(flaw == Flaw::PublishRelaxed, || producer.publish()));
    unfenced_if(flaw == Flaw::RouseUnfenced, || doorbell::rouse(0, &world.tx, &segment)).expect("alive");
}

/// receive.rs, `take`: one byte, if there is one.
fn take(world: &World, flaw: Flaw) -> Option<u8> {
    let segment = world.consuming();
    let mut consumer = Consumer::open_seen(&segment, &world.seen_tail).expect("sane");
    if consumer.available() == 0 {
        relaxed_if(flaw == Flaw::OpenRelaxed, || consumer.refresh()).expect("sane");
    }
    let mut byte = 0;
    // SAFETY: one live byte.
    let count = unsafe { consumer.copy_out(&raw mut byte, 1) };
    assert!(consumer.publish().is_some());
    (count == 1).then_some(byte)
}

/// receive.rs, `holds_bytes`.
fn holds_bytes(world: &World) -> bool {
    let segment = world.consuming();
    segment.rx().head.load(Relaxed) != segment.rx().tail.load(Acquire)
}

/// receive.rs, `announce_for_others`, and the taking of doorbells where the ring was seen empty and others may sleep: they
/// are announced first, unless the caller has. True if the ring is not empty any more, so that the doorbells stay.
fn drain(world: &World, stale: u64, announced: bool, flaw: Flaw) -> bool {
    let most = if flaw == Flaw::TakesFreshDoorbells { doorbell::ALL } else { stale };
    let others = world.rx.rx_waiters.load(Relaxed) > 0;
    if most > 0 && others && !announced && flaw != Flaw::TakesUnannounced {
        doorbell::announce(&world.consuming());
    }
    if holds_bytes(world) {
        return true;
    }
    if most > 0 {
        doorbell::drain(0, &world.rx, &world.consuming(), most);
    }
    false
}

/// receive.rs, `receive` by `from_ring` and `sleep`: one byte, blocking.
fn receive(world: &World, pid: u64, flaw: Flaw) -> u8 {
    let (slot, segment) = (&world.rx, world.consuming());
    loop {
        let guard = lock::acquire(&slot.rx_lock, pid);
        let stale = doorbell::stale(slot, &segment);
        if let Some(byte) = take(world, flaw) {
            return byte;
        }
        if drain(world, stale, false, flaw) {
            continue;
        }
        slot.rx_waiters.fetch_add(1, Relaxed);
        unfenced_if(flaw == Flaw::AnnounceUnfenced, || doorbell::announce(&segment));
        if flaw != Flaw::NoSecondLook && holds_bytes(world) {
            slot.rx_waiters.fetch_sub(1, Relaxed);
            continue;
        }
        drop(guard);
        kernel::receive_one(flaw != Flaw::Eats);
        let guard = lock::acquire(&slot.rx_lock, pid);
        slot.rx_waiters.fetch_sub(1, Relaxed);
        if flaw == Flaw::Eats {
            slot.doorbell_rx_bytes.fetch_add(1, Relaxed);
        }
        drop(guard);
        // Woken by a doorbell that is not counted yet, or for bytes that another took: loom must let the others go on.
        kernel::yield_now();
    }
}

/// receive.rs, `receive` by `from_ring`, and lone.rs, of a process with one thread: one byte, blocking. It takes the doorbell that wakes it.
fn receive_alone(world: &World, flaw: Flaw) -> u8 {
    let (slot, segment) = (&world.rx, world.consuming());
    loop {
        let guard = lock::acquire(&slot.rx_lock, 1);
        let stale = doorbell::stale(slot, &segment);
        if let Some(byte) = take(world, flaw) {
            return byte;
        }
        if drain(world, stale, false, flaw) {
            continue;
        }
        assert!(unfenced_if(flaw == Flaw::AnnounceUnfenced, || doorbell::announce_alone(&segment)), "no ring ends here");
        if flaw != Flaw::NoSecondLook && holds_bytes(world) {
            doorbell::awake(&segment);
            continue;
        }
        drop(guard);
        let byte = kernel::receive_one(false);
        let _guard = lock::acquire(&slot.rx_lock, 1);
        doorbell::awake(&segment);
        doorbell::count_taken(slot, &segment, byte, slot.doorbell_rx_bytes.load(Relaxed));
        // Woken by a doorbell that is not counted yet: loom must let the others go on.
        kernel::yield_now();
    }
}

/// readiness/state.rs, `arm`, poll(2), `disarm` and `is_end`, then a read that does not wait: one byte.
fn poll_and_receive(world: &World, pid: u64, flaw: Flaw) -> u8 {
    let (slot, segment) = (&world.rx, world.consuming());
    loop {
        {
            let _guard = lock::acquire(&slot.rx_lock, pid);
            slot.rx_waiters.fetch_add(1, Relaxed);
            let stale = doorbell::stale(slot, &segment);
            doorbell::announce(&segment);
            drain(world, stale, true, flaw);
        }
        if !holds_bytes(world) {
            kernel::receive_one(true);
        }
        let _guard = lock::acquire(&slot.rx_lock, pid);
        slot.rx_waiters.fetch_sub(1, Relaxed);
        let stale = doorbell::waiting(0);
        if let Some(byte) = take(world, Flaw::None) {
            return byte;
        }
        drain(world, stale, false, flaw);
        // Woken by a doorbell that is not counted yet, or for bytes that another took: loom must let the others go on.
        kernel::yield_now();
    }
}

/// empty.rs, `ask`, behind a look at the ring: one byte, if there is one, without waiting.
fn receive_now(world: &World, pid: u64, flaw: Flaw) -> Option<u8> {
    let _guard = lock::acquire(&world.rx.rx_lock, pid);
    take(world, flaw).or_else(|| {
        let stale = doorbell::waiting(0);
        drain(world, stale, false, flaw);
        take(world, flaw)
    })
}

/// A ring that has been in use: nobody is announced, the send buffer is small.
fn in_ring(capacity: u64) -> Arc<World> {
    let world = World::new(capacity);
    doorbell::withdraw(&world.consuming());
    world.socket.shrink();
    world
}

fn one_sleeper(flaw: Flaw) {
    explore(&format!("one sleeper, two messages, {flaw:?}"), 4, move || {
        let world = in_ring(4);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                send(&world, 1, flaw);
                send(&world, 2, flaw);
            })
        };
        assert_eq!([receive(&world, 1, flaw), receive(&world, 1, flaw)], [1, 2]);
        producer.join().expect("producer");
    });
}

fn one_alone(flaw: Flaw) {
    explore(&format!("one sleeper that is alone, two messages, {flaw:?}"), 4, move || {
        let world = in_ring(4);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                send(&world, 1, flaw);
                send(&world, 2, flaw);
            })
        };
        assert_eq!([receive_alone(&world, flaw), receive_alone(&world, flaw)], [1, 2]);
        producer.join().expect("producer");
    });
}

fn two_sleepers(flaw: Flaw, polls: bool) {
    explore(&format!("two sleepers, one polls: {polls}, {flaw:?}"), 2, move || {
        let world = in_ring(4);
        let (one, other) = (Arc::clone(&world), Arc::clone(&world));
        let producer = thread::spawn(move || {
            send(&one, 1, flaw);
            send(&one, 2, flaw);
        });
        let watcher = thread::spawn(move || if polls { poll_and_receive(&other, 2, flaw) } else { receive(&other, 2, flaw) });
        let own = receive(&world, 1, flaw);
        let theirs = watcher.join().expect("watcher");
        assert_eq!(own + theirs, 3);
        producer.join().expect("producer");
    });
}

/// One who does not wait takes at most all messages but one, which is the sleeper's.
fn beside_one_who_looks(flaw: Flaw) {
    explore(&format!("a sleeper beside one who does not wait, {flaw:?}"), 2, move || {
        let world = in_ring(4);
        let (one, other) = (Arc::clone(&world), Arc::clone(&world));
        let producer = thread::spawn(move || (1..=3).for_each(|byte| send(&one, byte, flaw)));
        let looker = thread::spawn(move || [receive_now(&other, 2, flaw), receive_now(&other, 2, flaw)]);
        let own = receive(&world, 1, flaw);
        let theirs = looker.join().expect("looker");
        assert!(!theirs.contains(&Some(own)));
        producer.join().expect("producer");
    });
}

/// A sleeper is woken although another thread of its end reads without waiting, and takes doorbells.
///
/// Bound: three threads, three messages, two reads that do not wait.
#[test]
fn a_sleeper_is_woken_beside_one_who_does_not_wait() {
    beside_one_who_looks(Flaw::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_a_doorbell_taken_that_a_sleeper_was_woken_by() {
    beside_one_who_looks(Flaw::TakesUnannounced);
}

/// A sleeper is woken by the next message, and reads bytes that were written before.
///
/// Bound: two threads, two messages.
#[test]
fn a_sleeper_is_woken() {
    one_sleeper(Flaw::None);
}

/// The same for a sleeper that takes its doorbell, as one that shares its end with nobody may.
///
/// Bound: two threads, two messages.
#[test]
fn a_sleeper_that_is_alone_is_woken_by_the_doorbell_that_it_takes() {
    one_alone(Flaw::None);
}

/// Of two threads that sleep at one end each gets its message: neither takes the doorbell that is to wake the other.
///
/// Bound: three threads, two messages.
#[test]
fn two_sleepers_that_share_an_end_are_both_woken() {
    two_sleepers(Flaw::None, false);
}

/// The same for one that sleeps in a read and one that sleeps in poll.
///
/// Bound: three threads, two messages.
#[test]
fn a_sleeper_and_a_watcher_that_share_an_end_are_both_woken() {
    two_sleepers(Flaw::None, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_announce_without_its_fence() {
    one_sleeper(Flaw::AnnounceUnfenced);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_announce_alone_without_its_fence() {
    one_alone(Flaw::AnnounceUnfenced);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_rouse_without_its_fence() {
    one_sleeper(Flaw::RouseUnfenced);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_sleeping_without_a_second_look() {
    one_sleeper(Flaw::NoSecondLook);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_tail_published_without_release() {
    one_sleeper(Flaw::PublishRelaxed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_tail_read_without_acquire() {
    one_sleeper(Flaw::OpenRelaxed);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_a_doorbell_taken_while_another_sleeps() {
    two_sleepers(Flaw::Eats, false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_a_fresh_doorbell_taken_by_one_of_two_sleepers() {
    two_sleepers(Flaw::TakesFreshDoorbells, false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_a_fresh_doorbell_taken_by_a_watcher() {
    two_sleepers(Flaw::TakesFreshDoorbells, true);
}
