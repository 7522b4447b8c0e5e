//! Calls on descriptors that the library has no business with: what its presence costs them.
//!
//! A nanosecond in some hundred is looked for. So the calls take turns in short batches, all through the measuring time, and of
//! each call the median batch is told, and the fastest.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::select::{FdSet, select};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::uio::writev;

use super::{Load, Pinned};
use crate::figures::{Figures, median};

/// Calls in a batch: some hundred microseconds.
const BATCH: u32 = 500;
/// Batches of each call before any counts.
const WARM_UP_BATCHES: usize = 3;

/// A call, how many system calls it is, and how to make it.
type Call = (&'static str, u32, fn(&mut Files) -> Result<()>);

/// Every call.
pub(crate) const CALLS: [Call; 12] = [
    ("write to /dev/null", 1, |files| Ok(files.null.write_all(&[0])?)),
    ("read from /dev/zero", 1, |files| Ok(files.zero.read_exact(&mut [0])?)),
    ("writev to /dev/null", 1, |files| Ok(writev(&files.null, &[IoSlice::new(&[0])]).map(drop)?)),
    ("send and recv, datagrams", 2, |files| {
        send(files.datagrams.0.as_raw_fd(), &[0], MsgFlags::empty())?;
        Ok(recv(files.datagrams.1.as_raw_fd(), &mut [0], MsgFlags::empty()).map(drop)?)
    }),
    ("write and read, unnamed stream", 2, |files| {
        files.streams.0.write_all(&[0])?;
        Ok(files.streams.1.read_exact(&mut [0])?)
    }),
    ("poll of one, at once", 1, |files| {
        Ok(poll(&mut [PollFd::new(files.datagrams.0.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).map(drop)?)
    }),
    ("select of one, at once", 1, |files| {
        let mut set = FdSet::new();
        set.insert(files.datagrams.0.as_fd());
        let highest = files.datagrams.0.as_raw_fd();
        Ok(select(highest + 1, &mut set, None, None, &mut TimeVal::zero()).map(drop)?)
    }),
    ("epoll_wait, at once", 1, |files| Ok(files.epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO).map(drop)?)),
    ("epoll_ctl, EPOLL_CTL_MOD", 1, |files| {
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        Ok(files.epoll.modify(&files.datagrams.0, &mut event)?)
    }),
    ("epoll_ctl, in and out", 2, |files| {
        files.epoll.add(&files.counter, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(files.epoll.delete(&files.counter)?)
    }),
    ("fcntl, F_GETFL", 1, |files| Ok(fcntl(&files.null, FcntlArg::F_GETFL).map(drop)?)),
    ("dup and close", 2, |files| Ok(nix::unistd::dup(&files.null).map(drop)?)),
];

/// What the calls are made on.
pub(crate) struct Files {
    null: File,
    zero: File,
    datagrams: (OwnedFd, OwnedFd),
    streams: (UnixStream, UnixStream),
    epoll: Epoll,
    /// In no set.
    counter: EventFd,
}

impl Files {
    fn open() -> Result<Self> {
        let datagrams = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&datagrams.0, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Self {
            null: OpenOptions::new().write(true).open("/dev/null")?,
            zero: File::open("/dev/zero")?,
            datagrams,
            streams: UnixStream::pair()?,
            epoll,
            counter: EventFd::new()?,
        })
    }
}

/// For each of [`CALLS`], nanoseconds of a system call.
pub(super) fn plain(load: &Load, _: Pinned) -> Result<Vec<Figures>> {
    let mut files = Files::open()?;
    let mut batches = CALLS.map(|_| Vec::new());
    let (start, limit) = (Instant::now(), Duration::from_millis(load.milliseconds));
    while start.elapsed() < limit || batches.iter().any(|times| times.len() <= WARM_UP_BATCHES) {
        for ((_, each, call), times) in CALLS.iter().zip(&mut batches) {
            let start = Instant::now();
            for _ in 0..BATCH {
                call(&mut files)?;
            }
            times.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH * each));
        }
    }
    let figures = |times: &Vec<f64>| {
        let times = times.get(WARM_UP_BATCHES..).unwrap_or_default();
        Figures { least: times.iter().copied().reduce(f64::min), ..Figures::of(median(times)) }
    };
    Ok(batches.iter().map(figures).collect())
}
