//! Takes a calibration: each measurement is two processes of our own, plain and with the library in turn, again and again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::peer::{Outcome, PATIENCE, Task};
use super::{Cost, Point, Shape, Spread};
use crate::names::SocketName;

/// Sizes of messages: powers of four up to 1 MiB.
const SIZES: [usize; 11] = [1, 4, 16, 64, 256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20];
/// What both ends compute for each round trip where that is varied, microseconds, and the size of those messages.
const PAUSES_US: [u64; 5] = [10, 40, 150, 600, 2500];
const PAUSED_SIZE: usize = 64;
/// Operations before the clocks start, unless they are of more bytes than [`WARM_UP_BYTES`], or take longer than [`WARM_UP_US`].
const WARM_UP: u64 = 1000;
const WARM_UP_LEAST: u64 = 16;
const WARM_UP_BYTES: u64 = 16 << 20;
const WARM_UP_US: u64 = 40_000;
/// What the library logs once the client's bytes go through a ring.
const UPGRADED: &str = "upgraded: sends through shared memory";

/// How to measure.
pub(crate) struct Plan {
    pub(crate) library: PathBuf,
    pub(crate) rounds: u32,
    /// Length of one measurement.
    pub(crate) time: Duration,
}

/// What one point is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    shape: Shape,
    size: usize,
    pause_us: u64,
    one_cpu: bool,
}

/// Everything that is measured.
pub(crate) fn places() -> Vec<Place> {
    let shapes = [Shape::RoundTrip, Shape::Events, Shape::Stream].into_iter();
    let point = |shape, size| Place { shape, size, pause_us: 0, one_cpu: false };
    let sizes = shapes.clone().flat_map(|shape| SIZES.into_iter().map(move |size| point(shape, size)));
    let paused = move |shape| PAUSES_US.into_iter().map(move |pause_us| Place { pause_us, ..point(shape, PAUSED_SIZE) });
    let waits = shapes.clone().take(2).flat_map(paused);
    sizes.chain(waits).chain(shapes.map(|shape| Place { one_cpu: true, ..point(shape, PAUSED_SIZE) })).collect()
}

/// The CPUs of server and client: the first two that we may run on.
fn cpus(one: bool) -> anyhow::Result<[Option<usize>; 2]> {
    let allowed = sched_getaffinity(None).context("cannot ask which CPUs there are")?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = cpus.next();
    Ok([first, if one { first } else { cpus.next().or(first) }])
}

impl Plan {
    /// One point of the calibration.
    ///
    /// # Errors
    /// An end fails or hangs, or the library does not accelerate it: the message says why.
    pub(crate) fn measure(&self, place: Place) -> anyhow::Result<Point> {
        let Place { shape, size, pause_us, one_cpu } = place;
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..self.rounds {
            for (preloaded, outcomes) in [false, true].into_iter().zip(&mut rounds) {
                let kind = if preloaded { "with the library" } else { "plain" };
                outcomes.push(
                    self.once(place, preloaded).with_context(|| format!("measuring {} of {size} bytes, {kind}", shape.name()))?,
                );
            }
        }
        let [plain, rings] = &rounds;
        let saved = plain.iter().zip(rings).map(|(plain, rings)| tenth(plain.time - rings.time)).collect();
        let saved_ns = Spread::of(saved).context("no round")?;
        Ok(Point { shape, bytes: size as u64, pause_us, one_cpu, plain: cost(plain)?, rings: cost(rings)?, saved_ns })
    }

    fn once(&self, place: Place, preloaded: bool) -> anyhow::Result<Round> {
        let directory = tempfile::tempdir().context("no directory for a socket: is TMPDIR right?")?;
        let Place { shape, size, pause_us, one_cpu } = place;
        let [server_cpu, client_cpu] = cpus(one_cpu)?;
        let mut task = Task {
            server: true,
            shape,
            cpu: server_cpu,
            size,
            think_ns: pause_us * 1000 / 2,
            warm_up: 0,
            milliseconds: u64::try_from(self.time.as_millis())?,
            socket: directory.path().join("socket"),
        };
        let messages = task.messages_per_operation();
        let most = (WARM_UP_BYTES / (size as u64 * messages)).min(WARM_UP_US.checked_div(pause_us).unwrap_or(WARM_UP));
        task.warm_up = most.clamp(WARM_UP_LEAST, WARM_UP / messages.min(WARM_UP / WARM_UP_LEAST));
        let log = directory.path().join("log");
        let server = self.start(&task, preloaded.then_some(&log))?;
        (task.server, task.cpu) = (false, client_cpu);
        let client = self.start(&task, preloaded.then_some(&log))?;
        let deadline = Instant::now() + PATIENCE + self.time;
        let asked = client.finish(deadline).context("the client")?;
        let served = server.finish(deadline).context("the server")?;
        if preloaded {
            accelerated(&log)?;
        }
        ensure!(asked.operations > 0 && served.operations > 0, "no operation was finished");
        let done = asked.operations as f64 * messages as f64;
        let computed = task.think_ns as f64;
        let each = |seconds: f64| seconds * 1e9 / done;
        Ok(Round {
            time: tenth(each(asked.seconds) - 2.0 * computed),
            client_cpu: tenth(each(asked.cpu_seconds) - computed),
            server_cpu: tenth(served.cpu_seconds * 1e9 / (served.operations as f64 * messages as f64) - computed),
        })
    }

    fn start(&self, task: &Task, log: Option<&PathBuf>) -> anyhow::Result<Peer> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.arg("bench-end").arg(serde_json::to_string(task)?);
        for (name, _) in std::env::vars_os().filter(|(name, _)| steers_the_library(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        if let Some(log) = log {
            let name = SocketName::Path(task.socket.as_os_str().as_encoded_bytes().to_vec());
            let pattern = name.to_pattern().context("TMPDIR has no name that USE_TSSX can hold")?;
            command.env("LD_PRELOAD", &self.library).env("USE_TSSX", pattern).env("TSSX_LOG", log);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Peer(command.spawn().context("cannot start this program again")?))
    }
}

fn steers_the_library(name: &str) -> bool {
    name == "LD_PRELOAD" || name == "USE_TSSX" || name.starts_with("TSSX_")
}

/// A tenth of a nanosecond is less than the clock tells, and a short number reads back from JSON as it was.
fn tenth(nanoseconds: f64) -> f64 {
    (nanoseconds * 10.0).round() / 10.0
}

/// One run of one measurement, nanoseconds of one operation.
struct Round {
    time: f64,
    client_cpu: f64,
    server_cpu: f64,
}

fn cost(rounds: &[Round]) -> anyhow::Result<Cost> {
    let of = |what: fn(&Round) -> f64| Spread::of(rounds.iter().map(what).collect()).context("no round");
    Ok(Cost {
        time_ns: of(|round| round.time)?,
        client_cpu_ns: of(|round| round.client_cpu)?.median,
        server_cpu_ns: of(|round| round.server_cpu)?.median,
    })
}

/// What was measured with the library is worth nothing if no byte went through a ring.
fn accelerated(log: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    if text.contains(UPGRADED) {
        return Ok(());
    }
    if text.is_empty() {
        bail!(
            "the library was not loaded, or found nothing to select: is it built for this machine, and has tssx-trace no file capabilities (getcap), with which ld.so ignores LD_PRELOAD?"
        );
    }
    bail!("the connection was not accelerated; the library says:\n{}", text.trim_end())
}

/// An end that is killed and reaped if it is left early.
struct Peer(Child);

impl Peer {
    fn finish(mut self, deadline: Instant) -> anyhow::Result<Outcome> {
        while self.0.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "it does not end, and was killed");
            std::thread::sleep(Duration::from_millis(2));
        }
        // It has ended, and prints less than a pipe holds.
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            let mut text = String::new();
            pipe.map(|pipe| pipe.read_to_string(&mut text)).transpose().map(|_| text)
        };
        let text = read(self.0.stdout.as_mut().map(|pipe| pipe as _))?;
        let errors = read(self.0.stderr.as_mut().map(|pipe| pipe as _))?;
        let status = self.0.wait()?;
        ensure!(status.success(), "it failed ({status}): {}", errors.trim_end());
        serde_json::from_str(&text).with_context(|| format!("it printed {text:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_accelerated_is_told_with_the_reason() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("log");
        assert!(accelerated(&log).expect_err("no log").to_string().contains("not loaded"));
        std::fs::write(&log, "tssx: pid 1: fd 3 /x: on the kernel socket for good: no-memory\n").expect("written");
        assert!(accelerated(&log).expect_err("plain").to_string().contains("no-memory"));
        std::fs::write(&log, format!("tssx: pid 1: fd 3 /x: {UPGRADED}\n")).expect("written");
        assert!(accelerated(&log).is_ok());
    }
}
