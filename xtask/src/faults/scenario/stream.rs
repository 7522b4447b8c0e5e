//! One end of a connection that knows which bytes are due.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use nix::unistd::{read, write};

use super::{Early, GaveUp, Program, TRIES};
use crate::exchange::Pattern;

/// The two directions, by who sends.
const PATTERNS: [Pattern; 2] = [Pattern(0x51), Pattern(0xC1)];

/// Where a connection stands.
pub(super) struct Stream {
    pub(super) fd: OwnedFd,
    is_client: bool,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Stream {
    pub(super) fn new(fd: OwnedFd, is_client: bool) -> Self {
        Self { fd, is_client, sent: 0, received: 0 }
    }

    /// The same after so many bytes.
    pub(super) fn at(fd: OwnedFd, is_client: bool, sent: u64, received: u64) -> Self {
        Self { fd, is_client, sent, received }
    }

    pub(super) fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The bytes that are to be sent next.
    pub(super) fn next(&self, length: usize) -> Vec<u8> {
        let lead = (self.sent % 8) as usize;
        let mut bytes = vec![0; lead + length];
        PATTERNS[usize::from(self.is_client)].fill(self.sent - lead as u64, &mut bytes);
        bytes.split_off(lead)
    }

    /// Bytes that have come are those that were due.
    pub(super) fn came(&mut self, bytes: &[u8]) -> Result<()> {
        self.seen(bytes)?;
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// The same for bytes that have only been looked at.
    pub(super) fn seen(&self, bytes: &[u8]) -> Result<()> {
        let pattern = PATTERNS[usize::from(!self.is_client)];
        match pattern.first_wrong(self.received, bytes) {
            Some(wrong) => bail!("wrong bytes {}", pattern.explain(wrong, self.received, bytes)),
            None => Ok(()),
        }
    }

    /// Sends by `call`, all of it.
    pub(super) fn send_by(
        &mut self,
        program: &Program,
        length: usize,
        name: &str,
        call: impl Fn(BorrowedFd<'_>, &[u8]) -> nix::Result<usize>,
    ) -> Result<()> {
        let mut left = length;
        while left > 0 {
            let bytes = self.next(left);
            let count = gone_early(program, name, || call(self.fd.as_fd(), &bytes))?;
            ensure!(count > 0 && count <= left, "{name} of {left} bytes gave {count}");
            self.sent += count as u64;
            left -= count;
        }
        Ok(())
    }

    /// Receives by `call`, all of it.
    pub(super) fn receive_by(
        &mut self,
        program: &Program,
        length: usize,
        name: &str,
        call: impl Fn(BorrowedFd<'_>, &mut [u8]) -> nix::Result<usize>,
    ) -> Result<()> {
        let mut room = vec![0; length];
        let mut left = length;
        while left > 0 {
            let into = room.get_mut(..left).unwrap_or_default();
            let count = gone_early(program, name, || call(self.fd.as_fd(), into))?;
            if count == 0 {
                bail!(Early(format!("end of file after {} bytes", self.received)));
            }
            self.came(room.get(..count).unwrap_or_default())?;
            left -= count;
        }
        Ok(())
    }

    /// write(2).
    pub(super) fn send(&mut self, program: &Program, length: usize) -> Result<()> {
        self.send_by(program, length, "write", |fd, bytes| write(fd, bytes))
    }

    /// read(2).
    pub(super) fn receive(&mut self, program: &Program, length: usize) -> Result<()> {
        self.receive_by(program, length, "read", |fd, into| read(fd, into))
    }

    /// recv(2), with these flags.
    pub(super) fn receive_with(&mut self, program: &Program, length: usize, flags: MsgFlags) -> Result<()> {
        self.receive_by(program, length, "recv", |fd, into| recv(fd.as_raw_fd(), into, flags))
    }

    /// So many messages there and back: enough to be accelerated.
    pub(super) fn talk(&mut self, program: &Program, rounds: usize) -> Result<()> {
        for _ in 0..rounds {
            if self.is_client {
                self.send(program, 64)?;
                self.receive(program, 64)?;
            } else {
                self.receive(program, 64)?;
                self.send(program, 64)?;
            }
        }
        Ok(())
    }

    /// Says that no more comes, and hears it.
    pub(super) fn end(&mut self, program: &Program) -> Result<()> {
        gone_early(program, "shutdown", || shutdown(self.raw(), Shutdown::Write))?;
        self.hear_end(program)
    }

    /// No more comes.
    pub(super) fn hear_end(&mut self, program: &Program) -> Result<()> {
        let mut byte = [0];
        let count = gone_early(program, "read", || read(&self.fd, &mut byte))?;
        ensure!(count == 0, "a byte behind the last: {byte:?}");
        Ok(())
    }

    /// O_NONBLOCK.
    pub(super) fn nonblocking(&self, program: &Program, on: bool) -> Result<()> {
        let mode = program.attempt("fcntl", || fcntl(&self.fd, FcntlArg::F_GETFL))?;
        let mut mode = OFlag::from_bits_retain(mode);
        mode.set(OFlag::O_NONBLOCK, on);
        program.attempt("fcntl", || fcntl(&self.fd, FcntlArg::F_SETFL(mode))).map(drop)
    }
}

/// Makes a call as `attempt`; an error that says that the other end is gone ends this one too.
pub(super) fn gone_early<T>(program: &Program, name: &str, mut make: impl FnMut() -> nix::Result<T>) -> Result<T> {
    for _ in 0..TRIES {
        match make() {
            Ok(value) => return Ok(value),
            Err(errno) => {
                program.note(name, errno);
                if matches!(errno, Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) {
                    bail!(Early(format!("{name}: {errno}")));
                }
            }
        }
    }
    bail!(GaveUp)
}
