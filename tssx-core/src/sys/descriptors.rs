//! Descriptors that are duplicated for the program.

use core::ffi::c_int;

use super::{Result, call, descriptor, fd_arg, flag_arg};

/// dup(2).
///
/// # Errors
/// As the man page.
#[inline]
pub fn dup(fd: c_int) -> Result<c_int> {
    descriptor(call(libc::SYS_dup, [fd_arg(fd), 0, 0, 0, 0, 0]))
}

/// dup3(2).
///
/// # Errors
/// As the man page.
#[inline]
pub fn dup3(fd: c_int, target: c_int, flags: c_int) -> Result<c_int> {
    descriptor(call(libc::SYS_dup3, [fd_arg(fd), fd_arg(target), flag_arg(flags), 0, 0, 0]))
}
