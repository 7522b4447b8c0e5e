//! The calls in which a survivor is blocked.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::select::{FdSet, select};
use nix::sys::socket::{MsgFlags, recv, recvmsg, send, sendmsg};
use nix::sys::uio::readv;
use nix::unistd::{read, write};

use super::plan::Kind;
use super::survivor::{End, end_of};

/// How a stream is waited for.
enum Wait {
    /// In the call itself.
    No,
    Poll(PollFlags),
    Select,
    Epoll(Epoll),
}

impl Wait {
    fn wait(&self, fd: BorrowedFd<'_>) -> Result<()> {
        match self {
            Self::No => {}
            Self::Poll(flags) => drop(poll(&mut [PollFd::new(fd, *flags)], PollTimeout::NONE)?),
            Self::Select => {
                let mut set = FdSet::new();
                set.insert(fd);
                select(None, &mut set, None, None, None)?;
            }
            Self::Epoll(set) => match set.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
                // Of a process that was stopped and goes on: signal(7). Whoever waits looks anyway.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            },
        }
        Ok(())
    }

    fn epoll(stream: &UnixStream, flags: EpollFlags) -> Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        set.add(stream, EpollEvent::new(flags, 1))?;
        Ok(Self::Epoll(set))
    }
}

/// Receives by one kind of call.
pub(crate) struct Receiver<'a> {
    kind: Kind,
    stream: &'a UnixStream,
    wait: Wait,
    /// The last receive took all that there was, or nothing was asked yet.
    exhausted: bool,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(kind: Kind, stream: &'a UnixStream) -> Result<Self> {
        let wait = match kind {
            Kind::Poll => Wait::Poll(PollFlags::POLLIN),
            Kind::Select => Wait::Select,
            Kind::Epoll => Wait::epoll(stream, EpollFlags::EPOLLIN)?,
            Kind::EpollEdge => Wait::epoll(stream, EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET)?,
            _ => Wait::No,
        };
        if kind == Kind::EpollEdge {
            stream.set_nonblocking(true)?;
        }
        Ok(Self { kind, stream, wait, exhausted: true })
    }

    /// Bytes that came, at least one; or the end.
    pub(crate) fn receive(&mut self, into: &mut [u8]) -> Result<Result<usize, End>> {
        loop {
            if self.kind != Kind::EpollEdge || self.exhausted {
                self.wait.wait(self.stream.as_fd())?;
            }
            match self.call(into) {
                Ok(0) => return Ok(Err(End::OfFile)),
                Ok(count) => {
                    self.exhausted = false;
                    return Ok(Ok(count));
                }
                Err(Errno::EAGAIN) => self.exhausted = true,
                Err(errno) => return Ok(Err(end_of(errno)?)),
            }
        }
    }

    fn call(&self, into: &mut [u8]) -> nix::Result<usize> {
        let fd = self.stream.as_raw_fd();
        match self.kind {
            Kind::Recvmsg => recvmsg::<()>(fd, &mut [IoSliceMut::new(into)], None, MsgFlags::empty()).map(|message| message.bytes),
            Kind::WaitAll => recv(fd, into, MsgFlags::MSG_WAITALL),
            Kind::Readv => {
                let (first, second) = into.split_at_mut(into.len() / 3);
                readv(self.stream, &mut [IoSliceMut::new(first), IoSliceMut::new(second)])
            }
            Kind::Poll | Kind::Select => recv(fd, into, MsgFlags::MSG_DONTWAIT),
            _ => read(self.stream, into),
        }
    }
}

/// Sends by one kind of call.
pub(crate) struct Sender<'a> {
    kind: Kind,
    stream: &'a UnixStream,
    wait: Wait,
}

impl<'a> Sender<'a> {
    pub(crate) fn new(kind: Kind, stream: &'a UnixStream) -> Result<Self> {
        let wait = match kind {
            Kind::PollOut => Wait::Poll(PollFlags::POLLOUT),
            Kind::EpollOut => Wait::epoll(stream, EpollFlags::EPOLLOUT)?,
            _ => Wait::No,
        };
        Ok(Self { kind, stream, wait })
    }

    /// Bytes that were taken; or the end.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<Result<usize, End>> {
        let fd = self.stream.as_raw_fd();
        loop {
            self.wait.wait(self.stream.as_fd())?;
            let sent = match self.kind {
                Kind::Sendmsg => sendmsg::<()>(fd, &[IoSlice::new(bytes)], &[], MsgFlags::MSG_NOSIGNAL, None),
                Kind::PollOut | Kind::EpollOut => send(fd, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
                // SIGPIPE is ignored in Rust programs.
                _ => write(self.stream, bytes),
            };
            match sent {
                Ok(count) => return Ok(Ok(count)),
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Ok(Err(end_of(errno)?)),
            }
        }
    }
}
