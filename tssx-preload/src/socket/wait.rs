//! Waiting for the peer: spin while it pays, then sleep in the kernel.
//!
//! How long spinning pays is learned per connection: a spin that finds what it waited for restores the full budget, one that
//! does not halves it, down to none; after that a full spin is tried now and then, in case the peer has become fast.
//! Two programs that share one CPU thus stop spinning after a few messages, and a connection that is idle most of the
//! time spends microseconds, not milliseconds. With one usable CPU nobody ever spins.

#![allow(unsafe_code, reason = "calls libc's own blocking functions")]

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::clock;

use crate::errno::{self, Result};
use crate::{init, next};

/// Waits without a spin before one is tried again.
const SKIPS: u32 = 256;
/// Halvings after which no spin is made.
const HALVINGS_MAX: u32 = 5;
/// Looks between two readings of the clock.
const LOOKS: u32 = 32;

/// What a connection has learned. Zero is the start: the full budget.
#[derive(Debug, Default)]
pub(crate) struct SpinBudget {
    /// Spins in vain in a row: the budget is the full one halved that often.
    halvings: AtomicU32,
    /// Waits that were not spun.
    skipped: AtomicU32,
}

impl SpinBudget {
    pub(crate) const fn new() -> Self {
        Self { halvings: AtomicU32::new(0), skipped: AtomicU32::new(0) }
    }

    pub(crate) fn reset(&self) {
        self.halvings.store(0, Relaxed);
        self.skipped.store(0, Relaxed);
    }

    /// Spins until `ready` says so. False when the budget is used up, at once if there is none.
    pub(crate) fn spin(&self, mut ready: impl FnMut() -> bool) -> bool {
        let most = init::spin_us();
        let halvings = self.halvings.load(Relaxed);
        if most == 0 {
            return false;
        }
        let mut budget = most.saturating_mul(clock::ticks_per_us()) >> halvings.min(HALVINGS_MAX);
        if halvings >= HALVINGS_MAX {
            if self.skipped.fetch_add(1, Relaxed) + 1 < SKIPS {
                return false;
            }
            self.skipped.store(0, Relaxed);
            budget = most.saturating_mul(clock::ticks_per_us());
        }
        let start = clock::ticks();
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    self.halvings.store(0, Relaxed);
                    return true;
                }
                core::hint::spin_loop();
            }
            if clock::ticks().wrapping_sub(start) > budget {
                self.halvings.store((halvings + 1).min(HALVINGS_MAX), Relaxed);
                return false;
            }
        }
    }
}

/// Blocks in libc's `recv` until the kernel socket has a byte, its end, an error, a signal or a time-out. With `peek` the byte
/// stays. The byte taken otherwise is returned with the count.
pub(crate) fn receive_one(fd: c_int, peek: bool) -> (Result<usize>, u8) {
    let mut byte = 0_u8;
    let flags = if peek { libc::MSG_PEEK } else { 0 };
    // SAFETY: one byte into a local.
    let received = unsafe { next::recv(fd, (&raw mut byte).cast(), 1, flags) };
    (errno::from_bytes(received), byte)
}

/// Blocks in libc's `send` of one junk byte until the kernel socket takes it, which it does when the consumer has made room.
pub(crate) fn send_one(fd: c_int, flags: c_int) -> Result<usize> {
    let byte = 0_u8;
    // SAFETY: one byte from a local.
    errno::from_bytes(unsafe { next::send(fd, (&raw const byte).cast(), 1, flags & libc::MSG_NOSIGNAL) })
}
