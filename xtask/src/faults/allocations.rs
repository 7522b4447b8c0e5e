//! Memory that is not to be had: each allocation of each program fails by itself, then it and all that follow, then each site's for good.
//!
//! What counts as one says [`heap`](super::heap). A connection goes on plain without it, or a call of the program's fails with ENOMEM, as
//! the kernel's can; no process ends, and nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::heap::{self, Heap};
use super::matrix::{self, Cell, Played};
use super::scenario::{self, Scenario};
use super::site::Site;
use super::symbols::Symbols;
use super::tracer::{Fault, Tracer, When};
use super::{Options, judge};

/// One program, and the library's allocations in it, in their order.
type Taken = (&'static Scenario, Vec<(Site, u64)>);

/// Plays all of them and prints what was seen.
///
/// # Errors
/// A cell that is not right, or a scenario that fails without a fault.
pub(super) fn play(options: &Options, library: &Path) -> Result<()> {
    let heap = Heap::build()?;
    let mut tracer = Tracer::new(Symbols::read(library)?, Some(heap.clone()));
    let census = census(options, &mut tracer)?;
    let sites: BTreeMap<_, usize> = census.iter().flat_map(|(_, taken)| taken).fold(BTreeMap::new(), |mut sites, taken| {
        *sites.entry(taken).or_default() += 1;
        sites
    });
    let from_heap = sites.keys().filter(|(_, number)| *number == heap::NUMBER).count();
    println!(
        "the library takes memory at {} call sites: {} of its own, and {from_heap} functions of libc's that it calls take it from the program's allocator",
        sites.len(),
        sites.len() - from_heap,
    );
    for ((site, number), count) in sites.iter().filter(|_| options.list) {
        println!("  {site} [{}]  {count} times", super::errnos::of(*number).map_or("?", |call| call.name));
    }
    if options.list {
        return Ok(());
    }
    let cells = cells(&census, options);
    ensure!(!cells.is_empty(), "no allocation is to fail: none that is reached matches --site and --scenario");
    let played = matrix::play(&cells, library, Some(&heap), options.jobs)?;
    report(&cells, &played, sites.len())
}

fn census(options: &Options, tracer: &mut Tracer) -> Result<Vec<Taken>> {
    let wanted = scenario::all().into_iter().filter(|scenario| options.wants(scenario));
    wanted
        .map(|scenario| {
            let (run, reports) = matrix::run(tracer, scenario, None).with_context(|| format!("the scenario {}", scenario.name))?;
            judge::without_fault(&run, &reports).with_context(|| format!("the scenario {} without a fault", scenario.name))?;
            Ok((scenario, run.allocations))
        })
        .collect()
}

fn cells(census: &[Taken], options: &Options) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut seen = BTreeSet::new();
    for (scenario, taken) in census {
        let mut always = BTreeSet::new();
        for (index, (site, number)) in taken.iter().enumerate().filter(|(_, (site, _))| site.to_string().contains(&options.site)) {
            let fault = |when| Fault { site: site.clone(), number: *number, errno: Errno::ENOMEM, when };
            let mut add = |when| cells.push(Cell { scenario, fault: fault(when) });
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let is_new = seen.insert((site, number));
            if is_new || !options.short {
                add(When::Allocation(index));
            }
            if is_new || !options.short || index == 0 {
                add(When::AllocationsFrom(index));
            }
            if (is_new || !options.short) && always.insert((site, number)) {
                add(When::Always);
            }
        }
    }
    cells
}

fn report(cells: &[Cell], played: &[Played], sites: usize) -> Result<()> {
    let of = |kind: fn(&When) -> bool| cells.iter().filter(|cell| kind(&cell.fault.when)).count();
    let scenarios: BTreeSet<_> = cells.iter().map(|cell| cell.scenario.name).collect();
    println!(
        "{sites} allocation sites, in {} programs: {} cells ({} of one allocation, {} of it and all that follow, {} of a site for good)",
        scenarios.len(),
        cells.len(),
        of(|when| matches!(when, When::Allocation(_))),
        of(|when| matches!(when, When::AllocationsFrom(_))),
        of(|when| *when == When::Always),
    );
    matrix::judged(cells, played)
}
