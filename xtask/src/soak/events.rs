//! A thread that serves many connections at once: whatever comes goes back. With an epoll set, half of its connections by edges, or with
//! poll(2).

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::hello::{Hello, LENGTH};
use super::stage::{Lane, Stage};
use super::talk::{ROOM, check, died};
use crate::exchange::{Half, Pattern};

/// How it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Epoll,
    Poll,
}

/// One connection.
struct Conversation {
    stream: UnixStream,
    /// Waits for edges.
    edges: bool,
    /// What came of the hello so far.
    head: Vec<u8>,
    hello: Option<Hello>,
    position: u64,
    /// What is to go back, from `at` on.
    backlog: Vec<u8>,
    at: usize,
}

/// What a conversation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Bytes,
    Room,
    /// It is over; whether it was cut.
    Nothing(bool),
}

impl Conversation {
    fn new(stream: UnixStream, edges: bool) -> Self {
        Self { stream, edges, head: Vec::new(), hello: None, position: 0, backlog: Vec::new(), at: 0 }
    }

    /// Goes on until it would block.
    fn step(&mut self, room: &mut [u8], lane: &Lane) -> Result<Next> {
        loop {
            while let Some(left) = self.backlog.get(self.at..).filter(|left| !left.is_empty()) {
                match self.stream.write(left) {
                    Ok(count) => self.at += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Room),
                    Err(error) => return died(error, "while the echo was sent").map(|_| Next::Nothing(true)),
                }
            }
            let limit = if self.hello.is_none() { LENGTH - self.head.len() } else { room.len() };
            match self.stream.read(&mut room[..limit]) {
                Ok(0) => return Ok(Next::Nothing(false)),
                Ok(count) => self.came(room.get(..count).context("more than there was room for")?, lane)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Bytes),
                Err(error) => return died(error, "while the next bytes were waited for").map(|_| Next::Nothing(true)),
            }
        }
    }

    fn came(&mut self, bytes: &[u8], lane: &Lane) -> Result<()> {
        let Some(hello) = &self.hello else {
            self.head.extend_from_slice(bytes);
            self.hello = self.head.first_chunk().map(Hello::of).transpose()?;
            return Ok(());
        };
        check(Pattern(hello.seed), self.position, bytes)?;
        self.position += bytes.len() as u64;
        lane.watch.moved(Half::Receiver, self.position);
        self.backlog.clear();
        self.backlog.extend_from_slice(bytes);
        self.at = 0;
        Ok(())
    }

    fn may_be_cut(&self) -> bool {
        self.hello.is_none_or(|hello| hello.mortal)
    }
}

/// All of them.
struct Server<'a> {
    stage: &'a Stage,
    lane: &'a Lane,
    epoll: Option<Epoll>,
    conversations: BTreeMap<RawFd, (Conversation, Next)>,
    room: Vec<u8>,
    accepted: u64,
}

/// Serves for ever.
///
/// # Errors
/// A wrong byte, or an answer of the socket that does not fit.
pub(super) fn serve(listener: &UnixListener, way: Way, stage: &Stage, lane: &Lane) -> Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = match way {
        Way::Epoll => Some(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?),
        Way::Poll => None,
    };
    let own = listener.as_raw_fd();
    if let Some(epoll) = &epoll {
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, own as u64))?;
    }
    let mut server = Server { stage, lane, epoll, conversations: BTreeMap::new(), room: vec![0; ROOM], accepted: 0 };
    loop {
        for ready in server.wait(listener)? {
            if ready == own { server.accept(listener)? } else { server.step(ready)? }
        }
    }
}

impl Server<'_> {
    /// Numbers that are ready.
    fn wait(&self, listener: &UnixListener) -> Result<Vec<RawFd>> {
        if let Some(epoll) = &self.epoll {
            let mut events = [EpollEvent::empty(); 16];
            // Whoever is stopped and goes on finds its epoll_wait(2) interrupted: signal(7).
            let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => 0,
                count => count?,
            };
            return Ok(events.iter().take(count).map(|event| event.data() as RawFd).collect());
        }
        let mut set = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        set.extend(self.conversations.values().map(|(conversation, next)| {
            let flags = if *next == Next::Room { PollFlags::POLLOUT } else { PollFlags::POLLIN };
            PollFd::new(conversation.stream.as_fd(), flags)
        }));
        poll(&mut set, PollTimeout::NONE)?;
        Ok(set.iter().filter(|fd| fd.any() == Some(true)).map(|fd| fd.as_fd().as_raw_fd()).collect())
    }

    fn accept(&mut self, listener: &UnixListener) -> Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot accept"),
            };
            stream.set_nonblocking(true)?;
            self.stage.open.fetch_add(1, Relaxed);
            self.accepted += 1;
            let (number, edges) = (stream.as_raw_fd(), self.accepted.is_multiple_of(2));
            if let Some(epoll) = &self.epoll {
                epoll.add(&stream, EpollEvent::new(interest(edges, Next::Bytes), number as u64))?;
            }
            self.conversations.insert(number, (Conversation::new(stream, edges), Next::Bytes));
        }
    }

    fn step(&mut self, number: RawFd) -> Result<()> {
        // One that was closed within the same wait is no more.
        let Some((conversation, before)) = self.conversations.get_mut(&number) else { return Ok(()) };
        let hello = conversation.hello;
        let next = conversation.step(&mut self.room, self.lane).with_context(|| format!("{hello:?}"))?;
        if let Next::Nothing(cut) = next {
            ensure!(!cut || conversation.may_be_cut(), "the connection was cut: {hello:?}");
            if cut {
                self.stage.count("server saw an end die");
            }
            self.conversations.remove(&number);
            self.stage.open.fetch_sub(1, AcqRel);
            return self.stage.harvest();
        }
        if next != *before {
            if let Some(epoll) = self.epoll.as_ref().filter(|_| !conversation.edges) {
                epoll.modify(&conversation.stream, &mut EpollEvent::new(interest(false, next), number as u64))?;
            }
            *before = next;
        }
        Ok(())
    }
}

fn interest(edges: bool, next: Next) -> EpollFlags {
    match (edges, next) {
        (true, _) => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
        (false, Next::Room) => EpollFlags::EPOLLOUT,
        (false, _) => EpollFlags::EPOLLIN,
    }
}
