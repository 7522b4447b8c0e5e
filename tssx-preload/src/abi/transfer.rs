//! sendfile and splice with a selected stream on one side.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_uint};

use libc::{off_t, size_t, ssize_t};
use tssx_core::reason::Reason;

use crate::errno;
use crate::socket::send::{self, Asked};
use crate::socket::transfer;
use crate::{fd_table, next};

/// sendfile(2) to a stream: the kernel carries it. The sending direction leaves the ring first, if it is there.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendfile(out_fd: c_int, in_fd: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    // SAFETY: the caller keeps sendfile(2)'s contract.
    let plain = || unsafe { next::sendfile(out_fd, in_fd, offset, count) };
    if fd_table::stream(out_fd).is_none() {
        return plain();
    }
    errno::bytes(send::send_by_kernel(out_fd, Reason::Splice, true, Asked::at_most(count), plain))
}

/// sendfile(2) as programs with 64-bit file offsets call it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendfile64(out_fd: c_int, in_fd: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    // SAFETY: the caller's.
    unsafe { sendfile(out_fd, in_fd, offset, count) }
}

/// splice(2): to a stream as sendfile; from a stream whose bytes are in a ring, the kernel copies them from there into the pipe.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn splice(
    in_fd: c_int,
    in_offset: *mut off_t,
    out_fd: c_int,
    out_offset: *mut off_t,
    count: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller keeps splice(2)'s contract.
    let plain = || unsafe { next::splice(in_fd, in_offset, out_fd, out_offset, count, flags) };
    if fd_table::stream(out_fd).is_some() {
        let waits = flags & libc::SPLICE_F_NONBLOCK == 0;
        return errno::bytes(send::send_by_kernel(out_fd, Reason::Splice, waits, Asked::at_most(count), plain));
    }
    if fd_table::stream(in_fd).is_none() || !in_offset.is_null() || !out_offset.is_null() || count == 0 {
        return plain(); // an offset for a socket or a pipe is ESPIPE
    }
    errno::bytes(transfer::stream_to_pipe(in_fd, out_fd, count, flags, plain))
}
