//! What the machine allows, measured without any ring.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use crate::support::{Group, race};

const COUNT: u64 = 300_000;

#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

pub(crate) fn limits() -> Group {
    Group::measure(vec![
        ("ping-pong of two lines between two CPUs, there and back".to_owned(), Box::new(ping_pong)),
        ("fence between a store and a load, on a line of one's own".to_owned(), Box::new(own_fence)),
    ])
}

fn ping_pong() -> f64 {
    let lines = Arc::new([Line::default(), Line::default()]);
    let theirs = Arc::clone(&lines);
    let other = move || {
        for round in 1..=COUNT {
            while theirs[0].0.load(Acquire) != round {
                std::hint::spin_loop();
            }
            theirs[1].0.store(round, Release);
        }
    };
    let own = || {
        for round in 1..=COUNT {
            lines[0].0.store(round, Release);
            while lines[1].0.load(Acquire) != round {
                std::hint::spin_loop();
            }
        }
    };
    race(COUNT, own, other)
}

fn own_fence() -> f64 {
    let line = Line::default();
    std::hint::black_box(&line);
    let own = || {
        for round in 1..=COUNT {
            line.0.store(round, Relaxed);
            fence(SeqCst);
        }
    };
    race(COUNT, own, || {})
}
