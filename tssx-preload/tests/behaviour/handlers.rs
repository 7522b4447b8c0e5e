//! A signal handler that reads from the stream that its thread is asleep on, where rings end: between the kernel's giving bytes and the library's
//! counting them is the moment at which signals arrive. By chance, many times; and at each instruction in turn.

use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use crate::harness::same;
use crate::mode::{End, Mode};
use crate::process::Process;
use crate::programs::compile;
use crate::role::SOCKET;

/// Where the reader is when it is first stepped, bytes that its handler takes at most, bytes before the one that ends the ring, and the first byte.
/// 0xaa is what the library takes for no byte, and so must be tried where the reader may take one behind the end.
const STEPPED: [[&str; 4]; 7] = [
    ["asleep", "1", "1", "1"],
    ["asleep", "3", "1", "168"],
    ["asleep", "1", "0", "169"],
    ["asleep", "2", "2", "168"],
    ["before", "3", "1", "169"],
    ["meanwhile", "1", "1", "169"],
    ["meanwhile", "3", "0", "1"],
];
/// Every so manyth instruction is tried, each time from another one on; what was lost here was lost within twenty of them.
const STRIDE: usize = 11;
/// What a read that is not the kernel's alone has at least, instructions.
const LEAST: usize = 200;

/// Each has one ring that ends; of some hundred such ends one met the signal, when bytes could be lost there.
const CONNECTIONS: &str = "400";
/// Time between two signals, microseconds.
const PERIODS: [&str; 2] = ["40", "110"];
const DEADLINE: Duration = Duration::from_secs(60);

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    let modes = [Mode::Plain, Mode::Both, Mode::BothAtOnce, Mode::BothAsleep];
    let trial = |mode: Mode| Trial::test(format!("handler-takes-where-rings-end::{mode:?}"), move || takes(mode));
    let steps = |mode: Mode| Trial::test(format!("handler-at-each-instruction::{mode:?}"), move || steps(mode));
    modes.into_iter().map(trial).chain([Mode::Plain, Mode::BothAtOnce].map(steps)).collect()
}

fn takes(mode: Mode) -> Result<(), Failed> {
    for period in PERIODS {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join(SOCKET);
        let program = compile(
            concat!(include_str!("programs/handler_common.h"), include_str!("programs/handler_takes.c")),
            &directory.path().join("handler_takes"),
            &[],
        )?;
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

fn steps(mode: Mode) -> Result<(), Failed> {
    for (first, [start, most, before, byte]) in STEPPED.into_iter().enumerate() {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join(SOCKET);
        let program = compile(
            concat!(include_str!("programs/handler_common.h"), include_str!("programs/handler_steps.c")),
            &directory.path().join("handler_steps"),
            &["-no-pie"],
        )?;
        let mut command = Command::new(program);
        command.arg(&socket).args([start, most, before, byte]).args([first.to_string(), STRIDE.to_string()]);
        mode.apply(&mut command, End::Server, &socket);
        if mode != Mode::Plain {
            command.env("TSSX_SPIN_US", "0"); // a reader that spins never comes to the end of its instructions
        }
        let ended = Process::start(&mut command)?.finish(Instant::now() + DEADLINE);
        if ended.code != Some(0) {
            return Err(ended.all().into());
        }
        let (instructions, told) = ended.stdout.split_once(" instructions\n").ok_or_else(|| ended.all())?;
        same("every byte once\n", told)?;
        let stepped = instructions.parse::<usize>()?;
        if mode != Mode::Plain && stepped < LEAST {
            return Err(format!("{start}: only {stepped} instructions: that was not the library's read").into());
        }
    }
    Ok(())
}
