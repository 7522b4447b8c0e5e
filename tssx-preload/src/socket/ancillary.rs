//! Control messages: descriptors on their way to another process, and credentials that were not sent.

#![allow(unsafe_code, reason = "walks the program's control messages")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use libc::msghdr;
use tssx_core::layout::CONSENT_ENOUGH;
use tssx_core::reason::Reason;

use super::recall;
use crate::endpoint::{Way, lock_stream};
use crate::errno::Result;
use crate::fd_table;
use crate::process::descriptors;
use crate::readiness::postponed;
use crate::user_memory::{self, Access};

/// Before a sendmsg, on any socket: a selected connection whose descriptor is in an SCM_RIGHTS message stays with the kernel,
/// because its receiver has no segment.
///
/// # Safety
/// As sendmsg(2).
pub(crate) unsafe fn note_travelling(message: *const msghdr) {
    // SAFETY: the caller's promise.
    unsafe { each_descriptor(message, stay_plain) };
}

/// After a recvmsg, on any socket: the descriptors that came with it have numbers that carry nothing of ours.
///
/// # Safety
/// The header must be one that recvmsg(2) has filled in.
pub(crate) unsafe fn note_arrived(message: *const msghdr) {
    // SAFETY: the caller's promise.
    unsafe { each_descriptor(message, descriptors::clear_stale) };
}

/// Whether a header has no control messages, and no room for any. Of one without memory nothing is said.
///
/// # Safety
/// As sendmsg(2).
#[inline]
pub(crate) unsafe fn is_without_control(message: *const msghdr) -> bool {
    // SAFETY: the caller's promise.
    unsafe { is_there_without_control(message, |address, length| user_memory::is_accessible(address, length, Access::Read)) }
}

/// The same of a header that is surely there, because it is a local of the caller's. Of another one nothing is said.
///
/// # Safety
/// As sendmsg(2).
#[inline(always)]
pub(crate) unsafe fn is_local_without_control(message: *const msghdr) -> bool {
    // SAFETY: the caller's promise.
    unsafe { is_there_without_control(message, user_memory::is_beside_us) }
}

/// The same of a header for which `is_there` says that there is memory, which it may know of less than there is.
///
/// # Safety
/// As sendmsg(2).
#[inline(always)]
unsafe fn is_there_without_control(message: *const msghdr, is_there: impl FnOnce(usize, usize) -> bool) -> bool {
    // SAFETY: aligned, and there is memory.
    message.is_aligned() && is_there(message.addr(), size_of::<msghdr>()) && unsafe { (*message).msg_controllen == 0 }
}

/// Calls `visit` for each descriptor in the SCM_RIGHTS messages of a header, if there is memory where it points.
///
/// # Safety
/// As sendmsg(2).
unsafe fn each_descriptor(message: *const msghdr, visit: impl Fn(c_int)) {
    // SAFETY: the caller's promise, and there is memory; the macros of cmsg(3) stay within msg_controllen.
    unsafe {
        if !message.is_aligned() || !user_memory::is_accessible(message.addr(), size_of::<msghdr>(), Access::Read) {
            return;
        }
        let Some(header) = message.as_ref() else { return };
        let (control, length) = (header.msg_control.addr(), header.msg_controllen);
        if length == 0 || !user_memory::is_accessible(control, length, Access::Read) {
            return;
        }
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(entry) = control.as_ref() {
            if entry.cmsg_level == libc::SOL_SOCKET && entry.cmsg_type == libc::SCM_RIGHTS {
                let end = header.msg_control.addr() + length;
                let data = libc::CMSG_DATA(control).cast::<c_int>();
                let bytes = entry.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize).min(end.saturating_sub(data.addr()));
                for index in 0..bytes / size_of::<c_int>() {
                    visit(data.add(index).read_unaligned());
                }
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
}

fn stay_plain(fd: c_int) {
    postponed::settle();
    if let Some(set) = fd_table::epoll(fd) {
        set.share();
    }
    if fd_table::stream(fd).is_some() {
        recall::leave_rings_now(fd, Reason::DescriptorTravels);
    }
}

/// Whether the next message in the kernel's queue comes with the credentials of a living process. Only looks.
///
/// # Errors
/// EAGAIN without a message; the socket's pending error, which is gone then.
pub(super) fn next_has_credentials(fd: c_int) -> Result<bool> {
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // Aligned as a header must be, and with room for nothing else.
    let mut control = [0_u64; 4];
    // SAFETY: all zero is a valid `msghdr`.
    let mut message: msghdr = unsafe { core::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: pointers to live locals.
    let received = unsafe { tssx_core::sys::recvmsg(fd, &mut message, libc::MSG_PEEK) }?;
    // SAFETY: the kernel has just filled it in.
    Ok(received > 0 && unsafe { find(&message) }.credentials)
}

/// Which control messages a header holds.
#[derive(Default)]
pub(super) struct Found {
    /// Descriptors.
    pub(super) rights: bool,
    /// The credentials of a living process, not those that the kernel gives where none were sent.
    pub(super) credentials: bool,
}

/// Looks through the control messages.
///
/// # Safety
/// The header must be one that recvmsg(2) has filled in.
pub(super) unsafe fn find(header: &msghdr) -> Found {
    let mut found = Found::default();
    if header.msg_controllen == 0 {
        return found;
    }
    // SAFETY: the caller's promise; the macros of cmsg(3) stay within msg_controllen, and an entry of this type holds a `ucred` if it is
    // that long.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(entry) = control.as_ref().filter(|entry| entry.cmsg_len >= size_of::<libc::cmsghdr>()) {
            if entry.cmsg_level == libc::SOL_SOCKET {
                let whole = entry.cmsg_len >= libc::CMSG_LEN(size_of::<libc::ucred>() as u32) as usize;
                found.rights |= entry.cmsg_type == libc::SCM_RIGHTS;
                found.credentials |= entry.cmsg_type == libc::SCM_CREDENTIALS
                    && whole
                    && libc::CMSG_DATA(control).cast::<libc::ucred>().read_unaligned().pid != 0;
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    found
}

/// Fills in the control messages of a `recvmsg` whose bytes came from a ring: none, or with SO_PASSCRED the credentials of a message
/// that was sent before they were asked for, which the kernel gives as process 0 of nobody (net/core/scm.h, `scm_set_cred`); all zero at
/// the end of file. `any`: whether there are bytes; `None` for no credentials at all.
///
/// # Safety
/// As recvmsg(2).
pub(super) unsafe fn nobodys_credentials(fd: c_int, message: &mut msghdr, any: Option<bool>) {
    /// The overflow user and group, /proc/sys/kernel/overflowuid's default.
    const NOBODY: u32 = 65_534;
    let room = core::mem::replace(&mut message.msg_controllen, 0);
    let asked = || {
        let rx = lock_stream(fd, Way::Rx)?;
        let ending = rx.segment?.rx().consent.load(Relaxed) == CONSENT_ENOUGH;
        (ending && tssx_core::sys::getsockopt::<c_int>(fd, libc::SO_PASSCRED).ok()? != 0).then_some(())
    };
    let Some(any) = any.filter(|_| asked().is_some()) else { return };
    let owner = if any { NOBODY } else { 0 };
    let size = size_of::<libc::ucred>() as u32;
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
    let (space, whole) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
    // As much as there is room for, if there is any for the header (net/core/scm.c, `put_cmsg`).
    let length = whole.min(room);
    if length < whole {
        message.msg_flags |= libc::MSG_CTRUNC;
    }
    if length < size_of::<libc::cmsghdr>() || !user_memory::is_accessible(message.msg_control.addr(), length, Access::Write) {
        return;
    }
    message.msg_controllen = space.min(room);
    // SAFETY: the program's control buffer has room for `length` bytes, of which the header is the first part, checked above.
    unsafe {
        let header = message.msg_control.cast::<libc::cmsghdr>();
        let mut entry: libc::cmsghdr = core::mem::zeroed();
        (entry.cmsg_len, entry.cmsg_level, entry.cmsg_type) = (length, libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
        header.write_unaligned(entry);
        let credentials = libc::ucred { pid: 0, uid: owner, gid: owner };
        let data = libc::CMSG_DATA(header);
        core::ptr::copy_nonoverlapping((&raw const credentials).cast::<u8>(), data, length - size_of::<libc::cmsghdr>());
    }
}
