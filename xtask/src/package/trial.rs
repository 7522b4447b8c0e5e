//! The package, tried: made twice with the same bytes, installed by dpkg below a root of its own, used from there, and purged again.
//!
//! The root is a temporary directory. dpkg keeps its database in it, which knows of the packages of this machine that ours depends on, and of no
//! other; and the package has no script that could reach out of it. That the machine's own database and places are as they were is
//! looked at in the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use super::{NAME, TOOL_DEADLINE, make, text};
use crate::build::Artefacts;
use crate::environment::without_library;
use crate::{paths, run};

/// The machine's own database of packages.
const DATABASE: &str = "/var/lib/dpkg/status";
/// What there would be if the package were installed on the machine itself.
const PLACES: [&str; 4] = ["/usr/bin/tssx-trace", "/usr/lib/tssx", "/usr/share/doc/tssx", "/var/lib/dpkg/info/tssx.list"];

/// Makes, installs, uses and purges the package. Needs root, as dpkg does.
///
/// # Errors
/// What is not as it should be.
pub(crate) fn trial(artefacts: &Artefacts) -> Result<()> {
    let before = host()?;
    let directory = tempfile::tempdir()?;
    let package = make(artefacts, &directory.path().join("one"))?;
    let again = make(artefacts, &directory.path().join("two"))?;
    ensure!(fs::read(&package)? == fs::read(&again)?, "the package is not the same when it is made again");
    contents(&package)?;
    let root = Root::new(&directory.path().join("root"), &package)?;
    let empty = root.files()?;
    root.dpkg(&["--install"], &package)?;
    used(&root.0)?;
    let differs = root.dpkg(&["--verify"], Path::new(NAME))?;
    ensure!(differs.is_empty(), "what is installed is not what was packed: {differs}");
    root.dpkg(&["--purge"], Path::new(NAME))?;
    let left: Vec<_> = root.files()?.difference(&empty).cloned().collect();
    ensure!(left.is_empty(), "these files are left when the package is purged: {left:?}");
    ensure!(host()? == before, "the machine's own packages or places have changed");
    println!("package: made twice alike, installed, used and purged: {}", package.file_name().unwrap_or_default().display());
    Ok(())
}

/// What of the machine itself must not change: what its database says of a package of this name, and when the places changed last.
fn host() -> Result<(Option<String>, Vec<Option<SystemTime>>)> {
    let database = fs::read_to_string(DATABASE).with_context(|| format!("cannot read {DATABASE}: this is no Debian"))?;
    let known = database.split("\n\n").find(|fields| fields.starts_with(&format!("Package: {NAME}\n")));
    let changed = |place: &&str| fs::metadata(place).and_then(|file| file.modified()).ok();
    Ok((known.map(str::to_owned), PLACES.iter().map(changed).collect()))
}

/// Only files, below the places meant, with the rights meant; and no script.
fn contents(package: &Path) -> Result<()> {
    let listed = text(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [rights, "root/root", .., path] = words.as_slice() else { bail!("not root's: {line}") };
        let program = path.ends_with("/bin/tssx-trace");
        let meant = if path.ends_with('/') || program { "rwxr-xr-x" } else { "rw-r--r--" };
        ensure!(rights.get(1..) == Some(meant) && (path.starts_with("./usr/") || *path == "./"), "not as meant: {line}");
    }
    let control = tempfile::tempdir()?;
    run::capture_success(Command::new("dpkg-deb").arg("--control").arg(package).arg(control.path()), TOOL_DEADLINE)?;
    let mut files: Vec<_> = fs::read_dir(control.path())?.map(|file| Ok(file?.file_name())).collect::<Result<_>>()?;
    files.sort();
    ensure!(files == ["control", "md5sums"], "the package has {files:?}, and should have no script");
    Ok(())
}

/// A root that dpkg installs below.
struct Root(PathBuf);

impl Root {
    /// Knows of the packages that `package` depends on, as they are on this machine.
    fn new(place: &Path, package: &Path) -> Result<Self> {
        let database = place.join("var/lib/dpkg");
        for directory in ["info", "updates", "triggers"] {
            fs::create_dir_all(database.join(directory))?;
        }
        let depends = text(Command::new("dpkg-deb").arg("--field").arg(package).arg("Depends"))?;
        let names: Vec<_> = depends.split(", ").filter_map(|one| one.split_whitespace().next()).collect();
        ensure!(names.contains(&"libc6"), "the package depends on {depends}");
        let mut status = String::new();
        for name in names {
            let fields = text(Command::new("dpkg-query").args(["--status", name]))?;
            // Files and further dependencies do not matter here.
            let kept = ["Package:", "Status:", "Maintainer:", "Architecture:", "Multi-Arch:", "Version:", "Description:"];
            for line in fields.lines().filter(|line| kept.iter().any(|field| line.starts_with(field))) {
                status.push_str(line);
                status.push('\n');
            }
            status.push('\n');
            let list = if fields.contains("Multi-Arch: same") {
                format!("{name}:{}.list", text(Command::new("dpkg").arg("--print-architecture"))?)
            } else {
                format!("{name}.list")
            };
            fs::write(database.join("info").join(list), "/.\n")?;
        }
        fs::write(database.join("info/format"), "1\n")?;
        fs::write(database.join("status"), status)?;
        fs::write(database.join("available"), "")?;
        Ok(Self(place.to_path_buf()))
    }

    fn dpkg(&self, action: &[&str], what: &Path) -> Result<String> {
        let mut command = Command::new("dpkg");
        let path = std::env::var("PATH").unwrap_or_default();
        command.arg("--root").arg(&self.0).args(action).arg(what).env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let output = run::capture_success(&mut command, TOOL_DEADLINE)?;
        ensure!(!output.stderr.contains("warning"), "dpkg warns: {}", output.stderr);
        Ok(output.stdout)
    }

    /// Everything below the root but dpkg's own notes, and directories, which it leaves where others may need them.
    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        let mut directories = vec![self.0.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                if path == self.0.join("var") {
                    continue;
                }
                if path.is_dir() {
                    directories.push(path.clone());
                }
                files.insert(path);
            }
        }
        Ok(files)
    }
}

/// The installed program, with nothing in the environment that leads elsewhere.
fn tracer(root: &Path) -> Command {
    let mut tracer = Command::new(root.join("usr/bin/tssx-trace"));
    without_library(&mut tracer);
    tracer.env_remove("TSSX_PRELOAD");
    tracer
}

/// Everything that the package is for, from where it is installed.
fn used(root: &Path) -> Result<()> {
    let library = root.join("usr/lib/tssx/libtssx_preload.so").canonicalize()?;
    let mut run = tracer(root);
    run.args(["run", "--socket", "/x", "--", "sh", "-c", "echo \"$LD_PRELOAD\"; exec cat /proc/self/maps"]);
    let maps = text(&mut run)?;
    let library = library.display().to_string();
    ensure!(maps.lines().next() == Some(&library), "`run` preloads another library than {library}: {maps}");
    ensure!(maps.lines().skip(1).any(|line| line.ends_with(&library)), "`run` does not load {library}: {maps}");

    let report = text(tracer(root).arg("doctor"))?;
    ensure!(report.contains(&format!("ok: library found: {library}")), "doctor finds another library: {report}");
    ensure!(report.contains("ok: self-test accelerated"), "doctor: {report}");

    let examples = root.join("usr/share/doc").join(NAME).join("examples");
    let show = ["--", "sh", "-c", "echo \"$USE_TSSX $LD_PRELOAD\""];
    let selected = text(tracer(root).args(["run", "--env"]).arg(examples.join("tssx.env")).args(show))?;
    ensure!(selected == "/run/example/example.sock /usr/lib/tssx/libtssx_preload.so", "the example selects {selected}");
    ensure!(fs::read_to_string(examples.join("tssx.conf"))?.contains("Environment=\"USE_TSSX="), "no drop-in");

    let manual = root.join("usr/share/man");
    for page in ["tssx-trace", "tssx-trace-doctor", "tssx-trace-export"] {
        let mut man = Command::new("man");
        let found = text(man.arg("--manpath").arg(&manual).args(["--where", page]))?;
        ensure!(Path::new(&found).starts_with(&manual), "`man {page}` finds {found}");
    }
    let script = ". \"$1\"; entry=$(complete -p tssx-trace | sed 's/.* -F \\([^ ]*\\) .*/\\1/'); COMP_WORDS=(tssx-trace doc); \
        COMP_CWORD=1; \"$entry\" tssx-trace doc tssx-trace; echo \"${COMPREPLY[*]}\"";
    let completions = root.join("usr/share/bash-completion/completions/tssx-trace");
    let offered = text(Command::new("bash").args(["-c", script, "bash"]).arg(&completions))?;
    ensure!(offered == "doctor", "bash offers `{offered}` for `doc`");
    for file in ["zsh/vendor-completions/_tssx-trace", "fish/vendor_completions.d/tssx-trace.fish"] {
        let file = root.join("usr/share").join(file);
        ensure!(fs::read_to_string(&file)?.contains("doctor"), "{} does not complete", file.display());
    }
    machine_paths(root)
}

/// No document names the place where it was made. The tracer does: what its crates say of a panic names their source, where cargo keeps it.
fn machine_paths(root: &Path) -> Result<()> {
    let place = paths::workspace().display().to_string();
    let documents = root.join("usr/share");
    let mut grep = Command::new("grep");
    let found = run::capture(grep.args(["-rlF", "-e", &place]).arg(&documents), TOOL_DEADLINE)?;
    ensure!(found.status.code() == Some(1), "these name the place where they were made: {}{}", found.stdout, found.stderr);
    Ok(())
}
