//! `cargo xtask exchange`: two processes exchange gigabytes in both directions, in chunks of random sizes by random calls, over
//! connection after connection, with upgrades and demotions forced at random moments; and not a byte may be wrong.
//!
//! The parent starts pairs of processes with random settings of the library ([`exchange`]). Each end derives the same
//! [`plan`] for each connection from the seed, and has a thread that sends ([`Sender`]) and one that receives and checks
//! ([`receive`]) bytes that tell where they belong ([`pattern`]). [`watch`] notices a stall. At the end each process reads its own
//! ledger ([`counts`]): that connections were upgraded and put back is part of the result.

mod counts;
mod pattern;
mod plan;
mod raw;
mod transfer;
mod watch;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

pub(crate) use counts::{Counts, Ledger, SlotCopy};
pub(crate) use pattern::Pattern;
pub(crate) use plan::{Demotion, Dice, Plan};
pub(crate) use raw::received;
pub(crate) use transfer::{Sender, receive};
pub(crate) use watch::{Half, Watch};

use crate::environment::without_library;
use crate::{build, run};

/// Pairs of processes, one after the other, that share the bytes.
const PAIRS: u64 = 8;
/// Longest that the pairs may take for each gibibyte, and besides. A stall is noticed long before.
const DEADLINE_PER_GIB: Duration = Duration::from_secs(60);
const DEADLINE_BESIDES: Duration = Duration::from_secs(60);
/// How long a connector tries to reach its acceptor.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// Exit code after a wrong byte or an unexpected answer.
const FAILED: i32 = 1;
const GIB: f64 = (1_u64 << 30) as f64;

/// Options of `exchange`.
#[derive(Args)]
pub(crate) struct Options {
    /// Gibibytes to move, both directions together
    #[arg(long, default_value_t = 4.0)]
    gib: f64,
    /// What is done is determined by this number, as far as the machine's timing lets it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The library to use; built first where it is not given
    #[arg(long, conflicts_with = "plain")]
    library: Option<PathBuf>,
    /// Only this, of what a ring cannot do; may be given several times. Default: everything
    #[arg(long)]
    demotion: Vec<Demotion>,
    /// Nothing that a ring cannot do
    #[arg(long, conflicts_with = "demotion")]
    no_demotion: bool,
    /// Without the library: what the kernel's socket does with the same plan
    #[arg(long)]
    plain: bool,
}

/// Options of one end.
#[derive(Args)]
pub(crate) struct EndOptions {
    /// Socket to bind or to connect to
    #[arg(long)]
    socket: PathBuf,
    /// Whether this end binds and accepts
    #[arg(long)]
    accept: bool,
    /// Seed of the plans
    #[arg(long)]
    seed: u64,
    /// Bytes to move, both directions together
    #[arg(long)]
    bytes: u64,
    /// What a ring cannot do and the plans may hold
    #[arg(long)]
    demotion: Vec<Demotion>,
}

impl EndOptions {
    fn name(&self) -> &'static str {
        if self.accept { "acceptor" } else { "connector" }
    }
}

/// Runs the exchange and prints what it moved.
///
/// # Errors
/// A wrong byte, a stall, an unexpected answer of the socket, or nothing that was upgraded or put back.
pub(crate) fn exchange(options: &Options) -> Result<()> {
    ensure!(options.gib > 0.0, "--gib must be positive");
    let library = build::library(options.library.as_deref(), options.plain)?;
    let demotions = match (options.no_demotion, options.demotion.as_slice()) {
        (true, _) => &[],
        (false, []) => Demotion::value_variants(),
        (false, some) => some,
    };
    let total = (options.gib * GIB) as u64;
    let start = Instant::now();
    let mut sum = Counts::default();
    for pair in 0..PAIRS {
        let mut dice = Dice::new(options.seed, pair);
        // Below 4 a connection that has carried one message already tries; 0 never spins.
        let settings = [("TSSX_UPGRADE_AFTER", dice.size(64)), ("TSSX_SPIN_US", dice.pick(&[0, 5, 40, 40, 1000]))];
        let seed = dice.next();
        let counts = play(library.as_deref(), settings, demotions, seed, total / PAIRS)
            .with_context(|| format!("pair {pair} of --gib {} --seed {}, with {settings:?}", options.gib, options.seed))?;
        sum.add(&counts);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{:.2} GiB in {seconds:.1} s ({:.2} GiB/s), {} connections, {} ends upgraded, {} ends put back, {:.1} % through rings; reasons: {}",
        sum.bytes as f64 / GIB,
        sum.bytes as f64 / GIB / seconds,
        sum.connections,
        sum.upgraded,
        sum.demoted(),
        sum.ring_share(),
        sum.reasons(),
    );
    if library.is_some() {
        // What is sent by a descriptor that came out of another socket is not counted.
        ensure!(
            sum.ring_bytes + sum.kernel_bytes <= sum.bytes,
            "the ledgers count {} + {} bytes",
            sum.ring_bytes,
            sum.kernel_bytes
        );
        // A library may well learn to do one of those things with a ring; not all.
        let put_back = sum.demoted() > 0 || demotions.len() < Demotion::value_variants().len();
        ensure!(sum.upgraded > 0 && put_back, "nothing was upgraded, or nothing put back");
    }
    println!("not a byte wrong");
    Ok(())
}

/// Runs one pair of processes; the sums of both ends.
fn play(library: Option<&Path>, settings: [(&str, u64); 2], demotions: &[Demotion], seed: u64, bytes: u64) -> Result<Counts> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("socket");
    let deadline = Instant::now() + DEADLINE_BESIDES + DEADLINE_PER_GIB.mul_f64(bytes as f64 / GIB);
    let start = |accept: bool| -> Result<_> {
        let mut command = Command::new(std::env::current_exe().context("cannot name our own program")?);
        command.arg("exchange-end").arg("--socket").arg(&socket).args(["--seed", &seed.to_string(), "--bytes", &bytes.to_string()]);
        for demotion in demotions.iter().filter_map(ValueEnum::to_possible_value) {
            command.args(["--demotion", demotion.get_name()]);
        }
        if accept {
            command.arg("--accept");
        }
        without_library(&mut command);
        if let Some(library) = library {
            command.env("LD_PRELOAD", library).env("USE_TSSX", &socket);
            command.envs(settings.map(|(name, value)| (name, value.to_string())));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let text = run::shown(&command);
        command.spawn().with_context(|| format!("cannot start `{text}`"))
    };
    let (mut acceptor, mut connector) = (start(true)?, start(false)?);
    // The first that fails says why; the other is of no use then.
    let mut failed: Option<(&str, ExitStatus)> = None;
    while failed.is_none() && Instant::now() < deadline {
        let ended = [("acceptor", acceptor.try_wait()?), ("connector", connector.try_wait()?)];
        failed =
            ended.into_iter().find_map(|(name, status)| status.filter(|status| !status.success()).map(|status| (name, status)));
        if ended.iter().all(|(_, status)| status.is_some()) {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let mut sum = Counts::default();
    for child in [&mut acceptor, &mut connector] {
        // Gone already is what we want.
        let _ = child.kill();
        let status = child.wait()?;
        if failed.is_none() {
            ensure!(status.success(), "an end did not finish in time: {status}");
            sum.add(&serde_json::from_reader(child.stdout.take().context("standard output was asked for")?)?);
        }
    }
    if let Some((name, status)) = failed {
        bail!("the {name} failed ({status}); what it said is above");
    }
    sum.connections /= 2;
    Ok(sum)
}

/// Runs one end, and prints its counts as JSON.
///
/// # Errors
/// A wrong byte, or an answer of the socket that does not fit.
pub(crate) fn end(options: &EndOptions) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let watch = Arc::new(Watch::default());
    let name = options.name();
    let guard = Arc::clone(&watch);
    thread::spawn(move || guard.guard(name));
    let counts = connections(options, &watch).with_context(|| format!("{name}: {}", watch.place()))?;
    println!("{}", serde_json::to_string(&counts)?);
    Ok(())
}

fn connections(options: &EndOptions, watch: &Watch) -> Result<Counts> {
    let listener = if options.accept { Some(UnixListener::bind(&options.socket)?) } else { None };
    let (mut number, mut moved, mut sent) = (0, 0, 0);
    while moved < options.bytes {
        let plan = Plan::of(options.seed, number, options.bytes, options.bytes - moved, &options.demotion);
        watch.begins(number, &plan);
        let stream = match &listener {
            Some(listener) => listener.accept()?.0,
            None => connect(&options.socket)?,
        };
        let end = usize::from(options.accept);
        stream.set_nonblocking(plan.nonblocking[end])?;
        let (out, back) = (&plan.directions[end], &plan.directions[1 - end]);
        thread::scope(|scope| {
            scope.spawn(|| or_end(Sender::new(&stream, out, plan.edges[end], watch).run(), watch, options));
            or_end(receive(&stream, back, plan.edges[end], watch), watch, options);
        });
        sent += out.bytes;
        moved += plan.bytes();
        number += 1;
    }
    Counts::of_this_process(number, sent)
}

/// Ends the process where a thread failed: the other may wait for ever for a peer that is told nothing.
fn or_end(result: Result<()>, watch: &Watch, options: &EndOptions) {
    if let Err(error) = result {
        eprintln!("{}: {error:#}: {}", options.name(), watch.place());
        std::process::exit(FAILED);
    }
}

/// Connects to a socket that may not be bound yet, or whose queue may be full.
pub(crate) fn connect(socket: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > CONNECT_DEADLINE => return Err(error).context("cannot connect"),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}
