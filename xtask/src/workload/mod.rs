//! The programs that [`crate::bench`] and [`crate::demo`] start: ordinary servers and clients on a Unix socket that know
//! nothing of the library. Each is a process of its own, `cargo xtask workload NAME`, so that it can be started plain or
//! with `LD_PRELOAD`. Clients print their [`Figures`] as a line of JSON; servers run until they are killed.
//!
//! - [`blocking`]: echo, one-way stream and connect–request–close with blocking calls;
//! - [`events`]: echo over many connections with epoll, poll and select;
//! - [`paced`]: a few messages a second, with sleep in between;
//! - [`quiet`]: many connections on which nothing is said any more;
//! - [`calls`]: calls on descriptors that the library has no business with, by libc's functions ([`functions`]) and by the library's;
//! - [`meter`]: how rates, latencies and CPU time are taken.

mod blocking;
pub(crate) mod calls;
mod events;
mod functions;
mod meter;
mod paced;
mod quiet;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::figures::Figures;

/// Descriptors that a program needs besides its connections.
const DESCRIPTORS_BESIDES: u64 = 64;

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
    /// Sends a message and reads it back at a low rate, and sleeps in between
    PacedClient(Load),
    /// Reads and discards
    StreamServer(Place),
    /// Writes messages without waiting; its rate is that of the bytes as the reader got them
    StreamClient(Load),
    /// Echoes by level-triggered epoll, non-blocking
    EpollServer(Place),
    /// Echoes by poll, non-blocking
    PollServer(Place),
    /// Echoes by select, non-blocking
    SelectServer(Place),
    /// Writes to each of its connections, then reads from each
    ManyClient(Load),
    /// Says a little on each of many connections, then nothing any more until it is killed
    QuietClient(Load),
    /// Echoes one message of each connection, one after another, and closes
    ShortServer(Place),
    /// Connects, sends a message, reads it back, closes
    ShortClient(Load),
    /// Calls on files, sockets that are not selected, and sets of them
    PlainCalls(Load),
}

/// Where a server runs.
#[derive(Args)]
struct Place {
    /// Socket to bind
    #[arg(long)]
    socket: PathBuf,
    /// CPU to run on; may be given several times
    #[arg(long)]
    cpu: Vec<usize>,
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
    /// Messages a second, where they are paced
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Measure from the first message on
    #[arg(long)]
    cold: bool,
    /// Process whose CPU time counts too
    #[arg(long)]
    server: Option<i32>,
}

/// Runs one of the programs.
///
/// # Errors
/// Whatever the socket answers.
pub(crate) fn run(options: &Options) -> Result<()> {
    // A bench that is interrupted leaves no server behind.
    set_pdeathsig(Signal::SIGKILL)?;
    match &options.program {
        Program::EchoServer(place) => blocking::echo_server(place, pin(place)?),
        Program::StreamServer(place) => blocking::stream_server(place, pin(place)?),
        Program::ShortServer(place) => blocking::short_server(place, pin(place)?),
        Program::EpollServer(place) => events::epoll_server(place, pin(place)?),
        Program::PollServer(place) => events::poll_server(place, pin(place)?),
        Program::SelectServer(place) => events::select_server(place, pin(place)?),
        Program::EchoClient(load) => report(blocking::echo_client(load, pin(&load.place)?)),
        Program::StreamClient(load) => report(blocking::stream_client(load, pin(&load.place)?)),
        Program::ShortClient(load) => report(blocking::short_client(load, pin(&load.place)?)),
        Program::ManyClient(load) => report(events::client(load, pin(&load.place)?)),
        Program::PacedClient(load) => report(paced::client(load, pin(&load.place)?)),
        Program::PlainCalls(load) => report(calls::plain(load, pin(&load.place)?)),
        Program::QuietClient(load) => quiet::client(load, pin(&load.place)?),
    }
}

/// Proof that the process is where it should be.
#[derive(Clone, Copy)]
struct Pinned;

fn pin(place: &Place) -> Result<Pinned> {
    if !place.cpu.is_empty() {
        run_on(&place.cpu)?;
    }
    Ok(Pinned)
}

/// Lets the calling thread run on these CPUs alone.
pub(crate) fn run_on(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {cpus:?}"))
}

fn report(figures: Result<Vec<Figures>>) -> Result<()> {
    println!("{}", serde_json::to_string(&figures?)?);
    Ok(())
}

/// Lets this process have so many connections.
fn make_room(connections: u64) -> Result<()> {
    let wanted = connections + DESCRIPTORS_BESIDES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(());
    }
    ensure!(hard >= wanted, "{wanted} descriptors are needed, and {hard} allowed: allow more (`ulimit -Hn {wanted}`)");
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).with_context(|| format!("cannot allow {wanted} descriptors"))
}

impl Load {
    fn connect(&self) -> Result<UnixStream> {
        let socket = &self.place.socket;
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))
    }

    /// A message, and room for its echo.
    fn messages(&self) -> (Vec<u8>, Vec<u8>) {
        (vec![0x5A; self.place.size], vec![0; self.place.size])
    }
}
