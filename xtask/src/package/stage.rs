//! The tree that is packed: every file with its place, its rights and its time.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::{MAINTAINER, NAME, TOOL_DEADLINE, depends, text, version};
use crate::build::Artefacts;
use crate::{paths, run};

const DESCRIPTION: &str = "\
Unix sockets over shared memory, and the tracer that finds them
 Unmodified programs on one host talk over shared memory instead of their Unix
 stream sockets, by LD_PRELOAD. tssx-trace finds the sockets worth it, starts
 programs with the library, and proves afterwards that they are accelerated.
 .
 Nothing is accelerated by installing this package: the library is used only by
 programs whose environment names it.
";

/// The two programs, for the fields that tell of them.
pub(super) struct Staged {
    programs: [PathBuf; 2],
}

/// Lays out everything but the control files.
///
/// # Errors
/// Where a file cannot be written, or a tool fails.
pub(super) fn lay_out(artefacts: &Artefacts, tree: &Path, epoch: u64) -> Result<Staged> {
    let trace = tree.join("usr/bin/tssx-trace");
    let library = tree.join("usr/lib/tssx/libtssx_preload.so");
    for (from, to, mode) in [(&artefacts.trace, &trace, 0o755), (&artefacts.preload, &library, 0o644)] {
        make_parent(to)?;
        run::capture_success(Command::new("strip").arg("--strip-unneeded").arg("-o").arg(to).arg(from), TOOL_DEADLINE)?;
        fs::set_permissions(to, Permissions::from_mode(mode))?;
    }
    let pages = tree.join("usr/share/man/man1");
    run::capture_success(Command::new(&artefacts.trace).args(["man", "--directory"]).arg(&pages), TOOL_DEADLINE)?;
    for page in fs::read_dir(&pages)? {
        gzip(&page?.path())?;
    }
    for (shell, file) in [
        ("bash", "bash-completion/completions/tssx-trace"),
        ("zsh", "zsh/vendor-completions/_tssx-trace"),
        ("fish", "fish/vendor_completions.d/tssx-trace.fish"),
    ] {
        let made = run::capture_success(Command::new(&artefacts.trace).args(["completions", shell]), TOOL_DEADLINE)?;
        write(&tree.join("usr/share").join(file), &made.stdout)?;
    }
    let documents = tree.join("usr/share/doc").join(NAME);
    write(&documents.join("copyright"), &copyright()?)?;
    for (name, content) in
        [("changelog", changelog(epoch)?), ("CHANGELOG.md", read("CHANGELOG.md")?), ("README.md", read("README.md")?)]
    {
        write(&documents.join(name), &content)?;
        gzip(&documents.join(name))?;
    }
    write(&documents.join("examples/tssx.env"), include_str!("tssx.env"))?;
    write(&documents.join("examples/tssx.conf"), include_str!("tssx.conf"))?;
    Ok(Staged { programs: [trace, library] })
}

/// Adds the control files, and gives everything its rights and its time.
///
/// # Errors
/// As [`lay_out`].
pub(super) fn control(staged: &Staged, tree: &Path, architecture: &str, epoch: u64) -> Result<()> {
    let mut all = Vec::new();
    walk(tree, &mut all)?;
    let files: Vec<&PathBuf> = all.iter().filter(|path| path.is_file()).collect();
    let mut sums = Command::new("md5sum");
    sums.current_dir(tree);
    for file in &files {
        sums.arg(file.strip_prefix(tree)?);
    }
    let sums = run::capture_success(&mut sums, TOOL_DEADLINE)?.stdout;
    // As dpkg-gencontrol(1) counts: files in whole KiB, one for everything else.
    let size = |path: &PathBuf| fs::metadata(path).map(|file| if file.is_file() { file.len().div_ceil(1024) } else { 1 });
    let size: u64 = all.iter().map(size).sum::<std::io::Result<_>>()?;
    let [trace, library] = &staged.programs;
    let depends = depends::of(&[trace, library])?;
    let fields = format!(
        "Package: {NAME}\nVersion: {}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\nInstalled-Size: {size}\n\
         Depends: {depends}\nSection: net\nPriority: optional\nHomepage: {}\nDescription: {DESCRIPTION}",
        version(),
        env!("CARGO_PKG_REPOSITORY"),
    );
    write(&tree.join("DEBIAN/control"), &fields)?;
    write(&tree.join("DEBIAN/md5sums"), &sums)?;
    let mut all = Vec::new();
    walk(tree, &mut all)?;
    for path in all.iter().rev() {
        let program = path == trace || path.is_dir();
        fs::set_permissions(path, Permissions::from_mode(if program { 0o755 } else { 0o644 }))?;
        File::open(path)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(epoch))?;
    }
    Ok(())
}

/// The directory and all below it, sorted, each before what it contains.
fn walk(directory: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    all.push(directory.to_path_buf());
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() { walk(&entry, all)? } else { all.push(entry) }
    }
    Ok(())
}

/// The authors' licences, and those of what is linked in.
fn copyright() -> Result<String> {
    let mut tree = Command::new(paths::cargo());
    tree.args(["tree", "--package", "tssx-trace", "--package", "tssx-preload", "--edges", "normal", "--prefix", "none"]);
    let list = text(tree.args(["--format", "{p} {l}"]).current_dir(paths::workspace()))?;
    let mut crates: Vec<String> =
        list.lines().map(without_parentheses).filter(|line| !line.is_empty() && !line.starts_with("tssx-")).collect();
    crates.sort();
    crates.dedup();
    let indented = |text: &str| -> String {
        text.lines().map(|line| if line.trim().is_empty() { String::from(" .\n") } else { format!(" {line}\n") }).collect()
    };
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: TSSX\nSource: {}\n\n\
         Files: *\nCopyright: The TSSX authors\nLicense: Expat or Apache-2.0\nComment: The programs are linked with these crates:\n{}\n\
         License: Expat\n{}\n\
         License: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n",
        env!("CARGO_PKG_REPOSITORY"),
        indented(&crates.join("\n")),
        indented(&read("LICENSE-MIT")?),
    ))
}

/// `name v1.2 (/a/path) MIT` without what is in parentheses after the version: a path, or what kind of crate it is.
fn without_parentheses(line: &str) -> String {
    let mut words = line.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
    let rest = line.split(' ').skip(2).skip_while(|word| word.starts_with("(/") || matches!(*word, "(proc-macro)" | "(*)"));
    words.extend(rest.filter(|word| *word != "(*)").map(str::to_owned));
    words.join(" ")
}

/// In the form of deb-changelog(5).
fn changelog(epoch: u64) -> Result<String> {
    let mut date = Command::new("date");
    let date = text(date.args(["--utc", "--rfc-email", "--date", &format!("@{epoch}")]).env("LC_ALL", "C"))?;
    Ok(format!(
        "{NAME} ({}) unstable; urgency=medium\n\n  * What changed is in /usr/share/doc/{NAME}/CHANGELOG.md.gz.\n\n -- {MAINTAINER}  {date}\n",
        version()
    ))
}

fn read(name: &str) -> Result<String> {
    let path = paths::workspace().join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
}

fn write(path: &Path, content: &str) -> Result<()> {
    make_parent(path)?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn gzip(path: &Path) -> Result<()> {
    run::capture_success(Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(path), TOOL_DEADLINE).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_of_the_machine_is_in_the_list_of_crates() {
        assert_eq!(without_parentheses("tssx-core v0.1.0 (/a/b) MIT OR Apache-2.0 (*)"), "tssx-core v0.1.0 MIT OR Apache-2.0");
        assert_eq!(
            without_parentheses("syn v3.0.1 (proc-macro) (MIT OR Apache-2.0) AND Z"),
            "syn v3.0.1 (MIT OR Apache-2.0) AND Z"
        );
        assert_eq!(without_parentheses("libc v0.2.1 MIT"), "libc v0.2.1 MIT");
    }
}
