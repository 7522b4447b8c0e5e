//! A real server: redis on a Unix socket, with redis-benchmark and a Python client, in every way the library can be present.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;

use crate::harness::DEADLINE;
use crate::ledger::{self, Counted};
use crate::mode::{End, Mode, PRELOADED};
use crate::process::Process;
use crate::role::{SOCKET, SOON};

/// What redis-benchmark is asked for: tests, clients, pipeline depth, requests. Enough of them that the first few calls of each
/// connection, which the kernel carries, are less than the share that may.
const LOADS: [(&str, u32, u32, u32); 3] = [("get,set", 1, 1, 20_000), ("get,set", 50, 1, 100_000), ("get,set", 50, 16, 1_500_000)];
/// Share of the bytes that must have gone through rings.
const MIN_HIT_RATE: f64 = 0.99;

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for mode in PRELOADED {
        trials.push(Trial::test(format!("redis-replies-are-right::{mode:?}"), move || replies(mode)));
    }
    for mode in [Mode::Both, Mode::ServerOnly, Mode::ClientOnly] {
        trials.push(Trial::test(format!("redis-benchmark::{mode:?}"), move || benchmark(mode)));
    }
    for mode in [Mode::Both, Mode::ServerOnly, Mode::ClientOnly] {
        // Ignored is not forgotten: `cargo xtask test` counts it as skipped, and in CI as failed.
        let trial = Trial::test(format!("redis-verified-by-the-tracer::{mode:?}"), move || verified(mode));
        trials.push(trial.with_ignored_flag(!nix::unistd::geteuid().is_root()));
    }
    trials
}

/// A running server with its directory; both are gone when it is dropped.
struct Server {
    process: Process,
    directory: TempDir,
}

impl Server {
    fn start(mode: Mode) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(server_program(directory.path())?);
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"]).arg(directory.path());
        let socket = directory.path().join(SOCKET);
        command.arg("--unixsocket").arg(&socket);
        mode.apply(&mut command, End::Server, &socket);
        let mut server = Self { process: Process::start(&mut command)?, directory };
        let deadline = Instant::now() + SOON;
        while !server.answers() {
            if Instant::now() > deadline || server.process.ended() {
                return Err(format!("redis-server does not answer: {}", server.process.finish(Instant::now()).all()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return false };
        let mut reply = [0; 7];
        let asked = stream
            .set_read_timeout(Some(SOON))
            .and_then(|()| stream.write_all(b"PING\r\n"))
            .and_then(|()| stream.read_exact(&mut reply));
        asked.is_ok() && &reply == b"+PONG\r\n"
    }

    fn counted(&self) -> Result<Counted, Failed> {
        Ok(ledger::of_process(self.process.id())?)
    }
}

/// Debian's redis-tools has the server's binary under another name: by a link it is the server.
fn server_program(directory: &Path) -> Result<PathBuf, Failed> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |name: &str| std::env::split_paths(&path).map(|place| place.join(name)).find(|program| program.is_file());
    if let Some(program) = find("redis-server") {
        return Ok(program);
    }
    let binary = find("redis-check-rdb").ok_or("no redis-server and no redis-check-rdb: run `cargo xtask setup`")?;
    let link = directory.join("redis-server");
    std::os::unix::fs::symlink(binary, &link)?;
    Ok(link)
}

/// The Python client finds every reply right; what moved it is proven by the server's ledger.
fn replies(mode: Mode) -> Result<(), Failed> {
    let server = Server::start(mode)?;
    let script = server.directory.path().join("client.py");
    std::fs::write(&script, include_str!("programs/redis_client.py"))?;
    let mut command = Command::new("python3");
    command.arg(script).arg(server.socket());
    mode.apply(&mut command, End::Client, &server.socket());
    let ended = Process::start(&mut command)?.finish(Instant::now() + DEADLINE);
    let right = "set 300\ngot 300\ngot in pipelines 300\nb'$-1\\r\\n' b':300\\r\\n' b'-ERR'\ndone\n";
    if ended.code != Some(0) || ended.stdout != right {
        return Err(format!("{mode:?}: {}", ended.all()).into());
    }
    accelerated_or_not(mode, &server.counted()?)
}

fn accelerated_or_not(mode: Mode, counted: &Counted) -> Result<(), Failed> {
    match (mode.may_accelerate(), counted.ring_bytes) {
        (true, 0) => Err(format!("{mode:?}: not accelerated: {counted:?}").into()),
        (false, 1..) => Err(format!("{mode:?}: bytes in rings without a peer: {counted:?}").into()),
        _ => Ok(()),
    }
}

fn benchmark_command(mode: Mode, socket: &Path, tests: &str, clients: u32, pipeline: u32, requests: u32) -> Command {
    let mut command = Command::new("redis-benchmark");
    command.arg("-s").arg(socket).args(["--csv", "-t", tests, "-c", &clients.to_string(), "-P", &pipeline.to_string()]);
    command.args(["-n", &requests.to_string()]);
    mode.apply(&mut command, End::Client, socket);
    command
}

/// Requests a second by test, from redis-benchmark's CSV: `"GET","123456.78",…`.
fn rates(csv: &str) -> Vec<(String, f64)> {
    let rows = csv.lines().map(|line| line.split(',').map(|cell| cell.trim_matches('"')).collect::<Vec<_>>());
    rows.filter_map(|row| Some(((*row.first()?).to_owned(), row.get(1)?.parse().ok()?))).collect()
}

fn benchmark(mode: Mode) -> Result<(), Failed> {
    let server = Server::start(mode)?;
    for (tests, clients, pipeline, requests) in LOADS {
        let before = server.counted()?;
        let mut command = benchmark_command(mode, &server.socket(), tests, clients, pipeline, requests);
        let ended = Process::start(&mut command)?.finish(Instant::now() + DEADLINE);
        let done = rates(&ended.stdout);
        if ended.code != Some(0) || done.len() != 2 || done.iter().any(|(_, rate)| *rate <= 0.0) {
            return Err(format!("{mode:?} -c {clients} -P {pipeline}: {}", ended.all()).into());
        }
        let after = server.counted()?;
        accelerated_or_not(mode, &after)?;
        let (ring, kernel) = (after.ring_bytes - before.ring_bytes, after.kernel_bytes - before.kernel_bytes);
        let rate = ring as f64 / (ring + kernel).max(1) as f64;
        if mode.may_accelerate() && rate < MIN_HIT_RATE {
            return Err(format!(
                "-c {clients} -P {pipeline}: {ring} bytes through rings and {kernel} through the kernel: {rate:.4}"
            )
            .into());
        }
    }
    Ok(())
}

/// `tssx-trace verify` while the load runs: a hit rate of 99 % with the library at both ends, else the reason.
fn verified(mode: Mode) -> Result<(), Failed> {
    let trace = std::env::var_os("TSSX_TRACE").ok_or("TSSX_TRACE must name tssx-trace: run these tests by `cargo xtask test`")?;
    let server = Server::start(mode)?;
    let mut command = benchmark_command(mode, &server.socket(), "get,set", 10, 1, 100_000_000);
    let mut load = Process::start(&mut command)?;
    std::thread::sleep(Duration::from_millis(500)); // past the operations before an upgrade
    let mut verify = Command::new(trace);
    verify.args(["verify", "--duration", "2s", "--min-hit-rate", "0.99"]).arg(server.socket());
    let ended = Process::start(&mut verify)?.finish(Instant::now() + DEADLINE);
    load.stop();
    let expected = if mode.may_accelerate() {
        ended.code == Some(0)
    } else {
        ended.code == Some(4) && ended.stdout.contains("peer-not-ready")
    };
    if !expected {
        return Err(format!("{mode:?}: verify: {}", ended.all()).into());
    }
    Ok(())
}
