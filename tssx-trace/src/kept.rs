//! JSON documents that a command printed or wrote, read again: what each is must be what it says it is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A larger file is none of ours.
const MAX_BYTES: u64 = 256 << 20;

/// A kind of document, and what to do where there is none.
pub(crate) struct Kind {
    /// For people.
    pub(crate) noun: &'static str,
    /// What the file says it is.
    pub(crate) format: &'static str,
    /// Version of the layout.
    pub(crate) version: u32,
    /// The remedy where there is no file.
    pub(crate) missing: &'static str,
    /// The remedy where the file is another.
    pub(crate) unreadable: &'static str,
}

impl Kind {
    /// Reads a document of this kind.
    ///
    /// # Errors
    /// One that names the file and what to do: none there, not such a document, or of another version.
    pub(crate) fn load<T: DeserializeOwned>(&self, path: &Path) -> anyhow::Result<T> {
        let (shown, noun) = (path.display(), self.noun);
        let file = File::open(path).with_context(|| format!("no {noun} at {shown}: {}", self.missing))?;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).with_context(|| format!("cannot read the {noun} {shown}"))?;
        self.parse(&text).with_context(|| format!("{shown} is not a {noun} that this release reads: {}", self.unreadable))
    }

    /// The document that a text is.
    ///
    /// # Errors
    /// Where it is none of this kind and version.
    pub(crate) fn parse<T: DeserializeOwned>(&self, text: &str) -> anyhow::Result<T> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != self.format {
            bail!("its format is `{}`", head.format.escape_default());
        }
        if head.version != self.version {
            bail!("its version is {}, this release reads {}", head.version, self.version);
        }
        Ok(serde_json::from_str(text)?)
    }
}
