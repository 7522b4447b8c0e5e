//! munmap, mprotect and mremap: what was found out about the program's memory may be wrong afterwards.
//!
//! These go to the kernel without libc, because allocators call them while they start: looking the next function up could
//! call the allocator. libc's own functions of these names do nothing but the system call.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_void};

use libc::size_t;
use tssx_core::sys;

use crate::errno;
use crate::user_memory;

fn answer(result: sys::Result<usize>) -> c_int {
    user_memory::forget_all();
    errno::int(result.map(|_| 0))
}

/// munmap(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munmap(address: *mut c_void, length: size_t) -> c_int {
    // SAFETY: the caller keeps munmap(2)'s contract.
    answer(unsafe { sys::change_mapping(libc::SYS_munmap, [address as usize, length, 0, 0, 0]) })
}

/// mprotect(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mprotect(address: *mut c_void, length: size_t, protection: c_int) -> c_int {
    let protection = protection.cast_unsigned() as usize;
    // SAFETY: the caller keeps mprotect(2)'s contract.
    answer(unsafe { sys::change_mapping(libc::SYS_mprotect, [address as usize, length, protection, 0, 0]) })
}

/// mremap(2). The new address is read by the kernel only where the flags say so; a variadic argument travels as a fixed one.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mremap(
    address: *mut c_void,
    length: size_t,
    new_length: size_t,
    flags: c_int,
    new_address: *mut c_void,
) -> *mut c_void {
    let arguments = [address as usize, length, new_length, flags.cast_unsigned() as usize, new_address as usize];
    // SAFETY: the caller keeps mremap(2)'s contract.
    let result = unsafe { sys::change_mapping(libc::SYS_mremap, arguments) };
    user_memory::forget_all();
    match result {
        Ok(moved) => core::ptr::with_exposed_provenance_mut(moved),
        Err(errno) => {
            errno::set(errno);
            libc::MAP_FAILED
        }
    }
}

same_signature! {
    munmap: unsafe extern "C" fn(*mut c_void, size_t) -> c_int;
    mprotect: unsafe extern "C" fn(*mut c_void, size_t, c_int) -> c_int;
}
