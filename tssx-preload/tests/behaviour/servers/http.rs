//! A small HTTP client over a Unix socket, and the load of checked requests that it makes.
//!
//! Each request sends text and asks for text. The answer must be what was sent, backwards, and then its own number as
//! often as it asked for: neither a lost byte nor another request's answer passes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::role::{SOON, pattern};

/// Connections at a time.
pub(super) const CLIENTS: u64 = 8;

/// A keep-alive connection.
struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("connect: {error}"))?;
        stream.set_read_timeout(Some(SOON)).map_err(|error| error.to_string())?;
        stream.set_write_timeout(Some(SOON)).map_err(|error| error.to_string())?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one request, and returns the body of an answer that says 200.
    fn post(&mut self, target: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let head = format!("POST {target} HTTP/1.1\r\nHost: tests\r\nContent-Length: {}\r\n\r\n", body.len());
        let request = [head.as_bytes(), body].concat();
        self.stream.get_mut().write_all(&request).map_err(|error| format!("sending: {error}"))?;
        let status = self.line()?;
        let mut length = None;
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok(),
                Some(_) => {}
                None => break,
            }
        }
        if !status.contains(" 200 ") {
            return Err(status);
        }
        let mut answer = vec![0; length.ok_or("an answer without a length")?];
        self.stream.read_exact(&mut answer).map_err(|error| format!("receiving: {error}"))?;
        Ok(answer)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("the connection ended before the answer".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!("receiving: {error}")),
        }
    }
}

/// Makes `requests` requests, or fewer if `stop` is set, by [`CLIENTS`] clients at a time. Returns how many were answered
/// right, or what was wrong first.
pub(super) fn load(socket: &Path, requests: u64, stop: &AtomicBool) -> Result<u64, String> {
    let next = AtomicU64::new(0);
    let answered = std::thread::scope(|scope| {
        let client = || -> Result<u64, String> {
            let mut client = Client::connect(socket)?;
            let mut right = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests || stop.load(Ordering::Relaxed) {
                    return Ok(right);
                }
                if let Err(error) = ask(&mut client, number) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(format!("request {number}: {error}"));
                }
                right += 1;
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let ended = clients.into_iter().map(|client| client.join().unwrap_or_else(|_| Err("a client panicked".to_owned())));
        ended.collect::<Vec<_>>()
    });
    answered.into_iter().sum()
}

fn ask(client: &mut Client, number: u64) -> Result<(), String> {
    // Mostly what fits a packet or two; each sixteenth more than a socket's buffer at once.
    let scale = if number.is_multiple_of(16) { 60 } else { 1 };
    let (sent, times) = (number * 7919 % 1500 * scale, number * 104_729 % 400 * scale);
    let body = pattern(number as usize, 0, sent as usize);
    let answer = client.post(&format!("/echo.php?number={number}&times={times}"), &body)?;
    let mut right: Vec<u8> = body.into_iter().rev().collect();
    right.extend(format!("{number};").repeat(times as usize).bytes());
    if answer == right {
        return Ok(());
    }
    let place = answer.iter().zip(&right).position(|(got, due)| got != due).unwrap_or(answer.len().min(right.len()));
    Err(format!("{} bytes instead of {}, other from byte {place} on", answer.len(), right.len()))
}
