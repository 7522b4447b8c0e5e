//! send, recv and their relatives.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_uint, c_void};

use libc::{mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};
use tssx_core::reason::Reason;

use super::io::{receive_into, send_from};
use crate::errno::{self, Errno};
use crate::readiness::deadline::Deadline;
use crate::socket::{ancillary, fallback, receive, send};
use crate::user_buf::Parts;
use crate::{fd_table, next};

/// recv(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, count: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps recv(2)'s contract.
    let plain = || unsafe { next::recv(fd, buffer, count, flags) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    if count == 0 {
        return errno::bytes(receive::receive_nothing(fd, flags, plain));
    }
    // SAFETY: as above.
    unsafe { receive_into(fd, buffer, count, flags, plain) }
}

/// send(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn send(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps send(2)'s contract.
    let plain = || unsafe { next::send(fd, buffer, count, flags) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    unsafe { send_from(fd, buffer, count, flags, plain) }
}

/// recvfrom(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    flags: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> ssize_t {
    // SAFETY: the caller keeps recvfrom(2)'s contract.
    let plain = || unsafe { next::recvfrom(fd, buffer, count, flags, address, length) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    let received = unsafe { receive_into(fd, buffer, count, flags, plain) };
    if received > 0 && !address.is_null() && !length.is_null() {
        // SAFETY: as above; for bytes from the kernel it writes the same name again.
        unsafe { *length = receive::peer_name(fd, address, *length) };
    }
    received
}

/// sendto(2): a stream socket takes no address, which is the kernel's to say.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    count: size_t,
    flags: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> ssize_t {
    // SAFETY: the caller keeps sendto(2)'s contract.
    let plain = || unsafe { next::sendto(fd, buffer, count, flags, address, length) };
    if fd_table::stream(fd).is_none() || (!address.is_null() && length > 0) {
        return plain();
    }
    // SAFETY: as above.
    unsafe { send_from(fd, buffer, count, flags, plain) }
}

/// recvmsg(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps recvmsg(2)'s contract.
    let plain = || unsafe { next::recvmsg(fd, message, flags) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    let Some(header) = (unsafe { message.as_ref() }) else { return errno::bytes(Err(Errno(libc::EFAULT))) };
    // SAFETY: as above.
    let parts = unsafe { Parts::from_raw(header.msg_iov, header.msg_iovlen) };
    errno::bytes(parts.and_then(|parts| match parts.total() {
        0 => receive::receive_nothing(fd, flags, plain),
        _ => receive::receive(fd, &parts, flags, message, plain),
    }))
}

/// sendmsg(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps sendmsg(2)'s contract.
    let plain = || unsafe { next::sendmsg(fd, message, flags) };
    // SAFETY: as above.
    unsafe { ancillary::note_travelling(message) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    let Some(header) = (unsafe { message.as_ref() }) else { return errno::bytes(Err(Errno(libc::EFAULT))) };
    if !header.msg_name.is_null() && header.msg_namelen > 0 {
        return plain(); // EISCONN or EOPNOTSUPP
    }
    if header.msg_controllen > 0 {
        // A ring carries no descriptors and no credentials: from here on the kernel does.
        if let Err(errno) = fallback::before_foreign_write(fd, Reason::AncillaryData, false) {
            return errno::bytes(Err(errno));
        }
        return errno::bytes(send::send_plainly(fd, plain));
    }
    // SAFETY: as above.
    let parts = unsafe { Parts::from_raw(header.msg_iov, header.msg_iovlen) };
    errno::bytes(parts.and_then(|parts| send::send(fd, &parts, flags, plain)))
}

/// sendmmsg(2): one sendmsg after the other, as the kernel does it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    if fd_table::stream(fd).is_none() {
        // SAFETY: the caller keeps sendmmsg(2)'s contract.
        return unsafe { next::sendmmsg(fd, messages, count, flags) };
    }
    let mut done = 0;
    for index in 0..count.min(1024) as usize {
        // SAFETY: the caller's array has `count` elements.
        let message = unsafe { &mut *messages.add(index) };
        // SAFETY: the caller keeps sendmmsg(2)'s contract, which includes sendmsg(2)'s.
        match unsafe { sendmsg(fd, &raw const message.msg_hdr, flags) } {
            sent if sent < 0 => return if done > 0 { done } else { -1 },
            sent => message.msg_len = u32::try_from(sent).unwrap_or(u32::MAX),
        }
        done += 1;
    }
    done
}

/// recvmmsg(2): one recvmsg after the other, as the kernel does it; MSG_WAITFORONE and the time-out are looked at between two.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    if fd_table::stream(fd).is_none() {
        // SAFETY: the caller keeps recvmmsg(2)'s contract.
        return unsafe { next::recvmmsg(fd, messages, count, flags, timeout) };
    }
    // SAFETY: null, or the caller's.
    let Some(deadline) = Deadline::from_timespec(unsafe { timeout.as_ref() }) else {
        return errno::int(Err(Errno(libc::EINVAL)));
    };
    let (mut done, mut flags) = (0, flags);
    let wait_for_one = flags & libc::MSG_WAITFORONE != 0;
    flags &= !libc::MSG_WAITFORONE;
    for index in 0..count.min(1024) as usize {
        // SAFETY: the caller's array has `count` elements.
        let message = unsafe { &mut *messages.add(index) };
        // SAFETY: the caller keeps recvmmsg(2)'s contract, which includes recvmsg(2)'s.
        match unsafe { recvmsg(fd, &raw mut message.msg_hdr, flags) } {
            received if received < 0 => return if done > 0 { done } else { -1 },
            received => message.msg_len = u32::try_from(received).unwrap_or(u32::MAX),
        }
        done += 1;
        let left = deadline.left();
        if left.is_some_and(|left| left.tv_sec == 0 && left.tv_nsec == 0) {
            break;
        }
        if wait_for_one {
            flags |= libc::MSG_DONTWAIT;
        }
    }
    done
}

/// recv(2), as glibc's headers call it when they know the buffer's size.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __recv_chk(fd: c_int, buffer: *mut c_void, count: size_t, size: size_t, flags: c_int) -> ssize_t {
    if fd_table::stream(fd).is_none() || count > size {
        // SAFETY: the caller's.
        return unsafe { next::__recv_chk(fd, buffer, count, size, flags) };
    }
    // SAFETY: the caller's.
    unsafe { recv(fd, buffer, count, flags) }
}

/// recvfrom(2), as glibc's headers call it when they know the buffer's size.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    size: size_t,
    flags: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> ssize_t {
    if fd_table::stream(fd).is_none() || count > size {
        // SAFETY: the caller's.
        return unsafe { next::__recvfrom_chk(fd, buffer, count, size, flags, address, length) };
    }
    // SAFETY: the caller's.
    unsafe { recvfrom(fd, buffer, count, flags, address, length) }
}

/// send(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __send(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller's.
    unsafe { send(fd, buffer, count, flags) }
}

same_signature! {
    recv: unsafe extern "C" fn(c_int, *mut c_void, size_t, c_int) -> ssize_t;
    send: unsafe extern "C" fn(c_int, *const c_void, size_t, c_int) -> ssize_t;
    recvfrom: unsafe extern "C" fn(c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t;
    sendto: unsafe extern "C" fn(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t;
    recvmsg: unsafe extern "C" fn(c_int, *mut msghdr, c_int) -> ssize_t;
    sendmsg: unsafe extern "C" fn(c_int, *const msghdr, c_int) -> ssize_t;
    sendmmsg: unsafe extern "C" fn(c_int, *mut mmsghdr, c_uint, c_int) -> c_int;
    recvmmsg: unsafe extern "C" fn(c_int, *mut mmsghdr, c_uint, c_int, *mut timespec) -> c_int;
}
