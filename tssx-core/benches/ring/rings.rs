//! Rings between two threads, each with a mapping of its own, as two processes have.

#![allow(unsafe_code, reason = "copies through the ring's interface")]

use std::time::{Duration, Instant};

use tssx_core::ring::consumer::{Consumer, SeenTail};
use tssx_core::ring::producer::{Producer, SeenHead};
use tssx_core::segment::Segment;
use tssx_core::{doorbell, sys};

use crate::support::{Group, Variant, race};

const COUNT: u64 = 200_000;
const SIZE: usize = 64;
const CAPACITY: u64 = 256 * 1024;

/// How the ends look at each other's positions.
#[derive(Clone, Copy)]
struct Looks {
    /// What was seen is believed as long as it suffices.
    seen: bool,
    /// An empty ring begins at its first byte again.
    warm: bool,
    /// What the reader of an empty ring does before it looks again.
    rest: Duration,
}

const CHOSEN: Looks = Looks { seen: true, warm: true, rest: Duration::ZERO };

/// A segment, and the memfd for the other end, which is mapped by the thread that uses it.
fn ends() -> (Segment, i32) {
    let (ours, fd) = Segment::create(CAPACITY, 1, 2).expect("a memfd");
    // As while both ends are awake: nobody rings.
    doorbell::withdraw(&ours);
    (ours, fd)
}

fn other_end(fd: i32) -> Segment {
    let theirs = Segment::adopt(fd, 2).expect("the same memfd");
    sys::close(fd);
    doorbell::withdraw(&theirs);
    theirs
}

struct End {
    segment: Segment,
    head: SeenHead,
    tail: SeenTail,
    looks: Looks,
}

impl End {
    fn new(segment: Segment, looks: Looks) -> Self {
        Self { segment, head: SeenHead::default(), tail: SeenTail::default(), looks }
    }

    fn send(&self, bytes: &[u8]) {
        loop {
            let mut producer = if self.looks.seen {
                Producer::open_seen(&self.segment, &self.head).expect("sane")
            } else {
                Producer::open(&self.segment).expect("sane")
            };
            if producer.room(u64::MAX) < bytes.len() as u64 {
                producer.refresh().expect("sane");
            }
            if producer.room(u64::MAX) < bytes.len() as u64 {
                std::hint::spin_loop();
                continue;
            }
            if self.looks.warm {
                producer.warm(bytes.len());
            }
            // SAFETY: a live slice.
            unsafe { producer.copy_in(bytes.as_ptr(), bytes.len()) };
            assert!(producer.publish());
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            std::hint::black_box(doorbell::is_awaited(&self.segment));
            return;
        }
    }

    /// Up to as many bytes as there is room for; how many.
    fn receive(&self, into: &mut [u8]) -> usize {
        loop {
            let mut consumer = if self.looks.seen {
                Consumer::open_seen(&self.segment, &self.tail).expect("sane")
            } else {
                Consumer::open(&self.segment).expect("sane")
            };
            if consumer.available() == 0 && !self.looks.rest.is_zero() {
                let start = Instant::now();
                while start.elapsed() < self.looks.rest {
                    std::hint::spin_loop();
                }
            }
            if consumer.available() < into.len() as u64 {
                consumer.refresh().expect("sane");
            }
            // SAFETY: a live slice.
            let count = unsafe { consumer.copy_out(into.as_mut_ptr(), into.len()) };
            assert!(consumer.publish().is_some());
            if count > 0 {
                return count;
            }
            std::hint::spin_loop();
        }
    }
}

fn round_trip(looks: Looks) -> f64 {
    let (ours, fd) = ends();
    let ours = End::new(ours, looks);
    let other = move || {
        let theirs = End::new(other_end(fd), looks);
        let mut bytes = [0; SIZE];
        for _ in 0..COUNT {
            theirs.receive(&mut bytes);
            theirs.send(&bytes);
        }
    };
    let own = || {
        let mut bytes = [1; SIZE];
        for _ in 0..COUNT {
            ours.send(&bytes);
            ours.receive(&mut bytes);
        }
    };
    race(COUNT, own, other)
}

fn stream(looks: Looks) -> f64 {
    let (ours, fd) = ends();
    let ours = End::new(ours, looks);
    let other = move || {
        let theirs = End::new(other_end(fd), looks);
        let (mut bytes, mut got) = (vec![0; CAPACITY as usize], 0);
        while got < COUNT as usize * SIZE {
            got += theirs.receive(&mut bytes);
        }
        theirs.send(&[1]);
    };
    let own = || {
        let bytes = [1; SIZE];
        for _ in 0..COUNT {
            ours.send(&bytes);
        }
        ours.receive(&mut [0]);
    };
    race(COUNT, own, other)
}

fn variants(measure: fn(Looks) -> f64, rest: Duration) -> Group {
    let chosen = Looks { rest, ..CHOSEN };
    let variant = |name: &str, looks: Looks| -> Variant { (name.to_owned(), Box::new(move || measure(looks))) };
    Group::measure(vec![
        variant("believed, and an empty ring begins anew", chosen),
        variant("looked at each time", Looks { seen: false, ..chosen }),
        variant("believed, but through all of the ring's memory", Looks { warm: false, ..chosen }),
        variant("looked at each time, through all of the ring's memory", Looks { seen: false, warm: false, ..chosen }),
    ])
}

pub(crate) fn round_trips() -> Group {
    variants(round_trip, Duration::ZERO)
}

pub(crate) fn streams() -> Group {
    variants(stream, Duration::from_micros(2))
}

pub(crate) fn rests() -> Group {
    let rest = |nanoseconds: u64| -> Variant {
        let looks = Looks { rest: Duration::from_nanos(nanoseconds), ..CHOSEN };
        (format!("{nanoseconds} ns"), Box::new(move || stream(looks)))
    };
    Group::measure([2000, 0, 250, 500, 1000, 4000, 8000].map(rest).into())
}
