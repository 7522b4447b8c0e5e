//! One end of a measurement, in a process of its own: it is started plain or with the library, and knows nothing of either.
//!
//! All that it does on its connection goes through libc, as in other programs; rustix would pass the library by.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::{Events, Interest, Poll, Token};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Shape;

/// What both ends are told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) server: bool,
    pub(crate) shape: Shape,
    /// The CPU to run on; `None`: any.
    pub(crate) cpu: Option<usize>,
    /// Bytes of a message.
    pub(crate) size: usize,
    /// What each end computes for each round trip, nanoseconds.
    pub(crate) think_ns: u64,
    /// Operations before the clocks start: past the upgrade.
    pub(crate) warm_up: u64,
    /// How long the client measures, milliseconds.
    pub(crate) milliseconds: u64,
    pub(crate) socket: PathBuf,
}

/// What an end prints: operations after the warm-up, and what they took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    /// Wall time, seconds; 0 for the server, who does not know when the client is done.
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// Longest that a client waits for its server to listen, and an end for the other's bytes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that the reader of a stream takes at most at once.
const STREAM_READ: usize = 64 * 1024;
/// Bytes, and messages, after which a stream's reader acknowledges, so that the writer's clock counts what has arrived.
const WINDOW_BYTES: usize = 4 << 20;
const WINDOW_MESSAGES: usize = 4096;
/// The clock is read once in so many operations.
const CLOCK_EVERY: u64 = 8;

impl Task {
    /// Messages of one window of a stream; a round trip is one.
    pub(crate) fn messages_per_operation(&self) -> u64 {
        let window = (WINDOW_BYTES / self.size.max(1)).clamp(1, WINDOW_MESSAGES) as u64;
        if self.shape == Shape::Stream { window } else { 1 }
    }

    /// Does it, and prints the outcome.
    ///
    /// # Errors
    /// Where the other end does not come, or goes too early.
    pub(crate) fn run(&self) -> anyhow::Result<Outcome> {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPU {cpu}"))?;
        }
        if self.server { self.serve() } else { self.ask() }
    }

    fn serve(&self) -> anyhow::Result<Outcome> {
        let listener = UnixListener::bind(&self.socket).with_context(|| format!("cannot bind {}", self.socket.display()))?;
        let (stream, _) = listener.accept().context("cannot accept")?;
        let mut end = End::new(stream, self)?;
        let mut started = cpu_now();
        let mut operations = 0;
        while self.answer(&mut end)? {
            operations += 1;
            if operations == self.warm_up {
                started = cpu_now();
            }
        }
        ensure!(operations >= self.warm_up, "the client went after {operations} operations");
        Ok(Outcome { operations: operations - self.warm_up, seconds: 0.0, cpu_seconds: (cpu_now() - started).as_secs_f64() })
    }

    /// One operation of the server; `false` at the end of the stream.
    fn answer(&self, end: &mut End) -> anyhow::Result<bool> {
        if self.shape == Shape::Stream {
            let whole = self.size * usize::try_from(self.messages_per_operation())?;
            if !end.receive(whole)? {
                return Ok(false);
            }
            end.send(1)?;
        } else {
            if !end.receive(self.size)? {
                return Ok(false);
            }
            think(self.think_ns);
            end.send(self.size)?;
        }
        Ok(true)
    }

    fn ask(&self) -> anyhow::Result<Outcome> {
        let mut end = End::new(self.connect()?, self)?;
        for _ in 0..self.warm_up {
            self.operation(&mut end)?;
        }
        let (cpu, start, limit) = (cpu_now(), Instant::now(), Duration::from_millis(self.milliseconds));
        let mut operations = 0;
        let elapsed = loop {
            self.operation(&mut end)?;
            operations += 1;
            if operations % CLOCK_EVERY == 0 || self.size > STREAM_READ || self.shape == Shape::Stream {
                let elapsed = start.elapsed();
                if elapsed >= limit {
                    break elapsed;
                }
            }
        };
        Ok(Outcome { operations, seconds: elapsed.as_secs_f64(), cpu_seconds: (cpu_now() - cpu).as_secs_f64() })
    }

    /// One operation of the client.
    fn operation(&self, end: &mut End) -> anyhow::Result<()> {
        let back = if self.shape == Shape::Stream {
            for _ in 0..self.messages_per_operation() {
                end.send(self.size)?;
            }
            1
        } else {
            think(self.think_ns);
            end.send(self.size)?;
            self.size
        };
        ensure!(end.receive(back)?, "the server went away");
        Ok(())
    }

    fn connect(&self) -> anyhow::Result<UnixStream> {
        let end = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() >= end => {
                    return Err(error).with_context(|| format!("nobody listens at {}", self.socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// CPU time of this process.
fn cpu_now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Computes for so many nanoseconds.
fn think(nanoseconds: u64) {
    if nanoseconds > 0 {
        let (start, time) = (Instant::now(), Duration::from_nanos(nanoseconds));
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }
}

/// The connection, and its buffers.
struct End {
    stream: UnixStream,
    /// What waits for the stream where the shape is [`Shape::Events`].
    events: Option<(Poll, Events)>,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl End {
    fn new(stream: UnixStream, task: &Task) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut events = None;
        if task.shape == Shape::Events {
            stream.set_nonblocking(true)?;
            let poll = Poll::new().context("cannot make an epoll set")?;
            let mut source = mio::unix::SourceFd(&std::os::fd::AsRawFd::as_raw_fd(&stream));
            poll.registry().register(&mut source, Token(0), Interest::READABLE | Interest::WRITABLE)?;
            events = Some((poll, Events::with_capacity(8)));
        }
        Ok(Self { stream, events, sent: vec![b'x'; task.size], received: vec![0; task.size.max(STREAM_READ)] })
    }

    fn send(&mut self, size: usize) -> anyhow::Result<()> {
        let mut done = 0;
        while done < size {
            match self.stream.write(self.sent.get(done..size).unwrap_or_default()) {
                Ok(0) => bail!("nothing can be sent"),
                Ok(count) => done += count,
                Err(error) => self.wait(error).context("sending")?,
            }
        }
        Ok(())
    }

    /// `false`: the stream ended before the first byte.
    fn receive(&mut self, size: usize) -> anyhow::Result<bool> {
        let mut done = 0;
        while done < size {
            let room = (size - done).min(self.received.len());
            match self.stream.read(self.received.get_mut(..room).unwrap_or_default()) {
                Ok(0) if done == 0 => return Ok(false),
                Ok(0) => bail!("the stream ended in the middle of a message"),
                Ok(count) => done += count,
                Err(error) => self.wait(error).context("receiving")?,
            }
        }
        Ok(true)
    }

    /// Waits where an event-driven program does; any other error is one.
    fn wait(&mut self, error: std::io::Error) -> anyhow::Result<()> {
        match (&mut self.events, error.kind()) {
            (_, ErrorKind::Interrupted) => Ok(()),
            (Some((poll, events)), ErrorKind::WouldBlock) => {
                poll.poll(events, Some(PATIENCE))?;
                ensure!(!events.is_empty(), "the other end is silent");
                Ok(())
            }
            _ => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_count_the_same_operations_in_every_shape() {
        for shape in [Shape::RoundTrip, Shape::Events, Shape::Stream] {
            let directory = tempfile::tempdir().expect("a directory");
            let client = Task {
                server: false,
                shape,
                cpu: None,
                size: 300_000,
                think_ns: 1000,
                warm_up: 3,
                milliseconds: 1,
                socket: directory.path().join("socket"),
            };
            let server = Task { server: true, ..client.clone() };
            let served = std::thread::spawn(move || server.run());
            let asked = client.run().expect("asked");
            let served = served.join().expect("no panic").expect("served");
            assert!(asked.operations > 0 && asked.seconds > 0.0, "{shape:?}");
            assert_eq!(asked.operations, served.operations, "{shape:?}");
        }
    }

    #[test]
    fn a_window_of_a_stream_is_bounded_in_bytes_and_messages() {
        let task = |size| Task {
            server: false,
            shape: Shape::Stream,
            cpu: None,
            size,
            think_ns: 0,
            warm_up: 0,
            milliseconds: 0,
            socket: PathBuf::new(),
        };
        assert_eq!(task(1).messages_per_operation(), 4096);
        assert_eq!(task(1 << 20).messages_per_operation(), 4);
        assert_eq!(task(16 << 20).messages_per_operation(), 1);
    }
}
