//! The calls that a victim makes on its end, each judged: no more bytes than were asked for, and no error that the kernel's socket would
//! not give.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::select::{FdSet, select};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, recv, recvmsg, send, sendmsg, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::uio::{readv, writev};
use nix::unistd::{read, write};
use serde::{Deserialize, Serialize};

use super::board::Board;
use super::plan::{MESSAGE, Manner, Plan};
use crate::exchange::Dice;

/// Most bytes of one call.
const MOST: usize = 150_000;
/// Time-outs of a victim that makes any call after any other.
const TIME_OUT: Duration = Duration::from_millis(2);

/// What a round came to for the victim.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub calls: u64,
    pub received: u64,
    pub sent: u64,
    /// Errors by call and errno.
    pub errors: BTreeMap<String, u64>,
    /// Nothing more came, before the attacker went. That no more goes is the peer's to say: it is what shutdown(2) is.
    pub early: bool,
}

/// One end and what was seen of it.
pub(super) struct End<'a> {
    stream: &'a UnixStream,
    board: &'a Board,
    bytes: Vec<u8>,
    set: Epoll,
    pub outcome: Outcome,
    /// Nothing comes any more, and nothing goes.
    in_over: bool,
    out_over: bool,
    shut: bool,
}

impl<'a> End<'a> {
    pub(super) fn new(stream: &'a UnixStream, board: &'a Board, manner: Manner) -> Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let events = match manner {
            Manner::EpollOut => EpollFlags::EPOLLOUT,
            Manner::EpollEdge => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET,
            _ => EpollFlags::EPOLLIN,
        };
        if matches!(manner, Manner::Epoll | Manner::EpollEdge | Manner::EpollOut | Manner::Mixed) {
            set.add(stream, EpollEvent::new(events, 1))?;
        }
        let bytes = vec![7; MOST];
        Ok(Self { stream, board, bytes, set, outcome: Outcome::default(), in_over: false, out_over: false, shut: false })
    }

    /// Plays a round to its end.
    ///
    /// # Errors
    /// An answer that the kernel's socket would not give.
    pub(super) fn play(&mut self, plan: &Plan) -> Result<()> {
        let mut dice = plan.dice(true);
        match plan.manner {
            Manner::Mixed => {
                self.stream.set_read_timeout(Some(TIME_OUT))?;
                self.stream.set_write_timeout(Some(TIME_OUT))?;
                for _ in 0..plan.steps {
                    self.any(&mut dice)?;
                    if self.in_over && self.out_over {
                        break;
                    }
                }
            }
            manner => {
                while !self.in_over && !self.out_over {
                    self.wait_and_move(manner)?;
                }
            }
        }
        Ok(())
    }

    /// One message there and back, before anything bad happens.
    ///
    /// # Errors
    /// An error, which an honest peer is no reason for.
    pub(super) fn answer(&mut self) -> Result<()> {
        let mut message = [0; MESSAGE];
        for whole in [false, true] {
            let mut done = 0;
            while done < MESSAGE {
                let rest = message.get_mut(done..).unwrap_or_default();
                let moved = if whole { write(self.stream, rest) } else { read(self.stream, rest) };
                done += match moved.context("before anything bad happened")? {
                    0 => bail!("the end of file, before anything bad happened"),
                    moved => moved,
                };
            }
        }
        Ok(())
    }

    /// Waits as the manner says, and moves bytes.
    fn wait_and_move(&mut self, manner: Manner) -> Result<()> {
        let none = PollTimeout::NONE;
        match manner {
            Manner::Poll | Manner::PollOut => {
                let flags = if manner == Manner::Poll { PollFlags::POLLIN } else { PollFlags::POLLOUT };
                self.waiting(true, "poll", |end| poll(&mut [PollFd::new(end.stream.as_fd(), flags)], none))?;
            }
            Manner::Select => {
                self.waiting(true, "select", |end| {
                    let mut fds = FdSet::new();
                    fds.insert(end.stream.as_fd());
                    select(None, &mut fds, None, None, None)
                })?;
            }
            Manner::Epoll | Manner::EpollEdge | Manner::EpollOut => {
                self.waiting(true, "epoll_wait", |end| end.set.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE))?;
            }
            _ => {}
        }
        let now = MsgFlags::MSG_DONTWAIT;
        match manner {
            Manner::Read | Manner::Echo => self.take(true, "read", 4000, |end, most| read(end.stream, end.room(most)))?,
            Manner::WaitAll => {
                let all = MsgFlags::MSG_WAITALL;
                self.take(true, "recv, MSG_WAITALL", 700, |end, most| recv(end.stream.as_raw_fd(), end.room(most), all))?
            }
            Manner::Readv => self.take(true, "readv", 5000, Self::readv)?,
            Manner::Recvmsg => self.take(true, "recvmsg", 5000, |end, most| end.recvmsg(most, MsgFlags::empty()))?,
            Manner::EpollEdge => {
                while !self.in_over
                    && self.take(false, "recv", 3000, |end, most| recv(end.stream.as_raw_fd(), end.room(most), now))?
                {
                }
                return Ok(());
            }
            Manner::Write => self.give(true, "write", 9000, |end, most| write(end.stream, end.some(most)))?,
            Manner::Sendmsg => self.give(true, "sendmsg", 9000, |end, most| end.sendmsg(most, &[], MsgFlags::empty()))?,
            Manner::PollOut | Manner::EpollOut => {
                self.give(false, "send", 9000, |end, most| send(end.stream.as_raw_fd(), end.some(most), now))?
            }
            _ => self.take(false, "recv", 4000, |end, most| recv(end.stream.as_raw_fd(), end.room(most), now))?,
        };
        if manner == Manner::Echo && !self.in_over {
            let last = usize::try_from(self.outcome.received - self.outcome.sent).unwrap_or(0);
            self.give(true, "write", last, |end, most| write(end.stream, end.some(most)))?;
        }
        Ok(())
    }

    /// Any call.
    fn any(&mut self, dice: &mut Dice) -> Result<()> {
        let (most, now) = (dice.size(MOST as u64) as usize, MsgFlags::MSG_DONTWAIT);
        let soon = PollTimeout::from(1_u8);
        match dice.below(27) {
            0..=2 => self.take(true, "read", most, |end, most| read(end.stream, end.room(most))),
            3..=5 => self.take(false, "recv", most, |end, most| recv(end.stream.as_raw_fd(), end.room(most), now)),
            6 => self.take(true, "recv, MSG_WAITALL", most, |end, most| {
                recv(end.stream.as_raw_fd(), end.room(most), MsgFlags::MSG_WAITALL)
            }),
            7 => self.look(most, MsgFlags::empty()),
            8 => self.look(most, now),
            9 => self.take(true, "readv", most, Self::readv),
            10 => self.take(false, "recvmsg", most, |end, most| end.recvmsg(most, now)),
            11..=13 => self.give(true, "write", most, |end, most| write(end.stream, end.some(most))),
            14..=16 => self.give(false, "send", most, |end, most| send(end.stream.as_raw_fd(), end.some(most), now)),
            17 => self.give(true, "writev", most, Self::writev),
            18 => self.give(false, "sendmsg", most, |end, most| end.sendmsg(most, &[], now)),
            19 => self.waiting(true, "poll", |end| {
                poll(&mut [PollFd::new(end.stream.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)], soon)
            }),
            20 => self
                .waiting(false, "poll", |end| poll(&mut [PollFd::new(end.stream.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)),
            21 => self.waiting(false, "select", |end| {
                let (mut reads, mut writes) = (FdSet::new(), FdSet::new());
                reads.insert(end.stream.as_fd());
                writes.insert(end.stream.as_fd());
                select(None, &mut reads, &mut writes, None, &mut TimeVal::zero())
            }),
            22 => self.waiting(true, "epoll_wait", |end| end.set.wait(&mut [EpollEvent::empty()], 1_u8)),
            _ => self.rare(dice),
        }
        .map(drop)
    }

    /// Calls that a program makes now and then, and some that make a connection leave its rings.
    fn rare(&mut self, dice: &mut Dice) -> Result<bool> {
        match dice.below(20) {
            0..=6 => self.waiting(false, "getsockopt, SO_ERROR", |end| getsockopt(end.stream, sockopt::SocketError)),
            7..=9 => {
                self.board.begin(false);
                drop(self.stream.try_clone()?);
                Ok(true)
            }
            10..=12 => {
                self.board.begin(false);
                let nonblocking = dice.one_in(2);
                self.stream.set_nonblocking(nonblocking)?;
                Ok(true)
            }
            13..=14 => {
                let buffer = dice.size(300_000) as usize;
                self.waiting(false, "setsockopt, SO_SNDBUF", |end| setsockopt(end.stream, sockopt::SndBuf, &buffer).map(|()| 0))
            }
            15 => {
                let file = File::open("/dev/null")?;
                let rights = [file.as_raw_fd()];
                self.give(true, "sendmsg, SCM_RIGHTS", 9, |end, most| {
                    end.sendmsg(most, &[ControlMessage::ScmRights(&rights)], MsgFlags::empty())
                })
            }
            16 => {
                let file = File::open("/proc/self/exe")?;
                self.give(true, "sendfile", 4000, |end, most| sendfile(end.stream, &file, None, most))
            }
            17 if dice.one_in(4) => self.shut(Shutdown::Write),
            18 if dice.one_in(4) => self.shut(Shutdown::Read),
            _ => Ok(true),
        }
    }

    fn shut(&mut self, what: Shutdown) -> Result<bool> {
        self.shut = true;
        self.waiting(false, "shutdown", |end| {
            end.stream.shutdown(what).map(|()| 0).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })
    }

    fn room(&mut self, most: usize) -> &mut [u8] {
        self.bytes.get_mut(..most).unwrap_or_default()
    }

    fn some(&self, most: usize) -> &[u8] {
        self.bytes.get(..most).unwrap_or_default()
    }

    fn readv(&mut self, most: usize) -> nix::Result<usize> {
        let stream = self.stream;
        let (first, second) = self.room(most).split_at_mut(most / 3);
        readv(stream, &mut [IoSliceMut::new(first), IoSliceMut::new(second)])
    }

    fn writev(&mut self, most: usize) -> nix::Result<usize> {
        let (first, second) = self.some(most).split_at(most / 3);
        writev(self.stream, &[IoSlice::new(first), IoSlice::new(second)])
    }

    fn recvmsg(&mut self, most: usize, flags: MsgFlags) -> nix::Result<usize> {
        let fd = self.stream.as_raw_fd();
        recvmsg::<()>(fd, &mut [IoSliceMut::new(self.room(most))], None, flags).map(|message| message.bytes)
    }

    fn sendmsg(&mut self, most: usize, beside: &[ControlMessage<'_>], flags: MsgFlags) -> nix::Result<usize> {
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(self.some(most))], beside, flags, None)
    }

    /// Makes one call, and says how many bytes it moved; `None` if it failed as it may.
    fn attempt(
        &mut self,
        waits: bool,
        name: &str,
        most: usize,
        call: impl FnOnce(&mut Self, usize) -> nix::Result<usize>,
    ) -> Result<Option<usize>> {
        self.board.begin(waits);
        let result = call(self, most);
        self.judge(name, most, result)
    }

    /// Receives. False if there was nothing.
    fn take(
        &mut self,
        waits: bool,
        name: &str,
        most: usize,
        call: impl Fn(&mut Self, usize) -> nix::Result<usize>,
    ) -> Result<bool> {
        match self.attempt(waits, name, most, call)? {
            Some(0) => self.over(true),
            Some(count) => self.outcome.received += count as u64,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Looks without taking.
    fn look(&mut self, most: usize, flags: MsgFlags) -> Result<bool> {
        let call = |this: &mut Self, most| recv(this.stream.as_raw_fd(), this.room(most), flags | MsgFlags::MSG_PEEK);
        self.attempt(!flags.contains(MsgFlags::MSG_DONTWAIT), "recv, MSG_PEEK", most, call).map(|_| true)
    }

    /// Sends.
    fn give(
        &mut self,
        waits: bool,
        name: &str,
        most: usize,
        call: impl Fn(&mut Self, usize) -> nix::Result<usize>,
    ) -> Result<bool> {
        let count = self.attempt(waits, name, most, call)?;
        self.outcome.sent += count.unwrap_or(0) as u64;
        Ok(count.is_some())
    }

    /// A call that moves nothing.
    fn waiting<T>(&mut self, waits: bool, name: &str, call: impl Fn(&Self) -> nix::Result<T>) -> Result<bool> {
        self.attempt(waits, name, 0, |this, _| call(this).map(|_| 0)).map(|_| true)
    }

    fn over(&mut self, incoming: bool) {
        if incoming {
            // What the victim has shut down itself is nobody's doing.
            self.outcome.early |= !self.shut && !self.board.leaving();
            self.in_over = true;
        } else {
            self.out_over = true;
        }
    }

    fn judge(&mut self, name: &str, most: usize, result: nix::Result<usize>) -> Result<Option<usize>> {
        self.outcome.calls += 1;
        let errno = match result {
            Ok(count) if count > most => bail!("{name} of {most} bytes returned {count}"),
            Ok(count) => return Ok(Some(count)),
            Err(errno) => errno,
        };
        *self.outcome.errors.entry(format!("{name}: {errno:?}")).or_default() += 1;
        match errno {
            Errno::EAGAIN => {}
            Errno::ECONNRESET if name.starts_with("re") => {
                self.over(true);
                self.out_over = true;
            }
            Errno::ECONNRESET => (self.in_over, self.out_over) = (true, true),
            Errno::EPIPE => self.over(false),
            // Of a connection that has ended.
            Errno::ENOTCONN if name == "shutdown" => {}
            other => bail!("{name} failed with {other}, which the kernel's socket never says here"),
        }
        Ok(None)
    }
}
