//! The cells of the matrix, and playing them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::heap::Heap;
use super::scenario::{self, Report, Scenario};
use super::site::Site;
use super::symbols::Symbols;
use super::tracer::{Fault, Run, Tracer, When};
use super::{Census, Options, errnos, exceptions, judge};

/// Longest that a scenario may take; a good one takes a few hundredths of it.
const DEADLINE: Duration = Duration::from_secs(60);
/// Runs in which a site that depends on the machine's timing has to be passed.
const ATTEMPTS: usize = 5;

/// One fault in one scenario.
pub(super) struct Cell {
    /// In which program.
    pub scenario: &'static Scenario,
    /// What fails.
    pub fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = errnos::of(self.fault.number).map_or("?", |call| call.name);
        let (scenario, errno, when) = (self.scenario.name, self.fault.errno, self.fault.when);
        match when {
            When::Allocation(number) => return write!(out, "{scenario}: allocation {number}, {} [{call}]", self.fault.site),
            When::AllocationsFrom(number) => {
                return write!(out, "{scenario}: all allocations from {number} on, {} [{call}]", self.fault.site);
            }
            _ => {}
        }
        if when == When::Everywhere {
            return write!(out, "{scenario}: {call} everywhere {errno:?}");
        }
        write!(out, "{scenario}: {} [{call}] {errno:?} {when:?}", self.fault.site)
    }
}

/// What came of a cell.
#[derive(Debug, Default)]
pub(super) struct Played {
    /// What is not right.
    pub wrong: Option<String>,
    /// The site was never passed.
    pub unmet: bool,
    /// A call of the program's failed.
    pub told: bool,
}

/// Calls of a spell: more than a program makes before it would notice, fewer than the library's patience.
const SPELL: u32 = 40;

/// All cells, in the order of the sites; then those of whole system calls.
///
/// # Errors
/// A system call of the library that the table of errors does not know.
pub(super) fn cells(census: &Census, options: &Options) -> Result<Vec<Cell>> {
    let (mut cells, mut whole) = (Vec::new(), BTreeMap::<u64, (Site, Vec<&'static Scenario>)>::new());
    for ((site, number), by) in census {
        let call = errnos::of(*number)
            .with_context(|| format!("{site} makes system call {number}, which faults/errnos.rs does not know"))?;
        if !site.to_string().contains(&options.site) {
            continue;
        }
        if site.own && !call.refused().is_empty() {
            let (_, scenarios) = whole.entry(*number).or_insert_with(|| (site.clone(), Vec::new()));
            for (scenario, _) in by {
                if !scenarios.iter().any(|known| known.name == scenario.name) {
                    scenarios.push(scenario);
                }
            }
        }
        // First those that pass it most often.
        let mut by: Vec<_> = by.iter().filter(|(scenario, _)| exceptions::known(site, scenario.name).is_none()).copied().collect();
        by.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for errno in wanted(call.errnos(site.own), options).filter(|errno| exceptions::left_out(site, **errno).is_none()) {
            for (index, (scenario, count)) in by.iter().enumerate() {
                let mut add = |when| {
                    cells.push(Cell { scenario, fault: Fault { site: site.clone(), number: *number, errno: *errno, when } });
                };
                let always = if site.own && call.passes() { When::Spell(SPELL) } else { When::Always };
                if options.short && index > 0 {
                    continue;
                }
                add(When::Only(0));
                if !options.short && *count > 1 && index < 3 {
                    add(When::Only(1));
                }
                if exceptions::unfit(site, *errno, scenario.name).is_none() {
                    add(always);
                }
            }
        }
    }
    for (number, (site, scenarios)) in whole {
        let refused = errnos::of(number).map_or(&[][..], |call| call.refused());
        for errno in wanted(refused, options) {
            for scenario in scenarios.iter().take(if options.short { 1 } else { usize::MAX }) {
                let fault = Fault { site: site.clone(), number, errno: *errno, when: When::Everywhere };
                cells.push(Cell { scenario, fault });
            }
        }
    }
    Ok(cells)
}

/// Those of the errors that are to be given.
fn wanted<'a>(errnos: &'a [Errno], options: &Options) -> impl Iterator<Item = &'a Errno> {
    let few = if options.short { 2 } else { usize::MAX };
    let only = options.errno.clone();
    errnos.iter().filter(move |errno| only.as_ref().is_none_or(|name| format!("{errno:?}") == *name)).take(few)
}

/// Plays one scenario.
///
/// # Errors
/// It cannot be started or traced.
pub(super) fn run(tracer: &mut Tracer, scenario: &Scenario, fault: Option<&Fault>) -> Result<(Run, Vec<Report>)> {
    let directory = tempfile::tempdir()?;
    let mut command = scenario::command(scenario, directory.path(), &tracer.symbols().path, tracer.heap());
    let said = directory.path().join("said");
    command.stdin(Stdio::null()).stdout(File::create(&said)?).stderr(OpenOptions::new().append(true).open(&said)?);
    let run = tracer.run(&mut command, fault, DEADLINE)?;
    let text = std::fs::read_to_string(directory.path().join("report")).unwrap_or_default();
    let reports = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("a report cannot be read")?;
    Ok((run, reports))
}

/// Plays all cells, several at once.
///
/// # Errors
/// One cannot be played at all.
pub(super) fn play(cells: &[Cell], library: &Path, heap: Option<&Heap>, jobs: usize) -> Result<Vec<Played>> {
    let next = AtomicUsize::new(0);
    let played = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        let mut tracer = Tracer::new(Symbols::read(library)?, heap.cloned());
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some(cell) = cells.get(index) else { return Ok(()) };
            let outcome = play_one(&mut tracer, cell).with_context(|| cell.to_string())?;
            played.lock().unwrap_or_else(PoisonError::into_inner).push((index, outcome));
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
    })?;
    let mut played = played.into_inner().unwrap_or_else(PoisonError::into_inner);
    played.sort_by_key(|(index, _)| *index);
    Ok(played.into_iter().map(|(_, played)| played).collect())
}

fn play_one(tracer: &mut Tracer, cell: &Cell) -> Result<Played> {
    for _ in 0..ATTEMPTS {
        let (run, reports) = run(tracer, cell.scenario, Some(&cell.fault))?;
        if run.injected > 0 || run.hung {
            let wrong = judge::with_fault(&run, &reports, &cell.fault).err().map(|error| format!("{error:#}"));
            let told = reports.iter().any(|report| !report.failures.is_empty());
            return Ok(Played { wrong, unmet: false, told });
        }
        judge::without_fault(&run, &reports).context("without its fault")?;
    }
    Ok(Played { unmet: true, ..Played::default() })
}

/// Prints what is not right, and the sums.
///
/// # Errors
/// A cell is wrong.
pub(super) fn judged(cells: &[Cell], played: &[Played]) -> Result<()> {
    let mut wrong = 0;
    for (cell, played) in cells.iter().zip(played) {
        if let Some(what) = &played.wrong {
            wrong += 1;
            println!("WRONG {cell}: {what}");
        }
    }
    let unmet: Vec<&Cell> = cells.iter().zip(played).filter(|(_, played)| played.unmet).map(|(cell, _)| cell).collect();
    for cell in &unmet {
        println!("not passed again: {cell}");
    }
    let told = played.iter().filter(|played| played.told).count();
    let right = cells.len() - wrong - unmet.len();
    println!(
        "{right} right, of which in {told} the program was told; {wrong} wrong; {} whose site was not passed again",
        unmet.len()
    );
    ensure!(wrong == 0, "{wrong} cells are wrong");
    Ok(())
}
