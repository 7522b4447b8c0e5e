//! Where shared protocol state gets its atomics and fences, and where the protocol meets the kernel.
//!
//! The protocol modules name neither `core::sync::atomic`'s types nor [`crate::sys`] themselves, so that with
//! `--cfg loom` the very same functions run on modelled atomics and a modelled socket (`models/`), in every
//! interleaving that is allowed. In every other build the names below are the real things, at no cost. With `--cfg tsan` nothing is written in
//! assembly, which ThreadSanitizer does not see.

#![allow(unsafe_code, reason = "one instruction that the language has no name for")]

#[cfg(not(loom))]
mod real {
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, fence};

    pub(crate) use crate::sys as kernel;
}

#[cfg(not(loom))]
pub(crate) use real::{AtomicU32, AtomicU64, fence, kernel, spin_loop};

#[cfg(loom)]
pub(crate) use crate::models::{
    atomics::{AtomicU32, AtomicU64, fence, spin_loop},
    kernel,
};

/// Moves a position from `from` to `to`, if it is still at `from`: false if a signal handler of this very thread has moved it.
/// Release. Whoever holds the direction's lock is the only thread that moves it.
#[inline]
#[must_use]
pub(crate) fn advance(position: &AtomicU64, from: u64, to: u64) -> bool {
    #[cfg(all(not(any(loom, tsan)), target_arch = "x86_64"))]
    {
        let found: u64;
        // SAFETY: an aligned, live 64-bit cell. Without the lock prefix the instruction is one step for signal handlers, which
        // is all that is asked for, and a plain store for other CPUs: Release on x86-64 (Intel SDM vol. 3, 10.2.2). The block
        // may touch memory as far as the compiler knows, so what was written before stays before.
        unsafe {
            core::arch::asm!(
                "cmpxchg qword ptr [{cell}], {to}",
                cell = in(reg) position.as_ptr(),
                to = in(reg) to,
                inlateout("rax") from => found,
                options(nostack)
            );
        }
        found == from
    }
    #[cfg(not(all(not(any(loom, tsan)), target_arch = "x86_64")))]
    {
        use core::sync::atomic::Ordering::{Relaxed, Release};
        position.compare_exchange(from, to, Release, Relaxed).is_ok()
    }
}

/// Adds to a counter that only the holder of a lock changes, and signal handlers of the same thread.
#[inline]
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    #[cfg(all(not(any(loom, tsan)), target_arch = "x86_64"))]
    // SAFETY: an aligned, live 64-bit cell. Without the lock prefix the instruction is one step for signal handlers, which is all that is asked
    // for, and no fence, which the data path would pay for.
    unsafe {
        core::arch::asm!("add qword ptr [{cell}], {value}", cell = in(reg) counter.as_ptr(), value = in(reg) value, options(nostack));
    }
    #[cfg(not(all(not(any(loom, tsan)), target_arch = "x86_64")))]
    counter.fetch_add(value, core::sync::atomic::Ordering::Relaxed);
}
