//! `cargo xtask check`: rustfmt, clippy for every crate, and the repository's own rules (see [`crate::tidy`]).
//!
//! Clippy runs per crate because the crates do not share a target: the library is `no_std` with `panic = "abort"` and
//! must not inherit other crates' features; the kernel programs are built by another compiler, which has no clippy,
//! so that for them only their host half (the shared records) is linted and the rest must compile without warnings.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{build, paths, run, setup, tidy, toolchain};

/// One named check.
pub(crate) struct Step {
    /// What a person reads.
    pub name: String,
    /// Does it; the error says what is wrong and the remedy.
    pub run: Box<dyn Fn() -> Result<()>>,
}

impl Step {
    fn new(name: impl Into<String>, run: impl Fn() -> Result<()> + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// Every check, cheapest first.
pub(crate) fn steps() -> Vec<Step> {
    let mut steps = vec![Step::new("fmt", fmt)];
    steps.extend(tidy::RULES.iter().map(|rule| Step::new(format!("tidy: {}", rule.name), || rule.enforce())));
    steps.push(Step::new("clippy: kernel programs compile without warnings", ebpf_warnings));
    steps.push(Step::new("clippy: tssx-core", || clippy(&["--package", "tssx-core", "--all-targets"])));
    steps.push(Step::new("clippy: tssx-core as the library uses it", || clippy(&["--release", "--package", "tssx-core"])));
    steps.push(Step::new("clippy: tssx-preload", || clippy(&["--release", "--package", "tssx-preload"])));
    steps.push(Step::new("clippy: tssx-ebpf's shared records", || clippy(&["--package", "tssx-ebpf", "--lib"])));
    steps.push(Step::new("clippy: tssx-trace", || clippy(&["--package", "tssx-trace", "--all-targets"])));
    steps.push(Step::new("clippy: xtask and the behaviour tests", || clippy(&["--package", "xtask", "--all-targets"])));
    steps
}

/// Runs every check and fails at the end if any did.
///
/// # Errors
/// How many failed; each has said why.
pub(crate) fn check() -> Result<()> {
    setup::setup()?;
    let steps = steps();
    let mut failed = Vec::new();
    for step in &steps {
        println!("== {}", step.name);
        if let Err(error) = (step.run)() {
            println!("{error:#}");
            failed.push(step.name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} checks failed: {}", failed.len(), steps.len(), failed.join("; "));
    }
    println!("check: all {} passed", steps.len());
    Ok(())
}

fn fmt() -> Result<()> {
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["fmt", "--all", "--check"]).current_dir(paths::workspace());
    run::run(&mut cargo, Duration::from_secs(120)).map_err(|error| error.context("remedy: run `cargo fmt --all`"))
}

fn clippy(selection: &[&str]) -> Result<()> {
    let mut cargo = Command::new(paths::cargo());
    cargo.arg("clippy").args(selection).args(["--", "--deny", "warnings"]).current_dir(paths::workspace());
    if selection.contains(&"tssx-trace") {
        cargo.env("TSSX_EBPF_OBJECT", build::ebpf()?);
    }
    run::run(&mut cargo, build::BUILD_DEADLINE)
}

fn ebpf_warnings() -> Result<()> {
    let (toolchain, linker) = toolchain::complete()?;
    let mut cargo = toolchain.cargo(&linker, "rustc");
    cargo
        .args(["--release", "--package", "tssx-ebpf", "--bin", "tssx-ebpf", "--features", "bpf", "--target-dir"])
        .arg(paths::target().join("bpf-build"));
    run::run(cargo.args(["--", "--deny", "warnings"]), build::BUILD_DEADLINE)
}
