//! How a client takes its figures: first the rate and the CPU time of both ends, undisturbed; then, in a pass of its own, how long
//! single messages take, because to read the clock twice for each would slow the fast ones down.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::Load;
use crate::figures::{Cpu, Figures, Latency, median};

/// Operations before the clock starts: past the upgrade, with warm caches.
const WARM_UP: u64 = 2000;
/// Bytes after which the warm-up ends earlier.
const WARM_UP_BYTES: u64 = 32 << 20;
/// Operations before the clock starts, however large they are: past the upgrade.
const WARM_UP_LEAST: u64 = 20;
/// The clock is read once in so many operations.
const CLOCK_EVERY: u64 = 32;
/// The part of the measuring time that single messages are then looked at for.
const SAMPLED_PART: u32 = 4;
/// Longest time that a histogram tells apart, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;
/// Readings of the clock that tell what reading it takes.
const CALIBRATIONS: usize = 1001;

/// CPU time of this process and, where one is named, of the server.
pub(super) struct CpuTime {
    client: f64,
    server: f64,
}

impl CpuTime {
    /// As it is now.
    pub(super) fn now(load: &Load) -> Result<Self> {
        let client = seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
        let server = match load.server {
            Some(id) => seconds(clock_getcpuclockid(Pid::from_raw(id)).with_context(|| format!("no process {id}"))?)?,
            None => 0.0,
        };
        Ok(Self { client, server })
    }

    /// What has gone since, for so many messages.
    pub(super) fn until_now(&self, load: &Load, messages: f64) -> Result<Cpu> {
        let now = Self::now(load)?;
        Ok(Cpu { messages, client: now.client - self.client, server: now.server - self.server })
    }
}

fn seconds(clock: ClockId) -> Result<f64> {
    Ok(Duration::from(clock_gettime(clock)?).as_secs_f64())
}

/// Operations to warm up with: fewer of large messages, and of those that are many at once.
pub(super) fn warm_up(load: &Load) -> u64 {
    let bytes = (load.place.size * load.connections) as u64;
    (WARM_UP / load.connections as u64).min(WARM_UP_BYTES / bytes.max(1)).max(WARM_UP_LEAST)
}

/// Runs `operation`, which is so many `messages`, to warm up, then for the time asked for. The value is messages per second.
pub(super) fn rate(load: &Load, warm_up: u64, messages: f64, mut operation: impl FnMut() -> Result<()>) -> Result<Figures> {
    for _ in 0..warm_up {
        operation()?;
    }
    let (cpu, start, limit) = (CpuTime::now(load)?, Instant::now(), Duration::from_millis(load.milliseconds));
    let mut count = 0_u64;
    let elapsed = loop {
        // Where an operation is many messages, 32 of them would take far longer than asked for.
        for _ in 0..(CLOCK_EVERY / (messages as u64).max(1)).max(1) {
            operation()?;
            count += 1;
        }
        let elapsed = start.elapsed();
        if elapsed >= limit {
            break elapsed;
        }
    };
    let all = count as f64 * messages;
    Ok(Figures { cpu: Some(cpu.until_now(load, all)?), ..Figures::of(all / elapsed.as_secs_f64()) })
}

/// Looks at single messages for a part of the measuring time; `operation` notes how long each took.
pub(super) fn sampled(load: &Load, mut operation: impl FnMut(&mut Samples) -> Result<()>) -> Result<Option<Latency>> {
    let mut samples = Samples::new()?;
    let (start, limit) = (Instant::now(), Duration::from_millis(load.milliseconds) / SAMPLED_PART);
    while start.elapsed() < limit {
        operation(&mut samples)?;
    }
    Ok(Some(samples.latency()))
}

/// How long single messages took.
pub(super) struct Samples {
    times: Histogram<u64>,
    /// What an empty interval shows, in nanoseconds.
    clock: u64,
}

impl Samples {
    /// None yet.
    pub(super) fn new() -> Result<Self> {
        let empty = || Instant::now().elapsed().as_nanos() as f64;
        let clock = median(&(0..CALIBRATIONS).map(|_| empty()).collect::<Vec<_>>()) as u64;
        Ok(Self { times: Histogram::new_with_max(LONGEST, 3)?, clock })
    }

    /// One message that was begun at `start` and is over now.
    pub(super) fn note(&mut self, start: Instant) {
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(LONGEST);
        self.times.saturating_record(nanoseconds.saturating_sub(self.clock));
    }

    /// Their percentiles.
    pub(super) fn latency(&self) -> Latency {
        let at = |quantile| self.times.value_at_quantile(quantile) as f64;
        // The slowest of a hundred is one message, and says little; of fewer it says nothing.
        let among = |count, quantile| (self.times.len() >= count).then(|| at(quantile));
        Latency { p50: at(0.5), p99: among(100, 0.99), p999: among(1000, 0.999) }
    }
}
