//! A copy of the sources in which one thing at a time is broken.
//!
//! It lies in a temporary folder, so that nothing broken is ever in the checkout, not even after a kill. What is built from it lies in
//! `target/mutants`, which only copies use: cargo tells sources apart by their times, and a checkout that shared the folder could be given a
//! program that was built from a broken copy.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Message;
use tempfile::TempDir;

use super::table::Mutant;
use crate::tidy::Tree;
use crate::{build, paths, run};

/// Longest that one model may take. The longest takes seconds.
const MODEL_DEADLINE: Duration = Duration::from_secs(120);

/// What came of a model.
pub(super) enum Verdict {
    /// It passed; what it said of how much it explored.
    Passed(String),
    /// It failed, with these words.
    Failed(String),
    /// The code does not compile.
    NotBuilt(String),
    /// It did not end.
    Hangs,
}

impl Verdict {
    pub(super) fn is_caught(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(said) => write!(out, "passes, {said}"),
            Self::Failed(said) => write!(out, "{said}"),
            Self::NotBuilt(said) => write!(out, "does not compile: {said}"),
            Self::Hangs => write!(out, "did not end within {} s", MODEL_DEADLINE.as_secs()),
        }
    }
}

/// The copy, and the program last built from it.
pub(super) struct Bench {
    copy: TempDir,
    program: Option<PathBuf>,
}

impl Bench {
    /// Copies all that git knows.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn set_up(tree: &Tree) -> Result<Self> {
        let copy = tempfile::Builder::new().prefix("tssx-mutants-").tempdir()?;
        for file in tree.files() {
            let to = copy.path().join(file);
            std::fs::create_dir_all(to.parent().unwrap_or(copy.path()))?;
            std::fs::copy(tree.root().join(file), &to).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        Ok(Self { copy, program: None })
    }

    /// Builds the models as the copy is now.
    ///
    /// # Errors
    /// The compiler's words, or cargo has not built what was changed.
    pub(super) fn build(&mut self) -> Result<&Self> {
        let mut cargo = Command::new(paths::cargo());
        cargo.args(["test", "--no-run", "--locked", "--profile", "models", "--package", "tssx-core", "--lib"]);
        cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]).arg(paths::target().join("mutants"));
        cargo.env("RUSTFLAGS", "--cfg loom").env_remove("CARGO_ENCODED_RUSTFLAGS").current_dir(self.copy.path());
        let output = run::capture_success(&mut cargo, build::BUILD_DEADLINE)?;
        let messages = Message::parse_stream(output.stdout.as_bytes()).filter_map(Result::ok);
        let mut built = messages.filter_map(|message| match message {
            Message::CompilerArtifact(artifact) => artifact.executable.clone().map(|program| (program, artifact.fresh)),
            _ => None,
        });
        let (program, fresh) = built.next().context("cargo has built no program")?;
        ensure!(!fresh, "cargo took {program} for up to date although its sources are new");
        self.program = Some(program.into_std_path_buf());
        Ok(self)
    }

    fn program(&self) -> Result<Command> {
        let mut program = Command::new(self.program.as_ref().context("nothing is built yet")?);
        program.env_remove("LOOM_MAX_PREEMPTIONS").env("RUST_BACKTRACE", "0").current_dir(self.copy.path());
        Ok(program)
    }

    /// The models that the program has, by name.
    pub(super) fn listed(&self) -> Result<Vec<String>> {
        let output = run::capture_success(self.program()?.args(["models::", "--list"]), MODEL_DEADLINE)?;
        let names = output.stdout.lines().filter_map(|line| line.strip_prefix("models::")?.strip_suffix(": test"));
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Runs one model.
    ///
    /// # Errors
    /// It is not the one that ran.
    pub(super) fn run(&self, model: &str) -> Result<Verdict> {
        let mut program = self.program()?;
        program.args(["--exact", "--nocapture"]).arg(format!("models::{model}"));
        // What it cannot do but hang was looked for before: the program was built and can be run.
        let Ok(output) = run::capture(&mut program, MODEL_DEADLINE) else { return Ok(Verdict::Hangs) };
        ensure!(output.stdout.contains("running 1 test\n"), "{model}: not one test was run:\n{}{}", output.stdout, output.stderr);
        if output.status.success() {
            return Ok(Verdict::Passed(explored(&output.stdout)));
        }
        Ok(Verdict::Failed(words(&output.stdout, &output.stderr).unwrap_or_else(|| output.status.to_string())))
    }

    /// Breaks the copy, runs the models, and mends it.
    ///
    /// # Errors
    /// Of the file system, or a program cannot be run.
    pub(super) fn mutate(&mut self, mutant: &Mutant, models: &[&str]) -> Result<Vec<Verdict>> {
        let root = self.copy.path().to_owned();
        let originals: Vec<_> =
            mutant.changed(&root)?.into_iter().map(|(file, text)| replace(&root, &file, &text)).collect::<Result<_>>()?;
        let verdicts = match self.build() {
            Ok(_) => models.iter().map(|model| self.run(model)).collect(),
            Err(error) => Ok(models.iter().map(|_| Verdict::NotBuilt(format!("{error:#}"))).collect()),
        };
        for (file, text) in originals {
            replace(&root, &file, &text)?;
        }
        verdicts
    }
}

/// Writes the file; what was in it.
fn replace(root: &Path, file: &Path, text: &str) -> Result<(PathBuf, String)> {
    let path = root.join(file);
    let before = std::fs::read_to_string(&path)?;
    if before == text {
        bail!("{} would not change", file.display());
    }
    std::fs::write(&path, text)?;
    Ok((file.to_owned(), before))
}

/// What a model that passes prints of its executions, without the name.
fn explored(stdout: &str) -> String {
    let line = stdout.lines().find(|line| line.contains(" executions, "));
    line.and_then(|line| line.rsplit_once(": ")).map_or_else(String::new, |(_, said)| said.to_owned())
}

/// Why a test failed: the first line of its panic, or what the harness says of one that should have panicked.
fn words(stdout: &str, stderr: &str) -> Option<String> {
    let of_panic = stderr.lines().skip_while(|line| !line.contains("panicked at ")).nth(1);
    let of_harness = stdout.lines().find_map(|line| line.strip_prefix("note: "));
    of_panic.or(of_harness).map(|line| line.trim().chars().take(120).collect())
}
