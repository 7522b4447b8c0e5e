//! `cargo xtask bench`: what the library gains and costs, held against the plain kernel socket of the same run.
//!
//! Every measurement starts its server and client anew for each round, plain and preloaded in turn. [`scenarios`] is the list of them;
//! [`own`] runs our workloads, [`servers`] redis and PostgreSQL, [`idle`] the connections on which nothing is said, [`tracer`] what it costs
//! to be watched. [`limits`] is what this machine can do at best. [`report`] makes the table and the file of every round, [`plot`] the picture, [`against`] holds two files
//! against each other.

mod against;
mod idle;
mod limits;
mod own;
mod plot;
mod report;
mod scenarios;
mod servers;
mod tracer;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::comparison::Comparison;
use crate::{build, setup};
use limits::Limits;
use report::{Machine, Report};
use scenarios::{Kind, Scenario};

/// Load average from which the figures are doubtful.
const BUSY: f64 = 0.5;

/// Options of `bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds of each measurement, plain and preloaded
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long one client measures, in milliseconds
    #[arg(long, default_value_t = 400)]
    milliseconds: u64,
    /// One short round of each: whether everything can be measured, not how fast it is
    #[arg(long, conflicts_with_all = ["rounds", "milliseconds"])]
    quick: bool,
    /// Only measurements whose name contains this; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Print the names of the measurements, and measure nothing
    #[arg(long)]
    list: bool,
    /// The library to measure; built first where it is not given
    #[arg(long)]
    library: Option<PathBuf>,
    /// The tracer whose cost is measured; built first where it is not given
    #[arg(long)]
    tracer: Option<PathBuf>,
    /// Write every round as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a plot of ratio against message size to this file
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Hold the results against those of an earlier `--json`; fails if one is worse and the spreads do not overlap
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

/// What every measurement needs to know.
struct Plan {
    rounds: usize,
    milliseconds: u64,
    quick: bool,
    library: PathBuf,
    tracer: Option<PathBuf>,
}

impl Plan {
    /// The command with the library, for those sockets.
    fn preload(&self, command: &mut Command, sockets: &Path) {
        command.env("LD_PRELOAD", &self.library).env("USE_TSSX", sockets);
    }
}

/// Runs the measurements and prints the table.
///
/// # Errors
/// A workload that fails: a benchmark of something broken says nothing. Or something became worse than in an earlier run.
pub(crate) fn bench(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    ensure!(options.milliseconds > 0, "--milliseconds must be at least 1");
    let chosen = chosen(options)?;
    if options.list {
        chosen.iter().flat_map(|scenario| &scenario.rows).for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    // Read before anything is measured: a wrong name must not cost ten minutes.
    let earlier = options.against.as_deref().map(Report::read).transpose()?;
    let plan = plan(options)?;
    warn_if_busy();
    let limits = Limits::measure()?;
    let mut rows = Vec::new();
    for scenario in &chosen {
        eprintln!("measuring {} …", scenario.name());
        rows.extend(scenario.measure(&plan)?);
    }
    let report = Report::new(Machine::look()?, limits, plan.rounds, plan.milliseconds, rows);
    print!("{}", report.table());
    if let Some(file) = &options.json {
        report.write(file)?;
    }
    if let Some(file) = &options.svg {
        let svg = plot::plot(&report.rows)?;
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match earlier {
        Some(earlier) => against::hold(&earlier, &report),
        None => Ok(()),
    }
}

/// Says so where the machine has something else to do.
fn warn_if_busy() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|minute| minute.parse::<f64>().ok()).unwrap_or_default();
    if load > BUSY {
        eprintln!("warning: in the last minute {load} processes wanted a CPU: what else runs widens the spreads");
    }
}

/// The scenarios that `--only` leaves.
fn chosen(options: &Options) -> Result<Vec<Scenario>> {
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()));
    let mut chosen = scenarios::all();
    chosen.retain(|scenario| scenario.rows.iter().any(|row| wanted(&row.name)));
    if chosen.is_empty() {
        bail!("no measurement's name contains {:?}: `cargo xtask bench --list` prints them", options.only.join("\" or \""));
    }
    Ok(chosen)
}

fn plan(options: &Options) -> Result<Plan> {
    if options.library.is_none() {
        setup::setup()?;
    }
    let library = build::library(options.library.as_deref(), false)?.context("not plain, so there is a library")?;
    let (rounds, milliseconds) = if options.quick { (1, 50) } else { (options.rounds, options.milliseconds) };
    Ok(Plan { rounds, milliseconds, quick: options.quick, library, tracer: options.tracer.clone() })
}

impl Scenario {
    fn measure(&self, plan: &Plan) -> Result<Vec<Comparison>> {
        match &self.kind {
            Kind::Own(workload) => workload.measure(&self.rows, plan),
            Kind::Both(workload) => workload.measure_both(&self.rows, plan),
            Kind::Redis { clients } => servers::redis(&self.rows, *clients, plan),
            Kind::Pgbench { clients } => servers::pgbench(&self.rows, *clients, plan),
            Kind::Watched { closer } => tracer::watched(&self.rows, *closer, plan),
            Kind::Idle { connections } => idle::idle(&self.rows, *connections, plan),
        }
    }
}
