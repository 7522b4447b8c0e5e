//! Threads at both ends of one ring that sleep when they must, for ThreadSanitizer above all (`cargo xtask sanitize`): what the compiler makes
//! of the orderings, on real threads. The models of `models/` explore more interleavings, of the source.
//!
//! Both ends look at one mapping, because ThreadSanitizer tells memory by its address, and all threads are joined by name, because it does
//! not see how a scope waits for them.

#![allow(unsafe_code, reason = "two views of one mapping, and copies through the ring's interface")]

use std::cell::UnsafeCell;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::consumer::{Consumer, SeenTail};
use super::producer::{Producer, SeenHead};
use crate::ledger::layout::Slot;
use crate::ledger::slots;
use crate::segment::{Segment, Side};
use crate::{doorbell, lock, sys};

/// Bytes that go through: many times the ring.
const TOTAL: u64 = 4 << 20;
/// Longest message; its size walks through all below.
const MESSAGE: usize = 3001;
/// Threads of each end.
const THREADS: u64 = 2;
/// Milliseconds after which a sleeper was not woken.
const DEADLINE: i32 = 30_000;

/// How far an end is: what its lock guards.
struct Place(UnsafeCell<u64>);

// SAFETY: the lock under test is what makes it sound.
unsafe impl Sync for Place {}

impl Place {
    fn get(&self, _guard: &lock::Guard<'_>) -> u64 {
        // SAFETY: under the lock.
        unsafe { *self.0.get() }
    }

    fn add(&self, _guard: &lock::Guard<'_>, bytes: u64) {
        // SAFETY: under the lock.
        unsafe { *self.0.get() += bytes };
    }
}

struct End<'a> {
    segment: Segment,
    socket: UnixStream,
    slot: &'a Slot,
    place: Place,
    seen_head: SeenHead,
    seen_tail: SeenTail,
}

// SAFETY: a mapping that outlives the threads; the ring and its locks are what makes its use sound.
unsafe impl Sync for End<'_> {}

/// The byte at this position.
fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Sleeps until the socket is readable, or writable.
fn sleep(socket: &UnixStream, events: i16) {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: one live structure.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, DEADLINE) }, 1, "a sleeper is not woken");
}

impl End<'_> {
    /// Writes one message, or as much as there is room for. False when all is written.
    fn write(&self, own: u64) -> bool {
        let fd = self.socket.as_raw_fd();
        let guard = lock::acquire(&self.slot.tx_lock, own);
        let place = self.place.get(&guard);
        let mut producer = Producer::open_seen(&self.segment, &self.seen_head).expect("sane");
        let length = ((place as usize % MESSAGE) + 1).min((TOTAL - place) as usize);
        if producer.room(u64::MAX) < length as u64 {
            producer.refresh().expect("sane");
        }
        producer.warm(length);
        let message: Vec<u8> = (place..place + length as u64).map(byte).collect();
        // SAFETY: a live vector.
        let count = unsafe { producer.copy_in(message.as_ptr(), length) };
        assert!(producer.publish());
        self.place.add(&guard, count as u64);
        if count > 0 {
            doorbell::rouse(fd, self.slot, &self.segment).expect("alive");
        } else if length > 0 {
            doorbell::hold_unwritable(fd, self.slot, &self.segment).expect("alive");
            let full = Producer::open(&self.segment).expect("sane").room(u64::MAX) == 0;
            drop(guard);
            if full {
                sleep(&self.socket, libc::POLLOUT);
            }
        }
        length > 0
    }

    /// Counts what is stale, announces, looks at the ring, takes: in this order, see doorbell.rs. True if the ring is empty.
    fn take_doorbells(&self) -> bool {
        let (slot, segment) = (self.slot, &self.segment);
        let stale = doorbell::stale(slot, segment);
        doorbell::announce(segment);
        let empty = segment.rx().head.load(Relaxed) == segment.rx().tail.load(Acquire);
        if empty && stale > 0 {
            doorbell::drain(self.socket.as_raw_fd(), slot, segment, stale);
        }
        empty
    }

    /// Reads up to so many bytes. False when all is read.
    fn read(&self, own: u64, most: usize) -> bool {
        let (slot, segment) = (self.slot, &self.segment);
        let guard = lock::acquire(&slot.rx_lock, own);
        let place = self.place.get(&guard);
        if place == TOTAL {
            // Doorbells that nobody takes would keep a writer from seeing that it may go on.
            self.take_doorbells();
            return false;
        }
        let mut consumer = Consumer::open_seen(segment, &self.seen_tail).expect("sane");
        if consumer.available() < most as u64 {
            consumer.refresh().expect("sane");
        }
        let mut bytes = vec![0; most];
        // SAFETY: a live vector.
        let count = unsafe { consumer.copy_out(bytes.as_mut_ptr(), most) };
        let (before, after) = consumer.publish().expect("under the lock");
        let wrong = (place..).zip(&bytes[..count]).find(|(position, found)| byte(*position) != **found);
        assert_eq!(wrong, None, "a wrong byte");
        self.place.add(&guard, count as u64);
        // A read that leaves bytes leaves it to the last one, because others may sleep beside it.
        let release = doorbell::should_release(segment, before, after) && after == 0;
        if release || count == 0 {
            let empty = self.take_doorbells();
            drop(guard);
            if count == 0 && empty {
                sleep(&self.socket, libc::POLLIN);
            }
        }
        true
    }
}

#[test]
fn bytes_cross_between_threads_that_sleep() {
    let (ours, fd) = Segment::create(0, 1, 2).expect("create");
    sys::close(fd);
    let (base, capacity) = ours.into_parts();
    // SAFETY: the parts of a mapping that lives until the end of this test.
    let theirs = unsafe { Segment::from_parts(base, capacity, Side::Acceptor) }.expect("not null");
    let (near, far) = UnixStream::pair().expect("pair");
    sys::setsockopt(near.as_raw_fd(), libc::SO_SNDBUF, 1).expect("small");
    let ledger = slots::create().expect("ledger");
    let pid = sys::getpid();
    let end = |segment, socket, role| End {
        segment,
        socket,
        slot: slots::claim(&ledger, 0, role, pid).expect("slot"),
        place: Place(UnsafeCell::new(0)),
        seen_head: SeenHead::default(),
        seen_tail: SeenTail::default(),
    };
    let (producer, consumer) = (end(ours, near, 0), end(theirs, far, 1));
    std::thread::scope(|scope| {
        let (producer, consumer) = (&producer, &consumer);
        let own = |thread: u64| lock::owner(pid, usize::try_from(thread * 64).expect("small"));
        let writers = (1..=THREADS).map(|thread| scope.spawn(move || while producer.write(own(thread)) {}));
        let writers: Vec<_> = writers.collect();
        let readers = (1..=THREADS).map(|thread| {
            scope.spawn(move || {
                let mut most = 1;
                while consumer.read(own(THREADS + thread), most) {
                    most = most % 5000 + 37;
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        writers.into_iter().for_each(|thread| thread.join().expect("a writer"));
        // Who sleeps while another reads the last byte is woken by the end of file.
        producer.socket.shutdown(std::net::Shutdown::Write).expect("shut down");
        readers.into_iter().for_each(|thread| thread.join().expect("a reader"));
    });
    // SAFETY: the threads have ended.
    unsafe { ours.unmap() };
}

/// What ThreadSanitizer must report, which `cargo xtask sanitize` runs alone: both write without the lock.
#[cfg(tsan)]
#[test]
fn planted_race() {
    let place = Place(UnsafeCell::new(0));
    let count = |place: &Place| {
        // SAFETY: a number that lives long enough, and on which nothing rests. That it is written without a lock is what is planted.
        unsafe { *place.0.get() += 1 };
    };
    std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| (0..1000).for_each(|_| count(&place))));
        threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
    });
}
