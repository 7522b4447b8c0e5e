//! What the data path does not do while the peer keeps up: system calls, allocations, and waiting for a lock of the whole process.
//!
//! Each proof has its counter-proof in the same trial: the guard must notice what it guards against.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use libtest_mimic::{Failed, Trial};

use crate::harness::DEADLINE;
use crate::library::library;
use crate::mode::{End, Mode};
use crate::process::{Ended, Process};
use crate::programs::{await_ready, compile};
use crate::role::SOCKET;

/// Messages of one run.
const COUNT: u64 = 20_000;
/// How often a writer may ask whether a reader lives that does not read, microseconds.
const ASK_US: u64 = 50;
/// Runs until half of the messages could be judged, because the machine let both ends run.
const TRIES: usize = 4;
/// How often a thread is stopped in the middle of what it does.
const STOPS: u64 = 1000;
/// Least number of those stops that must have been inside the library.
const STOPS_INSIDE: u64 = 20;

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    // With one CPU no peer keeps up.
    let alone = std::thread::available_parallelism().map_or(1, usize::from) < 2;
    let mut trials = Vec::new();
    for calls in ["read", "send", "sendto", "readv", "sendmsg", "stream"] {
        trials.push(Trial::test(format!("quiet-no-system-call::{calls}"), move || no_system_call(calls)));
    }
    for calls in ["read", "sendmsg"] {
        trials.push(Trial::test(format!("quiet-no-allocation::{calls}"), move || no_allocation(calls)));
    }
    trials.push(Trial::test("quiet-no-lock-of-the-whole-process", no_common_lock));
    trials.into_iter().map(|trial| trial.with_ignored_flag(alone)).collect()
}

/// What one end saw of itself.
#[derive(Clone, Copy, Debug)]
struct Report {
    /// Messages during which both ends kept up.
    judged: u64,
    /// Messages that took long: one of the ends did not run.
    pauses: u64,
    /// Microseconds that those took.
    paused_us: u64,
    /// Judged messages with a system call.
    with_calls: u64,
    /// System calls in all messages.
    all_calls: u64,
}

impl Report {
    /// Reads `judged N pauses N of-us N system-calls N of N`.
    fn of(ended: &Ended) -> Result<Self, Failed> {
        let line = ended.stdout.lines().find(|line| line.starts_with("judged ")).ok_or_else(|| ended.all())?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [judged, pauses, paused_us, with_calls, all_calls] = numbers.try_into().map_err(|_| ended.all())?;
        Ok(Self { judged, pauses, paused_us, with_calls, all_calls })
    }
}

/// Runs both ends; the client first in what is returned.
fn play(
    program: &str,
    options: [&[&str]; 2],
    mode: Mode,
    prepare: fn(&mut Command, &Path),
    directory: &Path,
) -> Result<[Ended; 2], Failed> {
    let deadline = Instant::now() + DEADLINE;
    let socket = directory.join(SOCKET);
    // A run before may have left it.
    let _ = std::fs::remove_file(&socket);
    let start = |end: End, role: &str, options: &[&str]| {
        let mut command = Command::new(directory.join(program));
        command.arg(role).arg(&socket).args(options);
        mode.apply(&mut command, end, &socket);
        prepare(&mut command, directory);
        Process::start(&mut command)
    };
    let [client_options, server_options] = options;
    let mut server = start(End::Server, "server", server_options)?;
    await_ready(&mut server, deadline)?;
    let client = start(End::Client, "client", client_options)?;
    Ok([client.finish(deadline), server.finish(deadline)])
}

/// An end that waits for the other for up to a second never has to sleep.
fn patient(command: &mut Command, _: &Path) {
    command.env("TSSX_SPIN_US", "1000000");
}

/// The guard is preloaded before the library.
fn guarded(command: &mut Command, directory: &Path) {
    patient(command, directory);
    let mut both = directory.join("quiet_guard.so").into_os_string();
    both.push(" ");
    both.push(library());
    command.env("LD_PRELOAD", both);
}

fn no_system_call(calls: &str) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    compile(include_str!("programs/quiet.c"), &directory.path().join("quiet"), &[])?;
    let count = COUNT.to_string();
    let options: &[&str] = &[calls, "syscalls", &count];
    let [plain, _] = play("quiet", [options, options], Mode::Plain, patient, directory.path())?;
    let seen = Report::of(&plain)?;
    if seen.with_calls != seen.judged || seen.all_calls < COUNT - 1 {
        return Err(format!("the guard does not notice the system calls of a plain run: {}", plain.all()).into());
    }
    for _ in 0..TRIES {
        let ended = play("quiet", [options, options], Mode::Both, patient, directory.path())?;
        let [client, server] = [Report::of(&ended[0])?, Report::of(&ended[1])?];
        println!("{calls}: client {client:?}, server {server:?}");
        // A stream's writer cannot see by its own messages that the reader does not run, and may ask now and then whether it lives.
        let excused = if calls == "stream" { server.pauses + server.paused_us / ASK_US } else { 0 };
        if client.with_calls > excused || server.with_calls > 0 {
            return Err(format!("system calls while the peer kept up\nclient: {}server: {}", ended[0].all(), ended[1].all()).into());
        }
        if client.judged >= COUNT / 2 && (server.judged >= COUNT / 2 || calls == "stream") {
            return Ok(());
        }
    }
    Err(format!("in {TRIES} runs the machine never let both ends run for half of the messages").into())
}

fn no_allocation(calls: &str) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    compile(include_str!("programs/quiet.c"), &directory.path().join("quiet"), &[])?;
    let guard = directory.path().join("quiet_guard.so");
    compile(include_str!("programs/quiet_guard.c"), &guard, &["-shared", "-fPIC"])?;
    let count = COUNT.to_string();
    let [noticed, _] =
        play("quiet", [&[calls, "allocates", &count], &[calls, "memory", &count]], Mode::Both, guarded, directory.path())?;
    if noticed.code.is_some() || !noticed.stdout.contains("malloc was called") {
        return Err(format!("the guard does not notice an allocation: {}", noticed.all()).into());
    }
    let options: &[&str] = &[calls, "memory", &count];
    for ended in play("quiet", [options, options], Mode::Both, guarded, directory.path())? {
        if ended.code != Some(0) || !ended.stdout.ends_with("no allocation\n") {
            return Err(ended.all().into());
        }
    }
    Ok(())
}

fn no_common_lock() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    compile(include_str!("programs/stopped.c"), &directory.path().join("stopped"), &["-pthread"])?;
    let unchanged: fn(&mut Command, &Path) = |_, _| {};
    let stops = STOPS.to_string();
    let [stuck, _] = play("stopped", [&["locked", &stops], &[]], Mode::Both, unchanged, directory.path())?;
    if !stuck.stdout.starts_with("stuck") {
        return Err(format!("a common lock is not noticed: {}", stuck.all()).into());
    }
    let [free, _] = play("stopped", [&["free", &stops], &[]], Mode::Both, unchanged, directory.path())?;
    print!("{}", free.stdout);
    let numbers: Vec<u64> = free.stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers.as_slice() {
        [STOPS, inside] if free.stdout.starts_with("free") && *inside >= STOPS_INSIDE => Ok(()),
        _ => Err(format!("want free, {STOPS} stops, {STOPS_INSIDE} inside: {}", free.all()).into()),
    }
}
