//! Copies between private memory and memory that another process may write at the same time.
//!
//! Rust's own copies assume that nobody else writes the source while they run. These go through a function pointer
//! that the compiler cannot see through, to libc's `memcpy`: foreign code, for which a torn byte is just a byte. A
//! peer that writes under our hands can make the *data* wrong, which a socket peer can do anyway, and nothing else.

#![allow(unsafe_code, reason = "copies through raw pointers into shared memory")]

use core::ffi::c_void;

type Memcpy = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;

static MEMCPY: Memcpy = libc::memcpy;

fn memcpy() -> Memcpy {
    // SAFETY: reads a valid static; volatile so that the call cannot be recognised as an ordinary copy.
    unsafe { core::ptr::read_volatile(&raw const MEMCPY) }
}

/// Copies `length` bytes from private memory into a ring.
///
/// # Safety
/// `from` must be readable and `to` writable for `length` bytes, and they must not overlap.
#[inline]
pub(crate) unsafe fn store(to: *mut u8, from: *const u8, length: usize) {
    #[cfg(loom)]
    crate::models::world::written(to, length);
    // SAFETY: the caller's promise is memcpy's precondition.
    unsafe { memcpy()(to.cast(), from.cast(), length) };
}

/// Copies `length` bytes from a ring into private memory.
///
/// # Safety
/// `from` must be readable and `to` writable for `length` bytes, and they must not overlap.
#[inline]
pub(crate) unsafe fn load(to: *mut u8, from: *const u8, length: usize) {
    #[cfg(loom)]
    crate::models::world::read(from, length);
    // SAFETY: the caller's promise is memcpy's precondition.
    unsafe { memcpy()(to.cast(), from.cast(), length) };
}

/// Asks for the cache line at `address` to be made writable here, while other work goes on. A hint: it has no effect that a program can see, and
/// the address need not be mapped.
#[inline]
pub(crate) fn prefetch_for_write(address: *const u8) {
    #[cfg(miri)]
    let _nothing_to_fetch = address;
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch never faults, and a 64-bit CPU without this one does nothing (AMD64 manual vol. 3, PREFETCHW; Intel SDM vol. 2). The
    // language's own is a prefetch for reading where the target is not said to have it.
    unsafe {
        core::arch::asm!("prefetchw [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above (Arm ARM, PRFM).
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
}
