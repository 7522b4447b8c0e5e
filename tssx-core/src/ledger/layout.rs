//! The ledger's bytes. PROTOCOL.md lists every offset; the assertions below keep both in step.
//!
//! Every field is an atomic, so that a reference to a structure never promises that its memory is unchanged.
//! Counters are monotonic for the life of a slot's generation. Unless a field says otherwise it is written by the
//! process (or the forked family) that owns the ledger, and read by anybody, possibly stale.

use crate::reason::REASON_COUNT;
use crate::sync::{AtomicU32, AtomicU64};

/// First eight bytes of a ledger: "TSSXLDG1" in memory order.
pub const LEDGER_MAGIC: u64 = u64::from_le_bytes(*b"TSSXLDG1");
/// Layout version; a reader refuses any other.
pub const LEDGER_VERSION: u32 = 2;

/// Bytes of the header, and offset of the path table.
pub const HEADER_SIZE: usize = 4096;
/// Entries of the path table.
pub const PATH_CAPACITY: usize = 1024;
/// Slots of the connection table.
pub const SLOT_CAPACITY: usize = 65_536;
/// Bytes of one path entry.
pub const PATH_SIZE: usize = 384;
/// Bytes of one connection slot.
pub const SLOT_SIZE: usize = 256;
/// Offset of the connection table.
pub const SLOTS_OFFSET: usize = HEADER_SIZE + PATH_CAPACITY * PATH_SIZE;
/// Bytes of the whole ledger. Memory is touched only as slots are used.
pub const LEDGER_SIZE: usize = SLOTS_OFFSET + SLOT_CAPACITY * SLOT_SIZE;
/// Longest socket name: `sizeof(sun_path)`, see unix(7).
pub const NAME_MAX: usize = 108;

/// Offset 0 of the ledger.
#[repr(C)]
pub struct LedgerHeader {
    /// [`LEDGER_MAGIC`], written last when the ledger is made.
    pub magic: AtomicU64,
    /// [`LEDGER_VERSION`].
    pub version: AtomicU32,
    /// Process that made the ledger, as `getpid(2)` in its own pid namespace.
    pub creator_pid: AtomicU32,
    /// Path entries in use: entries below this index are valid once their `state` says so.
    pub paths_used: AtomicU32,
    /// High-water mark of slots: no slot at or above this index was ever used.
    pub slots_used: AtomicU32,
    /// Slots that hold an open connection now.
    pub slots_live: AtomicU32,
    /// Where the next claim starts to look, so that closed slots linger for readers.
    pub claim_cursor: AtomicU32,
    /// Selected connections that found no free slot, and so are plain and uncounted.
    pub exhausted: AtomicU64,
    /// Forked relatives that live in another pid namespace than their parent, so far: each is known by its number among them.
    pub strangers: AtomicU64,
}

/// `PathEntry::state`: the entry is free.
pub const PATH_FREE: u32 = 0;
/// `PathEntry::state`: a writer is filling in the name.
pub const PATH_WRITING: u32 = 1;
/// `PathEntry::state`: the name is valid and will not change.
pub const PATH_READY: u32 = 2;

/// One selected socket name and the sums over all its connections, open and closed.
#[repr(C)]
pub struct PathEntry {
    /// [`PATH_FREE`], [`PATH_WRITING`] or [`PATH_READY`].
    pub state: AtomicU32,
    /// Bytes of `name` in use; at most [`NAME_MAX`].
    pub name_len: AtomicU32,
    /// The name as `bind(2)` took it: a file system path without its terminating NUL, or a NUL and an abstract name.
    pub name: [AtomicU64; 14],
    /// Connections whose name matched USE_TSSX, since the ledger was made.
    pub selected: AtomicU64,
    /// Connections of which at least one direction moved into a ring.
    pub accelerated: AtomicU64,
    /// Connections by the reason they stayed on (or went back to) the kernel socket; index is the reason's code.
    pub reasons: [AtomicU64; REASON_COUNT],
    /// Room for reasons to come; zero.
    pub reserved: [AtomicU64; 11],
}

/// `Slot::state`: never used, or claimed by nobody.
pub const SLOT_FREE: u32 = 0;
/// `Slot::state`: claimed, being filled in.
pub const SLOT_CLAIMED: u32 = 1;
/// `Slot::state`: selected, both directions on the kernel socket.
pub const SLOT_SELECTED: u32 = 2;
/// `Slot::state`: at least one direction is carried by a ring.
pub const SLOT_UPGRADED: u32 = 3;
/// `Slot::state`: back (or left for good) on the kernel socket, see `reason`.
pub const SLOT_PLAIN: u32 = 4;
/// `Slot::state`: closed; the counters are final and stay readable until the slot is claimed again.
pub const SLOT_CLOSED: u32 = 5;

/// `Slot::role`: this end called `connect`.
pub const ROLE_CONNECTOR: u32 = 0;
/// `Slot::role`: this end came from `accept`.
pub const ROLE_ACCEPTOR: u32 = 1;

/// `Slot::tx_mode`, `Slot::rx_mode`: on the kernel socket, may still move into a ring.
pub const MODE_KERNEL: u32 = 0;
/// `Slot::tx_mode`, `Slot::rx_mode`: in the ring.
pub const MODE_RING: u32 = 1;
/// `Slot::tx_mode`, `Slot::rx_mode`: on the kernel socket for good.
pub const MODE_FINAL: u32 = 2;
/// `Slot::tx_mode`: the peer revoked its consent; what it had not read is on its way through the kernel socket.
pub const MODE_RECALLED: u32 = 3;

/// One end of one selected connection: an open file description, whichever descriptors and forked processes hold it.
///
/// "Operations" are calls of the program that moved at least one byte. "tx" is towards the peer, "rx" from it.
#[repr(C)]
#[cfg_attr(any(loom, test), derive(Default))]
pub struct Slot {
    /// Raised by one at each claim; a snapshot is valid if it reads the same before and after.
    pub generation: AtomicU32,
    /// One of the `SLOT_` states.
    pub state: AtomicU32,
    /// [`crate::reason::Reason`] code; 0 while undecided or accelerated.
    pub reason: AtomicU32,
    /// [`ROLE_CONNECTOR`] or [`ROLE_ACCEPTOR`].
    pub role: AtomicU32,
    /// Index of the [`PathEntry`].
    pub path: AtomicU32,
    /// Process that selected the connection.
    pub pid: AtomicU32,
    /// Processes of the family that hold the descriptor: the count in the low 9 bits, above them who ([`crate::ledger::holders`]).
    pub holders: AtomicU32,
    /// How many sends on the kernel socket are in progress, in the low 10 bits; above them the process that began the last. A switch waits for 0.
    pub kernel_tx_inflight: AtomicU32,
    /// `SO_COOKIE` of this end's socket; equals UNIX_DIAG's and `bpf_get_socket_cookie`'s. 0 = not known.
    pub cookie: AtomicU64,
    /// Inode of this end's socket (`st_ino` of `fstat(2)`).
    pub inode: AtomicU64,
    /// Inode of the peer's socket, 0 until asked.
    pub peer_inode: AtomicU64,
    /// `SO_SNDBUF` as the program last saw it, in bytes; 0 until the transport changes the kernel's own value.
    pub sndbuf: AtomicU32,
    /// 1 when O_NONBLOCK is set on the open file description, as far as the library saw it.
    pub nonblocking: AtomicU32,

    /// Program bytes sent through the kernel socket.
    pub kernel_tx_bytes: AtomicU64,
    /// Operations that sent through the kernel socket.
    pub kernel_tx_calls: AtomicU64,
    /// Program bytes received through the kernel socket.
    pub kernel_rx_bytes: AtomicU64,
    /// Operations that received through the kernel socket.
    pub kernel_rx_calls: AtomicU64,
    /// Kernel receives in progress now.
    pub kernel_rx_inflight: AtomicU32,
    /// Attempts to upgrade made so far.
    pub attempts: AtomicU32,
    /// Thread that holds the lock of the receiving direction, 0 = nobody; see [`crate::lock`].
    pub rx_lock: AtomicU64,

    /// Program bytes written to a ring.
    pub ring_tx_bytes: AtomicU64,
    /// Operations that wrote to a ring.
    pub ring_tx_calls: AtomicU64,
    /// Program bytes read from a ring.
    pub ring_rx_bytes: AtomicU64,
    /// Operations that read from a ring.
    pub ring_rx_calls: AtomicU64,

    /// Bytes that are not the program's, sent through the kernel socket to wake the peer or to mark the ring full.
    pub doorbell_tx_bytes: AtomicU64,
    /// Such bytes received and discarded.
    pub doorbell_rx_bytes: AtomicU64,
    /// System calls that sent such bytes.
    pub doorbell_tx_calls: AtomicU64,
    /// System calls that received such bytes.
    pub doorbell_rx_calls: AtomicU64,
    /// Times a caller went to sleep in the kernel because a ring was empty or full.
    pub sleeps: AtomicU64,
    /// Times spinning found what it waited for.
    pub spin_hits: AtomicU64,
    /// Times a writer found the ring full.
    pub ring_full: AtomicU64,
    /// Where the sending direction is: one of the `MODE_` values.
    pub tx_mode: AtomicU32,
    /// Where the receiving direction is: one of the `MODE_` values.
    pub rx_mode: AtomicU32,
    /// Callers asleep in a kernel receive because the ring was empty.
    pub rx_waiters: AtomicU32,
    /// Comparisons of both ends' byte counts that failed.
    pub disagreements: AtomicU32,
    /// 1 once a reset by the peer was reported to the program, which happens once (unix(7)); 2 while the report is owed.
    pub reset_reported: AtomicU32,
    /// Unread bytes of this end at which the ring is full; derived from `SO_SNDBUF`.
    pub tx_limit: AtomicU32,
    /// 1 once the program has shut the sending direction down.
    pub tx_shutdown: AtomicU32,
    /// `SO_RCVLOWAT`: bytes a blocking receive waits for, at least 1; 0 until known.
    pub rx_lowat: AtomicU32,
    /// Ring position of the next byte that goes back through the kernel socket (`MODE_RECALLED`).
    pub recalled_at: AtomicU64,
    /// Bytes that still have to go back.
    pub recalled_left: AtomicU64,
    /// Thread that holds the lock of the sending direction, 0 = nobody.
    pub tx_lock: AtomicU64,
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<LedgerHeader>() == 48);
    assert!(align_of::<LedgerHeader>() == 8);
    assert!(offset_of!(LedgerHeader, exhausted) == 32);
    assert!(offset_of!(LedgerHeader, strangers) == 40);
    assert!(size_of::<PathEntry>() == PATH_SIZE);
    assert!(offset_of!(PathEntry, name) == 8);
    assert!(offset_of!(PathEntry, selected) == 120);
    assert!(offset_of!(PathEntry, accelerated) == 128);
    assert!(offset_of!(PathEntry, reasons) == 136);
    assert!(offset_of!(PathEntry, reserved) == 296);
    assert!(size_of::<Slot>() == SLOT_SIZE);
    assert!(offset_of!(Slot, cookie) == 32);
    assert!(offset_of!(Slot, inode) == 40);
    assert!(offset_of!(Slot, peer_inode) == 48);
    assert!(offset_of!(Slot, sndbuf) == 56);
    assert!(offset_of!(Slot, kernel_tx_bytes) == 64);
    assert!(offset_of!(Slot, kernel_rx_inflight) == 96);
    assert!(offset_of!(Slot, ring_tx_bytes) == 112);
    assert!(offset_of!(Slot, doorbell_tx_bytes) == 144);
    assert!(offset_of!(Slot, sleeps) == 176);
    assert!(offset_of!(Slot, tx_mode) == 200);
    assert!(offset_of!(Slot, tx_shutdown) == 224);
    assert!(offset_of!(Slot, recalled_at) == 232);
    assert!(offset_of!(Slot, rx_lock) == 104);
    assert!(offset_of!(Slot, tx_lock) == 248);
};
