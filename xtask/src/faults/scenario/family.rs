//! Connections that several processes hold, and other programs' images.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{dup2_stdin, execv};

use super::stream::{Stream, gone_early};
use super::{Early, Program, Scenario, raw};
use crate::paths;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("fork", talk_long, forks),
    Scenario::new("fork-at-once", talk_long, forks_at_once),
    Scenario::new("fork-of-the-server", forks_as_server, talk_long_as_client),
    Scenario::new("exec", sends_before_exec, becomes_another),
    Scenario::new("exec-behind-the-end", ends_before_exec, becomes_another_at_end),
    Scenario::new("exec-as-input", ends_before_exec, becomes_another_with_input),
    Scenario::new("exec-fails", sends_before_exec, becomes_nobody),
    Scenario::new("spawn", spawned_for, spawns),
];

/// Messages before and after, in each of three parts.
const PART: usize = 8;

fn talk_long(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 3 * PART)?;
    stream.end(program)
}

fn talk_long_as_client(program: &Program, stream: Stream) -> Result<()> {
    talk_long(program, stream)
}

/// The child talks for a while, then its parent again.
fn forks(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    let (sent, received) = (stream.sent, stream.received);
    let fd = program.attempt("dup", || nix::unistd::dup(&stream.fd))?;
    let copy = program.copy(&fd)?; // here: who goes on must know that the child does not talk
    let child = program.child("child", |program| Stream::at(copy, true, sent, received).talk(program, PART))?;
    drop(fd);
    program.wait(child)?;
    let talked = (PART * 64) as u64;
    let mut stream = Stream::at(stream.fd, true, sent + talked, received + talked);
    stream.talk(program, PART)?;
    stream.end(program)
}

/// Nothing was said before the fork.
fn forks_at_once(program: &Program, stream: Stream) -> Result<()> {
    let copy = program.copy(&stream.fd)?;
    let child = program.child("child", |program| Stream::at(copy, true, 0, 0).talk(program, PART))?;
    program.wait(child)?;
    let talked = (PART * 64) as u64;
    let mut stream = Stream::at(stream.fd, true, talked, talked);
    stream.talk(program, 2 * PART)?;
    stream.end(program)
}

/// As a server that serves each connection in a child.
fn forks_as_server(program: &Program, stream: Stream) -> Result<()> {
    let child = program.child("child", |program| talk_long(program, Stream::at(program.copy(&stream.fd)?, false, 0, 0)))?;
    drop(stream);
    program.wait(child)
}

/// What the other end sends before the exec, and nobody has read by then.
const UNREAD: usize = 5000;

fn sends_before_exec(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    stream.send(program, UNREAD)?;
    stream.receive(program, 64)?;
    stream.talk(program, PART)?;
    stream.end(program)
}

fn becomes_another(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    // Some of it, so that the rest is left in the ring.
    stream.receive(program, 100)?;
    stream.send(program, 64)?;
    become_image(program, &stream, "exec")
}

/// The same where the peer cannot give back what it has sent.
fn ends_before_exec(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    stream.send(program, UNREAD)?;
    gone_early(program, "shutdown", || shutdown(stream.raw(), Shutdown::Write))?;
    program.leave("ended", &[])?;
    stream.hear_end(program)
}

fn becomes_another_at_end(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    stream.receive(program, 100)?;
    super::rules::await_file(program, "ended");
    become_image(program, &stream, "exec-behind-the-end")
}

/// The connection is the other program's standard input, which libc reads by itself.
fn becomes_another_with_input(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    stream.receive(program, 100)?;
    super::rules::await_file(program, "ended");
    program.attempt("dup2", || dup2_stdin(&stream.fd))?;
    become_image_with(program, 0, "exec-as-input")
}

/// An exec that fails, and leaves everything as it was.
fn becomes_nobody(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    stream.receive(program, 100)?;
    let path = CString::new("/nowhere/at/all")?;
    program.attempt("fcntl", || fcntl(&stream.fd, FcntlArg::F_SETFD(FdFlag::empty())))?;
    program.refused("execv", &[nix::Error::ENOENT], || execv(&path, &[c"nobody"]))?;
    stream.receive(program, UNREAD - 100)?;
    stream.send(program, 64)?;
    stream.talk(program, PART)?;
    stream.end(program)
}

fn become_image(program: &Program, stream: &Stream, scenario: &str) -> Result<()> {
    program.attempt("fcntl", || fcntl(&stream.fd, FcntlArg::F_SETFD(FdFlag::empty())))?;
    become_image_with(program, stream.raw(), scenario)
}

fn become_image_with(program: &Program, fd: i32, scenario: &str) -> Result<()> {
    let failures = program.failures.borrow().clone();
    ensure!(failures.is_empty() || program.report_before_exec(&failures).is_ok(), "cannot report");
    let number = fd.to_string();
    let words = ["xtask", "faults-end", "--scenario", scenario, "--inherited", &number, "--directory"];
    let mut words: Vec<CString> = words.into_iter().map(CString::new).collect::<Result<_, _>>()?;
    words.push(CString::new(program.directory.as_os_str().as_bytes())?);
    let path = CString::new(paths::OWN_PROGRAM)?;
    program.attempt("execv", || execv(&path, &words)).map(|_| ())
}

/// That other image.
pub(super) fn second_image(program: &Program, scenario: &str, fd: OwnedFd) -> Result<()> {
    let talked = (PART * 64) as u64;
    if scenario == "exec-behind-the-end" {
        let mut stream = Stream::at(fd, true, talked, talked + 100);
        stream.receive(program, UNREAD - 100)?;
        return stream.end(program);
    }
    if scenario == "exec-as-input" {
        let input = raw::File::input();
        let mut stream = Stream::at(fd, true, talked, talked + 100);
        stream.receive_by(program, UNREAD - 100, "fread", |_, into| input.read(into))?;
        return stream.end(program);
    }
    let mut stream = Stream::at(fd, true, talked + 64, talked + 100);
    stream.receive(program, UNREAD - 100)?;
    stream.talk(program, PART)?;
    stream.end(program)
}

fn spawned_for(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    stream.send(program, 64)?;
    stream.receive(program, 64)?;
    stream.talk(program, PART)?;
    stream.end(program)
}

/// The connection is the output of a program of which nothing is known.
fn spawns(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    stream.receive(program, 64)?;
    let words = stream.next(64);
    let input = program.directory.join("words");
    std::fs::write(&input, &words)?;
    let status = program.attempt("spawn", || {
        let input = std::fs::File::open(&input).map_err(|error| errno(&error))?;
        let output = stream.fd.try_clone().map_err(|error| errno(&error))?;
        Command::new("cat")
            .env_remove("LD_PRELOAD")
            .stdin(input)
            .stdout(Stdio::from(output))
            .status()
            .map_err(|error| errno(&error))
    })?;
    if status.signal() == Some(Signal::SIGPIPE as i32) {
        bail!(Early("cat wrote to nobody".to_owned()));
    }
    ensure!(status.success(), "cat ended by {status}");
    stream.sent += 64;
    stream.talk(program, PART)?;
    stream.end(program)
}

fn errno(error: &std::io::Error) -> nix::Error {
    nix::Error::from_raw(error.raw_os_error().unwrap_or(0))
}
