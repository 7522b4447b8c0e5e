//! Descriptors on their way to another process.

#![allow(unsafe_code, reason = "walks the program's control messages")]

use core::ffi::c_int;

use libc::msghdr;
use tssx_core::reason::Reason;

use super::recall;
use crate::fd_table;

/// Before a sendmsg, on any socket: a selected connection whose descriptor is in an SCM_RIGHTS message stays with the kernel,
/// because its receiver has no segment.
///
/// # Safety
/// As sendmsg(2).
pub(crate) unsafe fn note_travelling(message: *const msghdr) {
    // SAFETY: the caller's promise; the macros of cmsg(3) stay within msg_controllen.
    unsafe {
        let Some(header) = message.as_ref() else { return };
        if header.msg_control.is_null() || header.msg_controllen == 0 {
            return;
        }
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(entry) = control.as_ref() {
            if entry.cmsg_level == libc::SOL_SOCKET && entry.cmsg_type == libc::SCM_RIGHTS {
                let bytes = entry.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let first = libc::CMSG_DATA(control).cast::<c_int>();
                for index in 0..bytes / size_of::<c_int>() {
                    stay_plain(first.add(index).read_unaligned());
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
