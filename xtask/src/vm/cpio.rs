//! The archive that the kernel unpacks as its first file system: cpio in the "newc" format, as the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst gives it.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use anyhow::{Context, Result};

/// Kinds of file, in the upper bits of a mode: inode(7).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Names and contents begin at multiples of so many bytes.
const ALIGNMENT: usize = 4;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds an empty directory, and those that it is in.
    ///
    /// # Errors
    /// The path is no text.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        let mut place = String::new();
        for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
            if !place.is_empty() {
                place.push('/');
            }
            place.push_str(part.as_os_str().to_str().with_context(|| format!("{} is no text", path.display()))?);
            if self.directories.insert(place.clone()) {
                self.entry(&place, DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file that everybody may read and run, and the directories that it is in.
    ///
    /// # Errors
    /// The path is no text, or the file is too large for the format.
    pub(super) fn file(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        self.named(path, REGULAR | 0o755, (0, 0), contents)
    }

    /// Adds a character device that is root's.
    ///
    /// # Errors
    /// The path is no text.
    pub(super) fn device(&mut self, path: &Path, major: u32, minor: u32) -> Result<()> {
        self.named(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// The finished archive.
    ///
    /// # Errors
    /// As for an entry.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn named(&mut self, path: &Path, mode: u32, device: (u32, u32), contents: &[u8]) -> Result<()> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        let name = path.strip_prefix("/").unwrap_or(path).to_str().with_context(|| format!("{} is no text", path.display()))?;
        self.entry(name, mode, device, contents)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len()).with_context(|| format!("{name} is too large for a cpio archive"))?;
        let name_size = u32::try_from(name.len() + 1).context("a name of ordinary length")?;
        // Each entry has a number of its own: with equal ones the kernel would make hard links.
        self.entries += 1;
        let (user, group, links, time, check) = (0, 0, 1, 0, 0);
        let fields = [self.entries, mode, user, group, links, time, size, 0, 0, device.0, device.1, name_size, check];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_format_says() -> Result<()> {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b"), b"12345")?;
        archive.device(Path::new("/a/c"), 5, 1)?;
        let bytes = archive.finish()?;
        assert!(bytes.len().is_multiple_of(ALIGNMENT));
        let text = String::from_utf8(bytes)?;
        let zeros = "00000000".repeat(2);
        let directory = format!("07070100000001000041ED{zeros}0000000100000000{zeros}00000000{zeros}0000000200000000a\0");
        // The header is 110 bytes long: with the name of two it ends at a multiple of four.
        assert_eq!(text.get(..112), Some(directory.as_str()));
        let file =
            format!("07070100000002000081ED{zeros}000000010000000000000005{zeros}{zeros}0000000400000000a/b\0\0\012345\0\0\0");
        assert_eq!(text.get(112..112 + file.len()), Some(file.as_str()));
        let device = format!("07070100000003000021 80{zeros}00000001000000000000000{zeros}").replace(' ', "");
        assert!(text.contains(&device) && text.contains("0000000500000001"), "{text}");
        assert!(text.contains("TRAILER!!!\0"));
        Ok(())
    }
}
