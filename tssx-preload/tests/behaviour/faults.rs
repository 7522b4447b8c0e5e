//! Memory that must not be touched, and the calls that are given it: the kernel answers EFAULT where a library in the same
//! process would be killed by SIGSEGV.
#![allow(unsafe_code, reason = "passes the C functions under test addresses for which the kernel answers EFAULT")]

use std::ffi::c_int;
use std::ptr::null_mut;

use crate::sys::{Answer, answer, narrow};

const PAGE: usize = 4096;

/// An address that only goes to system calls: bad, or followed by bad memory.
#[derive(Clone, Copy)]
pub(crate) struct Address(*mut libc::c_void);

/// Four pages in a row: usable, inaccessible, constant, unmapped. They stay for the life of the process.
pub(crate) struct Bad {
    base: *mut u8,
}

impl Bad {
    /// Maps the pages.
    pub(crate) fn new() -> Self {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping of four pages, of which the later calls only touch these.
        unsafe {
            let base: *mut u8 = libc::mmap(null_mut(), 4 * PAGE, access, kind, -1, 0).cast();
            assert_ne!(base.cast(), libc::MAP_FAILED, "mmap");
            base.add(2 * PAGE).write_bytes(b'c', PAGE);
            assert_eq!(libc::mprotect(base.add(PAGE).cast(), PAGE, libc::PROT_NONE), 0);
            assert_eq!(libc::mprotect(base.add(2 * PAGE).cast(), PAGE, libc::PROT_READ), 0);
            assert_eq!(libc::munmap(base.add(3 * PAGE).cast(), PAGE), 0);
            Self { base }
        }
    }

    /// In the null page.
    pub(crate) fn nowhere() -> Address {
        Address(std::ptr::without_provenance_mut(8))
    }

    /// Beyond what a process can have.
    pub(crate) fn kernels() -> Address {
        Address(std::ptr::without_provenance_mut(0xffff_8000_0000_1000))
    }

    fn at(&self, offset: usize) -> Address {
        // SAFETY: within, or one past, the four pages.
        Address(unsafe { self.base.add(offset) }.cast())
    }

    /// A page without access.
    pub(crate) fn closed(&self) -> Address {
        self.at(PAGE)
    }

    /// A page that can only be read; it is full of `c`.
    pub(crate) fn constant(&self) -> Address {
        self.at(2 * PAGE)
    }

    /// A page that was unmapped.
    pub(crate) fn unmapped(&self) -> Address {
        self.at(3 * PAGE)
    }

    /// The last `good` bytes before the page without access.
    pub(crate) fn edge(&self, good: usize) -> Address {
        self.at(PAGE - good)
    }

    /// Fills the usable page.
    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: the first page is usable and ours.
        unsafe { self.base.write_bytes(byte, PAGE) };
    }

    /// Every kind of bad address, for reading into (`to`) or writing from.
    pub(crate) fn all(&self, to: bool) -> Vec<(&'static str, Address)> {
        let mut all = vec![
            ("null", Address(null_mut())),
            ("the null page", Self::nowhere()),
            ("the kernel's", Self::kernels()),
            ("no access", self.closed()),
            ("unmapped", self.unmapped()),
            ("bad after 3 bytes", self.edge(3)),
        ];
        if to {
            all.push(("constant", self.constant()));
        }
        all
    }
}

/// The calls that read into one buffer, by name.
pub(crate) const READS: [&str; 7] = ["read", "recv", "recvfrom", "readv", "recvmsg", "recvmmsg", "peek"];
/// The calls that write from one buffer, by name.
pub(crate) const WRITES: [&str; 6] = ["write", "send", "sendto", "writev", "sendmsg", "sendmmsg"];

/// Makes one of [`READS`] with `length` bytes at `to`, not waiting where the call can say so.
pub(crate) fn read_by(call: &str, fd: i32, to: Address, length: usize) -> Answer {
    let part = [(to, length)];
    // SAFETY: the kernel answers EFAULT for what is bad at the address; what is good there belongs to `Bad`.
    answer(unsafe {
        match call {
            "read" => libc::read(fd, to.0, length),
            "recv" => libc::recv(fd, to.0, length, libc::MSG_DONTWAIT),
            "peek" => libc::recv(fd, to.0, length, libc::MSG_DONTWAIT | libc::MSG_PEEK),
            "recvfrom" => libc::recvfrom(fd, to.0, length, libc::MSG_DONTWAIT, null_mut(), null_mut()),
            "readv" => return readv(fd, &part),
            "recvmsg" => return recvmsg(fd, &part),
            _ => batch(fd, &part, |fd, header| libc::recvmmsg(fd, header, 1, libc::MSG_DONTWAIT, null_mut())) as isize,
        }
    })
}

/// Makes one of [`WRITES`] with `length` bytes at `from`.
pub(crate) fn write_by(call: &str, fd: i32, from: Address, length: usize) -> Answer {
    let part = [(from, length)];
    // SAFETY: the kernel answers EFAULT for what is bad at the address; what is good there belongs to `Bad`.
    answer(unsafe {
        match call {
            "write" => libc::write(fd, from.0, length),
            "send" => libc::send(fd, from.0, length, libc::MSG_NOSIGNAL),
            "sendto" => libc::sendto(fd, from.0, length, 0, std::ptr::null(), 0),
            "writev" => return writev(fd, &part),
            "sendmsg" => return sendmsg(fd, &part),
            _ => batch(fd, &part, |fd, header| libc::sendmmsg(fd, header, 1, 0)) as isize,
        }
    })
}

fn vectors(parts: &[(Address, usize)]) -> Vec<libc::iovec> {
    parts.iter().map(|(address, length)| libc::iovec { iov_base: address.0, iov_len: *length }).collect()
}

fn message(vectors: &mut [libc::iovec]) -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain data for which zero is valid.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = vectors.as_mut_ptr();
    header.msg_hdr.msg_iovlen = vectors.len();
    header
}

fn batch(fd: i32, parts: &[(Address, usize)], call: impl FnOnce(c_int, *mut libc::mmsghdr) -> c_int) -> c_int {
    let mut vectors = vectors(parts);
    let mut header = message(&mut vectors);
    call(fd, &raw mut header)
}

/// `readv` into parts of which some are bad.
pub(crate) fn readv(fd: i32, parts: &[(Address, usize)]) -> Answer {
    // SAFETY: a live table; the kernel answers EFAULT for bad parts.
    answer(unsafe { libc::readv(fd, vectors(parts).as_ptr(), parts.len() as c_int) })
}

/// `writev` from parts of which some are bad.
pub(crate) fn writev(fd: i32, parts: &[(Address, usize)]) -> Answer {
    // SAFETY: a live table; the kernel answers EFAULT for bad parts.
    answer(unsafe { libc::writev(fd, vectors(parts).as_ptr(), parts.len() as c_int) })
}

/// `recvmsg` into parts of which some are bad.
pub(crate) fn recvmsg(fd: i32, parts: &[(Address, usize)]) -> Answer {
    // SAFETY: a live header and table; the kernel answers EFAULT for bad parts.
    narrow(batch(fd, parts, |fd, header| unsafe { libc::recvmsg(fd, header.cast(), libc::MSG_DONTWAIT) } as c_int))
}

/// `sendmsg` from parts of which some are bad.
pub(crate) fn sendmsg(fd: i32, parts: &[(Address, usize)]) -> Answer {
    // SAFETY: a live header and table; the kernel answers EFAULT for bad parts.
    narrow(batch(fd, parts, |fd, header| unsafe { libc::sendmsg(fd, header.cast(), libc::MSG_NOSIGNAL) } as c_int))
}

/// What every call says to a table, a header or an array at `bad` instead of one in memory.
pub(crate) fn bad_tables(fd: i32, bad: Address) -> [(&'static str, Answer); 12] {
    // SAFETY: the kernel answers EFAULT for the address, or does not look at it for a count that is wrong.
    unsafe {
        [
            ("readv", answer(libc::readv(fd, bad.0.cast(), 2))),
            ("writev", answer(libc::writev(fd, bad.0.cast(), 2))),
            ("readv of -1", answer(libc::readv(fd, bad.0.cast(), -1))),
            ("writev of -1", answer(libc::writev(fd, bad.0.cast(), -1))),
            ("readv of 1025", answer(libc::readv(fd, bad.0.cast(), 1025))),
            ("recvmsg", answer(libc::recvmsg(fd, bad.0.cast(), libc::MSG_DONTWAIT))),
            ("sendmsg", answer(libc::sendmsg(fd, bad.0.cast(), 0))),
            ("recvmmsg", narrow(libc::recvmmsg(fd, bad.0.cast(), 1, libc::MSG_DONTWAIT, null_mut()))),
            ("sendmmsg", narrow(libc::sendmmsg(fd, bad.0.cast(), 1, 0))),
            ("poll", narrow(libc::poll(bad.0.cast(), 1, 0))),
            ("ppoll", narrow(libc::ppoll(bad.0.cast(), 1, std::ptr::null(), std::ptr::null()))),
            ("select", narrow(libc::select(fd + 1, bad.0.cast(), null_mut(), null_mut(), null_mut()))),
        ]
    }
}

/// `epoll_wait` into an array at `bad`.
pub(crate) fn bad_wait(epoll: i32, bad: Address) -> Answer {
    // SAFETY: the kernel answers EFAULT for the address.
    narrow(unsafe { libc::epoll_wait(epoll, bad.0.cast(), 4, 0) })
}

/// `epoll_ctl` with an event at `bad`: MOD and ADD.
pub(crate) fn bad_controls(epoll: i32, fd: i32, bad: Address) -> [Answer; 2] {
    // SAFETY: the kernel answers EFAULT for the address.
    [libc::EPOLL_CTL_MOD, libc::EPOLL_CTL_ADD]
        .map(|operation| narrow(unsafe { libc::epoll_ctl(epoll, operation, fd, bad.0.cast()) }))
}

/// What the calls about the socket itself say to a value or a length at `bad`.
pub(crate) fn bad_values(fd: i32, bad: Address) -> Vec<(&'static str, Answer)> {
    let (mut value, mut length) = ([0_u8; 128], 128_u32);
    let (level, at) = (libc::SOL_SOCKET, value.as_mut_ptr());
    // SAFETY: the kernel answers EFAULT for the address; the other pointers are those of live locals.
    unsafe {
        vec![
            ("getsockname", narrow(libc::getsockname(fd, bad.0.cast(), &raw mut length))),
            ("getsockname's length", narrow(libc::getsockname(fd, at.cast(), bad.0.cast()))),
            ("getpeername", narrow(libc::getpeername(fd, bad.0.cast(), &raw mut length))),
            ("getpeername's length", narrow(libc::getpeername(fd, at.cast(), bad.0.cast()))),
            ("connect", narrow(libc::connect(fd, bad.0.cast(), 110))),
            ("getsockopt", narrow(libc::getsockopt(fd, level, libc::SO_TYPE, bad.0, &raw mut length))),
            ("getsockopt's length", narrow(libc::getsockopt(fd, level, libc::SO_TYPE, at.cast(), bad.0.cast()))),
            ("SO_RCVTIMEO", narrow(libc::setsockopt(fd, level, libc::SO_RCVTIMEO, bad.0, 16))),
            ("SO_SNDBUF", narrow(libc::setsockopt(fd, level, libc::SO_SNDBUF, bad.0, 4))),
            ("SO_ERROR", narrow(libc::getsockopt(fd, level, libc::SO_ERROR, bad.0, &raw mut length))),
            ("FIONREAD", narrow(libc::ioctl(fd, libc::FIONREAD, bad.0))),
            ("FIONBIO", narrow(libc::ioctl(fd, libc::FIONBIO, bad.0))),
            ("SIOCOUTQ", narrow(libc::ioctl(fd, libc::TIOCOUTQ, bad.0))),
        ]
    }
}

/// `accept` with an address at `bad`, with a connection waiting.
pub(crate) fn accept(listener: i32, bad: Address) -> Answer {
    let mut length = 110;
    // SAFETY: the kernel answers EFAULT for the address.
    narrow(unsafe { libc::accept(listener, bad.0.cast(), &raw mut length) })
}
