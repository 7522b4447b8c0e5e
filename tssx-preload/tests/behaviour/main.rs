//! Behaviour tests of the preload library: each case runs against the kernel's socket and then with the library, and
//! must show the same.
//!
//! Read [`cases`] first: a case is two functions, one for each end of a connection. [`harness`] starts each end as a
//! process of its own (this very program with `--play`), plain or with `LD_PRELOAD`, and compares the transcripts.
//! [`programs`] does the same with Python and C programs, [`cpython`] with CPython's own tests, [`redis`] and [`servers`] with real
//! servers;
//! [`log`] reads the debug log; [`exchange`] moves gigabytes, [`kills`] kills, [`quiet`] proves what the data path does not do, [`symbols`] knows what of
//! libc is interposed; [`inert`] shows what the library must not do to programs that never use a selected socket; [`census`] counts at the
//! end what was left behind.
//!
//! The library is named by `TSSX_PRELOAD` (absolute path); `cargo xtask test` sets it.

mod births;
mod cases;
#[path = "../../../xtask/src/census.rs"]
mod census;
mod cpython;
#[path = "../../../xtask/src/environment.rs"]
mod environment;
mod exchange;
mod faults;
mod files;
mod filter;
mod handlers;
mod harness;
mod inert;
mod kills;
mod ledger;
mod library;
mod log;
mod memory;
mod messages;
mod mode;
#[path = "../../../tssx-core/src/mutations.rs"]
mod mutations;
#[allow(dead_code, reason = "the library's own, of which the tests need less")]
#[path = "../../src/policy.rs"]
mod policy;
mod process;
mod programs;
mod quiet;
mod rare;
mod redis;
mod role;
mod servers;
mod signals;
mod symbols;
mod sys;
mod variables;
mod waits;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use mode::End;
use role::Role;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, play, case, end, directory] = words.as_slice()
        && play == "--play"
    {
        return play_role(case, end, Path::new(directory));
    }
    if let [_, carry_on, what, numbers @ ..] = words.as_slice()
        && carry_on == "--carry-on"
    {
        cases::carry_on(what, numbers);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // The cases use both CPUs themselves: two at a time would only disturb each other.
    arguments.test_threads = Some(1);
    let before = census::Census::take();
    let mut trials: Vec<Trial> = cases::all().flat_map(harness::trials).collect();
    trials.extend(programs::trials());
    trials.extend(cpython::trials());
    trials.extend(exchange::trials());
    trials.extend(kills::trials());
    trials.extend(quiet::trials());
    trials.extend(symbols::trials());
    trials.extend(inert::trials());
    trials.extend(handlers::trials());
    trials.extend(log::trials());
    trials.extend(memory::trials());
    trials.extend(variables::trials());
    trials.extend(redis::trials());
    trials.extend(servers::trials());
    trials.push(Trial::test("nothing-is-left-behind", move || match census::Census::left_since(&before).as_slice() {
        [] => Ok(()),
        left => Err(format!("left behind:\n{}", left.join("\n")).into()),
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn play_role(case: &str, end: &str, directory: &Path) -> ExitCode {
    let Some(case) = cases::all().find(|known| known.name == case) else {
        eprintln!("no case is called {case}");
        return ExitCode::FAILURE;
    };
    match end {
        "Server" => Role::play(directory, End::Server, case.server),
        _ => Role::play(directory, End::Client, case.client),
    }
    ExitCode::SUCCESS
}
