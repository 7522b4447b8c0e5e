//! Where a recipe is played: a folder that its user owns, with the programs under their names, and a shell that runs lines of the script
//! there. What the script leaves open is in variables: `SOCKET`, `WATCH`, `CLIENTS`, `MANY`.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use tempfile::TempDir;

use super::script::Line;
use crate::build::Artefacts;
use crate::environment::without_library;
use crate::measure::{ROUND_DEADLINE, Running};
use crate::run::{self, Output};
use crate::unpacked::{Unpacked, redis_server};

/// What the shell finds besides the recipes' programs.
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit status of the tracer where it could not count all.
const LOST: i32 = 3;
/// How often a window is tried.
const WATCHES: usize = 4;
/// Of a failed command's output.
const MOST_LINES: usize = 120;

/// The folder, and what the script's variables are there.
pub(super) struct Stage<'a> {
    servers: &'a Unpacked,
    home: TempDir,
    socket: PathBuf,
    clients: u32,
    watch: &'static str,
}

impl<'a> Stage<'a> {
    /// Makes it, with the tracer and the library of `artefacts`.
    pub(super) fn new(
        servers: &'a Unpacked,
        artefacts: &Artefacts,
        socket: &str,
        clients: u32,
        watch: &'static str,
    ) -> Result<Self> {
        let home = servers.home()?;
        let bin = home.path().join("bin");
        fs::create_dir(&bin)?;
        // Side by side, as in the target folder, which the user may not be able to enter.
        for (from, name) in [(&artefacts.trace, "tssx-trace"), (&artefacts.preload, "libtssx_preload.so")] {
            fs::copy(from, bin.join(name)).with_context(|| format!("copying {}", from.display()))?;
            fs::set_permissions(bin.join(name), Permissions::from_mode(0o755))?;
        }
        let link = |name: &str, program: PathBuf| std::os::unix::fs::symlink(program, bin.join(name));
        for name in ["postgres", "pgbench", "psql", "initdb"] {
            link(name, servers.postgres(name)?)?;
        }
        link("php-fpm", servers.entry("usr/sbin", "php-fpm")?)?;
        link("nginx", servers.root().join("usr/sbin/nginx"))?;
        link("memcached", servers.root().join("usr/bin/memcached"))?;
        redis_server(&bin)?;
        let socket = home.path().join(socket);
        Ok(Self { servers, home, socket, clients, watch })
    }

    /// The server's socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// A name in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file that the programs read.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.path(name), text)?;
        fs::set_permissions(self.path(name), Permissions::from_mode(0o644))?;
        Ok(())
    }

    /// Writes a calibration where the tracer is told to read one.
    pub(super) fn copy(&self, from: &Path, name: &str) -> Result<()> {
        fs::copy(from, self.path(name)).with_context(|| format!("copying {}", from.display()))?;
        fs::set_permissions(self.path(name), Permissions::from_mode(0o644))?;
        Ok(())
    }

    /// A shell for a line, with `first` before it. The shell becomes the program.
    pub(super) fn shell(&self, line: &Line, first: Option<&Line>, many: u64) -> Command {
        let shell = Path::new("/bin/sh");
        let mut command = self.servers.command(shell, self.home.path());
        if line.sudo {
            // We are root: the tracer is not to run as the servers' user.
            command = Command::new(shell);
            without_library(&mut command);
            command.current_dir(self.home.path());
        }
        let text = first.map(|first| format!("{}\n", first.text)).unwrap_or_default();
        command.arg("-c").arg(format!("{text}exec {}", line.text));
        command.env("PATH", format!("{}:{SYSTEM_PATH}", self.path("bin").display())).env("SOCKET", &self.socket);
        command.env("WATCH", self.watch).env("CLIENTS", self.clients.to_string()).env("MANY", many.to_string());
        command.env("PGHOST", self.home.path()).env("PGUSER", "tester");
        // No php.ini of the machine's, which would name extensions in its own folders.
        command.env("PHPRC", self.home.path()).env("PHP_INI_SCAN_DIR", "");
        command
    }

    /// Runs a line to its end; fails unless it succeeds.
    pub(super) fn run(&self, line: &Line) -> Result<Output> {
        self.ends(&mut self.shell(line, None, 0), &[0])
    }

    /// Has the tracer watch. What else happens on the machine may be more than it can count, which it says: then it watches again.
    pub(super) fn watch(&self, line: &Line) -> Result<Output> {
        for _ in 1..WATCHES {
            let output = self.ends(&mut self.shell(line, None, 0), &[0, LOST])?;
            if output.status.success() {
                return Ok(output);
            }
            println!("watching again: {}", output.stderr.trim_end());
        }
        self.run(line)
    }

    /// Runs a command to its end; fails unless it exits with one of `statuses`.
    pub(super) fn ends(&self, command: &mut Command, statuses: &[i32]) -> Result<Output> {
        let output = run::capture(command, ROUND_DEADLINE)?;
        if !output.status.code().is_some_and(|code| statuses.contains(&code)) {
            let text = command.get_args().last().unwrap_or_default().to_string_lossy();
            let said: Vec<_> = output.stdout.lines().take(MOST_LINES).chain(output.stderr.lines().take(MOST_LINES)).collect();
            bail!("`{text}` ended with {} instead of {statuses:?}:\n{}\n{}", output.status, said.join("\n"), self.logs());
        }
        Ok(output)
    }

    /// Starts a server and waits until `ready`; what it says goes to a file.
    pub(super) fn server(&self, mut command: Command, signal: Signal, ready: impl Fn() -> bool) -> Result<Running> {
        let log = File::options().create(true).append(true).open(self.path("servers.log"))?;
        let mut running = Running::start_with(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?.ended_by(signal);
        let start = std::time::Instant::now();
        while !ready() {
            if running.child().try_wait()?.is_some() || start.elapsed() > ROUND_DEADLINE {
                bail!("`{}` does not come up:\n{}", run::shown(&command), self.logs());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(running)
    }

    /// Starts a load that is ended when it goes out of scope.
    pub(super) fn load(&self, mut command: Command) -> Result<Running> {
        let log = File::create(self.path("load.log"))?;
        Running::start_with(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
    }

    /// What servers and load said for themselves.
    pub(super) fn logs(&self) -> String {
        let text = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
        ["servers.log", "nginx.log", "php-fpm.log", "load.log"].map(|name| format!("--- {name}\n{}", text(name))).concat()
    }
}

/// Whether the recipes can be played at all: the tracer counts as root only.
pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}
