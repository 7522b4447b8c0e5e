//! What happens to the processes from outside, in two threads of the parent: they are stopped and go on, and short-lived ones come, which are
//! killed or become another program.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::member::stacks;
use super::{Mix, PATIENCE, Role, Start, brief};
use crate::exchange::Dice;
use crate::run;

/// Longest that a process is stopped, and longest life of one that is killed, microseconds.
const STOP_MAX_US: u64 = 40_000;
const LIFE_MAX_US: u64 = 30_000;

/// See the module's text.
#[derive(Default)]
pub(super) struct Outside {
    over: AtomicBool,
    calm: AtomicBool,
    /// Held by each thread while it does something.
    turns: [Mutex<()>; 2],
    events: Mutex<BTreeMap<&'static str, u64>>,
    trouble: Mutex<Option<anyhow::Error>>,
}

/// As long as it is kept nothing happens.
pub(super) struct Calm<'a> {
    outside: &'a Outside,
    _turns: [MutexGuard<'a, ()>; 2],
}

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.outside.calm.store(false, Release);
    }
}

impl Outside {
    pub(super) fn events(&self) -> BTreeMap<&'static str, u64> {
        self.events.lock().map(|events| events.clone()).unwrap_or_default()
    }

    fn count(&self, event: &'static str) {
        if let Ok(mut events) = self.events.lock() {
            *events.entry(event).or_default() += 1;
        }
    }

    /// What has gone wrong, once.
    ///
    /// # Errors
    /// That.
    pub(super) fn trouble(&self) -> Result<()> {
        match self.trouble.lock().map_err(|_| anyhow!("a thread has panicked"))?.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits until nothing happens.
    ///
    /// # Errors
    /// A thread has panicked.
    pub(super) fn calm(&self) -> Result<Calm<'_>> {
        self.calm.store(true, Release);
        let turn = |index: usize| self.turns[index].lock().map_err(|_| anyhow!("a thread has panicked"));
        Ok(Calm { outside: self, _turns: [turn(0)?, turn(1)?] })
    }

    pub(super) fn end(&self) {
        self.over.store(true, Release);
    }

    /// Does something again and again.
    fn repeat(&self, turn: usize, mut something: impl FnMut() -> Result<Duration>) {
        while !self.over.load(Acquire) {
            let pause = match self.turns[turn].lock() {
                Ok(_turn) if !self.calm.load(Acquire) => match something() {
                    Ok(pause) => pause,
                    Err(error) => {
                        if let Ok(mut trouble) = self.trouble.lock() {
                            *trouble = Some(error);
                        }
                        return;
                    }
                },
                _ => Duration::ZERO,
            };
            thread::sleep(pause.max(Duration::from_millis(1)));
        }
    }

    /// Stops one of the processes for a while.
    pub(super) fn stop(&self, ids: &[u32], seed: u64, mix: Mix) {
        let mut dice = Dice::new(seed, 1001);
        self.repeat(0, || {
            let id = Pid::from_raw(dice.pick(ids).cast_signed());
            signal(id, Signal::SIGSTOP)?;
            thread::sleep(Duration::from_micros(dice.size(STOP_MAX_US)));
            signal(id, Signal::SIGCONT)?;
            self.count("process stopped and continued");
            Ok(Duration::from_micros(dice.below(if mix == Mix::Long { 200_000 } else { 1_000_000 })))
        });
    }

    /// Starts short-lived processes, one after another.
    pub(super) fn start_briefs(&self, start: &Start<'_>, seed: u64) {
        let mut dice = Dice::new(seed, 1002);
        self.repeat(1, || {
            let seed = dice.next();
            if dice.one_in(2) { self.exec(start, seed) } else { self.kill(start, seed, &mut dice) }
                .with_context(|| format!("a short-lived process of seed {seed}"))?;
            Ok(Duration::from_micros(dice.below(if start.mix == Mix::Long { 60_000 } else { 400_000 })))
        });
    }

    fn exec(&self, start: &Start<'_>, seed: u64) -> Result<()> {
        let mut child = Brief::start(start.command(Role::Ancestor, seed)?.stdout(Stdio::null()))?;
        let status = child.wait().context("one that becomes another program")?;
        ensure!(status.success(), "one that becomes another program ended so: {status}; what it said is above");
        self.count("exec in mid-stream");
        Ok(())
    }

    fn kill(&self, start: &Start<'_>, seed: u64, dice: &mut Dice) -> Result<()> {
        let mut child = Brief::start(start.command(Role::Victim, seed)?.stdout(Stdio::piped()))?;
        let id = Pid::from_raw(child.0.id().cast_signed());
        await_word(child.0.stdout.take().context("its output was asked for")?, child.0.id())?;
        thread::sleep(Duration::from_micros(dice.size(LIFE_MAX_US)));
        if dice.one_in(3) {
            signal(id, Signal::SIGSTOP)?;
            thread::sleep(Duration::from_micros(dice.size(LIFE_MAX_US)));
        }
        signal(id, Signal::SIGKILL)?;
        let status = child.wait()?;
        ensure!(status.code().is_none(), "one that was to be killed ended before: {status}; what it said is above");
        self.count("process killed in mid-stream");
        Ok(())
    }
}

fn signal(id: Pid, signal: Signal) -> Result<()> {
    kill(id, signal).with_context(|| format!("process {id} is gone"))
}

/// Waits until a victim says that it is connected.
fn await_word(mut output: ChildStdout, id: u32) -> Result<()> {
    let timeout = PollTimeout::try_from(PATIENCE).context("the patience is too long")?;
    let ready = loop {
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            ready => break ready?,
        }
    };
    ensure!(ready == 1, "HANG: one that is to be killed is not connected after {} s:\n{}", PATIENCE.as_secs(), stacks(id));
    let mut word = [0; brief::CONNECTED.len()];
    output.read_exact(&mut word).context("one that was to be killed ended before it was connected; what it said is above")?;
    ensure!(word == *brief::CONNECTED.as_bytes(), "one that is to be killed said {word:?}");
    Ok(())
}

/// A child that does not outlive us.
struct Brief(Child);

impl Brief {
    fn start(command: &mut Command) -> Result<Self> {
        let text = run::shown(command);
        Ok(Self(command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start `{text}`"))?))
    }

    fn wait(&mut self) -> Result<std::process::ExitStatus> {
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > PATIENCE {
                bail!("HANG: it does not end within {} s:\n{}", PATIENCE.as_secs(), stacks(self.0.id()));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Brief {
    fn drop(&mut self) {
        // Gone already is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
