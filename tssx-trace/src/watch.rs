//! One window of observation: what `discover` and `verify` share.
//!
//! The kernel programs count from the first moment to the last; beside them the sockets are listed, the ledgers read
//! and the processes looked at again and again, so that what comes and goes within the window is known by name.

use std::future::poll_fn;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::cost::{Cost, Meter};
use crate::inventory::Inventory;
use crate::join;
use crate::ledgers::Ledgers;
use crate::library;
use crate::losses::Losses;
use crate::mode::Mode;
use crate::output::{self, plural};
use crate::privileges;
use crate::probe::{Arrivals, Births, Newcomer, Probe, ProbeOptions, Refusal, Seen, SocketTraffic};
use crate::processes::{self, Processes};
use crate::progress::{Progress, SHORT, left};

/// Time between two dumps of the host's sockets: a named socket that lives longer is known by name.
const INVENTORY_PERIOD: Duration = Duration::from_millis(250);
/// Time between two readings of what the kernel programs tell of new sockets; nothing wakes us for them.
const BIRTHS_PERIOD: Duration = Duration::from_millis(100);
/// Time between two words on how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);
/// Time between two readings of the known ledgers: the slots of closed connections linger, but not for ever.
const READING_PERIOD: Duration = Duration::from_millis(10);
/// The same while connections come and go fast.
const CHURN_PERIOD: Duration = Duration::from_millis(1);
/// New connections between two readings that are called fast: a fraction of the slots that linger.
const CHURN: usize = 32;
/// A kind of look may take one part in so many of one CPU: on a host with very many processes or sockets looks get rarer.
const LOOK_SHARE: u32 = 20;
/// How long at once facts about new programs are asked for: readings of ledgers wait for it.
const FACTS_TIME: Duration = Duration::from_millis(1);
/// The same for readings, which lose something if they come too late.
const READING_SHARE: u32 = 4;

/// Time between two looks for ledgers where each end of a selected socket counts: a process with the library that comes and goes within it may be
/// missed; its peer's ledger still tells.
pub(crate) const LEDGER_PERIOD: Duration = Duration::from_millis(100);

/// A time that no window reaches; the event loop's clock can still add it.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Everything a window saw.
pub(crate) struct Observation {
    /// From attaching to detaching.
    pub(crate) elapsed: Duration,
    /// How traffic was measured, and which better ways do not work here.
    pub(crate) mode: Mode,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) traffic: Vec<SocketTraffic>,
    pub(crate) losses: Losses,
    /// What looking closer showed.
    pub(crate) closer: Seen,
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
    /// How long; `None`: until a signal.
    pub(crate) duration: Option<Duration>,
    /// How long of it, from the start, to look closer.
    pub(crate) closer: Option<Duration>,
    /// Time between two looks for ledgers: a process with the library that lives longer is seen.
    pub(crate) ledger_period: Duration,
    pub(crate) probe: ProbeOptions,
}

/// Watches the host for the window's duration, or until SIGINT or SIGTERM.
///
/// # Errors
/// One that names what is missing on this machine, see [`Probe::attach`] and [`Inventory::open`].
pub(crate) fn watch(window: Window) -> anyhow::Result<Observation> {
    watch_with(window, None)
}

/// What a viewer wants between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To look now, or as soon as looks may follow each other.
    Look,
    /// That the window ends.
    End,
}

/// Who looks at a window while it lasts.
pub(crate) trait Viewer {
    /// The window has begun, in this mode.
    fn begin(&mut self, _mode: Mode) -> anyhow::Result<()> {
        Ok(())
    }

    /// Takes what the viewer waits for between two looks, as a key that is pressed or a question. Pending for ever where it waits for nothing.
    fn poll_attend(&mut self, _context: &mut task::Context<'_>) -> Poll<anyhow::Result<Wish>> {
        Poll::Pending
    }

    /// What was seen until now; `false` ends the window.
    fn look(&mut self, seen: &Observation) -> anyhow::Result<bool>;

    /// The window has ended: whatever else is printed comes after this.
    fn end(&mut self);

    /// Whether sockets and processes that are gone may be forgotten after each look: else the window can tell of all that it saw.
    fn forgets(&self) -> bool {
        false
    }
}

/// The same, with a viewer and the time between two of its looks.
///
/// # Errors
/// As [`watch`], and what the viewer says.
pub(crate) fn watch_with(window: Window, viewer: Option<(Duration, &mut dyn Viewer)>) -> anyhow::Result<Observation> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    runtime.block_on(run(window, viewer))
}

async fn run(window: Window, viewer: Option<(Duration, &mut dyn Viewer)>) -> anyhow::Result<Observation> {
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminations = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut sources = Sources::open(window.probe)?;
    say_attached(&sources.seen, window.duration);
    let mut progress = Progress::new(viewer.is_none() && window.duration.is_some_and(|time| time > SHORT));
    let (view_period, mut viewer) = viewer.unzip();
    let view_period = view_period.unwrap_or(FOR_EVER);
    let mut not_before = Instant::now();

    let mut ledger_ticks = ticks(window.ledger_period);
    let mut reading_ticks = ticks(READING_PERIOD);
    let mut birth_ticks = ticks(BIRTHS_PERIOD);
    let mut inventory_ticks = ticks(INVENTORY_PERIOD);
    let mut progress_ticks = ticks(PROGRESS_PERIOD);
    let mut view_ticks = ticks(view_period);
    view_ticks.reset();
    progress_ticks.reset();
    if let Some(viewer) = &mut viewer {
        viewer.begin(sources.seen.mode)?;
    }
    let end = sleep(window.duration.unwrap_or(FOR_EVER).saturating_sub(sources.started.elapsed()));
    let closer_end = sleep(window.closer.unwrap_or(FOR_EVER).saturating_sub(sources.started.elapsed()));
    tokio::pin!(end, closer_end);
    let mut closer = window.closer.is_some();
    let interrupted = loop {
        tokio::select! {
            biased;
            () = &mut end => break false,
            () = &mut closer_end, if closer => {
                sources.probe.end_closer()?;
                closer = false;
            }
            _ = interrupts.recv() => break true,
            _ = terminations.recv() => break true,
            wish = attend(&mut viewer) => match wish? {
                Wish::Look => view_ticks.reset_after(not_before.saturating_duration_since(Instant::now())),
                Wish::End => break true,
            },
            newcomers = next_arrivals(&mut sources.arrivals) => sources.look_into(newcomers?),
            _ = ledger_ticks.tick() => ledger_ticks.reset_after(sources.look_for_ledgers(window.ledger_period)),
            _ = reading_ticks.tick(), if !sources.seen.ledgers.is_empty() => reading_ticks.reset_after(sources.read_ledgers()),
            _ = birth_ticks.tick() => {
                sources.read_births();
                sources.seen.processes.gather(Some(FACTS_TIME));
            }
            _ = view_ticks.tick() => {
                let started = Instant::now();
                if !sources.view(&mut viewer)? {
                    break true;
                }
                not_before = started + pause(Duration::ZERO, LOOK_SHARE, started);
                view_ticks.reset_after(pause(view_period, LOOK_SHARE, started).saturating_sub(started.elapsed()));
            }
            _ = progress_ticks.tick(), if progress.is_on() => progress.show(&sources.progress(window.duration)),
            _ = inventory_ticks.tick() => inventory_ticks.reset_after(sources.list_sockets()?),
        }
    };
    progress.clear();
    if let Some(viewer) = viewer {
        viewer.end();
    }
    sources.close(interrupted)
}

fn say_attached(seen: &Observation, duration: Option<Duration>) {
    for refusal in &seen.refusals {
        output::note(&format!("mode {} does not work here: {}", refusal.mode, refusal.reason));
    }
    let length = duration.map_or_else(|| String::from("until Ctrl-C"), |time| format!("for {:.1} s", time.as_secs_f64()));
    output::note(&format!("attached; watching Unix sockets {length}, mode {}", seen.mode.name()));
}

/// What is asked again and again, and what it has told until now.
struct Sources {
    started: Instant,
    meter: Meter,
    probe: Probe,
    arrivals: Option<Arrivals>,
    births: Option<Births>,
    seen: Observation,
}

impl Sources {
    /// Attaches the probe and takes the first look at everything.
    fn open(options: ProbeOptions) -> anyhow::Result<Self> {
        let meter = Meter::start();
        let mut inventory = Inventory::open()?;
        // Whatever takes long comes first, so that the kernel's counters and the ledgers' begin at one moment.
        let mut processes = Processes::new(library::find().ok());
        processes.refresh();
        processes.gather(None);
        let mut ledgers = Ledgers::find();
        let mut probe = Probe::attach(options)?;
        let (arrivals, births) = (probe.arrivals()?, probe.births()?);
        privileges::drop_all_but_reading()?;
        ledgers.begin();
        let started = Instant::now();
        look_at_sockets(&mut inventory)?;
        inventory.begin();
        processes.refresh();
        let seen = Observation {
            elapsed: Duration::ZERO,
            mode: probe.mode(),
            refusals: probe.refusals().to_vec(),
            traffic: Vec::new(),
            losses: Losses::default(),
            closer: Seen::default(),
            cost: Cost::default(),
            inventory,
            ledgers,
            processes,
            interrupted: false,
        };
        Ok(Self { started, meter, probe, arrivals, births, seen })
    }

    /// Looks at processes that begin to use Unix sockets, before they are gone.
    fn look_into(&mut self, newcomers: Vec<Newcomer>) {
        let pids: Vec<u32> = newcomers.iter().map(|newcomer| newcomer.pid).collect();
        self.seen.ledgers.look_into(&pids);
        for Newcomer { pid, comm } in newcomers {
            self.seen.processes.told(pid, comm);
        }
        self.seen.processes.remember_new(pids.into_iter());
        self.seen.processes.gather(Some(FACTS_TIME));
    }

    /// Looks for ledgers; gives the time until the next look.
    fn look_for_ledgers(&mut self, period: Duration) -> Duration {
        let started = Instant::now();
        self.seen.ledgers.refresh();
        self.seen.processes.remember_new(self.seen.ledgers.all_pids());
        pause(period, LOOK_SHARE, started)
    }

    /// Reads those that are known; likewise.
    fn read_ledgers(&mut self) -> Duration {
        let started = Instant::now();
        let period = if self.seen.ledgers.read() >= CHURN { CHURN_PERIOD } else { READING_PERIOD };
        pause(period, READING_SHARE, started)
    }

    /// Lists the sockets, and measures meanwhile what the kernel programs cost; likewise.
    fn list_sockets(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let sample = self.probe.measure_run_time();
        look_at_sockets(&mut self.seen.inventory)?;
        drop(sample);
        self.probe.flush_log();
        Ok(pause(INVENTORY_PERIOD, LOOK_SHARE, started))
    }

    /// How long it still lasts, and what was seen until now, as far as it is known without asking the kernel again.
    fn progress(&self, duration: Option<Duration>) -> String {
        let sockets = plural(self.seen.inventory.sockets().count() as u64, "Unix socket");
        let ends = plural(self.seen.ledgers.ends().count() as u64, "end");
        let rest = duration.unwrap_or(FOR_EVER).saturating_sub(self.started.elapsed());
        format!("{}; {sockets} seen until now, {ends} with the library", left(rest))
    }

    fn read_births(&mut self) {
        if let Some(births) = &mut self.births {
            births.drain(|birth| self.seen.inventory.add_birth(birth));
        }
    }

    /// Lets the viewer look; `false` ends the window.
    fn view(&mut self, viewer: &mut Option<&mut dyn Viewer>) -> anyhow::Result<bool> {
        self.look_now()?;
        let Some(viewer) = viewer else { return Ok(true) };
        let goes_on = viewer.look(&self.seen)?;
        if viewer.forgets() {
            self.forget()?;
        }
        Ok(goes_on)
    }

    /// Forgets sockets that are gone, with their records in the kernel, and ledgers and processes that are.
    fn forget(&mut self) -> anyhow::Result<()> {
        let Observation { inventory, ledgers, processes, .. } = &mut self.seen;
        if !self.probe.mode().names_by_inode() {
            let mut gone = inventory.gone();
            self.probe.forget(&mut gone)?;
            inventory.forget(&gone);
        }
        ledgers.forget();
        processes.forget(|inode| inventory.cookie_of_inode(inode).is_some());
        Ok(())
    }

    /// Brings what was seen up to now, while the window goes on.
    fn look_now(&mut self) -> anyhow::Result<()> {
        self.seen.ledgers.refresh();
        self.seen.losses = self.probe.losses()?;
        self.seen.cost = self.meter.cost(&self.probe);
        self.seen.elapsed = self.started.elapsed();
        self.seen.traffic = self.probe.traffic()?;
        self.look_at_the_rest()
    }

    /// Detaches the probe and takes the last look.
    fn close(mut self, interrupted: bool) -> anyhow::Result<Observation> {
        // The ledgers' window lies within the kernel's: what happens between their edges counts as kernel bytes, so that a
        // hit rate errs to the low side.
        self.seen.ledgers.refresh();
        self.seen.losses = self.probe.losses()?;
        self.seen.cost = self.meter.cost(&self.probe);
        self.probe.end_closer()?;
        self.probe.detach()?;
        self.seen.elapsed = self.started.elapsed();
        self.seen.traffic = self.probe.traffic()?;
        self.look_at_the_rest()?;
        self.seen.processes.gather_again();
        self.probe.flush_log();
        for refused in self.seen.ledgers.refused() {
            output::note(&format!("warning: a ledger was not read: {refused}"));
        }
        self.seen.interrupted = interrupted;
        Ok(self.seen)
    }

    /// Names and holders for the traffic that is known now, and the ledgers' losses.
    fn look_at_the_rest(&mut self) -> anyhow::Result<()> {
        self.read_births();
        self.seen.closer = self.probe.closer()?;
        let newcomers = self.arrivals.as_mut().map(Arrivals::rest).unwrap_or_default();
        self.look_into(newcomers);
        self.seen.losses.untold_sockets = self.births.as_ref().map_or(Ok(0), Births::untold)?;
        let Observation { traffic, losses, inventory, ledgers, processes, .. } = &mut self.seen;
        look_at_sockets(inventory)?;
        if self.probe.mode().names_by_inode() {
            traffic.iter_mut().for_each(|record| record.name_by_cookie(|inode| inventory.cookie_of_inode(inode)));
        }
        processes.refresh();
        processes.remember_new(traffic.iter().map(|record| record.pid).chain(ledgers.all_pids()));
        losses.uncounted_connections = ledgers.uncounted();
        losses.overwritten_connections = ledgers.overwritten();
        losses.unplaced_connections = join::unplaced(inventory, ledgers);
        losses.refused_ledgers = ledgers.refused().count() as u64;
        Ok(())
    }
}

/// Waits for processes that begin to use Unix sockets; for ever in a mode that does not tell of them.
async fn next_arrivals(arrivals: &mut Option<Arrivals>) -> anyhow::Result<Vec<Newcomer>> {
    match arrivals {
        Some(arrivals) => arrivals.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for what the viewer waits for; for ever without one.
async fn attend(viewer: &mut Option<&mut dyn Viewer>) -> anyhow::Result<Wish> {
    poll_fn(|context| viewer.as_mut().map_or(Poll::Pending, |viewer| viewer.poll_attend(context))).await
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
