//! Memory of our own, and memory that is shared.
//!
//! Built with `--cfg guarded` ([`GUARD`]) everything that is mapped has inaccessible pages before and behind it, so that an access outside ends
//! the process: that is how `cargo xtask hostile` looks for one. No release is built so.

#![allow(unsafe_code, reason = "part of the only door to the kernel")]

use core::ffi::c_int;

use super::{Result, call, fd_arg, flag_arg};

/// Bytes that nobody may touch, on both sides of each mapping.
const GUARD: usize = if cfg!(guarded) { 1 << 16 } else { 0 };

/// Maps `length` bytes of `fd` shared and writable, or anonymous private memory for `fd` -1.
///
/// # Errors
/// ENOMEM and the rest of mmap(2).
pub fn map(fd: c_int, length: usize) -> Result<*mut u8> {
    let flags = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE } else { libc::MAP_SHARED };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let address = match GUARD {
        0 => call(libc::SYS_mmap, [0, length, flag_arg(protection), flag_arg(flags), fd_arg(fd), 0])?,
        _ => between_guards(length, protection, flags, fd)?,
    };
    Ok(core::ptr::with_exposed_provenance_mut(address))
}

/// The same in the middle of memory that is reserved first. The end is as near to the guard as pages are.
fn between_guards(length: usize, protection: c_int, flags: c_int, fd: c_int) -> Result<usize> {
    let reserved = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let whole = length + 2 * GUARD;
    let start = call(libc::SYS_mmap, [0, whole, flag_arg(libc::PROT_NONE), flag_arg(reserved), fd_arg(-1), 0])?;
    let fixed = flag_arg(flags | libc::MAP_FIXED);
    call(libc::SYS_mmap, [start + GUARD, length, flag_arg(protection), fixed, fd_arg(fd), 0]).inspect_err(|_| {
        let _ = call(libc::SYS_munmap, [start, whole, 0, 0, 0, 0]);
    })
}

/// munmap(2) of what [`map`] returned.
///
/// # Safety
/// Nothing may use the mapping afterwards.
pub unsafe fn unmap(address: *mut u8, length: usize) {
    let _ = call(libc::SYS_munmap, [address as usize - GUARD, length + 2 * GUARD, 0, 0, 0, 0]);
}
