//! The debug log, `TSSX_LOG`: what it says, that the program's descriptors and output are what they are without it, and that a log
//! which cannot be written harms nobody.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use libtest_mimic::{Failed, Trial};

use crate::harness::{DEADLINE, same};
use crate::mode::{End, Mode};
use crate::process::{Ended, Process};
use crate::programs::await_ready;
use crate::role::SOCKET;

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("log-tells-selection-upgrade-and-return", tells),
        Trial::test("log-to-standard-error", to_standard_error),
        Trial::test("log-of-an-end-without-a-peer", without_peer),
        Trial::test("log-that-cannot-be-written-is-told-once", unwritable),
        Trial::test("log-that-would-wait-is-dropped", dropped),
        Trial::test("log-of-a-bad-variable", bad_variable),
    ]
}

/// The interpreter itself: `python3` may be a script, whose every process would log or complain.
pub(crate) fn interpreter() -> Result<String, Failed> {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs both ends in `directory`, the client first in what is returned.
fn play(directory: &Path, mode: Mode, log: Option<&str>) -> Result<[Ended; 2], Failed> {
    let deadline = Instant::now() + DEADLINE;
    let socket = directory.join(SOCKET);
    let python = interpreter()?;
    // A run before may have left it.
    let _ = std::fs::remove_file(&socket);
    let start = |end: End, role: &str| {
        let mut command = Command::new(&python);
        command.args(["-c", include_str!("programs/log_end.py"), role]).arg(&socket).current_dir(directory);
        mode.apply(&mut command, end, &socket);
        if let Some(log) = log {
            command.env("TSSX_LOG", log);
        }
        Process::start(&mut command)
    };
    let mut server = start(End::Server, "server")?;
    await_ready(&mut server, deadline)?;
    let client = start(End::Client, "client")?;
    let ended = [client.finish(deadline), server.finish(deadline)];
    match ended.iter().find(|end| end.code != Some(0)) {
        Some(failed) => Err(format!("an end failed: {}", failed.all()).into()),
        None => Ok(ended),
    }
}

/// Both ends' standard output must be what it is without the library.
fn as_without(directory: &Path, ended: &[Ended; 2]) -> Result<(), Failed> {
    let plain = play(directory, Mode::Plain, None)?;
    if !plain[0].stdout.contains("same descriptors True") {
        return Err(format!("the program itself is wrong: {}", plain[0].all()).into());
    }
    plain.iter().zip(ended).try_for_each(|(plain, logged)| same(&plain.stdout, &logged.stdout))
}

/// What each end must have logged about the connection in `directory`, in any order.
fn complete(text: &str, directory: &Path) -> Result<(), Failed> {
    let name = directory.join(SOCKET);
    let about = |words: &str| {
        let end = format!(" {}: {words}", name.display());
        text.lines().filter(|line| line.starts_with("tssx: pid ") && line.ends_with(&end)).count()
    };
    for (words, wanted) in [
        ("selected", 2),
        ("upgraded: sends through shared memory", 2),
        ("upgraded: receives through shared memory", 2),
        ("sends through the kernel socket again: ancillary-data", 1),
    ] {
        if about(words) != wanted {
            return Err(format!("{wanted} lines {words:?} expected in the log:\n{text}").into());
        }
    }
    match text.lines().find(|line| !line.starts_with("tssx: pid ")) {
        Some(odd) => Err(format!("{odd:?} is no line of the log").into()),
        None => Ok(()),
    }
}

/// The path is relative, and the program goes elsewhere.
fn tells() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let ended = play(directory.path(), Mode::Both, Some("log"))?;
    complete(&std::fs::read_to_string(directory.path().join("log"))?, directory.path())?;
    if let Some(noisy) = ended.iter().find(|end| !end.stderr.is_empty()) {
        return Err(format!("standard error is not the log: {}", noisy.all()).into());
    }
    as_without(directory.path(), &ended)
}

fn to_standard_error() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let ended = play(directory.path(), Mode::Both, Some("stderr"))?;
    complete(&format!("{}{}", ended[0].stderr, ended[1].stderr), directory.path())?;
    as_without(directory.path(), &ended)
}

fn without_peer() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let ended = play(directory.path(), Mode::ClientOnly, Some("log"))?;
    let text = std::fs::read_to_string(directory.path().join("log"))?;
    let reasons = text.lines().filter(|line| line.contains(": on the kernel socket for good: ")).count();
    if reasons != 1 || text.contains("upgraded") || !text.contains("peer-not-ready") {
        return Err(format!("one reason expected, peer-not-ready:\n{text}").into());
    }
    as_without(directory.path(), &ended)
}

fn unwritable() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let ended = play(directory.path(), Mode::Both, Some("/nowhere/at/all/log"))?;
    for end in &ended {
        if end.stderr.lines().count() != 1 || !end.stderr.starts_with("tssx: TSSX_LOG ") {
            return Err(format!("one complaint expected: {}", end.all()).into());
        }
    }
    as_without(directory.path(), &ended)?;
    let quiet = play(directory.path(), Mode::Both, Some(""))?;
    quiet.iter().try_for_each(|end| same("", &end.stderr))
}

/// The log is a FIFO that is full.
fn dropped() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let fifo = directory.path().join("log");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    let held = std::fs::OpenOptions::new().read(true).write(true).open(&fifo)?;
    nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    while std::io::Write::write(&mut &held, &[0; 4096]).is_ok() {}
    let ended = play(directory.path(), Mode::Both, Some("log"))?;
    as_without(directory.path(), &ended)
}

fn bad_variable() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let mut echo = Command::new("/bin/echo");
    echo.arg("hello").current_dir(directory.path());
    Mode::Both.apply(&mut echo, End::Server, Path::new("/run/x"));
    echo.env("TSSX_LOG", "log").env("TSSX_SPIN_US", "many");
    let ended = Process::start(&mut echo)?.finish(Instant::now() + DEADLINE);
    let text = std::fs::read_to_string(directory.path().join("log"))?;
    let told = "TSSX_SPIN_US is not a number in its range";
    if ended.stdout != "hello\n" || !ended.stderr.contains(told) || !text.contains(told) {
        return Err(format!("{}log:\n{text}", ended.all()).into());
    }
    Ok(())
}
