//! `cargo xtask build`: the kernel programs first, since the tracer embeds them; then the library and the tracer.
//!
//! 1. tssx-ebpf for the BPF target, with the compiler that [`toolchain`] finds, copied to `<target>/bpf/tssx-ebpf`;
//! 2. tssx-preload, on its own: built together with other crates it would inherit their features (libc's `std`)
//!    and could no longer be a library that needs nothing but libc.so.6;
//! 3. tssx-trace, told by `TSSX_EBPF_OBJECT` where the kernel programs are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{paths, run, setup, toolchain};

/// Longest that one cargo build may take on a small machine with cold caches.
pub(crate) const BUILD_DEADLINE: Duration = Duration::from_secs(1500);

/// What a build leaves behind, by absolute path.
pub(crate) struct Artefacts {
    /// The kernel programs, an ELF object for the BPF machine.
    pub ebpf: PathBuf,
    /// The preload library.
    pub preload: PathBuf,
    /// The command line tool; it finds the library beside itself.
    pub trace: PathBuf,
}

impl fmt::Display for Artefacts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "kernel programs  {}", self.ebpf.display())?;
        writeln!(out, "preload library  {}", self.preload.display())?;
        write!(out, "tracer           {}", self.trace.display())
    }
}

/// Builds everything that is shipped, in release mode; installs what is missing for it first.
///
/// # Errors
/// The first command that failed, in full.
pub(crate) fn build() -> Result<Artefacts> {
    let ebpf = ebpf()?;
    let preload = preload()?;
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["build", "--release", "--package", "tssx-trace"]).env("TSSX_EBPF_OBJECT", &ebpf).current_dir(paths::workspace());
    run::run(&mut cargo, BUILD_DEADLINE)?;
    let trace = existing(&paths::target().join("release/tssx-trace"))?;
    Ok(Artefacts { ebpf, preload, trace })
}

/// Builds the preload library only.
pub(crate) fn preload() -> Result<PathBuf> {
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["build", "--release", "--package", "tssx-preload"]).current_dir(paths::workspace());
    run::run(&mut cargo, BUILD_DEADLINE)?;
    existing(&paths::target().join("release/libtssx_preload.so"))
}

/// The library that a command uses: none where it is to show what the kernel's socket does (`plain`), the one that is named, or one that
/// is built first.
///
/// # Errors
/// There is no such file, or the build fails.
pub(crate) fn library(named: Option<&Path>, plain: bool) -> Result<Option<PathBuf>> {
    match named {
        _ if plain => Ok(None),
        Some(library) => std::fs::canonicalize(library).map(Some).with_context(|| format!("no library {}", library.display())),
        None => preload().map(Some),
    }
}

/// Builds the kernel programs only.
pub(crate) fn ebpf() -> Result<PathBuf> {
    if toolchain::complete().is_err() {
        setup::setup()?;
    }
    let (toolchain, linker) = toolchain::complete()?;
    let directory = paths::target().join("bpf-build");
    let mut cargo = toolchain.cargo(&linker, "build");
    cargo.args(["--release", "--package", "tssx-ebpf", "--bin", "tssx-ebpf", "--features", "bpf", "--target-dir"]).arg(&directory);
    run::run(&mut cargo, BUILD_DEADLINE)?;
    let made = existing(&directory.join(toolchain::BPF_TARGET).join("release/tssx-ebpf"))?;
    let object = paths::target().join("bpf/tssx-ebpf");
    std::fs::create_dir_all(paths::target().join("bpf"))?;
    if std::fs::read(&object).ok() != Some(std::fs::read(&made)?) {
        // Only when it differs: the tracer is built anew whenever this file is touched.
        std::fs::copy(&made, &object).with_context(|| format!("cannot write {}", object.display()))?;
    }
    existing(&object)
}

fn existing(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("the build succeeded but {} is not there", path.display()))
}
