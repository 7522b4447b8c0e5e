//! Less usual places of a connection: another thread's, no memory's, with credentials, under a number that was another's.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair};
use nix::unistd::{dup3, read};

use super::stream::Stream;
use super::{Early, Program, Scenario, pause, raw};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("closed-while-read", sends_to_closed, closes_while_read),
    Scenario::new("nowhere", reads_nowhere, talks),
    Scenario::new("credentials", wants_credentials, talks),
    Scenario::new("unsent", talks_late, asks_for_unsent),
    Scenario::new("onto-another-number", talks, onto_another),
    Scenario::new("epoll-changed-meanwhile", changed_meanwhile, talks),
];

const ROUNDS: usize = 16;

fn talks(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, ROUNDS)?;
    stream.end(program)
}

/// A thread is blocked in a read of a number that another thread closes: the read goes on.
fn closes_while_read(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let number = stream.raw();
    // Whoever waits for a thread in another way makes system calls that the library sees.
    let place = Arc::new(OnceLock::new());
    let told = Arc::clone(&place);
    let reader = std::thread::spawn(move || {
        let _ = told.set(std::fs::read_link("/proc/thread-self").unwrap_or_default());
        let mut room = [0; 64];
        let count = read_number(number, &mut room);
        (count, room)
    });
    await_asleep(&place);
    let (sent, received) = (stream.sent, stream.received);
    drop(stream);
    program.leave("closed", &[])?;
    let (count, room) = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    let count = program.attempt("read", || count)?;
    if count == 0 {
        bail!(Early("end of file".to_owned()));
    }
    let null = std::fs::File::open("/dev/null")?;
    Stream::at(null.into(), true, sent, received).came(room.get(..count).unwrap_or_default())
}

/// Waits until the thread is blocked in a system call, but not for ever: what the kernel says of it may be kept from us.
fn await_asleep(place: &OnceLock<PathBuf>) {
    let is_asleep = || {
        let Some(place) = place.get() else { return false };
        let stat = std::fs::read_to_string(Path::new("/proc").join(place).join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" S"))
    };
    for _ in 0..500 {
        pause();
        if is_asleep() {
            return;
        }
    }
}

fn read_number(number: i32, room: &mut [u8]) -> nix::Result<usize> {
    nix::sys::socket::recv(number, room, nix::sys::socket::MsgFlags::empty())
}

fn sends_to_closed(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    super::rules::await_file(program, "closed");
    stream.send(program, 64)?;
    stream.hear_end(program)
}

/// Reads that have nowhere to put what is there, which takes nothing.
fn reads_nowhere(program: &Program, mut stream: Stream) -> Result<()> {
    for round in 0..ROUNDS {
        if round % 4 == 3 {
            readable(program, &stream)?;
            program.refused("read", &[Errno::EFAULT], || raw::read_nowhere(&stream.fd))?;
        }
        stream.talk(program, 1)?;
    }
    stream.end(program)
}

fn readable(program: &Program, stream: &Stream) -> Result<()> {
    let mut entries = [PollFd::new(stream.fd.as_fd(), PollFlags::POLLIN)];
    program.attempt("poll", || poll(&mut entries, PollTimeout::NONE)).map(drop)
}

fn wants_credentials(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    program.attempt("setsockopt", || setsockopt(&stream.fd, PassCred, &true))?;
    stream.talk(program, ROUNDS - 8)?;
    stream.end(program)
}

/// SIOCOUTQ before and after the other end has read.
fn asks_for_unsent(program: &Program, mut stream: Stream) -> Result<()> {
    for _ in 0..8 {
        stream.send(program, 64)?;
        program.attempt("ioctl", || raw::unsent(&stream.fd))?;
        stream.receive(program, 64)?;
        let unsent = program.attempt("ioctl", || raw::unsent(&stream.fd))?;
        ensure!(unsent == 0, "{unsent} bytes are unread after the answer");
    }
    stream.end(program)
}

fn talks_late(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    stream.end(program)
}

/// dup3 onto a number that is another connection's.
fn onto_another(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let (mut other, second) =
        program.attempt("socketpair", || socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC))?;
    program.attempt("dup3", || dup3(&stream.fd, &mut other, OFlag::O_CLOEXEC))?;
    let count = program.attempt("read", || read(&second, &mut [0]))?;
    ensure!(count == 0, "the other connection was not closed");
    drop(second);
    let mut stream = Stream::at(other, true, stream.sent, stream.received);
    stream.talk(program, ROUNDS - 8)?;
    stream.end(program)
}

/// A thread sleeps in a set that another one changes.
fn changed_meanwhile(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let epoll = program.attempt("epoll_create1", || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC))?;
    program.attempt("epoll_ctl", || epoll.add(&stream.fd, EpollEvent::new(EpollFlags::empty(), 7)))?;
    readable(program, &stream)?;
    let found = std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let mut found = [EpollEvent::empty()];
            let count = loop {
                match epoll.wait(&mut found, 30_000_u16) {
                    Err(Errno::EINTR) => {}
                    other => break other,
                }
            };
            (count, found[0].data())
        });
        (0..5).for_each(|_| pause());
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, 7);
        let changed = program.attempt("epoll_ctl", || epoll.modify(&stream.fd, &mut event));
        sleeper.join().map(|found| (found, changed)).ok()
    });
    let ((count, data), changed) = found.context("the sleeper panicked")?;
    changed?;
    let count = program.attempt("epoll_wait", || count)?;
    ensure!(count == 1 && data == 7, "epoll_wait found {count} of {}", epoll.0.as_raw_fd());
    drop(epoll);
    stream.talk(program, ROUNDS - 8)?;
    stream.end(program)
}
