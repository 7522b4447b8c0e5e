//! Random programs of socket operations, each played by two processes plain and then with the library: what the calls say
//! must be the same. Differences are shrunk, and the shrunk programs are kept and played again ever after.
//!
//! Read [`program`] first (what a program is), then [`play`] (how it is played and written down), [`state`] (which steps have one
//! certain answer) and [`generate`]. [`player`] is what runs in the processes under test, [`board`] how they take turns,
//! [`pair`] what the coordinator holds of them; [`campaign`] plays many, [`shrink`] makes a failing one short.
//!
//! `TSSX_PRELOAD` names the library; `TSSX_PROGRAMS` and `TSSX_SEED` say how many programs and which.

mod board;
mod campaign;
#[path = "../../../xtask/src/census.rs"]
mod census;
mod control;
mod data;
#[path = "../../../xtask/src/environment.rs"]
mod environment;
mod facts;
mod generate;
mod hazard;
#[allow(dead_code, reason = "its text form is for the behaviour tests")]
#[path = "../behaviour/ledger.rs"]
mod ledger;
#[path = "../behaviour/library.rs"]
mod library;
mod messages;
#[path = "../behaviour/mode.rs"]
mod mode;
mod pair;
mod play;
mod player;
mod program;
mod rare;
mod shrink;
mod slots;
mod state;
mod sys;
mod trials;
mod waiting;
mod words;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, play, directory, side] = words.as_slice()
        && play == "--play"
    {
        let side = if side == "Server" { words::Side::Server } else { words::Side::Client };
        player::run(Path::new(directory), side);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // The programs' processes share one coordinator, and use both CPUs.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials::all()).exit_code()
}
