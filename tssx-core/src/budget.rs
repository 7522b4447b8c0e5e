//! How much memory the segments of one process may come to: each counts with all that it may ever touch, from the moment it is mapped until it
//! is unmapped. A connection for which nothing is left stays on the kernel socket, with [`crate::reason::Reason::NoMemory`].
//!
//! A forked child has its parent's mappings and its parent's count, each from then on its own.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

static MOST: AtomicU64 = AtomicU64::new(u64::MAX);
static MAPPED: AtomicU64 = AtomicU64::new(0);

/// Sets the bound, bytes. What is mapped already stays.
pub fn limit(most: u64) {
    MOST.store(most, Relaxed);
}

/// Counts `bytes` more if the bound allows them. Threads that come at the same moment do not pass it together.
pub(crate) fn claim(bytes: u64) -> bool {
    let most = MOST.load(Relaxed);
    MAPPED.fetch_update(Relaxed, Relaxed, |mapped| mapped.checked_add(bytes).filter(|sum| *sum <= most)).is_ok()
}

/// Counts `bytes` more whatever the bound: for bytes of the program that must go somewhere.
pub(crate) fn claim_regardless(bytes: u64) -> bool {
    MAPPED.fetch_add(bytes, Relaxed);
    true
}

/// `bytes` that were claimed are not mapped (any more).
pub(crate) fn give_back(bytes: u64) {
    MAPPED.fetch_sub(bytes, Relaxed);
}
