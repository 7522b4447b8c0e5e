//! What was seen but could not be counted: a report with losses says so, and the exit status too.

use serde::{Deserialize, Serialize};

use crate::output::{note, plural};

/// Every way of losing something. All zero in a complete measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Losses {
    /// Calls, and bytes, that found the kernel's map full.
    pub(crate) map_full_calls: u64,
    pub(crate) map_full_bytes: u64,
    /// Calls, and bytes, for which the kernel had no memory.
    pub(crate) no_memory_calls: u64,
    pub(crate) no_memory_bytes: u64,
    /// Calls, and bytes, whose entry the kernel refused for another cause.
    pub(crate) refused_calls: u64,
    pub(crate) refused_bytes: u64,
    /// Calls of which the system-call programs could not tell the socket or the bytes.
    pub(crate) unreadable_calls: u64,
    /// Processes of which the kernel's ring buffer had no room to tell: those that lived a moment may have no name.
    pub(crate) untold_processes: u64,
    /// Events that the kernel did not hand to the programs because one was already running on that CPU.
    pub(crate) missed_events: u64,
    /// Selected connections that found no room in their process's ledger.
    pub(crate) uncounted_connections: u64,
    /// Selected connections whose ledger slot was used again before it was read.
    pub(crate) overwritten_connections: u64,
    /// Selected connections whose socket the ledger does not name, and no list of sockets knew.
    pub(crate) unplaced_connections: u64,
    /// Sockets of whose names the kernel programs could not tell, because the ring buffer was full.
    pub(crate) untold_sockets: u64,
    /// Times that there was no room to note what keeps a socket on the kernel socket.
    #[serde(default)]
    pub(crate) unsampled_signals: u64,
    /// Ledgers that were found and not believed.
    pub(crate) refused_ledgers: u64,
}

impl Losses {
    /// Whether anything was lost.
    pub(crate) fn any(&self) -> bool {
        *self != Self::default()
    }

    /// A line for the report itself, empty if nothing was lost.
    pub(crate) fn warning(&self) -> &'static str {
        if self.any() {
            "INCOMPLETE: some traffic could not be counted (the messages say why); the figures are lower bounds.\n"
        } else {
            ""
        }
    }

    /// Tells what was lost, as [`Losses::sentences`].
    pub(crate) fn tell(&self, max_sockets: u32) {
        for sentence in self.sentences(max_sockets) {
            note(&format!("LOST: {sentence}"));
        }
    }

    /// What was lost, one sentence each; `max_sockets` is the size that the kernel's map had.
    pub(crate) fn sentences(&self, max_sockets: u32) -> Vec<String> {
        let mut sentences = Vec::new();
        let full = format!("more than {max_sockets} sockets in use, or fewer on very many CPUs: raise --max-sockets");
        for (calls, bytes, cause) in [
            (self.map_full_calls, self.map_full_bytes, full.as_str()),
            (self.no_memory_calls, self.no_memory_bytes, "the kernel had no memory for their entries"),
            (self.refused_calls, self.refused_bytes, "the kernel refused their entries"),
        ] {
            if calls > 0 {
                sentences.push(format!("{} ({}) not counted: {cause}", plural(calls, "call"), plural(bytes, "byte")));
            }
        }
        for (count, noun, cause) in [
            (self.unreadable_calls, "call", "whose socket or bytes could not be read in the kernel"),
            (self.untold_processes, "process", "not told of in time, their names may be missing: raise --ring-bytes"),
            (self.missed_events, "event", "not delivered by the kernel"),
            (self.uncounted_connections, "selected connection", "found no room in their process's ledger"),
            (self.overwritten_connections, "selected connection", "came and went faster than the ledgers were read"),
            (self.unplaced_connections, "selected connection", "of which the ledger does not tell the socket"),
            (self.untold_sockets, "socket", "came faster than their names were read: those that are gone stay unnamed"),
            (self.unsampled_signals, "event", "of passing descriptors, credentials or pages found no room: evidence is incomplete"),
            (self.refused_ledgers, "ledger", "found and not read (see the warnings)"),
        ] {
            if count > 0 {
                sentences.push(format!("{} {cause}", plural(count, noun)));
            }
        }
        sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_loss_is_a_loss() {
        assert!(!Losses::default().any());
        assert!(Losses { missed_events: 1, ..Losses::default() }.any());
        assert!(Losses { refused_ledgers: 1, ..Losses::default() }.any());
    }
}
