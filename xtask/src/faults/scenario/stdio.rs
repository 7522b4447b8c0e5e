//! Streams of libc's over a connection, and what it starts by itself.

use std::ffi::CString;
use std::os::fd::{AsRawFd, IntoRawFd};

use anyhow::{Result, ensure};
use nix::unistd::dup;

use super::stream::Stream;
use super::{Program, Scenario, raw};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("stdio", talks, talks_by_stdio), Scenario::new("popen", talks, asks_a_shell)];

/// Messages in each part.
const PART: usize = 6;

fn talks(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 3 * PART)?;
    stream.end(program)
}

fn talks_by_stdio(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    let copy = program.attempt("dup", || dup(&stream.fd))?;
    let file = program.attempt("fdopen", || raw::File::over(copy.as_raw_fd(), c"r+"))?;
    // The stream closes it.
    let _ = copy.into_raw_fd();
    for _ in 0..PART {
        stream.send_by(program, 64, "fwrite", |_, bytes| file.write(bytes))?;
        stream.receive_by(program, 64, "fread", |_, into| file.read(into))?;
    }
    drop(file);
    stream.talk(program, PART)?;
    stream.end(program)
}

fn asks_a_shell(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, PART)?;
    let command = CString::new("exit 3")?;
    let status = program.attempt("popen", || raw::shell(&command))?;
    ensure!(status == 3, "the shell ended by {status}");
    stream.talk(program, 2 * PART)?;
    stream.end(program)
}
