//! Low rates: a message is sent and read back, then the client sleeps until the next is due. Here spinning cannot pay, and must
//! not cost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

use super::blocking::round_trip;
use super::meter::{CpuTime, Samples};
use super::{Load, Pinned};
use crate::figures::Figures;

/// Messages without a pause before the pace is low: past the upgrade.
const FAST: u32 = 200;
/// Least messages that are measured, however low the rate is.
const FEWEST: u32 = 3;

/// Two figures: the median round trip in microseconds, and CPU microseconds of both ends for a message.
pub(super) fn client(load: &Load, _: Pinned) -> Result<Vec<Figures>> {
    set_timerslack(1)?; // the usual 50 µs would be half of the pause at 10 000 messages a second
    let mut stream = load.connect()?;
    let (sent, mut back) = load.messages();
    for _ in 0..FAST {
        round_trip(&mut stream, &sent, &mut back)?;
    }
    let measured = u32::try_from(u64::from(load.rate) * load.milliseconds / 1000)?.max(FEWEST);
    let passed_over = (load.rate / 10).max(1); // whoever adapts to the pace has done so
    let mut samples = Samples::new()?;
    let mut slots = Slots { due: now()?, pause: Duration::from_secs(1) / load.rate };
    for _ in 0..passed_over {
        slots.sleep()?;
        round_trip(&mut stream, &sent, &mut back)?;
    }
    let cpu = CpuTime::now(load)?;
    for _ in 0..measured {
        slots.sleep()?;
        let start = Instant::now();
        round_trip(&mut stream, &sent, &mut back)?;
        samples.note(start);
    }
    let cpu = cpu.until_now(load, f64::from(measured))?;
    ensure!(sent == back, "the echo is not what was sent");
    let latency = samples.latency();
    let messages = Figures { latency: Some(latency), cpu: Some(cpu), ..Figures::of(latency.p50 / 1e3) };
    Ok(vec![messages, Figures::of(cpu.per_message() * 1e6)])
}

/// When messages are due.
struct Slots {
    due: Duration,
    pause: Duration,
}

impl Slots {
    /// Sleeps until the next message is due. One that should have gone already is left out: none follows without a pause.
    fn sleep(&mut self) -> Result<()> {
        let now = now()?;
        self.due += self.pause;
        while self.due <= now {
            self.due += self.pause;
        }
        let until = TimeSpec::from_duration(self.due);
        loop {
            match clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &until) {
                Err(Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }
}

fn now() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?))
}
