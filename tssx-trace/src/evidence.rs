//! What was seen of a service beside calls and bytes, for judging whether it would gain.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use tssx_ebpf::SIZES;
use tssx_ebpf::closer::{CREDENTIALS, DESCRIPTORS, SPLICED};

use crate::join::{Connection, Service};
use crate::output::plural;
use crate::watch::Observation;

/// Evidence of one service over the window. `None` is not measured; a recording of an earlier release lacks what came later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// Sends through the kernel socket by size, doorbells included; sizes that did not occur are left out.
    pub(crate) kernel_sizes: Vec<SizeCount>,
    /// The most processes that moved bytes on one end of one connection: more than one keeps it on the kernel socket.
    pub(crate) most_processes_on_one_end: u64,
    /// Sends through the kernel socket that followed a receive of the same process on the same CPU: as many as sends where each
    /// message is answered before the next, few where bytes stream.
    pub(crate) turns: Option<u64>,
    /// Processes at its ends that were seen with an io_uring, whose calls pass the library by. `None`: none was seen, and not each
    /// of them could be looked at.
    pub(crate) io_uring_processes: Option<u64>,
    /// What keeps connections on the kernel socket, as far as it was seen while the tracer looked closer.
    pub(crate) signals: Option<Signals>,
    /// How long receives took for which somebody waited, from the arrival of the bytes to their end, while the tracer looked closer;
    /// times that did not occur are left out.
    pub(crate) wakeups: Option<Vec<TimeCount>>,
}

/// Ends of connections on which something was seen that a ring does not carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signals {
    /// Descriptors travelled with a message (`SCM_RIGHTS`), at the sending or at the receiving end.
    pub(crate) descriptor_ends: u64,
    /// Credentials did (`SCM_CREDENTIALS`).
    pub(crate) credential_ends: u64,
    /// Bytes went by splice(2) or sendfile(2).
    pub(crate) splice_ends: u64,
}

/// How many took `from_ns` nanoseconds or more, and less than twice that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimeCount {
    pub(crate) from_ns: u64,
    pub(crate) count: u64,
}

/// How many sends had a size of `from_bytes` or more, and less than twice that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SizeCount {
    pub(crate) from_bytes: u64,
    pub(crate) calls: u64,
}

impl Evidence {
    /// What of it keeps connections on the kernel socket, for people; empty if nothing was seen.
    pub(crate) fn obstacles(&self) -> Vec<String> {
        let signals = self.signals.unwrap_or_default();
        let mut found = Vec::new();
        for (count, noun, what) in [
            (signals.descriptor_ends, "end", "with passed descriptors"),
            (signals.credential_ends, "end", "with passed credentials"),
            (signals.splice_ends, "end", "with splice or sendfile"),
            (self.io_uring_processes.unwrap_or(0), "process", "with io_uring"),
        ] {
            if count > 0 {
                found.push(format!("{} {what}", plural(count, noun)));
            }
        }
        if self.most_processes_on_one_end > 1 {
            found.push(format!("an end used by {} processes", self.most_processes_on_one_end));
        }
        found
    }
}

/// What is known of one socket.
#[derive(Default)]
struct OfSocket {
    sizes: [u64; SIZES],
    turns: u64,
    /// Processes that moved bytes on it.
    processes: u64,
}

/// The evidence of a window by socket, so that each record is looked at once.
pub(crate) struct Index<'a> {
    seen: &'a Observation,
    sockets: HashMap<u64, OfSocket>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(seen: &'a Observation) -> Self {
        let mut sockets: HashMap<u64, OfSocket> = HashMap::new();
        for record in &seen.traffic {
            let socket = sockets.entry(record.cookie).or_default();
            socket.processes += 1;
            socket.turns += record.turns;
            for (sum, calls) in socket.sizes.iter_mut().zip(record.tx_sizes) {
                *sum += calls;
            }
        }
        Self { seen, sockets }
    }

    /// The evidence of a service's connections; `None` where no traffic was measured.
    pub(crate) fn of(&self, service: &Service) -> Option<Evidence> {
        if !self.seen.mode.measures_traffic() {
            return None;
        }
        let (mut sizes, mut turns, mut most) = (BTreeMap::new(), 0, 0);
        let ends = || service.connections.iter().flat_map(Connection::ends);
        for socket in ends().filter_map(|end| self.sockets.get(&end.cookie)) {
            most = most.max(socket.processes);
            turns += socket.turns;
            for (power, calls) in socket.sizes.iter().enumerate().filter(|(_, calls)| **calls > 0) {
                *sizes.entry(1 << power).or_default() += calls;
            }
        }
        let pids: BTreeSet<u32> = ends().flat_map(|end| &end.pids).copied().collect();
        Some(Evidence {
            kernel_sizes: sizes.into_iter().map(|(from_bytes, calls)| SizeCount { from_bytes, calls }).collect(),
            most_processes_on_one_end: most,
            turns: Some(turns),
            io_uring_processes: self.seen.processes.with_io_uring(&pids),
            signals: self.signals(service),
            wakeups: self.wakeups(service),
        })
    }

    fn signals(&self, service: &Service) -> Option<Signals> {
        let seen = self.seen.closer.signals.as_ref()?;
        let mut signals = Signals::default();
        for end in service.connections.iter().flat_map(Connection::ends) {
            let inode = self.seen.inventory.socket(end.cookie).map(|info| info.inode);
            let bits = inode.and_then(|inode| seen.get(&inode)).copied().unwrap_or(0);
            for (count, bit) in [
                (&mut signals.descriptor_ends, DESCRIPTORS),
                (&mut signals.credential_ends, CREDENTIALS),
                (&mut signals.splice_ends, SPLICED),
            ] {
                *count += u64::from(bits & bit != 0);
            }
        }
        Some(signals)
    }

    fn wakeups(&self, service: &Service) -> Option<Vec<TimeCount>> {
        let seen = self.seen.closer.wakeups.as_ref()?;
        let mut times = BTreeMap::new();
        for wakeups in service.connections.iter().flat_map(Connection::ends).filter_map(|end| seen.get(&end.cookie)) {
            for (power, count) in wakeups.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                *times.entry(1 << power).or_default() += u64::from(*count);
            }
        }
        Some(times.into_iter().map(|(from_ns, count)| TimeCount { from_ns, count }).collect())
    }
}
