//! A process of the self-test: this program again, with the library, with a deadline for each of its words, killed and reaped if it is left early.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::PATIENCE;
use super::end::{Statement, Task};

/// Most that is kept of what a process says on standard error.
const MOST_ERRORS: u64 = 4096;

pub(super) struct Child {
    process: std::process::Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Child {
    /// Starts it in this process's environment, but for the library and what it selects.
    pub(super) fn start(task: &Task, library: &Path, selection: Option<&str>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.arg("self-test-end").arg(serde_json::to_string(task)?).env("LD_PRELOAD", library);
        command.env_remove("USE_TSSX").env_remove("TSSX_LOG").envs(selection.map(|selection| ("USE_TSSX", selection)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().context("cannot start this program again")?;
        let (sender, lines) = channel();
        let stdout = process.stdout.take().context("no standard output")?;
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let (sender, errors) = channel();
        let stderr = process.stderr.take().context("no standard error")?;
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What was read until an error is told too.
            let _read = stderr.take(MOST_ERRORS).read_to_end(&mut bytes);
            // Nobody listens any more if the child was given up.
            let _heard = sender.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        Ok(Self { process, lines, errors })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next thing that it tells.
    pub(super) fn next(&mut self) -> anyhow::Result<Statement> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("it printed {line:?}")),
            Err(RecvTimeoutError::Timeout) => bail!("it is silent for {} s, and was killed", PATIENCE.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                let said = self.end(Instant::now() + PATIENCE)?;
                bail!("it ended early ({}): {}", self.process.wait()?, said.trim_end())
            }
        }
    }

    /// Lets it go on.
    pub(super) fn go(&mut self) -> anyhow::Result<()> {
        let mut stdin = self.process.stdin.take().context("it goes on already")?;
        stdin.write_all(b"go\n").context("it does not listen")
    }

    /// Waits for its end; gives what it said on standard error.
    pub(super) fn finish(mut self) -> anyhow::Result<String> {
        let said = self.end(Instant::now() + PATIENCE)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "it failed ({status}): {}", said.trim_end());
        Ok(said)
    }

    /// Ends it if it has not ended by then.
    fn end(&mut self, deadline: Instant) -> anyhow::Result<String> {
        while self.process.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                self.process.kill()?;
                self.process.wait()?;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(self.errors.recv_timeout(PATIENCE).unwrap_or_default())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}
