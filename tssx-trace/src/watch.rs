//! One window of observation: what `discover` and `verify` share.
//!
//! The kernel programs count from the first moment to the last; beside them the sockets are listed, the ledgers read
//! and the processes looked at again and again, so that what comes and goes within the window is known by name.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::cost::{Cost, Meter};
use crate::inventory::Inventory;
use crate::join;
use crate::ledgers::Ledgers;
use crate::losses::Losses;
use crate::mode::Mode;
use crate::output;
use crate::privileges;
use crate::probe::{Arrivals, Births, Probe, ProbeOptions, Refusal, SocketTraffic};
use crate::processes::{self, Processes};

/// Time between two dumps of the host's sockets: a named socket that lives longer is known by name.
const INVENTORY_PERIOD: Duration = Duration::from_millis(250);
/// Time between two readings of what the kernel programs tell of new sockets; nothing wakes us for them.
const BIRTHS_PERIOD: Duration = Duration::from_millis(100);
/// Time between two readings of the known ledgers: the slots of closed connections linger, but not for ever.
const READING_PERIOD: Duration = Duration::from_millis(10);
/// The same while connections come and go fast.
const CHURN_PERIOD: Duration = Duration::from_millis(1);
/// New connections between two readings that are called fast: a fraction of the slots that linger.
const CHURN: usize = 32;
/// A kind of look may take one part in so many of one CPU: on a host with very many processes or sockets looks get rarer.
const LOOK_SHARE: u32 = 20;
/// The same for readings, which lose something if they come too late.
const READING_SHARE: u32 = 4;

/// Everything a window saw.
pub(crate) struct Observation {
    /// From attaching to detaching.
    pub(crate) elapsed: Duration,
    /// How traffic was measured, and which better ways do not work here.
    pub(crate) mode: Mode,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) traffic: Vec<SocketTraffic>,
    pub(crate) losses: Losses,
    /// What watching itself cost.
    pub(crate) cost: Cost,
    pub(crate) inventory: Inventory,
    pub(crate) ledgers: Ledgers,
    pub(crate) processes: Processes,
    /// Ended by a signal before its time.
    pub(crate) interrupted: bool,
}

/// How to watch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// How long.
    pub(crate) duration: Duration,
    /// Time between two looks for ledgers: a process with the library that lives longer is seen.
    pub(crate) ledger_period: Duration,
    pub(crate) probe: ProbeOptions,
}

/// Watches the host for the window's duration, or until SIGINT or SIGTERM.
///
/// # Errors
/// One that names what is missing on this machine, see [`Probe::attach`] and [`Inventory::open`].
pub(crate) fn watch(window: Window) -> anyhow::Result<Observation> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    runtime.block_on(run(window))
}

async fn run(window: Window) -> anyhow::Result<Observation> {
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminations = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut sources = Sources::open(window.probe)?;
    let mut arrivals = sources.probe.arrivals()?;
    for refusal in sources.probe.refusals() {
        output::note(&format!("mode {} does not work here: {}", refusal.mode, refusal.reason));
    }
    let mode = sources.probe.mode().name();
    output::note(&format!("attached; watching Unix sockets for {:.1} s, mode {mode}", window.duration.as_secs_f64()));

    let mut ledger_ticks = ticks(window.ledger_period);
    let mut reading_ticks = ticks(READING_PERIOD);
    let mut birth_ticks = ticks(BIRTHS_PERIOD);
    let mut inventory_ticks = ticks(INVENTORY_PERIOD);
    let end = sleep(window.duration.saturating_sub(sources.started.elapsed()));
    tokio::pin!(end);
    let interrupted = loop {
        tokio::select! {
            biased;
            () = &mut end => break false,
            _ = interrupts.recv() => break true,
            _ = terminations.recv() => break true,
            pids = next_arrivals(&mut arrivals) => {
                let pids = pids?;
                sources.ledgers.look_into(&pids);
                sources.processes.remember_new(pids.into_iter());
            }
            _ = ledger_ticks.tick() => {
                let started = Instant::now();
                sources.ledgers.refresh();
                sources.processes.remember_new(sources.ledgers.all_pids());
                ledger_ticks.reset_after(pause(window.ledger_period, LOOK_SHARE, started));
            }
            _ = reading_ticks.tick(), if !sources.ledgers.is_empty() => {
                let started = Instant::now();
                let period = if sources.ledgers.read() >= CHURN { CHURN_PERIOD } else { READING_PERIOD };
                reading_ticks.reset_after(pause(period, READING_SHARE, started));
            }
            _ = birth_ticks.tick() => sources.read_births(),
            _ = inventory_ticks.tick() => {
                let started = Instant::now();
                let sample = sources.probe.measure_run_time();
                look_at_sockets(&mut sources.inventory)?;
                drop(sample);
                sources.probe.flush_log();
                inventory_ticks.reset_after(pause(INVENTORY_PERIOD, LOOK_SHARE, started));
            }
        }
    };
    sources.close(interrupted)
}

/// What is asked again and again.
struct Sources {
    started: Instant,
    meter: Meter,
    probe: Probe,
    births: Option<Births>,
    inventory: Inventory,
    ledgers: Ledgers,
    processes: Processes,
}

impl Sources {
    /// Attaches the probe and takes the first look at everything.
    fn open(options: ProbeOptions) -> anyhow::Result<Self> {
        let meter = Meter::start();
        let mut inventory = Inventory::open()?;
        // Whatever takes long comes first, so that the kernel's counters and the ledgers' begin at one moment.
        let mut ledgers = Ledgers::find();
        let mut probe = Probe::attach(options)?;
        let births = probe.births()?;
        privileges::drop_all_but_reading()?;
        ledgers.begin();
        let started = Instant::now();
        look_at_sockets(&mut inventory)?;
        inventory.begin();
        let mut processes = Processes::default();
        processes.refresh();
        Ok(Self { started, meter, probe, births, inventory, ledgers, processes })
    }

    fn read_births(&mut self) {
        if let Some(births) = &mut self.births {
            births.drain(|birth| self.inventory.add_birth(birth));
        }
    }

    /// Detaches the probe and takes the last look.
    fn close(mut self, interrupted: bool) -> anyhow::Result<Observation> {
        // The ledgers' window lies within the kernel's: what happens between their edges counts as kernel bytes, so that a
        // hit rate errs to the low side.
        self.ledgers.refresh();
        let mut losses = self.probe.losses()?;
        let cost = self.meter.cost(&self.probe);
        self.probe.detach()?;
        let elapsed = self.started.elapsed();
        let mut traffic = self.probe.traffic()?;
        self.read_births();
        losses.untold_sockets = self.births.as_ref().map_or(Ok(0), Births::untold)?;
        look_at_sockets(&mut self.inventory)?;
        if self.probe.mode().names_by_inode() {
            traffic.iter_mut().for_each(|record| record.name_by_cookie(|inode| self.inventory.cookie_of_inode(inode)));
        }
        self.processes.refresh();
        self.processes.remember_new(traffic.iter().map(|record| record.pid).chain(self.ledgers.all_pids()));
        self.probe.flush_log();
        losses.uncounted_connections = self.ledgers.uncounted();
        losses.overwritten_connections = self.ledgers.overwritten();
        losses.unplaced_connections = join::unplaced(&self.inventory, &self.ledgers);
        losses.refused_ledgers = self.ledgers.refused().count() as u64;
        for refused in self.ledgers.refused() {
            output::note(&format!("warning: a ledger was not read: {refused}"));
        }
        let (mode, refusals) = (self.probe.mode(), self.probe.refusals().to_vec());
        let Self { inventory, ledgers, processes, .. } = self;
        Ok(Observation { elapsed, mode, refusals, traffic, losses, cost, inventory, ledgers, processes, interrupted })
    }
}

/// Waits for processes that begin to use Unix sockets; for ever in a mode that does not tell of them.
async fn next_arrivals(arrivals: &mut Option<Arrivals>) -> anyhow::Result<Vec<u32>> {
    match arrivals {
        Some(arrivals) => arrivals.next().await,
        None => std::future::pending().await,
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// How long to wait after a look that began at `started`.
fn pause(period: Duration, share: u32, started: Instant) -> Duration {
    period.max(started.elapsed() * share)
}

/// Dumps the sockets of every network namespace that has a process.
fn look_at_sockets(inventory: &mut Inventory) -> anyhow::Result<()> {
    inventory.add_namespaces_of(&processes::pids());
    inventory.refresh()
}
