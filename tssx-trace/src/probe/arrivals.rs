//! The ring buffer in which the kernel programs tell of each process at its first counted call.

#![allow(unsafe_code, reason = "tokio's AsyncFd promises that a descriptor stays open")]

use anyhow::{Context, anyhow};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tssx_ebpf::{ARRIVALS_MAP, Arrival};

/// A process that begins to use Unix sockets: to be looked at before it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Newcomer {
    pub(crate) pid: u32,
    /// Name of the thread that called, printable.
    pub(crate) comm: String,
}

/// The processes that were not read yet.
pub(crate) struct Arrivals {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Arrivals {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let map = ebpf.take_map(ARRIVALS_MAP).ok_or_else(|| anyhow!("the object has no map {ARRIVALS_MAP}"))?;
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the ring buffer owns its map and with it the descriptor: it is open, always the same, and closed only when
        // the ring buffer is dropped, which `AsyncFd` does after it has let go of the descriptor.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self { ring: ring.map_err(std::io::Error::from).context("cannot wait for the kernel's ring buffer")? })
    }

    /// Waits for the next ones. Nothing is lost if the wait is given up.
    ///
    /// # Errors
    /// Where the event loop fails.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<Newcomer>> {
        let mut ready = self.ring.readable_mut().await?;
        let found = drain(ready.get_inner_mut());
        ready.clear_ready();
        Ok(found)
    }

    /// Those that are there now.
    pub(crate) fn rest(&mut self) -> Vec<Newcomer> {
        drain(self.ring.get_mut())
    }
}

fn drain(ring: &mut RingBuf<MapData>) -> Vec<Newcomer> {
    let mut found = Vec::new();
    while let Some(record) = ring.next() {
        found.extend(decode(&record));
    }
    found
}

/// A record as the kernel wrote it; `None` for bytes that are none.
fn decode(bytes: &[u8]) -> Option<Newcomer> {
    let bytes: &[u8; size_of::<Arrival>()] = bytes.try_into().ok()?;
    let (tgid, comm) = bytes.split_first_chunk()?;
    let comm = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(Newcomer { pid: u32::from_ne_bytes(*tgid), comm: crate::names::escape(comm) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutations;

    #[test]
    fn a_record_is_read_as_it_was_written_and_no_bytes_make_it_panic() {
        let mut bytes = 7_u32.to_ne_bytes().to_vec();
        bytes.extend(b"redis-\xff\0\0\0\0\0\0\0\0\0");
        assert_eq!(decode(&bytes), Some(Newcomer { pid: 7, comm: String::from("redis-\\xff") }));
        mutations::each(&bytes, 2000, |bytes| assert_eq!(decode(bytes).is_some(), bytes.len() == size_of::<Arrival>()));
    }
}
