//! What the kernel programs counted: the records, and what the slots of the CPUs hold beside them.

#![allow(unsafe_code, reason = "aya's Pod promises that any bytes are a valid record")]

use std::collections::{HashMap, HashSet};

use anyhow::Context;
use aya::maps::{Map, PerCpuArray};
use aya::{Ebpf, Pod};
use tssx_ebpf::{ReceivedSlot, SIZES, SLOTS, SLOTS_MAP, SentSlot, Slot, TRAFFIC_MAP, Traffic, TrafficKey};

/// A record as aya reads it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T: Copy>(T);
// SAFETY: integers only and no padding (asserted in tssx-ebpf), so every bit pattern is valid.
unsafe impl Pod for Raw<TrafficKey> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Traffic> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Slot> {}

/// What the kernel counted for one socket as used by one process, over all CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketTraffic {
    /// Cookie of the socket; an inode where [`crate::mode::Mode::names_by_inode`], until [`SocketTraffic::name_by_cookie`].
    pub(crate) cookie: u64,
    /// The process that made the calls.
    pub(crate) pid: u32,
    /// Calls that sent at least one byte, and the bytes.
    pub(crate) tx_calls: u64,
    pub(crate) tx_bytes: u64,
    /// Calls that received at least one byte, and the bytes; peeks not counted.
    pub(crate) rx_calls: u64,
    pub(crate) rx_bytes: u64,
    /// Of `tx_calls`, how many followed a receive on the same CPU.
    pub(crate) turns: u64,
    /// Of `tx_calls`, how many sent 2^i bytes or more and less than 2^(i+1); each CPU's count modulo 2^32.
    pub(crate) tx_sizes: [u64; SIZES],
    /// Cookie of the socket that got the bytes sent, if the kernel told.
    pub(crate) peer: Option<u64>,
}

/// Set in what stands for the cookie of a socket of which only the inode is known: no cookie gets so large.
const INODE_ONLY: u64 = 1 << 63;

impl SocketTraffic {
    fn new(cookie: u64, pid: u32) -> Self {
        let (tx_calls, tx_bytes, rx_calls, rx_bytes, turns) = (0, 0, 0, 0, 0);
        Self { cookie, pid, tx_calls, tx_bytes, rx_calls, rx_bytes, turns, tx_sizes: [0; SIZES], peer: None }
    }

    /// Adds what one CPU counted. Each has its own idea of the peer: any serves.
    fn add(&mut self, traffic: &Traffic) {
        self.tx_calls += traffic.tx_calls;
        self.tx_bytes += traffic.tx_bytes;
        self.rx_calls += traffic.rx_calls;
        self.rx_bytes += traffic.rx_bytes;
        self.turns += u64::from(traffic.turns);
        for (sum, calls) in self.tx_sizes.iter_mut().zip(traffic.tx_sizes) {
            *sum += u64::from(calls);
        }
        self.peer = self.peer.or(Some(traffic.peer).filter(|peer| *peer != 0));
    }

    /// Turns inodes into cookies, by the lists of sockets that were seen; what is in none stays apart from every cookie.
    pub(crate) fn name_by_cookie(&mut self, cookie_of_inode: impl Fn(u64) -> Option<u64>) {
        let name_of = |inode: u64| cookie_of_inode(inode).unwrap_or(INODE_ONLY | inode);
        for place in std::iter::once(&mut self.cookie).chain(&mut self.peer) {
            *place = name_of(*place);
        }
    }
}

/// The sums of sockets and processes.
#[derive(Default)]
struct Sums(HashMap<(u64, u32), SocketTraffic>);

impl Sums {
    fn add(&mut self, cookie: u64, tgid: u32, traffic: &Traffic) {
        self.0.entry((cookie, tgid)).or_insert_with(|| SocketTraffic::new(cookie, tgid)).add(traffic);
    }

    fn add_slot(&mut self, slot: &Slot) {
        let SentSlot { cookie, tgid, tx_calls, tx_bytes, turns, tx_sizes, .. } = slot.sent;
        if cookie != 0 {
            self.add(cookie, tgid, &Traffic { tx_calls, tx_bytes, turns, tx_sizes, ..Traffic::default() });
        }
        let ReceivedSlot { cookie, tgid, rx_calls, rx_bytes, .. } = slot.received;
        if cookie != 0 {
            self.add(cookie, tgid, &Traffic { rx_calls, rx_bytes, ..Traffic::default() });
        }
    }
}

/// What was counted until now. While programs run, what goes from a slot to its record in between is not seen until the next time;
/// nothing is seen twice, because the slots are read last.
///
/// # Errors
/// Where the kernel's maps cannot be read.
pub(super) fn read(ebpf: &Ebpf) -> anyhow::Result<Vec<SocketTraffic>> {
    let mut sums = Sums::default();
    let records: aya::maps::HashMap<_, Raw<TrafficKey>, Raw<Traffic>> = map(ebpf, TRAFFIC_MAP)?.try_into()?;
    for entry in records.iter() {
        let (Raw(key), Raw(traffic)) = entry.context("cannot read the kernel's traffic map")?;
        sums.add(key.cookie, key.tgid, &traffic);
    }
    let slots: PerCpuArray<_, Raw<Slot>> = map(ebpf, SLOTS_MAP)?.try_into()?;
    for index in 0..SLOTS {
        for Raw(slot) in slots.get(&index, 0).context("cannot read the kernel's slots")?.iter() {
            sums.add_slot(slot);
        }
    }
    Ok(sums.0.into_values().collect())
}

/// Takes the records of these sockets away. A CPU's slot may still belong to one that is gone, until another needs it, and its sums then go to
/// the record: such a socket is taken out of `cookies` and stays.
///
/// # Errors
/// Where the kernel's maps cannot be read.
pub(super) fn forget(ebpf: &mut Ebpf, cookies: &mut HashSet<u64>) -> anyhow::Result<()> {
    let slots: PerCpuArray<_, Raw<Slot>> = map(ebpf, SLOTS_MAP)?.try_into()?;
    for index in 0..SLOTS {
        for Raw(slot) in slots.get(&index, 0).context("cannot read the kernel's slots")?.iter() {
            cookies.remove(&slot.sent.cookie);
            cookies.remove(&slot.received.cookie);
        }
    }
    let records = ebpf.map_mut(TRAFFIC_MAP).with_context(|| format!("the object has no map {TRAFFIC_MAP}"))?;
    let mut records: aya::maps::HashMap<_, Raw<TrafficKey>, Raw<Traffic>> = records.try_into()?;
    let keys: Result<Vec<_>, _> = records.keys().collect();
    for key in keys.context("cannot read the kernel's traffic map")?.iter().filter(|Raw(key)| cookies.contains(&key.cookie)) {
        records.remove(key).context("cannot take a record out of the kernel's traffic map")?;
    }
    Ok(())
}

fn map<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a Map> {
    ebpf.map(name).with_context(|| format!("the object has no map {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_and_their_slots_add_up_and_lend_each_other_the_peer() {
        let mut sums = Sums::default();
        let traffic = Traffic { tx_calls: 2, tx_bytes: 128, turns: 1, peer: 9, tx_sizes: [2; SIZES], ..Traffic::default() };
        sums.add(7, 3, &traffic);
        sums.add(7, 3, &Traffic { rx_calls: 1, rx_bytes: 64, ..Traffic::default() });
        let sent = SentSlot { cookie: 7, tgid: 3, tx_calls: 1, tx_bytes: 1, turns: 1, tx_sizes: [1; SIZES], ..SentSlot::default() };
        let received = ReceivedSlot { cookie: 7, tgid: 3, before: 1, rx_calls: 4, rx_bytes: 8, ..ReceivedSlot::default() };
        sums.add_slot(&Slot { sent, received });
        sums.add_slot(&Slot { received: ReceivedSlot { tgid: 4, ..received }, sent: SentSlot::default() });
        sums.add_slot(&Slot::default());
        assert_eq!(sums.0.len(), 2);
        let mut sum = sums.0.remove(&(7, 3)).expect("counted");
        assert_eq!((sum.tx_calls, sum.tx_bytes, sum.rx_calls, sum.rx_bytes, sum.turns), (3, 129, 5, 72, 2));
        assert_eq!((sum.cookie, sum.pid, sum.peer, sum.tx_sizes), (7, 3, Some(9), [3; SIZES]));
        sum.name_by_cookie(|inode| (inode == 7).then_some(70));
        assert_eq!((sum.cookie, sum.peer), (70, Some(INODE_ONLY | 9)));
    }
}
