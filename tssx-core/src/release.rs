//! Which release a library file is of, told by an ELF note, so that it can be asked without being loaded.
//!
//! PROTOCOL.md ("The library's note") lists the bytes.

use crate::layout::SEGMENT_VERSION;
use crate::ledger::layout::LEDGER_VERSION;

/// Owner of the note, with the NUL that ends it.
pub const OWNER: [u8; 8] = *b"TSSX\0\0\0\0";
/// Bytes of [`OWNER`] without the padding.
const OWNER_SIZE: u32 = 5;
/// Type of the note.
pub const KIND: u32 = 1;
/// Room for the version's text.
const VERSION_ROOM: usize = 24;

/// The note as it lies in the library: ELF's header of a note, elf(5), its owner, and what it says.
#[repr(C)]
pub struct Note {
    owner_size: u32,
    size: u32,
    kind: u32,
    owner: [u8; 8],
    segment: u32,
    ledger: u32,
    version: [u8; VERSION_ROOM],
}

const SIZE: usize = 8 + VERSION_ROOM;
const _: () = assert!(size_of::<Note>() == 20 + SIZE);

impl Note {
    /// That of this release.
    #[must_use]
    pub const fn own() -> Self {
        let text = env!("CARGO_PKG_VERSION").as_bytes();
        assert!(text.len() <= VERSION_ROOM);
        let mut version = [0; VERSION_ROOM];
        let mut rest = text;
        while let Some((last, before)) = rest.split_last() {
            version[before.len()] = *last;
            rest = before;
        }
        Self {
            owner_size: OWNER_SIZE,
            size: SIZE as u32,
            kind: KIND,
            owner: OWNER,
            segment: SEGMENT_VERSION,
            ledger: LEDGER_VERSION,
            version,
        }
    }
}

/// What a note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release<'a> {
    /// Version of the library, as Cargo counts.
    pub version: &'a str,
    /// [`SEGMENT_VERSION`] of the library.
    pub segment: u32,
    /// [`LEDGER_VERSION`] of the library.
    pub ledger: u32,
}

impl<'a> Release<'a> {
    /// That of whoever asks.
    pub const OWN: Release<'static> =
        Release { version: env!("CARGO_PKG_VERSION"), segment: SEGMENT_VERSION, ledger: LEDGER_VERSION };

    /// Reads what the note of this owner and kind says; `None` where it is not as [`Note`] has it.
    #[must_use]
    pub fn parse(said: &'a [u8]) -> Option<Self> {
        let (segment, rest) = said.split_first_chunk()?;
        let (ledger, rest) = rest.split_first_chunk()?;
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        let version = core::str::from_utf8(rest.get(..end)?).ok().filter(|version| !version.is_empty())?;
        Some(Self { version, segment: u32::from_ne_bytes(*segment), ledger: u32::from_ne_bytes(*ledger) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_note_says_the_own_release() {
        let note = Note::own();
        let mut said = Vec::from(note.segment.to_ne_bytes());
        said.extend(note.ledger.to_ne_bytes());
        said.extend(note.version);
        assert_eq!(Release::parse(&said), Some(Release::OWN));
        assert_eq!(note.size as usize, said.len());
        #[cfg(not(loom))]
        crate::mutations::each(&said, 20_000, |bytes| {
            let version = Release::parse(bytes).map(|release| release.version);
            assert!(version.is_none_or(|version| !version.is_empty() && version.len() + 8 <= bytes.len()));
        });
        assert_eq!(Release::parse(&said[..8]), None, "a version without text");
        assert_eq!(Release::parse(&said[..7]), None);
    }
}
