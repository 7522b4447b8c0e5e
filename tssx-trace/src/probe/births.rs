//! The ring buffer in which the kernel programs tell of each socket at its first counted call.

use anyhow::anyhow;
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use tssx_ebpf::birth::{BIRTHS_MAP, Birth, NAME_BYTES, UNTOLD_MAP};

/// The records that were not read yet.
pub(crate) struct Births {
    ring: RingBuf<MapData>,
    untold: PerCpuArray<MapData, u64>,
}

impl Births {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut map = |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map {name}"));
        Ok(Self { ring: RingBuf::try_from(map(BIRTHS_MAP)?)?, untold: PerCpuArray::try_from(map(UNTOLD_MAP)?)? })
    }

    /// Hands over every record that is there now.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(&Birth)) {
        while let Some(record) = self.ring.next() {
            if let Some(birth) = decode(&record) {
                take(&birth);
            }
        }
    }

    /// Sockets that found no room in the ring.
    ///
    /// # Errors
    /// Where the kernel's map cannot be read.
    pub(crate) fn untold(&self) -> anyhow::Result<u64> {
        Ok(self.untold.get(&0, 0)?.iter().sum())
    }
}

/// A record as the kernel wrote it; `None` for bytes that are none.
fn decode(bytes: &[u8]) -> Option<Birth> {
    let (cookie, rest) = bytes.split_first_chunk()?;
    let (peer, rest) = rest.split_first_chunk()?;
    let (inode, rest) = rest.split_first_chunk()?;
    let (device, rest) = rest.split_first_chunk()?;
    let (network, rest) = rest.split_first_chunk()?;
    let (kind, rest) = rest.split_first_chunk()?;
    let ([whose, length], rest) = rest.split_first_chunk()?;
    let (reserved, rest) = rest.split_first_chunk()?;
    let name: &[u8; NAME_BYTES] = rest.first_chunk()?;
    Some(Birth {
        cookie: u64::from_ne_bytes(*cookie),
        peer: u64::from_ne_bytes(*peer),
        inode: u64::from_ne_bytes(*inode),
        device: u32::from_ne_bytes(*device),
        network: u32::from_ne_bytes(*network),
        kind: u16::from_ne_bytes(*kind),
        whose: *whose,
        length: *length,
        reserved: u32::from_ne_bytes(*reserved),
        name: *name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutations;

    #[test]
    fn a_record_is_read_as_it_was_written_and_no_bytes_make_it_panic() {
        let bytes: Vec<u8> = (0..152).collect();
        let birth = decode(&bytes).expect("a record");
        assert_eq!((birth.cookie.to_ne_bytes(), birth.kind.to_ne_bytes()), ([0, 1, 2, 3, 4, 5, 6, 7], [32, 33]));
        assert_eq!((birth.whose, birth.length, birth.name.first(), birth.name.last()), (34, 35, Some(&40), Some(&151)));
        mutations::each(&bytes, 5000, |bytes| assert_eq!(decode(bytes).is_some(), bytes.len() >= size_of::<Birth>()));
    }
}
