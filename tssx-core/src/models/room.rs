//! Property: a writer that waits for room is told when a read has made enough of it, though nobody reads again afterwards.
//! A writer that is missed never ends, which loom reports as a deadlock.

#![allow(unsafe_code, reason = "copies through the ring's interface")]

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use loom::thread;

use super::kernel;
use super::support::{explore, relaxed_if, unfenced_if};
use super::world::World;
use crate::doorbell;
use crate::ring::consumer::Consumer;
use crate::ring::producer::Producer;

/// Bytes of the ring; a read that leaves one lets the writer go on.
const CAPACITY: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    HoldUnfenced,
    ReleaseUnfenced,
    NoSecondLook,
    PublishRelaxed,
    OpenRelaxed,
    /// The consumer is not told how early the writer stops, so that no read ever crosses the mark.
    LimitUnpublished,
}

/// Which of the ways to be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    /// All of the ring.
    Capacity,
    /// A quarter of it, because the send buffer is that small.
    Limit,
}

/// Most bytes that the writer leaves unread, the slot's `tx_limit`.
fn limit(world: &World) -> u64 {
    u64::from(world.tx.tx_limit.load(Relaxed))
}

/// send.rs, `attempt`: what fits of `bytes`, at once. The number written.
fn write(world: &World, bytes: &[u8], flaw: Flaw) -> usize {
    let segment = world.producing();
    let mut producer = Producer::open_seen(&segment, &world.seen_head).expect("sane");
    if producer.room(limit(world)) < bytes.len() as u64 {
        relaxed_if(flaw == Flaw::OpenRelaxed, || producer.refresh()).expect("sane");
    }
    let room = usize::try_from(producer.room(limit(world))).expect("small");
    // SAFETY: a live slice.
    let count = unsafe { producer.copy_in(bytes.as_ptr(), bytes.len().min(room)) };
    assert!(producer.publish());
    if count > 0 {
        doorbell::rouse(0, &world.tx, &segment).expect("alive");
    }
    count
}

/// send.rs, `has_room`.
fn has_room(world: &World) -> bool {
    Producer::open(&world.producing()).expect("sane").room(limit(world)) > 0
}

/// send.rs, `send` and `sleep_for_room`, blocking.
fn send(world: &World, mut bytes: &[u8], flaw: Flaw) {
    loop {
        bytes = &bytes[write(world, bytes, flaw)..];
        if bytes.is_empty() {
            return;
        }
        let segment = world.producing();
        unfenced_if(flaw == Flaw::HoldUnfenced, || doorbell::hold_unwritable(0, &world.tx, &segment)).expect("alive");
        if flaw != Flaw::NoSecondLook && has_room(world) {
            continue;
        }
        kernel::send_one();
        doorbell::count_sent(&world.tx, &segment, 1);
    }
}

/// receive.rs, `take`: up to `most` bytes into the end of `into`. The number taken. A release by a read that leaves bytes is put
/// off, as it is when others wait for them.
fn take(world: &World, into: &mut Vec<u8>, most: usize, flaw: Flaw) -> usize {
    let segment = world.consuming();
    let mut consumer = Consumer::open(&segment).expect("sane");
    let mut bytes = [0; CAPACITY];
    // SAFETY: a live array, longer than the count.
    let count = unsafe { consumer.copy_out(bytes.as_mut_ptr(), most.min(CAPACITY)) };
    let published = relaxed_if(flaw == Flaw::PublishRelaxed, || consumer.publish());
    let (before, after) = published.expect("nobody else moves it");
    if unfenced_if(flaw == Flaw::ReleaseUnfenced, || doorbell::should_release(&segment, before, after)) && after == 0 {
        doorbell::drain(0, &world.rx, &segment, doorbell::stale(&world.rx, &segment));
    }
    into.extend_from_slice(&bytes[..count]);
    count
}

/// receive.rs, `receive` and `sleep` by the only reader: `count` bytes, blocking.
fn receive(world: &World, count: usize, most: usize, flaw: Flaw) -> Vec<u8> {
    let (slot, segment) = (&world.rx, world.consuming());
    let mut got = Vec::new();
    while got.len() < count {
        let wanted = most.min(count - got.len());
        if take(world, &mut got, wanted, flaw) > 0 {
            continue;
        }
        if doorbell::outstanding(slot, &segment) {
            doorbell::drain(0, slot, &segment, doorbell::stale(slot, &segment));
        }
        doorbell::announce(&segment);
        if Consumer::open(&segment).expect("sane").available() == 0 {
            kernel::receive_one(true);
            // The next look takes it, when it is stale; a doorbell that is not counted yet must not keep loom here for ever.
            kernel::yield_now();
        }
    }
    got
}

/// A full ring and one byte more; the reader takes what was in the ring first, in reads of at most `most`, and leaves.
fn full_ring(full: Full, most: usize, flaw: Flaw) {
    explore(&format!("full ring, {full:?}, reads of {most}, {flaw:?}"), 4, move || {
        let world = in_ring(full, flaw);
        let bytes = &[1, 2, 3, 4][..if full == Full::Capacity { CAPACITY } else { CAPACITY / 4 }];
        assert_eq!(write(&world, bytes, Flaw::None), bytes.len());
        let writer = {
            let world = Arc::clone(&world);
            thread::spawn(move || send(&world, &[5], flaw))
        };
        assert_eq!(receive(&world, bytes.len(), most, flaw), bytes);
        writer.join().expect("writer");
        assert_eq!(receive(&world, 1, 1, flaw), [5]);
    });
}

/// A direction that has switched, with nobody asleep.
fn in_ring(full: Full, flaw: Flaw) -> Arc<World> {
    let world = World::new(CAPACITY as u64);
    doorbell::withdraw(&world.consuming());
    world.socket.shrink();
    let limit = if full == Full::Capacity { CAPACITY as u32 } else { CAPACITY as u32 / 4 };
    world.tx.tx_limit.store(limit, Relaxed);
    if flaw != Flaw::LimitUnpublished {
        world.producing().tx().limit.store(u64::from(limit), Relaxed);
    }
    world
}

/// The same, but the reader reads all while the writer goes on.
fn long_stream() {
    explore("long stream", 3, || {
        let world = in_ring(Full::Capacity, Flaw::None);
        let writer = {
            let world = Arc::clone(&world);
            // The second begins before the ring's end and goes on at its beginning.
            thread::spawn(move || [&[1, 2, 3][..], &[4, 5, 6, 7]].iter().for_each(|bytes| send(&world, bytes, Flaw::None)))
        };
        assert_eq!(receive(&world, 7, CAPACITY, Flaw::None), [1, 2, 3, 4, 5, 6, 7]);
        writer.join().expect("writer");
    });
}

/// A writer that waits for room is told by the read that empties the ring, though nobody reads afterwards.
///
/// Bound: two threads, a full ring of four bytes, one read of all.
#[test]
fn a_writer_is_released_by_one_large_read() {
    full_ring(Full::Capacity, CAPACITY, Flaw::None);
}

/// The same if the read that crossed the mark left the telling to the last.
///
/// Bound: two threads, a full ring of four bytes, reads of three and one.
#[test]
fn a_writer_is_released_by_the_last_read_if_an_earlier_one_put_it_off() {
    full_ring(Full::Capacity, 3, Flaw::None);
}

/// The same where the writer stops before the ring is full, because its send buffer is small.
///
/// Bound: two threads, a ring of four bytes of which one may lie unread, one read.
#[test]
fn a_writer_with_a_small_send_buffer_is_released() {
    full_ring(Full::Limit, 1, Flaw::None);
}

/// A stream longer than the ring arrives whole: each time the ring is full the writer is told, and the ring goes round.
///
/// Bound: two threads, seven bytes through a ring of four.
#[test]
fn a_stream_longer_than_the_ring_flows() {
    long_stream();
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_hold_without_its_fence() {
    full_ring(Full::Capacity, CAPACITY, Flaw::HoldUnfenced);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_release_without_its_fence() {
    full_ring(Full::Capacity, CAPACITY, Flaw::ReleaseUnfenced);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_waiting_without_a_second_look() {
    full_ring(Full::Capacity, CAPACITY, Flaw::NoSecondLook);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_head_published_without_release() {
    full_ring(Full::Capacity, CAPACITY, Flaw::PublishRelaxed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_head_read_without_acquire() {
    full_ring(Full::Capacity, CAPACITY, Flaw::OpenRelaxed);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_a_limit_that_the_consumer_does_not_know() {
    full_ring(Full::Limit, 1, Flaw::LimitUnpublished);
}
