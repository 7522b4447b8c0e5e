//! `cargo xtask soak`: a mixed load for a long time, in real processes, every byte checked; and at the end nothing may have grown.
//!
//! The parent starts long-lived processes: a [`server`], a [`forker`] that leaves each connection to a child, and [`client`]s that make one
//! connection after another ([`talk`]), a [`brood`] that forks with connections, one without the library and one that may use no memory.
//! From [`outside`] they are stopped and continued, and short-lived ones ([`brief`]) are killed or become another program. From time to time all
//! pause, and what is there then is counted ([`sample`]) and held against the first time ([`verdict`]). What was done is added up ([`report`]): a kind of
//! event that never happened is a failure too. With `--connections` there are many short connections instead, a share of them refused or given up half-way.

mod brief;
mod brood;
mod client;
mod events;
mod forker;
mod harvest;
mod hello;
mod member;
mod outside;
mod report;
mod sample;
mod server;
mod stage;
mod talk;
mod verdict;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::environment::without_library;
use crate::exchange::Dice;
use crate::{build, paths};
use client::Who;
use member::Member;
use outside::Outside;
use report::Report;
use sample::Sample;

/// Longest that anything may stand still.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often the processes are asked how they are.
const LOOK: Duration = Duration::from_millis(200);
/// Longest that one kind of event may be waited for beyond the time.
const OVERTIME: Duration = Duration::from_secs(90);
/// Names of the servers' sockets, by how they wait.
const BLOCKING: &str = "blocking";
const EPOLL: &str = "epoll";
const POLL: &str = "poll";
const FORK: &str = "fork";

/// Options of `soak`.
#[derive(Args)]
pub(crate) struct Options {
    /// How long
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Until so many connections were opened and closed, most of them short, instead of a time
    #[arg(long, conflicts_with = "minutes")]
    connections: Option<u64>,
    /// What is done is determined by this number, as far as the machine's timing lets it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The library to use; built first where it is not given
    #[arg(long, conflicts_with = "plain")]
    library: Option<PathBuf>,
    /// Without the library: what the kernel's socket does with the same load
    #[arg(long)]
    plain: bool,
    /// Also write what was done and seen to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    /// The short run of `cargo xtask test`.
    pub(crate) fn short(library: &Path) -> Self {
        Self { minutes: 0.3, connections: None, seed: 1, library: Some(library.to_owned()), plain: false, json: None }
    }

    fn mix(&self) -> Mix {
        if self.connections.is_some() { Mix::Many } else { Mix::Long }
    }

    /// Whether it is time for another sample, of which there are `samples`.
    fn sample_due(&self, elapsed: Duration, connections: u64, samples: usize) -> bool {
        match self.connections {
            // After a twentieth, and then after each tenth.
            Some(all) => connections >= if samples == 0 { all / 20 } else { all * samples as u64 / 10 },
            None => elapsed >= self.interval() * (samples as u32 + 1),
        }
    }

    fn interval(&self) -> Duration {
        (Duration::from_secs_f64(self.minutes * 60.0) / 6).clamp(Duration::from_secs(3), Duration::from_secs(60))
    }

    fn is_over(&self, elapsed: Duration, connections: u64) -> bool {
        match self.connections {
            Some(all) => connections >= all,
            None => elapsed.as_secs_f64() >= self.minutes * 60.0,
        }
    }
}

/// What the load consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mix {
    /// Everything.
    Long,
    /// Short connections, as many as there can be.
    Many,
}

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Server,
    Forker,
    Client,
    Bare,
    Poor,
    Brood,
    /// Floods until it is killed.
    Victim,
    /// Becomes another program.
    Ancestor,
    /// What that becomes.
    Heir,
}

/// Options of one process.
#[derive(Args)]
pub(crate) struct EndOptions {
    /// What it is
    role: Role,
    /// Where sockets are
    #[arg(long)]
    directory: PathBuf,
    /// Seed of what it does
    #[arg(long)]
    seed: u64,
    /// What the load consists of
    #[arg(long, default_value = "long")]
    mix: Mix,
    /// The connection that an heir goes on with, how far it is, and how many bytes more were sent
    #[arg(long)]
    descriptor: Option<RawFd>,
    #[arg(long, default_value_t = 0)]
    position: u64,
    #[arg(long, default_value_t = 0)]
    owed: u64,
}

/// One of the processes.
///
/// # Errors
/// A wrong byte, or an answer of the socket that does not fit.
pub(crate) fn end(options: &EndOptions) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    match options.role {
        Role::Server => server::serve(options),
        Role::Forker => forker::serve(options),
        Role::Client => client::make(options, Who::Client),
        Role::Bare => client::make(options, Who::Bare),
        Role::Poor => client::make(options, Who::Poor),
        Role::Brood => brood::make(options),
        Role::Victim | Role::Ancestor | Role::Heir => brief::play(options),
    }
}

/// How processes are started.
struct Start<'a> {
    library: Option<&'a Path>,
    directory: &'a Path,
    mix: Mix,
}

impl Start<'_> {
    fn command(&self, role: Role, seed: u64) -> Result<Command> {
        let mut command = Command::new(paths::OWN_PROGRAM);
        let value =
            |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned()).unwrap_or_default();
        command.arg("soak-end").arg(value(role.to_possible_value())).arg("--directory").arg(self.directory);
        command.args(["--seed", &seed.to_string(), "--mix", &value(self.mix.to_possible_value())]);
        without_library(&mut command);
        // What the C library keeps of freed memory must not hide what we look for.
        command.env("MALLOC_ARENA_MAX", "1").env("MALLOC_MMAP_THRESHOLD_", "65536").env("MALLOC_TRIM_THRESHOLD_", "65536");
        if let Some(library) = self.library.filter(|_| role != Role::Bare) {
            let mut dice = Dice::new(seed, role as u64);
            let after = if role == Role::Server { 4 } else { dice.pick(&[1, 2, 4]) };
            command.env("LD_PRELOAD", library).env("USE_TSSX", self.directory.join("*"));
            command.env("TSSX_UPGRADE_AFTER", after.to_string()).env("TSSX_SPIN_US", dice.pick(&["0", "40", "40"]));
            if role == Role::Poor {
                command.env("TSSX_MEMORY_MAX", "0");
            }
        }
        Ok(command)
    }
}

/// Soaks, and prints what was done and seen.
///
/// # Errors
/// A wrong byte, a hang, something that has grown, a kind of event that never happened, or nothing that was accelerated.
pub(crate) fn soak(options: &Options) -> Result<()> {
    let library = build::library(options.library.as_deref(), options.plain)?;
    let directory = tempfile::tempdir()?;
    let start = Start { library: library.as_deref(), directory: directory.path(), mix: options.mix() };
    let mut report = Report::new(options.seed);
    let mut run = Run { options, members: Vec::new(), begun: Instant::now(), samples: Vec::new() };
    let outside = Outside::default();
    let result = run.begin(&start).and_then(|()| {
        let ids: Vec<u32> = run.members.iter().map(Member::id).collect();
        thread::scope(|scope| {
            scope.spawn(|| outside.stop(&ids, options.seed, start.mix));
            scope.spawn(|| outside.start_briefs(&start, options.seed));
            let result = run.go_on(&outside, directory.path(), &mut report);
            outside.end();
            result
        })
    });
    if result.is_err() {
        // Where everybody was, before they are killed.
        for member in &run.members {
            eprintln!("{}:\n{}", member.name, member::stacks(member.id()));
        }
    }
    let result = result.and_then(|()| run.finish());
    report.update(&run.members, &outside, run.begun.elapsed());
    report.finish(run.samples.clone(), result, library.is_some(), options.mix());
    print!("{report}");
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let findings = report.findings();
    ensure!(findings.is_empty(), "{} findings, the first: {}", findings.len(), findings.first().map_or("", String::as_str));
    Ok(())
}

/// The long-lived processes and what was seen of them.
struct Run<'a> {
    options: &'a Options,
    members: Vec<Member>,
    begun: Instant,
    samples: Vec<Sample>,
}

impl Run<'_> {
    fn begin(&mut self, start: &Start<'_>) -> Result<()> {
        let roles = [
            ("server", Role::Server),
            ("forker", Role::Forker),
            ("client", Role::Client),
            ("bare", Role::Bare),
            ("poor", Role::Poor),
            ("brood", Role::Brood),
        ];
        for (name, role) in roles {
            self.members.push(Member::start(name, start.command(role, self.options.seed)?)?);
        }
        Ok(())
    }

    /// Until it is over: looks after everybody, and takes samples.
    fn go_on(&mut self, outside: &Outside, directory: &Path, report: &mut Report) -> Result<()> {
        loop {
            thread::sleep(LOOK);
            outside.trouble()?;
            self.members.iter_mut().try_for_each(Member::ask)?;
            let (elapsed, connections) = (self.begun.elapsed(), self.connections());
            report.update(&self.members, outside, elapsed);
            let limit = Duration::from_secs_f64(self.options.minutes * 60.0) + OVERTIME;
            // A kind of event that is missing is waited for, within reason.
            let missing = report.missing(self.options.mix(), !self.options.plain);
            let wait = !missing.is_empty() && elapsed < limit && self.options.connections.is_none();
            let over = self.options.is_over(elapsed, connections) && !wait;
            if over || self.options.sample_due(elapsed, connections, self.samples.len()) {
                let _calm = outside.calm()?;
                self.sample(directory)?;
                if over {
                    return Ok(()); // and nobody goes on
                }
                self.members.iter_mut().try_for_each(|member| member.tell(stage::GO))?;
            }
        }
    }

    fn connections(&self) -> u64 {
        self.members.iter().map(|member| member.state.connections).sum()
    }

    /// Waits until only the connections that stay are open, and looks. Everybody rests afterwards.
    fn sample(&mut self, directory: &Path) -> Result<()> {
        let begun = Instant::now();
        self.members.iter_mut().try_for_each(|member| member.tell(stage::PAUSE))?;
        loop {
            let open: u64 = self.members.iter().map(|member| member.state.open).sum();
            if self.members.iter().all(|member| member.state.resting) && open == client::IDLE.len() as u64 {
                break;
            }
            if begun.elapsed() > PATIENCE {
                let states = self.members.iter().map(|member| format!("{}: {:?}", member.name, member.state));
                bail!(
                    "HANG: no rest after {} s, {open} connections are open: {}",
                    PATIENCE.as_secs(),
                    states.collect::<Vec<_>>().join("; ")
                );
            }
            thread::sleep(Duration::from_millis(5));
            self.members.iter_mut().try_for_each(Member::ask)?;
        }
        // Once more: what the ledger says was asked before the last connection was closed, perhaps.
        self.members.iter_mut().try_for_each(Member::ask)?;
        let members: Vec<_> = self.members.iter().map(|member| (member.name, member.id(), &member.state)).collect();
        let mut sample = Sample::take(&members, directory)?;
        sample.at_s = self.begun.elapsed().as_secs_f64();
        sample.connections = self.connections();
        println!("{}", report::line(&sample));
        self.samples.push(sample);
        Ok(())
    }

    /// Lets everybody end, who rests: clients first.
    fn finish(&mut self) -> Result<()> {
        self.members.iter_mut().rev().try_for_each(Member::finish)
    }
}
