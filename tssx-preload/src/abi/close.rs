//! Closing and duplicating descriptors.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_uint};

use tssx_core::sys;

use crate::next;
use crate::process::descriptors;

/// close(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn close(fd: c_int) -> c_int {
    descriptors::close(fd)
}

/// close(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __close(fd: c_int) -> c_int {
    descriptors::close(fd)
}

/// close_range(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    /// The only flag of linux/close_range.h with which something is closed now; what the kernel does not know it refuses.
    const UNSHARE: c_int = 2;
    if first <= last && flags & !UNSHARE == 0 {
        descriptors::close_ours(first, last);
    }
    // SAFETY: no pointers.
    unsafe { next::close_range(first, last, flags) }
}

/// closefrom(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn closefrom(first: c_int) {
    descriptors::close_ours(first.max(0).cast_unsigned(), u32::MAX);
    // SAFETY: no pointers.
    unsafe { next::closefrom(first) };
}

/// dup(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn dup(fd: c_int) -> c_int {
    // SAFETY: no pointers.
    descriptors::duplicate(fd, || sys::dup(fd), || unsafe { next::dup(fd) })
}

/// dup2(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn dup2(fd: c_int, target: c_int) -> c_int {
    // SAFETY: no pointers.
    descriptors::replace(fd, target, 0, || unsafe { next::dup2(fd, target) })
}

/// dup2(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __dup2(fd: c_int, target: c_int) -> c_int {
    // SAFETY: no pointers.
    unsafe { dup2(fd, target) }
}

/// dup3(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn dup3(fd: c_int, target: c_int, flags: c_int) -> c_int {
    // SAFETY: no pointers.
    descriptors::replace(fd, target, flags, || unsafe { next::dup3(fd, target, flags) })
}

/// pidfd_getfd(2): the descriptor may be a copy of one of our own, if the process is ourselves.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pidfd_getfd(pidfd: c_int, fd: c_int, flags: c_uint) -> c_int {
    // SAFETY: no pointers.
    let copy = unsafe { next::pidfd_getfd(pidfd, fd, flags) };
    descriptors::appeared(copy);
    copy
}

/// login_tty(3): libc replaces 0, 1 and 2 by itself.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn login_tty(fd: c_int) -> c_int {
    if fd > 2 {
        descriptors::close_ours(0, 2);
    }
    // SAFETY: no pointers.
    unsafe { next::login_tty(fd) }
}

same_signature! {
    close: unsafe extern "C" fn(c_int) -> c_int;
    close_range: unsafe extern "C" fn(c_uint, c_uint, c_int) -> c_int;
    dup: unsafe extern "C" fn(c_int) -> c_int;
    dup2: unsafe extern "C" fn(c_int, c_int) -> c_int;
    dup3: unsafe extern "C" fn(c_int, c_int, c_int) -> c_int;
}
