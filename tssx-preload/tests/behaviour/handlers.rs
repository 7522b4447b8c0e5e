//! A signal handler that reads from the stream that its thread is asleep on, where rings end: between the kernel's giving bytes and the library's
//! counting them is the moment at which signals arrive.

use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use crate::harness::same;
use crate::mode::{End, Mode};
use crate::process::Process;
use crate::programs::compile;
use crate::role::SOCKET;

/// Each has one ring that ends; of some hundred such ends one met the signal, when bytes could be lost there.
const CONNECTIONS: &str = "400";
/// Time between two signals, microseconds.
const PERIODS: [&str; 2] = ["40", "110"];
const DEADLINE: Duration = Duration::from_secs(60);

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    let modes = [Mode::Plain, Mode::Both, Mode::BothAtOnce, Mode::BothAsleep];
    let trial = |mode: Mode| Trial::test(format!("handler-takes-where-rings-end::{mode:?}"), move || takes(mode));
    modes.into_iter().map(trial).collect()
}

fn takes(mode: Mode) -> Result<(), Failed> {
    for period in PERIODS {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join(SOCKET);
        let program = compile(include_str!("programs/handler_takes.c"), &directory.path().join("handler_takes"), &[])?;
        let mut command = Command::new(program);
        command.arg(&socket).args([CONNECTIONS, period]);
        mode.apply(&mut command, End::Server, &socket);
        let ended = Process::start(&mut command)?.finish(Instant::now() + DEADLINE);
        if ended.code != Some(0) {
            return Err(ended.all().into());
        }
        same("every byte once\n", &ended.stdout)?;
    }
    Ok(())
}
