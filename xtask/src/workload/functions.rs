//! Functions of libc's names, twice: libc's own, and the ones that a program gets, which are the library's where that is preloaded.

#![allow(unsafe_code, reason = "calls functions by address, which is the only way to call both")]

use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::mem::{transmute_copy, zeroed};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};

use anyhow::{Context, Result, ensure};
use nix::libc::{self, epoll_event, fd_set, iovec, msghdr, nfds_t, pollfd, size_t, socklen_t, ssize_t, timespec, timeval};

macro_rules! functions {
    ($($name:ident: fn($($kind:ty),*) -> $ret:ty;)*) => {
        /// One set of the functions.
        pub(crate) struct Functions {
            $($name: unsafe extern "C" fn($($kind),*) -> $ret,)*
        }

        impl Functions {
            fn of(handle: *mut c_void) -> Result<Self> {
                Ok(Self { $($name: {
                    let name = concat!(stringify!($name), "\0");
                    let name = CStr::from_bytes_with_nul(name.as_bytes()).context("a name")?;
                    // SAFETY: a live handle, and a C string.
                    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
                    ensure!(!address.is_null(), "libc has no {}", stringify!($name));
                    // SAFETY: the signature is the man page's, and function pointers are pointer-sized.
                    unsafe { transmute_copy::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $ret>(&address) }
                },)* })
            }
        }
    };
}

functions! {
    read: fn(c_int, *mut c_void, size_t) -> ssize_t;
    write: fn(c_int, *const c_void, size_t) -> ssize_t;
    writev: fn(c_int, *const iovec, c_int) -> ssize_t;
    recv: fn(c_int, *mut c_void, size_t, c_int) -> ssize_t;
    send: fn(c_int, *const c_void, size_t, c_int) -> ssize_t;
    recvmsg: fn(c_int, *mut msghdr, c_int) -> ssize_t;
    sendmsg: fn(c_int, *const msghdr, c_int) -> ssize_t;
    poll: fn(*mut pollfd, nfds_t, c_int) -> c_int;
    ppoll: fn(*mut pollfd, nfds_t, *const timespec, *const libc::sigset_t) -> c_int;
    select: fn(c_int, *mut fd_set, *mut fd_set, *mut fd_set, *mut timeval) -> c_int;
    epoll_wait: fn(c_int, *mut epoll_event, c_int, c_int) -> c_int;
    epoll_ctl: fn(c_int, c_int, c_int, *mut epoll_event) -> c_int;
    fcntl: fn(c_int, c_int, c_ulong) -> c_int;
    ioctl: fn(c_int, c_ulong, *mut c_int) -> c_int;
    getsockopt: fn(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int;
    setsockopt: fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;
    dup: fn(c_int) -> c_int;
    dup2: fn(c_int, c_int) -> c_int;
    close: fn(c_int) -> c_int;
}

impl Functions {
    /// libc's own.
    ///
    /// # Errors
    /// There is no libc.so.6 in the process: it is not a program of glibc.
    pub(super) fn of_libc() -> Result<Self> {
        // SAFETY: a C string; the library is there already.
        let libc = unsafe { libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        ensure!(!libc.is_null(), "libc.so.6 is not loaded");
        Self::of(libc)
    }

    /// Those that the program gets.
    ///
    /// # Errors
    /// They are libc's own: nothing is preloaded.
    pub(super) fn of_program(libc: &Self) -> Result<Self> {
        let found = Self::of(libc::RTLD_DEFAULT)?;
        let differ = found.write as *const c_void != libc.write as *const c_void;
        ensure!(differ, "the library is not preloaded, so both sides would be the same");
        Ok(found)
    }
}

/// What the calls are made on. None is selected, and nothing is in the queues between two calls.
pub(crate) struct Files {
    /// /dev/null.
    pub(super) null: OwnedFd,
    /// /dev/zero.
    pub(super) zero: OwnedFd,
    /// A pair of datagram sockets.
    pub(super) datagrams: (OwnedFd, OwnedFd),
    /// A pair of stream sockets.
    pub(super) streams: (OwnedFd, OwnedFd),
    /// The first of the datagram sockets is in it.
    pub(super) epoll: OwnedFd,
    /// In no set, and nobody's; dup2 replaces it.
    pub(super) spare: OwnedFd,
}

/// A call, how many system calls it is, and how to make it; whether that succeeded.
pub(crate) type Call = (&'static str, u32, fn(&Functions, &Files) -> bool);

fn number(file: &OwnedFd) -> RawFd {
    file.as_raw_fd()
}

fn wanted(file: &OwnedFd) -> pollfd {
    pollfd { fd: number(file), events: libc::POLLIN, revents: 0 }
}

fn event() -> epoll_event {
    epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: 0 }
}

/// A header of one byte, without control messages.
fn header(part: &mut iovec) -> msghdr {
    // SAFETY: all zero is a valid `msghdr`.
    let mut header: msghdr = unsafe { zeroed() };
    (header.msg_iov, header.msg_iovlen) = (part, 1);
    header
}

/// Calls one of the functions.
macro_rules! make {
    ($by:ident.$name:ident($($argument:expr),*)) => {
        // SAFETY: the function's own signature, live descriptors, and pointers to live locals of the types and sizes that it takes.
        unsafe { ($by.$name)($($argument),*) }
    };
}

/// Every call.
pub(crate) const CALLS: [Call; 19] = [
    ("write to /dev/null", 1, |by, on| make!(by.write(number(&on.null), (&raw const BYTE).cast(), 1)) == 1),
    ("read from /dev/zero", 1, |by, on| {
        let mut byte = 0_u8;
        make!(by.read(number(&on.zero), (&raw mut byte).cast(), 1)) == 1
    }),
    ("writev to /dev/null", 1, |by, on| {
        let part = iovec { iov_base: (&raw const BYTE).cast_mut().cast(), iov_len: 1 };
        make!(by.writev(number(&on.null), &raw const part, 1)) == 1
    }),
    ("send and recv, datagrams", 2, |by, on| {
        let mut byte = 0_u8;
        let sent = make!(by.send(number(&on.datagrams.0), (&raw const BYTE).cast(), 1, 0));
        sent == 1 && make!(by.recv(number(&on.datagrams.1), (&raw mut byte).cast(), 1, 0)) == 1
    }),
    ("sendmsg and recvmsg, datagrams", 2, |by, on| {
        let mut byte = 0_u8;
        let mut part = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message = header(&mut part);
        let sent = make!(by.sendmsg(number(&on.datagrams.0), &raw const message, 0));
        sent == 1 && make!(by.recvmsg(number(&on.datagrams.1), &raw mut message, 0)) == 1
    }),
    ("write and read, unnamed stream", 2, |by, on| {
        let mut byte = 0_u8;
        let sent = make!(by.write(number(&on.streams.0), (&raw const BYTE).cast(), 1));
        sent == 1 && make!(by.read(number(&on.streams.1), (&raw mut byte).cast(), 1)) == 1
    }),
    ("poll of one, at once", 1, |by, on| {
        let mut one = wanted(&on.datagrams.0);
        make!(by.poll(&raw mut one, 1, 0)) == 0
    }),
    ("ppoll of one, at once", 1, |by, on| {
        let (mut one, time) = (wanted(&on.datagrams.0), timespec { tv_sec: 0, tv_nsec: 0 });
        make!(by.ppoll(&raw mut one, 1, &raw const time, null())) == 0
    }),
    ("select of one, at once", 1, |by, on| {
        let (highest, mut time) = (number(&on.datagrams.0), timeval { tv_sec: 0, tv_usec: 0 });
        // SAFETY: all zero is the empty set, and the number is a live descriptor's, one of the first.
        let mut set = unsafe {
            let mut set: fd_set = zeroed();
            libc::FD_SET(highest, &raw mut set);
            set
        };
        make!(by.select(highest + 1, &raw mut set, null_mut(), null_mut(), &raw mut time)) == 0
    }),
    ("epoll_wait, at once", 1, |by, on| {
        let mut found = event();
        make!(by.epoll_wait(number(&on.epoll), &raw mut found, 1, 0)) == 0
    }),
    ("epoll_ctl, EPOLL_CTL_MOD", 1, |by, on| {
        let mut event = event();
        make!(by.epoll_ctl(number(&on.epoll), libc::EPOLL_CTL_MOD, number(&on.datagrams.0), &raw mut event)) == 0
    }),
    ("epoll_ctl, in and out", 2, |by, on| {
        let (epoll, other, mut event) = (number(&on.epoll), number(&on.datagrams.1), event());
        let added = make!(by.epoll_ctl(epoll, libc::EPOLL_CTL_ADD, other, &raw mut event));
        added == 0 && make!(by.epoll_ctl(epoll, libc::EPOLL_CTL_DEL, other, null_mut())) == 0
    }),
    ("fcntl, F_GETFL", 1, |by, on| make!(by.fcntl(number(&on.null), libc::F_GETFL, 0)) >= 0),
    ("ioctl, FIONREAD", 1, |by, on| {
        let mut queued = 0;
        make!(by.ioctl(number(&on.streams.0), libc::FIONREAD, &raw mut queued)) == 0
    }),
    ("getsockopt, SO_TYPE", 1, |by, on| {
        let (mut kind, mut length): (c_int, _) = (0, INT);
        let place = (&raw mut kind).cast();
        make!(by.getsockopt(number(&on.streams.0), libc::SOL_SOCKET, libc::SO_TYPE, place, &raw mut length)) == 0
    }),
    ("setsockopt, SO_REUSEADDR", 1, |by, on| {
        let yes: c_int = 1;
        make!(by.setsockopt(number(&on.streams.0), libc::SOL_SOCKET, libc::SO_REUSEADDR, (&raw const yes).cast(), INT)) == 0
    }),
    ("dup and close", 2, |by, on| make!(by.close((by.dup)(number(&on.null)))) == 0),
    ("F_DUPFD and close", 2, |by, on| make!(by.close((by.fcntl)(number(&on.null), libc::F_DUPFD, 0))) == 0),
    ("dup2", 1, |by, on| make!(by.dup2(number(&on.null), number(&on.spare))) >= 0),
];

/// What is written.
static BYTE: u8 = 0;
/// Bytes of an option's value.
const INT: socklen_t = size_of::<c_int>() as socklen_t;
