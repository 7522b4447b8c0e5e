//! What this process' own ledger says at the end of an exchange. All zero without the library.

use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tssx_core::ledger::layout::{
    HEADER_SIZE, LedgerHeader, PATH_CAPACITY, PATH_SIZE, PathEntry, SLOT_CAPACITY, SLOT_SIZE, SLOTS_OFFSET, Slot,
};
use tssx_core::reason::{REASON_COUNT, Reason};

/// Sums over all connections of one process, or of several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Connections that were made.
    pub connections: u64,
    /// Program bytes that were sent.
    pub bytes: u64,
    /// Connections of which a direction moved into a ring.
    pub upgraded: u64,
    /// Of the bytes those that were sent through a ring, and through the kernel.
    pub ring_bytes: u64,
    pub kernel_bytes: u64,
    /// Program bytes that were received from a ring, and from the kernel.
    pub ring_received: u64,
    pub kernel_received: u64,
    /// Connections by the reason why they stayed on, or went back to, the kernel socket.
    pub reasons: Vec<u64>,
}

/// Numbers in a copy of some of the ledger.
struct Copy(Vec<u8>);

impl Copy {
    fn of(memory: &File, start: u64, length: usize) -> Result<Self> {
        let mut bytes = vec![0; length];
        memory.read_exact_at(&mut bytes, start).context("cannot read our own ledger")?;
        Ok(Self(bytes))
    }

    fn u32(&self, offset: usize) -> u32 {
        self.0.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> u64 {
        self.0.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    }
}

impl Counts {
    /// Reads the ledger of this process.
    ///
    /// # Errors
    /// The memory map names a ledger that cannot be read.
    pub(crate) fn of_this_process(connections: u64, bytes: u64) -> Result<Self> {
        let mut counts = Self { connections, bytes, reasons: vec![0; REASON_COUNT], ..Self::default() };
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let Some(line) = maps.lines().find(|line| line.contains("/memfd:tssx-ledger")) else { return Ok(counts) };
        let start = u64::from_str_radix(line.split('-').next().unwrap_or_default(), 16)?;
        let memory = File::open("/proc/self/mem")?;
        let head = Copy::of(&memory, start, SLOTS_OFFSET)?;
        for path in 0..(head.u32(offset_of!(LedgerHeader, paths_used)) as usize).min(PATH_CAPACITY) {
            let entry = HEADER_SIZE + path * PATH_SIZE;
            counts.upgraded += head.u64(entry + offset_of!(PathEntry, accelerated));
            for (code, sum) in counts.reasons.iter_mut().enumerate() {
                *sum += head.u64(entry + offset_of!(PathEntry, reasons) + code * 8);
            }
        }
        let used = (head.u32(offset_of!(LedgerHeader, slots_used)) as usize).min(SLOT_CAPACITY);
        let slots = Copy::of(&memory, start + SLOTS_OFFSET as u64, used * SLOT_SIZE)?;
        for slot in (0..used).map(|slot| slot * SLOT_SIZE) {
            counts.ring_bytes += slots.u64(slot + offset_of!(Slot, ring_tx_bytes));
            counts.kernel_bytes += slots.u64(slot + offset_of!(Slot, kernel_tx_bytes));
            counts.ring_received += slots.u64(slot + offset_of!(Slot, ring_rx_bytes));
            counts.kernel_received += slots.u64(slot + offset_of!(Slot, kernel_rx_bytes));
        }
        Ok(counts)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.upgraded += other.upgraded;
        self.ring_bytes += other.ring_bytes;
        self.kernel_bytes += other.kernel_bytes;
        self.ring_received += other.ring_received;
        self.kernel_received += other.kernel_received;
        self.reasons.resize(self.reasons.len().max(other.reasons.len()), 0);
        for (sum, more) in self.reasons.iter_mut().zip(&other.reasons) {
            *sum += more;
        }
    }

    /// Ends of connections that went back to the kernel socket because of something that a ring cannot do.
    pub(crate) fn demoted(&self) -> u64 {
        let went_back = [
            Reason::AncillaryData,
            Reason::Splice,
            Reason::Stdio,
            Reason::EpollMode,
            Reason::OutOfBand,
            Reason::SocketOption,
            Reason::DescriptorTravels,
        ];
        went_back.iter().filter_map(|reason| self.reasons.get(*reason as usize)).sum()
    }

    /// Reasons with their counts, for a report.
    pub(crate) fn reasons(&self) -> String {
        let counted = (0_u32..).zip(&self.reasons).filter(|(_, count)| **count > 0);
        let named = counted.filter_map(|(code, count)| Some(format!("{} {count}", Reason::from_code(code)?.name())));
        named.collect::<Vec<_>>().join(", ")
    }

    /// Share of the bytes that went through rings, in percent.
    pub(crate) fn ring_share(&self) -> f64 {
        self.ring_bytes as f64 * 100.0 / (self.ring_bytes + self.kernel_bytes).max(1) as f64
    }
}
