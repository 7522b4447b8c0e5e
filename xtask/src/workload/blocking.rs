//! Blocking servers and clients, as a plain C or Rust program writes them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::meter::{rate, sampled, warm_up};
use super::{Load, Pinned, Place};
use crate::figures::Figures;

/// Bytes that the stream server reads at most at once.
const STREAM_READ: usize = 256 * 1024;
/// After so many bytes the stream's reader acknowledges, so that the writer's clock counts what has arrived.
const STREAM_WINDOW: usize = 4 << 20;
/// Messages of a connection among many before all are used at the same time: past the upgrade.
const FIRST_MESSAGES: usize = 8;
/// Connections before the clock starts, where each is used once.
const SHORT_WARM_UP: u64 = 200;

pub(super) fn echo_server(place: &Place, _: Pinned) -> Result<()> {
    let size = place.size;
    serve(place, move |stream| {
        let mut bytes = vec![0; size];
        loop {
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)?;
        }
    })
}

pub(super) fn stream_server(place: &Place, _: Pinned) -> Result<()> {
    serve(place, |stream| {
        let (mut bytes, mut window) = (vec![0; STREAM_READ], 0);
        loop {
            let room = STREAM_READ.min(STREAM_WINDOW - window);
            let count = stream.read(bytes.get_mut(..room).unwrap_or_default())?;
            if count == 0 {
                return Ok(());
            }
            window += count;
            if window == STREAM_WINDOW {
                stream.write_all(&[1])?;
                window = 0;
            }
        }
    })
}

pub(super) fn short_server(place: &Place, _: Pinned) -> Result<()> {
    let listener = bind(place)?;
    let mut bytes = vec![0; place.size];
    for stream in listener.incoming() {
        let mut stream = stream?;
        // A client that only looked whether we listen sends nothing.
        if stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes)?;
        }
    }
    Ok(())
}

fn serve(place: &Place, body: impl Fn(&mut UnixStream) -> std::io::Result<()> + Send + Sync + Clone + 'static) -> Result<()> {
    for stream in bind(place)?.incoming() {
        let (mut stream, body) = (stream?, body.clone());
        thread::spawn(move || match body(&mut stream) {
            // A client that is killed in the middle of a measurement is no news.
            Err(error)
                if ![ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()) =>
            {
                eprintln!("server: {error}");
            }
            _ => {}
        });
    }
    Ok(())
}

pub(super) fn bind(place: &Place) -> Result<UnixListener> {
    UnixListener::bind(&place.socket).with_context(|| format!("cannot bind {}", place.socket.display()))
}

/// Sends a message and reads it back.
pub(super) fn round_trip(stream: &mut UnixStream, sent: &[u8], back: &mut [u8]) -> Result<()> {
    stream.write_all(sent)?;
    Ok(stream.read_exact(back)?)
}

/// Uses a new connection for a moment, alone, as one does that greets before it works.
pub(super) fn introduce(stream: &mut UnixStream, sent: &[u8], back: &mut [u8]) -> Result<()> {
    (0..FIRST_MESSAGES).try_for_each(|_| round_trip(stream, sent, back))
}

pub(super) fn echo_client(load: &Load, _: Pinned) -> Result<Vec<Figures>> {
    let mut stream = load.connect()?;
    let (sent, mut back) = load.messages();
    let figures = rate(load, warm_up(load), 1.0, || round_trip(&mut stream, &sent, &mut back))?;
    let latency = sampled(load, |samples| {
        let start = Instant::now();
        round_trip(&mut stream, &sent, &mut back)?;
        samples.note(start);
        Ok(())
    })?;
    ensure!(sent == back, "the echo is not what was sent");
    Ok(vec![Figures { latency, ..figures }])
}

/// The value is bytes per second; the messages, of which the CPU time is told, are writes.
pub(super) fn stream_client(load: &Load, _: Pinned) -> Result<Vec<Figures>> {
    let mut stream = load.connect()?;
    let (bytes, _) = load.messages();
    let messages = STREAM_WINDOW / load.place.size;
    ensure!(messages * load.place.size == STREAM_WINDOW, "the size must divide {STREAM_WINDOW}");
    // A window is large: one warms up.
    let figures = rate(load, 1, messages as f64, || {
        for _ in 0..messages {
            stream.write_all(&bytes)?;
        }
        Ok(stream.read_exact(&mut [0])?)
    })?;
    Ok(vec![Figures { value: figures.value * load.place.size as f64, ..figures }])
}

pub(super) fn short_client(load: &Load, _: Pinned) -> Result<Vec<Figures>> {
    let (sent, mut back) = load.messages();
    let mut once = || round_trip(&mut load.connect()?, &sent, &mut back);
    let figures = rate(load, SHORT_WARM_UP, 1.0, &mut once)?;
    let latency = sampled(load, |samples| {
        let start = Instant::now();
        once()?;
        samples.note(start);
        Ok(())
    })?;
    Ok(vec![Figures { latency, ..figures }])
}
