//! Messages, options, time-outs, signals, duplicates, and ends that come too soon.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout, SndBuf, SocketError};
use nix::sys::socket::{MsgFlags, Shutdown, UnixAddr, getsockopt, recv, recvmsg, sendmsg, setsockopt, shutdown};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::uio::{readv, writev};
use nix::unistd::{Pid, dup, dup2, getppid, read, write};

use super::stream::{Stream, gone_early};
use super::{Early, Program, Scenario, pause, raw};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("messages", messages, messages),
    Scenario::new("looks", looks_served, looks_made),
    Scenario::new("nonblocking", nonblocking_served, nonblocking_made),
    Scenario::new("time-outs", time_outs_served, time_outs_made),
    Scenario::new("duplicates", talk_after, duplicates),
    Scenario::new("unread-at-close", closes_unread, is_reset),
    Scenario::new("writes-to-nobody", closes_read_half, writes_to_nobody),
    Scenario::new("signals", interrupted, interrupts),
];

/// Longest wait for the other process, which is far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn send_message(fd: i32, bytes: &[u8]) -> nix::Result<usize> {
    let (head, tail) = bytes.split_at(bytes.len() / 3);
    sendmsg::<UnixAddr>(fd, &[IoSlice::new(head), IoSlice::new(tail)], &[], MsgFlags::empty(), None)
}

fn receive_message(fd: i32, into: &mut [u8]) -> nix::Result<usize> {
    let middle = into.len() / 2;
    let (head, tail) = into.split_at_mut(middle);
    let mut parts = [IoSliceMut::new(head), IoSliceMut::new(tail)];
    recvmsg::<UnixAddr>(fd, &mut parts, None, MsgFlags::empty()).map(|message| message.bytes)
}

fn messages(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 6)?;
    for _ in 0..6 {
        stream.send_by(program, 999, "sendmsg", |fd, bytes| send_message(fd.as_raw_fd(), bytes))?;
        stream.receive_by(program, 999, "recvmsg", |fd, into| receive_message(fd.as_raw_fd(), into))?;
        stream.send_by(program, 500, "writev", |fd, bytes| {
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            writev(fd, &[IoSlice::new(head), IoSlice::new(tail)])
        })?;
        stream.receive_by(program, 500, "readv", |fd, into| {
            let middle = into.len() / 2;
            let (head, tail) = into.split_at_mut(middle);
            readv(fd, &mut [IoSliceMut::new(head), IoSliceMut::new(tail)])
        })?;
    }
    stream.end(program)
}

/// MSG_PEEK, FIONREAD, SO_ERROR and the send buffer's size.
fn looks_served(program: &Program, mut stream: Stream) -> Result<()> {
    let size = program.attempt("getsockopt", || getsockopt(&stream.fd, SndBuf))?;
    stream.talk(program, 8)?;
    for _ in 0..4 {
        let mut room = [0; 100];
        let count = gone_early(program, "recv", || recv(stream.raw(), &mut room, MsgFlags::MSG_PEEK))?;
        if count == 0 {
            bail!(Early("end of file".to_owned()));
        }
        stream.seen(room.get(..count).unwrap_or_default())?;
        let queued = program.attempt("ioctl", || raw::queued(&stream.fd))?;
        ensure!((1..=100).contains(&queued), "FIONREAD gave {queued}");
        stream.receive(program, 100)?;
        let error = program.attempt("getsockopt", || getsockopt(&stream.fd, SocketError))?;
        ensure!(error == 0, "SO_ERROR gave {error}");
        let now = program.attempt("getsockopt", || getsockopt(&stream.fd, SndBuf))?;
        ensure!(now == size, "SO_SNDBUF was {size} and is {now}");
        program.attempt("setsockopt", || setsockopt(&stream.fd, SndBuf, &(size / 2)))?;
        let now = program.attempt("getsockopt", || getsockopt(&stream.fd, SndBuf))?;
        ensure!(now == size, "SO_SNDBUF was set to {size} and is {now}");
        stream.send(program, 1)?;
    }
    stream.end(program)
}

fn looks_made(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    for _ in 0..4 {
        stream.send(program, 100)?;
        stream.receive(program, 1)?;
    }
    stream.end(program)
}

/// Fills what there is without waiting.
fn nonblocking_served(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    stream.nonblocking(program, true)?;
    let mut byte = [0];
    program.refused("read", &[Errno::EAGAIN], || read(&stream.fd, &mut byte))?;
    let bytes = stream.next(1 << 21);
    let (mut at, mut failures) = (0, 0);
    while at < bytes.len() {
        let end = bytes.len().min(at + 50_000);
        match write(&stream.fd, bytes.get(at..end).unwrap_or_default()) {
            Ok(count) => at += count,
            Err(Errno::EAGAIN) => break,
            Err(errno) => {
                program.note("write", errno);
                failures += 1;
                if failures == super::TRIES {
                    bail!(super::GaveUp);
                }
            }
        }
    }
    ensure!(at < bytes.len(), "{at} bytes went where nobody reads");
    stream.sent += at as u64;
    stream.nonblocking(program, false)?;
    gone_early(program, "shutdown", || shutdown(stream.raw(), Shutdown::Write))?;
    let count = stream.sent.to_le_bytes();
    program.leave("count", &count)?;
    stream.hear_end(program)
}

fn nonblocking_made(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let counted = program.directory.join("count");
    await_file(program, "count");
    gone_early(program, "shutdown", || shutdown(stream.raw(), Shutdown::Write))?;
    let mut room = vec![0; 1 << 16];
    loop {
        let count = gone_early(program, "read", || read(&stream.fd, &mut room))?;
        if count == 0 {
            break;
        }
        stream.came(room.get(..count).unwrap_or_default())?;
    }
    let Ok(count) = std::fs::read(counted) else { bail!(Early("it has not counted".to_owned())) };
    ensure!(count == stream.received.to_le_bytes(), "{} bytes came instead of {count:?}", stream.received);
    Ok(())
}

/// A read that gets nothing and a write that finds no room, each for a while.
fn time_outs_served(program: &Program, mut stream: Stream) -> Result<()> {
    let while_ = TimeVal::milliseconds(3);
    program.attempt("setsockopt", || setsockopt(&stream.fd, ReceiveTimeout, &while_))?;
    program.attempt("setsockopt", || setsockopt(&stream.fd, SendTimeout, &while_))?;
    // EINTR without a handler: a socket with a time-out says so of a debugger's stop, signal(7).
    let patiently = |call: &dyn Fn() -> nix::Result<usize>| {
        let mut interrupted = 0;
        loop {
            match call() {
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) if interrupted < 20 => interrupted += 1,
                other => return other,
            }
        }
    };
    for _ in 0..10 {
        stream.receive_by(program, 64, "read", |fd, into| {
            let into = std::cell::RefCell::new(into);
            patiently(&|| read(fd, &mut into.borrow_mut()))
        })?;
        stream.send_by(program, 64, "write", |fd, bytes| patiently(&|| write(fd, bytes)))?;
    }
    let mut byte = [0];
    program.refused("read", &[Errno::EAGAIN, Errno::EINTR], || read(&stream.fd, &mut byte))?;
    let bytes = stream.next(1 << 21);
    let mut at = 0;
    let full = program.refused("write", &[Errno::EAGAIN, Errno::EINTR], || -> nix::Result<()> {
        while let Some(part) = bytes.get(at..(at + 60_000).min(bytes.len())).filter(|part| !part.is_empty()) {
            at += write(&stream.fd, part)?;
        }
        Ok(())
    });
    stream.sent += at as u64;
    full?;
    let limit = program.attempt("getsockopt", || getsockopt(&stream.fd, ReceiveTimeout))?;
    // The kernel counts in its clock's ticks.
    ensure!((3..=13).contains(&limit.num_milliseconds()), "the time-out of receives is {limit}");
    gone_early(program, "shutdown", || shutdown(stream.raw(), Shutdown::Write))?;
    program.leave("count", &stream.sent.to_le_bytes())?;
    let count = gone_early(program, "read", || patiently(&|| read(&stream.fd, &mut [0])))?;
    ensure!(count == 0, "a byte behind the last");
    Ok(())
}

fn time_outs_made(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 2)?;
    nonblocking_made(program, stream)
}

fn talk_after(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 24)?;
    stream.end(program)
}

/// The connection under several numbers, of which the first are closed.
fn duplicates(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let second = program.attempt("dup", || dup(&stream.fd))?;
    let mut stream = Stream::at(second, true, stream.sent, stream.received);
    stream.talk(program, 4)?;
    let third = program.attempt("fcntl", || fcntl(&stream.fd, FcntlArg::F_DUPFD_CLOEXEC(100)))?;
    let mut stream = Stream::at(raw::inherited(third), true, stream.sent, stream.received);
    stream.talk(program, 4)?;
    // Onto another connection.
    let other = program.attempt("socketpair", || {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
    })?;
    let mut fourth = other.0;
    program.attempt("dup2", || dup2(&stream.fd, &mut fourth))?;
    let mut stream = Stream::at(fourth, true, stream.sent, stream.received);
    drop(other.1);
    stream.talk(program, 8)?;
    stream.end(program)
}

/// Closes without having read everything: the other end's next call says so.
fn closes_unread(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let queued = || program.attempt("ioctl", || raw::queued(&stream.fd));
    let start = std::time::Instant::now();
    while queued()? < 100 && start.elapsed() < PATIENCE && !program.is_alone() {
        pause();
    }
    drop(stream);
    program.leave("closed", &[])?;
    Ok(())
}

fn is_reset(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    stream.send(program, 100)?;
    await_file(program, "closed");
    let mut byte = [0];
    program.refused("read", &[Errno::ECONNRESET], || read(&stream.fd, &mut byte))?;
    let count = program.attempt("read", || read(&stream.fd, &mut byte))?;
    ensure!(count == 0, "after the reset a read gives {count}");
    program.refused("write", &[Errno::EPIPE], || write(&stream.fd, &byte))
}

pub(super) fn await_file(program: &Program, name: &str) {
    let start = std::time::Instant::now();
    while !program.directory.join(name).exists() && start.elapsed() < PATIENCE && !program.is_alone() {
        pause();
    }
}

fn closes_read_half(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    gone_early(program, "shutdown", || shutdown(stream.raw(), Shutdown::Read))?;
    program.leave("closed", &[])?;
    stream.send(program, 300)?;
    await_file(program, "seen");
    Ok(())
}

fn writes_to_nobody(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    await_file(program, "closed");
    let byte = [0];
    program.refused("write", &[Errno::EPIPE], || write(&stream.fd, &byte))?;
    stream.receive(program, 300)?;
    program.leave("seen", &[])?;
    stream.hear_end(program)
}

/// Blocked in a read and in a write, and interrupted in both.
fn interrupted(program: &Program, mut stream: Stream) -> Result<()> {
    program.attempt("sigaction", raw::interrupt_by_signal)?;
    stream.talk(program, 10)?;
    stream.receive_by(program, 64, "read", |fd, into| {
        loop {
            match read(fd, into) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    })?;
    stream.send_by(program, 1 << 20, "write", |fd, bytes| {
        loop {
            match write(fd, bytes) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    })?;
    stream.end(program)
}

fn interrupts(program: &Program, mut stream: Stream) -> Result<()> {
    let other: Pid = getppid();
    stream.talk(program, 10)?;
    for _ in 0..3 {
        pause();
        program.attempt("kill", || kill(other, Signal::SIGUSR1))?;
    }
    stream.send(program, 64)?;
    for _ in 0..3 {
        pause();
        program.attempt("kill", || kill(other, Signal::SIGUSR1))?;
    }
    for _ in 0..16 {
        stream.receive_with(program, 1 << 16, MsgFlags::MSG_WAITALL)?;
    }
    stream.end(program)
}
