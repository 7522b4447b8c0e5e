//! `cargo xtask package`: a Debian package with the library, the tracer, man pages, completions and examples.
//!
//! [`stage`] lays out the tree that dpkg-deb packs, [`depends`] reads from the programs which libraries of which versions they need. The same
//! commit gives the same bytes: times are those of the commit, owner and rights are fixed, and nothing of the machine gets in. There is no
//! maintainer script: nothing outside the package's own files changes when it is installed. [`trial`] installs it where it cannot harm.

mod depends;
mod stage;
mod trial;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build::Artefacts;
use crate::{build, paths, run, setup};
pub(crate) use trial::trial;

/// Longest that one tool may take.
const TOOL_DEADLINE: Duration = Duration::from_secs(300);
/// Name of the package.
const NAME: &str = "tssx";
/// What dpkg(1) demands of a version's maintainer.
const MAINTAINER: &str = "The TSSX authors <tssx@users.noreply.github.com>";

/// What to do with it.
#[derive(Args)]
pub(crate) struct Options {
    /// Install it below a temporary root, use it from there and purge it again; needs root
    #[arg(long = "try")]
    tried: bool,
}

/// Builds what is shipped, and the package from it.
///
/// # Errors
/// The first command that failed, in full.
pub(crate) fn package(options: &Options) -> Result<()> {
    setup::setup()?;
    let artefacts = build::build()?;
    let made = make(&artefacts, &paths::target().join("package"))?;
    println!("package  {}", made.display());
    if options.tried { trial(&artefacts) } else { Ok(()) }
}

/// Makes the package in that directory; where it is.
///
/// # Errors
/// This is no Debian, or a tool failed.
fn make(artefacts: &Artefacts, directory: &Path) -> Result<PathBuf> {
    if paths::find_program("dpkg-deb").is_none() {
        bail!("packages are made by dpkg-deb, which is not here: run this on Debian, or copy what `cargo xtask build` made");
    }
    let epoch = epoch()?;
    let architecture = text(Command::new("dpkg").arg("--print-architecture"))?;
    let tree = directory.join("tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("cannot clear {}", tree.display()))?;
    }
    let staged = stage::lay_out(artefacts, &tree, epoch)?;
    stage::control(&staged, &tree, &architecture, epoch)?;
    let package = directory.join(format!("{NAME}_{}_{architecture}.deb", version()));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&package).env("SOURCE_DATE_EPOCH", epoch.to_string());
    run::capture_success(&mut pack, TOOL_DEADLINE)?;
    Ok(package)
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The time that everything in the package bears, seconds since 1970: that of the commit, unless the environment names another.
fn epoch() -> Result<u64> {
    if let Some(named) = std::env::var_os("SOURCE_DATE_EPOCH") {
        let named = named.to_string_lossy();
        return named.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {named}, and not a number of seconds"));
    }
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"]).current_dir(paths::workspace());
    let time = text(&mut git).context("the time of the commit comes from git: set SOURCE_DATE_EPOCH where there is no clone")?;
    time.parse().with_context(|| format!("git says that the commit was made at `{time}`"))
}

/// What a tool prints, without the end of the line.
fn text(command: &mut Command) -> Result<String> {
    Ok(run::capture_success(command, TOOL_DEADLINE)?.stdout.trim_end().to_owned())
}
