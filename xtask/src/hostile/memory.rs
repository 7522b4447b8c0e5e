//! Memory that somebody else reads and writes at the same time: the segment of a connection, from the attacker's side, and the board.

#![allow(unsafe_code, reason = "maps shared memory and reaches its words")]

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping. Words outside it read as zero, and are not written.
#[derive(Debug)]
pub(super) struct Memory {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: every access is atomic, and the mapping lives as long as the value.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the first `length` bytes of `file`.
    ///
    /// # Errors
    /// As mmap(2).
    pub(super) fn map(file: impl AsFd, length: usize) -> Result<Self> {
        let size = length.try_into().context("a mapping of nothing")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, 0) }.context("cannot map shared memory")?;
        Ok(Self { base: base.cast(), length })
    }

    /// Its size, bytes.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    fn place<T>(&self, offset: usize) -> Option<&T> {
        let end = offset.checked_add(size_of::<T>())?;
        // SAFETY: inside the mapping, whose offsets are aligned as the addresses are (it begins at a page); callers are below and ask for atomics.
        (end <= self.length && offset.is_multiple_of(align_of::<T>()))
            .then(|| unsafe { self.base.add(offset).cast::<T>().as_ref() })
    }

    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        self.place(offset)
    }

    pub(super) fn half(&self, offset: usize) -> Option<&AtomicU32> {
        self.place(offset)
    }

    /// The number of `size` (4 or 8) bytes at `offset`.
    pub(super) fn load(&self, offset: usize, size: usize) -> u64 {
        if size == 4 {
            self.half(offset).map_or(0, |half| u64::from(half.load(SeqCst)))
        } else {
            self.word(offset).map_or(0, |word| word.load(SeqCst))
        }
    }

    /// Stores the low `size` (4 or 8) bytes of `value`.
    pub(super) fn store(&self, offset: usize, size: usize, value: u64) {
        if size == 4 {
            self.half(offset).into_iter().for_each(|half| half.store(value as u32, SeqCst));
        } else {
            self.word(offset).into_iter().for_each(|word| word.store(value, SeqCst));
        }
    }

    pub(super) fn load_byte(&self, offset: usize) -> u8 {
        self.place::<AtomicU8>(offset).map_or(0, |byte| byte.load(Relaxed))
    }

    /// Stores one byte.
    pub(super) fn store_byte(&self, offset: usize, value: u8) {
        self.place::<AtomicU8>(offset).into_iter().for_each(|byte| byte.store(value, Relaxed));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no reference outlives it.
        let _ = unsafe { munmap(self.base.cast(), self.length) };
    }
}
