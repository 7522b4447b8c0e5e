//! select and pselect: turned into a poll when a ring is among the descriptors.
//!
//! The translation is the kernel's own (fs/select.c, POLLIN_SET, POLLOUT_SET, POLLEX_SET).

#![allow(unsafe_code, reason = "fd_set is an array of words behind a pointer")]

use core::ffi::{c_int, c_ulong};

use libc::{fd_set, pollfd};

use super::poll;
use crate::errno::{Errno, Result};
use crate::fd_table;

/// Descriptors a translated call can have; FD_SETSIZE. Larger sets (some programs allocate them) are for the kernel only.
pub(crate) const DESCRIPTORS_MAX: usize = 1024;

const BITS: usize = c_ulong::BITS as usize;
const READ_SET: i16 = libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLIN | libc::POLLHUP | libc::POLLERR;
const WRITE_SET: i16 = libc::POLLWRBAND | libc::POLLWRNORM | libc::POLLOUT | libc::POLLERR;
const EXCEPT_SET: i16 = libc::POLLPRI;

/// One of the three sets of a call, or none.
#[derive(Clone, Copy)]
pub(crate) struct Set {
    words: *mut c_ulong,
}

impl Set {
    /// # Safety
    /// Null, or an fd_set that is readable and writable for the descriptors of the call.
    pub(crate) unsafe fn new(set: *mut fd_set) -> Self {
        Self { words: set.cast() }
    }

    fn word(self, index: usize) -> c_ulong {
        // SAFETY: the promise made to `new`.
        if self.words.is_null() { 0 } else { unsafe { *self.words.add(index) } }
    }

    fn has(self, fd: usize) -> bool {
        self.word(fd / BITS) & (1 << (fd % BITS)) != 0
    }

    fn put(self, fd: usize, on: bool) {
        if self.words.is_null() {
            return;
        }
        // SAFETY: the promise made to `new`.
        let word = unsafe { &mut *self.words.add(fd / BITS) };
        let bit: c_ulong = 1 << (fd % BITS);
        *word = if on { *word | bit } else { *word & !bit };
    }
}

/// The sets of a call.
#[derive(Clone, Copy)]
pub(crate) struct Sets {
    pub(crate) count: usize,
    pub(crate) read: Set,
    pub(crate) write: Set,
    pub(crate) except: Set,
}

impl Sets {
    /// Whether any descriptor of the sets has a ring, or may get one while somebody waits: the kernel would have overwritten the sets by then.
    pub(crate) fn concern_us(self) -> bool {
        let concerns = |fd: c_int| fd_table::is_ours(fd) && (poll::look_at(fd).is_some() || fd_table::stream(fd).is_some());
        (0..self.count.div_ceil(BITS)).any(|index| {
            let mut bits = self.read.word(index) | self.write.word(index) | self.except.word(index);
            core::iter::from_fn(|| {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(index * BITS + bit)
            })
            .any(|fd| fd < self.count && concerns(c_int::try_from(fd).unwrap_or(-1)))
        })
    }

    fn events(self, fd: usize) -> i16 {
        let mut events = 0;
        if self.read.has(fd) {
            events |= libc::POLLIN | libc::POLLRDNORM;
        }
        if self.write.has(fd) {
            events |= libc::POLLOUT | libc::POLLWRNORM;
        }
        if self.except.has(fd) {
            events |= libc::POLLPRI;
        }
        events
    }

    /// Fills `fds` with what the sets ask for; how many entries.
    pub(crate) fn to_poll(self, fds: &mut [pollfd; DESCRIPTORS_MAX]) -> usize {
        let mut used = 0;
        for fd in 0..self.count {
            let events = self.events(fd);
            if let Some(entry) = fds.get_mut(used).filter(|_| events != 0) {
                *entry = pollfd { fd: c_int::try_from(fd).unwrap_or(-1), events, revents: 0 };
                used += 1;
            }
        }
        used
    }

    /// Whether poll's answer is one of select's.
    pub(crate) fn are_answered_by(self, fds: &[pollfd]) -> bool {
        fds.iter().any(|entry| {
            let fd = usize::try_from(entry.fd).unwrap_or(0);
            let answers = |(set, mask): (Set, i16)| set.has(fd) && entry.revents & mask != 0;
            entry.revents & libc::POLLNVAL != 0
                || [(self.read, READ_SET), (self.write, WRITE_SET), (self.except, EXCEPT_SET)].into_iter().any(answers)
        })
    }

    /// Rewrites the sets with poll's answer; how many bits are set.
    pub(crate) fn take_answer(self, fds: &[pollfd]) -> Result<c_int> {
        if fds.iter().any(|entry| entry.revents & libc::POLLNVAL != 0) {
            return Err(Errno(libc::EBADF));
        }
        let mut count = 0;
        for entry in fds {
            let fd = usize::try_from(entry.fd).unwrap_or(0);
            for (set, mask) in [(self.read, READ_SET), (self.write, WRITE_SET), (self.except, EXCEPT_SET)] {
                if set.has(fd) {
                    let on = entry.revents & mask != 0;
                    set.put(fd, on);
                    count += c_int::from(on);
                }
            }
        }
        Ok(count)
    }
}
