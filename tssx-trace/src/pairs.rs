//! Connections one by one: who called at each end, and whether what was sent is what was received and what is still queued.
//!
//! The kernel's counts of two ends and the length of the queue between them are three figures that know nothing of each
//! other: where they agree nothing was missed. The queues are listed just after counting begins and just after it ends. So
//! a connection that is busy at that moment may be off by what moved then, and is said to be off.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::inventory::{Inventory, Kind};
use crate::join::{Connection, End};

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PairRecord {
    pub(crate) server: EndRecord,
    pub(crate) client: EndRecord,
    pub(crate) client_to_server: BalanceRecord,
    pub(crate) server_to_client: BalanceRecord,
}

/// One end of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndRecord {
    /// `SO_COOKIE` of the socket; 0 if it was never seen.
    pub(crate) cookie: u64,
    /// Processes that called.
    pub(crate) callers: BTreeSet<u32>,
    /// Processes that were seen with a descriptor of it and made no call that counts.
    pub(crate) holders: BTreeSet<u32>,
    /// `None`: this mode does not count.
    pub(crate) send_calls: Option<u64>,
    pub(crate) receive_calls: Option<u64>,
}

/// Kernel bytes of one direction: `sent + queued_before - received - queued_after` is 0 where nothing is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BalanceRecord {
    /// `None`: this mode does not count.
    pub(crate) sent: Option<u64>,
    pub(crate) received: Option<u64>,
    /// Bytes in the receiver's queue when the window began.
    pub(crate) queued_before: u64,
    /// Bytes there when the window ended; `None` if the receiver's socket was gone.
    pub(crate) queued_after: Option<u64>,
    pub(crate) state: BalanceState,
}

/// What the figures say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BalanceState {
    /// Every byte is accounted for.
    Balanced,
    /// The receiver's socket is gone, and not all that was sent had been received: the kernel drops what is unread.
    Unread,
    /// The figures contradict each other: calls went uncounted, or the connection was busy at an edge of the window.
    Unbalanced,
    /// Not a stream or a sequence of packets, or no traffic was counted, or one end was never seen: it made no call and is gone, or waits to be accepted.
    NotMeasured,
}

/// All connections of a window together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConservationRecord {
    /// Connections of which each direction balances.
    pub(crate) balanced: u64,
    /// Connections that closed with unread bytes and balance else, and those bytes.
    pub(crate) unread: u64,
    pub(crate) unread_bytes: u64,
    /// Connections of which a direction contradicts itself, and by how many bytes together.
    pub(crate) unbalanced: u64,
    pub(crate) unbalanced_bytes: u64,
    /// Connections that cannot be judged.
    pub(crate) not_measured: u64,
}

impl BalanceRecord {
    fn new(inventory: &Inventory, counted: bool, kind: Kind, from: &End, to: &End) -> Self {
        let is_judged = counted && matches!(kind, Kind::Stream | Kind::Seqpacket);
        let (sent, received) = (counted.then_some(from.kernel.tx_bytes), counted.then_some(to.kernel.rx_bytes));
        let queued_before = inventory.socket(to.cookie).map_or(0, |info| info.queued_before);
        let queued_after = inventory.queued(to.cookie);
        let mut balance = Self { sent, received, queued_before, queued_after, state: BalanceState::NotMeasured };
        // A socket that waits to be accepted is in no list, and its queue in none.
        let listed = |end: &End| inventory.socket(end.cookie).is_some();
        if is_judged && listed(from) && listed(to) {
            balance.state = match balance.rest() {
                0 => BalanceState::Balanced,
                rest if rest > 0 && queued_after.is_none() => BalanceState::Unread,
                _ => BalanceState::Unbalanced,
            };
        }
        balance
    }

    /// Bytes that are not accounted for; negative if more was received than could be.
    fn rest(&self) -> i128 {
        let sum = |one: u64, other: u64| i128::from(one) + i128::from(other);
        let [sent, received, queued_after] = [self.sent, self.received, self.queued_after].map(|bytes| bytes.unwrap_or(0));
        sum(sent, self.queued_before) - sum(received, queued_after)
    }
}

impl PairRecord {
    /// `counted` is whether the kernel's traffic was counted at all.
    pub(crate) fn new(inventory: &Inventory, counted: bool, connection: &Connection) -> Self {
        let Connection { server, client, kind, .. } = connection;
        Self {
            server: end(counted, server),
            client: end(counted, client),
            client_to_server: BalanceRecord::new(inventory, counted, *kind, client, server),
            server_to_client: BalanceRecord::new(inventory, counted, *kind, server, client),
        }
    }
}

fn end(counted: bool, end: &End) -> EndRecord {
    EndRecord {
        cookie: end.cookie,
        callers: end.callers.clone(),
        holders: end.pids.difference(&end.callers).copied().collect(),
        send_calls: counted.then_some(end.kernel.tx_calls),
        receive_calls: counted.then_some(end.kernel.rx_calls),
    }
}

impl ConservationRecord {
    /// Adds one connection.
    pub(crate) fn add(&mut self, pair: &PairRecord) {
        let directions = [pair.client_to_server, pair.server_to_client];
        let any = |state| directions.iter().any(|direction| direction.state == state);
        let bytes = |state| {
            let those = directions.iter().filter(move |direction| direction.state == state);
            those.map(|direction| u64::try_from(direction.rest().unsigned_abs()).unwrap_or(u64::MAX)).sum::<u64>()
        };
        if any(BalanceState::Unbalanced) {
            self.unbalanced += 1;
            self.unbalanced_bytes += bytes(BalanceState::Unbalanced);
        } else if any(BalanceState::NotMeasured) {
            self.not_measured += 1;
        } else if any(BalanceState::Unread) {
            self.unread += 1;
            self.unread_bytes += bytes(BalanceState::Unread);
        } else {
            self.balanced += 1;
        }
    }

    /// A sentence for the report, empty where nothing is to be said.
    pub(crate) fn warning(&self) -> String {
        if self.unbalanced == 0 {
            return String::new();
        }
        format!(
            "Not balanced: {}, by {}: sent, received and queued bytes contradict each other (busy at an edge of the window, or calls that the kernel does not report).\n",
            crate::output::plural(self.unbalanced, "connection"),
            crate::output::plural(self.unbalanced_bytes, "byte")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balance(sent: u64, received: u64, queued_before: u64, queued_after: Option<u64>) -> BalanceRecord {
        let (sent, received) = (Some(sent), Some(received));
        BalanceRecord { sent, received, queued_before, queued_after, state: BalanceState::NotMeasured }
    }

    #[test]
    fn what_is_queued_at_both_edges_is_part_of_the_balance() {
        assert_eq!(balance(100, 110, 30, Some(20)).rest(), 0);
        assert_eq!(balance(100, 60, 0, None).rest(), 40);
        assert_eq!(balance(0, u64::MAX, 0, Some(u64::MAX)).rest(), -2 * i128::from(u64::MAX));
    }

    #[test]
    fn one_direction_that_contradicts_itself_makes_the_connection_unbalanced() {
        let end =
            || EndRecord { cookie: 1, callers: BTreeSet::new(), holders: BTreeSet::new(), send_calls: None, receive_calls: None };
        let with = |state| BalanceRecord { state, ..balance(5, 2, 0, None) };
        let pair = |to_server, to_client| PairRecord {
            server: end(),
            client: end(),
            client_to_server: with(to_server),
            server_to_client: with(to_client),
        };
        let mut all = ConservationRecord::default();
        all.add(&pair(BalanceState::Unbalanced, BalanceState::Balanced));
        all.add(&pair(BalanceState::Balanced, BalanceState::Unread));
        all.add(&pair(BalanceState::Balanced, BalanceState::Balanced));
        all.add(&pair(BalanceState::NotMeasured, BalanceState::Balanced));
        assert_eq!((all.unbalanced, all.unread, all.balanced, all.not_measured), (1, 1, 1, 1));
        assert_eq!((all.unbalanced_bytes, all.unread_bytes), (3, 3));
        assert!(all.warning().contains("1 connection, by 3 bytes"));
    }
}
