//! What a process' ledger says, read from outside and without stopping it: the proof that a case was accelerated.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tssx_core::ledger::layout::{LEDGER_SIZE, LedgerHeader, SLOT_SELECTED, SLOT_SIZE, SLOTS_OFFSET};
use tssx_core::ledger::view::LedgerView;

/// Sums over all slots of one ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Connections whose name matched USE_TSSX.
    pub selected: u64,
    /// Connections of which a direction moved into a ring.
    pub accelerated: u64,
    /// Program bytes sent and received through rings.
    pub ring_bytes: u64,
    /// Program bytes sent and received through the kernel socket.
    pub kernel_bytes: u64,
    /// Mappings of segments in the process at this moment.
    pub segments: u64,
    /// Why connections are plain: a bit for each reason's code.
    pub reasons: u64,
}

impl Counted {
    /// What was counted after `before`. Counters of closed connections vanish when their slots are used again.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            selected: self.selected.saturating_sub(before.selected),
            accelerated: self.accelerated.saturating_sub(before.accelerated),
            ring_bytes: self.ring_bytes.saturating_sub(before.ring_bytes),
            kernel_bytes: self.kernel_bytes.saturating_sub(before.kernel_bytes),
            segments: self.segments,
            reasons: self.reasons & !before.reasons,
        }
    }

    /// One line, for a file.
    pub(crate) fn to_text(self) -> String {
        let Self { selected, accelerated, ring_bytes, kernel_bytes, segments, reasons } = self;
        format!("{selected} {accelerated} {ring_bytes} {kernel_bytes} {segments} {reasons}\n")
    }

    /// Reads the line back.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let [selected, accelerated, ring_bytes, kernel_bytes, segments, reasons] = numbers.try_into().ok()?;
        Some(Self { selected, accelerated, ring_bytes, kernel_bytes, segments, reasons })
    }
}

/// Reads the ledger of a process; all zero where it has none.
///
/// # Errors
/// The process is gone, its memory may not be read, or holds something that calls itself a ledger and is none.
pub(crate) fn of_process(pid: u32) -> io::Result<Counted> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let segments = maps.lines().filter(|line| line.contains("/memfd:tssx-segment")).count() as u64;
    let Some(start) = maps.lines().find(|line| line.contains("/memfd:tssx-ledger")).and_then(|line| line.split('-').next()) else {
        return Ok(Counted { segments, ..Counted::default() });
    };
    let start = u64::from_str_radix(start, 16).map_err(io::Error::other)?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let bytes = copy(&memory, start)?;
    let mut counted = sums(&bytes)?;
    counted.segments = segments;
    Ok(counted)
}

/// Reads the ledgers of a process and of those that it forked, and adds them up. A ledger that they share counts once; who has
/// ended by now is passed over.
///
/// # Errors
/// As [`of_process`], of a process that is still there.
pub(crate) fn of_family(pid: u32) -> io::Result<Counted> {
    let mut seen = HashSet::new();
    let mut sum = Counted::default();
    for pid in std::iter::once(pid).chain(children(pid)) {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let ledger = maps.lines().find(|line| line.contains("/memfd:tssx-ledger"));
        // Address, permissions, offset, device, inode, name.
        let Some(inode) = ledger.and_then(|line| line.split_whitespace().nth(4)) else { continue };
        if seen.contains(inode) {
            continue;
        }
        match of_process(pid) {
            // Of a process that has ended in between nothing is mapped any more: somebody else may share its ledger.
            Ok(one) if one == Counted::default() => {}
            Ok(one) => {
                seen.insert(inode.to_owned());
                sum.selected += one.selected;
                sum.accelerated += one.accelerated;
                sum.ring_bytes += one.ring_bytes;
                sum.kernel_bytes += one.kernel_bytes;
                sum.segments += one.segments;
                sum.reasons |= one.reasons;
            }
            Err(_) if !Path::new(&format!("/proc/{pid}/exe")).exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

fn children(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let all = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let parent = format!("PPid:\t{pid}");
    let of = |child: &u32| {
        std::fs::read_to_string(format!("/proc/{child}/status")).is_ok_and(|text| text.lines().any(|line| line == parent))
    };
    all.filter(of).collect()
}

/// Connections that this process' own ledger counts as open; 0 where it has none.
///
/// # Errors
/// The memory map or the ledger cannot be read.
pub(crate) fn open_connections() -> io::Result<u32> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some(start) = maps.lines().find(|line| line.contains("/memfd:tssx-ledger")).and_then(|line| line.split('-').next()) else {
        return Ok(0);
    };
    let start = u64::from_str_radix(start, 16).map_err(io::Error::other)?;
    let mut live = [0; size_of::<u32>()];
    File::open("/proc/self/mem")?.read_exact_at(&mut live, start + offset_of!(LedgerHeader, slots_live) as u64)?;
    Ok(u32::from_le_bytes(live))
}

/// A copy of the ledger as far as it was ever used; the rest stays zero and untouched.
fn copy(memory: &File, start: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LEDGER_SIZE + size_of::<u64>()];
    let skip = bytes.as_ptr().align_offset(size_of::<u64>());
    let ledger = bytes.get_mut(skip..skip + LEDGER_SIZE).ok_or(io::ErrorKind::InvalidData)?;
    let (head, slots) = ledger.split_at_mut(SLOTS_OFFSET);
    memory.read_exact_at(head, start)?;
    // Offset 20 of the header is `slots_used`: PROTOCOL.md, "The ledger".
    let used = head.get(20..24).and_then(|used| used.try_into().ok()).map_or(0, u32::from_le_bytes) as usize;
    let used = (used * SLOT_SIZE).min(slots.len());
    if let Some(slots) = slots.get_mut(..used) {
        memory.read_exact_at(slots, start + SLOTS_OFFSET as u64)?;
    }
    Ok(bytes)
}

#[allow(unsafe_code, reason = "looks at a private, aligned copy as a ledger")]
fn sums(bytes: &[u8]) -> io::Result<Counted> {
    let skip = bytes.as_ptr().align_offset(size_of::<u64>());
    let ledger = bytes.get(skip..skip + LEDGER_SIZE).ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the slice is aligned, LEDGER_SIZE long, and outlives the view; its atomics are only loaded.
    let view = unsafe { LedgerView::new(ledger.as_ptr(), ledger.len()) }.map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut counted = Counted::default();
    for (_, path) in view.paths() {
        counted.selected += path.selected;
        counted.accelerated += path.accelerated;
        let given = path.reasons.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.reasons |= given.fold(0, |bits, (code, _)| bits | 1 << code);
    }
    for slot in view.slots() {
        counted.ring_bytes += slot.ring_tx_bytes + slot.ring_rx_bytes;
        counted.kernel_bytes += slot.kernel_tx_bytes + slot.kernel_rx_bytes;
        // Closed ones are among their path's.
        counted.reasons |= u64::from(slot.state == SLOT_SELECTED) << slot.reason.min(63);
    }
    Ok(counted)
}
