//! Which sockets: `USE_TSSX` and its companions, parsed once.
//!
//! `USE_TSSX` is a list of socket names separated by blanks. `\` makes the next character an ordinary one (a blank, a star,
//! another backslash); `@name` is an abstract socket, `*`, `?` and `[a-z]` match as in a shell, `*` alone matches every
//! name. A plain path also matches by device and inode, so that `/var/run/x` and `/run/x`, or a name that was moved,
//! are the same socket.

use core::cell::UnsafeCell;
use core::ffi::CStr;

use tssx_core::glob::matches;
use tssx_core::ledger::layout::NAME_MAX;
use tssx_core::sys;

/// Patterns one process can have.
const PATTERNS_MAX: usize = 256;
/// Bytes of `USE_TSSX` that are looked at.
const TEXT_MAX: usize = 16 * 1024;

/// One name or pattern, as a range of the text with its escapes still in.
#[derive(Clone, Copy)]
struct Pattern {
    start: usize,
    end: usize,
    /// No unescaped `*`, `?` or `[`: can also be compared by inode.
    literal: bool,
}

/// The parsed selection. The text is copied, because programs overwrite their environment (nginx does).
pub(crate) struct Policy {
    text: [u8; TEXT_MAX],
    patterns: [Pattern; PATTERNS_MAX],
    count: usize,
}

/// Why `USE_TSSX` cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParseError {
    TooLong,
    TooMany,
    EndsInBackslash,
    NameTooLong,
}

impl ParseError {
    pub(crate) fn message(self) -> &'static [u8] {
        match self {
            Self::TooLong => b"tssx: USE_TSSX is longer than 16384 bytes; the library stays out of the way\n",
            Self::TooMany => b"tssx: USE_TSSX has more than 256 names; the library stays out of the way\n",
            Self::EndsInBackslash => b"tssx: USE_TSSX ends in a lone backslash; the library stays out of the way\n",
            Self::NameTooLong => b"tssx: USE_TSSX has a name longer than 108 bytes; the library stays out of the way\n",
        }
    }
}

impl Policy {
    pub(crate) const fn empty() -> Self {
        Self { text: [0; TEXT_MAX], patterns: [Pattern { start: 0, end: 0, literal: true }; PATTERNS_MAX], count: 0 }
    }

    /// Reads a selection.
    pub(crate) fn parse(&mut self, text: &[u8]) -> Result<(), ParseError> {
        self.count = 0;
        let room = self.text.get_mut(..text.len()).ok_or(ParseError::TooLong)?;
        room.copy_from_slice(text);
        let mut at = 0;
        while let Some(start) = text.get(at..).and_then(|rest| rest.iter().position(|byte| !is_blank(*byte))).map(|skip| at + skip)
        {
            let (end, literal, bytes) = pattern_end(text, start)?;
            if literal && bytes > NAME_MAX {
                return Err(ParseError::NameTooLong);
            }
            *self.patterns.get_mut(self.count).ok_or(ParseError::TooMany)? = Pattern { start, end, literal };
            self.count += 1;
            at = end;
        }
        Ok(())
    }

    /// Whether nothing is selected.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the socket name (as in `sun_path`, with a leading NUL if it is abstract) is selected.
    pub(crate) fn selects(&self, name: &[u8]) -> bool {
        if name.is_empty() {
            return false;
        }
        let patterns = || self.patterns.iter().take(self.count);
        let text = |pattern: &Pattern| self.text.get(pattern.start..pattern.end).unwrap_or(&[]);
        // Only if no name matches: the file itself, which costs a system call for each literal path.
        patterns().any(|pattern| matches(text(pattern), name)) || (name.first() != Some(&0) && self.selects_file(|| identity(name)))
    }

    /// Whether a literal path of the selection is the file that `file` names by device and inode.
    pub(crate) fn selects_file(&self, file: impl FnOnce() -> Option<(u64, u64)>) -> bool {
        let literals = || self.patterns.iter().take(self.count).filter(|pattern| pattern.literal);
        let text = |pattern: &Pattern| self.text.get(pattern.start..pattern.end).unwrap_or(&[]);
        literals().next().is_some()
            && file().is_some_and(|file| literals().any(|pattern| literal_identity(text(pattern)) == Some(file)))
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n')
}

/// End of the pattern that starts at `start`, whether it is literal, and its length without escapes.
fn pattern_end(text: &[u8], start: usize) -> Result<(usize, bool, usize), ParseError> {
    let (mut at, mut literal, mut bytes) = (start, true, 0);
    while let Some(byte) = text.get(at).copied().filter(|byte| !is_blank(*byte)) {
        if byte == b'\\' {
            at += 1;
            text.get(at).ok_or(ParseError::EndsInBackslash)?;
        } else if matches!(byte, b'*' | b'?' | b'[') {
            literal = false;
        }
        bytes += 1;
        at += 1;
    }
    Ok((at, literal, bytes))
}

/// Device and inode of the file with this name.
fn identity(name: &[u8]) -> Option<(u64, u64)> {
    let mut path = [0_u8; NAME_MAX + 1];
    path.get_mut(..name.len())?.copy_from_slice(name);
    let file = sys::stat(CStr::from_bytes_until_nul(&path).ok()?).ok()?;
    Some((file.device, file.inode))
}

/// The same for a literal pattern, whose escapes are taken out first.
fn literal_identity(pattern: &[u8]) -> Option<(u64, u64)> {
    if pattern.first() == Some(&b'@') {
        return None;
    }
    let mut name = [0_u8; NAME_MAX];
    let (mut at, mut length) = (0, 0);
    while let Some(byte) = pattern.get(at) {
        let byte = if *byte == b'\\' {
            at += 1;
            pattern.get(at)?
        } else {
            byte
        };
        *name.get_mut(length)? = *byte;
        length += 1;
        at += 1;
    }
    identity(name.get(..length)?)
}

/// The process's policy: written once during initialisation, read-only afterwards.
pub(crate) struct PolicyCell(UnsafeCell<Policy>);

#[allow(unsafe_code, reason = "a static that is written once, before it is published")]
mod cell {
    use super::{Policy, PolicyCell, UnsafeCell};

    // SAFETY: `init` writes it before it stores the state that lets anybody read it (Release/Acquire).
    unsafe impl Sync for PolicyCell {}

    impl PolicyCell {
        pub(crate) const fn new() -> Self {
            Self(UnsafeCell::new(Policy::empty()))
        }

        /// For reading, once initialised.
        pub(crate) fn get(&self) -> &Policy {
            // SAFETY: no writer exists any more when readers are let in.
            unsafe { &*self.0.get() }
        }

        /// For the one initialiser.
        ///
        /// # Safety
        /// Nobody else may use the cell at the same time.
        #[allow(clippy::mut_from_ref, reason = "that is what the cell is for")]
        pub(crate) unsafe fn get_mut(&self) -> &mut Policy {
            // SAFETY: the caller's promise.
            unsafe { &mut *self.0.get() }
        }
    }
}
