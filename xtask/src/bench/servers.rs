//! Real servers: redis under redis-benchmark, and PostgreSQL under pgbench from `target/servers`.
//!
//! PostgreSQL runs as [`crate::unpacked`] says, with a copy of the library that its user can read.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use procfs::process::Process;
use tempfile::TempDir;

use super::Plan;
use crate::comparison::{Comparison, Row, measure};
use crate::environment::without_library;
use crate::figures::{Cpu, Figures, Latency};
use crate::measure::{ROUND_DEADLINE, Running};
use crate::unpacked::{Unpacked, redis_server};
use crate::{run, servers};

/// Requests of one run of redis-benchmark.
const REQUESTS: u32 = 50_000;
/// Transactions before pgbench's clock starts: the tables are in memory then.
const WARM_UP: &str = "2000";
/// Seconds of one run of pgbench, which takes whole ones.
const SECONDS: &str = "2";

/// Requests per second of redis-benchmark's GET.
pub(super) fn redis(rows: &[Row], clients: u32, plan: &Plan) -> Result<Vec<Comparison>> {
    let requests = if plan.quick { REQUESTS / 10 } else { REQUESTS };
    measure(rows, plan.rounds, |preloaded| {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("socket");
        let prepare = |mut command: Command| {
            without_library(&mut command);
            if preloaded {
                plan.preload(&mut command, &socket);
            }
            command
        };
        let mut command = prepare(Command::new(redis_server(directory.path())?));
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"]).arg(directory.path());
        let server = Running::server(with(command, &["--unixsocket"], &socket), &socket)?;
        let mut command = prepare(Command::new("redis-benchmark"));
        command.arg("-s").arg(&socket).args(["--csv", "-t", "get", "-n", &requests.to_string(), "-c", &clients.to_string()]);
        let cpu = CpuTime::now(server.id())?;
        let output = run::capture_success(&mut command, ROUND_DEADLINE)?;
        let (value, latency) = of_redis(&output.stdout).with_context(|| format!("redis-benchmark printed {:?}", output.stdout))?;
        let cpu = cpu.until_now(server.id(), f64::from(requests))?;
        Ok(vec![Figures { latency, cpu: Some(cpu), ..Figures::of(value) }])
    })
}

fn with(mut command: Command, arguments: &[&str], last: &Path) -> Command {
    command.args(arguments).arg(last);
    command
}

/// Rate and latencies of redis-benchmark's line about GET. What columns there are depends on its version.
fn of_redis(text: &str) -> Option<(f64, Option<Latency>)> {
    let cells = |line: &str| line.split(',').map(|cell| cell.trim_matches('"').to_owned()).collect::<Vec<_>>();
    let names = text.lines().find(|line| line.starts_with("\"test\"")).map(cells).unwrap_or_default();
    let values = cells(text.lines().find(|line| line.starts_with("\"GET\""))?);
    let column = |name: &str| -> Option<f64> { values.get(names.iter().position(|one| one == name)?)?.parse().ok() };
    let nanoseconds = |name: &str| Some(column(name)? * 1e6);
    let latency = nanoseconds("p50_latency_ms").map(|p50| Latency { p50, p99: nanoseconds("p99_latency_ms"), p999: None });
    Some((values.get(1)?.parse().ok()?, latency))
}

/// Transactions per second of pgbench's prepared SELECT, on one cluster whose server is started anew for each round.
pub(super) fn pgbench(rows: &[Row], clients: u32, plan: &Plan) -> Result<Vec<Comparison>> {
    let cluster = Cluster::make(plan)?;
    let clients = clients.to_string();
    let seconds = if plan.quick { "1" } else { SECONDS };
    measure(rows, plan.rounds, |preloaded| {
        let server = cluster.start(preloaded)?;
        let load = |amount: [&str; 2]| {
            let mut command = cluster.command("pgbench", preloaded)?;
            command.args(["--no-vacuum", "-S", "-M", "prepared", "-c", &clients]).args(amount).arg("postgres");
            run::capture_success(&mut command, ROUND_DEADLINE)
        };
        load(["-t", WARM_UP])?;
        let cpu = CpuTime::of_family(server.id())?;
        let text = load(["-T", seconds])?.stdout;
        let figure = |before: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(before));
            let number = line.and_then(|line| line.split([' ', '/']).next()?.parse::<f64>().ok());
            number.with_context(|| format!("pgbench says nothing of {before:?}: {text}"))
        };
        let done = figure("number of transactions actually processed: ")?;
        let cpu = cpu.until_now(server.id(), done)?;
        // Of latencies it tells the average only, or logs each, which would slow it down.
        Ok(vec![Figures { cpu: Some(cpu), ..Figures::of(figure("tps = ")?) }])
    })
}

/// CPU time of a server, and of the clients that were waited for.
struct CpuTime {
    client: f64,
    server: f64,
    family: bool,
}

impl CpuTime {
    fn now(server: Pid) -> Result<Self> {
        Self::look(server, false)
    }

    /// The server's with all its children that have ended.
    fn of_family(server: Pid) -> Result<Self> {
        Self::look(server, true)
    }

    fn look(server: Pid, family: bool) -> Result<Self> {
        let children = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let client = (children.user_time() + children.system_time()).num_microseconds() as f64 / 1e6;
        let mut time = Duration::from(clock_getcpuclockid(server)?.now()?).as_secs_f64();
        if family {
            let stat = Process::new(server.as_raw())?.stat()?;
            time += (stat.cutime + stat.cstime) as f64 / procfs::ticks_per_second() as f64;
        }
        Ok(Self { client, server: time, family })
    }

    fn until_now(&self, server: Pid, messages: f64) -> Result<Cpu> {
        if self.family {
            std::thread::sleep(Duration::from_millis(100)); // until the server has waited for the children that served
        }
        let now = Self::look(server, self.family)?;
        Ok(Cpu { messages, client: now.client - self.client, server: now.server - self.server })
    }
}

/// A database cluster.
struct Cluster {
    home: TempDir,
    servers: Unpacked,
}

impl Cluster {
    /// Makes one and fills it.
    fn make(plan: &Plan) -> Result<Self> {
        let folder = std::env::var_os("TSSX_SERVERS").map_or_else(servers::fetch, |folder| Ok(PathBuf::from(folder)))?;
        let servers = Unpacked::new(&folder)?;
        let home = servers.home()?;
        fs::copy(&plan.library, home.path().join("library.so"))?;
        fs::set_permissions(home.path().join("library.so"), Permissions::from_mode(0o755))?;
        let cluster = Self { home, servers };
        let mut initdb = cluster.command("initdb", false)?;
        initdb.args(["--username=tester", "--no-locale", "--encoding=UTF8", "--auth=trust", "--no-sync", "-D"]);
        run::capture_success(initdb.arg(cluster.home.path().join("data")), ROUND_DEADLINE)?;
        let _server = cluster.start(false)?;
        let mut fill = cluster.command("pgbench", false)?;
        run::capture_success(fill.args(["--initialize", "--quiet", "postgres"]), ROUND_DEADLINE)?;
        Ok(cluster)
    }

    /// One of PostgreSQL's programs.
    fn command(&self, program: &str, preloaded: bool) -> Result<Command> {
        let home = self.home.path();
        let mut command = self.servers.command(&self.servers.postgres(program)?, home);
        command.env("PGHOST", home).env("PGUSER", "tester");
        if preloaded {
            command.env("LD_PRELOAD", home.join("library.so")).env("USE_TSSX", self.socket());
        }
        Ok(command)
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join(".s.PGSQL.5432")
    }

    /// Starts the server; it ends in its own way, for the next to find everything in order.
    fn start(&self, preloaded: bool) -> Result<Running> {
        let mut command = self.command("postgres", preloaded)?;
        command.arg("-D").arg(self.home.path().join("data"));
        for setting in ["listen_addresses=", "fsync=off", "jit=off", "autovacuum=off"] {
            command.args(["-c", setting]);
        }
        command.args(["-c", &format!("unix_socket_directories={}", self.home.path().display())]);
        command.stderr(std::process::Stdio::null());
        let server = Running::server(command, &self.socket())?.ended_by(Signal::SIGINT);
        for _ in 0..500 {
            let mut ready = self.command("psql", false)?;
            if run::capture_success(ready.args(["-d", "postgres", "-c", "SELECT 1"]), ROUND_DEADLINE).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("PostgreSQL listens, but answers nothing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_benchmark_is_understood_with_and_without_latencies() {
        let new = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\
            \"max_latency_ms\"\n\"GET\",\"199004.97\",\"0.135\",\"0.056\",\"0.127\",\"0.199\",\"0.231\",\"0.447\"\n";
        let (rate, latency) = of_redis(new).unwrap();
        assert_eq!(rate, 199_004.97);
        assert_eq!(latency.map(|latency| (latency.p50.round(), latency.p99.map(f64::round))), Some((127_000.0, Some(231_000.0))));
        assert_eq!(of_redis("\"GET\",\"5.50\"\n"), Some((5.5, None)));
        assert_eq!(of_redis("Could not connect\n"), None);
    }
}
