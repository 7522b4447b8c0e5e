//! What a connection is for: its first bytes say so, and both ends do it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};

/// Bytes of a hello.
pub(super) const LENGTH: usize = 6 * 8;

/// What is done on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whatever comes goes back.
    Echo,
    /// Both ends send at once, by a plan of `cargo xtask exchange`, with what a ring cannot do on the way.
    Exchange,
    /// The server sends, and the client reads slowly.
    Pour,
    /// The client sends, and the server reads slowly.
    Drain,
}

const KINDS: [Kind; 4] = [Kind::Echo, Kind::Exchange, Kind::Pour, Kind::Drain];

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hello {
    pub kind: Kind,
    /// What the bytes look like.
    pub seed: u64,
    /// About how many; 0 where only the end tells.
    pub bytes: u64,
    /// Whether one of the ends may be killed.
    pub mortal: bool,
    /// After how many reads a server that forks leaves the connection to a child.
    pub inherited_after: u64,
    /// After how many microseconds that child is killed; 0 for never.
    pub doom_us: u64,
}

impl Hello {
    /// An echo with whatever bytes.
    pub(super) fn echo(seed: u64) -> Self {
        Self { kind: Kind::Echo, seed, bytes: 0, mortal: false, inherited_after: 0, doom_us: 0 }
    }

    pub(super) fn say(&self, mut stream: &UnixStream) -> std::io::Result<()> {
        let words = [self.kind as u64, self.seed, self.bytes, u64::from(self.mortal), self.inherited_after, self.doom_us];
        stream.write_all(&words.map(u64::to_le_bytes).concat())
    }

    /// What was said; none if the client was gone before it had said it.
    pub(super) fn hear(mut stream: &UnixStream) -> Result<Option<Self>> {
        let mut bytes = [0; LENGTH];
        match stream.read_exact(&mut bytes) {
            Ok(()) => Self::of(&bytes).map(Some),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => Ok(None),
            Err(error) => Err(error).context("instead of a hello"),
        }
    }

    /// # Errors
    /// The bytes are not those of a hello: a wrong byte.
    pub(super) fn of(bytes: &[u8; LENGTH]) -> Result<Self> {
        let (words, _) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let [kind, seed, bytes, mortal @ (0 | 1), inherited_after, doom_us] = words[..] else {
            anyhow::bail!("WRONG BYTE: the hello is {words:?}");
        };
        let kind = *KINDS.get(kind as usize).with_context(|| format!("WRONG BYTE: the hello is {words:?}"))?;
        Ok(Self { kind, seed, bytes, mortal: mortal == 1, inherited_after, doom_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let (here, there) = UnixStream::pair().expect("pair");
        let said = Hello { mortal: true, inherited_after: 7, doom_us: 9, kind: Kind::Drain, bytes: 3, ..Hello::echo(5) };
        said.say(&here).expect("room");
        let heard = Hello::hear(&there).expect("a hello").expect("not gone");
        assert_eq!(format!("{heard:?}"), format!("{said:?}"));
        drop(here);
        assert!(Hello::hear(&there).expect("the end").is_none());
        assert!(Hello::of(&[9; LENGTH]).is_err());
    }
}
