//! send, recv and their relatives.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_uint, c_void};
use core::sync::atomic::Ordering::Relaxed;

use libc::{mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};
use tssx_core::reason::Reason;

use super::io::send_from;
use crate::endpoint::{Endpoint, Pin, Way, lock_stream};
use crate::errno::{self, Errno};
use crate::readiness::deadline::Deadline;
use crate::socket::send::{self, Asked};
use crate::socket::{ancillary, receive, reset};
use crate::user_buf::{PARTS_MAX, Parts, single};
use crate::user_memory::{self, Access};
use crate::{fd_table, init, next};

look_first! {
    /// recv(2).
    recv or recv_ours(fd: c_int, buffer: *mut c_void, count: size_t, flags: c_int) -> ssize_t;
    /// send(2).
    send or send_ours(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int) -> ssize_t;
    /// recvfrom(2).
    recvfrom or recvfrom_ours(fd: c_int, buffer: *mut c_void, count: size_t, flags: c_int, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t;
    /// sendto(2).
    sendto or sendto_ours(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int, address: *const sockaddr, length: socklen_t) -> ssize_t;
}

/// recv(2) on a descriptor that has an entry.
#[inline(never)]
unsafe fn recv_ours(fd: c_int, buffer: *mut c_void, count: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps recv(2)'s contract.
    let plain = || unsafe { next::recv(fd, buffer, count, flags) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    returned(unsafe { recv_with(fd, buffer, count, flags, core::ptr::null_mut(), plain) }, count)
}

/// recv(2) on a stream of ours.
///
/// # Safety
/// As recv(2).
#[inline(never)]
unsafe fn recv_with(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    flags: c_int,
    message: *mut msghdr,
    plain: impl Fn() -> ssize_t,
) -> ssize_t {
    if count == 0 {
        return if user_memory::is_beyond(buffer.addr()) {
            errno::bytes(Err(Errno(libc::EFAULT)))
        } else {
            errno::bytes(receive::receive_nothing(fd, flags, message, plain))
        };
    }
    let parts = single(buffer, count);
    errno::bytes(Parts::new(&parts).and_then(|parts| receive::receive(fd, &parts, flags, message, plain)))
}

/// What a call with room for `count` bytes returns: those with room for none have only looked whether there is something.
fn returned(received: ssize_t, count: size_t) -> ssize_t {
    if count == 0 { received.min(0) } else { received }
}

/// The parts of a message. More than the kernel takes are EMSGSIZE here (net/socket.c, `copy_msghdr_from_user`), and EINVAL for
/// readv and writev.
///
/// # Safety
/// As recvmsg(2).
unsafe fn parts_of<'a>(header: &msghdr) -> errno::Result<Parts<'a>> {
    if header.msg_iovlen > PARTS_MAX {
        return Err(Errno(libc::EMSGSIZE));
    }
    // SAFETY: the caller's promise.
    unsafe { Parts::from_raw(header.msg_iov, header.msg_iovlen) }
}

/// A structure of the program's, if there is memory for one.
///
/// # Safety
/// As the call that it was passed to.
unsafe fn structure<'a, T>(pointer: *const T, access: Access) -> Option<&'a T> {
    let there = pointer.is_aligned() && user_memory::is_accessible(pointer.addr(), size_of::<T>(), access);
    // SAFETY: accessible and aligned; the program does not change it during the call.
    if there { unsafe { pointer.as_ref() } } else { None }
}

/// send(2), likewise.
#[inline(never)]
unsafe fn send_ours(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps send(2)'s contract.
    let plain = || unsafe { next::send(fd, buffer, count, flags) };
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    unsafe { send_from(fd, buffer, count, flags, plain) }
}

/// recvfrom(2), likewise.
#[inline(never)]
unsafe fn recvfrom_ours(
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
    let named = !address.is_null() && user_memory::is_accessible(length.addr(), size_of::<socklen_t>(), Access::Write);
    // SAFETY: all zero is a valid `msghdr`.
    let mut header: msghdr = unsafe { core::mem::zeroed() };
    header.msg_name = address.cast();
    // SAFETY: checked just now.
    header.msg_namelen = if named { unsafe { length.read_unaligned() } } else { 0 };
    header.msg_flags = UNTOUCHED;
    // SAFETY: as above.
    let received = unsafe { recv_with(fd, buffer, count, flags, &raw mut header, plain) };
    if received >= 0 && named && header.msg_flags != UNTOUCHED {
        // SAFETY: as above. The kernel's own call has written the length itself.
        unsafe { length.write_unaligned(header.msg_namelen) };
    }
    returned(received, count)
}

/// No value that a receive leaves in `msg_flags`.
const UNTOUCHED: c_int = -1;

/// sendto(2), likewise: a stream socket takes no address, which is the kernel's to say.
#[inline(never)]
unsafe fn sendto_ours(
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
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps recvmsg(2)'s contract.
    unsafe {
        if !fd_table::is_ours(fd) && ancillary::is_local_without_control(message) {
            return next::recvmsg(fd, message, flags);
        }
        recvmsg_looked(fd, message, flags)
    }
}

/// recvmsg(2) where the header says more, or lies elsewhere: behind a function of its own, because a frame costs what [`next::Next`] says.
///
/// # Safety
/// As recvmsg(2).
#[inline(never)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
unsafe extern "C" fn recvmsg_looked(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's.
    unsafe {
        if !fd_table::is_ours(fd) && (ancillary::is_without_control(message) || init::active().is_none()) {
            return next::recvmsg(fd, message, flags);
        }
        recvmsg_noted(fd, message, flags)
    }
}

/// recvmsg(2) where it concerns us.
///
/// # Safety
/// As recvmsg(2).
#[inline(never)]
unsafe fn recvmsg_noted(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's.
    let plain = || unsafe { next::recvmsg(fd, message, flags) };
    if fd_table::stream(fd).is_none() {
        let received = plain();
        if received >= 0 && init::active().is_some() {
            // SAFETY: the kernel has just filled the header in.
            unsafe { ancillary::note_arrived(message) };
        }
        return received;
    }
    // SAFETY: as above.
    let Some(header) = (unsafe { structure(message.cast_const(), Access::Write) }) else { return plain() };
    // SAFETY: as above.
    let parts = unsafe { parts_of(header) };
    let received = errno::bytes(parts.and_then(|parts| match parts.total() {
        0 => receive::receive_nothing(fd, flags, message, plain).map(|_| 0),
        _ => receive::receive(fd, &parts, flags, message, plain),
    }));
    if received >= 0 {
        // SAFETY: the kernel, or we, have just filled the header in.
        unsafe { ancillary::note_arrived(message) };
    }
    received
}

/// sendmsg(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller keeps sendmsg(2)'s contract.
    unsafe {
        if !fd_table::is_ours(fd) && ancillary::is_local_without_control(message) {
            return next::sendmsg(fd, message, flags);
        }
        sendmsg_looked(fd, message, flags)
    }
}

/// sendmsg(2) where its header says more, or lies elsewhere: behind a function of its own, because a frame costs what [`next::Next`] says.
///
/// # Safety
/// As sendmsg(2).
#[inline(never)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
unsafe extern "C" fn sendmsg_looked(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's.
    unsafe {
        if !fd_table::is_ours(fd) && (ancillary::is_without_control(message) || init::active().is_none()) {
            return next::sendmsg(fd, message, flags);
        }
        sendmsg_noted(fd, message, flags)
    }
}

/// sendmsg(2) where it concerns us.
///
/// # Safety
/// As sendmsg(2).
#[inline(never)]
unsafe fn sendmsg_noted(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's.
    let plain = || unsafe { next::sendmsg(fd, message, flags) };
    if init::active().is_some() {
        // SAFETY: as above.
        unsafe { ancillary::note_travelling(message) };
    }
    if fd_table::stream(fd).is_none() {
        return plain();
    }
    // SAFETY: as above.
    let Some(header) = (unsafe { structure(message, Access::Read) }) else { return plain() };
    if !header.msg_name.is_null() && header.msg_namelen > 0 {
        return plain(); // EISCONN or EOPNOTSUPP
    }
    if header.msg_controllen > 0 {
        // A ring carries no descriptors and no credentials: from here on the kernel does.
        let waits = flags & libc::MSG_DONTWAIT == 0;
        // SAFETY: as above.
        let asked = unsafe { parts_of(header) }.map_or(0, |parts| parts.total());
        return errno::bytes(send::send_by_kernel(fd, Reason::AncillaryData, waits, Asked::all_of(asked), plain));
    }
    // SAFETY: as above.
    let parts = unsafe { parts_of(header) };
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
        let message = messages.wrapping_add(index);
        if !user_memory::is_accessible(message.addr(), size_of::<mmsghdr>(), Access::Write) {
            return if done > 0 { done } else { errno::int(Err(Errno(libc::EFAULT))) };
        }
        // SAFETY: the caller keeps sendmmsg(2)'s contract, which includes sendmsg(2)'s.
        match unsafe { sendmsg(fd, &raw const (*message).msg_hdr, flags) } {
            sent if sent < 0 => return if done > 0 { done } else { -1 },
            // SAFETY: as above.
            sent => unsafe { (*message).msg_len = u32::try_from(sent).unwrap_or(u32::MAX) },
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
    let time = unsafe { structure(timeout.cast_const(), Access::Write) };
    if time.is_none() && !timeout.is_null() {
        return errno::int(Err(Errno(libc::EFAULT)));
    }
    let Some(deadline) = Deadline::from_timespec(time) else {
        return errno::int(Err(Errno(libc::EINVAL)));
    };
    // The kernel asks for a pending error first (net/socket.c, `do_recvmmsg`).
    if flags & libc::MSG_ERRQUEUE == 0
        && let Err(errno) = reset::before_batch(fd)
    {
        return errno::int(Err(errno));
    }
    // One call, though it is many here: what is closed meanwhile lasts until it returns.
    let batch = Batch::of(fd);
    let (mut done, mut flags) = (0, flags);
    let wait_for_one = flags & libc::MSG_WAITFORONE != 0;
    flags &= !libc::MSG_WAITFORONE;
    for index in 0..count.min(1024) as usize {
        let message = messages.wrapping_add(index);
        if !user_memory::is_accessible(message.addr(), size_of::<mmsghdr>(), Access::Write) {
            return if done > 0 { done } else { errno::int(Err(Errno(libc::EFAULT))) };
        }
        // With a message in hand the kernel's wait ends with every signal, as poll(2) does and recvmsg(2) does not.
        if done > 0 && flags & libc::MSG_DONTWAIT == 0 && !wait_for_next(batch.descriptor()) {
            break;
        }
        let fd = batch.descriptor();
        // SAFETY: the caller keeps recvmmsg(2)'s contract, which includes recvmsg(2)'s.
        match unsafe { recvmsg(fd, &raw mut (*message).msg_hdr, flags) } {
            received if received < 0 => {
                if done > 0 {
                    reset::tell_again(fd, errno::get()); // net/socket.c, `do_recvmmsg`
                }
                return if done > 0 { done } else { -1 };
            }
            // SAFETY: as above.
            received => unsafe { (*message).msg_len = u32::try_from(received).unwrap_or(u32::MAX) },
        }
        done += 1;
        let left = deadline.left();
        if let Some(left) = left.filter(|_| !timeout.is_null()) {
            // SAFETY: found writable above; like the kernel, what is left of the time.
            unsafe { timeout.write(left) };
        }
        if left.is_some_and(|left| left.tv_sec == 0 && left.tv_nsec == 0) {
            break;
        }
        if wait_for_one {
            flags |= libc::MSG_DONTWAIT;
        }
    }
    done
}

/// The stream of a call that receives several messages.
struct Batch {
    fd: c_int,
    pin: Option<Pin>,
}

impl Batch {
    fn of(fd: c_int) -> Self {
        Self { fd, pin: lock_stream(fd, Way::Rx).map(|rx| rx.pin()) }
    }

    /// The stream's descriptor, or another one that leads to it if that was closed.
    fn descriptor(&self) -> c_int {
        self.pin.as_ref().map_or(self.fd, |pin| pin.endpoint().descriptor(self.fd))
    }
}

/// Waits until there is something to receive on a blocking stream; false if a signal or its time-out (SO_RCVTIMEO) came first.
fn wait_for_next(fd: c_int) -> bool {
    if fd_table::stream(fd).and_then(Endpoint::slot).is_some_and(|slot| slot.nonblocking.load(Relaxed) != 0) {
        return true;
    }
    let limit = tssx_core::sys::getsockopt::<libc::timeval>(fd, libc::SO_RCVTIMEO).ok();
    let limit = limit.filter(|limit| limit.tv_sec != 0 || limit.tv_usec != 0);
    let limit = limit.map(|limit| timespec { tv_sec: limit.tv_sec, tv_nsec: limit.tv_usec * 1000 });
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let time = limit.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: one live entry, a live or no time, and no signal mask.
    unsafe { super::readiness::ppoll(&raw mut entry, 1, time, core::ptr::null()) > 0 }
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
