//! Bytes that went past the library on a connection that it serves: raw system calls, io_uring, or a process that got the descriptor.
//!
//! Each end's library counts what it moves through the kernel socket, its doorbells included, and the kernel programs count everything: what
//! is more went past it. The two windows do not begin and end at one moment, so that what moved in between is more, too: of a connection in
//! rings that is doorbells of one byte each, of one on the kernel socket a small part of what it moves, and of one that was still to be upgraded when the
//! ledgers were first read perhaps all that it had moved by then. Only what is beyond these counts.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tssx_core::ledger::layout::SLOT_SELECTED;
use tssx_core::ledger::view::SlotSnapshot;

use crate::advice::Side;
use crate::join::{Connection, End, describe};
use crate::ledgers::LedgerEnd;
use crate::recording::ProcessRecord;
use crate::watch::Observation;

/// Beyond a byte for each call, fewer than so many say nothing.
const LEAST_BYTES: u64 = 16;
/// One part in so many of what the library moved through the kernel socket may have moved at an edge.
const NOISE: u64 = 10;

/// Calls and bytes beyond what a library counted of one direction, and the bytes that it did count, without doorbells.
#[derive(Clone, Copy, Debug, Default)]
struct Excess {
    calls: u64,
    bytes: u64,
    own_bytes: u64,
    /// What the library had moved before its window, if the kernel programs may have seen that in theirs.
    early_bytes: u64,
}

/// What one end moved past its library, over all connections with the same processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bypass {
    pub(crate) end: Side,
    /// Who did: processes that do not have the end's ledger, if there are any, else those that called.
    pub(crate) processes: Vec<ProcessRecord>,
    pub(crate) connections: u64,
    pub(crate) sent_bytes: u64,
    /// Without what the other end sent past its library, which no library can take for anything.
    pub(crate) received_bytes: u64,
}

/// Every end of these connections that moved bytes past its library.
pub(crate) fn of(seen: &Observation, connections: &[Connection]) -> Vec<Bypass> {
    let mut found: Vec<(Side, BTreeSet<u32>, Bypass)> = Vec::new();
    for connection in connections {
        let ends = connection.ends();
        for ((end, peer), side) in ends.into_iter().zip(ends.into_iter().rev()).zip(Side::BOTH) {
            let sent = sent_past(end).significant();
            let received = received_past(end).without(sent_past(peer)).significant();
            if sent == 0 && received == 0 {
                continue;
            }
            let who = suspects(seen, end);
            if !found.iter().any(|(known, pids, _)| *known == side && *pids == who) {
                let processes = describe(seen, &who);
                let fresh = Bypass { end: side, processes, connections: 0, sent_bytes: 0, received_bytes: 0 };
                found.push((side, who.clone(), fresh));
            }
            let those = found.iter_mut().filter(|(known, pids, _)| *known == side && *pids == who);
            for (_, _, bypass) in those {
                bypass.connections += 1;
                bypass.sent_bytes = bypass.sent_bytes.saturating_add(sent);
                bypass.received_bytes = bypass.received_bytes.saturating_add(received);
            }
        }
    }
    found.into_iter().map(|(_, _, bypass)| bypass).collect()
}

/// What the kernel saw this end send and its library knows nothing of; nothing for an end without a ledger.
fn sent_past(end: &End) -> Excess {
    Excess::new((end.kernel.tx_calls, end.kernel.tx_bytes), end.doorbell_tx(), end.library_tx())
        .early(end, |slot| slot.kernel_tx_bytes)
}

/// The same for what it received.
fn received_past(end: &End) -> Excess {
    Excess::new((end.kernel.rx_calls, end.kernel.rx_bytes), end.doorbell_rx(), end.library_rx())
        .early(end, |slot| slot.kernel_rx_bytes)
}

impl Excess {
    /// From calls and bytes: all, the library's own, and the program's as the library counted them.
    fn new(all: (u64, u64), doorbells: Option<(u64, u64)>, program: Option<(u64, u64)>) -> Self {
        let (Some(doorbells), Some(program)) = (doorbells, program) else { return Self::default() };
        let calls = all.0.saturating_sub(doorbells.0.saturating_add(program.0));
        let bytes = all.1.saturating_sub(doorbells.1.saturating_add(program.1));
        Self { calls, bytes, own_bytes: program.1, early_bytes: 0 }
    }

    /// The same of an end that may just have begun when the library's window did: one that was not upgraded yet.
    fn early(self, end: &End, moved: fn(&SlotSnapshot) -> u64) -> Self {
        let before = end.ledger.as_ref().map(LedgerEnd::before).filter(|before| before.state == SLOT_SELECTED);
        Self { early_bytes: before.as_ref().map_or(0, moved), ..self }
    }

    /// Less what came from an excess at the other end.
    fn without(self, other: Self) -> Self {
        Self { calls: self.calls.saturating_sub(other.calls), bytes: self.bytes.saturating_sub(other.bytes), ..self }
    }

    /// The bytes, if they are more than the edges of the window explain; else 0.
    fn significant(self) -> u64 {
        let beyond_doorbells = self.bytes.saturating_sub(self.calls).saturating_sub(self.early_bytes);
        if beyond_doorbells >= LEAST_BYTES && beyond_doorbells > self.own_bytes / NOISE { self.bytes } else { 0 }
    }
}

fn suspects(seen: &Observation, end: &End) -> BTreeSet<u32> {
    let family: BTreeSet<u32> = end.ledger.iter().flat_map(|ledger| seen.ledgers.pids(ledger.ledger)).collect();
    let strangers: BTreeSet<u32> = end.callers.difference(&family).copied().collect();
    if strangers.is_empty() { end.callers.clone() } else { strangers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_at_the_edges_of_the_window_is_no_excess() {
        let excess = |all, doorbells, program| Excess::new(all, Some(doorbells), Some(program)).significant();
        assert_eq!(excess((1301, 1364), (1300, 1300), (0, 0)), 64, "one raw write beside many doorbells");
        assert_eq!(excess((1400, 1400), (1300, 1300), (0, 0)), 0, "a hundred doorbells at the edges");
        assert_eq!(excess((10_010, 640_640), (0, 0), (10_000, 640_000)), 0, "a part of a stream on the kernel socket");
        assert_eq!(excess((1, 64), (0, 0), (5, 320)), 0, "a library that counts more than the kernel saw, before the window");
        let young = Excess { early_bytes: 512, ..Excess::new((2, 512), Some((0, 0)), Some((0, 0))) };
        assert_eq!(young.significant(), 0, "a connection that was not upgraded when its library's window began");
        assert_eq!(Excess { bytes: 700, ..young }.significant(), 700, "more than that");
        assert_eq!(Excess::new((9, 900), None, None).significant(), 0, "no library");
        let [one, other] = [(5, 320), (4, 256)].map(|all| Excess::new(all, Some((0, 0)), Some((0, 0))));
        assert_eq!((one.without(other).significant(), other.without(one).significant()), (64, 0));
    }
}
