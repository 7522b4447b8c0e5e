//! The two halves of one end: a thread that sends one direction of a connection, and one that receives and checks the other.

use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::libc::ucred;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg, setsockopt, sockopt};
use nix::sys::uio::{readv, writev};
use nix::{cmsg_space, unistd};

use super::pattern::{Pattern, WORD};
use super::plan::{CHUNK_MAX, Demotion, Dice, Direction, GETS, Get, PUTS, Put};
use super::raw;
use super::watch::{Half, Watch};

/// Longest that a thread waits for readiness: longer than [`Watch`] has patience, so that a lost wake-up is a stall.
const WAIT_MS: u16 = 60_000;
/// Most bytes that go by `sendfile` or through a pipe at once: what a pipe holds.
const DETOUR_MAX: u64 = 32 << 10;

/// Waits for readiness in the ways that programs do.
struct Waiter {
    events: EpollFlags,
    epoll: Option<Epoll>,
    edges: bool,
}

impl Waiter {
    fn new(events: EpollFlags, edges: bool) -> Self {
        Self { events, epoll: None, edges }
    }

    /// Waits until the stream may be ready. A debugger may interrupt that.
    fn wait(&mut self, stream: &impl AsFd, by_epoll: bool) -> Result<()> {
        match self.wait_once(stream, by_epoll) {
            Err(Errno::EINTR) => Ok(()),
            result => Ok(result?),
        }
    }

    fn wait_once(&mut self, stream: &impl AsFd, by_epoll: bool) -> nix::Result<()> {
        if !by_epoll {
            let events = if self.events.contains(EpollFlags::EPOLLIN) { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            poll(&mut [PollFd::new(stream.as_fd(), events)], PollTimeout::from(WAIT_MS))?;
            return Ok(());
        }
        if self.epoll.is_none() {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let edge = if self.edges { EpollFlags::EPOLLET } else { EpollFlags::empty() };
            epoll.add(stream, EpollEvent::new(self.events | edge, 0))?;
            self.epoll = Some(epoll);
        }
        if let Some(epoll) = &self.epoll {
            epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(WAIT_MS))?;
        }
        Ok(())
    }
}

/// Up to three parts of a buffer.
fn parts<'a>(bytes: &'a [u8], dice: &mut Dice) -> Vec<IoSlice<'a>> {
    let (first, rest) = bytes.split_at(dice.below(bytes.len() as u64 + 1) as usize);
    let (second, third) = rest.split_at(dice.below(rest.len() as u64 + 1) as usize);
    [first, second, third].map(IoSlice::new).to_vec()
}

fn parts_mut<'a>(bytes: &'a mut [u8], dice: &mut Dice) -> Vec<IoSliceMut<'a>> {
    let middle = dice.below(bytes.len() as u64 + 1) as usize;
    let (first, second) = bytes.split_at_mut(middle);
    vec![IoSliceMut::new(first), IoSliceMut::new(second)]
}

/// Sends one direction.
pub(crate) struct Sender<'a> {
    stream: &'a UnixStream,
    /// What the connection's own descriptor became when it travelled.
    travelled: Option<OwnedFd>,
    direction: &'a Direction,
    dice: Dice,
    waiter: Waiter,
    watch: &'a Watch,
    /// Position of the next byte to send.
    position: u64,
    /// The stream's bytes from `from` on, which is a multiple of a word.
    bytes: Vec<u8>,
    from: u64,
}

impl<'a> Sender<'a> {
    pub(crate) fn new(stream: &'a UnixStream, direction: &'a Direction, edges: bool, watch: &'a Watch) -> Self {
        Self {
            stream,
            travelled: None,
            direction,
            dice: Dice::new(direction.seed, 1),
            waiter: Waiter::new(EpollFlags::EPOLLOUT, edges),
            watch,
            position: 0,
            bytes: Vec::new(),
            from: 0,
        }
    }

    /// Sends everything.
    pub(crate) fn run(mut self) -> Result<()> {
        let mut demotion = self.direction.demotion;
        while self.position < self.direction.bytes {
            if let Some((what, _)) = demotion.filter(|(_, at)| *at <= self.position) {
                demotion = None;
                self.demote(what).with_context(|| format!("{what:?} at {}", self.position))?;
                continue;
            }
            let most = self.direction.chunk_max[0].min(self.direction.bytes - self.position);
            let length = self.dice.size(most) as usize;
            let how = self.dice.pick(&PUTS);
            self.fill(length);
            let sent = self.put(how, length).with_context(|| format!("{how:?} of {length} at {}", self.position))?;
            self.moved(sent);
        }
        if self.direction.shut {
            self.stream.shutdown(std::net::Shutdown::Write)?;
        }
        Ok(())
    }

    fn moved(&mut self, count: usize) {
        self.position += count as u64;
        self.watch.moved(Half::Sender, self.position);
    }

    /// Has the next `length` bytes at hand.
    fn fill(&mut self, length: usize) {
        let covered = self.position >= self.from && self.position + length as u64 <= self.from + self.bytes.len() as u64;
        if !covered {
            self.from = self.position / WORD as u64 * WORD as u64;
            self.bytes.resize(CHUNK_MAX + WORD, 0);
            // No more than is used of a small direction.
            let useful = (self.direction.chunk_max[0] as usize * 16).clamp(length + WORD, CHUNK_MAX + WORD);
            self.bytes.truncate(useful);
            Pattern(self.direction.seed).fill(self.from, &mut self.bytes);
        }
    }

    fn next(&self, length: usize) -> &[u8] {
        let at = (self.position - self.from) as usize;
        &self.bytes[at..at + length]
    }

    /// Makes one call that moves bytes, waiting where it would block.
    fn put(&mut self, how: Put, length: usize) -> Result<usize> {
        loop {
            let mut dice = self.dice.clone();
            let bytes = self.next(length);
            let fd = self.travelled.as_ref().map_or(self.stream.as_fd(), |fd| fd.as_fd());
            let result = match how {
                Put::Write => unistd::write(fd, bytes),
                Put::Writev => writev(fd, &parts(bytes, &mut dice)),
                Put::Sendmsg => sendmsg::<()>(fd.as_raw_fd(), &parts(bytes, &mut dice), &[], how.flags(), None),
                Put::Send | Put::SendMore | Put::DontWait => send(fd.as_raw_fd(), bytes, how.flags()),
            };
            match result {
                Ok(count) => {
                    ensure!((1..=length).contains(&count), "{count} of {length} bytes were sent");
                    return Ok(count);
                }
                Err(Errno::EAGAIN) => {
                    let by_epoll = self.dice.one_in(2);
                    self.waiter.wait(self.stream, by_epoll)?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn demote(&mut self, what: Demotion) -> Result<()> {
        self.watch.demoting(what);
        let detour = self.dice.size(DETOUR_MAX).min(self.direction.bytes - self.position) as usize;
        match what {
            Demotion::PassCredentials => setsockopt(self.stream, sockopt::PassCred, &true)?,
            Demotion::Async => {
                let flags = OFlag::from_bits_retain(fcntl(self.stream, FcntlArg::F_GETFL)?);
                fcntl(self.stream, FcntlArg::F_SETFL(flags | OFlag::O_ASYNC))?;
            }
            Demotion::Travel => self.travelled = Some(travel(self.stream)?),
            Demotion::TravelInVain => drop(travel(self.stream)?),
            Demotion::Rights => self.send_rights(detour)?,
            Demotion::Print => self.print()?,
            Demotion::Sendfile => self.send_file(detour)?,
            Demotion::Splice => self.splice(detour)?,
        }
        Ok(())
    }

    fn send_rights(&mut self, length: usize) -> Result<()> {
        let null = std::fs::File::open("/dev/null")?;
        self.fill(length);
        loop {
            let beside = [null.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&beside)];
            match sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(self.next(length))], &message, Put::Sendmsg.flags(), None) {
                Ok(count) => {
                    self.moved(count);
                    return Ok(());
                }
                Err(Errno::EAGAIN) => self.waiter.wait(self.stream, false)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn print(&mut self) -> Result<()> {
        if self.direction.bytes - self.position < 4 {
            return Ok(());
        }
        self.fill(4);
        loop {
            let bytes = self.next(4).first_chunk().copied().context("four bytes")?;
            match (raw::print(self.stream.as_fd(), bytes), Errno::last()) {
                (4, _) => break,
                (-1, Errno::EAGAIN) => self.waiter.wait(self.stream, false)?,
                (count, errno) => bail!("dprintf returned {count}: {errno}"),
            }
        }
        self.moved(4);
        Ok(())
    }

    fn send_file(&mut self, length: usize) -> Result<()> {
        self.fill(length);
        let mut file = tempfile::tempfile()?;
        file.write_all(self.next(length))?;
        file.rewind()?;
        self.detour(length, |sender, left| sendfile(sender.stream, &file, None, left))
    }

    fn splice(&mut self, length: usize) -> Result<()> {
        self.fill(length);
        let (from, to) = unistd::pipe()?;
        let mut to = std::fs::File::from(to);
        to.write_all(self.next(length))?;
        self.detour(length, |sender, left| splice(&from, None, sender.stream, None, left, SpliceFFlags::empty()))
    }

    /// Repeats a call until it has moved `length` bytes.
    fn detour(&mut self, length: usize, call: impl Fn(&Self, usize) -> nix::Result<usize>) -> Result<()> {
        let mut left = length;
        while left > 0 {
            match call(self, left) {
                Ok(0) => bail!("{left} bytes are left, and nothing was moved"),
                Ok(count) => {
                    left -= count;
                    self.moved(count);
                }
                Err(Errno::EAGAIN) => self.waiter.wait(self.stream, false)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Sends the descriptor to ourselves and returns what comes out.
fn travel(stream: &UnixStream) -> Result<OwnedFd> {
    let (to, from) = UnixStream::pair()?;
    let beside = [stream.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&beside)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None)?;
    let mut byte = [0];
    let mut room = cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let received = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            return descriptors.first().map(|fd| raw::received(*fd)).context("no descriptor came");
        }
    }
    bail!("no descriptor came out")
}

/// Receives one direction and checks it.
pub(crate) fn receive(stream: &UnixStream, direction: &Direction, edges: bool, watch: &Watch) -> Result<()> {
    let pattern = Pattern(direction.seed);
    let mut dice = Dice::new(direction.seed, 2);
    let mut waiter = Waiter::new(EpollFlags::EPOLLIN, edges);
    let mut bytes = vec![0; CHUNK_MAX + WORD];
    let mut position = 0;
    while position < direction.bytes {
        let how = dice.pick(&GETS);
        let left = direction.bytes - position;
        let most = direction.chunk_max[1];
        // Only what waits for all must not ask for more than comes.
        let length = dice.size(if how == Get::WaitAll { most.min(left) } else { most }) as usize;
        if how == Get::PollFirst {
            let by_epoll = !edges && dice.one_in(2);
            waiter.wait(stream, by_epoll)?;
        }
        let skip = (position % WORD as u64) as usize;
        let room = bytes.get_mut(skip..skip + length).context("the buffer holds the largest chunk")?;
        let got = match get(stream, how, room, &mut dice) {
            Ok(count) => count,
            Err(Errno::EAGAIN) => {
                let by_epoll = dice.one_in(2);
                waiter.wait(stream, by_epoll)?;
                continue;
            }
            Err(errno) => bail!("{how:?} of {length} at {position}: {errno}"),
        };
        ensure!(got > 0, "{how:?} of {length}: end of file at {position} of {}", direction.bytes);
        ensure!(got as u64 <= left, "{how:?} of {length}: {} bytes too many at {position}", got as u64 - left);
        let room = room.get(..got).context("more than there was room for")?;
        if let Some(wrong) = pattern.first_wrong(position, room) {
            bail!("WRONG BYTE: {how:?} of {length} at {position} gave {got}: {}", pattern.explain(wrong, position, room));
        }
        if how != Get::Peek {
            position += got as u64;
        }
        watch.moved(Half::Receiver, position);
    }
    if direction.shut {
        await_end(stream, &mut waiter)?;
    }
    Ok(())
}

/// After the last byte of a direction that is shut down there is the end of the file, and nothing else.
fn await_end(mut stream: &UnixStream, waiter: &mut Waiter) -> Result<()> {
    loop {
        match stream.read(&mut [0; 16]) {
            Ok(0) => return Ok(()),
            Ok(count) => bail!("{count} bytes after the last"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => waiter.wait(&stream, false)?,
            Err(error) => return Err(error).context("instead of the end"),
        }
    }
}

fn get(stream: &UnixStream, how: Get, room: &mut [u8], dice: &mut Dice) -> nix::Result<usize> {
    match how {
        Get::Read => unistd::read(stream, room),
        Get::Readv => readv(stream, &mut parts_mut(room, dice)),
        Get::Recvmsg => {
            let mut beside = cmsg_space!([i32; 4], ucred);
            let mut parts = parts_mut(room, dice);
            let received = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut beside), MsgFlags::MSG_CMSG_CLOEXEC)?;
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = message {
                    descriptors.into_iter().for_each(|fd| drop(raw::received(fd)));
                }
            }
            Ok(received.bytes)
        }
        Get::Recv | Get::WaitAll | Get::Peek | Get::DontWait | Get::PollFirst => recv(stream.as_raw_fd(), room, how.flags()),
    }
}
