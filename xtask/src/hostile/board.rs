//! What victim and attacker know of each other besides the connection: memory that both map, through which neither waits.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::memory::Memory;

/// Bytes: one page.
const LENGTH: usize = 4096;
const CALLS: usize = 0;
const CALL_WAITS: usize = 8;
const LEAVING: usize = 16;

/// The board.
#[derive(Debug)]
pub(super) struct Board {
    memory: Memory,
    /// Kept open by whoever made it.
    file: File,
}

impl Board {
    pub(super) fn create() -> Result<Self> {
        let file = File::from(memfd_create(c"hostile-board", MFdFlags::MFD_CLOEXEC).context("cannot make a memfd")?);
        file.set_len(LENGTH as u64)?;
        Ok(Self { memory: Memory::map(&file, LENGTH)?, file })
    }

    /// How another process of the same user finds it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(super) fn open(path: &str) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("cannot open {path}"))?;
        Ok(Self { memory: Memory::map(&file, LENGTH)?, file })
    }

    fn get(&self, offset: usize) -> u64 {
        self.memory.load(offset, 8)
    }

    fn set(&self, offset: usize, value: u64) {
        self.memory.store(offset, 8, value);
    }

    /// The victim begins a call, which may wait for its peer or not.
    pub(super) fn begin(&self, waits: bool) {
        self.set(CALL_WAITS, u64::from(waits));
        self.memory.word(CALLS).into_iter().for_each(|calls| {
            calls.fetch_add(1, SeqCst);
        });
    }

    /// Calls begun so far.
    pub(super) fn calls(&self) -> u64 {
        self.get(CALLS)
    }

    /// Whether the call that goes on may wait.
    pub(super) fn waits(&self) -> bool {
        self.get(CALL_WAITS) != 0
    }

    /// The attacker is about to close, or is not.
    pub(super) fn set_leaving(&self, leaving: bool) {
        self.set(LEAVING, u64::from(leaving));
    }

    pub(super) fn leaving(&self) -> bool {
        self.get(LEAVING) != 0
    }
}
