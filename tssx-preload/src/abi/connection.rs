//! Making and ending connections, and their options.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_void};

use libc::{sockaddr, socklen_t, timeval};

use crate::errno;
use crate::process::descriptors;
use crate::socket::{establish, options, wait};
use crate::{fd_table, init, next};

/// The bits of socket(2)'s type that are no flags (include/linux/net.h, SOCK_TYPE_MASK).
const KIND: c_int = 0xf;

/// socket(2): a fresh number carries nothing of ours, but perhaps will.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: no pointers.
    let fd = unsafe { next::socket(domain, kind, protocol) };
    descriptors::clear_stale(fd);
    if fd >= 0 && domain == libc::AF_UNIX && kind & KIND == libc::SOCK_STREAM {
        establish::made(fd);
    }
    fd
}

/// socketpair(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int {
    // SAFETY: the caller keeps socketpair(2)'s contract.
    let result = unsafe { next::socketpair(domain, kind, protocol, pair) };
    if result == 0 {
        // SAFETY: the kernel has just written both.
        unsafe {
            descriptors::clear_stale(*pair);
            descriptors::clear_stale(*pair.add(1));
        }
    }
    result
}

/// connect(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller keeps connect(2)'s contract.
    let result = unsafe { next::connect(fd, address, length) };
    if result == 0 && init::active().is_some() {
        // SAFETY: the kernel has just read the same bytes.
        unsafe { establish::connected(fd, address, length) };
    }
    result
}

/// connect(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller's.
    unsafe { connect(fd, address, length) }
}

/// accept(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller keeps accept(2)'s contract.
    let accepted = unsafe { next::accept(fd, address, length) };
    if accepted >= 0 {
        establish::accepted(fd, accepted);
    }
    accepted
}

/// accept4(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: the caller keeps accept4(2)'s contract.
    let accepted = unsafe { next::accept4(fd, address, length, flags) };
    if accepted >= 0 {
        establish::accepted(fd, accepted);
    }
    accepted
}

/// shutdown(2) on a descriptor that has an entry.
#[inline(never)]
unsafe fn shutdown_ours(fd: c_int, how: c_int) -> c_int {
    if fd_table::stream(fd).is_none() {
        // SAFETY: no pointers.
        return unsafe { next::shutdown(fd, how) };
    }
    errno::int(options::shutdown(fd, how))
}

look_first! {
    /// shutdown(2).
    shutdown or shutdown_ours(fd: c_int, how: c_int) -> c_int;
    /// getsockopt(2).
    getsockopt or getsockopt_ours(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int;
    /// setsockopt(2).
    setsockopt or setsockopt_ours(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: socklen_t) -> c_int;
}

/// getsockopt(2) on a descriptor that has an entry.
#[inline(never)]
unsafe fn getsockopt_ours(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int {
    let ours = level == libc::SOL_SOCKET && fd_table::stream(fd).is_some();
    let answer =
        if ours && (option == libc::SO_SNDBUF || option == libc::SO_ERROR) { options::getsockopt(fd, option) } else { None };
    // SAFETY: the caller keeps getsockopt(2)'s contract; the kernel checks the pointers before the answer is corrected.
    unsafe {
        let result = next::getsockopt(fd, level, option, value, length);
        // Another thread's send is asleep with a time-out of ours.
        let size = size_of::<timeval>();
        if ours && option == libc::SO_SNDTIMEO && result == 0 && *length as usize == size {
            let limit = value.cast::<timeval>();
            if limit.read_unaligned().tv_sec == wait::YEARS.tv_sec {
                limit.write_unaligned(timeval { tv_sec: 0, tv_usec: 0 });
            }
        }
        if let Some(answer) = answer.filter(|_| result == 0) {
            let bytes = answer.to_ne_bytes();
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), value.cast::<u8>(), bytes.len().min(*length as usize));
        }
        result
    }
}

/// setsockopt(2), likewise.
#[inline(never)]
unsafe fn setsockopt_ours(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: socklen_t) -> c_int {
    if level == libc::SOL_SOCKET && fd_table::stream(fd).is_some() {
        // SAFETY: the caller keeps setsockopt(2)'s contract.
        let answered = unsafe { options::option_value(value, length) }.is_some_and(|value| options::setsockopt(fd, option, value));
        if answered {
            return 0;
        }
    }
    // SAFETY: the caller's.
    let result = unsafe { next::setsockopt(fd, level, option, value, length) };
    if result == 0 && level == libc::SOL_SOCKET && option == libc::SO_RCVLOWAT && fd_table::stream(fd).is_some() {
        options::note_low_water_mark(fd);
    }
    result
}

same_signature! {
    socket: unsafe extern "C" fn(c_int, c_int, c_int) -> c_int;
    socketpair: unsafe extern "C" fn(c_int, c_int, c_int, *mut c_int) -> c_int;
    connect: unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int;
    accept: unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int;
    accept4: unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int;
    shutdown: unsafe extern "C" fn(c_int, c_int) -> c_int;
    getsockopt: unsafe extern "C" fn(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int;
    setsockopt: unsafe extern "C" fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;
}
