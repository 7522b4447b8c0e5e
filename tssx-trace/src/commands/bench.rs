//! `bench`: calibrates this host, prints the table and keeps the figures for `suggest` and `verify`.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::calibration::measure::{Plan, places};
use crate::calibration::peer::Task;
use crate::calibration::{Calibration, Point, default_path};
use crate::cli::{BenchArgs, BenchEndArgs};
use crate::library;
use crate::output::{note, result, time};
use crate::progress::{Progress, left};
use crate::screen::{Columns, Screen};

const COLUMNS: Columns = Columns {
    header: &["SHAPE", "BYTES", "COMPUTING", "PLAIN", "RINGS", "RATIO", "SAVED", "CPU PLAIN", "CPU RINGS"],
    numeric: &[1, 2, 3, 4, 5, 6, 7, 8],
    long: &[(0, 12)],
    expendable: &[7, 8],
};

/// Runs the subcommand.
///
/// # Errors
/// Where the library is missing or does not accelerate, a measurement fails, or the file cannot be written.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<u8> {
    if let Some(file) = &args.from {
        print(args, &Calibration::load(file)?)?;
        return Ok(0);
    }
    let path = args.output.clone().map_or_else(default_path, Ok)?;
    let plan = Plan { library: library::find()?, rounds: args.rounds, time: args.time };
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        note("warning: this process may use one CPU only: two ends cannot run at the same time, as they do on other hosts");
    }
    let places = places();
    let all = places.len();
    let mut points = Vec::new();
    let (mut progress, started, mut interrupts) = (Progress::new(true), Instant::now(), Interrupts::listen()?);
    for (done, place) in places.into_iter().enumerate() {
        progress.show(&format!("measuring, {done} of {all}{}", remaining(started.elapsed(), done, all)));
        let point = plan.measure(place);
        // The two ends, which a terminal interrupts as well, may have failed of it.
        ensure!(!interrupts.any(), "interrupted: no calibration was kept");
        points.push(point?);
    }
    drop(progress);
    let calibration = Calibration::new(&plan.library, args.rounds, points);
    print(args, &calibration)?;
    calibration.save(&path)?;
    note(&format!("calibration kept in {}", path.display()));
    Ok(0)
}

fn print(args: &BenchArgs, calibration: &Calibration) -> anyhow::Result<()> {
    Ok(result(&if args.json { calibration.to_json()? } else { render(calibration, Screen::of_stdout()) })?)
}

/// SIGINT and SIGTERM, which end the calibration between two measurements: each has made a socket that it takes away.
struct Interrupts {
    runtime: Runtime,
    signals: [Signal; 2],
}

impl Interrupts {
    fn listen() -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
        let entered = runtime.enter();
        let signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        drop(entered);
        Ok(Self { runtime, signals })
    }

    fn any(&mut self) -> bool {
        let [interrupt, terminate] = &mut self.signals;
        self.runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                () = sleep(Duration::from_millis(1)) => false,
            }
        })
    }
}

/// One of the two processes of a measurement.
///
/// # Errors
/// As [`Task::run`].
pub(crate) fn end(args: &BenchEndArgs) -> anyhow::Result<u8> {
    let task: Task = serde_json::from_str(&args.task).context("bench-end is started by `tssx-trace bench` alone")?;
    if task.size == 0 {
        bail!("a message has at least one byte");
    }
    result(&serde_json::to_string(&task.run()?)?)?;
    Ok(0)
}

/// How long the rest takes if it goes on like this; empty where nothing is done yet.
fn remaining(elapsed: Duration, done: usize, all: usize) -> String {
    if done == 0 { String::new() } else { format!(", about {}", left(elapsed.mul_f64((all - done) as f64 / done as f64))) }
}

fn render(calibration: &Calibration, screen: Screen) -> String {
    let rows: Vec<_> = calibration.points.iter().map(row).collect();
    let mut text = screen.table(&COLUMNS, &rows);
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "\nMedians of {} rounds, plain and rings in turn; time and CPU time (both ends) of one round trip, or of one message of a stream.\n\
         COMPUTING: what both ends did besides for each round trip, subtracted. SAVED: least to most of the rounds.\n\
         Each end had a CPU of its own, save where it says one CPU.",
        calibration.rounds
    );
    let _ = writeln!(text, "Linux {}, {} CPUs, library {}.", calibration.kernel, calibration.cpus, calibration.library);
    text
}

fn row(point: &Point) -> Vec<String> {
    let cpu = |cost: crate::calibration::Cost| time(cost.client_cpu_ns + cost.server_cpu_ns);
    vec![
        point.shape.name().replace('_', " ") + if point.one_cpu { ", one CPU" } else { "" },
        point.bytes.to_string(),
        if point.pause_us == 0 { String::from("-") } else { time(point.pause_us as f64 * 1e3) },
        time(point.plain.time_ns.median),
        time(point.rings.time_ns.median),
        format!("{:.2}", point.plain.time_ns.median / point.rings.time_ns.median.max(f64::MIN_POSITIVE)),
        format!("{} to {}", time(point.saved_ns.least), time(point.saved_ns.most)),
        cpu(point.plain),
        cpu(point.rings),
    ]
}
