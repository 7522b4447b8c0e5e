//! Making a ledger, and claiming and releasing its path entries and slots.
//!
//! Claims are one compare-exchange on a state word, so a process that is killed half-way leaves at most one entry
//! claimed for good, and no lock. A closed slot keeps its final counters for readers until it is claimed again;
//! the cursor goes round so that this takes as long as possible.

#![allow(unsafe_code, reason = "maps the ledger")]

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::layout::{
    LEDGER_MAGIC, LEDGER_SIZE, LEDGER_VERSION, LedgerHeader, MODE_KERNEL, NAME_MAX, PATH_CAPACITY, PATH_FREE, PATH_READY,
    PATH_WRITING, SLOT_CAPACITY, SLOT_CLAIMED, SLOT_CLOSED, SLOT_FREE, SLOT_PLAIN, SLOT_SELECTED, SLOT_UPGRADED, Slot,
};
use super::view::LedgerView;
use super::{MEMFD_NAME, holders};
use crate::lock;
use crate::reason::Reason;
use crate::{sync, sys};

/// Slots kept beyond the live ones before closed slots are used again.
const LINGER_MIN: u32 = 512;

/// From so many open connections on, each claim looks at a few of them: killed processes may have left them so. A few more than one, so that
/// they do not become many where most are left.
const LOOK_FROM: u32 = 256;
const LOOK_AT: u32 = 4;

/// Makes a ledger for this process: a memfd, mapped shared, its descriptor closed again.
///
/// # Errors
/// The error of memfd_create(2), ftruncate(2) or mmap(2); nothing is left behind.
pub fn create() -> sys::Result<LedgerView> {
    let fd = sys::memfd_create(MEMFD_NAME, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)?;
    let mapped = sys::ftruncate(fd, LEDGER_SIZE)
        .and_then(|()| {
            sys::fcntl(
                fd,
                libc::F_ADD_SEALS,
                (libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL).cast_unsigned() as usize,
            )
        })
        .and_then(|_| sys::map(fd, LEDGER_SIZE));
    sys::close(fd);
    let base = mapped?;
    // SAFETY: a fresh mapping of LEDGER_SIZE bytes, page-aligned; the fields are atomics and zero is valid for them.
    let header = unsafe { &*base.cast::<LedgerHeader>() };
    header.version.store(LEDGER_VERSION, Relaxed);
    header.creator_pid.store(sys::getpid(), Relaxed);
    header.magic.store(LEDGER_MAGIC, Release);
    // SAFETY: the mapping is readable and writable for LEDGER_SIZE bytes and is never unmapped.
    unsafe { LedgerView::new(base, LEDGER_SIZE) }.map_err(|_| sys::Errno(libc::EIO))
}

/// The index of the path entry for `name` (as in `sun_path`, a leading NUL for abstract names); made if it is new.
/// `None` when the table is full or the name too long.
#[must_use]
pub fn path_index(ledger: &LedgerView, name: &[u8]) -> Option<u32> {
    if name.len() > NAME_MAX {
        return None;
    }
    for index in 0..PATH_CAPACITY {
        let entry = ledger.path_entry(index)?;
        if entry.state.load(Acquire) == PATH_FREE && entry.state.compare_exchange(PATH_FREE, PATH_WRITING, AcqRel, Acquire).is_ok()
        {
            for (word, chunk) in entry.name.iter().zip(name.chunks(8)) {
                let mut bytes = [0; 8];
                for (to, from) in bytes.iter_mut().zip(chunk) {
                    *to = *from;
                }
                word.store(u64::from_le_bytes(bytes), Relaxed);
            }
            entry.name_len.store(u32::try_from(name.len()).ok()?, Relaxed);
            entry.state.store(PATH_READY, Release);
            let index = u32::try_from(index).ok()?;
            ledger.header().paths_used.fetch_max(index + 1, Release);
            return Some(index);
        }
        // An entry that is being written may become our name: a duplicate entry is harmless, waiting for a dead writer is not.
        if ledger.path(index).is_some_and(|path| path.name() == name) {
            return u32::try_from(index).ok();
        }
    }
    None
}

/// Claims a slot for a connection of path `path` that this process (`pid`) selected; counts it for its path.
/// `None`, and counted, when the ledger is full.
#[must_use]
pub fn claim(ledger: &LedgerView, path: u32, role: u32, pid: u32) -> Option<&Slot> {
    let header = ledger.header();
    let live = header.slots_live.load(Relaxed);
    let span = span(live);
    for _ in 0..span {
        let index = header.claim_cursor.fetch_add(1, Relaxed) % span;
        if live > LOOK_FROM {
            let ahead = (0..LOOK_AT).map(|more| (index.wrapping_mul(LOOK_AT).wrapping_add(more) % span) as usize);
            ahead.filter_map(|index| ledger.slot(index)).for_each(|slot| close_abandoned(ledger, slot, pid));
        }
        let slot = ledger.slot(index as usize)?;
        if try_claim(slot, path, role, pid) {
            header.slots_live.fetch_add(1, Relaxed);
            header.slots_used.fetch_max(index + 1, Release);
            if let Some(entry) = ledger.path_entry(path as usize) {
                entry.selected.fetch_add(1, Relaxed);
            }
            return Some(slot);
        }
    }
    header.exhausted.fetch_add(1, Relaxed);
    None
}

/// Claims this slot, if it is free and nobody is inside its locks. They stay as they are: a call that was on its way to the slot's last
/// connection may take one at any moment ([`crate::reclaim`]), and must not find itself beside another holder.
pub(crate) fn try_claim(slot: &Slot, path: u32, role: u32, pid: u32) -> bool {
    let state = slot.state.load(Acquire);
    let free =
        (state == SLOT_FREE || state == SLOT_CLOSED) && lock::is_free(&slot.tx_lock, pid) && lock::is_free(&slot.rx_lock, pid);
    let claimed = free && slot.state.compare_exchange(state, SLOT_CLAIMED, AcqRel, Relaxed).is_ok();
    if claimed {
        fill(slot, path, role, pid);
    }
    claimed
}

/// How many slots claims go round in while `live` are open. A power of two that seldom changes: with any other span, each
/// connection more or less would move the cursor to another place, and a slot just closed could be claimed next.
fn span(live: u32) -> u32 {
    let wanted = live.saturating_mul(2).saturating_add(LINGER_MIN).saturating_add(1);
    wanted.checked_next_power_of_two().unwrap_or(u32::MAX).min(u32::try_from(SLOT_CAPACITY).unwrap_or(u32::MAX))
}

fn fill(slot: &Slot, path: u32, role: u32, pid: u32) {
    slot.generation.fetch_add(1, AcqRel);
    slot.reason.store(Reason::TooFewOperations as u32, Relaxed);
    slot.role.store(role, Relaxed);
    slot.path.store(path, Relaxed);
    slot.pid.store(pid, Relaxed);
    slot.holders.store(holders::alone(pid), Relaxed);
    for word in [&slot.cookie, &slot.inode, &slot.peer_inode, &slot.recalled_at, &slot.recalled_left] {
        word.store(0, Relaxed);
    }
    let counters = [
        &slot.kernel_tx_bytes,
        &slot.kernel_tx_calls,
        &slot.kernel_rx_bytes,
        &slot.kernel_rx_calls,
        &slot.ring_tx_bytes,
        &slot.ring_tx_calls,
        &slot.ring_rx_bytes,
        &slot.ring_rx_calls,
        &slot.doorbell_tx_bytes,
        &slot.doorbell_rx_bytes,
        &slot.doorbell_tx_calls,
        &slot.doorbell_rx_calls,
        &slot.sleeps,
        &slot.spin_hits,
        &slot.ring_full,
    ];
    for counter in counters {
        counter.store(0, Relaxed);
    }
    let states = [
        &slot.sndbuf,
        &slot.nonblocking,
        &slot.kernel_tx_inflight,
        &slot.kernel_rx_inflight,
        &slot.attempts,
        &slot.rx_waiters,
        &slot.disagreements,
        &slot.reset_reported,
        &slot.tx_limit,
        &slot.tx_shutdown,
        &slot.rx_lowat,
    ];
    for state in states {
        state.store(0, Relaxed);
    }
    slot.tx_mode.store(MODE_KERNEL, Relaxed);
    slot.rx_mode.store(MODE_KERNEL, Relaxed);
    slot.state.store(SLOT_SELECTED, Release);
}

/// Notes that at least one direction of the slot's connection is in a ring; counted once per connection.
pub fn mark_upgraded(ledger: &LedgerView, slot: &Slot) {
    if slot.state.compare_exchange(SLOT_SELECTED, SLOT_UPGRADED, AcqRel, Relaxed).is_ok() {
        slot.reason.store(Reason::None as u32, Relaxed);
        if let Some(entry) = ledger.path_entry(slot.path.load(Relaxed) as usize) {
            entry.accelerated.fetch_add(1, Relaxed);
        }
    }
}

/// Notes why the connection is (from now on) on the kernel socket; the first final reason stays. Returns whether this is it.
pub fn mark_plain(ledger: &LedgerView, slot: &Slot, reason: Reason) -> bool {
    let state = slot.state.load(Acquire);
    let open = state == SLOT_SELECTED || state == SLOT_UPGRADED;
    let first = open && slot.state.compare_exchange(state, SLOT_PLAIN, AcqRel, Relaxed).is_ok();
    if first {
        slot.reason.store(reason as u32, Relaxed);
        count_reason(ledger, slot, reason as u32);
    }
    first
}

/// A process of the family, `pid` for its relatives, lets go of the slot. The last one closes it: a connection that never decided is
/// counted under the reason it had so far. Returns true for the last.
pub fn release(ledger: &LedgerView, slot: &Slot, pid: u32) -> bool {
    let Some(state) = close(slot, pid) else { return false };
    closed(ledger, slot, state);
    true
}

/// One holder fewer. The last one closes the slot, and gets the state that it had.
pub(crate) fn close(slot: &Slot, pid: u32) -> Option<u32> {
    holders::remove(slot, pid).then(|| slot.state.swap(SLOT_CLOSED, AcqRel))
}

fn closed(ledger: &LedgerView, slot: &Slot, state: u32) {
    if state == SLOT_SELECTED {
        count_reason(ledger, slot, slot.reason.load(Relaxed));
    }
    ledger.header().slots_live.fetch_sub(1, Relaxed);
}

/// Closes the slot if whoever held it last was killed, or let go of it as another program. For a process `pid`.
fn close_abandoned(ledger: &LedgerView, slot: &Slot, pid: u32) {
    let open = || matches!(slot.state.load(Acquire), SLOT_SELECTED | SLOT_UPGRADED | SLOT_PLAIN);
    if open() && holders::abandoned(slot, pid) {
        closed(ledger, slot, slot.state.swap(SLOT_CLOSED, AcqRel));
    }
}

fn count_reason(ledger: &LedgerView, slot: &Slot, code: u32) {
    let entry = ledger.path_entry(slot.path.load(Relaxed) as usize);
    if let Some(counter) = entry.and_then(|entry| entry.reasons.get(code as usize)) {
        counter.fetch_add(1, Relaxed);
    }
}

impl Slot {
    /// Sender, under its lock: so many bytes went into the ring.
    #[inline]
    pub fn count_bytes_into_ring(&self, bytes: u64) {
        sync::add(&self.ring_tx_bytes, bytes);
    }

    /// Sender, under its lock: a call of the program has begun so.
    #[inline]
    pub fn count_call_into_ring(&self) {
        sync::add(&self.ring_tx_calls, 1);
    }

    /// Receiver, under its lock: so many bytes came out, `calls` calls of the program have begun so.
    #[inline]
    pub fn count_from_ring(&self, bytes: u64, calls: u64) {
        sync::add(&self.ring_rx_bytes, bytes);
        sync::add(&self.ring_rx_calls, calls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_counted_from_claim_to_close() {
        let ledger = create().expect("ledger");
        let path = path_index(&ledger, b"/run/x").expect("path");
        assert_eq!(path_index(&ledger, b"/run/x"), Some(path));
        assert_ne!(path_index(&ledger, b"/run/y"), Some(path));
        assert_eq!(path_index(&ledger, &[b'z'; NAME_MAX + 1]), None);
        let slot = claim(&ledger, path, 1, 42).expect("slot");
        slot.ring_tx_bytes.store(10, Relaxed);
        mark_upgraded(&ledger, slot);
        mark_upgraded(&ledger, slot);
        assert!(release(&ledger, slot, 42));
        let never = claim(&ledger, path, 1, 42).expect("slot");
        assert!(release(&ledger, never, 42));
        let sums = ledger.path(path as usize).expect("ready");
        assert_eq!((sums.name(), sums.selected, sums.accelerated), (b"/run/x".as_slice(), 2, 1));
        assert_eq!(sums.reasons[Reason::TooFewOperations as usize], 1);
        let closed = ledger.slots().find(|slot| slot.ring_tx_bytes == 10).expect("final counters stay readable");
        assert_eq!((closed.state, closed.pid), (SLOT_CLOSED, 42));
    }

    #[test]
    fn many_short_connections_reuse_slots_but_let_them_linger() {
        let ledger = create().expect("ledger");
        for _ in 0..10_000 {
            let slot = claim(&ledger, 0, 0, 1).expect("slot");
            release(&ledger, slot, 1);
        }
        let used = ledger.header().slots_used.load(Relaxed);
        assert!((LINGER_MIN..=2 * LINGER_MIN).contains(&used), "used {used}");
        assert_eq!(ledger.header().slots_live.load(Relaxed), 0);
    }

    #[test]
    fn a_slot_is_not_claimed_while_its_lock_is_held_but_by_a_process_that_has_ended() {
        let mut child = std::process::Command::new("true").spawn().expect("spawn true");
        child.wait().expect("wait");
        let own = sys::getpid();
        let slot = Slot::default();
        slot.rx_lock.store(lock::owner(own, 64), Relaxed);
        assert!(!try_claim(&slot, 0, 1, own));
        slot.rx_lock.store(lock::owner(child.id(), 64), Relaxed);
        assert!(try_claim(&slot, 0, 1, own));
        assert_eq!(slot.rx_lock.load(Relaxed), 0);
    }

    #[test]
    fn a_closed_slot_lingers_however_many_others_are_open() {
        let ledger = create().expect("ledger");
        let path = path_index(&ledger, b"/lingers").expect("room");
        let closed = claim(&ledger, path, 0, 1).expect("room");
        let generation = closed.generation.load(Relaxed);
        release(&ledger, closed, 1);
        let mut open = Vec::new();
        for _ in 0..LINGER_MIN / 2 {
            open.push(claim(&ledger, path, 0, 1).expect("room"));
            release(&ledger, claim(&ledger, path, 0, 1).expect("room"), 1);
        }
        assert_eq!(closed.generation.load(Relaxed), generation, "used again within {LINGER_MIN} claims");
        for slot in open {
            release(&ledger, slot, 1);
        }
    }

    #[test]
    fn a_full_ledger_says_so() {
        let ledger = create().expect("ledger");
        let slots = (0..SLOT_CAPACITY).filter(|_| claim(&ledger, 0, 0, 1).is_some()).count();
        assert_eq!(slots, SLOT_CAPACITY);
        assert!(claim(&ledger, 0, 0, 1).is_none());
        assert_eq!(ledger.exhausted(), 1);
    }
}
