//! Waits for readiness: poll, select, epoll in its kinds.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::select::{FdSet, select};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{read, write};

use super::stream::Stream;
use super::{Program, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("poll", |program, stream| waited_for(program, stream, by_poll), talk_and_flood),
    Scenario::new("select", |program, stream| waited_for(program, stream, by_select), talk_and_flood),
    Scenario::new("epoll", |program, stream| events(program, stream, EpollFlags::empty()), clients),
    Scenario::new("epoll-edge", |program, stream| events(program, stream, EpollFlags::EPOLLET), clients),
    Scenario::new("epoll-oneshot", |program, stream| events(program, stream, EpollFlags::EPOLLONESHOT), clients),
    Scenario {
        spin_us: 40,
        ..Scenario::new("epoll-spinning", |program, stream| events(program, stream, EpollFlags::empty()), clients)
    },
    Scenario::new("epoll-nested", nested, clients_of_one),
    Scenario::new("epoll-before-connect", talk_and_drain, watched_before),
    Scenario::new("poll-of-nothing", polls_in_vain, talks_late),
];

/// Milliseconds after which a wait is made again; nothing depends on it.
const WAIT_MS: u16 = 30_000;

fn by_poll(program: &Program, stream: &Stream, write: bool) -> Result<()> {
    let wanted = if write { PollFlags::POLLOUT } else { PollFlags::POLLIN };
    let mut entries = [PollFd::new(stream.fd.as_fd(), wanted)];
    let ready = program.attempt("poll", || poll(&mut entries, PollTimeout::from(WAIT_MS)))?;
    ensure!(ready == 1, "poll found {ready} ready");
    Ok(())
}

fn by_select(program: &Program, stream: &Stream, write: bool) -> Result<()> {
    let ready = program.attempt("select", || {
        let mut set = FdSet::new();
        set.insert(stream.fd.as_fd());
        let mut limit = TimeVal::milliseconds(i64::from(WAIT_MS));
        if write { select(None, None, &mut set, None, &mut limit) } else { select(None, &mut set, None, None, &mut limit) }
    })?;
    ensure!(ready == 1, "select found {ready} ready");
    Ok(())
}

/// Answers each message, and then sends much, without ever blocking but in the wait.
fn waited_for(program: &Program, mut stream: Stream, wait: fn(&Program, &Stream, bool) -> Result<()>) -> Result<()> {
    stream.nonblocking(program, true)?;
    for _ in 0..12 {
        let mut left = 64;
        while left > 0 {
            wait(program, &stream, false)?;
            left -= receive_some(program, &mut stream, left)?;
        }
        stream.send(program, 64)?;
    }
    let mut left = 1 << 20;
    while left > 0 {
        wait(program, &stream, true)?;
        left -= send_some(program, &mut stream, left.min(30_000))?;
    }
    stream.nonblocking(program, false)?;
    stream.end(program)
}

/// What is there, which may be nothing.
fn receive_some(program: &Program, stream: &mut Stream, most: usize) -> Result<usize> {
    let mut room = vec![0; most];
    let count = super::stream::gone_early(program, "read", || match read(&stream.fd, &mut room) {
        Err(Errno::EAGAIN) => Ok(None),
        other => other.map(Some),
    })?;
    if count == Some(0) {
        bail!(super::Early("end of file".to_owned()));
    }
    let count = count.unwrap_or(0);
    stream.came(room.get(..count).unwrap_or_default())?;
    Ok(count)
}

/// As much as there is room for.
fn send_some(program: &Program, stream: &mut Stream, most: usize) -> Result<usize> {
    let bytes = stream.next(most);
    let count = super::stream::gone_early(program, "write", || match write(&stream.fd, &bytes) {
        Err(Errno::EAGAIN) => Ok(0),
        other => other,
    })?;
    stream.sent += count as u64;
    Ok(count)
}

fn talk_and_flood(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 12)?;
    super::pause();
    for _ in 0..32 {
        stream.receive(program, 1 << 15)?;
    }
    stream.end(program)
}

const CLIENTS: usize = 3;
const ROUNDS: usize = 10;

/// A server with a listening socket in its set.
fn events(program: &Program, first: Stream, kind: EpollFlags) -> Result<()> {
    let listener = program.listener()?;
    let epoll = program.attempt("epoll_create1", || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC))?;
    program.attempt("epoll_ctl", || epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 1000)))?;
    let mut streams: Vec<Option<Stream>> = vec![Some(first)];
    watch(program, &epoll, &streams, 0, kind, true)?;
    let mut open = CLIENTS;
    while open > 0 {
        let mut found = [EpollEvent::empty(); 8];
        let count = program.attempt("epoll_wait", || epoll.wait(&mut found, WAIT_MS))?;
        ensure!(count > 0, "epoll_wait waits for ever");
        for event in found.iter().take(count) {
            if event.data() == 1000 {
                streams.push(Some(Stream::new(program.accept(&listener)?, false)));
                watch(program, &epoll, &streams, streams.len() - 1, kind, true)?;
                continue;
            }
            let index = event.data() as usize;
            let Some(slot) = streams.get_mut(index) else { bail!("an event of nobody") };
            let Some(stream) = slot.as_mut() else { bail!("an event of a connection that was closed") };
            if answer(program, stream)? {
                open -= 1;
                program.attempt("epoll_ctl", || epoll.delete(&stream.fd))?;
                *slot = None;
            } else if kind == EpollFlags::EPOLLONESHOT {
                watch(program, &epoll, &streams, index, kind, false)?;
            }
        }
    }
    Ok(())
}

fn watch(program: &Program, epoll: &Epoll, streams: &[Option<Stream>], index: usize, kind: EpollFlags, new: bool) -> Result<()> {
    let Some(Some(stream)) = streams.get(index) else { bail!("no connection {index}") };
    if new {
        stream.nonblocking(program, true)?;
    }
    let mut event = EpollEvent::new(EpollFlags::EPOLLIN | kind, index as u64);
    program.attempt("epoll_ctl", || if new { epoll.add(&stream.fd, event) } else { epoll.modify(&stream.fd, &mut event) })
}

/// Reads all that is there and answers each 64 bytes. True at the end of file.
fn answer(program: &Program, stream: &mut Stream) -> Result<bool> {
    let mut room = [0; 64];
    loop {
        let due = 64 - (stream.received % 64) as usize;
        let into = room.get_mut(..due).unwrap_or_default();
        let count = super::stream::gone_early(program, "read", || match read(&stream.fd, into) {
            Err(Errno::EAGAIN) => Ok(None),
            other => other.map(Some),
        })?;
        match count {
            None => return Ok(false),
            Some(0) if stream.received != (ROUNDS * 64) as u64 => bail!(super::Early("end of file".to_owned())),
            Some(0) => return Ok(true),
            Some(count) => stream.came(room.get(..count).unwrap_or_default())?,
        }
        if stream.received.is_multiple_of(64) {
            stream.send(program, 64)?;
        }
    }
}

fn clients(program: &Program, first: Stream) -> Result<()> {
    let mut streams = vec![first];
    for _ in 1..CLIENTS {
        streams.push(Stream::new(program.connect()?, true));
    }
    for _ in 0..ROUNDS {
        for stream in &mut streams {
            stream.talk(program, 1)?;
        }
    }
    Ok(())
}

fn clients_of_one(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, ROUNDS)?;
    Ok(())
}

/// A set that is itself waited for.
fn nested(program: &Program, mut stream: Stream) -> Result<()> {
    let create = || program.attempt("epoll_create1", || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC));
    let (outer, inner) = (create()?, create()?);
    stream.nonblocking(program, true)?;
    program.attempt("epoll_ctl", || inner.add(&stream.fd, EpollEvent::new(EpollFlags::EPOLLIN, 1)))?;
    program.attempt("epoll_ctl", || outer.add(&inner.0, EpollEvent::new(EpollFlags::EPOLLIN, 2)))?;
    loop {
        let mut found = [EpollEvent::empty(); 2];
        let count = program.attempt("epoll_wait", || outer.wait(&mut found, WAIT_MS))?;
        ensure!(count > 0, "epoll_wait waits for ever");
        let mut entries = [PollFd::new(inner.0.as_fd(), PollFlags::POLLIN)];
        program.attempt("poll", || poll(&mut entries, PollTimeout::from(WAIT_MS)))?;
        let count = program.attempt("epoll_wait", || inner.wait(&mut found, WAIT_MS))?;
        ensure!(count == 1, "the inner set has {count} events");
        if answer(program, &mut stream)? {
            return Ok(());
        }
    }
}

fn talk_and_drain(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, ROUNDS)?;
    let second = program.accept(&*program.listener()?)?;
    let mut second = Stream::new(second, false);
    second.talk(program, ROUNDS)?;
    stream.end(program)?;
    second.end(program)
}

/// A socket is in the set before it is connected.
fn watched_before(program: &Program, mut first: Stream) -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let fd = program.attempt("socket", || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None))?;
    let epoll = program.attempt("epoll_create1", || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC))?;
    program.attempt("epoll_ctl", || epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, 1)))?;
    let address = UnixAddr::new(&program.socket_path())?;
    program.attempt("connect", || connect(fd.as_raw_fd(), &address))?;
    first.talk(program, ROUNDS)?;
    let mut stream = Stream::new(fd, true);
    for _ in 0..ROUNDS {
        stream.send(program, 64)?;
        let mut left = 64;
        while left > 0 {
            let mut found = [EpollEvent::empty(); 2];
            let count = program.attempt("epoll_wait", || epoll.wait(&mut found, WAIT_MS))?;
            ensure!(count > 0, "epoll_wait waits for ever");
            left -= receive_some(program, &mut stream, left)?;
        }
    }
    first.end(program)?;
    stream.end(program)
}

/// Waits that end by their time-out, and one that does not.
fn polls_in_vain(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    for timeout in [0_u16, 2] {
        let mut entries = [PollFd::new(stream.fd.as_fd(), PollFlags::POLLIN)];
        let ready = program.attempt("poll", || poll(&mut entries, PollTimeout::from(timeout)))?;
        if ready != 0 {
            bail!(super::Early(format!("poll found {:?}", entries[0].revents())));
        }
    }
    stream.send(program, 64)?;
    by_poll(program, &stream, false)?;
    stream.receive(program, 64)?;
    stream.end(program)
}

fn talks_late(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    stream.receive(program, 64)?;
    super::pause();
    stream.send(program, 64)?;
    stream.end(program)
}
