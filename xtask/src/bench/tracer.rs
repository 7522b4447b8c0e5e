//! What it costs the programs on a host that `tssx-trace discover` watches it: the same operations with it and without, in turn, by
//! threads that live as long as the measurement.
//!
//! In these lines of the table "plain" is not watched, and "preloaded" is watched; nothing is preloaded.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{geteuid, getppid};

use super::Plan;
use crate::build;
use crate::comparison::{Comparison, Row, measure};
use crate::figures::{Figures, median};
use crate::measure::Running;
use crate::workload::run_on;

/// The lines that one run of [`watched`] tells, by what is done.
pub(super) const OPERATIONS: [&str; 5] = [
    "64 B Unix round trip",
    "64 B Unix round trip, both ends on one CPU",
    "connect, request, close: each socket is told of",
    "64 B TCP round trip, loopback",
    "getppid",
];
/// Bytes of a message.
const SIZE: usize = 64;
/// A round is this part of what others take, and there are as many times more: the difference is small, and machines drift.
const SHORTER: u32 = 2;
const MORE: usize = 3;
/// Operations before the clock starts, and between two looks at it: many of the latter have no other program in them.
const WARM_UP: usize = 500;
const BATCH: usize = 100;
/// Longest that the tracer may take to attach.
const ATTACH_DEADLINE: Duration = Duration::from_secs(30);

/// Nanoseconds of each of [`OPERATIONS`], without the tracer and with it; `closer`: while it looks closer.
///
/// # Errors
/// Where the tracer does not run, or says that it lost something.
pub(super) fn watched(rows: &[Row], closer: bool, plan: &Plan) -> Result<Vec<Comparison>> {
    if !geteuid().is_root() {
        eprintln!("not measured: what the tracer costs, for which it must run as root");
        return Ok(Vec::new());
    }
    let tracer = match &plan.tracer {
        Some(tracer) => tracer.canonicalize().with_context(|| format!("no tracer {}", tracer.display()))?,
        None => build::build()?.trace,
    };
    let mut operations = operations(closer)?;
    let time = Duration::from_millis(plan.milliseconds) / SHORTER;
    measure(rows, if plan.quick { plan.rounds } else { plan.rounds * MORE }, |is_watched| {
        let watching = is_watched.then(|| Watching::start(&tracer, closer)).transpose()?;
        let figures = operations.iter_mut().map(|operation| operation.measure(time)).collect();
        watching.map_or(Ok(()), Watching::end)?;
        figures
    })
}

/// Something to do over and over on one CPU.
struct Operation {
    cpu: usize,
    once: Box<dyn FnMut() -> Result<()> + Send>,
}

impl Operation {
    /// Nanoseconds of one, the median of batches, by a thread of its own: the tracer, which this one starts, may run on any CPU.
    fn measure(&mut self, time: Duration) -> Result<Figures> {
        let Self { cpu, once } = self;
        let run = move || -> Result<Figures> {
            run_on(&[*cpu])?;
            (0..WARM_UP).try_for_each(|_| once())?;
            let (mut now, mut batches) = (Instant::now(), Vec::new());
            let end = now + time;
            while now < end {
                (0..BATCH).try_for_each(|_| once())?;
                let then = std::mem::replace(&mut now, Instant::now());
                batches.push((now - then).as_nanos() as f64 / BATCH as f64);
            }
            Ok(Figures::of(median(&batches)))
        };
        thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

/// In the order of [`OPERATIONS`], once for each value of `closer`; the other ends wait in threads that end with this process.
fn operations(closer: bool) -> Result<Vec<Operation>> {
    let other = usize::from(thread::available_parallelism().is_ok_and(|count| count.get() > 1));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let tcp = TcpStream::connect(listener.local_addr()?)?;
    let (served, _) = listener.accept()?;
    for end in [&tcp, &served] {
        end.set_nodelay(true)?;
    }
    let (apart, apart_served) = UnixStream::pair()?;
    let (together, together_served) = UnixStream::pair()?;
    serve(apart_served, other);
    serve(together_served, 0);
    serve(served, other);
    let address = SocketAddr::from_abstract_name(format!("tssx bench {} {closer}", std::process::id()))?;
    let listener = UnixListener::bind_addr(&address)?;
    thread::spawn(move || -> Result<()> {
        run_on(&[other])?;
        loop {
            let (mut stream, _) = listener.accept()?;
            let mut bytes = [0; SIZE];
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)?;
        }
    });
    let connect = move || -> Result<()> { round_trips(UnixStream::connect_addr(&address)?)() };
    let ask = || -> Box<dyn FnMut() -> Result<()> + Send> {
        Box::new(|| {
            getppid();
            Ok(())
        })
    };
    let once = [round_trips(apart), round_trips(together), Box::new(connect), round_trips(tcp), ask()];
    Ok(once.into_iter().map(|once| Operation { cpu: 0, once }).collect())
}

/// Echoes in a thread on that CPU until the other end closes.
fn serve(mut stream: impl Read + Write + Send + 'static, cpu: usize) {
    thread::spawn(move || -> Result<()> {
        run_on(&[cpu])?;
        let mut bytes = [0; SIZE];
        loop {
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)?;
        }
    });
}

fn round_trips(mut stream: impl Read + Write + Send + 'static) -> Box<dyn FnMut() -> Result<()> + Send> {
    let (sent, mut back) = ([0x5A; SIZE], [0; SIZE]);
    Box::new(move || {
        stream.write_all(&sent)?;
        Ok(stream.read_exact(&mut back)?)
    })
}

/// The tracer while it watches.
struct Watching {
    running: Running,
    directory: tempfile::TempDir,
}

impl Watching {
    fn start(tracer: &Path, closer: bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let said = std::fs::File::create(Self::messages(directory.path()))?;
        let mut command = Command::new(tracer);
        command
            .args(["discover", "--duration", "10m", "--closer", if closer { "10m" } else { "0" }, "--record"])
            .arg(directory.path().join("recording"));
        let running = Running::start_with(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said))?;
        let watching = Self { running: running.ended_by(Signal::SIGINT), directory };
        let start = Instant::now();
        while !watching.said()?.contains("attached") {
            if start.elapsed() > ATTACH_DEADLINE {
                bail!("the tracer does not attach: {}", watching.said()?);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(watching)
    }

    /// Ends it; it must have seen everything.
    fn end(self) -> Result<()> {
        drop(self.running);
        let said = std::fs::read_to_string(Self::messages(self.directory.path()))?;
        ensure!(said.contains("recorded") && !said.contains("LOST"), "the tracer says: {said}");
        Ok(())
    }

    fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(Self::messages(self.directory.path()))?)
    }

    fn messages(directory: &Path) -> PathBuf {
        directory.join("messages")
    }
}
