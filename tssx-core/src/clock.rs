//! A clock that costs a few nanoseconds: the CPU's own counter, for spinning and for "how long since".

#![allow(unsafe_code, reason = "reads the CPU's counter")]

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::sys;

/// Ticks per microsecond, 0 until [`ticks_per_us`] has measured it.
static TICKS_PER_US: AtomicU64 = AtomicU64::new(0);
/// How long the measurement takes, once per process.
const CALIBRATION_NS: u64 = 20_000;

/// The CPU's counter. Invariant and synchronous between CPUs on every machine this runs on; if it is not, spins last a
/// little longer or shorter, and nothing else.
#[inline]
#[must_use]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `rdtsc` is unprivileged unless a process asked for a signal with PR_SET_TSC.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let value: u64;
        // SAFETY: Linux lets user space read the virtual counter.
        unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack)) };
        value
    }
}

/// Ticks per microsecond, measured against CLOCK_MONOTONIC at the first call.
#[must_use]
pub fn ticks_per_us() -> u64 {
    let known = TICKS_PER_US.load(Relaxed);
    if known != 0 {
        return known;
    }
    let (start, started) = (sys::monotonic_ns(), ticks());
    let mut elapsed = 0;
    while elapsed < CALIBRATION_NS {
        core::hint::spin_loop();
        elapsed = sys::monotonic_ns().saturating_sub(start);
    }
    let measured = (ticks().wrapping_sub(started).saturating_mul(1000) / elapsed).clamp(1, 100_000);
    TICKS_PER_US.store(measured, Relaxed);
    measured
}
