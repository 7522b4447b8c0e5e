//! The unpacked servers ([`crate::servers`]) where the user who is to run them can read them, and how their programs are started.
//!
//! PostgreSQL refuses to be root, and the library accelerates only between processes of one user: where xtask runs as root, servers and
//! clients run as nobody. Nobody cannot enter every folder that a clone may be in, so the servers are copied if need be, and what is
//! preloaded is always.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, User};
use tempfile::TempDir;

use crate::environment::without_library;
use crate::{paths, run};

/// Longest that copying the servers, or starting one to see whether it can be, may take.
const DEADLINE: Duration = Duration::from_secs(90);

/// Packages in a folder that their user can read.
pub(crate) struct Unpacked {
    root: PathBuf,
    user: Option<(Uid, Gid)>,
    /// Keeps the copy, if one was needed.
    copy: Option<TempDir>,
}

impl Unpacked {
    /// Those of `folder`, which [`crate::servers::fetch`] has made.
    ///
    /// # Errors
    /// They are not there, there is no user nobody, or they cannot be copied.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let user = match Uid::effective().is_root() {
            true => {
                let nobody = User::from_name("nobody")?.context("there is no user nobody, and PostgreSQL refuses to be root")?;
                Some((nobody.uid, nobody.gid))
            }
            false => None,
        };
        let mut unpacked = Self { root: folder.join("root"), user, copy: None };
        let mut probe = unpacked.command(&unpacked.postgres("postgres")?, Path::new("/"));
        if run::capture_success(probe.arg("--version"), DEADLINE).is_err() {
            unpacked.move_to_copy()?;
        }
        Ok(unpacked)
    }

    fn move_to_copy(&mut self) -> Result<()> {
        let copy = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
        let folder = copy.path().join("servers");
        run::capture_success(Command::new("cp").arg("-a").arg(&self.root).arg(&folder), DEADLINE)?;
        run::capture_success(Command::new("chmod").args(["-R", "a+rX"]).arg(&folder), DEADLINE)?;
        (self.root, self.copy) = (folder, Some(copy));
        Ok(())
    }

    /// A new folder that belongs to the user.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn home(&self) -> Result<TempDir> {
        let home = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
        if let Some((uid, gid)) = self.user {
            nix::unistd::chown(home.path(), Some(uid), Some(gid))?;
        }
        Ok(home)
    }

    /// What the packages take for `/`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// One of PostgreSQL's programs.
    ///
    /// # Errors
    /// PostgreSQL is not unpacked.
    pub(crate) fn postgres(&self, program: &str) -> Result<PathBuf> {
        Ok(self.entry("usr/lib/postgresql", "")?.join("bin").join(program))
    }

    /// The first entry of a folder below the root whose name starts so: names carry versions.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn entry(&self, folder: &str, start: &str) -> Result<PathBuf> {
        let folder = self.root.join(folder);
        let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?.filter_map(Result::ok);
        let found = entries.map(|entry| entry.path()).find(|path| path.file_name().is_some_and(|name| named(name, start)));
        found.with_context(|| format!("{} has no {start}…: run `cargo xtask setup`", folder.display()))
    }

    /// A program as the user, with the packages' shared libraries, at home in `home`, without the library.
    pub(crate) fn command(&self, program: &Path, home: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.user {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        let libraries =
            ["usr/lib", "lib"].map(|folder| self.root.join(folder).join(format!("{}-linux-gnu", std::env::consts::ARCH)));
        let [first, second] = libraries.map(|folder| folder.display().to_string());
        command.env("LD_LIBRARY_PATH", format!("{first}:{second}")).env("LC_ALL", "C.UTF-8");
        command.env("HOME", home).env("TMPDIR", home).current_dir(home);
        without_library(&mut command);
        command
    }
}

fn named(name: &std::ffi::OsStr, start: &str) -> bool {
    name.to_string_lossy().starts_with(start)
}

/// The redis server in `directory`, under its name; Debian's redis-tools has it under another, which a link mends.
///
/// # Errors
/// The machine has none.
pub(crate) fn redis_server(directory: &Path) -> Result<PathBuf> {
    if let Some(program) = paths::find_program("redis-server") {
        return Ok(program);
    }
    let link = directory.join("redis-server");
    if !link.exists() {
        let binary = paths::find_program("redis-check-rdb").context("no redis-server: run `cargo xtask setup`")?;
        std::os::unix::fs::symlink(binary, &link)?;
    }
    Ok(link)
}
