//! Control messages: descriptors on their way to another process, and credentials that were not sent.

#![allow(unsafe_code, reason = "walks the program's control messages")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use libc::msghdr;
use tssx_core::layout::CONSENT_ENOUGH;
use tssx_core::reason::Reason;

use super::recall;
use crate::endpoint::{Way, lock_stream};
use crate::fd_table;
use crate::process::descriptors;
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
    if fd_table::stream(fd).is_some() {
        recall::leave_rings_now(fd, Reason::DescriptorTravels);
    }
}

/// Fills in the control messages of a `recvmsg` whose bytes came from a ring: none, or with SO_PASSCRED the credentials of a message
/// that was sent before they were asked for, which the kernel gives as process 0 of nobody (net/core/scm.h, `scm_set_cred`).
///
/// # Safety
/// As recvmsg(2).
pub(super) unsafe fn nobodys_credentials(fd: c_int, message: &mut msghdr, any: bool) {
    /// The overflow user and group, /proc/sys/kernel/overflowuid's default.
    const NOBODY: u32 = 65_534;
    let room = core::mem::replace(&mut message.msg_controllen, 0);
    let asked = || {
        let rx = lock_stream(fd, Way::Rx)?;
        let ending = rx.segment?.rx().consent.load(Relaxed) == CONSENT_ENOUGH;
        (ending && tssx_core::sys::getsockopt::<c_int>(fd, libc::SO_PASSCRED).ok()? != 0).then_some(())
    };
    if !any || asked().is_none() {
        return;
    }
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
        let nobody = libc::ucred { pid: 0, uid: NOBODY, gid: NOBODY };
        let data = libc::CMSG_DATA(header);
        core::ptr::copy_nonoverlapping((&raw const nobody).cast::<u8>(), data, length - size_of::<libc::cmsghdr>());
    }
}
