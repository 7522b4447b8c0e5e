//! Starting what is measured: our workloads, and servers in the background that end when they go out of scope.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::environment::without_library;
use crate::figures::Figures;
use crate::run;

/// Longest that one client may take for one round.
pub(crate) const ROUND_DEADLINE: Duration = Duration::from_secs(90);
/// Longest that a server may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// Longest that a server may take to end when it is asked to.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// `cargo xtask workload` as a command, without any variable of the library.
pub(crate) fn workload(program: &str, socket: &Path, cpus: &[usize]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot name our own program")?);
    command.args(["workload", program, "--socket"]).arg(socket);
    for cpu in cpus {
        command.args(["--cpu", &cpu.to_string()]);
    }
    without_library(&mut command);
    Ok(command)
}

/// A program in the background that is ended by its id when it goes out of scope.
pub(crate) struct Running {
    child: Child,
    /// What ends it.
    signal: Signal,
}

impl Running {
    /// Starts a server and waits until its socket is there.
    ///
    /// # Errors
    /// It cannot be started, ends at once, or does not listen in time.
    pub(crate) fn server(mut command: Command, socket: &Path) -> Result<Self> {
        let text = run::shown(&command);
        let mut running = Self::start(&mut command)?;
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if running.child.try_wait()?.is_some() || start.elapsed() > START_DEADLINE {
                bail!("`{text}` does not listen on {}", socket.display());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(running)
    }

    /// Starts any program in the background, without input and output.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Self::start_with(command.stdin(Stdio::null()).stdout(Stdio::null()))
    }

    /// Starts any program in the background with the input and output that the command has.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start_with(command: &mut Command) -> Result<Self> {
        let text = run::shown(command);
        Ok(Self { child: command.spawn().with_context(|| format!("cannot start `{text}`"))?, signal: Signal::SIGKILL })
    }

    /// Lets it end in its own way, by a signal that it understands.
    pub(crate) fn ended_by(self, signal: Signal) -> Self {
        let mut running = self;
        running.signal = signal;
        running
    }

    /// Its process.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process' id.
    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is what we want.
        if self.signal != Signal::SIGKILL && kill(self.id(), self.signal).is_ok() {
            let start = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < END_DEADLINE {
                thread::sleep(Duration::from_millis(2));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client that prints its figures.
///
/// # Errors
/// It fails, hangs, or prints something else.
pub(crate) fn client(command: &mut Command) -> Result<Vec<Figures>> {
    let output = run::capture_success(command, ROUND_DEADLINE)?;
    serde_json::from_str(&output.stdout).with_context(|| format!("`{}` printed {:?}", run::shown(command), output.stdout))
}
