//! systemd for the test that its own parsers read what `suggest` prints: the machine's, or Debian's, unpacked into the target folder and
//! never installed. Nothing of it is started but its parser of unit files, which prints and ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::archive::{Apt, DOWNLOAD_DEADLINE};
use crate::{paths, run};

/// Longest that unpacking may take on a small machine.
const LOCAL_DEADLINE: Duration = Duration::from_secs(120);
/// Its library of parsers is a dependency.
const PACKAGE: &str = "systemd";
/// Dependencies that nothing here calls, or that must come from the machine: a second libc would not fit its loader.
const UNUSED: [&str; 4] = ["init-system-helpers", "libc-bin", "libc6", "mount"];
/// Changes whenever the folder must be made anew.
const RECIPE: &str = "1";

/// The folder below which systemd is, for `TSSX_SYSTEMD`: `/`, or one in the target folder, which is filled if it is not.
///
/// # Errors
/// The machine has none and is no Debian, or the archive cannot be reached.
pub(crate) fn fetch() -> Result<PathBuf> {
    if is_in(Path::new("/")) {
        println!("setup: found systemd of this machine");
        return Ok(PathBuf::from("/"));
    }
    let place = paths::target().join("systemd");
    let root = place.join("root");
    if fs::read_to_string(place.join("complete")).is_ok_and(|recipe| recipe == RECIPE) {
        println!("setup: found systemd in {}", place.display());
        return Ok(root);
    }
    println!("setup: missing systemd (its parsers read what `suggest` prints): unpacking it into {}", place.display());
    if ["apt-get", "dpkg-deb"].map(paths::find_program).iter().any(Option::is_none) {
        bail!("this is no Debian: the tests' systemd is taken from its package; or install systemd");
    }
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("clearing {}", place.display()))?;
    }
    fill(&place, &root).context("systemd could not be fetched: is Debian's archive within reach? Try `apt-get update`")?;
    if !is_in(&root) {
        bail!("Debian's systemd is not where it was: {} has no manager or no libsystemd-shared", root.display());
    }
    fs::remove_dir_all(place.join("apt"))?;
    fs::write(place.join("complete"), RECIPE)?;
    Ok(root)
}

fn fill(place: &Path, root: &Path) -> Result<()> {
    let packages = place.join("apt/packages");
    fs::create_dir_all(&packages)?;
    fs::create_dir_all(root)?;
    let apt = Apt::new(&place.join("apt"), None)?;
    let mut names = apt.missing(&[PACKAGE], &UNUSED)?;
    names.sort();
    run::run(apt.get().arg("download").args(names).current_dir(&packages), DOWNLOAD_DEADLINE)?;
    for package in fs::read_dir(&packages)? {
        run::capture_success(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(root), LOCAL_DEADLINE)?;
    }
    Ok(())
}

/// Whether manager and library are there.
fn is_in(root: &Path) -> bool {
    let own = format!("usr/lib/{}-linux-gnu/systemd", std::env::consts::ARCH);
    let has = |folder: &str, start: &str| {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(start))
    };
    let manager = ["usr/lib/systemd", "lib/systemd"].iter().any(|folder| root.join(folder).join("systemd").is_file());
    manager && [own.as_str(), "usr/lib/systemd", "lib/systemd"].iter().any(|folder| has(folder, "libsystemd-shared-"))
}
