//! `cargo xtask kills`: one end of a connection is killed at a random moment, again and again, while the other is blocked in each kind of
//! call in turn; and it must get every byte that was written, then the end, soon.
//!
//! For each round the parent starts a [`victim`] and kills it by its id; the [`survivor`] lives on for many rounds and must keep nothing of
//! them. Both derive the same [`plan`] from the seed and the round's number. What the victim's `write` accepted is noted in a file that its
//! death leaves as it is ([`record`]). `--plain` shows what the kernel's own socket does.

mod calls;
mod forked;
mod plan;
mod record;
mod survivor;
mod times;
mod victim;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

pub(crate) use calls::{Receiver, Sender};
pub(crate) use forked::forked;
pub(crate) use plan::Kind;
pub(crate) use survivor::{End, survive};
pub(crate) use victim::die;

use crate::environment::without_library;
use crate::exchange::Dice;
use crate::{build, run};
use plan::Plan;
use record::Record;
use survivor::{Left, Outcome};
use times::Times;

/// Rounds of one survivor.
const ROUNDS_EACH: u64 = 250;
/// Longest that anything may take that happens at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// Options of `kills`.
#[derive(Args)]
pub(crate) struct Options {
    /// Processes to kill
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// What is done is determined by this number, as far as the machine's timing lets it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first round, to play one of a report again
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only this, of what the survivor is blocked in; may be given several times. Default: everything in turn
    #[arg(long)]
    kind: Vec<Kind>,
    /// The library to use; built first where it is not given
    #[arg(long, conflicts_with = "plain")]
    library: Option<PathBuf>,
    /// Without the library: what the kernel's socket does
    #[arg(long)]
    plain: bool,
}

/// Options of a survivor and of a victim.
#[derive(Args)]
pub(crate) struct EndOptions {
    /// Where sockets and records are
    #[arg(long)]
    directory: PathBuf,
    /// Seed of the plans
    #[arg(long)]
    seed: u64,
    /// Number of the round; a survivor is told each
    #[arg(long, default_value_t = 0)]
    round: u64,
}

impl EndOptions {
    /// The survivor's socket, or a victim's own.
    fn socket(&self, plan: &Plan) -> PathBuf {
        if plan.survivor_accepts { self.directory.join("survivor") } else { self.directory.join(format!("victim-{}", plan.round)) }
    }
}

/// Plays the rounds and prints what was seen.
///
/// # Errors
/// A byte that was written and did not come, a wrong byte, a hang, something that was left behind, or nothing that was accelerated.
pub(crate) fn kills(options: &Options) -> Result<()> {
    let library = build::library(options.library.as_deref(), options.plain)?;
    let (mut times, mut left) = (Times::default(), Left::default());
    let end = options.first + options.count;
    let mut round = options.first;
    while round < end {
        let directory = tempfile::tempdir()?;
        let mut survivor = Survivor::start(library.as_deref(), directory.path(), options.seed, round)?;
        for round in round..end.min(round + ROUNDS_EACH) {
            let plan = Plan::of(options.seed, round);
            if !options.kind.is_empty() && !options.kind.contains(&plan.kind) {
                continue;
            }
            let played = play(&mut survivor, library.as_deref(), directory.path(), options.seed, &plan);
            times.add(&plan, played.with_context(|| format!("--first {round} --seed {}: {plan:?}", options.seed))?);
        }
        left.add(&survivor.finish().with_context(|| format!("after the rounds from {round} on, --seed {}", options.seed))?);
        round += ROUNDS_EACH;
    }
    print!("{times}");
    let counts = &left.counts;
    let rings = counts.ring_bytes + counts.ring_received;
    let all = rings + counts.kernel_bytes + counts.kernel_received;
    let share = rings as f64 * 100.0 / all.max(1) as f64;
    println!(
        "{} killed; no byte lost, nothing left behind; {share:.1} % of the survivors' bytes went through rings",
        times.rounds()
    );
    ensure!(library.is_none() || rings > 0, "nothing was accelerated");
    Ok(())
}

/// The process that lives on.
struct Survivor {
    child: Child,
    rounds: Option<ChildStdin>,
    says: mpsc::Receiver<String>,
}

impl Survivor {
    fn start(library: Option<&Path>, directory: &Path, seed: u64, first: u64) -> Result<Self> {
        let mut command = end_command("kills-survivor", library, directory, seed, first)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", run::shown(&command)))?;
        let (send, says) = mpsc::channel();
        let output = child.stdout.take().context("its output was asked for")?;
        thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let survivor = Self { rounds: child.stdin.take(), child, says };
        ensure!(survivor.hear("that it is ready")? == survivor::READY, "the survivor failed; what it said is above");
        Ok(survivor)
    }

    fn tell(&mut self, round: u64) -> Result<()> {
        let rounds = self.rounds.as_mut().context("not finished yet")?;
        writeln!(rounds, "{round}").and_then(|()| rounds.flush()).context("the survivor does not listen")
    }

    /// Its next line.
    fn hear(&self, what: &str) -> Result<String> {
        self.says.recv_timeout(PATIENCE).map_err(|_| anyhow::anyhow!("the survivor {}: it did not say {what}", self.where_it_is()))
    }

    /// What a person would want to know of one that hangs.
    fn where_it_is(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default();
        format!("is in {} (system call {})", read("wchan"), read("syscall").trim())
    }

    fn finish(mut self) -> Result<Left> {
        drop(self.rounds.take());
        let left: Left = serde_json::from_str(&self.hear("what it has left")?)?;
        ensure!(self.child.wait()?.success(), "the survivor failed");
        ensure!(left.descriptors.is_empty(), "the survivor has descriptors left: {:?}", left.descriptors);
        ensure!(left.segments == 0, "the survivor has {} segments mapped", left.segments);
        Ok(left)
    }
}

impl Drop for Survivor {
    fn drop(&mut self) {
        // Gone already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn end_command(name: &str, library: Option<&Path>, directory: &Path, seed: u64, round: u64) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot name our own program")?);
    command.arg(name).arg("--directory").arg(directory).args(["--seed", &seed.to_string(), "--round", &round.to_string()]);
    without_library(&mut command);
    if let Some(library) = library {
        let mut dice = Dice::new(seed, round);
        command.env("LD_PRELOAD", library).env("USE_TSSX", directory.join("*"));
        command.env("TSSX_UPGRADE_AFTER", dice.pick(&["1", "4", "16"])).env("TSSX_SPIN_US", dice.pick(&["0", "40", "40"]));
    }
    Ok(command)
}

/// One round; how long the survivor took to notice, if that can be told.
fn play(survivor: &mut Survivor, library: Option<&Path>, directory: &Path, seed: u64, plan: &Plan) -> Result<Option<Duration>> {
    let mut command = end_command("kills-victim", library, directory, seed, plan.round)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let record = Record::create(directory)?;
    survivor.tell(plan.round)?;
    let mut victim = command.spawn().with_context(|| format!("cannot start `{}`", run::shown(&command)))?;
    let result = (|| {
        ensure!(survivor.hear("that it is connected")? == survivor::CONNECTED, "the survivor failed; what it said is above");
        record.await_connection()?;
        let target = if plan.kind.is_family() { forked_id(&mut victim)? } else { victim.id() };
        wait(Duration::from_micros(plan.delay_us));
        let killed = now()?;
        kill(Pid::from_raw(target.cast_signed()), Signal::SIGKILL).context("the victim is gone already")?;
        let outcome: Outcome = serde_json::from_str(&survivor.hear("how the round ended")?)?;
        Ok((killed, outcome))
    })();
    // Gone already is what we want; of a family the rest ends by itself.
    let status = if plan.kind.is_family() && result.is_ok() {
        victim.wait()?
    } else {
        let _ = victim.kill();
        victim.wait()?
    };
    let (killed, outcome) = result?;
    ensure!(status.code().is_none_or(|code| code == 0), "the victim failed; what it said is above");
    judge(plan, &record, &outcome)?;
    let noticed = outcome.at_ns.saturating_sub(killed);
    Ok((!plan.kind.is_family()).then_some(Duration::from_nanos(noticed)))
}

/// What was written must have come, and nothing else; and the end must be the kernel's.
fn judge(plan: &Plan, record: &Record, outcome: &Outcome) -> Result<()> {
    if let Some(wrong) = &outcome.wrong {
        bail!("{wrong}");
    }
    let [attempted, accepted] = record.read()?;
    let received = outcome.received;
    if plan.kind.receives() {
        ensure!(received >= accepted, "lost: {accepted} bytes were accepted, {received} came");
        ensure!(received <= attempted, "{received} bytes came of {attempted} that were sent");
    }
    let right: &[End] = match plan.kind {
        Kind::BothWays => &[End::OfFile, End::Reset, End::Broken],
        kind if kind.receives() || kind.is_family() => &[End::OfFile],
        _ => &[End::Reset, End::Broken],
    };
    ensure!(right.contains(&outcome.end), "the end was {:?}", outcome.end);
    Ok(())
}

/// The child of a family says its id first.
fn forked_id(victim: &mut Child) -> Result<u32> {
    let mut line = String::new();
    BufReader::new(victim.stdout.as_mut().context("its output was asked for")?).read_line(&mut line)?;
    line.trim().parse().with_context(|| format!("the victim said {line:?} instead of its child's id"))
}

fn wait(time: Duration) {
    let start = Instant::now();
    if time > Duration::from_micros(200) {
        thread::sleep(time);
    }
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// CLOCK_MONOTONIC, nanoseconds: the same in every process.
fn now() -> Result<u64> {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(time.as_nanos())?)
}
