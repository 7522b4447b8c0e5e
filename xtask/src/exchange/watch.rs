//! Notices a stall: nothing moved in either direction for a while. Says where both threads are, and ends the process.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::plan::{Demotion, Plan};

/// Longest that nothing may move.
const PATIENCE: Duration = Duration::from_secs(20);
/// Exit code after a stall.
pub(super) const STALLED: i32 = 3;

/// Which thread.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Sender,
    Receiver,
}

/// What both threads of this end are at.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Raised whenever something moves.
    moves: AtomicU64,
    positions: [AtomicU64; 2],
    connection: Mutex<String>,
    demotion: Mutex<String>,
}

impl Watch {
    /// A connection begins.
    pub(super) fn begins(&self, number: u64, plan: &Plan) {
        self.moves.fetch_add(1, Relaxed);
        self.positions.iter().for_each(|position| position.store(0, Relaxed));
        if let (Ok(mut connection), Ok(mut demotion)) = (self.connection.lock(), self.demotion.lock()) {
            *connection = format!("connection {number}: {plan:?}");
            demotion.clear();
        }
    }

    /// Another connection begins, of which `what` says what it is.
    pub(crate) fn begins_other(&self, what: String) {
        self.moves.fetch_add(1, Relaxed);
        self.positions.iter().for_each(|position| position.store(0, Relaxed));
        if let (Ok(mut connection), Ok(mut demotion)) = (self.connection.lock(), self.demotion.lock()) {
            *connection = what;
            demotion.clear();
        }
    }

    /// How often something moved.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Relaxed)
    }

    pub(crate) fn moved(&self, half: Half, position: u64) {
        self.moves.fetch_add(1, Relaxed);
        if let Some(at) = self.positions.get(half as usize) {
            at.store(position, Relaxed);
        }
    }

    pub(super) fn demoting(&self, what: Demotion) {
        if let Ok(mut demotion) = self.demotion.lock() {
            *demotion = format!("after the start of {what:?}");
        }
    }

    /// Where both threads are, as a person would want it said.
    pub(crate) fn place(&self) -> String {
        let [sender, receiver] = self.positions.each_ref().map(|position| position.load(Relaxed));
        let text = |of: &Mutex<String>| of.lock().map(|text| text.clone()).unwrap_or_default();
        format!("sender at {sender}, receiver at {receiver} {} of {}", text(&self.demotion), text(&self.connection))
    }

    /// Ends the process when nothing moves. Runs in a thread of its own.
    pub(super) fn guard(&self, name: &str) {
        let (mut seen, mut since) = (self.moves.load(Relaxed), Instant::now());
        loop {
            thread::sleep(PATIENCE / 20);
            let moves = self.moves.load(Relaxed);
            if moves != seen {
                (seen, since) = (moves, Instant::now());
            } else if since.elapsed() > PATIENCE {
                eprintln!("{name}: STALLED: nothing moved for {} s: {}", PATIENCE.as_secs(), self.place());
                std::process::exit(STALLED);
            }
        }
    }
}
