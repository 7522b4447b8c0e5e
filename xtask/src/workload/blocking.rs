//! Blocking servers and clients, as a plain C or Rust program writes them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::{Load, Pinned, WARM_UP, rate};

/// Bytes that the stream server reads at most at once.
const STREAM_READ: usize = 256 * 1024;
/// After so many bytes the stream's reader acknowledges, so that the writer's clock counts what has arrived.
const STREAM_WINDOW: usize = 4 << 20;

pub(super) fn echo_server(socket: &Path, size: usize, _: Pinned) -> Result<()> {
    serve(socket, move |stream| {
        let mut bytes = vec![0; size];
        loop {
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)?;
        }
    })
}

pub(super) fn stream_server(socket: &Path, _size: usize, _: Pinned) -> Result<()> {
    serve(socket, |stream| {
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

pub(super) fn short_server(socket: &Path, size: usize, _: Pinned) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    let mut bytes = vec![0; size];
    for stream in listener.incoming() {
        let mut stream = stream?;
        // A client that only looked whether we listen sends nothing.
        if stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes)?;
        }
    }
    Ok(())
}

fn serve(socket: &Path, body: impl Fn(&mut UnixStream) -> std::io::Result<()> + Send + Sync + Clone + 'static) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    for stream in listener.incoming() {
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

pub(super) fn echo_client(load: &Load, _: Pinned) -> Result<f64> {
    let mut stream = connect(load)?;
    let (sent, mut back) = (vec![0x5A; load.place.size], vec![0; load.place.size]);
    let result = rate(load.milliseconds, WARM_UP, || {
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        Ok(())
    })?;
    ensure!(sent == back, "the echo is not what was sent");
    Ok(result)
}

/// Bytes per second.
pub(super) fn stream_client(load: &Load, _: Pinned) -> Result<f64> {
    let mut stream = connect(load)?;
    let bytes = vec![0x5A; load.place.size];
    let messages = STREAM_WINDOW / load.place.size;
    ensure!(messages * load.place.size == STREAM_WINDOW, "the size must divide {STREAM_WINDOW}");
    let window = move || {
        for _ in 0..messages {
            stream.write_all(&bytes)?;
        }
        stream.read_exact(&mut [0])?;
        Ok(())
    };
    // A window is large: one warms up, and the clock is read after each group of windows.
    Ok(rate(load.milliseconds, 1, window)? * STREAM_WINDOW as f64)
}

pub(super) fn short_client(load: &Load, _: Pinned) -> Result<f64> {
    let (sent, mut back) = (vec![0x5A; load.place.size], vec![0; load.place.size]);
    rate(load.milliseconds, WARM_UP / 10, || {
        let mut stream = UnixStream::connect(&load.place.socket)?;
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        Ok(())
    })
}

fn connect(load: &Load) -> Result<UnixStream> {
    UnixStream::connect(&load.place.socket).with_context(|| format!("cannot connect to {}", load.place.socket.display()))
}
