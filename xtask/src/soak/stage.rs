//! A long-lived process of the soak: its threads, how each is doing, what has happened, and what its ledger says. Its main thread answers
//! its parent, line by line ([`Stage::obey`]).

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::harvest::{Harvest, Sums};
use crate::exchange::Watch;

/// Exit code after a wrong byte or an unexpected answer.
const FAILED: i32 = 1;
/// Exit code after a wrong byte, and how an error says so.
pub(super) const MISMATCH: i32 = 4;
pub(super) const WRONG: &str = "WRONG BYTE";
/// How often a thread that rests looks whether it may go on.
const REST: Duration = Duration::from_millis(2);
/// Connections after which the ledger is read: fewer than it keeps closed ones for.
const HARVEST_EACH: u64 = 200;

/// What a parent says.
pub(super) const STATUS: &str = "status";
pub(super) const PAUSE: &str = "pause";
pub(super) const GO: &str = "go";
pub(super) const END: &str = "end";

/// One thread.
#[derive(Default)]
pub(super) struct Lane {
    /// In the middle of a connection.
    busy: AtomicBool,
    /// Between two connections, and told to stay there.
    resting: AtomicBool,
    pub watch: Watch,
}

impl Lane {
    /// A connection begins.
    pub(super) fn begin(&self, what: String) {
        self.watch.begins_other(what);
        self.busy.store(true, Relaxed);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.busy.store(false, Relaxed);
    }
}

/// How a process is doing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Whether every thread that makes connections rests.
    pub resting: bool,
    /// Connections that are open, forked children included.
    pub open: u64,
    /// Connections that this process has begun, and that are over.
    pub connections: u64,
    pub events: BTreeMap<String, u64>,
    pub lanes: Vec<LaneState>,
    pub sums: Sums,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneState {
    pub busy: bool,
    pub moves: u64,
    pub place: String,
}

/// See the module's text.
pub(super) struct Stage {
    pub name: &'static str,
    pub lanes: Vec<Lane>,
    /// Whether the threads begin connections, and so can rest.
    active: bool,
    paused: AtomicBool,
    /// Pauses so far.
    pub pauses: AtomicU64,
    pub open: AtomicU64,
    connections: AtomicU64,
    events: Mutex<BTreeMap<&'static str, u64>>,
    harvest: Mutex<Harvest>,
}

impl Stage {
    pub(super) fn new(name: &'static str, lanes: usize, active: bool) -> Self {
        Self {
            name,
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            active,
            paused: AtomicBool::new(false),
            pauses: AtomicU64::new(0),
            open: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            events: Mutex::default(),
            harvest: Mutex::default(),
        }
    }

    pub(super) fn lane(&self, index: usize) -> &Lane {
        &self.lanes[index]
    }

    /// Something has happened.
    pub(super) fn count(&self, event: &'static str) {
        if let Ok(mut events) = self.events.lock() {
            *events.entry(event).or_default() += 1;
        }
    }

    /// A connection of this process is over: from time to time its ledger is read.
    pub(super) fn harvest(&self) -> Result<()> {
        if self.connections.fetch_add(1, Relaxed).is_multiple_of(HARVEST_EACH) {
            self.harvest.lock().map_err(|_| anyhow::anyhow!("a thread has panicked"))?.look()?;
        }
        Ok(())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Acquire)
    }

    /// Stays here as long as there is a pause. True if there was one.
    pub(super) fn rest(&self, lane: &Lane) -> bool {
        let was = self.is_paused();
        while self.is_paused() {
            lane.resting.store(true, Release);
            thread::sleep(REST);
        }
        lane.resting.store(false, Release);
        was
    }

    /// Ends the process if a thread has failed: others may wait for it.
    pub(super) fn or_end(&self, result: Result<()>, lane: &Lane) {
        if let Err(error) = result {
            eprintln!("{}: {error:#}: {}", self.name, lane.watch.place());
            std::process::exit(if format!("{error:#}").contains(WRONG) { MISMATCH } else { FAILED });
        }
    }

    fn state(&self) -> Result<State> {
        let events = self.events.lock().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
        let events = events.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let lanes = self.lanes.iter().map(|lane| LaneState {
            busy: lane.busy.load(Relaxed),
            moves: lane.watch.moves(),
            place: lane.watch.place(),
        });
        let mut harvest = self.harvest.lock().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
        Ok(State {
            resting: !self.active || self.lanes.iter().all(|lane| lane.resting.load(Acquire)),
            open: self.open.load(Acquire),
            connections: if self.active { self.connections.load(Relaxed) } else { 0 },
            events,
            lanes: lanes.collect(),
            sums: harvest.look()?,
        })
    }

    /// Answers the parent until it says that it is over.
    ///
    /// # Errors
    /// The ledger cannot be read, or the parent is gone.
    pub(super) fn obey(&self) -> Result<()> {
        let mut out = std::io::stdout();
        for line in std::io::stdin().lock().lines() {
            match line?.as_str() {
                STATUS => {}
                PAUSE => {
                    self.paused.store(true, Release);
                    self.pauses.fetch_add(1, Release);
                }
                GO => {
                    // Nobody may be taken for resting who has not seen it yet.
                    self.lanes.iter().for_each(|lane| lane.resting.store(false, Release));
                    self.paused.store(false, Release);
                }
                END => return Ok(()),
                other => bail!("{other:?} is no order"),
            }
            writeln!(out, "{}", serde_json::to_string(&self.state()?)?).and_then(|()| out.flush()).context("nobody listens")?;
        }
        bail!("the parent is gone")
    }
}
