//! Processes that are two at their end.
#![allow(unsafe_code, reason = "calls fork(2)")]

use anyhow::Result;
use nix::unistd::{ForkResult, fork};

/// Forks. This program has one thread when it is called, or its other threads only say how it is doing, of which the child says nothing.
pub(crate) fn forked() -> Result<ForkResult> {
    // SAFETY: no other thread holds anything that the child could need: libc readies its allocator itself.
    Ok(unsafe { fork() }?)
}
