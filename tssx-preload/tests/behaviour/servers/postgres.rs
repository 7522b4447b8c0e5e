//! PostgreSQL, which forks a process for each connection, under pgbench.
//!
//! Three loads, each with eight clients: pgbench's own transactions, after which every sum of the bank must be right and
//! each transaction in its history; a script that checks every answer itself, with texts of many sizes in both
//! directions; and the transactions again with a connection for each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;

use super::place::{Home, Running, Software};
use super::{MIN_HIT_RATE, accelerated_or_not, asked_for, hit_rate, verified};
use crate::harness::DEADLINE;
use crate::ledger::Counted;
use crate::mode::{End, Mode};
use crate::process::{Ended, Process};

/// How many clients pgbench plays, as the issue asks.
const CLIENTS: &str = "8";
/// Seconds of each load unless `TSSX_SERVER_SECONDS` says otherwise.
const SECONDS: u64 = 5;
/// What a server of tests needs no disk for, and no connection but its socket's.
const CONFIGURATION: &str = "listen_addresses = ''\nfsync = off\njit = off\n";
/// Every sum of the bank, and how many transactions its history holds.
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
    (SELECT sum(bbalance) FROM pgbench_branches), sum(delta), count(*) FROM pgbench_history";

/// Every trial of this module.
pub(super) fn trials(software: &Arc<Software>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for mode in [Mode::Plain, Mode::Both] {
        let software = Arc::clone(software);
        trials.push(Trial::test(format!("postgres-under-pgbench::{mode:?}"), move || pgbench(&software, mode)));
    }
    let software = Arc::clone(software);
    let trial = Trial::test("postgres-verified-by-the-tracer", move || traced(&software));
    trials.push(trial.with_ignored_flag(!nix::unistd::geteuid().is_root()));
    trials
}

/// A database cluster with its server.
pub(super) struct Cluster<'a> {
    /// Where it is.
    pub(super) home: Home<'a>,
    programs: PathBuf,
    server: Running,
}

impl<'a> Cluster<'a> {
    /// Makes a new cluster and starts its server.
    pub(super) fn start(software: &'a Software, mode: Mode) -> Result<Self, Failed> {
        let home = Home::new(software, mode)?;
        let programs = home.software.entry("usr/lib/postgresql", "")?.join("bin");
        let data = home.path("data");
        let mut initdb = home.command(&programs.join("initdb"));
        initdb.args(["--username=tester", "--no-locale", "--encoding=UTF8", "--auth=trust", "--no-sync", "-D"]).arg(&data);
        home.run(&mut initdb, DEADLINE)?;
        let mut postgres = home.command(&programs.join("postgres"));
        postgres.arg("-D").arg(&data);
        for line in CONFIGURATION.lines() {
            postgres.arg("-c").arg(line.replace([' ', '\''], ""));
        }
        postgres.arg("-c").arg(format!("unix_socket_directories={}", home.path("").display()));
        home.preload(&mut postgres, End::Server, &socket(&home));
        let ready = || {
            let mut psql = client(&home, &programs, "psql");
            let probe = Process::start(psql.args(["-d", "postgres", "-c", "SELECT 1"]));
            probe.is_ok_and(|probe| probe.finish(Instant::now() + DEADLINE).code == Some(0))
        };
        let server = Running::start("postgres", &mut postgres, Signal::SIGINT, ready)?;
        Ok(Self { home, programs, server })
    }

    /// The server's socket.
    pub(super) fn socket(&self) -> PathBuf {
        socket(&self.home)
    }

    /// A client program, preloaded if the mode has the library at the clients' end.
    pub(super) fn client(&self, program: &str) -> Command {
        let mut command = client(&self.home, &self.programs, program);
        self.home.preload(&mut command, End::Client, &self.socket());
        command
    }

    /// Where PostgreSQL's programs are.
    pub(super) fn programs(&self) -> &Path {
        &self.programs
    }

    /// What the ledger of the server and all its processes says.
    pub(super) fn counted(&self) -> Result<Counted, Failed> {
        self.server.counted()
    }

    /// Ends the server, which disconnects whoever is still there.
    pub(super) fn stop(self) -> Result<(), Failed> {
        self.server.stop()
    }

    /// Makes the bank: a branch for each client and more, so that they seldom wait for each other.
    fn fill(&self) -> Result<(), Failed> {
        let mut command = self.client("pgbench");
        self.home.run(command.args(["--initialize", "--quiet", "--scale=10", "postgres"]), DEADLINE)?;
        // One connection that sends without a pause: the upgrade waits for room in the kernel's queue, sooner or later.
        if self.home.mode().may_accelerate() {
            println!("postgres, filling the bank: hit rate {:.5} by the ledger", hit_rate(&self.counted()?));
        }
        Ok(())
    }

    /// What pgbench must be told for a load of so many seconds.
    fn load(&self, options: &[&str], seconds: u64) -> Command {
        let mut command = self.client("pgbench");
        command.args(["--no-vacuum", "-c", CLIENTS, "-j", "2", "-T", &seconds.to_string()]).args(options).arg("postgres");
        command
    }

    /// Runs a load, and returns the number of transactions that it processed, and what the ledger counted meanwhile.
    fn run(&self, name: &str, options: &[&str], seconds: u64) -> Result<(u64, Counted), Failed> {
        let before = self.counted()?;
        let ended = self.home.run(&mut self.load(options, seconds), Duration::from_secs(seconds) + DEADLINE)?;
        let done = processed(&ended)?;
        let counted = self.counted()?.since(before);
        let (mode, rate) = (self.home.mode(), figure(&ended.stdout, "tps = ").unwrap_or_default());
        print!("postgres {mode:?}, {name}, {CLIENTS} clients, {seconds} s: {done} transactions, all right, {rate:.0} a second; ");
        println!("{} of {} connections accelerated", counted.accelerated, counted.selected);
        Ok((done, counted))
    }

    /// A load whose connections last: what is said on them must go through rings.
    fn run_lasting(&self, name: &str, options: &[&str], seconds: u64) -> Result<u64, Failed> {
        let (done, counted) = self.run(name, options, seconds)?;
        let mode = self.home.mode();
        accelerated_or_not(mode, &counted)?;
        if mode.may_accelerate() {
            println!("postgres {mode:?}, {name}: hit rate {:.5} by the ledger", hit_rate(&counted));
            if hit_rate(&counted) < MIN_HIT_RATE {
                return Err(format!("{mode:?}, {name}: too few bytes through rings: {counted:?}").into());
            }
        }
        Ok(done)
    }

    /// The sums of the bank must agree with each other and with what pgbench says it did.
    fn balanced(&self, transactions: u64) -> Result<(), Failed> {
        let mut psql = client(&self.home, &self.programs, "psql");
        let ended = self.home.run(psql.args(["-XAtq", "-d", "postgres", "-c", SUMS]), DEADLINE)?;
        let sums: Vec<_> = ended.stdout.trim().split('|').collect();
        match sums.as_slice() {
            [accounts, rest @ .., history] if rest.iter().all(|sum| sum == accounts) && *history == transactions.to_string() => {
                Ok(())
            }
            _ => {
                Err(format!("accounts|tellers|branches|history|transactions: {sums:?}, of which pgbench says {transactions}")
                    .into())
            }
        }
    }
}

fn socket(home: &Home) -> PathBuf {
    home.path(".s.PGSQL.5432")
}

fn client(home: &Home, programs: &Path, program: &str) -> Command {
    let mut command = home.command(&programs.join(program));
    command.env("PGHOST", home.path("")).env("PGUSER", "tester");
    command
}

/// The number after `before` in pgbench's report.
fn figure(report: &str, before: &str) -> Option<f64> {
    let line = report.lines().find_map(|line| line.strip_prefix(before))?;
    line.split([' ', '/']).next()?.parse().ok()
}

/// How many transactions were processed; none may have failed.
fn processed(ended: &Ended) -> Result<u64, Failed> {
    let done = figure(&ended.stdout, "number of transactions actually processed: ");
    let failed = figure(&ended.stdout, "number of failed transactions: ");
    match (done, failed) {
        (Some(done), Some(0.0)) if done > 0.0 && !ended.stderr.contains("rror") => Ok(done as u64),
        _ => Err(format!("pgbench: {}", ended.all()).into()),
    }
}

fn pgbench(software: &Software, mode: Mode) -> Result<(), Failed> {
    let seconds = asked_for("TSSX_SERVER_SECONDS", SECONDS)?;
    let cluster = Cluster::start(software, mode)?;
    cluster.fill()?;
    let script = cluster.home.write("checked.pgbench", include_str!("programs/checked.pgbench"))?;
    let first = cluster.run_lasting("its own transactions", &[], seconds)?;
    cluster.balanced(first)?;
    cluster.run_lasting("checked answers", &["-f", &script.to_string_lossy()], seconds)?;
    // So many short connections use each other's slots in the ledger: of them only the totals stay.
    let (second, _) = cluster.run("a connection for each", &["-C"], seconds)?;
    cluster.balanced(first + second)?;
    cluster.stop()
}

/// The tracer's figures while pgbench runs.
fn traced(software: &Software) -> Result<(), Failed> {
    let seconds = asked_for("TSSX_SERVER_SECONDS", SECONDS)?;
    let cluster = Cluster::start(software, Mode::Both)?;
    cluster.fill()?;
    let load = Process::start(&mut cluster.load(&[], seconds + 3))?;
    std::thread::sleep(Duration::from_millis(1000)); // past the operations before an upgrade
    let table = verified(&cluster.socket(), Duration::from_millis(seconds * 600))?;
    let ended = load.finish(Instant::now() + Duration::from_secs(seconds) + DEADLINE);
    cluster.balanced(processed(&ended)?)?;
    print!("{table}");
    cluster.stop()
}
