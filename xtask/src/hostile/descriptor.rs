//! Descriptors as the library's own functions take and give them: as numbers.
#![allow(unsafe_code, reason = "takes ownership of numbers")]

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Takes a descriptor that has just been made for us.
pub(super) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what a function has just given them to close.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A copy for a function that closes what it is given; -1 where none can be made.
pub(super) fn into_raw(file: &File) -> RawFd {
    file.try_clone().map_or(-1, IntoRawFd::into_raw_fd)
}
