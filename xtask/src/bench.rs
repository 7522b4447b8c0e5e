//! `cargo xtask bench`: what the library gains and costs, as ratios against the plain kernel socket of the same run.
//!
//! Every measurement starts its server and client anew for each round, plain and preloaded in turn. The table goes to
//! standard output as Markdown; `--json FILE` keeps every round.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::build;
use crate::measure::{Comparison, Running, client, workload};
use crate::{paths, run, setup};

/// Options of `bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds of each measurement, plain and preloaded
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long one client measures, in milliseconds
    #[arg(long, default_value_t = 400)]
    milliseconds: u64,
    /// Only measurements whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Write every round as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One measurement on a workload of ours.
struct Measurement {
    name: &'static str,
    unit: &'static str,
    server: Option<&'static str>,
    client: &'static str,
    size: usize,
    connections: usize,
    one_cpu: bool,
}

const fn echo(name: &'static str, size: usize) -> Measurement {
    let (server, client) = (Some("echo-server"), "echo-client");
    Measurement { name, unit: "round trips/s", server, client, size, connections: 1, one_cpu: false }
}

const fn stream(name: &'static str, size: usize) -> Measurement {
    let (server, client) = (Some("stream-server"), "stream-client");
    Measurement { name, unit: "bytes/s", server, client, size, connections: 1, one_cpu: false }
}

const fn epoll(name: &'static str, connections: usize) -> Measurement {
    let (server, client) = (Some("epoll-server"), "epoll-client");
    Measurement { name, unit: "echoes/s", server, client, size: 64, connections, one_cpu: false }
}

const MEASUREMENTS: [Measurement; 9] = [
    echo("64 B round trip, blocking", 64),
    Measurement { one_cpu: true, ..echo("64 B round trip, both ends on one CPU", 64) },
    stream("stream of 64 B", 64),
    stream("stream of 4 KiB", 4096),
    stream("stream of 64 KiB", 65_536),
    epoll("epoll echo, 1 connection", 1),
    epoll("epoll echo, 50 connections", 50),
    Measurement {
        server: Some("short-server"),
        client: "short-client",
        unit: "connections/s",
        ..echo("connect, request, close", 64)
    },
    Measurement { client: "plain-calls", server: None, unit: "calls/s", ..echo("write to /dev/null", 1) },
];

/// Runs the measurements and prints the table.
///
/// # Errors
/// A workload that fails: a benchmark of something broken says nothing.
pub(crate) fn bench(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    setup::setup()?;
    let library = build::preload()?;
    let wanted = |name: &str| options.only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let mut done = Vec::new();
    for measurement in MEASUREMENTS.iter().filter(|measurement| wanted(measurement.name)) {
        eprintln!("measuring {} …", measurement.name);
        done.push(measurement.compare(options, &library)?);
    }
    for clients in [1, 50] {
        let name = format!("redis GET, {clients} client{}", if clients == 1 { "" } else { "s" });
        if wanted(&name) {
            eprintln!("measuring {name} …");
            done.push(redis(&name, clients, options.rounds, &library)?);
        }
    }
    if done.is_empty() {
        bail!("no measurement is called {:?}", options.only.as_deref().unwrap_or_default());
    }
    print_table(&done);
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&done)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

impl Measurement {
    fn compare(&self, options: &Options, library: &Path) -> Result<Comparison> {
        let two_cpus = thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        let server_cpu = if self.one_cpu || !two_cpus { 0 } else { 1 };
        Comparison::measure(self.name, self.unit, options.rounds, |preloaded| {
            let directory = tempfile::tempdir()?;
            let socket = directory.path().join("socket");
            let prepare = |mut command: Command| {
                if preloaded {
                    command.env("LD_PRELOAD", library).env("USE_TSSX", &socket);
                }
                command.args(["--size", &self.size.to_string()]);
                command
            };
            let _server = match self.server {
                Some(server) => Some(Running::server(prepare(workload(server, &socket, Some(server_cpu))?), &socket)?),
                None => None,
            };
            let mut command = prepare(workload(self.client, &socket, Some(0))?);
            command.args(["--connections", &self.connections.to_string(), "--milliseconds", &options.milliseconds.to_string()]);
            client(&mut command)
        })
    }
}

/// Requests per second of redis-benchmark's GET; both servers run side by side.
fn redis(name: &str, clients: u32, rounds: usize, library: &Path) -> Result<Comparison> {
    let directory = tempfile::tempdir()?;
    let prepare = |mut command: Command, socket: &Path, preloaded: bool| {
        if preloaded {
            command.env("LD_PRELOAD", library).env("USE_TSSX", socket);
        }
        command
    };
    let mut servers = Vec::new();
    for preloaded in [false, true] {
        let socket = directory.path().join(format!("{preloaded}"));
        let mut command = Command::new(redis_server(directory.path())?);
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .arg("--unixsocket")
            .arg(&socket);
        servers.push((Running::server(prepare(command, &socket, preloaded), &socket)?, socket));
    }
    Comparison::measure(name, "requests/s", rounds, |preloaded| {
        let (_, socket) = servers.get(usize::from(preloaded)).context("two servers")?;
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(socket).args(["--csv", "-t", "get", "-n", "40000", "-c", &clients.to_string()]);
        let output = run::capture_success(&mut prepare(command, socket, preloaded), crate::measure::ROUND_DEADLINE)?;
        let row = output.stdout.lines().find(|line| line.starts_with("\"GET\"")).context("redis-benchmark printed no GET row")?;
        Ok(row.split('"').nth(3).context("redis-benchmark printed no rate")?.parse()?)
    })
}

/// The server's program; Debian's redis-tools has it under another name, which a link mends.
fn redis_server(directory: &Path) -> Result<PathBuf> {
    if let Some(program) = paths::find_program("redis-server") {
        return Ok(program);
    }
    let link = directory.join("redis-server");
    if !link.exists() {
        let binary = paths::find_program("redis-check-rdb").context("no redis-server: run `cargo xtask setup`")?;
        std::os::unix::fs::symlink(binary, &link)?;
    }
    Ok(link)
}

fn print_table(done: &[Comparison]) {
    println!("| measurement | ratio | spread | plain | preloaded | unit | extra ns/op |");
    println!("| --- | ---: | ---: | ---: | ---: | --- | ---: |");
    for one in done {
        let (least, most) = one.spread();
        let (plain, preloaded) = (one.plain_median(), one.preloaded_median());
        let extra = if one.unit == "bytes/s" { String::new() } else { format!("{:+.1}", one.extra_nanoseconds()) };
        println!(
            "| {} | {:.2}× | {least:.2}–{most:.2} | {plain:.4e} | {preloaded:.4e} | {} | {extra} |",
            one.name,
            one.ratio(),
            one.unit
        );
    }
}
