//! What the guest's first file system holds: our programs, the shared objects that they need, a kernel module, nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

use super::cpio::Archive;
use super::guest;
use super::kernel::Kernel;
use crate::build::{Artefacts, BUILD_DEADLINE};
use crate::{paths, run};

/// Longest that a tool of binutils or libc may take.
const TOOL_DEADLINE: Duration = Duration::from_secs(60);
/// The device that the kernel gives init as its input and output: its numbers are in the kernel's admin-guide/devices.txt.
const CONSOLE: (&str, u32, u32) = ("/dev/console", 5, 1);

/// Writes the archive to `place`.
///
/// # Errors
/// A program cannot be built, stripped or read, or needs a shared object that is not there.
pub(super) fn write(place: &Path, artefacts: &Artefacts, kernel: &Kernel) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut archive = Archive::default();
    let mut objects = BTreeSet::new();
    let own = scratch.path().join("xtask");
    std::fs::copy(paths::OWN_PROGRAM, &own).context("cannot copy our own program")?;
    for (program, inside) in [(own, guest::INIT), (artefacts.trace.clone(), guest::TRACE), (behaviour()?, guest::BEHAVIOUR)] {
        objects.extend(shared_objects(&program)?);
        archive.file(Path::new(inside), &stripped(&program, scratch.path())?)?;
    }
    objects.extend(shared_objects(&artefacts.preload)?);
    archive.file(Path::new(guest::LIBRARY), &read(&artefacts.preload)?)?;
    archive.file(Path::new(guest::MODULE), &read(&kernel.module)?)?;
    for object in objects {
        archive.file(&object, &read(&object)?)?;
    }
    for (directory, ..) in guest::MOUNTS {
        archive.directory(Path::new(directory))?;
    }
    archive.device(Path::new(CONSOLE.0), CONSOLE.1, CONSOLE.2)?;
    std::fs::write(place, archive.finish()?).with_context(|| format!("cannot write {}", place.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Builds the behaviour tests; their program.
fn behaviour() -> Result<PathBuf> {
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["test", "--package", "xtask", "--test", "behaviour", "--no-run", "--message-format", "json-render-diagnostics"]);
    let output = run::capture_success(cargo.current_dir(paths::workspace()), BUILD_DEADLINE)?;
    let messages = Message::parse_stream(output.stdout.as_bytes());
    let programs = messages.filter_map(Result::ok).filter_map(|message| match message {
        Message::CompilerArtifact(artifact) if artifact.target.name == "behaviour" => artifact.executable,
        _ => None,
    });
    let program = programs.last().context("cargo names no program of the behaviour tests")?;
    Ok(program.into_std_path_buf())
}

/// The program without what only a debugger reads: the guest unpacks all of it into memory.
fn stripped(program: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let copy = scratch.join("stripped");
    run::capture_success(Command::new("strip").arg("-o").arg(&copy).arg(program), TOOL_DEADLINE)?;
    read(&copy)
}

/// The shared objects that a program loads, its loader among them, where this machine has them.
fn shared_objects(program: &Path) -> Result<Vec<PathBuf>> {
    let output = run::capture_success(Command::new("ldd").arg(program), TOOL_DEADLINE)?.stdout;
    let objects = named_objects(&output)?;
    if objects.is_empty() {
        bail!("`ldd {}` names no shared object: {output}", program.display());
    }
    Ok(objects)
}

/// The paths in what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn named_objects(text: &str) -> Result<Vec<PathBuf>> {
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("a shared object is missing on this machine:{line}");
    }
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_prints_is_understood() -> Result<()> {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/a/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(named_objects(text)?, [Path::new("/lib/a/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
        assert!(named_objects("\tlibx.so => not found\n").is_err());
        Ok(())
    }
}
