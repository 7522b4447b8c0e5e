//! What this machine can do at best: no ring is faster than a cache line that goes to and fro between two CPUs, and no stream than
//! copying.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::workload::run_on;

/// Round trips of one measurement.
const ROUND_TRIPS: u32 = 200_000;
/// How long one measurement of copying takes.
const COPYING: Duration = Duration::from_millis(60);
/// Measurements, of which the best is told: what else runs can only make them worse.
const TRIALS: usize = 5;
/// A copy that stays in the cache of a CPU, and one that does not fit any.
const SMALL: usize = 64 << 10;
const LARGE: usize = 64 << 20;

/// The limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Nanoseconds of a round trip between two CPUs, one atomic each way; not there with one CPU.
    pub ping_pong: Option<f64>,
    /// Bytes a second of copying 64 KiB again and again.
    pub copy_cached: f64,
    /// Bytes a second of copying 64 MiB.
    pub copy_large: f64,
}

impl Limits {
    /// Measures them, in about a second.
    pub(super) fn measure() -> Result<Self> {
        let two = thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        let round_trips = if two { (0..TRIALS).map(|_| ping_pong()).collect::<Result<Vec<_>>>()? } else { Vec::new() };
        let copies = |size| (0..TRIALS).map(|_| copying(size)).fold(0.0, f64::max);
        Ok(Self { ping_pong: round_trips.into_iter().reduce(f64::min), copy_cached: copies(SMALL), copy_large: copies(LARGE) })
    }

    /// For a person.
    pub(super) fn shown(&self) -> String {
        let ping_pong = self.ping_pong.map_or_else(|| "not measured (one CPU)".to_owned(), |time| format!("{time:.0} ns"));
        let [small, large] = [self.copy_cached, self.copy_large].map(|rate| rate / 1e9);
        format!(
            "round trip of one atomic between two CPUs {ping_pong}; copying {small:.1} GB/s within 64 KiB, {large:.1} GB/s of 64 MiB"
        )
    }
}

/// A line of its own: neither counter shares its cache line, nor the pair of lines that is fetched together, with the other.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU32);

fn ping_pong() -> Result<f64> {
    let (there, back) = (Line::default(), Line::default());
    thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let pinned = run_on(&[1]);
            // Answers even where it could not be pinned: the other waits.
            for round in 1..=ROUND_TRIPS {
                wait_for(&there, round);
                back.0.store(round, Ordering::Release);
            }
            pinned
        });
        let asking = scope.spawn(|| {
            let pinned = run_on(&[0]);
            let start = Instant::now();
            for round in 1..=ROUND_TRIPS {
                there.0.store(round, Ordering::Release);
                wait_for(&back, round);
            }
            pinned.map(|()| start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUND_TRIPS))
        });
        let [answered, time] = [answering.join().map(|pinned| pinned.map(|()| 0.0)), asking.join()]
            .map(|joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        answered?;
        time
    })
}

fn wait_for(line: &Line, round: u32) {
    while line.0.load(Ordering::Acquire) != round {
        spin_loop();
    }
}

fn copying(size: usize) -> f64 {
    let (from, mut to) = (vec![0x5A_u8; size], vec![0_u8; size]);
    to.copy_from_slice(&from);
    let (start, mut bytes) = (Instant::now(), 0.0);
    while start.elapsed() < COPYING {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        bytes += size as f64;
    }
    bytes / start.elapsed().as_secs_f64()
}
