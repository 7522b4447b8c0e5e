//! `cargo xtask test`: everything that can be tested, ending with one line `N passed, N failed, N skipped`.
//!
//! Each check is one test; cargo's own tests are counted by the harness' closing lines. A command that fails without
//! saying which test failed counts as one failure, and a suite that ran no test at all as one too. The behaviour tests
//! are told by `TSSX_PRELOAD` and `TSSX_TRACE` what to test, by `TSSX_SERVERS` where the servers are, and by `TSSX_SYSTEMD` where systemd is; what needs root is skipped
//! loudly without it, and with `CI=true` a skipped test is a failure.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use crate::build::Artefacts;
use crate::census::Census;
#[cfg(target_arch = "x86_64")]
use crate::faults;
use crate::{build, check, hostile, mutants, package, paths, recipes, run, sanitize, servers, setup, soak, systemd, vm};

/// Longest that one suite may take, its build included.
const SUITE_DEADLINE: Duration = Duration::from_secs(1200);

/// Lines of a suite's own account of its failures that are shown again at the end.
const ACCOUNT_LINES: usize = 80;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Those that passed.
    pub passed: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that were not run.
    pub skipped: usize,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Adds up the closing lines of Rust's test harness: `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
    pub(crate) fn of_harness(text: &str) -> Self {
        let mut tally = Self::default();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
            for part in line.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(count)), Some(kind)) = (words.next().map(str::parse::<usize>), words.next()) else { continue };
                match kind {
                    "passed" => tally.passed += count,
                    "failed" => tally.failed += count,
                    "ignored" => tally.skipped += count,
                    _ => {}
                }
            }
        }
        tally
    }
}

/// One run of cargo's tests.
struct Suite {
    name: &'static str,
    arguments: &'static [&'static str],
    needs_root: bool,
    /// Built with `--cfg loom`, in a target folder of its own: the protocol on modelled atomics and a modelled kernel.
    modelled: bool,
}

const SUITES: [Suite; 6] = [
    Suite { name: "tssx-core", arguments: &["--package", "tssx-core"], needs_root: false, modelled: false },
    Suite {
        name: "models of the protocol, every interleaving",
        arguments: &["--profile", "models", "--package", "tssx-core", "--lib", "models"],
        needs_root: false,
        modelled: true,
    },
    Suite { name: "xtask", arguments: &["--package", "xtask", "--bins"], needs_root: false, modelled: false },
    Suite {
        name: "behaviour with and without the library",
        arguments: &["--package", "xtask", "--test", "behaviour"],
        needs_root: false,
        modelled: false,
    },
    Suite {
        name: "random programs with and without the library",
        arguments: &["--package", "xtask", "--test", "differential"],
        needs_root: false,
        modelled: false,
    },
    Suite {
        name: "tssx-trace, with the kernel programs",
        arguments: &["--package", "tssx-trace"],
        needs_root: true,
        modelled: false,
    },
];

/// Programs of others that tests use: the folders below which they are.
struct Others {
    servers: PathBuf,
    systemd: PathBuf,
}

/// Runs everything.
///
/// # Errors
/// When anything failed, or with `CI=true` was skipped.
pub(crate) fn test() -> Result<()> {
    setup::setup()?;
    let others = Others { servers: servers::fetch()?, systemd: systemd::fetch()? };
    let artefacts = build::build()?;
    let mut total = Tally::default();
    let mut failures = Vec::new();
    for step in check::steps() {
        println!("== check: {}", step.name);
        one(&mut total, &mut failures, &format!("check: {}", step.name), step.run);
    }
    let before = Census::take();
    // Servers that refuse to run as root run as nobody, who must get in.
    let scratch = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
    for suite in &SUITES {
        println!("== tests: {}", suite.name);
        let (tally, account) = suite.run(&artefacts, &others, scratch.path());
        if tally.failed > 0 {
            failures.push(format!("tests: {}\n{account}", suite.name));
        }
        total.add(tally);
    }
    guest(&artefacts, &mut total, &mut failures);
    let mut play = |name: &str, check: &dyn Fn() -> Result<()>| {
        println!("== tests: {name}");
        one(&mut total, &mut failures, name, check);
    };
    play("the models notice broken code", &|| mutants::mutants(&mutants::Options::short()));
    play("tssx-core under ThreadSanitizer and AddressSanitizer", &sanitize::sanitize);
    play("a hostile peer", &|| hostile::hostile(&hostile::Options::short()));
    play("a soak", &|| soak::soak(&soak::Options::short(&artefacts.preload)));
    failing_calls(&artefacts, &mut total, &mut failures);
    real_servers(&artefacts, &others.servers, &mut total, &mut failures);
    packaged(&artefacts, &mut total, &mut failures);
    println!("== nothing is left behind");
    match left_behind(&before, scratch.path()).as_slice() {
        [] => total.passed += 1,
        left => {
            println!("left behind:\n{}\nremedy: the test that made it must take it away", left.join("\n"));
            total.failed += 1;
            failures.push("nothing is left behind".to_owned());
        }
    }
    if std::env::var_os("CI").is_some_and(|value| value == "true") && total.skipped > 0 {
        println!("with CI=true nothing may be skipped: {} counted as failed", total.skipped);
        failures.push("skipped tests".to_owned());
        total.failed += std::mem::take(&mut total.skipped);
    }
    for failure in &failures {
        println!("failed: {failure}");
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    Ok(())
}

/// The tests in a virtual machine.
fn guest(artefacts: &Artefacts, total: &mut Tally, failures: &mut Vec<String>) {
    println!("== tests: on Linux 6.1, in a virtual machine");
    match vm::run(artefacts) {
        Ok(outcome) => {
            total.passed += outcome.passed;
            total.failed += outcome.failures.len();
            failures.extend(outcome.failures);
        }
        Err(error) => {
            println!("{error:#}");
            total.failed += 1;
            failures.push(format!("the virtual machine: {error:#}"));
        }
    }
}

/// A check that is one test.
fn one(total: &mut Tally, failures: &mut Vec<String>, name: &str, check: impl FnOnce() -> Result<()>) {
    match check() {
        Ok(()) => total.passed += 1,
        Err(error) => {
            println!("{error:#}");
            total.failed += 1;
            failures.push(format!("{name}: {error:#}"));
        }
    }
}

/// The library's system calls fail, each with two of its errors, and its allocations.
#[cfg(not(target_arch = "x86_64"))]
fn failing_calls(_: &Artefacts, total: &mut Tally, _: &mut Vec<String>) {
    println!("SKIPPED: system calls that fail: only for x86-64");
    total.skipped += 1;
}

/// The library's system calls fail, each with two of its errors, and its allocations.
#[cfg(target_arch = "x86_64")]
fn failing_calls(artefacts: &Artefacts, total: &mut Tally, failures: &mut Vec<String>) {
    println!("== tests: system calls and allocations that fail");
    one(total, failures, "system calls and allocations that fail", || faults::faults(&faults::Options::short(&artefacts.preload)));
}

/// The package, installed below a root of its own.
fn packaged(artefacts: &Artefacts, total: &mut Tally, failures: &mut Vec<String>) {
    println!("== tests: the package");
    if !geteuid().is_root() {
        println!("SKIPPED: the package: dpkg needs root; run `sudo -E cargo xtask test`");
        total.skipped += 1;
        return;
    }
    one(total, failures, "the package", || package::trial(artefacts));
}

/// README's recipes, in short.
fn real_servers(artefacts: &Artefacts, servers: &Path, total: &mut Tally, failures: &mut Vec<String>) {
    println!("== tests: the recipes, on real servers");
    match recipes::short(artefacts, servers) {
        Ok(Some(outcomes)) => {
            for recipes::Outcome { name, result } in outcomes {
                one(total, failures, &format!("recipe {name}"), || result);
            }
        }
        Ok(None) => {
            println!("SKIPPED: the recipes: loading kernel programs needs root; run `sudo -E cargo xtask test`");
            total.skipped += 1;
        }
        Err(error) => {
            println!("{error:#}");
            total.failed += 1;
            failures.push(format!("the recipes: {error:#}"));
        }
    }
}

impl Suite {
    /// How many of its tests ended how, and what it says of those that failed.
    fn run(&self, artefacts: &Artefacts, others: &Others, scratch: &Path) -> (Tally, String) {
        if self.needs_root && !geteuid().is_root() {
            println!("SKIPPED: {}: loading kernel programs needs root; run `sudo -E cargo xtask test`", self.name);
            return (Tally { skipped: 1, ..Tally::default() }, String::new());
        }
        let mut cargo = Command::new(paths::cargo());
        cargo.arg("test").args(self.arguments).current_dir(paths::workspace());
        tell(&mut cargo, artefacts);
        if self.modelled {
            cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::target().join("loom"));
        }
        cargo.env("TMPDIR", scratch).env("TSSX_SERVERS", &others.servers).env("TSSX_SYSTEMD", &others.systemd);
        match run::tee(&mut cargo, SUITE_DEADLINE) {
            Ok(output) => {
                let mut tally = Tally::of_harness(&output.stdout);
                if !output.status.success() && tally.failed == 0 || tally.is_empty() {
                    println!("{}: {}, and no test says why", self.name, output.status);
                    tally.failed += 1;
                }
                (tally, account_of_failures(&output.stdout))
            }
            Err(error) => {
                println!("{error:#}");
                (Tally { failed: 1, ..Tally::default() }, format!("{error:#}"))
            }
        }
    }
}

/// What a test harness says of the tests that failed, between `failures:` and its closing line: it comes again at the very end, because
/// the end is what one sees of a long run, and all that some machines keep of it.
fn account_of_failures(text: &str) -> String {
    let lines = text.lines().map(str::trim_end);
    let told = lines.skip_while(|line| *line != "failures:").filter(|line| !line.is_empty());
    let told: Vec<&str> = told.take_while(|line| !line.starts_with("test result: ")).take(ACCOUNT_LINES).collect();
    told.join("\n")
}

/// Processes, names and kernel objects that were not there before, and files in the tests' own temporary directory.
fn left_behind(before: &Census, scratch: &Path) -> Vec<String> {
    let files = std::fs::read_dir(scratch).into_iter().flatten().filter_map(Result::ok);
    let files = files.map(|file| format!("file {}", file.path().display()));
    Census::left_since(before).into_iter().chain(files).collect()
}

/// Tells the tests where the things under test are.
fn tell(command: &mut Command, artefacts: &Artefacts) {
    let set = |command: &mut Command, name: &str, path: &Path| {
        command.env(name, path);
    };
    set(command, "TSSX_PRELOAD", &artefacts.preload);
    set(command, "TSSX_TRACE", &artefacts.trace);
    set(command, "TSSX_EBPF_OBJECT", &artefacts.ebpf);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_again() {
        let text = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b ----\nthe reason\n\n\nfailures:\n    b\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\nmore\n";
        assert_eq!(account_of_failures(text), "failures:\n---- b ----\nthe reason\nfailures:\n    b");
        assert_eq!(account_of_failures("test a ... ok\n"), "");
    }

    #[test]
    fn closing_lines_add_up() {
        let text = "test a ... ok\ntest result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n\
            test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        assert_eq!(Tally::of_harness(text), Tally { passed: 7, failed: 3, skipped: 1 });
        assert!(Tally::of_harness("running 0 tests\n").is_empty());
    }
}
