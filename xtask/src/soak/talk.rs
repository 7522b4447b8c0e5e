//! What the ends of a connection do, and check: every byte is a function of its position ([`Pattern`]).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::stage::Lane;
use crate::exchange::{Demotion, Dice, Half, Pattern, Plan, Sender, receive};
use crate::kills::{self, Receiver};

/// Bytes that are read at once.
pub(super) const ROOM: usize = 1 << 16;
/// Most bytes of one write of a flood.
const FLOOD_MAX: u64 = 100_000;

/// How a part of a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// There is more to come.
    Enough,
    /// At the end of file.
    Whole,
    /// By the peer's death: ECONNRESET or EPIPE.
    Cut,
}

/// The bytes that both ends of an echo, or one direction of anything else, have in common.
pub(super) struct Course<'a> {
    pub stream: &'a UnixStream,
    pub pattern: Pattern,
    pub lane: &'a Lane,
    pub position: u64,
}

impl<'a> Course<'a> {
    pub(super) fn new(stream: &'a UnixStream, seed: u64, lane: &'a Lane) -> Self {
        Self { stream, pattern: Pattern(seed), lane, position: 0 }
    }

    /// Checks bytes that belong at a position.
    pub(super) fn check(&self, position: u64, bytes: &[u8]) -> Result<()> {
        check(self.pattern, position, bytes)
    }

    /// Sends back what comes, for so many reads at most.
    pub(super) fn echo(&mut self, reads: u64) -> Result<Ended> {
        let mut room = vec![0; ROOM];
        for _ in 0..reads {
            let count = match self.read(&mut room)? {
                Ok(count) => count,
                Err(ended) => return Ok(ended),
            };
            let came = room.get(..count).unwrap_or_default();
            self.check(self.position, came)?;
            let mut stream = self.stream;
            if let Err(error) = stream.write_all(came) {
                return died(error, "while the echo was sent");
            }
            self.moved(Half::Receiver, count as u64);
        }
        Ok(Ended::Enough)
    }

    fn read(&self, room: &mut [u8]) -> Result<Result<usize, Ended>> {
        let mut stream = self.stream;
        match stream.read(room) {
            Ok(0) => Ok(Err(Ended::Whole)),
            Ok(count) => Ok(Ok(count)),
            Err(error) => died(error, "while the next bytes were waited for").map(Err),
        }
    }

    fn moved(&mut self, half: Half, count: u64) {
        self.position += count;
        self.lane.watch.moved(half, self.position);
    }

    /// Sends so many messages of at most `most` bytes, each of which comes back, in the manner of the dice.
    pub(super) fn converse(&mut self, messages: u64, most: u64, style: Style, dice: &mut Dice) -> Result<Ended> {
        let (mut receiver, sender) = style.ends(self.stream)?;
        let mut bytes = vec![0; most as usize + 8];
        for _ in 0..messages {
            let length = dice.size(most) as usize;
            let lead = (self.position % 8) as usize;
            self.pattern.fill(self.position - lead as u64, &mut bytes[..lead + length]);
            let mut left = &bytes[lead..lead + length];
            while !left.is_empty() {
                match sender.send(left)? {
                    Ok(count) => left = left.get(count..).context("more was sent than there was")?,
                    Err(end) => return Ok(ended(end)),
                }
            }
            if let Some(ended) = self.await_echo(&mut receiver, &mut bytes[..length])? {
                return Ok(ended);
            }
        }
        Ok(Ended::Enough)
    }

    fn await_echo(&mut self, receiver: &mut Receiver<'_>, room: &mut [u8]) -> Result<Option<Ended>> {
        let mut got = 0;
        while got < room.len() {
            match receiver.receive(&mut room[got..])? {
                Ok(count) => {
                    self.check(self.position, room.get(got..got + count).context("more came than there was room for")?)?;
                    self.moved(Half::Sender, count as u64);
                    got += count;
                }
                Err(end) => return Ok(Some(ended(end))),
            }
        }
        Ok(None)
    }

    /// Takes so many bytes that were sent before.
    pub(super) fn collect(&mut self, bytes: u64) -> Result<()> {
        let mut room = vec![0; bytes as usize];
        let mut stream = self.stream;
        stream.read_exact(&mut room).context("what is on its way back")?;
        self.check(self.position, &room)?;
        self.moved(Half::Receiver, bytes);
        Ok(())
    }

    /// Sends without an end and checks what comes back, in two threads; until the connection is cut.
    pub(super) fn flood(&self, dice: &mut Dice) -> Result<Ended> {
        thread::scope(|scope| {
            let back = scope.spawn(|| {
                let (mut room, mut position) = (vec![0; ROOM], 0);
                loop {
                    match self.read(&mut room)? {
                        Ok(count) => {
                            self.check(position, room.get(..count).unwrap_or_default())?;
                            position += count as u64;
                        }
                        Err(ended) => return Ok(ended),
                    }
                }
            });
            let (mut bytes, mut sent) = (vec![0; FLOOD_MAX as usize + 8], 0);
            let mut stream = self.stream;
            loop {
                let (length, lead) = (dice.size(FLOOD_MAX) as usize, (sent % 8) as usize);
                self.pattern.fill(sent - lead as u64, &mut bytes[..lead + length]);
                if let Err(error) = stream.write_all(&bytes[lead..lead + length]) {
                    died(error, "in a flood")?;
                    return back.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
                }
                sent += length as u64;
                if dice.one_in(8) {
                    thread::sleep(Duration::from_micros(dice.size(3000)));
                }
            }
        })
    }

    /// Sends so many bytes.
    pub(super) fn pour(&mut self, bytes: u64, dice: &mut Dice) -> Result<Ended> {
        let mut room = vec![0; ROOM + 8];
        while self.position < bytes {
            let length = dice.size((bytes - self.position).min(ROOM as u64)) as usize;
            let lead = (self.position % 8) as usize;
            self.pattern.fill(self.position - lead as u64, &mut room[..lead + length]);
            let mut stream = self.stream;
            if let Err(error) = stream.write_all(&room[lead..lead + length]) {
                return died(error, "in a stream");
            }
            self.moved(Half::Sender, length as u64);
        }
        Ok(Ended::Enough)
    }

    /// Reads so many bytes, with a pause now and then in which the writer comes to a full ring.
    pub(super) fn drain(&mut self, bytes: u64, dice: &mut Dice) -> Result<Ended> {
        let mut room = vec![0; ROOM];
        while self.position < bytes {
            let most = dice.size(room.len() as u64) as usize;
            let count = match self.read(&mut room[..most])? {
                Ok(count) => count,
                Err(ended) => return Ok(ended),
            };
            self.check(self.position, room.get(..count).unwrap_or_default())?;
            self.moved(Half::Receiver, count as u64);
            if dice.one_in(6) {
                thread::sleep(Duration::from_micros(dice.size(8000)));
            }
        }
        ensure!(self.position == bytes, "{} bytes came of {bytes}", self.position);
        Ok(Ended::Enough)
    }
}

/// Both ends send at once, by a plan that both derive from the hello. `end` is 0 for the client and 1 for the server.
pub(super) fn both_ways(stream: &UnixStream, end: usize, seed: u64, bytes: u64, lane: &Lane) -> Result<()> {
    // The plan takes a fiftieth of the whole and half of what is left for a direction, at most.
    let plan = Plan::of(seed, 0, bytes * 50, bytes * 2, Demotion::value_variants());
    stream.set_nonblocking(plan.nonblocking[end])?;
    let (out, back) = (&plan.directions[end], &plan.directions[1 - end]);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let result = Sender::new(stream, out, plan.edges[end], &lane.watch).run();
            if let Err(error) = &result {
                // At once: the receiver may wait for ever for a peer that is told nothing.
                eprintln!("sender: {error:#}: {}: {plan:?}", lane.watch.place());
                std::process::exit(1);
            }
        });
        receive(stream, back, plan.edges[end], &lane.watch).with_context(|| format!("{plan:?}"))?;
        sender.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))
    })
}

pub(super) fn check(pattern: Pattern, position: u64, bytes: &[u8]) -> Result<()> {
    match pattern.first_wrong(position, bytes) {
        Some(wrong) => bail!("WRONG BYTE: {}", pattern.explain(wrong, position, bytes)),
        None => Ok(()),
    }
}

/// The peer may have died; any other error is one.
pub(super) fn died(error: std::io::Error, when: &'static str) -> Result<Ended> {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(Ended::Cut),
        _ => Err(error).context(when),
    }
}

fn ended(end: kills::End) -> Ended {
    if end == kills::End::OfFile { Ended::Whole } else { Ended::Cut }
}

/// By which calls a client converses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    receive: kills::Kind,
    send: kills::Kind,
}

impl Style {
    pub(super) fn of(dice: &mut Dice) -> Self {
        use kills::Kind;
        let receive = dice.pick(&[
            Kind::Read,
            Kind::Recvmsg,
            Kind::WaitAll,
            Kind::Readv,
            Kind::Poll,
            Kind::Select,
            Kind::Epoll,
            Kind::EpollEdge,
        ]);
        let waiting = [Kind::PollOut, Kind::EpollOut];
        // Who waits for edges does not block.
        let send = if receive == Kind::EpollEdge || dice.one_in(2) {
            dice.pick(&waiting)
        } else {
            dice.pick(&[Kind::Write, Kind::Sendmsg])
        };
        Self { receive, send }
    }

    /// read(2) and write(2).
    pub(super) fn blocking() -> Self {
        Self { receive: kills::Kind::Read, send: kills::Kind::Write }
    }

    fn ends(self, stream: &UnixStream) -> Result<(Receiver<'_>, kills::Sender<'_>)> {
        let ends = (Receiver::new(self.receive, stream)?, kills::Sender::new(self.send, stream)?);
        Ok(ends)
    }
}
