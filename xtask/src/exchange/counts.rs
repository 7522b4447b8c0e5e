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

/// A copy of this process' ledger.
pub(crate) struct Ledger {
    head: Copy,
    slots: Copy,
}

/// What a slot of it says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotCopy {
    /// Raised each time that the slot becomes another connection's.
    pub generation: u32,
    /// Bytes sent through a ring and through the kernel, and received so.
    pub sent: [u64; 2],
    pub received: [u64; 2],
    /// How often a writer found its ring full.
    pub full: u64,
    /// The words of its two locks, 0 for one that is free. In the low 22 bits there is the process that holds it.
    pub locks: [u64; 2],
}

impl Ledger {
    /// Reads it; none where the library is not loaded or has selected nothing yet.
    ///
    /// # Errors
    /// The memory map names a ledger that cannot be read.
    pub(crate) fn of_this_process() -> Result<Option<Self>> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let Some(line) = maps.lines().find(|line| line.contains("/memfd:tssx-ledger")) else { return Ok(None) };
        let start = u64::from_str_radix(line.split('-').next().unwrap_or_default(), 16)?;
        let memory = File::open("/proc/self/mem")?;
        let head = Copy::of(&memory, start, SLOTS_OFFSET)?;
        let used = (head.u32(offset_of!(LedgerHeader, slots_used)) as usize).min(SLOT_CAPACITY);
        let slots = Copy::of(&memory, start + SLOTS_OFFSET as u64, used * SLOT_SIZE)?;
        Ok(Some(Self { head, slots }))
    }

    /// Connections that are open.
    pub(crate) fn live(&self) -> u64 {
        self.head.u32(offset_of!(LedgerHeader, slots_live)).into()
    }

    /// Connections that found no slot.
    pub(crate) fn exhausted(&self) -> u64 {
        self.head.u64(offset_of!(LedgerHeader, exhausted))
    }

    /// Every slot that was ever used.
    pub(crate) fn slots(&self) -> impl Iterator<Item = SlotCopy> {
        (0..self.slots.0.len() / SLOT_SIZE).map(|slot| slot * SLOT_SIZE).map(|slot| {
            let word = |offset: usize| self.slots.u64(slot + offset);
            SlotCopy {
                generation: self.slots.u32(slot + offset_of!(Slot, generation)),
                sent: [word(offset_of!(Slot, ring_tx_bytes)), word(offset_of!(Slot, kernel_tx_bytes))],
                received: [word(offset_of!(Slot, ring_rx_bytes)), word(offset_of!(Slot, kernel_rx_bytes))],
                full: word(offset_of!(Slot, ring_full)),
                locks: [word(offset_of!(Slot, tx_lock)), word(offset_of!(Slot, rx_lock))],
            }
        })
    }

    /// Sums over all connections by what the ledger keeps of each name: exact, however many there were.
    pub(crate) fn names(&self) -> Counts {
        let mut counts = Counts { reasons: vec![0; REASON_COUNT], ..Counts::default() };
        for path in 0..(self.head.u32(offset_of!(LedgerHeader, paths_used)) as usize).min(PATH_CAPACITY) {
            let entry = HEADER_SIZE + path * PATH_SIZE;
            counts.upgraded += self.head.u64(entry + offset_of!(PathEntry, accelerated));
            for (code, sum) in counts.reasons.iter_mut().enumerate() {
                *sum += self.head.u64(entry + offset_of!(PathEntry, reasons) + code * 8);
            }
        }
        counts
    }
}

impl Counts {
    /// Reads the ledger of this process. The bytes are those of the connections that have a slot still: the last few hundred.
    ///
    /// # Errors
    /// The memory map names a ledger that cannot be read.
    pub(crate) fn of_this_process(connections: u64, bytes: u64) -> Result<Self> {
        let Some(ledger) = Ledger::of_this_process()? else {
            return Ok(Self { connections, bytes, reasons: vec![0; REASON_COUNT], ..Self::default() });
        };
        let mut counts = Self { connections, bytes, ..ledger.names() };
        for slot in ledger.slots() {
            counts.count(&slot);
        }
        Ok(counts)
    }

    /// Adds what a slot says.
    pub(crate) fn count(&mut self, slot: &SlotCopy) {
        let [ring, kernel] = slot.sent;
        self.ring_bytes += ring;
        self.kernel_bytes += kernel;
        let [ring, kernel] = slot.received;
        self.ring_received += ring;
        self.kernel_received += kernel;
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
