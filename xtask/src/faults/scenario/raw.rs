//! What has no safe wrapper.
#![allow(unsafe_code, reason = "calls fork(2), sigaction(2) and ioctl(2), and takes ownership of descriptors that are numbers")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, fork};

nix::ioctl_read_bad!(queued_bytes, libc::FIONREAD, libc::c_int);
nix::ioctl_read_bad!(unsent_bytes, libc::TIOCOUTQ, libc::c_int);

/// Forks. These programs have one thread when they do.
pub(super) fn forked() -> nix::Result<ForkResult> {
    // SAFETY: no other thread holds anything that the child could need.
    unsafe { fork() }
}

/// Takes a descriptor that was just made or inherited.
pub(super) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: accept(2), SCM_RIGHTS or the command line has just given it to us, and to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// FIONREAD.
pub(super) fn queued(fd: &OwnedFd) -> nix::Result<usize> {
    let mut count = 0;
    // SAFETY: the kernel writes one `int`.
    unsafe { queued_bytes(fd.as_raw_fd(), &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// SIOCOUTQ.
pub(super) fn unsent(fd: &OwnedFd) -> nix::Result<usize> {
    let mut count = 0;
    // SAFETY: the kernel writes one `int`.
    unsafe { unsent_bytes(fd.as_raw_fd(), &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// read(2) into the page at address 0, where nothing is.
pub(super) fn read_nowhere(fd: &OwnedFd) -> nix::Result<isize> {
    // SAFETY: the kernel answers EFAULT; so must whoever answers in its place.
    nix::errno::Errno::result(unsafe { libc::read(fd.as_raw_fd(), std::ptr::without_provenance_mut(64), 16) })
}

extern "C" fn nothing(_: libc::c_int) {}

/// SIGUSR1 interrupts what is blocked.
pub(super) fn interrupt_by_signal() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.map(drop)
}
