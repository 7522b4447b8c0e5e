//! `cargo xtask hostile`: a peer that is an enemy. It writes into every byte of the segment that it shares with its victim, offers what is no
//! segment, rings without end, comes as another user; and the victim must not crash, touch memory outside, loop, burn CPU, or let another
//! of its connections notice.
//!
//! For each round attacker ([`attack`]) and [`victim`] derive the same [`plan`] from the seed and the round's number. The victim runs the
//! library built with AddressSanitizer and guard pages ([`sanitizer`]), makes [`calls`], and has a connection to somebody honest
//! ([`control`]). What was written where is counted ([`fields`]) and printed. [`bounds`] has the enemies that a call of the victim's would never
//! be done with, if it did not look only so often.

mod attack;
mod board;
mod bounds;
mod calls;
mod control;
mod descriptor;
mod fields;
mod memory;
mod offers;
mod peer;
mod plan;
mod sanitizer;
mod strangers;
mod victim;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, geteuid};
use tssx_core::reason::Reason;

pub(crate) use bounds::{BoundOptions, suffer_bound};
pub(crate) use strangers::{friend, stranger};
pub(crate) use victim::{honest, victim as suffer};

use crate::environment::without_library;
use crate::exchange::{Counts, Dice};
use crate::{paths, run};
use attack::Attacker;
use board::Board;
use calls::Outcome;
use fields::Coverage;
use plan::{Attack, Plan};
use sanitizer::Sanitized;
use victim::Left;

/// Rounds of one victim.
const ROUNDS_EACH: u64 = 400;
/// Mutations that come to every field.
const ALL_FIELDS: u64 = 20_000;
/// Longest that anything may take that happens at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the CPU time of a victim is looked at that has nothing to do, and how much of that it may use.
const LOOK: Duration = Duration::from_millis(8);
const SHARE: u32 = 3;

/// Options of `hostile`.
#[derive(Args)]
pub(crate) struct Options {
    /// Mutations to make, at least
    #[arg(long, default_value_t = 100_000)]
    mutations: u64,
    /// What is done is determined by this number, as far as the machine's timing lets it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first round, to play one of a report again
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// A library to use as it is. Default: one is built with AddressSanitizer and guard pages
    #[arg(long)]
    library: Option<PathBuf>,
}

impl Options {
    /// The short run of `cargo xtask test`.
    pub(crate) fn short() -> Self {
        Self { mutations: 60_000, seed: 1, first: 0, library: None }
    }
}

/// Options of a victim, and of the honest one.
#[derive(Args)]
pub(crate) struct EndOptions {
    /// Where sockets are
    #[arg(long)]
    directory: PathBuf,
    /// Seed of the plans
    #[arg(long)]
    seed: u64,
    /// The board
    #[arg(long)]
    board: Option<String>,
    /// The honest connection has a thread of its own
    #[arg(long)]
    threads: bool,
    /// The user to be; only root can
    #[arg(long)]
    user: Option<u32>,
    /// This end accepts
    #[arg(long)]
    accept: bool,
    /// Processes of somebody else
    #[arg(long)]
    pid: Vec<u32>,
}

/// Sums over all victims.
#[derive(Default)]
struct Sum {
    rounds: u64,
    joined: u64,
    stores: u64,
    longest: Duration,
    calls: u64,
    early: u64,
    still: u64,
    control: u64,
    passed_over: u64,
    errors: BTreeMap<String, u64>,
    counts: Counts,
}

/// Plays rounds until there were enough mutations, and prints what was done.
///
/// # Errors
/// A victim that did what it should not.
pub(crate) fn hostile(options: &Options) -> Result<()> {
    let preload = match &options.library {
        Some(library) => {
            std::fs::canonicalize(library).with_context(|| format!("no library {}", library.display()))?.display().to_string()
        }
        None => Sanitized::build()?.preload(),
    };
    bounds::bounds(&preload)?;
    let (mut coverage, mut sum, mut round, start) = (Coverage::default(), Sum::default(), options.first, Instant::now());
    while coverage.total() < options.mutations {
        let end = round + ROUNDS_EACH;
        let game = Game { options, preload: &preload, first: round };
        let left = game.play(&mut round, end, &mut coverage, &mut sum);
        sum.add(&left.with_context(|| format!("--first {round} --seed {}: {:?}", options.seed, Plan::of(options.seed, round)))?);
    }
    print!("{}", coverage.table());
    println!(
        "{} mutations (--seed {}; {} stores more by what changed all the time) on {} connections in {:.0} s, {} of them with a segment; \
         the victims made {} calls, of which one that must not wait took {:.1} ms at most, {} were still and used no CPU, {} ended early; {} bytes exact on honest connections",
        coverage.total(),
        options.seed,
        sum.stores,
        sum.rounds,
        start.elapsed().as_secs_f64(),
        sum.joined,
        sum.calls,
        sum.longest.as_secs_f64() * 1000.0,
        sum.still,
        sum.early,
        sum.control
    );
    let errors: Vec<_> = sum.errors.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("errors that victims saw: {}", errors.join(", "));
    println!("reasons: {}", sum.counts.reasons());
    if sum.passed_over > 0 {
        println!("SKIPPED: {} rounds that take two users: run as root", sum.passed_over);
    }
    sum.judge(&coverage)?;
    if geteuid().is_root() {
        return strangers::strangers(&preload, options.seed);
    }
    println!("SKIPPED: another user's attacks: run as root");
    Ok(())
}

impl Sum {
    fn add(&mut self, left: &Left) {
        self.control += left.control;
        self.counts.add(&left.counts);
    }

    fn add_round(&mut self, outcome: &Outcome) {
        self.rounds += 1;
        self.calls += outcome.calls;
        self.early += u64::from(outcome.early);
        for (name, count) in &outcome.errors {
            *self.errors.entry(name.clone()).or_default() += count;
        }
    }

    /// What must be true of all rounds together.
    fn judge(&self, coverage: &Coverage) -> Result<()> {
        let reason = |reason: Reason| self.counts.reasons.get(reason as usize).copied().unwrap_or(0);
        ensure!(self.counts.ring_received > 0 && self.counts.ring_bytes > 0, "nothing was accelerated");
        ensure!(
            self.early <= reason(Reason::Corrupt),
            "{} connections brought nothing more before the attacker went, and {} have a reason",
            self.early,
            reason(Reason::Corrupt)
        );
        let counted = self.counts.upgraded + self.counts.reasons.iter().sum::<u64>();
        ensure!(counted >= self.counts.connections, "of {} connections {counted} are counted", self.counts.connections);
        ensure!(reason(Reason::BadSegment) + reason(Reason::PeerNotReady) > 0, "no offer was refused");
        // A handful of rounds cannot come to all of them.
        ensure!(
            coverage.total() < ALL_FIELDS || coverage.untouched().is_empty(),
            "nothing was written to {}",
            coverage.untouched().join(", ")
        );
        Ok(())
    }
}

/// One victim and its rounds.
struct Game<'a> {
    options: &'a Options,
    preload: &'a str,
    first: u64,
}

impl Game<'_> {
    fn play(&self, round: &mut u64, end: u64, coverage: &mut Coverage, sum: &mut Sum) -> Result<Left> {
        let directory = tempfile::tempdir()?;
        let board = Board::create()?;
        let _honest = Reaped(self.command("hostile-honest", directory.path(), &board)?.stdout(Stdio::null()).spawn()?);
        let listener = UnixListener::bind(directory.path().join(victim::ATTACKER))?;
        let mut victim = Victim::start(&mut self.command("hostile-victim", directory.path(), &board)?)?;
        let mut attacker = Attacker {
            directory: directory.path(),
            listener,
            board: &board,
            coverage: std::mem::take(coverage),
            stores: 0,
            longest: Cell::default(),
            joined: 0,
            before: None,
        };
        while *round < end && attacker.coverage.total() < self.options.mutations {
            let plan = Plan::of(self.options.seed, *round);
            let two_users = matches!(plan.attack, Attack::Offer(abuse) if abuse.needs_root());
            if two_users && !geteuid().is_root() {
                sum.passed_over += 1;
            } else {
                let outcome = self.round(&plan, &mut attacker, &mut victim, sum)?;
                sum.add_round(&outcome);
            }
            *round += 1;
        }
        *coverage = std::mem::take(&mut attacker.coverage);
        sum.stores += attacker.stores;
        sum.joined += attacker.joined;
        sum.longest = sum.longest.max(attacker.longest.get());
        victim.finish()
    }

    fn round(&self, plan: &Plan, attacker: &mut Attacker<'_>, victim: &mut Victim, sum: &mut Sum) -> Result<Outcome> {
        attacker.board.set_leaving(false);
        attacker.board.begin(true);
        victim.tell(plan.round)?;
        let attacked = attacker.attack(plan).with_context(|| victim.where_it_is())?;
        if plan.attack == Attack::Still {
            victim.is_still()?;
            sum.still += 1;
        }
        attacker.leave(plan, attacked)?;
        Ok(serde_json::from_str(&victim.hear("how the round ended")?)?)
    }

    fn command(&self, name: &str, directory: &Path, board: &Board) -> Result<Command> {
        let mut command = Command::new(paths::OWN_PROGRAM);
        command.arg(name).arg("--directory").arg(directory).args([
            "--seed",
            &self.options.seed.to_string(),
            "--board",
            &board.path(),
        ]);
        without_library(&mut command);
        let mut dice = Dice::new(self.options.seed, self.first);
        if dice.one_in(2) && name == "hostile-victim" {
            command.arg("--threads");
        }
        command.stdin(Stdio::null()).env("LD_PRELOAD", self.preload).env("USE_TSSX", directory.join("*"));
        command.env("ASAN_OPTIONS", sanitizer::OPTIONS);
        command.env("TSSX_UPGRADE_AFTER", "1").env("TSSX_SPIN_US", dice.pick(&["0", "40", "40"]));
        Ok(command)
    }
}

/// A child that does not outlive us.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Gone already is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The victim, as its parent sees it.
struct Victim {
    child: Reaped,
    rounds: Option<ChildStdin>,
    says: Receiver<String>,
}

impl Victim {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", run::shown(command)))?;
        let (send, says) = mpsc::channel();
        let output = child.stdout.take().context("its output was asked for")?;
        thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut victim = Self { rounds: child.stdin.take(), child: Reaped(child), says };
        ensure!(victim.hear("that it is ready")? == victim::READY, "the victim failed; what it said is above");
        Ok(victim)
    }

    fn tell(&mut self, round: u64) -> Result<()> {
        let rounds = self.rounds.as_mut().context("not finished yet")?;
        writeln!(rounds, "{round}").and_then(|()| rounds.flush()).with_context(|| self.where_it_is())
    }

    /// Its next line.
    fn hear(&mut self, what: &str) -> Result<String> {
        self.says.recv_timeout(PATIENCE).map_err(|_| anyhow::anyhow!("{}: it did not say {what}", self.where_it_is()))
    }

    /// What a person would want to know of one that hangs, or has ended.
    fn where_it_is(&mut self) -> String {
        if let Ok(Some(status)) = self.child.0.try_wait() {
            return format!("the victim has ended: {status}; what it said is above");
        }
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", self.child.0.id())).unwrap_or_default();
        format!("the victim is in {} (system call {})", read("wchan"), read("syscall").trim())
    }

    /// Waits until the victim uses hardly any CPU time: nothing happens on its connection any more.
    fn is_still(&self) -> Result<()> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.child.0.id().cast_signed()))?;
        let used = || clock_gettime(clock).map(Duration::from);
        let start = Instant::now();
        loop {
            let (before, from) = (used()?, Instant::now());
            thread::sleep(LOOK);
            if used()?.saturating_sub(before) < from.elapsed() / SHARE {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("the victim burns CPU time while nothing happens");
            }
        }
    }

    fn finish(mut self) -> Result<Left> {
        drop(self.rounds.take());
        let left: Left = serde_json::from_str(&self.hear("what it has left")?)?;
        ensure!(self.child.0.wait()?.success(), "the victim failed");
        ensure!(left.descriptors == 0, "the victim has {} descriptors left", left.descriptors);
        ensure!(left.segments == 1, "the victim has {} segments mapped, of which one is the honest connection's", left.segments);
        Ok(left)
    }
}
