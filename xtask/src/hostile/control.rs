//! A connection of the victim's to somebody honest: it is accelerated, and stays exact whatever happens on the others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::exchange::{Dice, Pattern};

/// Name of its socket in the directory.
pub(super) const NAME: &str = "honest";
/// Exchanges before the first round: enough for rings.
pub(super) const WARM_UP: u64 = 50;
/// Between two exchanges of a thread that makes them beside the rounds.
pub(super) const PAUSE: Duration = Duration::from_micros(300);
/// Most words of one message.
const WORDS_MAX: u64 = 6000;

/// The victim's end.
pub(super) struct Control {
    stream: UnixStream,
    pattern: Pattern,
    dice: Dice,
    position: u64,
}

impl Control {
    pub(super) fn new(stream: UnixStream, seed: u64) -> Self {
        Self { stream, pattern: Pattern(seed), dice: Dice::new(seed, 1), position: 0 }
    }

    /// Bytes so far, both ways.
    pub(super) fn bytes(&self) -> u64 {
        2 * self.position
    }

    /// Sends so many messages, each of which comes back as it was.
    ///
    /// # Errors
    /// A wrong byte, or an error.
    pub(super) fn exchange(&mut self, messages: u64) -> Result<()> {
        for _ in 0..messages {
            let mut bytes = vec![0; 8 * self.dice.size(WORDS_MAX) as usize];
            self.pattern.fill(self.position, &mut bytes);
            self.stream.write_all(&bytes).context("to somebody honest")?;
            bytes.fill(0);
            self.stream.read_exact(&mut bytes).context("from somebody honest")?;
            check(self.pattern, self.position, &bytes)?;
            self.position += bytes.len() as u64;
        }
        Ok(())
    }
}

fn check(pattern: Pattern, position: u64, bytes: &[u8]) -> Result<()> {
    match pattern.first_wrong(position, bytes) {
        Some(wrong) => bail!("a wrong byte on the honest connection, {}", pattern.explain(wrong, position, bytes)),
        None => Ok(()),
    }
}

/// The other end, until the victim closes its own.
pub(super) fn answer(mut stream: UnixStream, seed: u64) -> Result<()> {
    let (pattern, mut bytes, mut position) = (Pattern(seed), vec![0; 1 << 16], 0);
    loop {
        let count = match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            // The victim was killed with something unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            result => result.context("from the victim")?,
        };
        let came = bytes.get(..count).unwrap_or_default();
        check(pattern, position, came)?;
        position += count as u64;
        stream.write_all(came).context("to the victim")?;
    }
}
