//! Calls that few programs make on a connection, as [`crate::sys`] has the common ones.
#![allow(unsafe_code, reason = "calls the C functions under test directly; every pointer comes from a live slice or local")]

use std::ffi::CString;
use std::mem::zeroed;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_char, c_int};

use crate::sys::{self, Answer};

unsafe extern "C" {
    // stdio.h; the libc crate does not declare it.
    fn dprintf(fd: c_int, format: *const c_char, ...) -> c_int;
}

fn answer(returned: isize) -> Answer {
    usize::try_from(returned).map_err(|_| sys::name(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)))
}

/// Several messages by one `sendmmsg`; returns how many went.
pub(crate) fn send_messages(fd: i32, messages: &[&[u8]]) -> Answer {
    let mut vectors: Vec<_> =
        messages.iter().map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }).collect();
    let mut headers: Vec<libc::mmsghdr> = vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: mmsghdr is plain data for which zero is valid.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_iov = &raw mut *vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    // SAFETY: every header points to a live vector of a live slice.
    answer(unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, 0) } as isize)
}

/// Up to two messages by one non-blocking `recvmmsg`; returns how many bytes each got.
pub(crate) fn receive_messages(fd: i32, into: &mut [Vec<u8>; 2]) -> Result<Vec<u32>, &'static str> {
    let mut vectors = into.each_mut().map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
    let mut headers = vectors.each_mut().map(|vector| {
        // SAFETY: mmsghdr is plain data for which zero is valid.
        let mut header: libc::mmsghdr = unsafe { zeroed() };
        header.msg_hdr.msg_iov = &raw mut *vector;
        header.msg_hdr.msg_iovlen = 1;
        header
    });
    // SAFETY: every header points to a live vector of a live mutable buffer; a null timeout is allowed.
    let count = answer(unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), 2, libc::MSG_DONTWAIT, std::ptr::null_mut()) } as isize)?;
    Ok(headers.iter().take(count).map(|header| header.msg_len).collect())
}

/// Moves up to `count` bytes between a pipe and a socket.
pub(crate) fn splice(from: i32, to: i32, count: usize) -> Answer {
    // SAFETY: null offsets are allowed for pipes and sockets, see splice(2).
    answer(unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), count, 0) })
}

/// `pwritev2` at the current position.
pub(crate) fn pwritev2(fd: i32, bytes: &[u8]) -> Answer {
    let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one live vector of a live slice.
    answer(unsafe { libc::pwritev2(fd, &raw const vector, 1, -1, 0) })
}

/// `preadv2` at the current position.
pub(crate) fn preadv2(fd: i32, bytes: &mut [u8]) -> Answer {
    let vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: one live vector of a live mutable slice.
    answer(unsafe { libc::preadv2(fd, &raw const vector, 1, -1, 0) })
}

/// `dprintf(fd, "%s %d\n", …)`, which writes from inside libc.
pub(crate) fn print(fd: i32, text: &str, number: c_int) -> Answer {
    let text = CString::new(text).expect("no NUL");
    // SAFETY: the format takes a string and an int, which it gets.
    answer(unsafe { dprintf(fd, c"%s %d\n".as_ptr(), text.as_ptr(), number) } as isize)
}

/// Closes by `syscall`, as libuv does.
pub(crate) fn raw_close(fd: i32) -> Answer {
    // SAFETY: the cases own the descriptors that they close.
    answer(unsafe { libc::syscall(libc::SYS_close, fd) } as isize)
}

/// Replaces this process (a forked child) by `cat` with the connection as its standard input and output.
pub(crate) fn become_cat(fd: i32) {
    assert!(sys::dup2(fd, 0).is_ok() && sys::dup2(fd, 1).is_ok(), "dup2 onto the standard descriptors");
    if fd > 2 {
        assert_eq!(sys::close(fd), Ok(0));
    }
    let error = Command::new("cat").stdin(std::process::Stdio::inherit()).exec();
    panic!("cannot become cat: {error}");
}

/// `dup3`.
pub(crate) fn dup3(fd: i32, onto: i32, flags: c_int) -> Answer {
    // SAFETY: the cases own the descriptor that is replaced.
    answer(unsafe { libc::dup3(fd, onto, flags) } as isize)
}
