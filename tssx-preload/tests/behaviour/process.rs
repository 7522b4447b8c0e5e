//! Children of the tests: their output is collected while they run, and none outlives its test.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

/// A started child. It is killed by its id when it is dropped alive.
pub(crate) struct Process {
    child: Child,
    stdout: Collected,
    stderr: Collected,
}

/// A command of `xtask`.
pub(crate) fn xtask(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(words);
    command
}

/// Runs a command that says by itself what went wrong, and passes on what it prints.
///
/// # Errors
/// It cannot be started, fails, or takes longer than `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<(), Failed> {
    let ended = Process::start(command)?.finish(Instant::now() + limit);
    if ended.code != Some(0) {
        return Err(ended.all().into());
    }
    print!("{}", ended.stdout);
    Ok(())
}

/// How a child ended.
pub(crate) struct Ended {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Whether it had to be killed at the deadline.
    pub late: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// Everything, for a failure's message.
    pub(crate) fn all(&self) -> String {
        let late = if self.late { ", killed at the deadline" } else { "" };
        format!("exit code {:?}{late}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

impl Process {
    /// Starts `command` without input and with its output collected.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(command: &mut Command) -> Result<Self, Failed> {
        Self::spawn(command.stdin(Stdio::null()))
    }

    /// Like [`Process::start`], with this for its input.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start_reading(command: &mut Command, input: Stdio) -> Result<Self, Failed> {
        Self::spawn(command.stdin(input))
    }

    /// Like [`Process::start`], with an input that stays open until [`Process::close_input`].
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start_with_input(command: &mut Command) -> Result<Self, Failed> {
        Self::spawn(command.stdin(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> Result<Self, Failed> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let (stdout, stderr) = (Collected::from(child.stdout.take()), Collected::from(child.stderr.take()));
        Ok(Self { child, stdout, stderr })
    }

    /// The process' id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether its standard output ends with `line` by now.
    pub(crate) fn printed(&self, line: &str) -> bool {
        self.stdout.text().ends_with(line)
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Closes its standard input.
    pub(crate) fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until the deadline, then kills.
    pub(crate) fn finish(mut self, deadline: Instant) -> Ended {
        while !self.ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let late = !self.ended();
        self.stop();
        let code = self.child.wait().ok().and_then(|status| status.code());
        Ended { code, late, stdout: self.stdout.finish(), stderr: self.stderr.finish() }
    }

    /// Kills it if it is alive, and reaps it.
    pub(crate) fn stop(&mut self) {
        if !self.ended() {
            // It may end by itself in between, which is as good.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Text that a thread reads from a pipe.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(source: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = source.map(|mut source| {
            thread::spawn(move || {
                let mut part = [0; 4096];
                while let Ok(count @ 1..) = source.read(&mut part) {
                    if let (Ok(mut sink), Some(part)) = (sink.lock(), part.get(..count)) {
                        sink.extend_from_slice(part);
                    }
                }
            })
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        self.bytes.lock().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Everything up to the end. A grandchild that kept the pipe open is not waited for.
    fn finish(&mut self) -> String {
        let patience = Instant::now() + Duration::from_secs(2);
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        self.text()
    }
}
