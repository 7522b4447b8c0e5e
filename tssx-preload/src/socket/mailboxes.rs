//! How many mailboxes a process keeps open: a small part of the descriptors that it may have, and none for long if others need the place.
//! A server that a thousand peers talk to in turn has a thousand connections to upgrade at the same time.
//!
//! A peer without the library may fall silent just when our mailbox is open, and no operation of ours comes to close it. So a
//! mailbox that has been open for a while gives way to a new one; one that was opened just now does not.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicU64};

use tssx_core::{clock, sys};

use super::establish::close_mailbox;
use crate::fd_table::{self, Entry};
use crate::process::held::{self, Kind};

/// Places.
const MAX: usize = 1024;
/// Places that are used however few descriptors the process may have.
const MIN: usize = 64;
/// Which part of the descriptors that the process may have mailboxes may be.
const SHARE: u64 = 8;
/// How long a mailbox keeps its place for certain, microseconds: much longer than a peer that is busy takes to come.
const KEEP_US: u64 = 50_000;

struct Place {
    /// Descriptor plus one; 0 = never used.
    mailbox: AtomicI32,
    /// When it was opened, ticks.
    since: AtomicU64,
}

static PLACES: [Place; MAX] = [const { Place { mailbox: AtomicI32::new(0), since: AtomicU64::new(0) } }; MAX];
static LOCK: AtomicU64 = AtomicU64::new(0);
/// 0, or until when all places are sure to be taken unless one is left, ticks.
static FULL_UNTIL: AtomicU64 = AtomicU64::new(0);

/// Whether a mailbox that is opened now may find a place: asked before it is opened.
pub(super) fn may_have_place() -> bool {
    let until = FULL_UNTIL.load(Relaxed);
    until == 0 || clock::ticks() > until
}

/// A mailbox was closed.
pub(super) fn left() {
    FULL_UNTIL.store(0, Relaxed);
}

fn places() -> &'static [Place] {
    let most = sys::limit(libc::RLIMIT_NOFILE).map_or(0, |limit| usize::try_from(limit / SHARE).unwrap_or(MAX));
    PLACES.get(..most.clamp(MIN, MAX)).unwrap_or(&PLACES)
}

/// Finds a place for a mailbox that was just opened; false if there is none.
pub(super) fn enter(mailbox: c_int) -> bool {
    let now = clock::ticks();
    let guard = held::acquire(&LOCK, Kind::Other);
    if guard.is_nested() {
        return false; // a signal handler, and the places are in somebody's hands
    }
    let is_open =
        |place: &&Place| owner_of(place.mailbox.load(Relaxed) - 1).is_some_and(|_| place.mailbox.load(Relaxed) - 1 != mailbox);
    let places = places();
    let free = places.iter().find(|place| !is_open(place));
    let place = free.or_else(|| places.iter().min_by_key(|place| place.since.load(Relaxed)));
    let Some(place) = place else { return false };
    if free.is_none() {
        let until = place.since.load(Relaxed).wrapping_add(KEEP_US * clock::ticks_per_us());
        if now < until {
            FULL_UNTIL.store(until, Relaxed);
            return false;
        }
        let oldest = place.mailbox.load(Relaxed) - 1;
        // An offer that nobody takes would leave the peer with a segment alone: its owner's next operation takes it.
        if sys::poll_now(oldest, libc::POLLIN) != Ok(0) {
            place.since.store(now, Relaxed);
            return false;
        }
        if let Some(owner) = owner_of(oldest)
            && owner.schedule.forget_mailbox() == Some(oldest)
        {
            close_mailbox(oldest, owner);
        }
    }
    place.mailbox.store(mailbox + 1, Relaxed);
    place.since.store(now, Relaxed);
    true
}

fn owner_of(mailbox: c_int) -> Option<&'static crate::endpoint::Endpoint> {
    match fd_table::get(mailbox) {
        Some(Entry::Mailbox(owner)) => Some(owner),
        _ => None,
    }
}

/// In a forked child: whoever held the lock does not exist here, and the mailboxes are the parent's.
pub(crate) fn after_fork_in_child() {
    LOCK.store(0, Relaxed);
    left();
    PLACES.iter().for_each(|place| place.mailbox.store(0, Relaxed));
}
