//! Echo over many connections: servers driven by level-triggered epoll, as redis and most servers are, by poll and by
//! select; and the client that keeps them busy.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::select::{FdSet, select};

use super::blocking::{bind, introduce};
use super::meter::{rate, sampled, warm_up};
use super::{Load, Pinned, Place, make_room};
use crate::figures::Figures;

/// Events taken at once.
const EVENTS: usize = 64;
/// Connections that the epoll server has room for; what it may have, where that is less.
const MANY: u64 = 10_100;

pub(super) fn epoll_server(place: &Place, _: Pinned) -> Result<()> {
    if let Err(error) = make_room(MANY) {
        eprintln!("server: {error}"); // few connections may be all that is asked for
    }
    let listener = bind(place)?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let listening = listener.as_raw_fd().unsigned_abs().into();
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, listening))?;
    let mut streams: HashMap<u64, UnixStream> = HashMap::new();
    let (mut events, mut bytes) = ([EpollEvent::empty(); EVENTS], vec![0; place.size]);
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in events.get(..count).unwrap_or_default() {
            if event.data() == listening {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let key = stream.as_raw_fd().unsigned_abs().into();
                epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
                streams.insert(key, stream);
            } else if let Some(stream) = streams.get_mut(&event.data())
                && !echo(stream, &mut bytes)?
            {
                streams.remove(&event.data());
            }
        }
    }
}

pub(super) fn poll_server(place: &Place, _: Pinned) -> Result<()> {
    serve_ready(place, |listener, streams, ready| {
        let all = std::iter::once(listener.as_fd()).chain(streams.iter().map(AsFd::as_fd));
        let mut watched: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut watched, PollTimeout::NONE)?;
        ready.extend(watched.iter().map(|one| one.any().unwrap_or(true)));
        Ok(())
    })
}

pub(super) fn select_server(place: &Place, _: Pinned) -> Result<()> {
    serve_ready(place, |listener, streams, ready| {
        let mut set = FdSet::new();
        set.insert(listener.as_fd());
        streams.iter().for_each(|stream| set.insert(stream.as_fd()));
        let highest = streams.iter().map(AsRawFd::as_raw_fd).fold(listener.as_raw_fd(), i32::max);
        select(highest + 1, &mut set, None, None, None)?;
        ready.push(set.contains(listener.as_fd()));
        ready.extend(streams.iter().map(|stream| set.contains(stream.as_fd())));
        Ok(())
    })
}

/// Echoes on whatever `wait` finds ready; it says so of the listener first, then of each stream.
fn serve_ready(place: &Place, wait: impl Fn(&UnixListener, &[UnixStream], &mut Vec<bool>) -> Result<()>) -> Result<()> {
    let listener = bind(place)?;
    listener.set_nonblocking(true)?;
    let (mut streams, mut ready, mut bytes): (Vec<UnixStream>, _, _) = (Vec::new(), Vec::new(), vec![0; place.size]);
    loop {
        ready.clear();
        wait(&listener, &streams, &mut ready)?;
        let mut of_streams = ready.iter().skip(1);
        let mut failed = Ok(());
        streams.retain_mut(|stream| {
            of_streams.next() != Some(&true)
                || echo(stream, &mut bytes).unwrap_or_else(|error| {
                    failed = Err(error);
                    false
                })
        });
        failed?;
        if ready.first() == Some(&true) {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            streams.push(stream);
        }
    }
}

/// Answers one message; `false` when the peer is gone.
fn echo(stream: &mut UnixStream, bytes: &mut [u8]) -> Result<bool> {
    match stream.read(bytes) {
        Ok(0) => Ok(false),
        Ok(count) => Ok(stream.write_all(bytes.get(..count).unwrap_or_default()).map(|()| true)?),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Echoes per second over all connections; the latency is that of each message, from its write to the end of its read.
pub(super) fn client(load: &Load, _: Pinned) -> Result<Vec<Figures>> {
    make_room(load.connections as u64)?;
    let mut streams = (0..load.connections).map(|_| load.connect()).collect::<Result<Vec<_>>>()?;
    let (sent, mut back) = load.messages();
    if !load.cold {
        streams.iter_mut().try_for_each(|stream| introduce(stream, &sent, &mut back))?;
    }
    let warm_up = if load.cold { 0 } else { warm_up(load) };
    let figures = rate(load, warm_up, load.connections as f64, || {
        for stream in &mut streams {
            stream.write_all(&sent)?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut back)?;
        }
        Ok(())
    })?;
    let mut starts = Vec::with_capacity(streams.len());
    let latency = sampled(load, |samples| {
        starts.clear();
        for stream in &mut streams {
            starts.push(Instant::now());
            stream.write_all(&sent)?;
        }
        for (stream, start) in streams.iter_mut().zip(&starts) {
            stream.read_exact(&mut back)?;
            samples.note(*start);
        }
        Ok(())
    })?;
    ensure!(sent == back, "the echo is not what was sent");
    Ok(vec![Figures { latency, ..figures }])
}
