//! Calls on descriptors that the library has no business with: what its presence costs them.
//!
//! A nanosecond in some hundred is looked for. Two processes differ by more than that, each has its own luck with addresses. So one process
//! that has the library makes each call in turn through libc's own function and through the one that the program gets, in short batches, and
//! the middle difference of two batches next to each other is told. The process has a connection in a ring too, as a process that
//! is preloaded has.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

pub(crate) use super::functions::CALLS;
use super::functions::{Call, Files, Functions};
use super::{Load, Pinned};
use crate::figures::{Figures, median};

/// Calls in a batch: some hundred microseconds.
const BATCH: u32 = 300;
/// Pairs of batches of each call before any counts.
const WARM_UP: usize = 3;
/// Messages each way that surely bring a connection into a ring.
const GREETINGS: usize = 64;

/// Nanoseconds of a system call, of each pair of batches.
#[derive(Default)]
struct Times {
    plain: Vec<f64>,
    preloaded: Vec<f64>,
}

impl Files {
    fn open() -> Result<Self> {
        let datagrams = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&datagrams.0, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let streams = UnixStream::pair()?;
        Ok(Self {
            null: OpenOptions::new().write(true).open("/dev/null")?.into(),
            zero: File::open("/dev/zero")?.into(),
            datagrams,
            streams: (streams.0.into(), streams.1.into()),
            epoll: epoll.0,
            spare: EventFd::new()?.into(),
        })
    }
}

/// A connection of the process with itself, on a selected socket.
fn selected(load: &Load) -> Result<(UnixStream, UnixStream)> {
    let socket = &load.place.socket;
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    let mut client = load.connect()?;
    let (mut server, _) = listener.accept()?;
    for _ in 0..GREETINGS {
        client.write_all(&[0])?;
        server.read_exact(&mut [0])?;
        server.write_all(&[0])?;
        client.read_exact(&mut [0])?;
    }
    Ok((client, server))
}

fn batch((name, each, call): &Call, by: &Functions, on: &Files) -> Result<f64> {
    let start = Instant::now();
    let mut failed = 0_u32;
    for _ in 0..BATCH {
        failed += u32::from(!call(by, on));
    }
    let took = start.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH * each);
    ensure!(failed == 0, "{name}: failed {failed} times: {}", std::io::Error::last_os_error());
    Ok(took)
}

/// For each of [`CALLS`], nanoseconds of a system call through libc's function; then, for each, through the library's: what is told of that is
/// the former and the middle difference.
pub(super) fn plain(load: &Load, _: Pinned) -> Result<Vec<Figures>> {
    let libc = Functions::of_libc()?;
    let ours = Functions::of_program(&libc)?;
    let (_connection, files) = (selected(load)?, Files::open()?);
    let mut all = CALLS.map(|_| Times::default());
    let (start, limit) = (Instant::now(), Duration::from_millis(load.milliseconds));
    let mut turn = 0_usize;
    while start.elapsed() < limit || turn <= 2 * WARM_UP {
        for (call, times) in CALLS.iter().zip(&mut all) {
            let first = turn.is_multiple_of(2).then(|| batch(call, &libc, &files)).transpose()?;
            times.preloaded.push(batch(call, &ours, &files)?);
            times.plain.push(first.map_or_else(|| batch(call, &libc, &files), Ok)?);
        }
        turn += 1;
    }
    let of = |times: &Times| {
        let (plain, preloaded) = (times.plain.get(WARM_UP..), times.preloaded.get(WARM_UP..));
        let (plain, preloaded) = (plain.unwrap_or_default(), preloaded.unwrap_or_default());
        let differences: Vec<f64> = preloaded.iter().zip(plain).map(|(preloaded, plain)| preloaded - plain).collect();
        let value = median(plain);
        (Figures::of(value), Figures::of(value + median(&differences)))
    };
    let (plain, preloaded): (Vec<_>, Vec<_>) = all.iter().map(of).unzip();
    Ok([plain, preloaded].concat())
}
