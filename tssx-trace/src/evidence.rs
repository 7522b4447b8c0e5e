//! What the kernel programs show of a service beside calls and bytes, for judging whether it would gain.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::join::{Connection, Service};
use crate::watch::Observation;

/// Evidence of one service over the window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// Sends through the kernel socket by size, doorbells included; sizes that did not occur are left out.
    pub(crate) kernel_sizes: Vec<SizeCount>,
    /// The most processes that moved bytes on one end of one connection: more than one keeps it on the kernel socket.
    pub(crate) most_processes_on_one_end: u64,
    /// Messages that carried descriptors or credentials; `None`: not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) descriptor_messages: Option<u64>,
}

/// How many sends had a size of `from_bytes` or more, and less than twice that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SizeCount {
    pub(crate) from_bytes: u64,
    pub(crate) calls: u64,
}

impl Evidence {
    /// The evidence of a service's connections; `None` where no traffic was measured.
    pub(crate) fn of(seen: &Observation, service: &Service) -> Option<Self> {
        if !seen.mode.measures_traffic() {
            return None;
        }
        let cookies: HashSet<u64> = service.connections.iter().flat_map(Connection::ends).map(|end| end.cookie).collect();
        let mut sizes = BTreeMap::new();
        let mut processes: HashMap<u64, u64> = HashMap::new();
        for record in seen.traffic.iter().filter(|record| cookies.contains(&record.cookie)) {
            *processes.entry(record.cookie).or_default() += 1;
            for (power, calls) in record.tx_sizes.iter().enumerate().filter(|(_, calls)| **calls > 0) {
                *sizes.entry(1 << power).or_default() += calls;
            }
        }
        let kernel_sizes = sizes.into_iter().map(|(from_bytes, calls)| SizeCount { from_bytes, calls }).collect();
        let most_processes_on_one_end = processes.into_values().max().unwrap_or(0);
        Some(Self { kernel_sizes, most_processes_on_one_end, descriptor_messages: None })
    }
}
