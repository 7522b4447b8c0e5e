//! Who this process is, known also after a fork that no entry point of ours saw: a raw clone, or one inside another library.
//!
//! The id lies in a page that the kernel empties in every child that has memory of its own (madvise(2), MADV_WIPEONFORK, Linux 4.14). A child
//! that shares our memory finds the page as it is, and is told apart by asking the kernel ([`is_borrowed`]).

#![allow(unsafe_code, reason = "follows the pointer to the page, which is never unmapped")]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

use tssx_core::{lock, sys};

use crate::init;

/// Bytes of the page; the kernel's are of this size or a multiple.
const PAGE: usize = 4096;

/// What is remembered; all zero while nothing is.
struct Identity {
    pid: AtomicU32,
    /// The process in the words of its locks.
    owner: AtomicU64,
}

/// Where it is while there is no such page.
static ORDINARY: Identity = Identity { pid: AtomicU32::new(0), owner: AtomicU64::new(0) };
static PLACE: AtomicPtr<Identity> = AtomicPtr::new((&raw const ORDINARY).cast_mut());

#[inline]
fn place() -> &'static Identity {
    // SAFETY: a static, or the start of a mapping that is never unmapped; zero is a valid `Identity`.
    unsafe { &*PLACE.load(Acquire).cast_const() }
}

/// The process's id as it was remembered: 0 before the first question, and in a child that was not seen to be born.
pub(super) fn remembered() -> u32 {
    place().pid.load(Relaxed)
}

/// This process's id, never 0.
#[inline]
pub(crate) fn pid() -> u32 {
    match remembered() {
        0 => {
            ask();
            remembered()
        }
        pid => pid,
    }
}

/// The calling thread as the owner of a lock.
#[inline]
pub(crate) fn owner() -> u64 {
    let process = match place().owner.load(Relaxed) {
        0 => {
            ask();
            place().owner.load(Relaxed)
        }
        process => process,
    };
    lock::owner(0, super::thread_pointer()) | process
}

/// This process's id where relatives read it, 0 where it would say nothing to them.
pub(crate) fn pid_for_relatives() -> u32 {
    if sys::is_stranger() { 0 } else { pid() }
}

#[cold]
fn ask() {
    if core::ptr::eq(place(), &raw const ORDINARY) {
        remember();
    } else {
        super::forked_unseen();
    }
}

/// Asks the kernel who we are: at the start and after a fork.
fn remember() {
    let (place, pid) = (place(), sys::getpid().max(1));
    place.pid.store(pid, Relaxed);
    place.owner.store(lock::owner(pid, 0), Relaxed);
}

/// In a forked child. One that is in another pid namespace than its parent, or than its parent's: its id is no name among its relatives, and
/// may be one of theirs. It gets a number in their ledger. Without a ledger there is nothing yet that it would share.
pub(super) fn remember_in_child() {
    remember();
    let strange = sys::is_stranger() || sys::getppid() == 0;
    if let Some(ledger) = init::ledger_if_made().filter(|_| strange) {
        sys::become_stranger();
        let number = ledger.header().strangers.fetch_add(1, Relaxed) + 1;
        place().owner.store(lock::stranger(u32::try_from(number & 0x3f_ffff).unwrap_or(0), 0), Relaxed);
    }
}

/// The library is to be active here: from now on forks are noticed. Without the page, those that pass an entry point are.
pub(crate) fn start() {
    remember();
    if let Ok(page) = sys::map(-1, PAGE)
        && sys::wipe_on_fork(page as usize, PAGE).is_ok()
    {
        PLACE.store(page.cast(), Release);
        remember();
    }
}

/// Whether this is a child that shares our memory until it becomes another program (vfork(2), clone(2) with CLONE_VM). Its descriptors are
/// its own, and what it does to them is none of the table's business.
pub(crate) fn is_borrowed() -> bool {
    pid() != sys::getpid()
}
