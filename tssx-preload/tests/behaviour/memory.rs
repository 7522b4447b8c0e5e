//! The bound on the memory of rings, `TSSX_MEMORY_MAX`: connections beyond it work on the kernel socket and say why, and what is closed makes
//! room for others.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use libtest_mimic::{Failed, Trial};

use crate::harness::{DEADLINE, same};
use crate::log::interpreter;
use crate::mode::{End, Mode};
use crate::process::{Ended, Process};
use crate::programs::await_ready;
use crate::role::SOCKET;

/// Plays until the ends have met on as many connections as the bound allows: a machine that does not let both run finds them too late.
const TRIES: usize = 4;

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        // The rings of a connection with the default buffers come to a little more than half a MiB.
        Trial::test("memory-for-one-connection-at-a-time", || bounded("700K", [2, 2])),
        Trial::test("memory-for-two-connections-at-a-time", || bounded("1200k", [3, 1])),
        Trial::test("memory-for-none", || bounded("0", [0, 4])),
        Trial::test("memory-for-all", || bounded("1G", [4, 0])),
        Trial::test("memory-of-a-bad-size", bad_size),
    ]
}

/// Plays both ends with a bound and a log each; the client's end, its log in the place of its standard error.
fn play(directory: &Path, mode: Mode, most: Option<&str>) -> Result<Ended, Failed> {
    let deadline = Instant::now() + DEADLINE;
    let socket = directory.join(SOCKET);
    let python = interpreter()?;
    // A play before may have left it.
    let _ = std::fs::remove_file(&socket);
    let start = |end: End, role: &str| {
        let mut command = Command::new(&python);
        command.args(["-c", include_str!("programs/memory_end.py"), role]).arg(&socket).current_dir(directory);
        mode.apply(&mut command, end, &socket);
        if let Some(most) = most {
            command.env("TSSX_LOG", "stderr").env("TSSX_MEMORY_MAX", most);
        }
        Process::start(&mut command)
    };
    let mut server = start(End::Server, "server")?;
    await_ready(&mut server, deadline)?;
    let client = start(End::Client, "client")?;
    let ended = [client.finish(deadline), server.finish(deadline)];
    match ended.iter().find(|end| end.code != Some(0)) {
        Some(failed) => Err(format!("an end failed: {}", failed.all()).into()),
        None => Ok(ended.into_iter().next().ok_or("no client")?),
    }
}

/// With rings for at most `most` bytes: how many of the four connections the client has moved into rings, and how many it has kept out of them for
/// want of memory.
fn bounded(most: &str, wanted: [usize; 2]) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let plain = play(directory.path(), Mode::Plain, None)?;
    let mut last = String::new();
    for _ in 0..TRIES {
        let client = play(directory.path(), Mode::Both, Some(most))?;
        same(&plain.stdout, &client.stdout)?;
        let lines = |words: &str| client.stderr.lines().filter(|line| line.ends_with(words)).count();
        let found = [lines("upgraded: sends through shared memory"), lines("on the kernel socket for good: no-memory")];
        if found == wanted {
            return Ok(());
        }
        if found[0] > wanted[0] {
            return Err(format!("more than {wanted:?}: {found:?}: {}", client.all()).into());
        }
        last = format!("{wanted:?} expected, {found:?} seen: {}", client.all());
    }
    Err(last.into())
}

fn bad_size() -> Result<(), Failed> {
    for wrong in ["many", "1.5G", "-1", "K", "99999999999T", ""] {
        let mut echo = Command::new("/bin/echo");
        echo.arg("hello");
        Mode::Both.apply(&mut echo, End::Server, Path::new("/run/x"));
        echo.env("TSSX_MEMORY_MAX", wrong);
        let ended = Process::start(&mut echo)?.finish(Instant::now() + DEADLINE);
        if ended.stdout != "hello\n" || !ended.stderr.contains("TSSX_MEMORY_MAX is no size") {
            return Err(format!("{wrong:?}: {}", ended.all()).into());
        }
    }
    Ok(())
}
