//! Descriptors that travel, and bytes that a ring cannot carry.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::pipe;

use super::stream::{Stream, gone_early};
use super::{Early, Program, Scenario, raw};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("passes-itself", is_passed_other, passes_itself),
    Scenario::new("passes-a-file", gets_file, passes_file),
    Scenario::new("sendfile", drains_file, sends_file),
    Scenario::new("splice", splices_in, sends_for_splice),
];

/// The server keeps one end, and gets the other end of the same connection over a second one.
fn is_passed_other(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let mut second = Stream::new(program.accept(&*program.listener()?)?, false);
    second.talk(program, 8)?;
    let got = receive_descriptor(program, &mut second)?;
    let mut other = Stream::at(raw::inherited(got), true, stream.received, stream.sent);
    for _ in 0..6 {
        stream.send(program, 64)?;
        other.receive(program, 64)?;
        other.send(program, 64)?;
        stream.receive(program, 64)?;
    }
    second.talk(program, 4)?;
    second.end(program)
}

fn passes_itself(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let mut second = Stream::new(program.connect()?, true);
    second.talk(program, 8)?;
    send_descriptor(program, &mut second, stream.raw())?;
    drop(stream);
    second.talk(program, 4)?;
    second.end(program)
}

/// One byte with a descriptor.
fn send_descriptor(program: &Program, stream: &mut Stream, fd: i32) -> Result<()> {
    let byte = stream.next(1);
    let fds = [fd];
    gone_early(program, "sendmsg", || {
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<UnixAddr>(stream.raw(), &[IoSlice::new(&byte)], &rights, MsgFlags::empty(), None)
    })?;
    stream.sent += 1;
    Ok(())
}

fn receive_descriptor(program: &Program, stream: &mut Stream) -> Result<i32> {
    let mut byte = [0];
    let mut room = nix::cmsg_space!([i32; 2]);
    let (count, got) = gone_early(program, "recvmsg", || {
        let mut parts = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<UnixAddr>(stream.raw(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let got = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        Ok((message.bytes, got))
    })?;
    if count == 0 {
        bail!(Early("end of file".to_owned()));
    }
    stream.came(&byte)?;
    got.context("the byte came without its descriptor")
}

fn gets_file(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    for _ in 0..2 {
        let file = raw::inherited(receive_descriptor(program, &mut stream)?);
        ensure!(file.as_raw_fd() > 2, "a descriptor of the standard streams");
        stream.talk(program, 4)?;
    }
    stream.end(program)
}

fn passes_file(program: &Program, mut stream: Stream) -> Result<()> {
    let file = std::fs::File::open("/dev/null")?;
    stream.talk(program, 8)?;
    for _ in 0..2 {
        send_descriptor(program, &mut stream, file.as_raw_fd())?;
        stream.talk(program, 4)?;
    }
    drop(file);
    stream.end(program)
}

const FILE: usize = 20_000;

fn sends_file(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    stream.send(program, 3000)?;
    let path = program.directory.join("file");
    std::fs::write(&path, stream.next(FILE))?;
    let file = std::fs::File::open(path)?;
    let mut left = FILE;
    while left > 0 {
        let count = gone_early(program, "sendfile", || sendfile(&stream.fd, &file, None, left))?;
        ensure!(count > 0, "sendfile of {left} bytes gave 0");
        left -= count;
        stream.sent += count as u64;
    }
    drop(file);
    stream.send(program, 500)?;
    stream.talk(program, 4)?;
    stream.end(program)
}

fn drains_file(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    stream.receive(program, 3000 + FILE + 500)?;
    stream.talk(program, 4)?;
    stream.end(program)
}

fn splices_in(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    let (read_end, write_end) = program.attempt("pipe", pipe)?;
    let mut left = 4000;
    while left > 0 {
        let count = gone_early(program, "splice", || splice(&stream.fd, None, &write_end, None, left, SpliceFFlags::empty()))?;
        if count == 0 {
            bail!(Early("end of file".to_owned()));
        }
        let mut room = vec![0; count];
        let mut at = 0;
        while at < count {
            at += program.attempt("read of the pipe", || nix::unistd::read(&read_end, room.get_mut(at..).unwrap_or_default()))?;
        }
        stream.came(&room)?;
        left -= count;
    }
    drop((read_end, write_end));
    stream.talk(program, 4)?;
    stream.end(program)
}

fn sends_for_splice(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 8)?;
    stream.send(program, 4000)?;
    stream.talk(program, 4)?;
    stream.end(program)
}
