//! Echo over many connections, driven by level-triggered epoll as redis and most servers are.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Load, Pinned, WARM_UP, rate};

/// Events taken at once.
const EVENTS: usize = 64;

pub(super) fn server(socket: &Path, size: usize, _: Pinned) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let listening = listener.as_raw_fd().unsigned_abs().into();
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, listening))?;
    let mut streams: HashMap<u64, UnixStream> = HashMap::new();
    let (mut events, mut bytes) = ([EpollEvent::empty(); EVENTS], vec![0; size]);
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

/// Echoes per second over all connections.
pub(super) fn client(load: &Load, _: Pinned) -> Result<f64> {
    let mut streams = Vec::new();
    for _ in 0..load.connections {
        streams.push(UnixStream::connect(&load.place.socket)?);
    }
    let (sent, mut back) = (vec![0x5A; load.place.size], vec![0; load.place.size]);
    let rounds = rate(load.milliseconds, WARM_UP / load.connections as u64 + 20, || {
        for stream in &mut streams {
            stream.write_all(&sent)?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut back)?;
        }
        Ok(())
    })?;
    ensure!(sent == back, "the echo is not what was sent");
    Ok(rounds * load.connections as f64)
}
