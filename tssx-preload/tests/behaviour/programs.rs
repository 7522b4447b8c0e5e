//! Programs that were written without us: Python's `socket`, `selectors` and `asyncio`, and C with stdio. Each is a server
//! and a client whose standard output is the transcript; the server says `ready` when it listens, and each end waits at
//! its own end until we have read its ledger.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use tssx_core::reason::Reason;

use crate::harness::{DEADLINE, Expect, same};
use crate::ledger::{self, Counted};
use crate::mode::{End, Mode, PRELOADED};
use crate::process::{Ended, Process};
use crate::role::{SOCKET, SOON};

/// One pair of programs. Both get the socket's path as their only argument.
struct Pair {
    name: &'static str,
    server: Source,
    client: Source,
    expect: Expect,
}

#[derive(Clone, Copy)]
enum Source {
    Python(&'static str),
    C(&'static str),
    /// C that is linked with musl, where the library is inert.
    Musl(&'static str),
    /// A program and, from the same text with PLUGIN, what it loads: its own path with `.so`.
    CWithPlugin(&'static str),
}

const PAIRS: [Pair; 14] = [
    Pair {
        name: "python-socket-and-makefile",
        server: Source::Python(include_str!("programs/makefile_server.py")),
        client: Source::Python(include_str!("programs/makefile_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "python-selectors-and-settimeout",
        server: Source::Python(include_str!("programs/selectors_server.py")),
        client: Source::Python(include_str!("programs/timeout_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "python-asyncio",
        server: Source::Python(include_str!("programs/asyncio_server.py")),
        client: Source::Python(include_str!("programs/asyncio_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "python-renames-its-socket",
        server: Source::Python(include_str!("programs/renamed_server.py")),
        client: Source::Python(include_str!("programs/timeout_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "python-fdopen",
        server: Source::Python(include_str!("programs/fdopen_server.py")),
        client: Source::Python(include_str!("programs/makefile_client.py")),
        expect: Expect::Either,
    },
    Pair {
        name: "c-jumps-and-cancellation",
        server: Source::C(include_str!("programs/jumps_server.c")),
        client: Source::Python(include_str!("programs/jumps_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "c-jumps-out-of-busy-calls",
        server: Source::C(concat!("#define BUSY\n", include_str!("programs/jumps_server.c"))),
        client: Source::Python(include_str!("programs/jumps_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "c-connections-become-standard-input",
        server: Source::C(include_str!("programs/inetd_server.c")),
        client: Source::Python(include_str!("programs/inetd_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "c-starts-other-programs",
        server: Source::C(include_str!("programs/spawns_server.c")),
        client: Source::Python(include_str!("programs/spawns_client.py")),
        expect: Expect::Accelerated,
    },
    Pair {
        name: "c-plug-in-with-deepbind",
        server: Source::Python(include_str!("programs/makefile_server.py")),
        client: Source::CWithPlugin(include_str!("programs/deepbind_client.c")),
        expect: Expect::NeverUpgraded,
    },
    Pair {
        name: "c-plug-in-with-deepbind-on-its-host's",
        server: Source::Python(include_str!("programs/makefile_server.py")),
        client: Source::CWithPlugin(concat!("#define HOST_CONNECTS\n", include_str!("programs/deepbind_client.c"))),
        expect: Expect::NeverUpgraded,
    },
    Pair {
        name: "musl-serves",
        server: Source::Musl(include_str!("programs/stdio_server.c")),
        client: Source::Python(include_str!("programs/makefile_client.py")),
        expect: Expect::NeverUpgraded,
    },
    Pair {
        name: "musl-asks",
        server: Source::Python(include_str!("programs/makefile_server.py")),
        client: Source::Musl(include_str!("programs/line_client.c")),
        expect: Expect::NeverUpgraded,
    },
    Pair {
        name: "c-stdio",
        server: Source::C(include_str!("programs/stdio_server.c")),
        client: Source::Python(include_str!("programs/makefile_client.py")),
        expect: Expect::Either,
    },
];

/// A trial for each pair and mode.
pub(crate) fn trials() -> Vec<Trial> {
    let all = PAIRS.iter().flat_map(|pair| [Mode::Plain].into_iter().chain(PRELOADED).map(move |mode| (pair, mode)));
    all.map(|(pair, mode)| Trial::test(format!("{}::{mode:?}", pair.name), move || compare(pair, mode))).collect()
}

fn compare(pair: &Pair, mode: Mode) -> Result<(), Failed> {
    let (plain, _) = play(pair, Mode::Plain)?;
    let (preloaded, counted) = play(pair, mode)?;
    same(&plain, &preloaded)?;
    let ring_bytes: u64 = counted.iter().map(|one| one.ring_bytes).sum();
    if mode.may_accelerate() && pair.expect == Expect::Accelerated && ring_bytes == 0 {
        return Err(format!("not accelerated: {counted:?}").into());
    }
    let never = !mode.may_accelerate() || pair.expect == Expect::NeverUpgraded;
    let told = counted.iter().any(|one| one.reasons & 1 << Reason::PeerNotReady as u32 != 0);
    if pair.expect == Expect::NeverUpgraded && mode.may_accelerate() && !told {
        return Err(format!("plain without a reason: {counted:?}").into());
    }
    if never && ring_bytes > 0 {
        return Err(format!("bytes in rings without a peer: {counted:?}").into());
    }
    Ok(())
}

fn play(pair: &Pair, mode: Mode) -> Result<(String, [Counted; 2]), Failed> {
    let directory = tempfile::tempdir()?;
    let deadline = Instant::now() + DEADLINE;
    let mut server = start(pair.server, mode, End::Server, directory.path())?;
    await_ready(&mut server, deadline)?;
    let mut client = start(pair.client, mode, End::Client, directory.path())?;
    let counted = [at_the_end(&mut client, deadline)?, at_the_end(&mut server, deadline)?];
    let (client, server) = (client.finish(deadline), server.finish(deadline));
    for (name, ended) in [("server", &server), ("client", &client)] {
        if ended.code != Some(0) {
            return Err(
                format!("{mode:?}: the {name} failed: {}\n--- other end\n{}{}", ended.all(), server.all(), client.all()).into()
            );
        }
    }
    let text = |ended: &Ended| format!("{}{}", ended.stdout, ended.stderr);
    Ok((format!("server:\n{}client:\n{}", text(&server), text(&client)), counted))
}

fn start(source: Source, mode: Mode, end: End, directory: &Path) -> Result<Process, Failed> {
    let mut command = match source {
        Source::Python(text) => {
            let script = directory.join(format!("{end:?}.py"));
            std::fs::write(&script, text)?;
            let mut python = Command::new("python3");
            python.arg(script);
            python
        }
        Source::C(text) => Command::new(compile(text, &directory.join(format!("{end:?}")), &[])?),
        Source::Musl(text) => Command::new(compile_by("musl-gcc", text, &directory.join(format!("{end:?}")), &[])?),
        Source::CWithPlugin(text) => {
            let plugin = directory.join(format!("{end:?}.so"));
            compile(text, &plugin, &["-DPLUGIN", "-shared", "-fPIC"])?;
            Command::new(compile(text, &directory.join(format!("{end:?}")), &[])?)
        }
    };
    command.arg(directory.join(SOCKET));
    mode.apply(&mut command, end, &directory.join(SOCKET));
    Process::start_with_input(&mut command)
}

/// Compiles C with gcc.
///
/// # Errors
/// gcc is missing or finds fault with the text.
pub(crate) fn compile(text: &str, to: &Path, options: &[&str]) -> Result<PathBuf, Failed> {
    compile_by("gcc", text, to, options)
}

fn compile_by(compiler: &str, text: &str, to: &Path, options: &[&str]) -> Result<PathBuf, Failed> {
    let mut gcc = Command::new(compiler);
    gcc.args(["-O1", "-Wall", "-x", "c", "-", "-o"]).arg(to).args(options).stdin(Stdio::piped());
    let mut gcc = gcc.spawn()?;
    gcc.stdin.take().ok_or("gcc's standard input")?.write_all(text.as_bytes())?;
    if !gcc.wait()?.success() {
        return Err("gcc failed".into());
    }
    Ok(to.to_path_buf())
}

pub(crate) fn await_ready(server: &mut Process, deadline: Instant) -> Result<(), Failed> {
    while !server.printed("ready\n") {
        if server.ended() || Instant::now() > deadline {
            return Err("the server does not come up".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until the program writes its last line, `done`, reads its ledger, and lets it go by closing its input.
pub(crate) fn at_the_end(process: &mut Process, deadline: Instant) -> Result<Counted, Failed> {
    while !process.printed("done\n") && !process.ended() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let counted = if process.ended() { Counted::default() } else { ledger::of_process(process.id())? };
    process.close_input();
    let settled = Instant::now() + SOON;
    while !process.ended() && Instant::now() < settled.min(deadline) {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(counted)
}
