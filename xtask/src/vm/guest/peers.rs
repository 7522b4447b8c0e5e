//! An echo server and a client whose every call and byte is known, as processes of their own, for the tracer to watch.
//!
//! The client does what lines on its standard input say, `COUNT SIZE`: so many requests of so many bytes, each answered with the same.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use super::INIT;
use crate::measure::Running;
use crate::run;

/// What a peer prints when it is connected or listens, and when it has done what a line said.
const READY: &str = "ready";

/// Options of a peer.
#[derive(Args)]
pub(crate) struct Options {
    /// Which end
    end: End,
    /// The socket
    socket: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum End {
    Server,
    Client,
}

/// Runs one of the peers until its standard input ends (the client) or it is killed.
///
/// # Errors
/// Whatever the socket answers, or an answer that is not the request.
pub(crate) fn play(options: &Options) -> Result<()> {
    match options.end {
        End::Server => serve(options),
        End::Client => converse(options),
    }
}

fn serve(options: &Options) -> Result<()> {
    let listener = UnixListener::bind(&options.socket)?;
    println!("{READY}");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut bytes = vec![0; 1 << 16];
        loop {
            let count = stream.read(&mut bytes)?;
            if count == 0 {
                break;
            }
            stream.write_all(bytes.get(..count).unwrap_or_default())?;
        }
    }
    Ok(())
}

fn converse(options: &Options) -> Result<()> {
    let mut stream = UnixStream::connect(&options.socket)?;
    println!("{READY}");
    for line in std::io::stdin().lines() {
        let line = line?;
        let (count, size) = line.split_once(' ').context("a count and a size")?;
        let (count, size): (u64, usize) = (count.parse()?, size.parse()?);
        let request: Vec<u8> = (0..=250).cycle().take(size).collect();
        let mut answer = vec![0; size];
        for _ in 0..count {
            stream.write_all(&request)?;
            stream.read_exact(&mut answer)?;
            ensure!(answer == request, "the answer is not the request");
        }
        println!("{READY}");
    }
    Ok(())
}

/// A peer that runs, until dropped.
pub(super) struct Peer {
    running: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts one and waits until it is ready.
    pub(super) fn start(end: &str, socket: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(INIT);
        command.args(["vm-peer", end, socket]).envs(environment.iter().copied());
        let mut running = Running::start_with(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let input = running.child().stdin.take().context("standard input was asked for")?;
        let output = BufReader::new(running.child().stdout.take().context("standard output was asked for")?);
        let mut peer = Self { running, input, output };
        peer.await_ready().with_context(|| format!("`{}`", run::shown(&command)))?;
        Ok(peer)
    }

    /// Lets the client make an exchange.
    pub(super) fn exchange(&mut self, count: u64, size: usize) -> Result<()> {
        writeln!(self.input, "{count} {size}")?;
        self.await_ready()
    }

    pub(super) fn pid(&self) -> i32 {
        self.running.id().as_raw()
    }

    /// A peer that hangs is noticed by the host: the machine falls silent.
    fn await_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim_end() == READY, "the peer ended, or said {line:?}");
        Ok(())
    }
}
