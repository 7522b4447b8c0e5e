//! errno and the C return value, in one place.

#![allow(unsafe_code, reason = "errno is a thread-local of libc's, reached by pointer")]

use core::ffi::c_int;

pub(crate) use tssx_core::sys::Errno;

/// What an operation on a descriptor brought: a count (or descriptor, or 0), or an error number.
pub(crate) type Result<T> = core::result::Result<T, Errno>;

/// The calling thread's errno.
pub(crate) fn get() -> Errno {
    // SAFETY: libc returns the address of the calling thread's errno.
    Errno(unsafe { *libc::__errno_location() })
}

/// Sets the calling thread's errno.
pub(crate) fn set(errno: Errno) {
    // SAFETY: as in `get`.
    unsafe { *libc::__errno_location() = errno.0 };
}

/// A byte count as `ssize_t`; an error as -1 and errno.
pub(crate) fn bytes(result: Result<usize>) -> isize {
    match result {
        Ok(count) => isize::try_from(count).unwrap_or(isize::MAX),
        Err(errno) => {
            set(errno);
            -1
        }
    }
}

/// A small result as `int`; an error as -1 and errno.
pub(crate) fn int(result: Result<c_int>) -> c_int {
    match result {
        Ok(value) => value,
        Err(errno) => {
            set(errno);
            -1
        }
    }
}

/// What a libc function returned, as a [`Result`]: errno is read only after a failure.
pub(crate) fn from_bytes(returned: isize) -> Result<usize> {
    usize::try_from(returned).map_err(|_| get())
}

/// What a libc function returned, as a [`Result`].
pub(crate) fn from_int(returned: c_int) -> Result<c_int> {
    if returned < 0 { Err(get()) } else { Ok(returned) }
}
