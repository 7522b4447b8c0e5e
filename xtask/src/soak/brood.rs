//! A client that forks. With a connection in mid-stream: the child goes on with it, and then the parent again, or the child is killed. Or
//! before it: the child connects, and is stopped and killed at some point of its first messages, half-way through the upgrade.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use super::hello::Hello;
use super::stage::{Lane, Stage};
use super::talk::{Course, Ended, Style};
use super::{BLOCKING, EPOLL, EndOptions, FORK, Mix, PATIENCE, POLL};
use crate::exchange::{Dice, connect};
use crate::kills::forked;

/// Most messages of each part of a connection, and most bytes of one.
const MESSAGES_MAX: u64 = 40;
const MESSAGE_MAX: u64 = 8 << 10;
/// Longest life of a child that is killed, microseconds: a few dozen messages.
const LIFE_MAX_US: u64 = 3000;
/// Between two families where others need the CPU.
const PAUSE: Duration = Duration::from_millis(4);

/// Makes families until the parent says that it is over.
///
/// # Errors
/// The parent is gone.
pub(super) fn make(options: &EndOptions) -> Result<()> {
    let stage = Arc::new(Stage::new("brood", 1, true));
    let for_thread = Arc::clone(&stage);
    let (directory, mix, mut dice) = (options.directory.clone(), options.mix, Dice::new(options.seed, 77));
    thread::spawn(move || {
        let (stage, lane) = (&for_thread, for_thread.lane(0));
        loop {
            stage.rest(lane);
            let result = match dice.below(3) {
                0 => heir(&directory, &mut dice, stage, lane),
                1 => cut_short(&directory, &mut dice, stage, lane),
                _ => half_way(&directory, &mut dice, stage, lane),
            };
            stage.or_end(result.and_then(|()| stage.harvest()), lane);
            lane.end();
            if mix == Mix::Long {
                thread::sleep(PAUSE);
            }
        }
    });
    stage.obey()
}

/// Where to, and what to say first.
fn choose(mortal: bool, dice: &mut Dice, lane: &Lane) -> (&'static str, Hello) {
    let name = dice.pick(&[BLOCKING, EPOLL, POLL, FORK]);
    let hello = Hello { mortal, inherited_after: dice.below(3), ..Hello::echo(dice.next()) };
    lane.begin(format!("a family's connection at {name}: {hello:?}"));
    (name, hello)
}

fn open(directory: &Path, name: &str, hello: &Hello) -> Result<UnixStream> {
    let stream = connect(&directory.join(name))?;
    hello.say(&stream)?;
    Ok(stream)
}

/// Some messages; the connection must be there still.
fn say(course: &mut Course<'_>, dice: &mut Dice) -> Result<()> {
    let messages = dice.size(MESSAGES_MAX);
    let ended = course.converse(messages, MESSAGE_MAX, Style::of(dice), dice)?;
    ensure!(ended == Ended::Enough, "the server has ended the connection");
    // What waits for edges does not block, and the next part may.
    Ok(course.stream.set_nonblocking(false)?)
}

/// In a child: ends it, which says nothing but whether it went well.
fn leave(result: &Result<()>) -> ! {
    if let Err(error) = result {
        eprintln!("a child of the brood: {error:#}");
    }
    std::process::exit(i32::from(result.is_err()));
}

/// Parent, child, parent speak in turn.
fn heir(directory: &Path, dice: &mut Dice, stage: &Stage, lane: &Lane) -> Result<()> {
    let (name, hello) = choose(false, dice, lane);
    let stream = open(directory, name, &hello)?;
    let mut course = Course::new(&stream, hello.seed, lane);
    if !dice.one_in(4) {
        say(&mut course, dice)?;
    }
    // The parent follows what the child does, by the same dice.
    let mut theirs = dice.clone();
    match forked()? {
        ForkResult::Child => {
            leave(&set_pdeathsig(Signal::SIGKILL).map_err(Into::into).and_then(|()| say(&mut course, &mut theirs)))
        }
        ForkResult::Parent { child } => {
            let status = reap(child)?;
            ensure!(status == WaitStatus::Exited(child, 0), "the child ended so: {status:?}");
            course.position += length(&mut theirs);
            *dice = theirs;
            say(&mut course, dice)?;
            stage.count("connection that a client's child went on with");
            Ok(())
        }
    }
}

/// How many bytes [`say`] sends with these dice.
fn length(dice: &mut Dice) -> u64 {
    let messages = dice.size(MESSAGES_MAX);
    let _ = Style::of(dice);
    (0..messages).map(|_| dice.size(MESSAGE_MAX)).sum()
}

/// A child speaks on a connection of its parent's and is killed.
fn cut_short(directory: &Path, dice: &mut Dice, stage: &Stage, lane: &Lane) -> Result<()> {
    let (name, hello) = choose(true, dice, lane);
    let stream = open(directory, name, &hello)?;
    let mut course = Course::new(&stream, hello.seed, lane);
    if !dice.one_in(4) {
        say(&mut course, dice)?;
    }
    match forked()? {
        ForkResult::Child => leave(&speak_on(&mut course, dice)),
        ForkResult::Parent { child } => {
            drop(stream);
            end(child, dice, stage, lane)?;
            stage.count("forked child of a client killed");
            Ok(())
        }
    }
}

/// A child connects by itself and is killed.
fn half_way(directory: &Path, dice: &mut Dice, stage: &Stage, lane: &Lane) -> Result<()> {
    let (name, hello) = choose(true, dice, lane);
    match forked()? {
        ForkResult::Child => leave(&open(directory, name, &hello).and_then(|stream| {
            let mut course = Course::new(&stream, hello.seed, lane);
            speak_on(&mut course, dice)
        })),
        ForkResult::Parent { child } => {
            end(child, dice, stage, lane)?;
            stage.count("client killed half-way");
            Ok(())
        }
    }
}

fn speak_on(course: &mut Course<'_>, dice: &mut Dice) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let style = Style::of(dice);
    let ended = course.converse(u64::MAX, MESSAGE_MAX, style, dice)?;
    anyhow::bail!("the server has ended the connection: {ended:?}");
}

/// Kills the child after a while, now and then stopped first.
fn end(child: Pid, dice: &mut Dice, stage: &Stage, lane: &Lane) -> Result<()> {
    // The child rolls the same dice.
    let mut own = Dice::new(dice.next(), 1);
    thread::sleep(Duration::from_micros(own.size(LIFE_MAX_US)));
    if own.one_in(3) {
        kill(child, Signal::SIGSTOP)?;
        thread::sleep(Duration::from_micros(own.size(LIFE_MAX_US)));
        stage.count("client stopped half-way");
    }
    kill(child, Signal::SIGKILL)?;
    let status = reap(child)?;
    ensure!(status == WaitStatus::Signaled(child, Signal::SIGKILL, false), "the child ended so: {status:?}");
    lane.watch.moved(crate::exchange::Half::Sender, 0);
    Ok(())
}

fn reap(child: Pid) -> Result<WaitStatus> {
    let start = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            status => return Ok(status?),
        }
        ensure!(start.elapsed() < PATIENCE * 2, "child {child} does not end");
        thread::sleep(Duration::from_micros(100));
    }
}
