//! What a descriptor is ready for at this moment.

use core::ffi::c_int;

use super::patience::patiently;
use super::{Result, call};

/// poll(2) of one descriptor without waiting: its `revents`. A signal that is handled meanwhile does not end it, as it would the kernel's.
/// A filter (seccomp(2)) may know only one of ppoll(2) and poll(2), which ask the same.
///
/// # Errors
/// As the man page, of ppoll(2).
pub fn poll_now(fd: c_int, events: i16) -> Result<i16> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [core::ptr::from_mut(&mut entry) as usize, 1, core::ptr::from_ref(&zero) as usize, 0, 0, 0];
    patiently(|| call(libc::SYS_ppoll, args)).or_else(|refused| by_poll(&mut entry).ok_or(refused))?;
    Ok(entry.revents)
}

/// The same by poll(2); `None` if that says no either.
#[cfg(target_arch = "x86_64")]
#[cold]
fn by_poll(entry: &mut libc::pollfd) -> Option<usize> {
    let args = [core::ptr::from_mut(entry) as usize, 1, 0, 0, 0, 0];
    patiently(|| call(libc::SYS_poll, args)).ok()
}

/// The kernel has no other system call for it: libc's poll(3) is ppoll(2).
#[cfg(not(target_arch = "x86_64"))]
fn by_poll(_entry: &mut libc::pollfd) -> Option<usize> {
    None
}
