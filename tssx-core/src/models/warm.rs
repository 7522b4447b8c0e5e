//! Property: bytes are read in the order in which they were written, each once and from where it was put, although the producer goes back to the
//! ring's first byte whenever it finds the ring empty and neither end looks at the other's position more often than it must. A byte
//! that is written while the other end may still read it is a race, which loom reports; one that is looked for in the wrong place is a wrong byte.

#![allow(unsafe_code, reason = "copies through the ring's interface")]

use std::sync::Arc;

use loom::thread;

use super::kernel;
use super::support::{explore, relaxed_if};
use super::world::World;
use crate::lock;
use crate::ring::consumer::Consumer;
use crate::ring::producer::Producer;

/// Bytes of the ring.
const CAPACITY: u64 = 4;
/// Messages, of one byte each.
const MESSAGES: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Goes back although bytes are unread.
    WhileUnread,
    /// Goes back on the word of a position that was read without Acquire.
    EmptyRelaxed,
    /// Publishes without Release: the bytes are seen before the place where they lie.
    PublishRelaxed,
}

/// copying.rs, `copy`: one byte, if there is room.
fn write(world: &World, byte: u8, flaw: Flaw) -> bool {
    let segment = world.producing();
    let mut producer = Producer::open_seen(&segment, &world.seen_head).expect("sane");
    if producer.room(u64::MAX) == 0 {
        producer.refresh().expect("sane");
    }
    if producer.room(u64::MAX) == 0 {
        return false;
    }
    relaxed_if(flaw == Flaw::EmptyRelaxed, || producer.warm(1));
    if flaw == Flaw::WhileUnread {
        producer.rebase(producer.tail());
    }
    // SAFETY: one live byte.
    assert_eq!(unsafe { producer.copy_in(&raw const byte, 1) }, 1);
    assert!(relaxed_if(flaw == Flaw::PublishRelaxed, || producer.publish()));
    true
}

/// gathering.rs, `open`, and receive.rs, `take`: up to `most` bytes. Another thread may read beside this one.
fn read(world: &World, most: usize, pid: u64) -> Vec<u8> {
    let _guard = lock::acquire(&world.rx.rx_lock, pid);
    let segment = world.consuming();
    let mut consumer = Consumer::open_seen(&segment, &world.seen_tail).expect("sane");
    if consumer.available() < most as u64 {
        consumer.refresh().expect("sane");
    }
    let mut bytes = vec![0; most];
    // SAFETY: a live vector of that length.
    let count = unsafe { consumer.copy_out(bytes.as_mut_ptr(), most) };
    assert!(consumer.publish().is_some());
    bytes.truncate(count);
    bytes
}

fn in_order(flaw: Flaw, most: usize) {
    explore(&format!("warm memory, up to {most} at once, {flaw:?}"), 4, move || {
        let world = World::new(CAPACITY);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                for byte in 1..=MESSAGES {
                    while !write(&world, byte, flaw) {
                        kernel::yield_now();
                    }
                }
            })
        };
        let mut got = Vec::new();
        while got.len() < usize::from(MESSAGES) {
            let some = read(&world, most, 1);
            if some.is_empty() {
                kernel::yield_now();
            }
            got.extend(some);
        }
        assert_eq!(got, (1..=MESSAGES).collect::<Vec<u8>>());
        producer.join().expect("producer");
    });
}

/// Two threads of one process read; what each gets is in order, and nothing is lost or given twice.
fn two_readers() {
    explore("warm memory, two readers", 3, || {
        let world = World::new(CAPACITY);
        // One byte is through, so that the producer goes back with the next.
        assert!(write(&world, 1, Flaw::None) && read(&world, 1, 1) == [1]);
        let (one, other) = (Arc::clone(&world), Arc::clone(&world));
        let producer = thread::spawn(move || {
            for byte in 2..=4 {
                assert!(write(&one, byte, Flaw::None));
            }
        });
        let twice = |world: &World, pid| [read(world, 1, pid), read(world, 1, pid)].concat();
        let reader = thread::spawn(move || twice(&other, 2));
        let mut got = twice(&world, 1);
        if std::env::var("DBG").is_ok() {
            eprintln!("{got:?} base {}", world.consuming().rx().base.load(std::sync::atomic::Ordering::Relaxed));
        }
        let theirs = reader.join().expect("reader");
        producer.join().expect("producer");
        let rest = read(&world, 4, 1);
        assert!(got.is_sorted() && theirs.is_sorted() && rest.is_sorted());
        got.extend(theirs);
        got.extend(rest);
        got.sort_unstable();
        assert_eq!(got, [2, 3, 4]);
    });
}

/// A byte is read once, in order, and from where it was put, although the producer goes back to the ring's first byte when it finds the ring empty.
///
/// Bound: two threads, four messages of a byte through a ring of four, reads of one.
#[test]
fn bytes_are_read_from_where_they_were_put() {
    in_order(Flaw::None, 1);
}

/// The same for reads that take several messages at once, and find some of them behind and some before such a return.
///
/// Bound: two threads, four messages of a byte through a ring of four, reads of up to three.
#[test]
fn several_bytes_are_read_from_where_they_were_put() {
    in_order(Flaw::None, 3);
}

/// Two threads that read one end by what either saw of the producer get each byte once and in order.
///
/// Bound: three threads, three messages of a byte behind one that is through, four reads of one and one of the rest.
#[test]
fn two_readers_share_what_was_seen() {
    two_readers();
}

#[test]
#[should_panic]
fn flaw_going_back_while_bytes_are_unread() {
    in_order(Flaw::WhileUnread, 3);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_going_back_on_the_word_of_a_relaxed_position() {
    in_order(Flaw::EmptyRelaxed, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_tail_published_without_release() {
    in_order(Flaw::PublishRelaxed, 1);
}
