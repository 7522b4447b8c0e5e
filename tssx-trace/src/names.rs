//! Socket names: how the kernel gives them, how people read them, how `USE_TSSX` spells them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a Unix socket as `bind(2)` took it, see unix(7).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SocketName {
    /// A file system path, as given: perhaps relative, perhaps not UTF-8.
    Path(Vec<u8>),
    /// An abstract name without its leading NUL.
    Abstract(Vec<u8>),
}

/// Why a name cannot stand in an environment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpellError {
    /// systemd takes only UTF-8 in environment files.
    #[error("the name is not valid UTF-8, which systemd refuses in an EnvironmentFile")]
    NotUtf8,
    /// Of a file with one of these, systemd takes nothing at all.
    #[error("the name has a code point that Unicode says is no character, which systemd refuses in an EnvironmentFile")]
    NoCharacter,
    /// Neither parser takes control characters.
    #[error("the name has a control character, which cannot stand in an environment file")]
    Control,
    /// The library matches files, and a relative path names one only together with a working directory.
    #[error("the path is relative and the server's working directory is not known")]
    Relative,
    /// Nothing to match.
    #[error("the name is empty")]
    Empty,
}

impl SocketName {
    /// A name as the ledger stores it: a NUL first marks an abstract one. `None` for an empty name.
    pub(crate) fn from_sun_path(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            None => None,
            Some((0, rest)) => Some(Self::Abstract(rest.to_vec())),
            Some(_) => Some(Self::Path(bytes.to_vec())),
        }
    }

    /// The bytes without the mark of an abstract name.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Path(bytes) | Self::Abstract(bytes) => bytes,
        }
    }

    /// One word of `USE_TSSX` that matches this name and no other.
    ///
    /// # Errors
    /// [`SpellError`] where no word could stand in a file that both a shell and systemd read.
    pub(crate) fn to_pattern(&self) -> Result<String, SpellError> {
        let text = std::str::from_utf8(self.bytes()).map_err(|_| SpellError::NotUtf8)?;
        if text.is_empty() {
            return Err(SpellError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(SpellError::Control);
        }
        if text.chars().any(is_noncharacter) {
            return Err(SpellError::NoCharacter);
        }
        let mut word = match self {
            Self::Path(path) if path.first() != Some(&b'/') => return Err(SpellError::Relative),
            Self::Path(_) => String::new(),
            Self::Abstract(_) => String::from("@"),
        };
        for character in text.chars() {
            // Blanks end a word; the others are the glob's own characters and the escape itself.
            if matches!(character, ' ' | '*' | '?' | '[' | ']' | '\\') {
                word.push('\\');
            }
            word.push(character);
        }
        Ok(word)
    }
}

impl fmt::Display for SocketName {
    /// Printable on any terminal and reversible: `\xNN` for bytes that are not printable, `\\` for a backslash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Abstract(_) = self {
            f.write_str("@")?;
        } else if self.bytes().first() == Some(&b'@') {
            f.write_str("./")?; // a relative path that would read as an abstract name
        }
        f.write_str(&escape(self.bytes()))
    }
}

/// Whether Unicode says that this code point never is a character (chapter 23.7); it can stand in UTF-8.
pub(crate) fn is_noncharacter(code: char) -> bool {
    matches!(code, '\u{fdd0}'..='\u{fdef}') || u32::from(code) & 0xfffe == 0xfffe
}

/// Bytes as text: printable characters as they are, `\\` for a backslash, `\xNN` for any other byte.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                plain if plain.is_control() => {
                    let mut buffer = [0; 4];
                    for byte in plain.encode_utf8(&mut buffer).bytes() {
                        text.push_str(&format!("\\x{byte:02x}"));
                    }
                }
                plain => text.push(plain),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// The bytes behind [`escape`]'s text.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let bad = || format!("`{text}` is not an escaped socket name");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        if let Some(after) = after.strip_prefix('\\') {
            bytes.push(b'\\');
            rest = after;
        } else {
            let after = after.strip_prefix('x').ok_or_else(bad)?;
            let (digits, after) = after.split_at_checked(2).ok_or_else(bad)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
            rest = after;
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

impl FromStr for SocketName {
    type Err = String;

    /// What a user types: `@name` is abstract, anything else a path; escapes as printed by a report are understood.
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = unescape(text).unwrap_or_else(|_| text.as_bytes().to_vec());
        match text.strip_prefix('@') {
            Some("") | None if text.is_empty() || text == "@" => Err(String::from("a socket name must not be empty")),
            Some(_) => Ok(Self::Abstract(bytes.get(1..).unwrap_or_default().to_vec())),
            None => Ok(Self::Path(bytes)),
        }
    }
}

/// The name's form in a recording.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NameRecord {
    /// `path` or `abstract`.
    kind: String,
    /// The name, escaped as in reports.
    name: String,
}

impl Serialize for SocketName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = match self {
            Self::Path(_) => "path",
            Self::Abstract(_) => "abstract",
        };
        NameRecord { kind: kind.into(), name: escape(self.bytes()) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SocketName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let record = NameRecord::deserialize(deserializer)?;
        let bytes = unescape(&record.name).map_err(serde::de::Error::custom)?;
        match record.kind.as_str() {
            "path" => Ok(Self::Path(bytes)),
            "abstract" => Ok(Self::Abstract(bytes)),
            other => Err(serde::de::Error::custom(format!("`{other}` is no kind of socket name"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_escaping_and_json() {
        let awkward: &[&[u8]] = &[b"/run/x", b"/a b/\\x41", b"/\xff\x00\x1b[31m", "/\u{fc}\u{85}".as_bytes(), b"\\"];
        for bytes in awkward {
            assert_eq!(unescape(&escape(bytes)).as_deref(), Ok(*bytes));
            for name in [SocketName::Path(bytes.to_vec()), SocketName::Abstract(bytes.to_vec())] {
                let json = serde_json::to_string(&name).expect("names serialise");
                assert_eq!(serde_json::from_str::<SocketName>(&json).expect("and back"), name);
                assert!(name.to_string().chars().all(|character| !character.is_control()));
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_what_is_read_reads_the_same_again() {
        crate::mutations::each(b"@a\\x00b\\\\\\xff/\xc3\xbc", 20_000, |bytes| {
            assert_eq!(unescape(&escape(bytes)).as_deref(), Ok(bytes));
            let text = String::from_utf8_lossy(bytes);
            if let Ok(name) = text.parse::<SocketName>() {
                assert_eq!(unescape(&escape(name.bytes())).as_deref(), Ok(name.bytes()));
                let _pattern = name.to_pattern();
            }
        });
    }

    #[test]
    fn patterns_escape_what_use_tssx_would_read_otherwise() {
        let pattern = |name: &[u8]| SocketName::Path(name.to_vec()).to_pattern();
        assert_eq!(pattern(b"/a b/*[x]?\\").as_deref(), Ok("/a\\ b/\\*\\[x\\]\\?\\\\"));
        assert_eq!(SocketName::Abstract(b"a b".to_vec()).to_pattern().as_deref(), Ok("@a\\ b"));
        assert_eq!(pattern(b"relative"), Err(SpellError::Relative));
        assert_eq!(pattern(b"/new\nline"), Err(SpellError::Control));
        assert_eq!(pattern(b"/\xff"), Err(SpellError::NotUtf8));
        assert_eq!(pattern(b""), Err(SpellError::Empty));
    }

    #[test]
    fn typed_names_are_paths_or_abstract() {
        assert_eq!("@x".parse(), Ok(SocketName::Abstract(b"x".to_vec())));
        assert_eq!("/run/x".parse(), Ok(SocketName::Path(b"/run/x".to_vec())));
        assert!("".parse::<SocketName>().is_err());
        assert!("@".parse::<SocketName>().is_err());
    }
}
