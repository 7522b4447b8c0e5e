//! Why a `close` that races with a call is harmless: which of an end's objects a call may use, and for how long.
//!
//! A process keeps for each end that it holds an *endpoint*, named by a table of descriptors, and gives it, its slot and its segment back
//! when the end is closed. The next connection may take them at once, and under the same number. Nothing of the kind is ever unmapped but
//! the segment, so what a call reads in passing is a valid object, perhaps of another connection by now:
//!
//! 1. A call finds the endpoint, takes the direction's lock in the slot that the endpoint names, and looks again ([`lock_named`]). If both
//!    still lead to the same, they cannot change hands while the lock is held, because of 2.
//! 2. Whoever closes clears the table *before* it takes both locks, and lets go of them before it gives anything back.
//! 3. A call that lets go of the lock to spin or to sleep is counted first ([`Pins`]). The last to go gives everything back: who closes, or
//!    such a call.
//! 4. A slot is claimed with its locks as they are ([`crate::ledger::slots`]): a late call may hold one, of which it will find out that it
//!    is not what it wanted.
//!
//! `models/closing.rs` checks this, with these functions.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::ledger::layout::Slot;
use crate::sync::{AtomicU32, spin_loop};

/// Locks a direction of the end that `find` names: `slot_of` says where its locks are, none for an endpoint that is being given back; `lock`
/// takes the one. `None` if `find` names nothing (any more).
#[inline]
pub fn lock_named<'a, E, G>(
    find: impl Fn() -> Option<&'a E>,
    slot_of: impl Fn(&'a E) -> Option<&'a Slot>,
    lock: impl Fn(&'a E, &'a Slot) -> G,
) -> Option<(&'a E, &'a Slot, G)> {
    loop {
        let endpoint = find()?;
        let Some(slot) = slot_of(endpoint) else {
            spin_loop(); // another thread closes it: the table says so by now
            continue;
        };
        let guard = lock(endpoint, slot);
        let same = find().is_some_and(|again| core::ptr::eq(again, endpoint));
        if same && slot_of(endpoint).is_some_and(|again| core::ptr::eq(again, slot)) {
            return Some((endpoint, slot, guard));
        }
    }
}

/// Who keeps an endpoint: its descriptors, which count as one, and each call that goes on without a lock.
#[derive(Debug, Default)]
pub struct Pins(AtomicU32);

impl Pins {
    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Only the descriptors: of a new connection, and of a forked child, in which no call goes on.
    pub fn reset(&self) {
        self.0.store(1, Relaxed);
    }

    /// One call more; under a lock of the endpoint.
    #[inline]
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Whether calls go on; for whoever has cleared the table, under both locks: then their number can only fall.
    #[must_use]
    pub fn others(&self) -> bool {
        self.0.load(Acquire) > 1
    }

    /// One fewer. True for the last, who gives the endpoint back; what the others did is seen.
    #[inline]
    #[must_use]
    pub fn remove(&self) -> bool {
        self.0.fetch_sub(1, AcqRel) == 1
    }
}
