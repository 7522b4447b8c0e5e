//! Who this process is, known also after a fork that no entry point of ours saw: a raw clone, or one inside another library.
//!
//! The id lies in a page that the kernel empties in every child that has memory of its own (madvise(2), MADV_WIPEONFORK, Linux 4.14). A child
//! that shares our memory finds the page as it is, and is told apart by asking the kernel ([`is_borrowed`]).

#![allow(unsafe_code, reason = "follows the pointer to the page, which is never unmapped")]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};

use tssx_core::sys;

/// Bytes of the page; the kernel's are of this size or a multiple.
const PAGE: usize = 4096;

/// Where the id is while there is no such page.
static ORDINARY: AtomicU32 = AtomicU32::new(0);
static PLACE: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const ORDINARY).cast_mut());

#[inline]
fn place() -> &'static AtomicU32 {
    // SAFETY: a static, or the start of a mapping that is never unmapped.
    unsafe { &*PLACE.load(Acquire).cast_const() }
}

/// What was remembered: 0 before the first question, and in a child that was not seen to be born.
pub(super) fn remembered() -> u32 {
    place().load(Relaxed)
}

/// This process's id, never 0.
#[inline]
pub(crate) fn pid() -> u32 {
    match remembered() {
        0 => ask(),
        pid => pid,
    }
}

#[cold]
fn ask() -> u32 {
    if core::ptr::eq(place(), &raw const ORDINARY) {
        remember();
    } else {
        super::forked_unseen();
    }
    remembered()
}

/// Asks the kernel who we are: at the start and after a fork.
pub(super) fn remember() {
    place().store(sys::getpid().max(1), Relaxed);
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
