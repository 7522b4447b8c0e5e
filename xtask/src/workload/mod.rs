//! The programs that [`crate::bench`] and [`crate::demo`] start: ordinary servers and clients on a Unix socket that know
//! nothing of the library. Each is a process of its own, `cargo xtask workload NAME`, so that it can be started plain or
//! with `LD_PRELOAD`. Clients print one number, operations (or bytes) per second; servers run until they are killed.
//!
//! - [`blocking`]: echo, one-way stream and connect–request–close with blocking calls;
//! - [`events`]: echo over many connections with epoll;
//! - [`calls`]: calls on descriptors that are no sockets.

mod blocking;
mod calls;
mod events;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Operations before the clock starts: past the upgrade, with warm caches.
const WARM_UP: u64 = 2000;
/// The clock is read once in so many operations.
const CLOCK_EVERY: u64 = 32;

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Echoes what each connection sends, with a blocking thread per connection
    EchoServer(Place),
    /// Sends a message and reads it back, over and over
    EchoClient(Load),
    /// Reads and discards
    StreamServer(Place),
    /// Writes messages without waiting; prints bytes per second as the reader got them
    StreamClient(Load),
    /// Echoes by level-triggered epoll, non-blocking
    EpollServer(Place),
    /// Writes to each of its connections, then reads from each
    EpollClient(Load),
    /// Echoes one message of each connection, one after another, and closes
    ShortServer(Place),
    /// Connects, sends a message, reads it back, closes
    ShortClient(Load),
    /// Writes one byte to /dev/null, over and over
    PlainCalls(Load),
}

/// Where a server runs.
#[derive(Args)]
struct Place {
    /// Socket to bind
    #[arg(long)]
    socket: PathBuf,
    /// CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// Bytes of a message
    #[arg(long, default_value_t = 64)]
    size: usize,
}

/// What a client does.
#[derive(Args)]
struct Load {
    #[command(flatten)]
    place: Place,
    /// Connections to open
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How long to measure, in milliseconds
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
}

/// Runs one of the programs.
///
/// # Errors
/// Whatever the socket answers.
pub(crate) fn run(options: &Options) -> Result<()> {
    // A bench that is interrupted leaves no server behind.
    set_pdeathsig(Signal::SIGKILL)?;
    match &options.program {
        Program::EchoServer(place) => blocking::echo_server(&place.socket, place.size, pin(place)?),
        Program::StreamServer(place) => blocking::stream_server(&place.socket, place.size, pin(place)?),
        Program::ShortServer(place) => blocking::short_server(&place.socket, place.size, pin(place)?),
        Program::EpollServer(place) => events::server(&place.socket, place.size, pin(place)?),
        Program::EchoClient(load) => report(blocking::echo_client(load, pin(&load.place)?)),
        Program::StreamClient(load) => report(blocking::stream_client(load, pin(&load.place)?)),
        Program::EpollClient(load) => report(events::client(load, pin(&load.place)?)),
        Program::ShortClient(load) => report(blocking::short_client(load, pin(&load.place)?)),
        Program::PlainCalls(load) => report(calls::plain(load, pin(&load.place)?)),
    }
}

/// Proof that the process is where it should be.
#[derive(Clone, Copy)]
struct Pinned;

fn pin(place: &Place) -> Result<Pinned> {
    if let Some(cpu) = place.cpu {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {cpu}"))?;
    }
    Ok(Pinned)
}

fn report(rate: Result<f64>) -> Result<()> {
    println!("{:.3}", rate?);
    Ok(())
}

/// Runs `operation` to warm up, then for the time asked for; returns operations per second.
fn rate(milliseconds: u64, warm_up: u64, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..warm_up {
        operation()?;
    }
    let (start, limit) = (Instant::now(), Duration::from_millis(milliseconds));
    let mut count = 0_u32;
    loop {
        for _ in 0..CLOCK_EVERY {
            operation()?;
            count += 1;
        }
        let elapsed = start.elapsed();
        if elapsed >= limit {
            return Ok(f64::from(count) / elapsed.as_secs_f64());
        }
    }
}
