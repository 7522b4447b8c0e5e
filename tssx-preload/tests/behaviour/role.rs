//! What a case sees: one end of a connection, a transcript, and a way to meet the other end.
//!
//! A role is a process of its own, started plain or with the library. The control connection (`…/control`, never
//! selected by USE_TSSX) is for meeting only: the transcript is standard output and must be the same however the
//! connection under test is carried.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mode::End;
use crate::{ledger, sys};

/// Ping-pongs before a case starts: well above the number of operations after which a connection may upgrade.
const WARM_UP: usize = 24;
/// How long an event that must come may take. Long: only a failing case ever waits for it.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// How long we look that an event does *not* come.
pub(crate) const BRIEFLY: Duration = Duration::from_millis(30);

/// Name of the socket under test inside the case's directory.
pub(crate) const SOCKET: &str = "socket";
const CONTROL: &str = "control";

/// One end's process.
pub(crate) struct Role {
    directory: PathBuf,
    listener: Option<UnixListener>,
    control: UnixStream,
    connections: Cell<usize>,
}

impl Role {
    /// Runs `body` as this end and leaves what the ledger says in `<directory>/<end>.ledger`.
    pub(crate) fn play(directory: &Path, end: End, body: fn(&Self)) {
        let role = match end {
            End::Server => Self::server(directory),
            End::Client => Self::client(directory),
        };
        body(&role);
        let counted = ledger::of_process(std::process::id()).unwrap_or_else(|error| panic!("cannot read our own ledger: {error}"));
        std::fs::write(directory.join(format!("{end:?}.ledger")), counted.to_text()).expect("the case's directory is writable");
    }

    fn server(directory: &Path) -> Self {
        let listener = UnixListener::bind(directory.join(SOCKET)).expect("bind");
        let control = UnixListener::bind(directory.join(CONTROL)).expect("bind the control socket");
        let (control, _) = control.accept().expect("accept the control connection");
        Self { directory: directory.to_path_buf(), listener: Some(listener), control, connections: Cell::new(0) }
    }

    fn client(directory: &Path) -> Self {
        let start = Instant::now();
        let control = loop {
            match UnixStream::connect(directory.join(CONTROL)) {
                Ok(control) => break control,
                Err(error) => assert!(start.elapsed() < SOON, "the server does not come up: {error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        Self { directory: directory.to_path_buf(), listener: None, control, connections: Cell::new(0) }
    }

    /// Adds a line to the transcript.
    #[allow(clippy::unused_self, reason = "a transcript belongs to a role")]
    pub(crate) fn say(&self, line: impl Display) {
        println!("{line}");
    }

    /// Adds `what: answer` to the transcript.
    pub(crate) fn note<T: std::fmt::Debug>(&self, what: &str, answer: T) {
        self.say(format_args!("{what}: {answer:?}"));
    }

    /// The directory for files of this case.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The socket under test.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// The listening socket's descriptor; only the server has one.
    pub(crate) fn listener(&self) -> i32 {
        self.listener.as_ref().expect("the server's").as_raw_fd()
    }

    /// Opens this end of a connection, without traffic on it.
    pub(crate) fn open(&self) -> i32 {
        self.connections.set(self.connections.get() + 1);
        match &self.listener {
            Some(listener) => listener.accept().expect("accept").0.into_raw_fd(),
            None => UnixStream::connect(self.path()).expect("connect").into_raw_fd(),
        }
    }

    /// Opens this end of a connection and lets it carry enough traffic to upgrade.
    pub(crate) fn open_warm(&self) -> i32 {
        let fd = self.open();
        self.warm_up(fd);
        fd
    }

    /// Ping-pongs on `fd`, blocking. The other end must do the same.
    pub(crate) fn warm_up(&self, fd: i32) {
        self.exchange(fd, WARM_UP);
    }

    /// Meets, so that neither end's pings are taken for what was tested, and ping-pongs.
    pub(crate) fn settle(&self, fd: i32) {
        self.meet();
        self.warm_up(fd);
    }

    /// Ping-pongs `rounds` times. The other end must do the same.
    pub(crate) fn exchange(&self, fd: i32, rounds: usize) {
        let mut byte = [0];
        for round in 0..rounds {
            let ping = [round as u8];
            if self.listener.is_some() {
                assert_eq!(sys::read(fd, &mut byte), Ok(1), "warm-up: ping");
                assert_eq!(byte, ping);
                assert_eq!(sys::write(fd, &ping), Ok(1), "warm-up: pong");
            } else {
                assert_eq!(sys::write(fd, &ping), Ok(1), "warm-up: ping");
                assert_eq!(sys::read(fd, &mut byte), Ok(1), "warm-up: pong");
                assert_eq!(byte, ping);
            }
        }
    }

    /// Waits until the other end is at its own `meet` too.
    pub(crate) fn meet(&self) {
        let mut control = &self.control;
        let mut byte = [0];
        control.write_all(&byte).expect("the other end is alive");
        control.read_exact(&mut byte).expect("the other end comes to the meeting");
    }
}

/// Bytes that tell by their value where they belong in the stream; `seed` tells streams apart.
pub(crate) fn pattern(seed: usize, from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|position| ((position * 31 + position / 251 + seed * 17) % 256) as u8).collect()
}

/// Reads exactly `into.len()` bytes; panics at an earlier end.
pub(crate) fn read_exactly(fd: i32, into: &mut [u8]) {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match sys::read(fd, rest) {
            Ok(0) => panic!("end of stream after {done} bytes"),
            Ok(count) => done += count,
            Err("EAGAIN") => drop(sys::poll(fd, libc::POLLIN, SOON)),
            Err(error) => panic!("read: {error} after {done} bytes"),
        }
    }
}

/// Writes all of `from`.
pub(crate) fn write_all(fd: i32, from: &[u8]) {
    let mut done = 0;
    while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
        match sys::write(fd, rest) {
            Ok(count) => done += count,
            Err("EAGAIN") => drop(sys::poll(fd, libc::POLLOUT, SOON)),
            Err(error) => panic!("write: {error} after {done} bytes"),
        }
    }
}
