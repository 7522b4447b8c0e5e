//! Enemies that could keep one call of the victim's going without end, if it did not look only so often: for each bound of tssx-preload's
//! `socket/patience.rs` one, and the error that the call ends with tells that it was this bound, and no other, that has ended it.
//!
//! The calls do not wait, so a bound that is missing shows as another error, or as a victim that says nothing any more.

use std::io::{BufRead, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::{Pid, gettid};
use serde::{Deserialize, Serialize};
use tssx_core::layout::{GONE_CLOSED, STATE_RING};
use tssx_core::reason::Reason;

use super::peer::Peer;
use super::plan::{Attack, MESSAGE, Manner, Plan};
use super::victim::{READY, VICTIM};
use super::{Victim, sanitizer, victim};
use crate::environment::without_library;
use crate::exchange::{Counts, Dice};
use crate::workload::run_on;
use crate::{paths, run};

/// Messages before: enough for both to be in their rings.
const MESSAGES: u64 = 64;
/// Bytes that lie in the ring at each look of [`Enemy::Moving`]: they take long to copy, so that its positions have moved before they are taken.
const GAP: u64 = 50_000;
/// What the victim says when its ring is full.
const FULL: &str = "full";

/// What is done to the victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Enemy {
    /// The ring that the victim reads has moved on whenever it has copied something: `LOOKS_MAX`, for who receives.
    Moving,
    /// The peer reads no more, of which its memory says nothing, and the ring is full: the kernel refuses what would keep the socket
    /// unwritable. `LOOKS_MAX`, for who sends.
    Deaf,
    /// The peer's memory says that it is gone, and its socket is open: `GONE_LOOKS` and `GONE_RESTS`. Without them `LOOKS_MAX` ends
    /// the call, later and with another error.
    Gone,
}

impl Enemy {
    /// What the call must end with. Who is deaf or moving is taken for what he is; who says that he is gone is believed at last.
    fn error(self) -> Errno {
        if self == Self::Gone { Errno::EPIPE } else { Errno::ECONNRESET }
    }
}

/// Options of such a victim.
#[derive(Args)]
pub(crate) struct BoundOptions {
    /// Where sockets are
    #[arg(long)]
    directory: PathBuf,
    /// Who comes
    #[arg(long)]
    enemy: Enemy,
}

/// What the victim has seen.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    error: String,
    /// Calls that it took until one ended so.
    calls: u64,
    corrupt: u64,
}

/// Plays all of them against a victim with what is to be preloaded.
///
/// # Errors
/// A call that ends otherwise, or not at all.
pub(super) fn bounds(preload: &str) -> Result<()> {
    for enemy in Enemy::value_variants() {
        if *enemy == Enemy::Moving && cpus()?.len() < 2 {
            println!("SKIPPED: {enemy:?}: the victim's ring moves while it looks only where two CPUs are");
            continue;
        }
        let seen = play(preload, *enemy).with_context(|| format!("{enemy:?}: the call has no end"))?;
        ensure!(seen.error == enemy.error().to_string(), "{enemy:?}: the call ends otherwise than its bound has it: {seen:?}");
        ensure!(seen.corrupt == 1, "{enemy:?}: the reason is not counted once: {seen:?}");
        println!("{enemy:?}: call {} of the victim was ended: {}", seen.calls, seen.error);
    }
    Ok(())
}

fn play(preload: &str, enemy: Enemy) -> Result<Seen> {
    let directory = tempfile::tempdir()?;
    let listener = UnixListener::bind(directory.path().join(victim::ATTACKER))?;
    let mut victim = Victim::start(&mut command(preload, enemy, directory.path())?)?;
    let plan = Plan {
        round: 0,
        victim_accepts: true,
        manner: Manner::Echo,
        attack: Attack::Still,
        messages: MESSAGES,
        switches: true,
        steps: 0,
        dice: 0,
    };
    let mut peer = Peer::meet(&plan, directory.path(), &listener, true)?;
    let mut dice = Dice::new(1, 0);
    for _ in 0..MESSAGES {
        peer.join()?;
        peer.exchange(&mut dice)?;
    }
    let in_rings = ["in.state", "out.state"].map(|field| peer.get(field)) == [u64::from(STATE_RING); 2];
    ensure!(in_rings, "the connection is not in its rings");
    match enemy {
        Enemy::Moving => {
            victim.tell(0)?;
            while_moving(&peer, || victim.hear("how its call has ended"))
        }
        Enemy::Deaf => {
            victim.tell(0)?;
            ensure!(victim.hear("that the ring is full")? == FULL, "no full ring");
            let mut junk = [0; 8192];
            while (&peer.stream).read(&mut junk).is_ok_and(|count| count > 0) {}
            peer.stream.shutdown(Shutdown::Read)?;
            victim.tell(0)?;
            victim.hear("how its call has ended")
        }
        Enemy::Gone => {
            peer.set("out.asleep", peer.get("out.asleep") | u64::from(GONE_CLOSED));
            victim.tell(0)?;
            let seen = victim.hear("how its call has ended");
            peer.push(&[7; MESSAGE]); // what comes is still to be had
            seen
        }
    }
    .and_then(|seen| {
        let ended = run::wait(&mut victim.child.0, super::PATIENCE)?;
        ensure!(ended.success(), "the victim failed after {seen}; what it said is above");
        Ok(serde_json::from_str(&seen)?)
    })
}

fn command(preload: &str, enemy: Enemy, directory: &Path) -> Result<Command> {
    let mut command = Command::new(paths::OWN_PROGRAM);
    let name = enemy.to_possible_value().context("a value")?;
    command.args(["hostile-bound", "--enemy", name.get_name(), "--directory"]).arg(directory);
    without_library(&mut command);
    command.env("LD_PRELOAD", preload).env("USE_TSSX", directory.join("*")).env("TSSX_UPGRADE_AFTER", "1");
    command.env("ASAN_OPTIONS", sanitizer::OPTIONS);
    Ok(command)
}

/// Moves both positions of the ring that the victim reads while something else is done, without a gap: on a CPU of its own, before everybody
/// else if that is allowed.
fn while_moving<T>(peer: &Peer, what: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    let own = cpus()?.first().copied().context("no CPU")?;
    thread::scope(|scope| {
        let moves = scope.spawn(|| {
            let pinned = run_on(&[own]);
            // Where that is refused, it takes more calls until one meets nothing but moves.
            let _ = Command::new("chrt").args(["--fifo", "--pid", "1", &gettid().to_string()]).output();
            let mut position = peer.get("in.tail");
            while !stop.load(Relaxed) {
                position = position.wrapping_add(1);
                // In this order they are possible at every moment.
                peer.set("in.tail", position.wrapping_add(GAP));
                peer.set("in.head", position);
            }
            pinned
        });
        let done = what();
        stop.store(true, Relaxed);
        moves.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        done
    })
}

/// The CPUs that this process may use.
fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// The victim: answers the honest messages, makes the call when it is told to, and says how it ended.
///
/// # Errors
/// Anything else went wrong.
pub(crate) fn suffer_bound(options: &BoundOptions) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    if options.enemy == Enemy::Moving {
        run_on(&[cpus()?.last().copied().context("no CPU")?])?; // not the enemy's
    }
    let listener = UnixListener::bind(options.directory.join(VICTIM))?;
    victim::say(READY)?;
    let mut stream = listener.accept()?.0;
    for _ in 0..MESSAGES {
        let mut message = [0; MESSAGE];
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
    let mut told = std::io::stdin().lock().lines();
    let mut wait = || told.next().context("nobody tells").and_then(|line| Ok(line?));
    wait()?;
    let (error, calls) = match options.enemy {
        Enemy::Moving => until_error(&stream, false)?,
        Enemy::Deaf => {
            ensure!(until_error(&stream, true)?.0 == Errno::EAGAIN, "the ring does not become full");
            victim::say(FULL)?;
            wait()?;
            until_error(&stream, true)?
        }
        Enemy::Gone => until_error(&stream, true)?,
    };
    let counts = Counts::of_this_process(1, 0)?;
    let corrupt = counts.reasons.get(Reason::Corrupt as usize).copied().unwrap_or(0);
    victim::say(&serde_json::to_string(&Seen { error: error.to_string(), calls, corrupt })?)?;
    if options.enemy == Enemy::Gone {
        let mut message = [0; MESSAGE];
        stream.read_exact(&mut message).context("what a peer sends that is said to be gone")?;
        ensure!(message == [7; MESSAGE], "{message:?} came");
    }
    Ok(())
}

/// Makes calls that do not wait until one fails, or, of those that receive, fails for good: the error, and how many calls.
fn until_error(stream: &UnixStream, sends: bool) -> Result<(Errno, u64)> {
    let mut bytes = vec![7; 2 * GAP as usize];
    let now = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    for calls in 1.. {
        let moved = if sends { send(stream.as_raw_fd(), &bytes, now) } else { recv(stream.as_raw_fd(), &mut bytes, now) };
        match moved {
            Ok(0) => bail!("the end of file"),
            Err(Errno::EAGAIN) if !sends => {}
            Err(errno) => return Ok((errno, calls)),
            Ok(_) => {}
        }
    }
    bail!("more calls than can be counted")
}
