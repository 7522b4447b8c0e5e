//! The programs whose system calls fail: small, each in all that it does checked by itself, and quick.
//!
//! Each is a server and a client in a process of their own. Whatever the library does with the fault, what comes must be what was sent, the
//! end must come last, and descriptors, the signal mask and the socket's options must be what they were. A call that fails is noted and made
//! again; a program that is refused for ever gives up, and the other end then may see that. The judge ([`super::judge`]) says whether the
//! fault permits either.

mod family;
mod passing;
mod places;
mod raw;
mod ready;
mod rules;
mod stdio;
mod stream;
mod talks;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::signal::SigSet;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, connect, listen, socket};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, pipe2};
use serde::{Deserialize, Serialize};

use super::heap::Heap;
use crate::environment::without_library;
use crate::paths;
use stream::Stream;

/// How often a program makes a call that fails.
const TRIES: usize = 4;

/// The exit status of a program that cannot begin: the dynamic linker's, and the library's where it has no memory for what is left to it.
const CANNOT_BEGIN: i32 = 127;
/// The call that fails then, though whoever has made it cannot be told any more.
pub(super) const BEGINNING: &str = "the beginning of another image";

/// What one end does, given its connection.
type End = fn(&Program, Stream) -> Result<()>;

/// A program.
pub(super) struct Scenario {
    /// What it is called.
    pub name: &'static str,
    server: End,
    client: End,
    /// Longest spin of its waits, microseconds: where it is 0, every wait sleeps, and what the library does is the same in each run.
    spin_us: u32,
    /// A log, by its path from the directory on, or from where the program is started, which is there.
    log: Option<&'static str>,
    /// What is selected there.
    selects: &'static str,
}

impl Scenario {
    const fn new(name: &'static str, server: End, client: End) -> Self {
        Self { name, server, client, spin_us: 0, log: None, selects: "*" }
    }
}

/// All of them.
pub(super) fn all() -> Vec<&'static Scenario> {
    [
        talks::SCENARIOS,
        rules::SCENARIOS,
        ready::SCENARIOS,
        family::SCENARIOS,
        passing::SCENARIOS,
        places::SCENARIOS,
        stdio::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Options of a scenario's first process.
#[derive(Args)]
pub(crate) struct EndOptions {
    /// Which
    #[arg(long)]
    scenario: String,
    /// Where its socket and its reports are
    #[arg(long)]
    directory: PathBuf,
    /// To be traced, and to become the scenario with this library
    #[arg(long)]
    library: Option<PathBuf>,
    /// With this in the allocator's place
    #[arg(long)]
    heap: Option<PathBuf>,
    /// To go on as another image, with this connection
    #[arg(long)]
    inherited: Option<i32>,
}

/// The command that starts a scenario.
pub(super) fn command(scenario: &Scenario, directory: &Path, library: &Path, heap: Option<&Heap>) -> Command {
    let mut command = Command::new(paths::OWN_PROGRAM);
    command.args(["faults-end", "--scenario", scenario.name, "--directory"]).arg(directory).arg("--library").arg(library);
    if let Some(heap) = heap {
        command.arg("--heap").arg(&heap.path);
    }
    without_library(&mut command);
    command
}

/// The process of that command.
///
/// # Errors
/// What went wrong, unless it is in the report.
pub(crate) fn play(options: &EndOptions) -> Result<()> {
    let all = all();
    let scenario = all.into_iter().find(|scenario| scenario.name == options.scenario);
    let scenario = scenario.with_context(|| format!("no scenario {}", options.scenario))?;
    if let Some(library) = &options.library {
        let preload = options.heap.iter().chain([library]).map(|path| path.display().to_string()).collect::<Vec<_>>();
        return Err(start(scenario, &options.directory, &preload.join(":")));
    }
    let program = Program::new(&options.directory, if options.inherited.is_some() { "image" } else { "server" })?;
    match options.inherited {
        Some(fd) => {
            let stream = raw::inherited(fd);
            program.before.borrow_mut().remove(&fd);
            program.finish(family::second_image(&program, scenario.name, stream))
        }
        None => two_ends(&program, scenario),
    }
}

/// Asks to be traced and becomes the scenario; returns only if that fails.
fn start(scenario: &Scenario, directory: &Path, preload: &str) -> anyhow::Error {
    if let Err(error) = ptrace::traceme() {
        return anyhow!("cannot be traced: {error}");
    }
    let mut command = Command::new(paths::OWN_PROGRAM);
    command.args(["faults-end", "--scenario", scenario.name, "--directory"]).arg(directory);
    command.env("LD_PRELOAD", preload).env("USE_TSSX", directory.join(scenario.selects)).current_dir(directory);
    command.env("TSSX_UPGRADE_AFTER", "1").env("TSSX_SPIN_US", scenario.spin_us.to_string());
    if let Some(log) = scenario.log {
        command.env("TSSX_LOG", log);
    }
    anyhow!("cannot become the scenario: {}", command.exec())
}

/// What one process says at its end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// Who.
    pub who: String,
    /// Calls that failed, with the error's number.
    pub failures: Vec<(String, i32)>,
    /// It was refused for ever.
    pub gave_up: bool,
    /// The other end was gone before its time.
    pub early: bool,
    /// What should not be.
    pub wrong: Option<String>,
}

/// Was refused for ever.
#[derive(Debug)]
struct GaveUp;

impl fmt::Display for GaveUp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("gave up")
    }
}

impl Error for GaveUp {}

/// The other end was gone before its time.
#[derive(Debug)]
struct Early(String);

impl fmt::Display for Early {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the other end was gone: {}", self.0)
    }
}

impl Error for Early {}

/// One process.
pub(super) struct Program {
    directory: PathBuf,
    listener: RefCell<Option<Rc<OwnedFd>>>,
    /// The server's end of a pipe that ends with the client.
    client_lives: RefCell<Option<OwnedFd>>,
    who: Cell<&'static str>,
    failures: RefCell<Vec<(String, i32)>>,
    before: RefCell<BTreeSet<i32>>,
    mask: SigSet,
}

/// A moment for the other process, of which nothing depends.
fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

impl Program {
    fn new(directory: &Path, who: &'static str) -> Result<Self> {
        Ok(Self {
            directory: directory.to_owned(),
            listener: RefCell::default(),
            client_lives: RefCell::default(),
            who: Cell::new(who),
            failures: RefCell::default(),
            before: RefCell::new(descriptors()?),
            mask: SigSet::thread_get_mask()?,
        })
    }

    /// Makes a call until it succeeds, and notes what it says otherwise.
    ///
    /// # Errors
    /// It never succeeds.
    fn attempt<T>(&self, call: &str, mut make: impl FnMut() -> nix::Result<T>) -> Result<T> {
        for _ in 0..TRIES {
            match make() {
                Ok(value) => return Ok(value),
                Err(errno) => self.note(call, errno),
            }
        }
        bail!(GaveUp)
    }

    /// Another number for the same file (F_DUPFD_CLOEXEC).
    fn copy(&self, fd: impl AsFd) -> Result<OwnedFd> {
        self.attempt("F_DUPFD", || {
            let copied = fd.as_fd().try_clone_to_owned();
            copied.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })
    }

    /// Makes a call that should fail with one of these errors; notes another one, and makes it again.
    fn refused<T>(&self, call: &str, right: &[Errno], mut make: impl FnMut() -> nix::Result<T>) -> Result<()> {
        for _ in 0..TRIES {
            match make() {
                Ok(_) => bail!("{call} did not fail"),
                Err(errno) if right.contains(&errno) => return Ok(()),
                Err(errno) => self.note(call, errno),
            }
        }
        bail!(GaveUp)
    }

    fn note(&self, call: &str, errno: Errno) {
        self.failures.borrow_mut().push((call.to_owned(), errno as i32));
    }

    fn socket_path(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// A listening socket.
    fn listen(&self) -> Result<OwnedFd> {
        let listener = self.attempt("socket", || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None))?;
        let address = UnixAddr::new(&self.socket_path())?;
        self.attempt("bind", || bind(listener.as_raw_fd(), &address))?;
        self.attempt("listen", || listen(&listener, Backlog::new(16)?))?;
        Ok(listener)
    }

    /// The server's listening socket.
    fn listener(&self) -> Result<Rc<OwnedFd>> {
        self.listener.borrow().clone().context("only the server listens")
    }

    /// A connection that is accepted.
    fn accept(&self, listener: &OwnedFd) -> Result<OwnedFd> {
        let lives = self.client_lives.borrow();
        let lives = lives.as_ref().context("only the server accepts")?;
        let mut entries = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(lives.as_fd(), PollFlags::POLLIN)];
        self.attempt("poll", || poll(&mut entries, PollTimeout::NONE))?;
        if !entries[0].any().unwrap_or(false) {
            bail!(Early("it has ended before it was accepted".to_owned()));
        }
        self.attempt("accept", || accept(listener.as_raw_fd())).map(raw::inherited)
    }

    /// A connection that is made.
    fn connect(&self) -> Result<OwnedFd> {
        let fd = self.attempt("socket", || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None))?;
        let address = UnixAddr::new(&self.socket_path())?;
        self.attempt("connect", || connect(fd.as_raw_fd(), &address))?;
        Ok(fd)
    }

    /// Runs something in a child of its own, which reports too; returns its id.
    fn child(&self, who: &'static str, body: impl FnOnce(&Self) -> Result<()>) -> Result<nix::unistd::Pid> {
        let forked = self.attempt("fork", raw::forked)?;
        match forked {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                self.who.set(who);
                self.failures.borrow_mut().clear();
                let outcome = body(self);
                let code = i32::from(self.report(outcome).is_err());
                std::process::exit(code)
            }
        }
    }

    /// Waits for a child, which must have ended by itself.
    fn wait(&self, child: nix::unistd::Pid) -> Result<()> {
        loop {
            match waitpid(child, None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, CANNOT_BEGIN)) => {
                    self.note(BEGINNING, Errno::ENOMEM);
                    bail!(GaveUp)
                }
                other => bail!("the child ended by {other:?}"),
            }
        }
    }

    /// What must be as it was before, and the report.
    fn finish(&self, outcome: Result<()>) -> Result<()> {
        let outcome = outcome.and_then(|()| {
            let left: Vec<i32> = descriptors()?.difference(&self.before.borrow()).copied().collect();
            ensure!(left.is_empty(), "descriptors are left: {left:?}");
            let gone: Vec<i32> = self.before.borrow().difference(&descriptors()?).copied().collect();
            ensure!(gone.is_empty(), "descriptors are gone: {gone:?}");
            ensure!(SigSet::thread_get_mask()? == self.mask, "the signal mask is another");
            Ok(())
        });
        self.report(outcome)
    }

    /// Whether the other process has given up.
    fn is_alone(&self) -> bool {
        self.directory.join("alone").exists()
    }

    /// A file for the other process, which sees all of it or nothing.
    fn leave(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let new = self.directory.join(format!("{name}.new"));
        std::fs::write(&new, bytes)?;
        Ok(std::fs::rename(new, self.directory.join(name))?)
    }

    /// What was noted so far: of this image nothing else is left.
    fn report_before_exec(&self, failures: &[(String, i32)]) -> Result<()> {
        self.append(&Report { who: "before exec".to_owned(), failures: failures.to_vec(), ..Report::default() })
    }

    fn report(&self, outcome: Result<()>) -> Result<()> {
        let error = outcome.err();
        let gave_up = error.as_ref().is_some_and(anyhow::Error::is::<GaveUp>);
        if error.is_some() {
            // Both ends may leave it at once, and nobody reads what is in it.
            std::fs::write(self.directory.join("alone"), [])?;
        }
        let early = error.as_ref().is_some_and(anyhow::Error::is::<Early>);
        let wrong = error.filter(|_| !gave_up && !early).map(|error| format!("{error:#}"));
        let report = Report { who: self.who.get().to_owned(), failures: self.failures.take(), gave_up, early, wrong };
        self.append(&report)
    }

    fn append(&self, report: &Report) -> Result<()> {
        let line = serde_json::to_string(report)? + "\n";
        let mut file = OpenOptions::new().append(true).create(true).open(self.directory.join("report"))?;
        Ok(file.write_all(line.as_bytes())?)
    }
}

/// This process's descriptors.
fn descriptors() -> Result<BTreeSet<i32>> {
    let mut open = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_string_lossy().parse::<i32>());
    }
    // The directory itself was open, and is the one that is not any more.
    open.retain(|fd| Path::new(&format!("/proc/self/fd/{fd}")).read_link().is_ok());
    Ok(open)
}

/// Two processes with a connection.
fn two_ends(program: &Program, scenario: &Scenario) -> Result<()> {
    let listener = program.listen().map(|listener| program.listener.replace(Some(Rc::new(listener))));
    let (lives, living) = pipe2(OFlag::O_CLOEXEC)?;
    program.client_lives.replace(Some(lives));
    let forked = listener.and_then(|_| program.attempt("fork", raw::forked));
    match forked {
        Ok(ForkResult::Child) => {
            program.listener.take();
            program.client_lives.take();
            program.before.borrow_mut().insert(living.as_raw_fd());
            program.who.set("client");
            let outcome = program.connect().and_then(|fd| (scenario.client)(program, Stream::new(fd, true)));
            program.finish(outcome)
        }
        Ok(ForkResult::Parent { child }) => {
            drop(living);
            let accepted = program.listener().and_then(|listener| program.accept(&listener));
            let outcome = accepted.and_then(|fd| (scenario.server)(program, Stream::new(fd, false)));
            program.listener.take();
            program.client_lives.take();
            let ended = program.wait(child);
            program.finish(outcome.and(ended))
        }
        Err(error) => {
            drop(living);
            program.listener.take();
            program.client_lives.take();
            program.finish(Err(error))
        }
    }
}
