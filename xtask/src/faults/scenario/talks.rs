//! Conversations: blocking, one-way, with a full ring, from threads, many at once.

use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use nix::sys::socket::MsgFlags;
use nix::unistd::{read, write};

use super::stream::Stream;
use super::{Program, Scenario, pause};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("talk", talk, talk),
    Scenario { spin_us: 40, ..Scenario::new("talk-spinning", talk, talk) },
    Scenario { log: Some("log"), ..Scenario::new("talk-logged", talk, talk) },
    Scenario { log: Some("stderr"), ..Scenario::new("talk-told", short, short) },
    // The same file by another name.
    Scenario { selects: "./socket", ..Scenario::new("another-name", talk, talk) },
    Scenario::new("one-way", drain, flood),
    Scenario { spin_us: 40, ..Scenario::new("one-way-spinning", drain, flood) },
    Scenario::new("the-other-way", flood, drain),
    Scenario::new("two-threads", talk_more, threads),
    Scenario::new("many", many_served, many_made),
    Scenario::new("peer-writes-first", listen_then_talk, speak_then_talk),
    Scenario::new("short", short, short),
];

fn talk(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 24)?;
    stream.end(program)
}

/// Closed before there is anything to accelerate.
fn short(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 1)?;
    stream.end(program)
}

/// More than a ring holds, to a reader that is late.
fn flood(program: &Program, mut stream: Stream) -> Result<()> {
    warm(program, &mut stream)?;
    for _ in 0..6 {
        stream.send(program, 1 << 17)?;
    }
    stream.end(program)
}

fn drain(program: &Program, mut stream: Stream) -> Result<()> {
    warm(program, &mut stream)?;
    pause();
    for _ in 0..12 {
        stream.receive_with(program, 1 << 16, MsgFlags::MSG_WAITALL)?;
    }
    stream.end(program)
}

/// Whichever end it is.
fn warm(program: &Program, stream: &mut Stream) -> Result<()> {
    stream.talk(program, 8)
}

fn talk_more(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 12)?;
    // Both directions at once.
    for _ in 0..20 {
        stream.send(program, 4000)?;
        stream.receive(program, 4000)?;
    }
    stream.end(program)
}

/// One thread sends, another one receives.
fn threads(program: &Program, mut stream: Stream) -> Result<()> {
    stream.talk(program, 12)?;
    let chunks: Vec<Vec<u8>> = (0..20)
        .map(|_| {
            let bytes = stream.next(4000);
            stream.sent += 4000;
            bytes
        })
        .collect();
    let fd = program.copy(&stream.fd)?;
    let writer = std::thread::spawn(move || -> nix::Result<()> {
        for chunk in &chunks {
            let mut at = 0;
            while let Some(rest) = chunk.get(at..).filter(|rest| !rest.is_empty()) {
                at += write(&fd, rest).or_else(|error| if error == nix::Error::EINTR { Ok(0) } else { Err(error) })?;
            }
        }
        Ok(())
    });
    let received = (0..20).try_for_each(|_| stream.receive(program, 4000));
    let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
    received?;
    program.attempt("write", || written)?;
    stream.end(program)
}

const MANY: usize = 12;

fn many_served(program: &Program, first: Stream) -> Result<()> {
    let listener = program.listener()?;
    let mut streams = vec![first];
    for _ in 1..MANY {
        streams.push(Stream::new(program.accept(&listener)?, false));
    }
    all_talk(program, &mut streams)
}

fn many_made(program: &Program, first: Stream) -> Result<()> {
    let mut streams = vec![first];
    for _ in 1..MANY {
        streams.push(Stream::new(program.connect()?, true));
    }
    all_talk(program, &mut streams)
}

fn all_talk(program: &Program, streams: &mut [Stream]) -> Result<()> {
    for _ in 0..6 {
        for stream in streams.iter_mut() {
            stream.talk(program, 1)?;
        }
    }
    streams.iter_mut().try_for_each(|stream| stream.end(program))
}

/// Nothing of the reader's before the writer has sent a lot.
fn listen_then_talk(program: &Program, mut stream: Stream) -> Result<()> {
    for _ in 0..40 {
        stream.receive(program, 100)?;
    }
    stream.send(program, 1)?;
    stream.talk(program, 6)?;
    stream.end(program)
}

fn speak_then_talk(program: &Program, mut stream: Stream) -> Result<()> {
    for _ in 0..40 {
        stream.send(program, 100)?;
    }
    let mut byte = [0];
    let count = super::stream::gone_early(program, "read", || read(&stream.fd, &mut byte))?;
    ensure!(count <= 1, "read of one byte gave {count} from {}", stream.fd.as_raw_fd());
    if count == 0 {
        anyhow::bail!(super::Early("no answer".to_owned()));
    }
    stream.came(&byte)?;
    stream.talk(program, 6)?;
    stream.end(program)
}
