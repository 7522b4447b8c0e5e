//! What the ledger of a process tells over a long time. A slot's counters begin anew with each connection, so they are read more often than
//! slots come round, and what was added since is added up.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::exchange::{Counts, Ledger, SlotCopy};

/// Sums of one process over all its connections, or of several processes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sums {
    pub counts: Counts,
    /// How often a writer found its ring full.
    pub full: u64,
    /// Connections that the ledger says are open now.
    pub live: u64,
    /// Locks that are held now, by processes that live. What a killed one held is taken over by whoever wants it.
    pub locks: u64,
    /// Connections that found no slot.
    pub exhausted: u64,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.full += other.full;
        self.live += other.live;
        self.locks += other.locks;
        self.exhausted += other.exhausted;
    }
}

/// What was seen so far.
#[derive(Default)]
pub(super) struct Harvest {
    slots: Vec<SlotCopy>,
    bytes: Counts,
    full: u64,
}

impl Harvest {
    /// Reads the ledger and adds what is new.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(super) fn look(&mut self) -> Result<Sums> {
        let Some(ledger) = Ledger::of_this_process()? else { return Ok(Sums::default()) };
        let mut locks = 0;
        for (index, now) in ledger.slots().enumerate() {
            if index == self.slots.len() {
                self.slots.push(SlotCopy::default());
            }
            if let Some(seen) = self.slots.get_mut(index) {
                let before = std::mem::replace(seen, now);
                let new = since(&before, &now);
                self.bytes.count(&new);
                self.full += new.full;
            }
            locks += now.locks.iter().filter(|word| **word != 0 && owner_lives(**word)).count() as u64;
        }
        let mut counts = ledger.names();
        counts.add(&self.bytes);
        Ok(Sums { counts, full: self.full, live: ledger.live(), locks, exhausted: ledger.exhausted() })
    }
}

/// Whether the process is there, and one of the load's: of those of the slots that nobody has claimed since they were killed with a lock the number
/// may be another program's by now.
fn owner_lives(word: u64) -> bool {
    /// Bits of a lock's word that hold the process id (PROTOCOL.md, "Locks").
    const PID_BITS: u32 = 22;
    let id = (word & ((1 << PID_BITS) - 1)) as i32;
    let program = |id: &str| std::fs::read_link(format!("/proc/{id}/exe")).ok();
    program(&id.to_string()).is_some_and(|owner| Some(owner) == program("self"))
}

/// What a slot counted between two looks; all of it if it is another connection's now.
fn since(before: &SlotCopy, now: &SlotCopy) -> SlotCopy {
    if before.generation != now.generation {
        return *now;
    }
    let less = |now: [u64; 2], before: [u64; 2]| [0, 1].map(|way| now[way].saturating_sub(before[way]));
    SlotCopy {
        sent: less(now.sent, before.sent),
        received: less(now.received, before.received),
        full: now.full.saturating_sub(before.full),
        ..*now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_slot_counts_is_added_once() {
        let first = SlotCopy { generation: 3, sent: [10, 5], received: [1, 2], full: 1, locks: [0, 0] };
        let later = SlotCopy { sent: [15, 5], ..first };
        assert_eq!(since(&first, &later).sent, [5, 0]);
        assert_eq!(since(&first, &later).full, 0);
        let other = SlotCopy { generation: 4, sent: [2, 0], ..first };
        assert_eq!(since(&later, &other).sent, [2, 0]);
    }

    #[test]
    fn an_owner_is_a_process_of_the_load() {
        assert!(owner_lives(u64::from(std::process::id())));
        assert!(!owner_lives(1), "it runs, and is another program");
        assert!(!owner_lives((1 << 22) - 1), "nobody has this number");
    }
}
