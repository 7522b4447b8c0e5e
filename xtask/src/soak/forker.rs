//! A server that forks for each connection, as PostgreSQL's postmaster does: it reads a little itself, or nothing, and leaves the rest to a
//! child, which inherits the descriptor and what the library knows of it. Some children it kills.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use std::os::fd::AsFd;

use super::hello::Hello;
use super::stage::{Lane, Stage};
use super::talk::{Course, Ended};
use super::{EndOptions, FORK, PATIENCE};
use crate::kills::forked;

/// How often it looks after its children while it waits for a client, milliseconds.
const LOOK_MS: u16 = 2;

/// A child.
struct Worker {
    child: Pid,
    since: Instant,
    /// When it is killed.
    doom: Option<Duration>,
    killed: bool,
}

/// Serves until the parent says that it is over.
///
/// # Errors
/// A socket cannot be made, or the parent is gone.
pub(super) fn serve(options: &EndOptions) -> Result<()> {
    let stage = Arc::new(Stage::new("forker", 1, false));
    let listener = UnixListener::bind(options.directory.join(FORK))?;
    let for_thread = Arc::clone(&stage);
    thread::spawn(move || {
        let lane = for_thread.lane(0);
        for_thread.or_end(accept(&listener, &for_thread, lane), lane);
    });
    stage.obey()
}

fn accept(listener: &UnixListener, stage: &Stage, lane: &Lane) -> Result<()> {
    let mut workers: Vec<Worker> = Vec::new();
    loop {
        let timeout = if workers.is_empty() { PollTimeout::NONE } else { PollTimeout::from(LOOK_MS) };
        let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout)?;
        look_after(&mut workers, stage)?;
        stage.open.store(workers.len() as u64, Release);
        if ready == 0 {
            continue;
        }
        let stream = listener.accept()?.0;
        stage.open.store(workers.len() as u64 + 1, Release);
        lane.begin("before its hello".to_owned());
        if let Some(hello) = Hello::hear(&stream)? {
            lane.begin(format!("{hello:?}"));
            workers.extend(begin(&stream, &hello, stage, lane)?);
        }
        drop(stream);
        lane.end();
        stage.open.store(workers.len() as u64, Release);
        stage.harvest()?;
    }
}

/// Serves the first reads, and leaves the connection to a child; none if it has ended by then.
fn begin(stream: &UnixStream, hello: &Hello, stage: &Stage, lane: &Lane) -> Result<Option<Worker>> {
    let mut course = Course::new(stream, hello.seed, lane);
    let ended = course.echo(hello.inherited_after)?;
    ensure!(hello.mortal || ended != Ended::Cut, "the connection was cut");
    if ended != Ended::Enough {
        stage.count("connection that ended before its fork");
        return Ok(None);
    }
    match forked()? {
        ForkResult::Parent { child } => {
            stage.count(if course.position > 0 { "fork in mid-stream" } else { "fork at the start" });
            let doom = (hello.doom_us > 0).then(|| Duration::from_micros(hello.doom_us));
            Ok(Some(Worker { child, since: Instant::now(), doom, killed: false }))
        }
        ForkResult::Child => {
            // It says nothing and counts nothing, since its parent's other thread may hold what that takes.
            set_pdeathsig(Signal::SIGKILL)?;
            match course.echo(u64::MAX) {
                Ok(ended) if hello.mortal || ended != Ended::Cut => std::process::exit(0),
                Ok(_) => eprintln!("a child of the forker: the connection was cut: {hello:?}"),
                Err(error) => eprintln!("a child of the forker: {error:#}: {hello:?}"),
            }
            std::process::exit(1);
        }
    }
}

/// Kills whose time has come, and reaps.
fn look_after(workers: &mut Vec<Worker>, stage: &Stage) -> Result<()> {
    for worker in workers.iter_mut() {
        if !worker.killed && worker.doom.is_some_and(|doom| worker.since.elapsed() >= doom) {
            kill(worker.child, Signal::SIGKILL)?;
            worker.killed = true;
        }
    }
    let mut failed = None;
    workers.retain(|worker| match waitpid(worker.child, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => {
            if worker.since.elapsed() > PATIENCE * 2 {
                failed = Some(format!("child {} does not end", worker.child));
            }
            true
        }
        Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) if worker.killed => {
            stage.count("forked child of a server killed");
            false
        }
        Ok(WaitStatus::Exited(_, 0)) => false,
        other => {
            failed = Some(format!("a child ended so: {other:?}"));
            false
        }
    });
    failed.map_or(Ok(()), |failed| Err(anyhow::anyhow!(failed))).context("the forker's children")
}
