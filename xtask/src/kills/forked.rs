//! A victim that is one of two processes at its end.
#![allow(unsafe_code, reason = "calls fork(2)")]

use anyhow::Result;
use nix::unistd::{ForkResult, fork};

/// Forks. This program has one thread when it is called.
pub(super) fn forked() -> Result<ForkResult> {
    // SAFETY: no other thread holds anything that the child could need.
    Ok(unsafe { fork() }?)
}
