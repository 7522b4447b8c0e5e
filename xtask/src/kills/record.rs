//! What a victim has written, in a file: what a killed process wrote to a file is there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::PATIENCE;

const WORD: u64 = size_of::<u64>() as u64;

/// Two numbers: bytes that were about to be sent, and bytes that were accepted. Behind them, whether the victim has its connection.
pub(super) struct Record(File);

impl Record {
    /// A new one, of zeros.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let open = File::options().create(true).truncate(true).read(true).write(true).open(directory.join("record"));
        let record = Self(open.context("cannot make a record")?);
        record.attempts(0)?;
        record.accepted(0)?;
        record.0.write_all_at(&[0], 2 * WORD)?;
        Ok(record)
    }

    pub(super) fn open(directory: &Path) -> Result<Self> {
        Ok(Self(File::options().write(true).read(true).open(directory.join("record"))?))
    }

    pub(super) fn attempts(&self, bytes: u64) -> Result<()> {
        Ok(self.0.write_all_at(&bytes.to_le_bytes(), 0)?)
    }

    pub(super) fn accepted(&self, bytes: u64) -> Result<()> {
        Ok(self.0.write_all_at(&bytes.to_le_bytes(), WORD)?)
    }

    /// The victim has its connection. One that dies before `accept` resets it, with or without the library.
    pub(super) fn connected(&self) -> Result<()> {
        Ok(self.0.write_all_at(&[1], 2 * WORD)?)
    }

    /// Waits for that, as long as the patience lasts.
    pub(super) fn await_connection(&self) -> Result<()> {
        let start = Instant::now();
        let mut connected = [0];
        while connected == [0] {
            ensure!(start.elapsed() < PATIENCE, "the victim does not get its connection");
            self.0.read_exact_at(&mut connected, 2 * WORD)?;
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Attempted and accepted.
    pub(super) fn read(&self) -> Result<[u64; 2]> {
        let mut words = [[0; WORD as usize]; 2];
        for (offset, word) in [0, WORD].into_iter().zip(&mut words) {
            self.0.read_exact_at(word, offset)?;
        }
        Ok(words.map(u64::from_le_bytes))
    }
}
