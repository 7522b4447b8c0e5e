//! `cargo xtask faults`: every system call that the library makes fails in turn, at each of its call sites, with each error that it can give.
//!
//! A census runs every [`scenario`] under [`tracer`] and notes which of the library's lines make which system calls ([`symbols`] knows them
//! all; [`unreached`] says why one may be missing). Then each call site is given each of its errors ([`errnos`]): the first time it is
//! passed, the second time, and always ([`matrix`]); and the programs must not notice, or be told what the kernel would tell ([`judge`]).
//! Then memory is not to be had, by each allocation in turn ([`allocations`]). The library is the one that is shipped.

mod allocations;
mod errnos;
mod exceptions;
mod heap;
mod judge;
mod matrix;
mod scenario;
mod site;
mod symbols;
mod tracer;
mod unreached;
mod unwind;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

pub(crate) use scenario::{EndOptions, play};

use crate::build;
use matrix::{Cell, Played};
use scenario::Scenario;
use site::Site;
use symbols::Symbols;
use tracer::{Tracer, When};

/// Options of `faults`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only sites that contain this, as they are printed
    #[arg(long, default_value = "")]
    site: String,
    /// Only this error, as `ENOMEM`
    #[arg(long)]
    errno: Option<String>,
    /// Only this scenario; may be given several times
    #[arg(long)]
    scenario: Vec<String>,
    /// Only memory that is not to be had
    #[arg(long)]
    allocations: bool,
    /// Two errors for each site, and one scenario
    #[arg(long)]
    short: bool,
    /// Only say which sites there are, and who reaches them
    #[arg(long)]
    list: bool,
    /// Runs at once
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// The library to use; built first where it is not given
    #[arg(long)]
    library: Option<PathBuf>,
}

impl Options {
    /// What `cargo xtask test` plays.
    pub(crate) fn short(library: &Path) -> Self {
        let library = Some(library.to_owned());
        Self {
            site: String::new(),
            errno: None,
            scenario: Vec::new(),
            allocations: false,
            short: true,
            list: false,
            jobs: 4,
            library,
        }
    }

    fn wants(&self, scenario: &Scenario) -> bool {
        self.scenario.is_empty() || self.scenario.iter().any(|name| name == scenario.name)
    }
}

/// Who reaches a site, and how often.
type Census = BTreeMap<(Site, u64), Vec<(&'static Scenario, u32)>>;

/// Plays the matrix and prints what was seen.
///
/// # Errors
/// A cell that is not right, a site that no scenario reaches and nothing excuses, or a scenario that fails without a fault.
pub(crate) fn faults(options: &Options) -> Result<()> {
    let library = build::library(options.library.as_deref(), false)?.context("the library is what fails")?;
    let calls = if options.allocations { Ok(()) } else { system_calls(options, &library) };
    let is_whole = options.site.is_empty() && options.errno.is_none();
    let memory = if options.allocations || is_whole { allocations::play(options, &library) } else { Ok(()) };
    match (calls, memory) {
        (Err(calls), Err(memory)) => Err(calls.context(memory)),
        (calls, memory) => calls.and(memory),
    }
}

fn system_calls(options: &Options, library: &Path) -> Result<()> {
    let mut tracer = Tracer::new(Symbols::read(library)?, None);
    let known = tracer.symbols().own_sites()?;
    let census = census(options, &mut tracer)?;
    let reached: BTreeSet<&Site> = census.keys().map(|(site, _)| site).collect();
    let missing: Vec<&Site> = known.iter().filter(|site| !reached.contains(site) && !site.cannot_fail()).collect();
    let unexcused = report_sites(options, &known, &census, &missing);
    if options.list {
        return Ok(());
    }
    let cells = matrix::cells(&census, options)?;
    ensure!(!cells.is_empty(), "nothing is to fail: no site that is reached matches --site, --errno and --scenario");
    let played = matrix::play(&cells, library, None, options.jobs)?;
    report_cells(&cells, &played)?;
    let programs = cells.iter().any(|cell| !cell.fault.site.own);
    ensure!(!programs || played.iter().any(|played| played.told), "no program was ever told of an error: nothing was injected");
    // What is reached depends on the machine's timing too: a run among other tests does not fail for it.
    let all = !options.short && options.scenario.is_empty();
    ensure!(unexcused == 0 || !all, "{unexcused} call sites are reached by no scenario; faults/unreached.rs may say why");
    Ok(())
}

fn census(options: &Options, tracer: &mut Tracer) -> Result<Census> {
    let mut census = Census::new();
    for scenario in scenario::all().into_iter().filter(|scenario| options.wants(scenario)) {
        let (run, reports) = matrix::run(tracer, scenario, None).with_context(|| format!("the scenario {}", scenario.name))?;
        judge::without_fault(&run, &reports).with_context(|| format!("the scenario {} without a fault", scenario.name))?;
        for (call, count) in run.calls {
            census.entry(call).or_default().push((scenario, count));
        }
    }
    Ok(census)
}

/// Prints the sites; how many are neither reached nor excused.
fn report_sites(options: &Options, known: &BTreeSet<Site>, census: &Census, missing: &[&Site]) -> usize {
    for ((site, number), by) in census.iter().filter(|_| options.list) {
        let call = errnos::of(*number).map_or("?", |call| call.name);
        let by: Vec<String> = by.iter().map(|(scenario, count)| format!("{} {count}", scenario.name)).collect();
        println!("{site} [{call}]  {}", by.join(", "));
    }
    let counted =
        |wanted: fn(&Site) -> bool| census.keys().map(|(site, _)| site).filter(|site| wanted(site)).collect::<BTreeSet<_>>().len();
    println!(
        "{} of the {} call sites of the library's own that can fail are reached, and {} that go through libc; {} more cannot fail",
        counted(|site| site.own && !site.cannot_fail()),
        known.iter().filter(|site| !site.cannot_fail()).count(),
        counted(|site| !site.own),
        known.iter().filter(|site| site.cannot_fail()).count(),
    );
    let mut unexcused = 0;
    for site in missing {
        let why = unreached::why(site);
        unexcused += usize::from(why.is_none());
        if options.scenario.is_empty() || options.list {
            println!("  not reached: {site}: {}", why.unwrap_or("NOTHING SAYS WHY"));
        }
    }
    unexcused
}

fn report_cells(cells: &[Cell], played: &[Played]) -> Result<()> {
    let sites: BTreeSet<_> = cells.iter().map(|cell| (&cell.fault.site, cell.fault.number)).collect();
    let errnos: BTreeSet<_> = cells.iter().map(|cell| cell.fault.errno as i32).collect();
    let kinds = |kind: fn(&When) -> bool| cells.iter().filter(|cell| kind(&cell.fault.when)).count();
    println!(
        "{} call sites × their errors ({} different): {} cells ({} once, {} for a while, {} always, {} at all sites)",
        sites.len(),
        errnos.len(),
        cells.len(),
        kinds(|when| matches!(when, When::Only(_))),
        kinds(|when| matches!(when, When::Spell(_))),
        kinds(|when| *when == When::Always),
        kinds(|when| *when == When::Everywhere),
    );
    for why in exceptions::all_known() {
        println!("known not to be what the kernel does: {why}");
    }
    matrix::judged(cells, played)
}
