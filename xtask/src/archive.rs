//! Debian's archive, asked without touching the machine: apt with sources, lists and a cache of its own in a folder of ours,
//! so that fetching needs no root and the machine's own state stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::run;

/// Longest that one download may take on a slow link.
pub(crate) const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(900);
/// Longest that a question to the lists may take.
const LOCAL_DEADLINE: Duration = Duration::from_secs(120);
/// Debian's own keys, where its packages put them.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with sources, lists and a cache of its own.
pub(crate) struct Apt {
    place: PathBuf,
    /// Names of the releases, oldest configuration first.
    releases: Vec<String>,
}

impl Apt {
    /// Takes from the machine's configuration what is Debian's, and adds the source packages, which it seldom names. With
    /// `release`, what the archives have of that release of Debian too.
    ///
    /// # Errors
    /// The configuration names no archive of Debian, or none that answers.
    pub(crate) fn new(place: &Path, release: Option<&str>) -> Result<Self> {
        let mut apt = Self { place: place.to_path_buf(), releases: Vec::new() };
        fs::create_dir_all(apt.place.join("lists"))?;
        if let Err(error) = run::run(apt.get().arg("update"), DOWNLOAD_DEADLINE) {
            println!("setup: {error:#}: trying Debian's archive alone"); // what else is configured may be out of reach
        }
        let mut targets = apt.get();
        let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
        targets.args(["indextargets", "--format", format, "Created-By: Packages", "Origin: Debian"]);
        let targets = run::capture_success(&mut targets, LOCAL_DEADLINE)?.stdout;
        let signed = if Path::new(KEYS).is_file() { format!("[signed-by={KEYS}] ") } else { String::new() };
        let mut entries: String =
            targets.lines().map(|target| format!("deb {signed}{target}\ndeb-src {signed}{target}\n")).collect();
        if entries.is_empty() {
            bail!("apt's configuration names no archive of Debian, or none that answers");
        }
        entries.extend(release.and_then(|release| of_release(&targets, release)).map(|target| format!("deb {signed}{target}\n")));
        fs::write(apt.list(), entries)?;
        apt.releases = targets.lines().filter_map(|target| target.split_whitespace().nth(1)).map(str::to_owned).collect();
        run::run(apt.get().arg("update"), DOWNLOAD_DEADLINE)?;
        Ok(apt)
    }

    /// Names of the releases, oldest configuration first.
    pub(crate) fn releases(&self) -> &[String] {
        &self.releases
    }

    /// Names of the packages to fetch for these: themselves, installed or not, and the dependencies that this machine lacks, less those
    /// that begin as one of `unused`.
    ///
    /// # Errors
    /// The archive lacks one.
    pub(crate) fn missing(&self, packages: &[&str], unused: &[&str]) -> Result<Vec<String>> {
        let mut command = self.get();
        command.args(["--simulate", "--reinstall", "--no-install-recommends", "install"]).args(packages);
        let plan = run::capture_success(&mut command, DOWNLOAD_DEADLINE)?.stdout;
        let lines = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
        let names = lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
        Ok(names.filter(|name| !unused.iter().any(|unused| name.starts_with(unused))).collect())
    }

    /// `apt-get` that writes nothing of the machine's.
    pub(crate) fn get(&self) -> Command {
        self.command("apt-get")
    }

    /// `apt-cache` that looks at the same lists.
    pub(crate) fn cache(&self) -> Command {
        self.command("apt-cache")
    }

    fn list(&self) -> PathBuf {
        self.place.join("sources.list")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        let lists = option("Dir::State::Lists", &self.place.join("lists"));
        command.args(["-q", "-o", &lists, "-o", &option("Dir::Cache", &self.place.join("cache"))]);
        // The folders are ours alone; a user of apt's own could not enter them.
        command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]);
        if self.list().is_file() {
            command.args(["-o", &option("Dir::Etc::SourceList", &self.list()), "-o", "Dir::Etc::SourceParts=/dev/null"]);
        }
        command
    }
}

/// The source of that release, in the archive where the machine's own release is; `None` if it is configured already.
fn of_release(targets: &str, release: &str) -> Option<String> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let main: Vec<_> = targets.lines().map(words).filter(|words| words.get(2).is_some_and(|part| part == "main")).collect();
    if main.iter().any(|words| words.get(1).is_some_and(|name| name == release)) {
        return None;
    }
    // Updates, security and backports have a dash in their names.
    let own = main.iter().find(|words| words.get(1).is_some_and(|name| !name.contains('-')))?;
    own.first().map(|place| format!("{place} {release} main"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_release_comes_from_the_archive_of_the_machines_own() {
        let targets = "http://a/security trixie-security main\nhttp://a/debian trixie main\nhttp://a/debian trixie contrib\n";
        assert_eq!(of_release(targets, "bookworm").as_deref(), Some("http://a/debian bookworm main"));
        assert_eq!(of_release(targets, "trixie"), None);
        assert_eq!(of_release("", "bookworm"), None);
    }
}
