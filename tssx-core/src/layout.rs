//! The segment's bytes: what the two ends of one connection share.
//!
//! PROTOCOL.md lists every offset; the assertions below keep both in step. Every field is an atomic: its memory may
//! change at any moment, and may hold anything, because the peer is not trusted. Structures are aligned to
//! [`LINE`] so that what one side writes often never shares a cache line (or the pair that the prefetcher fetches)
//! with what the other side writes.
//!
//! ```text
//! 0      SegmentHeader
//! 128    SideBlock of the connector        256  SideBlock of the acceptor
//! 512    Direction connector → acceptor   1024  Direction acceptor → connector
//! 4096   bytes of ring 0 (capacity)       4096 + capacity   bytes of ring 1
//! ```

use crate::sync::{AtomicU32, AtomicU64};

/// First eight bytes of a segment: "TSSXSEG1" in memory order.
pub const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"TSSXSEG1");
/// Protocol version; both ends must be equal.
pub const SEGMENT_VERSION: u32 = 3;
/// Two cache lines: the unit that x86's adjacent-line prefetcher moves.
pub const LINE: usize = 128;
/// Offset of the [`SideBlock`] of side 0; side 1 follows after [`LINE`] bytes.
pub const SIDES_OFFSET: usize = 128;
/// Offset of the [`Direction`] connector → acceptor; the other follows after [`DIRECTION_SIZE`] bytes.
pub const DIRECTIONS_OFFSET: usize = 512;
/// Bytes of one [`Direction`].
pub const DIRECTION_SIZE: usize = 512;
/// Offset of the first ring's bytes; the second's follow after `capacity` bytes.
pub const DATA_OFFSET: usize = 4096;
/// Smallest ring, bytes.
pub const CAPACITY_MIN: u64 = 64 * 1024;
/// Largest ring, bytes: the bound that a receiver of an offer enforces.
pub const CAPACITY_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of a segment whose rings hold `capacity` bytes each.
#[must_use]
pub const fn segment_size(capacity: u64) -> u64 {
    DATA_OFFSET as u64 + 2 * capacity
}

/// Offset 0. Written by the connector before the segment is offered, never changed afterwards.
#[repr(C, align(128))]
pub struct SegmentHeader {
    /// [`SEGMENT_MAGIC`].
    pub magic: AtomicU64,
    /// [`SEGMENT_VERSION`].
    pub version: AtomicU32,
    /// Reserved; zero.
    pub flags: AtomicU32,
    /// Bytes of each ring: a power of two from [`CAPACITY_MIN`] to [`CAPACITY_MAX`].
    pub capacity: AtomicU64,
    /// Inode of the connector's socket.
    pub connector_inode: AtomicU64,
    /// Inode of the acceptor's socket.
    pub acceptor_inode: AtomicU64,
}

/// What one end says of itself; written by that end only.
#[repr(C, align(128))]
#[cfg_attr(loom, derive(Default))]
pub struct SideBlock {
    /// 1 once the end has mapped the segment and published its byte counts.
    pub joined: AtomicU32,
    /// Process that joined, in its own pid namespace; for people, never believed.
    pub pid: AtomicU32,
    /// Processes that hold this end, as counted by the library; for people, never believed.
    pub holders: AtomicU32,
    /// 1 once the end has given the upgrade up: the other need not wait for consent.
    pub refused: AtomicU32,
}

/// `Direction::state`: the producer still sends through the kernel socket.
pub const STATE_KERNEL: u32 = 0;
/// `Direction::state`: bytes after `switch_at` are in the ring.
pub const STATE_RING: u32 = 1;
/// `Direction::state`: the ring ends at `end_at`; later bytes follow in the kernel socket at `resume_at`.
pub const STATE_ENDED: u32 = 2;

/// `Direction::consent`: the consumer has not compared the counts, or not successfully.
pub const CONSENT_NONE: u32 = 0;
/// `Direction::consent`: the counts agree; the producer may move into the ring.
pub const CONSENT_GIVEN: u32 = 1;
/// `Direction::consent`: the consumer reads no more from the ring; the producer takes back what is unread and sends it, and all
/// that follows, through the kernel socket.
pub const CONSENT_REVOKED: u32 = 3;
/// `Direction::consent`: the consumer reads the ring to its end, and asks the producer to end it at its next call.
pub const CONSENT_ENOUGH: u32 = 4;
/// `Direction::consent`: the consumer wants to compare and asks the producer to pause before its next send.
pub const CONSENT_WANTED: u32 = 2;

/// `Direction::asleep`: nobody waits in the kernel for this ring.
pub const AWAKE: u32 = 0;
/// `Direction::asleep`: somebody may wait in the kernel: in a receive that only looks, in poll or in epoll.
pub const ASLEEP: u32 = 1;
/// Bit of `Direction::asleep`: whoever sleeps is alone, and takes the doorbell that wakes it. The consumer's to set and to clear.
pub const ALONE: u32 = 1 << 26;
/// Bit of `Direction::asleep`: the producer ends the ring, or has. Set by it before anything but doorbells can be in the kernel's queue.
pub const ENDING: u32 = 1 << 27;
/// Bit of `Direction::asleep`: the consumer is about to shut its receiving side down; said before the kernel can show it.
pub const GONE_SOON: u32 = 1 << 28;
/// Bit of `Direction::asleep`: the consumer has closed the connection with bytes unread that the kernel carried before the switch.
pub const GONE_UNREAD: u32 = 1 << 29;
/// Bit of `Direction::asleep`: the consumer has shut its receiving side down; sends must fail as the kernel's do.
pub const GONE_SHUTDOWN: u32 = 1 << 30;
/// Bit of `Direction::asleep`: the consumer has closed the connection.
pub const GONE_CLOSED: u32 = 1 << 31;

/// One direction of the stream. Positions are free-running byte counts; `tail - head` never exceeds the capacity.
#[repr(C, align(128))]
#[cfg_attr(loom, derive(Default))]
pub struct Direction {
    /// Ring position after the last byte written. Writer: producer (Release); the consumer's Acquire load pairs with it.
    pub tail: AtomicU64,
    /// Ring position at which the last write began: a receive that meets bad memory gives up whole writes only, as the kernel does.
    pub last_write: AtomicU64,
    /// Ring position that lies at the ring's first byte. Writer: producer, while the ring is empty, before `tail`; so whoever sees bytes sees where
    /// they lie.
    pub base: AtomicU64,
    /// Keeps the consumer's frequent reads of `tail` apart from the rarely written fields.
    pub pad0: [AtomicU64; 5],
    /// One of the `STATE_` values; writer: producer. `switch_at`, `end_at`, `resume_at` are valid once it says so.
    pub state: AtomicU32,
    /// 1 while the producer waits for room and keeps the kernel socket unwritable; the consumer clears it when it drains.
    pub writer_waiting: AtomicU32,
    /// Kernel stream position at which the ring begins.
    pub switch_at: AtomicU64,
    /// Ring position at which the ring ends.
    pub end_at: AtomicU64,
    /// Kernel stream position, doorbells included, of the first byte that follows the ring's end.
    pub resume_at: AtomicU64,
    /// Odd while the producer has a kernel send in progress; else `tx_bytes` is exact.
    pub tx_sequence: AtomicU64,
    /// Bytes the producer sent through the kernel socket before the ring.
    pub tx_bytes: AtomicU64,
    /// Doorbell bytes the producer has sent; tells the consumer whether a stale one may wait.
    pub doorbells: AtomicU64,
    /// 1 once the producer sends no more: it shut down or closed. The kernel tells end of file; this says that it is worth asking.
    pub finished: AtomicU64,
    /// Ring position up to which the consumer has read. Writer: consumer (Release); the producer's Acquire load pairs with it.
    pub head: AtomicU64,
    /// Keeps `head` apart from what follows.
    pub pad2: [AtomicU64; 15],
    /// `AWAKE`, `ASLEEP` and `GONE_…`. Written by the consumer before it sleeps, swapped to awake by the producer that rings.
    pub asleep: AtomicU32,
    /// One of the `CONSENT_` values; writer: consumer. `CONSENT_REVOKED` and `CONSENT_ENOUGH` can follow only each other.
    pub consent: AtomicU32,
    /// CPU that the consumer was on when it last began to wait, plus one; 0 = it has not said. A hint, and written only when it changes.
    pub cpu: AtomicU32,
    /// Room.
    pub pad3: [AtomicU32; 13],
    /// Unread bytes at which the ring is full, from the producer's SO_SNDBUF; 0 = the capacity. Tells the consumer when to let it go on. It
    /// looks at each read, so this does not lie where anybody writes often.
    pub limit: AtomicU64,
    /// Room.
    pub pad4: [AtomicU64; 7],
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<SegmentHeader>() == LINE);
    assert!(offset_of!(SegmentHeader, version) == 8);
    assert!(offset_of!(SegmentHeader, flags) == 12);
    assert!(offset_of!(SegmentHeader, capacity) == 16);
    assert!(offset_of!(SegmentHeader, connector_inode) == 24);
    assert!(offset_of!(SegmentHeader, acceptor_inode) == 32);
    assert!(size_of::<SideBlock>() == LINE);
    assert!(offset_of!(SideBlock, pid) == 4);
    assert!(offset_of!(SideBlock, holders) == 8);
    assert!(offset_of!(SideBlock, refused) == 12);
    assert!(size_of::<Direction>() <= DIRECTION_SIZE);
    assert!(offset_of!(Direction, last_write) == 8);
    assert!(offset_of!(Direction, base) == 16);
    assert!(offset_of!(Direction, state) == 64);
    assert!(offset_of!(Direction, writer_waiting) == 68);
    assert!(offset_of!(Direction, switch_at) == 72);
    assert!(offset_of!(Direction, end_at) == 80);
    assert!(offset_of!(Direction, resume_at) == 88);
    assert!(offset_of!(Direction, tx_sequence) == 96);
    assert!(offset_of!(Direction, tx_bytes) == 104);
    assert!(offset_of!(Direction, doorbells) == 112);
    assert!(offset_of!(Direction, finished) == 120);
    assert!(offset_of!(Direction, head) == 128);
    assert!(offset_of!(Direction, asleep) == 256);
    assert!(offset_of!(Direction, consent) == 260);
    assert!(offset_of!(Direction, cpu) == 264);
    assert!(offset_of!(Direction, limit) == 320);
    assert!(SIDES_OFFSET + 2 * LINE <= DIRECTIONS_OFFSET);
    assert!(DIRECTIONS_OFFSET + 2 * DIRECTION_SIZE <= DATA_OFFSET);
};
