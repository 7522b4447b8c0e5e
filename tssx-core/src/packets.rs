//! How the kernel takes what one call sends, so that a ring takes it the same way.
//!
//! net/unix/af_unix.c, `unix_stream_sendmsg`, cuts a call into packets of at most half the send buffer and at most 32 KiB and a page,
//! from its first byte on. A packet is admitted while less than the send buffer is unread, and then whole (net/core/sock.c,
//! `sock_alloc_send_pskb`): a small write is never cut, and what is full is full for any size. The ring's limit is the send buffer,
//! less where the ring is so small that a packet would not fit above it.

use core::sync::atomic::Ordering::Relaxed;

use crate::ledger::layout::Slot;

/// Least bytes a ring lets wait unread, whatever SO_SNDBUF says.
const LIMIT_MIN: u64 = 4096;
/// Most bytes of a packet.
const PACKET_MAX: u32 = 36_544;

/// Bytes of a full packet where SO_SNDBUF is `buffer` bytes.
const fn packet(buffer: u32) -> u32 {
    let half = (buffer / 2).saturating_sub(64);
    match half {
        0 => 1,
        1..PACKET_MAX => half,
        _ => PACKET_MAX,
    }
}

/// Bytes that may lie unread in a ring of `capacity` bytes before it is full.
#[must_use]
pub(crate) fn limit(buffer: u32, capacity: u64) -> u64 {
    let most = capacity.saturating_sub(u64::from(packet(buffer)));
    u64::from(buffer).max(LIMIT_MIN).min(most)
}

/// One call of so many bytes.
#[derive(Clone, Copy, Debug)]
pub struct Packets {
    total: usize,
    packet: usize,
}

impl Packets {
    /// A call that sends `total` bytes.
    #[must_use]
    pub fn new(slot: &Slot, total: usize) -> Self {
        Self { total, packet: packet(slot.sndbuf.load(Relaxed)) as usize }
    }

    /// How many bytes behind the first `sent` are admitted at once where `room` bytes are left below the limit: the packets that
    /// begin there. Of them no more than `most`, unless the first alone is more.
    #[must_use]
    pub fn admitted(&self, sent: usize, room: usize, most: usize) -> usize {
        let rest = self.total.saturating_sub(sent);
        if room == 0 {
            return 0;
        }
        if rest <= room.min(most) {
            return rest;
        }
        let first = self.packet - sent % self.packet;
        let all = first + room.saturating_sub(first).div_ceil(self.packet) * self.packet;
        let whole = first.max(self.whole(sent, all.min(most)));
        whole.min(rest)
    }

    /// Bytes of whole packets among the `count` that follow the first `sent`: a fault takes back the packet that it is in.
    #[must_use]
    pub fn whole(&self, sent: usize, count: usize) -> usize {
        ((sent + count) / self.packet * self.packet).saturating_sub(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::{Packets, limit, packet};

    const MUCH: usize = usize::MAX;

    #[test]
    fn a_small_call_is_taken_whole_or_not_at_all() {
        let packets = Packets { total: 100, packet: 1000 };
        assert_eq!([0, 1, 99, 100, 5000].map(|room| packets.admitted(0, room, MUCH)), [0, 100, 100, 100, 100]);
    }

    #[test]
    fn a_large_call_is_taken_in_the_packets_that_begin_below_the_limit() {
        let packets = Packets { total: 2500, packet: 1000 };
        assert_eq!([1, 1000, 1001, 2000, 2001].map(|room| packets.admitted(0, room, MUCH)), [1000, 1000, 2000, 2000, 2500]);
        assert_eq!([1, 1500].map(|room| packets.admitted(1000, room, MUCH)), [1000, 1500]);
        assert_eq!(packets.admitted(2000, 1, MUCH), 500);
        // A signal handler's part may end anywhere.
        assert_eq!(packets.admitted(300, 1, MUCH), 700);
    }

    #[test]
    fn no_more_is_copied_at_once_than_is_allowed() {
        let packets = Packets { total: 9000, packet: 1000 };
        assert_eq!([500, 1000, 3900, 9000].map(|most| packets.admitted(0, 5000, most)), [1000, 1000, 3000, 5000]);
    }

    #[test]
    fn a_packet_fits_above_the_limit() {
        for buffer in [0, 1, 4608, 65_536, 212_992, u32::MAX] {
            for capacity in [65_536, 1 << 20, 4 << 20] {
                let limit = limit(buffer, capacity);
                assert!(limit > 0 && limit + u64::from(packet(buffer)) <= capacity, "{buffer} of {capacity}");
            }
        }
        assert_eq!((limit(212_992, 1 << 20), limit(1, 1 << 20), limit(1 << 20, 1 << 16)), (212_992, 4096, 28_992));
    }
}
