//! Connections that were busy once and are idle now: they must cost no CPU time, and no more memory than they need.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use procfs::process::Process;

use super::Plan;
use crate::comparison::{Comparison, Row, measure};
use crate::figures::Figures;
use crate::measure::{ROUND_DEADLINE, Running, workload};

/// How long nothing is said.
const SILENCE: Duration = Duration::from_secs(10);
/// Until spinning has ended, and what else follows the last message.
const SETTLE: Duration = Duration::from_millis(500);
/// Segments of the library, as the kernel's map of a process names them.
const SEGMENT: &str = "/memfd:tssx-segment";

/// Per cent of a CPU that both ends use, and KiB of memory of both ends for each connection. One round: it takes long and does not waver.
pub(super) fn idle(rows: &[Row], connections: usize, plan: &Plan) -> Result<Vec<Comparison>> {
    let silence = if plan.quick { SILENCE / 10 } else { SILENCE };
    measure(rows, 1, |preloaded| {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("socket");
        let prepare = |mut command: Command| {
            if preloaded {
                plan.preload(&mut command, &socket);
            }
            command
        };
        let server = Running::server(prepare(workload("epoll-server", &socket, &[])?), &socket)?;
        let mut command = prepare(workload("quiet-client", &socket, &[])?);
        command.args(["--connections", &connections.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Running::start_with(&mut command)?;
        let ends = [server.id(), client.id()];
        thread::sleep(SETTLE); // past the start of the client
        let before = memory(ends)?;
        make_quiet(&mut client)?;
        thread::sleep(SETTLE);
        let (cpu, start) = (cpu(ends)?, Instant::now());
        thread::sleep(silence);
        let used = (self::cpu(ends)? - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
        if preloaded {
            let upgraded = segments(server.id())?;
            eprintln!("{upgraded} of {connections} idle connections are in shared memory");
            ensure!(upgraded > 0, "no connection was accelerated");
        }
        let memory = (memory(ends)? - before) / connections as f64;
        Ok(vec![Figures::of(used * 100.0), Figures::of(memory / 1024.0)])
    })
}

/// Lets the client make its connections, and waits until it has used each.
fn make_quiet(client: &mut Running) -> Result<()> {
    let output = client.child().stdout.take().context("a piped output")?;
    client.child().stdin.as_mut().context("a piped input")?.write_all(b"go\n")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        // An error ends the waiting as an empty line does.
        let _ = BufReader::new(output).read_line(&mut line);
        let _ = sender.send(line);
    });
    match receiver.recv_timeout(ROUND_DEADLINE) {
        Ok(line) if line.trim() == "quiet" => Ok(()),
        Ok(_) => bail!("the client ended before it had made its connections: it says above why"),
        Err(_) => bail!("the client has not made its connections within {} s", ROUND_DEADLINE.as_secs()),
    }
}

/// CPU time of both ends, to the nanosecond.
fn cpu(ends: [Pid; 2]) -> Result<Duration> {
    ends.into_iter().map(|id| Ok(Duration::from(clock_getcpuclockid(id)?.now()?))).sum()
}

/// Bytes of memory that both ends use; what they share counts once.
fn memory(ends: [Pid; 2]) -> Result<f64> {
    let mut bytes = 0.0;
    for id in ends {
        let memory = Process::new(id.as_raw())?.smaps_rollup()?.memory_map_rollup;
        bytes += memory.iter().filter_map(|map| map.extension.map.get("Pss")).sum::<u64>() as f64;
    }
    Ok(bytes)
}

/// Segments that a process maps now.
fn segments(id: Pid) -> Result<usize> {
    let maps = std::fs::read_to_string(format!("/proc/{id}/maps"))?;
    Ok(maps.lines().filter(|line| line.contains(SEGMENT)).count())
}
