//! Two pinned threads, rounds that alternate, medians.

#![allow(unsafe_code, reason = "pins threads")]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

/// Rounds of each variant.
const ROUNDS: usize = 9;

/// A variant: its name, and what measures it once.
pub(crate) type Variant = (String, Box<dyn Fn() -> f64>);

/// Variants of one thing, the chosen one first.
pub(crate) struct Group {
    rows: Vec<(String, f64)>,
}

impl Group {
    /// Measures each variant in turn, over and over: nanoseconds for each message.
    pub(crate) fn measure(variants: Vec<Variant>) -> Self {
        let mut all = vec![Vec::new(); variants.len()];
        for _ in 0..ROUNDS {
            for ((_, variant), figures) in variants.iter().zip(&mut all) {
                figures.push(variant());
            }
        }
        let median = |mut figures: Vec<f64>| {
            figures.sort_by(f64::total_cmp);
            figures.get(ROUNDS / 2).copied().unwrap_or(f64::NAN)
        };
        Self { rows: variants.into_iter().map(|(name, _)| name).zip(all.into_iter().map(median)).collect() }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.rows.first().map_or(f64::NAN, |row| row.1);
        for (name, figure) in &self.rows {
            writeln!(to, "  {figure:10.1} ns  {:6.2}×  {name}", figure / first)?;
        }
        Ok(())
    }
}

/// Runs the calling thread on one CPU. Where there is only one, both threads share it, and figures mean nothing.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: a local set; 0 is the calling thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0, "this needs CPUs 0 and 1");
    }
}

/// Runs `other` on CPU 1 and `own` here on CPU 0 until both are done: nanoseconds of `own` for each of `count`.
pub(crate) fn race(count: u64, own: impl FnOnce(), other: impl FnOnce() + Send + 'static) -> f64 {
    let ready = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&ready);
    let thread = std::thread::spawn(move || {
        pin(1);
        there.store(true, Release);
        other();
    });
    pin(0);
    while !ready.load(Acquire) {
        std::hint::spin_loop();
    }
    let start = Instant::now();
    own();
    let elapsed = start.elapsed();
    thread.join().expect("the other thread ends");
    elapsed.as_nanos() as f64 / count as f64
}
