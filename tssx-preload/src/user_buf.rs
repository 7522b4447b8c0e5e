//! The caller's memory, wrapped once: a list of parts with a cursor.

#![allow(unsafe_code, reason = "the caller's pointers are what system calls are about")]

use core::ffi::c_void;

use libc::iovec;

use crate::errno::{Errno, Result};
use crate::user_memory::{self, Access};

/// UIO_MAXIOV: more parts the kernel refuses.
pub(crate) const PARTS_MAX: usize = 1024;
/// MAX_RW_COUNT: the most one call moves, see read(2).
const BYTES_MAX: usize = 0x7fff_f000;

/// Where a call's bytes come from or go to.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    parts: &'a [iovec],
    total: usize,
}

/// One part for the calls that take a pointer and a length.
pub(crate) fn single(buffer: *const c_void, length: usize) -> [iovec; 1] {
    [iovec { iov_base: buffer.cast_mut(), iov_len: length.min(BYTES_MAX) }]
}

impl<'a> Parts<'a> {
    /// Wraps a list that was checked or made by us.
    ///
    /// # Errors
    /// EFAULT for an address that no program has, EINVAL for lengths that overflow, as the kernel's import_iovec. Whether there
    /// is memory at an address is asked when it is copied: [`Self::accessible`].
    pub(crate) fn new(parts: &'a [iovec]) -> Result<Self> {
        let mut total = 0_usize;
        for part in parts {
            let address = part.iov_base as usize;
            if part.iov_len > isize::MAX.cast_unsigned() {
                return Err(Errno(libc::EINVAL));
            }
            let end = address.checked_add(part.iov_len).ok_or(Errno(libc::EFAULT))?;
            if user_memory::is_beyond(end) {
                return Err(Errno(libc::EFAULT));
            }
            total = total.saturating_add(part.iov_len);
        }
        Ok(Self { parts, total: total.min(BYTES_MAX) })
    }

    /// Wraps the list of `readv`, `sendmsg` and friends.
    ///
    /// # Errors
    /// As [`Self::new`]; EINVAL for too many parts.
    ///
    /// # Safety
    /// `parts` must be readable for `count` elements if there is memory.
    pub(crate) unsafe fn from_raw(parts: *const iovec, count: usize) -> Result<Self> {
        if count > PARTS_MAX {
            return Err(Errno(libc::EINVAL));
        }
        if count == 0 {
            return Self::new(&[]);
        }
        if !user_memory::is_accessible(parts.addr(), count * size_of::<iovec>(), Access::Read) || !parts.is_aligned() {
            return Err(Errno(libc::EFAULT));
        }
        // SAFETY: the caller's promise, as for the libc function that was called.
        Self::new(unsafe { core::slice::from_raw_parts(parts, count) })
    }

    /// Bytes in all parts together.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// How many of the bytes from byte `from` on, of `limit` at most, can be accessed before the first that cannot.
    pub(crate) fn accessible(&self, from: usize, limit: usize, access: Access) -> usize {
        self.walk(from, limit, |address, length| user_memory::accessible(address.addr(), length, access))
    }

    /// Calls `copy` with each piece of memory from byte `from` on, until it moves fewer bytes than it was given or `limit` bytes
    /// are moved. Returns the bytes moved.
    pub(crate) fn walk(&self, from: usize, limit: usize, mut copy: impl FnMut(*mut u8, usize) -> usize) -> usize {
        let limit = limit.min(self.total.saturating_sub(from));
        let (mut skip, mut moved) = (from, 0);
        for part in self.parts {
            if skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let want = (part.iov_len - skip).min(limit - moved);
            if want == 0 {
                break;
            }
            // SAFETY: skip < iov_len, so the address stays inside the part.
            let done = copy(unsafe { part.iov_base.cast::<u8>().add(skip) }, want);
            moved += done;
            if done < want {
                break;
            }
            skip = 0;
        }
        moved
    }
}
