//! The repository's rules as code. Each rule reads the tree and returns findings; each finding is `file:line: what is
//! wrong; remedy`.
//!
//! - [`layers`]: who may depend on whom, and that every dependency of the library is justified;
//! - [`licences`]: that of every crate is one that deny.toml allows;
//! - [`source`]: unsafe code only where [`unsafe_list`] says, file and function length, no stubs, module headers;
//! - [`protocol`]: PROTOCOL.md lists every field of the shared layouts with its offset;
//! - [`crate::mutants`]: each model check has a change of the code that it must catch, and the changes fit the code;
//! - [`documents`]: the top level, ARCHITECTURE.md's walk of `read()`, README.md's recipes, no paths of one machine.

mod documents;
mod layers;
mod layout;
mod licences;
mod protocol;
mod source;
mod unsafe_list;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{paths, run};

/// One rule.
pub(crate) struct Rule {
    /// What a person reads.
    pub name: &'static str,
    find: fn(&Tree) -> Result<Vec<Finding>>,
}

/// Every rule.
pub(crate) const RULES: [Rule; 13] = [
    Rule { name: "layers: crates depend one way", find: layers::directions },
    Rule { name: "layers: each dependency inside other people's processes is justified", find: layers::justified },
    Rule { name: "licences and sources of what we build on", find: licences::allowed },
    Rule { name: "unsafe only in listed modules", find: source::unsafe_list },
    Rule { name: "files and functions are short", find: source::lengths },
    Rule { name: "no stub, no ignored test", find: source::stubs },
    Rule { name: "each module opens with //!", find: source::headers },
    Rule { name: "PROTOCOL.md lists every shared field", find: protocol::fields },
    Rule { name: "each model check has a mutant, which fits the code", find: mutants },
    Rule { name: "the top level is as laid down", find: documents::top_level },
    Rule { name: "the walk of read() in ARCHITECTURE.md is the code", find: documents::walk },
    Rule { name: "the recipes in README.md are the ones that are run", find: documents::recipes },
    Rule { name: "no paths of one machine", find: documents::machine_paths },
];

impl Rule {
    /// Applies the rule to the work tree.
    ///
    /// # Errors
    /// Every finding, one a line.
    pub(crate) fn enforce(&self) -> Result<()> {
        let findings = (self.find)(&Tree::read()?)?;
        if findings.is_empty() {
            return Ok(());
        }
        let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
        bail!("{}", lines.join("\n"))
    }
}

/// One breach of a rule.
pub(crate) struct Finding {
    file: PathBuf,
    line: usize,
    what: String,
    remedy: String,
}

impl Finding {
    fn new(file: impl Into<PathBuf>, line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.into(), line, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}; remedy: {}", self.file.display(), self.line, self.what, self.remedy)
    }
}

/// The table of mutants is held against the code.
fn mutants(tree: &Tree) -> Result<Vec<Finding>> {
    let faults = crate::mutants::faults(tree.root())?.into_iter();
    Ok(faults.map(|fault| Finding::new(crate::mutants::TABLE, 1, fault.what, fault.remedy)).collect())
}

/// The files that git knows or would add, relative to the root.
pub(crate) struct Tree {
    root: PathBuf,
    files: Vec<PathBuf>,
}

impl Tree {
    /// Of the checkout that xtask was started in.
    ///
    /// # Errors
    /// There is no git, or no checkout.
    pub(crate) fn read() -> Result<Self> {
        let root = paths::workspace();
        let mut git = Command::new("git");
        git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(&root);
        let listed = run::capture_success(&mut git, Duration::from_secs(60)).context("the rules need git and a clone")?;
        let files = listed.stdout.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
        let mut files: Vec<_> = files.filter(|file| root.join(file).is_file()).collect();
        files.sort();
        files.dedup();
        Ok(Self { root, files })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path)
    }

    fn rust_files(&self) -> impl Iterator<Item = &Path> {
        self.files().filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
    }

    /// The text of a file, `None` where it is not text.
    fn text(&self, file: &Path) -> Result<Option<String>> {
        let bytes = std::fs::read(self.root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(String::from_utf8(bytes).ok())
    }

    fn parse(&self, file: &Path) -> Result<syn::File> {
        let text = self.text(file)?.with_context(|| format!("{} is not UTF-8", file.display()))?;
        syn::parse_file(&text).with_context(|| format!("{} does not parse", file.display()))
    }
}
