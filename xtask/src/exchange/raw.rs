//! What has no safe wrapper: `dprintf`, and descriptors that arrive as numbers.
#![allow(unsafe_code, reason = "calls dprintf(3), and takes ownership of received descriptors")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc::{c_char, c_int};

unsafe extern "C" {
    // stdio.h; the libc crate does not declare it.
    fn dprintf(fd: c_int, format: *const c_char, ...) -> c_int;
}

/// Prints four bytes by `dprintf("%c%c%c%c")`; returns how many were printed, negative for an error.
pub(super) fn print(fd: BorrowedFd<'_>, bytes: [u8; 4]) -> c_int {
    let [a, b, c, d] = bytes.map(c_int::from);
    // SAFETY: the format takes four ints, which it gets.
    unsafe { dprintf(fd.as_raw_fd(), c"%c%c%c%c".as_ptr(), a, b, c, d) }
}

/// Takes a descriptor that the kernel, or the last image of this process, has just given us.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: it came out of SCM_RIGHTS or was left to us by exec, so it is open and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
