//! Memory of our own: straight from mmap, never through the program's allocator (which may be inside a call, or ours to be
//! called from), and never given back, so that an address once handed out stays readable.

#![allow(unsafe_code, reason = "hands out zeroed mappings as objects")]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64};

use tssx_core::sys;

use crate::process::held::{self, Kind};

/// Types for which all-zero bytes are a valid start, and whose fields are atomics, so that shared references suffice.
///
/// # Safety
/// Implement it only for such types.
pub(crate) unsafe trait ZeroInit: Sync + 'static {}

/// A fresh, zeroed `T` that lives for ever; `None` when the kernel has no memory.
pub(crate) fn allocate<T: ZeroInit>() -> Option<&'static T> {
    allocate_many::<T>(1).map(|first| {
        // SAFETY: a zeroed, page-aligned, never unmapped mapping that is large enough; `ZeroInit` makes zero valid.
        unsafe { &*first }
    })
}

fn allocate_many<T: ZeroInit>(count: usize) -> Option<*const T> {
    let size = size_of::<T>().checked_mul(count)?;
    Some(sys::map(-1, size).ok()?.cast::<T>().cast_const())
}

/// Objects of one type that are used, given back and used again, and never unmapped: a stale pointer to one still
/// leads to one. A lock keeps the free list; it is never taken on a data path.
pub(crate) struct Pool<T> {
    lock: AtomicU64,
    free: AtomicPtr<T>,
}

/// What a pooled type provides: a link for the free list.
pub(crate) trait Pooled: ZeroInit {
    /// The link, meaningful only while the object is free.
    fn link(&self) -> &AtomicPtr<Self>
    where
        Self: Sized;
}

/// Objects mapped at once when the pool is empty.
const BATCH: usize = 64;

impl<T: Pooled> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self { lock: AtomicU64::new(0), free: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// An object, used or new; its content is what its last user left.
    pub(crate) fn take(&'static self) -> Option<&'static T> {
        let guard = held::acquire(&self.lock, Kind::Other);
        if guard.is_nested() {
            return None; // a signal handler, and the list is in somebody's hands
        }
        if self.free.load(Relaxed).is_null() {
            self.grow()?;
        }
        let first = self.free.load(Acquire);
        // SAFETY: the list holds only objects of our batches, which are never unmapped.
        let object = unsafe { first.as_ref()? };
        self.free.store(object.link().load(Relaxed), Release);
        Some(object)
    }

    /// Gives an object back.
    pub(crate) fn give(&'static self, object: &'static T) {
        let guard = held::acquire(&self.lock, Kind::Other);
        // In a signal handler, with the list in somebody's hands: one object less.
        if !guard.is_nested() {
            self.push(object);
        }
    }

    /// In a forked child: whoever held the lock does not exist here.
    pub(crate) fn after_fork_in_child(&self) {
        self.lock.store(0, Release);
    }

    fn push(&self, object: &'static T) {
        object.link().store(self.free.load(Relaxed), Relaxed);
        self.free.store(core::ptr::from_ref(object).cast_mut(), Release);
    }

    fn grow(&self) -> Option<()> {
        let first = allocate_many::<T>(BATCH)?;
        for index in 0..BATCH {
            // SAFETY: inside the batch just mapped; zero is valid.
            self.push(unsafe { &*first.add(index) });
        }
        Some(())
    }
}
