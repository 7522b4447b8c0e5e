//! The guest's kernel: Debian's 6.1 for clouds, as its package has it, unpacked into the target folder and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::archive::{Apt, DOWNLOAD_DEADLINE};
use crate::{paths, run};

/// Names of the packages, as apt-cache searches them: every build of that version.
const PACKAGES: &str = r"^linux-image-6\.1\.[0-9]+-[0-9]+-cloud-amd64$";
/// The release of Debian that has them.
const RELEASE: &str = "bookworm";
/// Longest that unpacking may take on a small machine.
const LOCAL_DEADLINE: Duration = Duration::from_secs(120);
/// The module that tells which Unix sockets belong together; this kernel has it not built in.
const MODULE: &str = "kernel/net/unix/unix_diag.ko";
/// Changes whenever the folder must be made anew.
const RECIPE: &str = "1";

/// Where the kernel is.
pub(super) struct Kernel {
    /// What the machine boots.
    pub image: PathBuf,
    /// The module, fit for it.
    pub module: PathBuf,
}

/// The kernel; fetched if it is not there.
///
/// # Errors
/// The machine is no Debian for x86-64, the archive cannot be reached, or has no such kernel.
pub(super) fn fetch() -> Result<Kernel> {
    let place = paths::target().join("vm/kernel");
    if fs::read_to_string(place.join("complete")).is_ok_and(|recipe| recipe == RECIPE) {
        println!("setup: found a 6.1 kernel for the virtual machine in {}", place.display());
        return find(&place);
    }
    println!("setup: missing a 6.1 kernel (vm-test boots it): unpacking Debian's into {}", place.display());
    let tools = ["apt-get", "dpkg-deb"].map(paths::find_program);
    if std::env::consts::ARCH != "x86_64" || tools.iter().any(Option::is_none) {
        bail!("this is no Debian for x86-64: the virtual machine's kernel is taken from its packages");
    }
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("clearing {}", place.display()))?;
    }
    let work = place.join("apt");
    fs::create_dir_all(&work)?;
    fill(&place, &work).context("the kernel could not be fetched: is Debian's archive within reach? Try `apt-get update`")?;
    let kernel = find(&place)?;
    fs::remove_dir_all(work)?;
    fs::write(place.join("complete"), RECIPE)?;
    Ok(kernel)
}

/// Downloads and unpacks the newest build that the archive really has.
fn fill(place: &Path, work: &Path) -> Result<()> {
    let apt = Apt::new(work, Some(RELEASE))?;
    let found = run::capture_success(apt.cache().args(["search", "--names-only", PACKAGES]), LOCAL_DEADLINE)?.stdout;
    let names = newest_first(&found);
    for name in &names {
        // Some mirrors name packages that they do not have.
        if run::run(apt.get().args(["download", name]).current_dir(work), DOWNLOAD_DEADLINE).is_err() {
            println!("setup: the archive does not have {name}");
            continue;
        }
        let packages = fs::read_dir(work)?.filter_map(Result::ok).map(|entry| entry.path());
        let package = packages.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
        let package = package.with_context(|| format!("`apt-get download {name}` left no package"))?;
        run::capture_success(Command::new("dpkg-deb").arg("--extract").arg(package).arg(place), LOCAL_DEADLINE)?;
        return Ok(());
    }
    bail!("Debian's archive has none of {PACKAGES} (found {}): is {RELEASE} out of it?", names.join(" "))
}

/// The names of the packages in apt-cache's answer, `NAME - what it is`, newest build first.
fn newest_first(found: &str) -> Vec<&str> {
    let mut names: Vec<&str> = found.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let number =
        |name: &&str| name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    names.sort_by_key(number);
    names.reverse();
    names
}

fn find(place: &Path) -> Result<Kernel> {
    let only = |folder: &str, start: &str| {
        let entries = fs::read_dir(place.join(folder)).with_context(|| format!("reading {folder} of the kernel's package"))?;
        let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
        paths.into_iter().find(named).with_context(|| format!("the kernel's package has no {folder}/{start}…"))
    };
    let kernel = Kernel { image: only("boot", "vmlinuz-")?, module: only("lib/modules", "6.1.")?.join(MODULE) };
    if !kernel.module.is_file() {
        bail!("the kernel's package has no {MODULE}: remove {} and run `cargo xtask setup`", place.display());
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_build_comes_first() {
        let found = "linux-image-6.1.0-9-cloud-amd64 - Linux\nlinux-image-6.1.0-56-cloud-amd64 - Linux\nlinux-image-6.1.0-10-cloud-amd64 - x\n";
        let names = newest_first(found);
        assert_eq!(names.first(), Some(&"linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(names.last(), Some(&"linux-image-6.1.0-9-cloud-amd64"));
    }
}
