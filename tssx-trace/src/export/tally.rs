//! What was seen as counters that never go back: each look adds by how much its figures grew, to whatever name and path they belong to then.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use tssx_core::ledger::layout::{SLOT_CLOSED, SLOT_PLAIN};
use tssx_core::ledger::view::SlotSnapshot;
use tssx_core::reason::Reason;

use crate::advice::Side;
use crate::cost::Cost;
use crate::inventory::Kind;
use crate::join::{Connection, End, connections, make_absolute};
use crate::ledgers::{LedgerEnd, LedgerId};
use crate::losses::Losses;
use crate::mode::Mode;
use crate::names::SocketName;
use crate::watch::Observation;

/// What stands for sockets without a name.
const UNNAMED: &str = "(unnamed)";
/// What stands for all beyond the bound.
const OTHER: &str = "(other)";

/// Calls and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) calls: u64,
    pub(crate) bytes: u64,
}

impl Sent {
    fn add(&mut self, calls: u64, bytes: u64) {
        self.calls = self.calls.saturating_add(calls);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What a tracer needs to read the statistics of every process.
const READING: [&str; 3] = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_CHECKPOINT_RESTORE"];

/// A name, a kind of socket, and whether the library selected its connections: `true`, `false` or `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelKey {
    pub(crate) socket: String,
    pub(crate) kind: &'static str,
    pub(crate) selected: &'static str,
}

/// A name, and the end of connections that runs with the library.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndKey {
    pub(crate) socket: String,
    pub(crate) end: &'static str,
}

/// What the library's statistics say of all ends of one [`EndKey`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) ring: Sent,
    pub(crate) kernel: Sent,
    pub(crate) doorbells: Sent,
    pub(crate) sleeps: u64,
    pub(crate) spin_hits: u64,
    pub(crate) ring_full: u64,
    pub(crate) selected: u64,
    pub(crate) accelerated: u64,
    /// Ends by the reason why they stayed on the kernel socket, or went back to it.
    pub(crate) reasons: BTreeMap<String, u64>,
}

/// One end's slot of a ledger, in one use.
type SlotKey = (LedgerId, usize, u32);

/// What was taken from a slot so far.
struct Taken {
    slot: SlotSnapshot,
    accelerated: bool,
    reason: bool,
}

/// A count that may begin anew, and the sum of its growth.
#[derive(Clone, Copy, Default)]
struct Growing {
    last: u64,
    sum: u64,
}

impl Growing {
    fn take(&mut self, now: u64) -> u64 {
        self.sum += now.saturating_sub(self.last);
        self.last = now;
        self.sum
    }
}

/// The counters.
pub(crate) struct Tally {
    max_names: usize,
    names: HashSet<String>,
    /// What was taken of each socket and process.
    sockets: HashMap<(u64, u32), Sent>,
    slots: HashMap<SlotKey, Taken>,
    growth: HashMap<&'static str, Growing>,
    /// By the kernel programs.
    pub(crate) kernel: BTreeMap<KernelKey, Sent>,
    /// By the library's statistics.
    pub(crate) ends: BTreeMap<EndKey, Ends>,
    /// Connections that are open now.
    pub(crate) open: BTreeMap<KernelKey, u64>,
    pub(crate) losses: Losses,
    /// Ledgers that are read, and that could not be.
    pub(crate) ledgers: (u64, u64),
    pub(crate) cost: Cost,
    /// How traffic is measured; `None` before the first look.
    pub(crate) mode: Option<Mode>,
    /// The capabilities that the tracer wants, and whether it began with them.
    pub(crate) privileges: Vec<(&'static str, bool)>,
}

impl Tally {
    /// All zero. Beyond that many names of sockets, all count as one. `privileges` are those of the beginning, see [`crate::preflight`].
    pub(crate) fn new(max_names: usize, privileges: Vec<(&'static str, bool)>) -> Self {
        Self {
            max_names,
            names: HashSet::new(),
            sockets: HashMap::new(),
            slots: HashMap::new(),
            growth: HashMap::new(),
            kernel: BTreeMap::new(),
            ends: BTreeMap::new(),
            open: BTreeMap::new(),
            losses: Losses::default(),
            ledgers: (0, 0),
            cost: Cost::default(),
            mode: None,
            privileges,
        }
    }

    /// Whether no process' statistics are out of reach: only then what has none is known to be selected by none.
    pub(crate) fn reads_all(&self) -> bool {
        READING.iter().all(|needed| self.privileges.iter().any(|(name, held)| name == needed && *held))
    }

    /// Adds by how much all grew since the last look.
    pub(crate) fn add(&mut self, seen: &Observation) {
        self.open.clear();
        let mut by_cookie = HashMap::new();
        let mut by_slot = HashMap::new();
        for connection in connections(seen) {
            let key = self.key_of(&connection);
            for end in connection.ends() {
                by_cookie.insert(end.cookie, key.clone());
                if let Some(ledger) = &end.ledger {
                    by_slot.insert(slot_key(ledger), key.socket.clone());
                }
            }
            let is_open = |end: &End| seen.inventory.is_there(end.cookie);
            if connection.ends().into_iter().any(is_open) && connection.kind != Kind::Datagram {
                *self.open.entry(key).or_default() += 1;
            }
        }
        self.add_traffic(seen, &by_cookie);
        self.add_ledgers(seen, &by_slot);
        self.losses = self.grown(seen.losses);
        self.ledgers = (seen.ledgers.count(), seen.ledgers.refused().count() as u64);
        self.cost = seen.cost;
        self.mode = Some(seen.mode);
    }

    fn key_of(&mut self, connection: &Connection) -> KernelKey {
        let name =
            connection.name.as_ref().map(|name| make_absolute(name, &connection.server.pids).unwrap_or_else(|| name.clone()));
        let selected = match connection.is_selected() {
            true => "true",
            false if self.reads_all() => "false",
            false => "unknown",
        };
        KernelKey { socket: self.label(name.as_ref()), kind: connection.kind.name(), selected }
    }

    /// The name as every report prints it, while there is room for more names.
    fn label(&mut self, name: Option<&SocketName>) -> String {
        let Some(name) = name else { return UNNAMED.into() };
        let mut label = name.to_string();
        if label.starts_with('(') {
            label.insert_str(0, "./"); // a relative path that would read as one of ours
        }
        if self.names.contains(&label) {
            return label;
        }
        if self.names.len() >= self.max_names {
            return OTHER.into();
        }
        self.names.insert(label.clone());
        label
    }

    fn add_traffic(&mut self, seen: &Observation, by_cookie: &HashMap<u64, KernelKey>) {
        let mut before = std::mem::take(&mut self.sockets);
        for record in &seen.traffic {
            let id = (record.cookie, record.pid);
            let last = before.remove(&id).unwrap_or_default();
            // What moves between the kernel's maps while they are read may be missing this time: the next time makes up for it.
            let now = Sent { calls: record.tx_calls.max(last.calls), bytes: record.tx_bytes.max(last.bytes) };
            self.sockets.insert(id, now);
            if let Some(key) = by_cookie.get(&record.cookie) {
                self.kernel.entry(key.clone()).or_default().add(now.calls - last.calls, now.bytes - last.bytes);
            }
        }
    }

    fn add_ledgers(&mut self, seen: &Observation, by_slot: &HashMap<SlotKey, String>) {
        let mut before = std::mem::take(&mut self.slots);
        for end in seen.ledgers.ends() {
            let id = slot_key(end);
            let socket = by_slot.get(&id).cloned().unwrap_or_else(|| self.label(end.name.as_ref()));
            let side = if end.is_acceptor() { Side::Server } else { Side::Client };
            let ends = self.ends.entry(EndKey { socket, end: side.name() }).or_default();
            let taken = match before.entry(id) {
                Entry::Occupied(known) => known.remove(),
                Entry::Vacant(_) => {
                    ends.selected += u64::from(!end.was_there());
                    // What was so before the window began is not to be counted.
                    let slot = end.before();
                    Taken { slot, accelerated: slot.ring_tx_calls != 0 || slot.ring_rx_calls != 0, reason: has_reason(&slot) }
                }
            };
            let taken = ends.take(&taken, &end.now);
            self.slots.insert(id, taken);
        }
    }

    /// The losses, of which some begin anew when what is gone is forgotten.
    fn grown(&mut self, now: Losses) -> Losses {
        let mut grow = |name, count| self.growth.entry(name).or_default().take(count);
        Losses {
            uncounted_connections: grow("uncounted", now.uncounted_connections),
            unplaced_connections: grow("unplaced", now.unplaced_connections),
            ..now
        }
    }
}

impl Ends {
    /// Adds by how much a slot grew.
    fn take(&mut self, taken: &Taken, now: &SlotSnapshot) -> Taken {
        let grew = |of: fn(&SlotSnapshot) -> u64| of(now).saturating_sub(of(&taken.slot));
        self.ring.add(grew(|slot| slot.ring_tx_calls), grew(|slot| slot.ring_tx_bytes));
        self.kernel.add(grew(|slot| slot.kernel_tx_calls), grew(|slot| slot.kernel_tx_bytes));
        self.doorbells.add(grew(|slot| slot.doorbell_tx_calls), grew(|slot| slot.doorbell_tx_bytes));
        self.sleeps = self.sleeps.saturating_add(grew(|slot| slot.sleeps));
        self.spin_hits = self.spin_hits.saturating_add(grew(|slot| slot.spin_hits));
        self.ring_full = self.ring_full.saturating_add(grew(|slot| slot.ring_full));
        let accelerated = taken.accelerated || now.ring_tx_calls != 0 || now.ring_rx_calls != 0;
        self.accelerated += u64::from(accelerated && !taken.accelerated);
        let closed_early = now.state == SLOT_CLOSED && !accelerated;
        let reason = taken.reason || has_reason(now) || closed_early;
        if reason && !taken.reason {
            *self.reasons.entry(name_of_reason(now.reason)).or_default() += 1;
        }
        Taken { slot: *now, accelerated, reason }
    }
}

/// Whether the end is on the kernel socket for good; of one that was closed afterwards that is not known any more.
fn has_reason(slot: &SlotSnapshot) -> bool {
    slot.state == SLOT_PLAIN && slot.reason != Reason::None as u32
}

fn name_of_reason(code: u32) -> String {
    match Reason::from_code(code) {
        Some(Reason::None) => String::from("undecided"),
        Some(reason) => reason.name().to_owned(),
        None => format!("reason-{code}"),
    }
}

fn slot_key(end: &LedgerEnd) -> SlotKey {
    (end.ledger, end.now.index, end.now.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_ours_cannot_be_taken() {
        let mut tally = Tally::new(2, Vec::new());
        let name = |text: &str| text.parse::<SocketName>().expect("a name");
        assert_eq!(tally.label(None), UNNAMED);
        assert_eq!(tally.label(Some(&name("(other)"))), "./(other)");
        assert_eq!(tally.label(Some(&name("@a"))), "@a");
        assert_eq!(tally.label(Some(&name("/b"))), OTHER);
        assert_eq!(tally.label(Some(&name("@a"))), "@a", "what was there stays");
    }

    #[test]
    fn an_end_counts_once_and_growth_never_goes_back() {
        let mut ends = Ends::default();
        let fresh = Taken { slot: SlotSnapshot::default(), accelerated: false, reason: false };
        let now = SlotSnapshot { ring_tx_calls: 2, ring_tx_bytes: 20, ..SlotSnapshot::default() };
        let taken = ends.take(&fresh, &now);
        let taken = ends.take(&taken, &now);
        assert_eq!((ends.ring, ends.accelerated, ends.reasons.len()), (Sent { calls: 2, bytes: 20 }, 1, 0));
        let back = SlotSnapshot { state: SLOT_PLAIN, reason: Reason::Splice as u32, ring_tx_bytes: 5, ..now };
        let taken = ends.take(&taken, &back);
        ends.take(&taken, &SlotSnapshot { state: SLOT_CLOSED, ..back });
        assert_eq!((ends.ring.bytes, ends.accelerated, ends.reasons.get("splice")), (20, 1, Some(&1)));
        ends.take(&fresh, &SlotSnapshot { state: SLOT_CLOSED, ..SlotSnapshot::default() });
        assert_eq!(ends.reasons.get("undecided"), Some(&1));
        let mut growing = Growing::default();
        assert_eq!([3, 5, 1, 2].map(|count| growing.take(count)), [3, 5, 5, 6]);
    }
}
