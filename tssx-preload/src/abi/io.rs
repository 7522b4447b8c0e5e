//! read, write, readv, writev and their fortified and flagged variants.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_void};

use libc::{iovec, off_t, size_t, ssize_t};

use crate::errno::{self, Errno};
use crate::socket::{receive, send};
use crate::user_buf::{Parts, single};
use crate::{fd_table, next};

/// The C promise about the caller's memory, for a receive into one buffer.
///
/// # Safety
/// As recv(2).
#[inline(never)]
pub(super) unsafe fn receive_into(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    flags: c_int,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    let parts = single(buffer, count);
    errno::bytes(Parts::new(&parts).and_then(|parts| receive::receive(fd, &parts, flags, core::ptr::null_mut(), plain)))
}

/// The same for a send from one buffer.
///
/// # Safety
/// As send(2).
#[inline(never)]
pub(super) unsafe fn send_from(
    fd: c_int,
    buffer: *const c_void,
    count: size_t,
    flags: c_int,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    let parts = single(buffer, count);
    errno::bytes(Parts::new(&parts).and_then(|parts| send::send(fd, &parts, flags, plain)))
}

look_first! {
    /// read(2).
    read or read_ours(fd: c_int, buffer: *mut c_void, count: size_t) -> ssize_t;
    /// write(2).
    write or write_ours(fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t;
    /// readv(2).
    readv or readv_ours(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    /// writev(2).
    writev or writev_ours(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
}

/// read(2) on a descriptor that has an entry.
#[inline(never)]
unsafe fn read_ours(fd: c_int, buffer: *mut c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller keeps read(2)'s contract.
    let plain = || unsafe { next::read(fd, buffer, count) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    unsafe { receive_into(fd, buffer, count, 0, plain) }
}

/// write(2), likewise.
#[inline(never)]
unsafe fn write_ours(fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller keeps write(2)'s contract.
    let plain = || unsafe { next::write(fd, buffer, count) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    unsafe { send_from(fd, buffer, count, 0, plain) }
}

/// readv(2), likewise.
#[inline(never)]
unsafe fn readv_ours(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller keeps readv(2)'s contract.
    let plain = || unsafe { next::readv(fd, parts, count) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    unsafe { read_parts(fd, parts, count, 0, plain) }
}

/// writev(2), likewise.
#[inline(never)]
unsafe fn writev_ours(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller keeps writev(2)'s contract.
    let plain = || unsafe { next::writev(fd, parts, count) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    unsafe { write_parts(fd, parts, count, 0, plain) }
}

#[inline(never)]
unsafe fn read_parts(fd: c_int, parts: *const iovec, count: c_int, flags: c_int, plain: impl Fn() -> ssize_t) -> ssize_t {
    let Ok(count) = usize::try_from(count) else { return errno::bytes(Err(Errno(libc::EINVAL))) };
    // SAFETY: the caller's.
    let parts = unsafe { Parts::from_raw(parts, count) };
    errno::bytes(parts.and_then(|parts| receive::receive(fd, &parts, flags, core::ptr::null_mut(), plain)))
}

#[inline(never)]
unsafe fn write_parts(fd: c_int, parts: *const iovec, count: c_int, flags: c_int, plain: impl Fn() -> ssize_t) -> ssize_t {
    let Ok(count) = usize::try_from(count) else { return errno::bytes(Err(Errno(libc::EINVAL))) };
    // SAFETY: the caller's.
    let parts = unsafe { Parts::from_raw(parts, count) };
    errno::bytes(parts.and_then(|parts| send::send(fd, &parts, flags, plain)))
}

/// RWF_NOWAIT, the only flag of preadv2(2) that means something for a socket.
const NOWAIT: c_int = 8;
/// RWF_APPEND and RWF_NOAPPEND, of which the kernel takes one.
const APPEND: c_int = 0x30;
/// These, RWF_HIPRI, RWF_DSYNC and RWF_SYNC the kernel takes for a socket and does nothing about; others it refuses
/// (linux/fs.h, `kiocb_set_rw_flags`).
const IGNORED: c_int = 7 | APPEND;

/// Whether the call is a plain readv or writev, and its flags for recv or send.
fn as_vector_call(offset: off_t, flags: c_int) -> Option<c_int> {
    let taken = offset == -1 && flags & !(NOWAIT | IGNORED) == 0 && flags & APPEND != APPEND;
    taken.then_some(if flags & NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 })
}

/// preadv2(2): at offset -1 it is readv, anything else is ESPIPE for a socket.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn preadv2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps preadv2(2)'s contract.
    let plain = || unsafe { next::preadv2(fd, parts, count, offset, flags) };
    match as_vector_call(offset, flags).filter(|_| fd_table::stream(fd).is_some()) {
        // SAFETY: as above.
        Some(flags) => unsafe { read_parts(fd, parts, count, flags, plain) },
        None => plain(),
    }
}

/// pwritev2(2): at offset -1 it is writev, anything else is ESPIPE for a socket.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pwritev2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps pwritev2(2)'s contract.
    let plain = || unsafe { next::pwritev2(fd, parts, count, offset, flags) };
    match as_vector_call(offset, flags).filter(|_| fd_table::stream(fd).is_some()) {
        // SAFETY: as above.
        Some(flags) => unsafe { write_parts(fd, parts, count, flags, plain) },
        None => plain(),
    }
}

/// preadv2 with 64-bit offsets, which is the same here.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn preadv64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller's.
    unsafe { preadv2(fd, parts, count, offset, flags) }
}

/// pwritev2 with 64-bit offsets, which is the same here.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pwritev64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller's.
    unsafe { pwritev2(fd, parts, count, offset, flags) }
}

/// read(2), as glibc's headers call it when they know the buffer's size.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __read_chk(fd: c_int, buffer: *mut c_void, count: size_t, size: size_t) -> ssize_t {
    // A count beyond the buffer is libc's to abort on.
    if fd_table::stream(fd).is_none() || count > size {
        // SAFETY: the caller's.
        return unsafe { next::__read_chk(fd, buffer, count, size) };
    }
    // SAFETY: the caller's.
    unsafe { read(fd, buffer, count) }
}

/// read(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __read(fd: c_int, buffer: *mut c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller's.
    unsafe { read(fd, buffer, count) }
}

/// write(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __write(fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller's.
    unsafe { write(fd, buffer, count) }
}

same_signature! {
    read: unsafe extern "C" fn(c_int, *mut c_void, size_t) -> ssize_t;
    write: unsafe extern "C" fn(c_int, *const c_void, size_t) -> ssize_t;
    readv: unsafe extern "C" fn(c_int, *const iovec, c_int) -> ssize_t;
    writev: unsafe extern "C" fn(c_int, *const iovec, c_int) -> ssize_t;
    preadv2: unsafe extern "C" fn(c_int, *const iovec, c_int, off_t, c_int) -> ssize_t;
    pwritev2: unsafe extern "C" fn(c_int, *const iovec, c_int, off_t, c_int) -> ssize_t;
}
