//! CPython's own tests of sockets, selectors and asyncio, with every Unix stream socket selected: each single test must end
//! as it does without the library.
//!
//! Most of these tests say too little on a connection for it to be accelerated, so they run twice: as they are, and with
//! their socket pairs warmed up (`programs/cpython_tests.py`). What the plain run shows is the oracle. Where it differs from a
//! preloaded run the tests run plain twice more, and a test that does not always end the same there is named and left out.
//! All runs of a module go on at the same time, because most of it is waiting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use crate::ledger::Counted;
use crate::mode::{End, Mode};
use crate::process::Process;
use crate::programs;

/// Longest that a module may take; most of that is for a loaded machine.
const MODULE_DEADLINE: Duration = Duration::from_secs(120);

/// What runs in one process.
struct Module {
    name: &'static str,
    modules: &'static [&'static str],
    /// Least number of tests that must succeed, or the module has not really run.
    least: usize,
    /// Least number of connections that must be accelerated when they are warmed up; 0 for a module that makes no pairs.
    least_accelerated: u64,
}

const MODULES: [Module; 5] = [
    Module { name: "test_socket", modules: &["test.test_socket"], least: 300, least_accelerated: 100 },
    Module { name: "test_selectors", modules: &["test.test_selectors"], least: 50, least_accelerated: 100 },
    Module { name: "test_socketserver", modules: &["test.test_socketserver"], least: 15, least_accelerated: 0 },
    Module {
        name: "test_asyncio",
        modules: &[
            "test.test_asyncio.test_unix_events",
            "test.test_asyncio.test_streams",
            "test.test_asyncio.test_events",
            "test.test_asyncio.test_sock_lowlevel",
            "test.test_asyncio.test_server",
            "test.test_asyncio.test_base_events",
            "test.test_asyncio.test_selector_events",
            "test.test_asyncio.test_buffered_proto",
            "test.test_asyncio.test_sendfile",
        ],
        least: 400,
        least_accelerated: 500,
    },
    Module { name: "test_asyncio_subprocess", modules: &["test.test_asyncio.test_subprocess"], least: 80, least_accelerated: 100 },
];

/// What happens to the tests' connections before the tests get them.
const WAYS: [&str; 2] = ["as-is", "warm"];

/// How each test of a run ended, by its name.
type Outcomes = BTreeMap<String, String>;

/// A trial for each module.
pub(crate) fn trials() -> Vec<Trial> {
    MODULES.iter().map(|module| Trial::test(format!("cpython::{}", module.name), move || compare(module))).collect()
}

/// The first Python that carries its own tests.
fn python() -> Result<&'static str, Failed> {
    let carries_tests = |program: &&str| {
        let mut command = Command::new(program);
        command.args(["-c", "import test.test_socket, test.test_asyncio"]);
        Process::start(&mut command).is_ok_and(|run| run.finish(Instant::now() + MODULE_DEADLINE).code == Some(0))
    };
    ["/usr/bin/python3", "python3"].into_iter().find(carries_tests).ok_or_else(|| {
        "no python3 carries CPython's own tests: run `cargo xtask setup`, or install Debian's libpython3.x-testsuite".into()
    })
}

fn compare(module: &Module) -> Result<(), Failed> {
    let python = python()?;
    let runs =
        [(WAYS[0], Mode::Plain), (WAYS[0], Mode::Both), (WAYS[1], Mode::Plain), (WAYS[1], Mode::Both), (WAYS[1], Mode::BothAsleep)];
    let [as_is, as_is_both, warm, warm_both, warm_asleep] = all(python, module, runs)?;
    for (way, plain, preloaded) in [(WAYS[0], &as_is, &as_is_both), (WAYS[1], &warm, &warm_both), (WAYS[1], &warm, &warm_asleep)] {
        let succeeded = plain.outcomes.values().filter(|outcome| *outcome == "ok").count();
        if succeeded < module.least {
            return Err(format!("only {succeeded} tests succeed without the library\n{}", plain.text).into());
        }
        let mut different = differences(&plain.outcomes, &preloaded.outcomes);
        if !different.is_empty() {
            let again = all(python, module, [(way, Mode::Plain), (way, Mode::Plain)])?;
            different.retain(|name, shown| {
                let steady = again.iter().all(|run| run.outcomes.get(name) == plain.outcomes.get(name));
                if !steady {
                    println!("{name} does not always end the same without the library, and is left out: {shown}");
                }
                steady
            });
        }
        if !different.is_empty() {
            return Err(format!("{way}: {different:#?}\n--- with the library\n{}", preloaded.text).into());
        }
    }
    let accelerated = [&warm_both, &warm_asleep].map(|run| run.counted.accelerated);
    let (selected, tests) = (as_is_both.counted.selected, warm.outcomes.len());
    println!("{}: {tests} tests, {selected} connections selected, of the warm {accelerated:?} accelerated", module.name);
    if accelerated.iter().any(|count| *count < module.least_accelerated) {
        return Err(format!("too few connections were accelerated: {accelerated:?}").into());
    }
    Ok(())
}

/// Tests that ended otherwise, with both ends.
fn differences(plain: &Outcomes, preloaded: &Outcomes) -> BTreeMap<String, String> {
    let names = plain.keys().chain(preloaded.keys());
    let different = names.filter(|name| plain.get(*name) != preloaded.get(*name));
    different.map(|name| (name.clone(), format!("plain {:?}, preloaded {:?}", plain.get(name), preloaded.get(name)))).collect()
}

/// One run of a module.
#[derive(Debug)]
struct Run {
    outcomes: Outcomes,
    counted: Counted,
    /// What it wrote to standard error.
    text: String,
}

/// Makes all the runs at the same time.
fn all<const N: usize>(python: &str, module: &Module, runs: [(&str, Mode); N]) -> Result<[Run; N], Failed> {
    let directory = tempfile::tempdir()?;
    let deadline = Instant::now() + MODULE_DEADLINE;
    let script = directory.path().join("cpython_tests.py");
    std::fs::write(&script, include_str!("programs/cpython_tests.py"))?;
    let mut started = Vec::new();
    for (number, (way, mode)) in runs.iter().enumerate() {
        let own = directory.path().join(number.to_string());
        std::fs::create_dir(&own)?;
        started.push(Process::start_with_input(command(python, &script, &own, way, *mode).args(module.modules))?);
    }
    let mut ended = Vec::new();
    for mut process in started {
        let counted = programs::at_the_end(&mut process, deadline)?;
        let run = process.finish(deadline);
        if run.code != Some(0) {
            return Err(format!("{}: {}", module.name, run.all()).into());
        }
        let lines = run.stdout.lines().filter_map(|line| line.split_once(": "));
        let outcomes = lines.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect();
        ended.push(Run { outcomes, counted, text: run.stderr });
    }
    ended.try_into().map_err(|_| "as many ended as started".into())
}

fn command(python: &str, script: &Path, own: &Path, way: &str, mode: Mode) -> Command {
    let seconds = MODULE_DEADLINE.as_secs().to_string();
    let mut command = Command::new(python);
    // Bytecode of the tests belongs into no folder of the system.
    command.args(["-B"]).arg(script).args([&seconds, way]).arg(script.with_extension("lock"));
    command.current_dir(own).env("TMPDIR", own);
    mode.apply(&mut command, End::Server, &PathBuf::from("*"));
    command
}
