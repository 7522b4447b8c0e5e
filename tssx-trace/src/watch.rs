//! One window of observation: what `discover` and `verify` share.
//!
//! The kernel programs count from the first moment to the last; beside them the sockets are listed, the ledgers read
//! and the processes looked at again and again, so that what comes and goes within the window is known by name.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::inventory::Inventory;
use crate::ledgers::Ledgers;
use crate::losses::Losses;
use crate::output;
use crate::probe::{Probe, ProbeOptions, SocketTraffic};
use crate::processes::{self, Processes};

/// Time between two dumps of the host's sockets: a named socket that lives longer is known by name.
const INVENTORY_PERIOD: Duration = Duration::from_millis(250);
/// Time between two readings of the known ledgers: the slots of closed connections linger, but not for ever.
const READING_PERIOD: Duration = Duration::from_millis(20);
/// A kind of look may take one part in so many of one CPU: on a host with very many processes or sockets looks get rarer.
const LOOK_SHARE: u32 = 20;

/// Everything a window saw.
pub(crate) struct Observation {
    /// From attaching to detaching.
    pub(crate) elapsed: Duration,
    pub(crate) traffic: Vec<SocketTraffic>,
    pub(crate) losses: Losses,
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
    let mut inventory = Inventory::open()?;
    let mut probe = Probe::attach(window.probe)?;
    let started = Instant::now();
    let mut ledgers = Ledgers::default();
    ledgers.refresh();
    look_at_sockets(&mut inventory)?;
    let mut processes = Processes::default();
    processes.refresh();
    output::note(&format!("attached; watching Unix sockets for {:.1} s", window.duration.as_secs_f64()));

    let mut ledger_ticks = interval(window.ledger_period);
    ledger_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reading_ticks = interval(READING_PERIOD);
    reading_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut inventory_ticks = interval(INVENTORY_PERIOD);
    inventory_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = sleep(window.duration.saturating_sub(started.elapsed()));
    tokio::pin!(end);
    let mut interrupted = false;
    loop {
        tokio::select! {
            biased;
            () = &mut end => break,
            _ = interrupts.recv() => interrupted = true,
            _ = terminations.recv() => interrupted = true,
            _ = ledger_ticks.tick() => {
                let cost = timed(|| {
                    ledgers.refresh();
                    processes.remember_new(ledgers.all_pids());
                });
                ledger_ticks.reset_after(window.ledger_period.max(cost * LOOK_SHARE));
            }
            _ = reading_ticks.tick(), if !ledgers.is_empty() => {
                let cost = timed(|| ledgers.read());
                reading_ticks.reset_after(READING_PERIOD.max(cost * LOOK_SHARE));
            }
            _ = inventory_ticks.tick() => {
                let mut outcome = Ok(());
                let cost = timed(|| outcome = look_at_sockets(&mut inventory));
                outcome?;
                probe.flush_log();
                inventory_ticks.reset_after(INVENTORY_PERIOD.max(cost * LOOK_SHARE));
            }
        }
        if interrupted {
            break;
        }
    }
    // The ledgers and the kernel's counters are two clocks: stop one and read the other with nothing in between.
    let mut losses = probe.losses()?;
    probe.detach()?;
    ledgers.read();
    let elapsed = started.elapsed();
    ledgers.refresh();
    let traffic = probe.traffic()?;
    look_at_sockets(&mut inventory)?;
    processes.refresh();
    processes.remember_new(traffic.iter().map(|record| record.pid).chain(ledgers.all_pids()));
    probe.flush_log();
    losses.uncounted_connections = ledgers.uncounted();
    losses.overwritten_connections = ledgers.overwritten();
    losses.refused_ledgers = ledgers.refused().count() as u64;
    for refused in ledgers.refused() {
        output::note(&format!("warning: a ledger was not read: {refused}"));
    }
    Ok(Observation { elapsed, traffic, losses, inventory, ledgers, processes, interrupted })
}

/// Dumps the sockets of every network namespace that has a process.
fn look_at_sockets(inventory: &mut Inventory) -> anyhow::Result<()> {
    inventory.add_namespaces_of(&processes::pids());
    inventory.refresh()
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}
