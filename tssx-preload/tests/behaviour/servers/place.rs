//! Where the servers are, as whom they run, and how they end.
//!
//! PostgreSQL refuses to be root, and the library accelerates only between processes of one user: where the tests run as
//! root, all of a trial runs as nobody. Nobody cannot enter every folder that a clone may be in (`/root`, say), so that the
//! library is always copied into the trial's own folder, and the servers into a temporary one if need be.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Gid, Pid, Uid, User};
use tempfile::TempDir;

use crate::environment::without_library;
use crate::harness::DEADLINE;
use crate::ledger::{self, Counted};
use crate::library::library;
use crate::mode::{End, Mode};
use crate::process::{Ended, Process};
use crate::role::SOON;

/// The unpacked packages. They are looked for at first use: most runs of the tests ask for other trials.
#[derive(Default)]
pub(super) struct Software {
    found: OnceLock<Result<Unpacked, String>>,
}

/// Packages in a folder that the servers' user can read.
pub(super) struct Unpacked {
    folder: PathBuf,
    user: Option<(Uid, Gid)>,
    /// Keeps the copy, if one was needed, until the last trial is over.
    _copy: Option<TempDir>,
}

impl Software {
    /// The packages, ready to run.
    ///
    /// # Errors
    /// They are not there, or cannot be copied to where their user can read them.
    pub(super) fn unpacked(&self) -> Result<&Unpacked, Failed> {
        self.found
            .get_or_init(|| Unpacked::find().map_err(|error| error.message().unwrap_or("cannot say why").to_owned()))
            .as_ref()
            .map_err(Into::into)
    }
}

impl Unpacked {
    fn find() -> Result<Self, Failed> {
        let folder = std::env::var_os("TSSX_SERVERS").ok_or(
            "TSSX_SERVERS must name the folder that `cargo xtask setup` makes (target/servers): run these tests by `cargo xtask test`",
        )?;
        let folder = PathBuf::from(folder);
        if !folder.join("complete").is_file() {
            return Err(format!("{} is not complete: run `cargo xtask setup`", folder.display()).into());
        }
        let user = if Uid::effective().is_root() {
            let nobody = User::from_name("nobody")?.ok_or("there is no user nobody, and PostgreSQL refuses to run as root")?;
            Some((nobody.uid, nobody.gid))
        } else {
            None
        };
        let found = Self { folder, user, _copy: None };
        if found.readable()? { Ok(found) } else { found.copied() }
    }

    fn readable(&self) -> Result<bool, Failed> {
        self.can_read(&[self.folder.join("complete"), self.folder.join("regress/regress.so"), self.root().join("usr/sbin/nginx")])
    }

    /// Whether the user can, by trying: what a path lets in is more than the modes of its folders.
    fn can_read(&self, files: &[PathBuf]) -> Result<bool, Failed> {
        let mut command = Command::new("cat");
        self.as_user(command.args(files));
        Ok(Process::start(&mut command)?.finish(Instant::now() + SOON).code == Some(0))
    }

    fn copied(self) -> Result<Self, Failed> {
        let copy = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
        let folder = copy.path().join("servers");
        let [mut all, mut open] = ["cp", "chmod"].map(Command::new);
        all.arg("-a").arg(&self.folder).arg(&folder);
        open.args(["-R", "a+rX"]).arg(&folder);
        for step in [&mut all, &mut open] {
            let ended = Process::start(step)?.finish(Instant::now() + DEADLINE);
            if ended.code != Some(0) {
                return Err(format!("{step:?}: {}", ended.all()).into());
            }
        }
        let copied = Self { folder, user: self.user, _copy: Some(copy) };
        if !copied.readable()? {
            return Err(no_entry(&copied.folder));
        }
        Ok(copied)
    }

    fn as_user(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.user {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
    }

    /// Folders of the shared libraries that came with the packages.
    fn libraries(&self) -> [PathBuf; 2] {
        ["usr/lib", "lib"].map(|folder| self.root().join(folder).join(format!("{}-linux-gnu", std::env::consts::ARCH)))
    }

    /// What the packages take for `/`.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The inputs of PostgreSQL's own tests.
    pub(super) fn regress(&self) -> PathBuf {
        self.folder.join("regress")
    }

    /// The only entry of a folder below the root whose name starts so: names carry versions.
    pub(super) fn entry(&self, folder: &str, start: &str) -> Result<PathBuf, Failed> {
        let folder = self.root().join(folder);
        let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut entries = entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
        let entry = entries.next().ok_or_else(|| format!("{} has no {start}…: run `cargo xtask setup`", folder.display()))?;
        Ok(entry.path())
    }
}

/// One trial's folder, which its user owns, and how its programs are started.
pub(super) struct Home<'a> {
    /// The packages.
    pub(super) software: &'a Unpacked,
    mode: Mode,
    directory: TempDir,
}

impl<'a> Home<'a> {
    /// Makes the folder.
    pub(super) fn new(software: &'a Software, mode: Mode) -> Result<Self, Failed> {
        let software = software.unpacked()?;
        let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
        if let Some((uid, gid)) = software.user {
            nix::unistd::chown(directory.path(), Some(uid), Some(gid))?;
        }
        let home = Self { software, mode, directory };
        fs::copy(library(), home.library())?;
        fs::set_permissions(home.library(), Permissions::from_mode(0o755))?;
        if software.can_read(&[home.library()])? { Ok(home) } else { Err(no_entry(home.directory.path())) }
    }

    /// A name in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn library(&self) -> PathBuf {
        self.path("libtssx_preload.so")
    }

    /// How the library is present.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Writes a file of the trial.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failed> {
        let path = self.path(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// A program of the packages, as their user and without the library.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        self.software.as_user(&mut command);
        let [first, second] = self.software.libraries();
        command.env("LD_LIBRARY_PATH", format!("{}:{}", first.display(), second.display())).env("LC_ALL", "C.UTF-8");
        command.env("HOME", self.directory.path()).env("TMPDIR", self.directory.path()).current_dir(self.directory.path());
        without_library(&mut command);
        command
    }

    /// Gives the program the library, if the trial's mode has it at this end.
    pub(super) fn preload(&self, command: &mut Command, end: End, socket: &Path) {
        self.mode.apply(command, end, socket);
        if self.mode.has_library(end) {
            command.env("LD_PRELOAD", self.library());
        }
    }

    /// Runs a program to its end.
    pub(super) fn run(&self, command: &mut Command, limit: Duration) -> Result<Ended, Failed> {
        let ended = Process::start(command)?.finish(Instant::now() + limit);
        if ended.code != Some(0) {
            return Err(format!("{:?}: {command:?}: {}", self.mode, ended.all()).into());
        }
        Ok(ended)
    }
}

/// A running server: the process that we started, and those that it forked.
pub(super) struct Running {
    process: Option<Process>,
    name: &'static str,
    /// What asks it to end.
    signal: Signal,
}

impl Running {
    /// Starts it, and waits until it is `ready`.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        signal: Signal,
        ready: impl Fn() -> bool,
    ) -> Result<Self, Failed> {
        // A group of its own: if it must be killed, its children go with it.
        let process = Process::start(command.process_group(0))?;
        let mut running = Self { process: Some(process), name, signal };
        let deadline = Instant::now() + SOON;
        while !ready() {
            if Instant::now() > deadline || running.process.as_mut().is_none_or(Process::ended) {
                let said = running.end().map_or_else(String::new, |ended| ended.all());
                return Err(format!("{name} does not come up: {said}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(running)
    }

    /// The first process' id.
    pub(super) fn id(&self) -> u32 {
        self.process.as_ref().map_or(0, Process::id)
    }

    /// What the ledgers of the whole family say.
    pub(super) fn counted(&self) -> Result<Counted, Failed> {
        Ok(ledger::of_family(self.id())?)
    }

    /// Ends it in its own way, and fails if it does not.
    pub(super) fn stop(mut self) -> Result<(), Failed> {
        let ended = self.end().ok_or("ended before")?;
        if ended.code != Some(0) {
            return Err(format!("{} does not end as it should: {}", self.name, ended.all()).into());
        }
        Ok(())
    }

    fn end(&mut self) -> Option<Ended> {
        let mut process = self.process.take()?;
        let id = Pid::from_raw(process.id().cast_signed());
        if !process.ended() {
            // It may end by itself in between, which is as good.
            let _ = kill(id, self.signal);
            let deadline = Instant::now() + SOON;
            while !process.ended() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            if !process.ended() {
                let _ = killpg(id, Signal::SIGKILL);
            }
        }
        Some(process.finish(Instant::now()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.end());
    }
}

fn no_entry(folder: &Path) -> Failed {
    format!("the user nobody cannot read {}: set TMPDIR to a folder that every user can enter", folder.display()).into()
}

/// Whether somebody accepts connections there.
pub(super) fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}
