//! What the kernel programs and the tracer share: the records in the maps, the maps' names and the causes of loss.
//!
//! One operation's way: a thread sends on a Unix socket; the kernel queues the bytes, wakes the receiver, and reports the
//! call's result (`sock_send_length`: the program adds calls and bytes to the record of this socket and process, and at
//! the first send the peer's cookie). `sock_recv_length` does the same for the receiver. The tracer reads the maps at the
//! end of its window; nothing is copied per event and nobody waits for user space.
//!
//! The programs themselves are in the binary of this package (`main.rs`, feature `bpf`), built for the BPF target by
//! `cargo xtask build`; the library part has no dependencies and runs anywhere.

#![no_std]

pub mod birth;
pub mod closer;

/// Name of the hash map from [`TrafficKey`] to [`Traffic`]. A record is made when it is first needed: the memory follows the sockets in
/// use and the CPUs that use them, not the size of the host.
pub const TRAFFIC_MAP: &str = "TRAFFIC";
/// Name of the per-CPU array of [`LossCount`], indexed by [`Loss`].
pub const LOSSES_MAP: &str = "LOSSES";
/// Name of the ring buffer that tells of each process when it first counts: an [`Arrival`]. What does not fit is counted as
/// [`Loss::Untold`].
pub const ARRIVALS_MAP: &str = "ARRIVALS";
/// Bytes of [`ARRIVALS_MAP`] unless the loader asks for another number: some thousand processes between two looks.
pub const ARRIVALS_BYTES: u32 = 64 * 1024;
/// Processes that [`ARRIVALS_MAP`] is known to have told of; beyond, the one seen longest ago may be told again.
pub const ARRIVED_ENTRIES: u32 = 16_384;
/// Pairs of one socket and one process that are counted unless the loader asks for another number.
pub const TRAFFIC_ENTRIES: u32 = 65_536;
/// Entries of [`TRAFFIC_MAP`] for each such pair: one for each CPU of the host, up to this number. Some pairs are used on all CPUs, and
/// most on one or two.
pub const MOST_CPUS: u32 = 4;

/// Name of the global `u64` with the device of the reader's pid namespace (`st_dev` of `/proc/self/ns/pid`).
pub const PID_NAMESPACE_DEVICE: &str = "PID_NAMESPACE_DEVICE";
/// Name of the global `u64` with the inode of the reader's pid namespace; 0 for the initial one.
pub const PID_NAMESPACE_INODE: &str = "PID_NAMESPACE_INODE";

/// Name of the global array of `u64`, indexed by [`Offset`]: bytes from the beginning of a kernel structure to a member, by the
/// running kernel's BTF; 0 where the mode does not need it.
pub const OFFSETS: &str = "OFFSETS";

/// Which member of which kernel structure: the index into [`OFFSETS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Offset {
    /// `struct socket`: `sk`.
    SocketSk,
    /// `struct socket`: `type`.
    SocketType,
    /// `struct unix_sock`: `peer`.
    UnixPeer,
    /// `struct task_struct`: `files`.
    TaskFiles,
    /// `struct files_struct`: `fdt`.
    FilesTable,
    /// `struct fdtable`: `fd`.
    TableFiles,
    /// `struct file`: `f_inode`.
    FileInode,
    /// `struct file`: `private_data`.
    FilePrivate,
    /// `struct inode`: `i_mode`.
    InodeMode,
    /// `struct inode`: `i_ino`.
    InodeNumber,
    /// `struct sock`: `sk_family`, in its common part.
    SockFamily,
    /// `struct sock`: `sk_type`.
    SockType,
    /// `struct sock`: `skc_cookie`, in its common part.
    SockCookie,
    /// `struct sock`: `sk_socket`.
    SockSocket,
    /// `struct socket_alloc`: `vfs_inode`; its `socket` is the first member.
    SocketInode,
    /// `struct sock`: `sk_wq`.
    SockWaiters,
    /// `struct socket_wq`: the list of those who wait.
    WaitersHead,
}

impl Offset {
    /// Every member, in the order of its index.
    pub const ALL: [Self; 17] = [
        Self::SocketSk,
        Self::SocketType,
        Self::UnixPeer,
        Self::TaskFiles,
        Self::FilesTable,
        Self::TableFiles,
        Self::FileInode,
        Self::FilePrivate,
        Self::InodeMode,
        Self::InodeNumber,
        Self::SockFamily,
        Self::SockType,
        Self::SockCookie,
        Self::SockSocket,
        Self::SocketInode,
        Self::SockWaiters,
        Self::WaitersHead,
    ];
}

/// Sizes that are told apart: one for each power of two that a call's result can reach.
pub const SIZES: usize = 32;

/// One socket as used by one process on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TrafficKey {
    /// The socket's cookie: equals `SO_COOKIE` and UNIX_DIAG's. By the system-call programs, which cannot ask for a cookie: the
    /// socket's inode.
    pub cookie: u64,
    /// Process (thread group) that made the calls, as the reader's pid namespace numbers it; 0 for one outside it.
    pub tgid: u32,
    /// The CPU.
    pub cpu: u32,
}

/// What was counted of one [`TrafficKey`]; the sum over all CPUs is the truth.
///
/// Only calls that moved at least one byte count: neither errors, nor end of file, nor `MSG_PEEK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Calls that sent.
    pub tx_calls: u64,
    /// Bytes that those calls sent.
    pub tx_bytes: u64,
    /// Calls that received.
    pub rx_calls: u64,
    /// Bytes that those calls received.
    pub rx_bytes: u64,
    /// Cookie (or inode, as in the key) of the socket that gets the bytes sent; 0 if it was never learned, or changes from call to call.
    pub peer: u64,
    /// Receives when this CPU sent last: what differs then was received in between.
    pub answered: u64,
    /// Of `tx_calls`, how many followed a receive of the same process on this CPU: the turns of a conversation.
    pub turns: u32,
    /// Zero: the record has no unset bytes.
    pub reserved: u32,
    /// Of `tx_calls`, how many sent 2^i bytes or more and less than 2^(i+1), modulo 2^32. The messages of one sendmmsg(2) count with
    /// their mean size where the system-call programs count.
    pub tx_sizes: [u32; SIZES],
}

/// Name of the per-CPU array of [`Slot`]. What it holds belongs to the records of its CPU and is not there yet.
pub const SLOTS_MAP: &str = "SLOTS";
/// Entries of [`SLOTS_MAP`]: a power of two.
pub const SLOTS: u32 = 64;

/// What one CPU counted of sockets that it served last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Written at the end of receives only.
    pub received: ReceivedSlot,
    /// Written at the end of sends only.
    pub sent: SentSlot,
}

/// Receives of one socket by one process, not yet in its record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceivedSlot {
    /// 0: free.
    pub cookie: u64,
    /// See [`TrafficKey::tgid`].
    pub tgid: u32,
    /// Calls on other sockets until this may be taken.
    pub credit: u32,
    /// See [`Traffic::rx_calls`].
    pub rx_calls: u64,
    /// See [`Traffic::rx_bytes`].
    pub rx_bytes: u64,
    /// Receives that the record holds.
    pub before: u64,
    /// Receives that fell on this slot, its owner's and others'.
    pub serial: u64,
}

/// Sends of one socket by one process, not yet in its record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentSlot {
    /// 0: free.
    pub cookie: u64,
    /// See [`TrafficKey::tgid`].
    pub tgid: u32,
    /// Calls on other sockets until this may be taken.
    pub credit: u32,
    /// See [`Traffic::tx_calls`].
    pub tx_calls: u64,
    /// See [`Traffic::tx_bytes`].
    pub tx_bytes: u64,
    /// See [`Traffic::answered`].
    pub answered: u64,
    /// [`ReceivedSlot::serial`] beside it, at the last send.
    pub serial: u64,
    /// See [`Traffic::turns`].
    pub turns: u32,
    /// Zero.
    pub reserved: u32,
    /// See [`Traffic::tx_sizes`].
    pub tx_sizes: [u32; SIZES],
}

/// A process when it first counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// As in [`TrafficKey::tgid`].
    pub tgid: u32,
    /// Name of the thread that called, zero-padded.
    pub comm: [u8; 16],
}

/// What one CPU could not put into [`TRAFFIC_MAP`] for one cause.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossCount {
    /// Calls not counted.
    pub calls: u64,
    /// Bytes that those calls moved.
    pub bytes: u64,
}

/// Why a call could not be counted: the index into [`LOSSES_MAP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// Every entry of [`TRAFFIC_MAP`] is taken.
    MapFull = 0,
    /// The kernel had no memory for an entry.
    NoMemory = 1,
    /// The kernel refused an entry for another cause, or the entry vanished.
    Refused = 2,
    /// The system-call programs could not tell what the call moved, or on which socket.
    Unreadable = 3,
    /// [`ARRIVALS_MAP`] had no room to tell of a process; its calls count all the same.
    Untold = 4,
    /// There was no room to note what keeps a socket from being accelerated.
    Unsampled = 5,
}

impl Loss {
    /// Every cause, in the order of its index.
    pub const ALL: [Self; 6] = [Self::MapFull, Self::NoMemory, Self::Refused, Self::Unreadable, Self::Untold, Self::Unsampled];
}

// The tracer reads these bytes as the kernel wrote them: no padding anywhere.
const _: () = {
    assert!(size_of::<TrafficKey>() == 16);
    assert!(size_of::<Traffic>() == 56 + 4 * SIZES);
    assert!(size_of::<Slot>() == 48 + 56 + 4 * SIZES);
    // With the key and what the kernel adds (48 bytes for a hash map's element, 8 for its list of free ones) a record takes one
    // piece of memory of 256 bytes; the next larger is of 512.
    assert!(size_of::<TrafficKey>() + size_of::<Traffic>() + 48 + 8 <= 256);
    assert!(size_of::<Arrival>() == 20);
    assert!(size_of::<LossCount>() == 16);
};
