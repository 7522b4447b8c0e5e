//! What has no safe wrapper.
#![allow(
    unsafe_code,
    reason = "calls fork(2), sigaction(2), ioctl(2) and stdio, and takes ownership of descriptors that are numbers"
)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
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
    Errno::result(unsafe { libc::read(fd.as_raw_fd(), std::ptr::without_provenance_mut(64), 16) })
}

extern "C" fn nothing(_: libc::c_int) {}

/// SIGUSR1 interrupts what is blocked.
pub(super) fn interrupt_by_signal() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.map(drop)
}

unsafe extern "C" {
    static mut stdin: *mut libc::FILE;
}

/// A stream of libc's that keeps nothing back.
pub(super) struct File {
    file: *mut libc::FILE,
    is_closed: bool,
}

impl File {
    /// fdopen(3); the descriptor is the stream's from then on.
    pub(super) fn over(fd: RawFd, mode: &CStr) -> nix::Result<Self> {
        // SAFETY: a C string; null is looked at.
        let file = unsafe { libc::fdopen(fd, mode.as_ptr()) };
        if file.is_null() {
            return Err(Errno::last());
        }
        // SAFETY: a stream, of which nothing was used yet.
        unsafe { libc::setvbuf(file, std::ptr::null_mut(), libc::_IONBF, 0) };
        Ok(Self { file, is_closed: true })
    }

    /// libc's own for descriptor 0.
    pub(super) fn input() -> Self {
        // SAFETY: one thread, and libc has made it.
        Self { file: unsafe { stdin }, is_closed: false }
    }

    /// fread(3): as many bytes as there is room for, unless the end or an error comes first.
    pub(super) fn read(&self, into: &mut [u8]) -> nix::Result<usize> {
        // SAFETY: a live stream and a live slice.
        let count = unsafe { libc::fread(into.as_mut_ptr().cast(), 1, into.len(), self.file) };
        self.counted(count)
    }

    /// fwrite(3).
    pub(super) fn write(&self, bytes: &[u8]) -> nix::Result<usize> {
        // SAFETY: a live stream and a live slice.
        let count = unsafe { libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), self.file) };
        self.counted(count)
    }

    fn counted(&self, count: usize) -> nix::Result<usize> {
        let errno = Errno::last();
        // SAFETY: a live stream.
        let failed = unsafe { libc::ferror(self.file) != 0 };
        // SAFETY: as above.
        unsafe { libc::clearerr(self.file) };
        if count == 0 && failed { Err(errno) } else { Ok(count) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.is_closed {
            // SAFETY: nobody uses it afterwards.
            unsafe { libc::fclose(self.file) };
        }
    }
}

/// The exit status of a shell's command, by popen(3).
pub(super) fn shell(command: &CStr) -> nix::Result<i32> {
    // SAFETY: C strings; null is looked at.
    let file = unsafe { libc::popen(command.as_ptr(), c"r".as_ptr()) };
    if file.is_null() {
        return Err(Errno::last());
    }
    // SAFETY: popen's, and nobody uses it afterwards.
    Ok(libc::WEXITSTATUS(unsafe { libc::pclose(file) }))
}
