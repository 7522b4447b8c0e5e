//! Reading a ledger: snapshots that are internally consistent, from memory that may be lying.
//!
//! The owner is another process, perhaps hostile: every count is bounded before use, every name length clamped,
//! and a slot whose generation moved while it was copied is passed over.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::fence;

use super::layout::{
    HEADER_SIZE, LEDGER_MAGIC, LEDGER_SIZE, LEDGER_VERSION, LedgerHeader, NAME_MAX, PATH_CAPACITY, PATH_READY, PATH_SIZE,
    PathEntry, SLOT_CAPACITY, SLOT_CLAIMED, SLOT_FREE, SLOT_SIZE, SLOTS_OFFSET, Slot,
};
use crate::reason::REASON_COUNT;

/// Why a mapping is not a ledger that this version can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewError {
    /// Fewer bytes than [`LEDGER_SIZE`].
    TooSmall,
    /// Null or not 8-byte aligned.
    Misaligned,
    /// The first eight bytes are not [`LEDGER_MAGIC`]: being made, or not a ledger.
    NotALedger,
    /// Another layout version, carried here: library and reader are of different releases.
    OtherVersion(u32),
}

/// A ledger mapped by whoever made the view. Cheap to copy; borrows the mapping only by the promise made to [`LedgerView::new`].
#[derive(Clone, Copy, Debug)]
pub struct LedgerView {
    base: NonNull<u8>,
}

/// What a path entry said at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathSnapshot {
    name: [u8; NAME_MAX],
    name_len: usize,
    /// Connections selected since the ledger was made.
    pub selected: u64,
    /// Connections of which at least one direction moved into a ring.
    pub accelerated: u64,
    /// Connections by reason code.
    pub reasons: [u64; REASON_COUNT],
}

impl PathSnapshot {
    /// The socket's name: a path, or a NUL byte followed by an abstract name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.name.get(..self.name_len).unwrap_or(&[])
    }
}

/// What a slot said at one moment. Field meanings are those of [`Slot`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the like-named field of layout::Slot, documented there")]
pub struct SlotSnapshot {
    pub index: usize,
    pub generation: u32,
    pub state: u32,
    pub reason: u32,
    pub role: u32,
    pub path: u32,
    pub pid: u32,
    pub holders: u32,
    pub cookie: u64,
    pub inode: u64,
    pub peer_inode: u64,
    pub kernel_tx_bytes: u64,
    pub kernel_tx_calls: u64,
    pub kernel_rx_bytes: u64,
    pub kernel_rx_calls: u64,
    pub ring_tx_bytes: u64,
    pub ring_tx_calls: u64,
    pub ring_rx_bytes: u64,
    pub ring_rx_calls: u64,
    pub doorbell_tx_bytes: u64,
    pub doorbell_rx_bytes: u64,
    pub doorbell_tx_calls: u64,
    pub doorbell_rx_calls: u64,
    pub sleeps: u64,
    pub spin_hits: u64,
    pub ring_full: u64,
}

#[allow(unsafe_code, reason = "turns a checked mapping into references to atomics")]
mod access {
    use super::{HEADER_SIZE, LEDGER_SIZE, ViewError};
    use super::{
        LedgerHeader, LedgerView, NonNull, PATH_CAPACITY, PATH_SIZE, PathEntry, SLOT_CAPACITY, SLOT_SIZE, SLOTS_OFFSET, Slot,
    };

    impl LedgerView {
        /// Looks at `len` bytes from `base` as a ledger.
        ///
        /// # Errors
        /// [`ViewError`] where the bytes are not a ledger of this version.
        ///
        /// # Safety
        /// `base` must be readable for `len` bytes for as long as the view or a copy of it is used (writable too if it is
        /// given to [`crate::ledger::slots`]). Other processes may change the bytes at any time.
        pub unsafe fn new(base: *const u8, len: usize) -> Result<Self, ViewError> {
            let base = NonNull::new(base.cast_mut()).ok_or(ViewError::Misaligned)?;
            if len < LEDGER_SIZE {
                return Err(ViewError::TooSmall);
            }
            if !base.cast::<u64>().is_aligned() {
                return Err(ViewError::Misaligned);
            }
            let view = Self { base };
            view.check()?;
            Ok(view)
        }

        /// The header.
        #[must_use]
        pub fn header(&self) -> &LedgerHeader {
            // SAFETY: `new` checked size and alignment and its caller promised readability; all fields are atomics.
            unsafe { self.base.cast::<LedgerHeader>().as_ref() }
        }

        /// The path entry at `index`, if the table is that long.
        #[must_use]
        pub fn path_entry(&self, index: usize) -> Option<&PathEntry> {
            if index >= PATH_CAPACITY {
                return None;
            }
            // SAFETY: in bounds by the check above; alignment follows from HEADER_SIZE and PATH_SIZE being multiples of 8.
            Some(unsafe { self.base.add(HEADER_SIZE + index * PATH_SIZE).cast::<PathEntry>().as_ref() })
        }

        /// The slot at `index`, if the table is that long.
        #[must_use]
        pub fn slot(&self, index: usize) -> Option<&Slot> {
            if index >= SLOT_CAPACITY {
                return None;
            }
            // SAFETY: in bounds by the check above; alignment follows from SLOTS_OFFSET and SLOT_SIZE being multiples of 8.
            Some(unsafe { self.base.add(SLOTS_OFFSET + index * SLOT_SIZE).cast::<Slot>().as_ref() })
        }
    }
}

impl LedgerView {
    fn check(&self) -> Result<(), ViewError> {
        let header = self.header();
        if header.magic.load(Acquire) != LEDGER_MAGIC {
            return Err(ViewError::NotALedger);
        }
        match header.version.load(Relaxed) {
            LEDGER_VERSION => Ok(()),
            other => Err(ViewError::OtherVersion(other)),
        }
    }

    /// Selected connections that found no slot: a report that shows the ledger must add them.
    #[must_use]
    pub fn exhausted(&self) -> u64 {
        self.header().exhausted.load(Relaxed)
    }

    /// The name and sums of the path at `index`, if it is ready.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<PathSnapshot> {
        let entry = self.path_entry(index)?;
        if entry.state.load(Acquire) != PATH_READY {
            return None;
        }
        let name_len = (entry.name_len.load(Relaxed) as usize).min(NAME_MAX);
        let mut name = [0; NAME_MAX];
        for (chunk, word) in name.chunks_mut(8).zip(&entry.name) {
            let bytes = word.load(Relaxed).to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(bytes) {
                *to = from;
            }
        }
        let mut reasons = [0; REASON_COUNT];
        for (to, from) in reasons.iter_mut().zip(&entry.reasons) {
            *to = from.load(Relaxed);
        }
        Some(PathSnapshot {
            name,
            name_len,
            selected: entry.selected.load(Relaxed),
            accelerated: entry.accelerated.load(Relaxed),
            reasons,
        })
    }

    /// Every path that is ready, with its index.
    pub fn paths(&self) -> impl Iterator<Item = (usize, PathSnapshot)> + '_ {
        let used = (self.header().paths_used.load(Acquire) as usize).min(PATH_CAPACITY);
        (0..used).filter_map(|index| self.path(index).map(|path| (index, path)))
    }

    /// A consistent copy of one slot, or `None` while it is free, being claimed, or changing hands.
    #[must_use]
    pub fn slot_snapshot(&self, index: usize) -> Option<SlotSnapshot> {
        let slot = self.slot(index)?;
        let generation = slot.generation.load(Acquire);
        let state = slot.state.load(Acquire);
        if state == SLOT_FREE || state == SLOT_CLAIMED {
            return None;
        }
        let snapshot = SlotSnapshot {
            index,
            generation,
            state,
            reason: slot.reason.load(Relaxed),
            role: slot.role.load(Relaxed),
            path: slot.path.load(Relaxed),
            pid: slot.pid.load(Relaxed),
            holders: slot.holder_count(),
            cookie: slot.cookie.load(Relaxed),
            inode: slot.inode.load(Relaxed),
            peer_inode: slot.peer_inode.load(Relaxed),
            kernel_tx_bytes: slot.kernel_tx_bytes.load(Relaxed),
            kernel_tx_calls: slot.kernel_tx_calls.load(Relaxed),
            kernel_rx_bytes: slot.kernel_rx_bytes.load(Relaxed),
            kernel_rx_calls: slot.kernel_rx_calls.load(Relaxed),
            ring_tx_bytes: slot.ring_tx_bytes.load(Relaxed),
            ring_tx_calls: slot.ring_tx_calls.load(Relaxed),
            ring_rx_bytes: slot.ring_rx_bytes.load(Relaxed),
            ring_rx_calls: slot.ring_rx_calls.load(Relaxed),
            doorbell_tx_bytes: slot.doorbell_tx_bytes.load(Relaxed),
            doorbell_rx_bytes: slot.doorbell_rx_bytes.load(Relaxed),
            doorbell_tx_calls: slot.doorbell_tx_calls.load(Relaxed),
            doorbell_rx_calls: slot.doorbell_rx_calls.load(Relaxed),
            sleeps: slot.sleeps.load(Relaxed),
            spin_hits: slot.spin_hits.load(Relaxed),
            ring_full: slot.ring_full.load(Relaxed),
        };
        fence(Acquire);
        (slot.generation.load(Relaxed) == generation).then_some(snapshot)
    }

    /// Every slot in use or lingering after its close.
    pub fn slots(&self) -> impl Iterator<Item = SlotSnapshot> + '_ {
        let used = (self.header().slots_used.load(Acquire) as usize).min(SLOT_CAPACITY);
        (0..used).filter_map(|index| self.slot_snapshot(index))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ledger::slots;

    #[cfg(not(miri))]
    fn ledger() -> LedgerView {
        slots::create().expect("a ledger")
    }

    /// One that is no mapping: Miri knows of none.
    #[cfg(miri)]
    #[allow(unsafe_code, reason = "memory for one")]
    fn ledger() -> LedgerView {
        let layout = std::alloc::Layout::from_size_align(LEDGER_SIZE, 4096).expect("a layout");
        // SAFETY: a size that is not 0. It is never given back.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        // SAFETY: aligned memory of a ledger's size, whose fields may be zero.
        let header = unsafe { &*memory.cast::<LedgerHeader>() };
        header.version.store(LEDGER_VERSION, Relaxed);
        header.magic.store(LEDGER_MAGIC, Relaxed);
        // SAFETY: as above.
        unsafe { LedgerView::new(memory, LEDGER_SIZE) }.expect("a ledger")
    }

    /// A page of statistics that a program under the tracer may have written: whatever its bytes are, reading it ends and stays in bounds.
    #[test]
    #[allow(unsafe_code, reason = "a page of any bytes")]
    fn a_page_of_any_bytes_is_read_and_bounded() {
        let honest = ledger();
        let path = slots::path_index(&honest, b"/run/x").expect("room");
        for role in 0..8 {
            let _slot = slots::claim(&honest, path, role, 1).expect("room");
        }
        // SAFETY: a mapping of that size, which nobody writes meanwhile.
        let pages = unsafe { core::slice::from_raw_parts(honest.base.as_ptr(), LEDGER_SIZE) };
        let parts = [0..HEADER_SIZE + 2 * PATH_SIZE, SLOTS_OFFSET..SLOTS_OFFSET + 9 * SLOT_SIZE];
        for part in parts {
            crate::mutations::each(&pages[part.clone()], 300, |bytes| {
                let mut words = vec![0_u64; LEDGER_SIZE / 8];
                // SAFETY: the vector's own memory.
                let copy = unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), LEDGER_SIZE) };
                copy[..HEADER_SIZE + 2 * PATH_SIZE].copy_from_slice(&pages[..HEADER_SIZE + 2 * PATH_SIZE]);
                let count = bytes.len().min(part.len());
                copy[part.start..part.start + count].copy_from_slice(&bytes[..count]);
                // SAFETY: aligned memory of that size, which lives longer than the view.
                let Ok(view) = (unsafe { LedgerView::new(words.as_ptr().cast(), LEDGER_SIZE) }) else { return };
                assert!(view.slots().count() <= SLOT_CAPACITY);
                assert!(view.paths().all(|(_, path)| path.name().len() <= NAME_MAX));
                let _exhausted = view.exhausted();
            });
        }
    }
}
