//! A long-lived process, as its parent sees it: asked how it is, found when it hangs, killed by its id.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::PATIENCE;
use super::stage::{END, LaneState, MISMATCH, STATUS, State, WRONG};
use crate::run;

/// See the module's text.
pub(super) struct Member {
    pub name: &'static str,
    child: Child,
    orders: Option<ChildStdin>,
    says: mpsc::Receiver<String>,
    pub state: State,
    /// Of each thread when it moved last.
    moved: Vec<Instant>,
}

impl Member {
    pub(super) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", run::shown(&command)))?;
        let (send, says) = mpsc::channel();
        let output = child.stdout.take().context("its output was asked for")?;
        thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let orders = child.stdin.take();
        Ok(Self { name, child, orders, says, state: State::default(), moved: Vec::new() })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order, and learns how it is.
    ///
    /// # Errors
    /// It has ended, does not answer, or one of its threads hangs.
    pub(super) fn tell(&mut self, order: &str) -> Result<()> {
        self.send(order)?;
        let line = match self.says.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("HANG: {} does not answer for {} s:\n{}", self.name, PATIENCE.as_secs(), stacks(self.id()))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.gone()),
        };
        let before = std::mem::replace(&mut self.state, serde_json::from_str(&line)?);
        self.moved.resize(self.state.lanes.len(), Instant::now());
        for (index, (now, moved)) in self.state.lanes.iter().zip(&mut self.moved).enumerate() {
            let still = now.busy && before.lanes.get(index).is_some_and(|before: &LaneState| before.moves == now.moves);
            if !still {
                *moved = Instant::now();
            }
            ensure!(
                moved.elapsed() < PATIENCE,
                "HANG: thread {index} of {} has not moved for {} s: {}",
                self.name,
                PATIENCE.as_secs(),
                now.place
            );
        }
        Ok(())
    }

    /// How it is.
    ///
    /// # Errors
    /// As [`Self::tell`].
    pub(super) fn ask(&mut self) -> Result<()> {
        self.tell(STATUS)
    }

    fn send(&mut self, order: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("it was told to end")?;
        writeln!(orders, "{order}").and_then(|()| orders.flush()).map_err(|_| self.gone())
    }

    fn gone(&mut self) -> anyhow::Error {
        // Whoever closes its output has ended, or does so now.
        match run::wait(&mut self.child, PATIENCE) {
            Ok(status) if status.code() == Some(MISMATCH) => anyhow!("{WRONG}, says {}; where is above", self.name),
            Ok(status) => anyhow!("{} has ended: {status}; what it said is above", self.name),
            Err(error) => error.context(self.name),
        }
    }

    /// Lets it end.
    ///
    /// # Errors
    /// It does not, or not well.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.send(END)?;
        let status = run::wait(&mut self.child, PATIENCE).with_context(|| self.name)?;
        ensure!(status.success(), "{} failed at its end: {status}", self.name);
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Gone already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where each thread of a process is, as far as we may know.
pub(super) fn stacks(id: u32) -> String {
    let mut text = String::new();
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().filter_map(Result::ok);
    for task in tasks {
        let read = |name: &str| {
            std::fs::read_to_string(task.path().join(name)).map_or_else(|error| format!("({error})"), |text| text.trim().to_owned())
        };
        let state = read("stat").rsplit_once(')').map(|(_, rest)| rest.trim().chars().take(1).collect::<String>());
        text.push_str(&format!(
            "process {id} thread {} ({}) state {} in {} (system call {})\n{}\n",
            task.file_name().to_string_lossy(),
            read("comm"),
            state.unwrap_or_default(),
            read("wchan"),
            read("syscall"),
            read("stack")
        ));
    }
    text
}
