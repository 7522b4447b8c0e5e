//! What the kernel programs and the tracer share: the records in the maps, the maps' names and the causes of loss.
//!
//! One operation's way: a thread sends on a Unix socket; the kernel queues the bytes, tells the peer's socket
//! (`sk_data_ready`: the program notes the peer's cookie for this CPU), and reports the call's result
//! (`sock_send_length`: the program adds calls and bytes to the record of this socket and process, and the peer's
//! cookie with it). `sock_recv_length` does the same for the receiver. The tracer reads the maps at the end of its
//! window; nothing is copied per event and nobody waits for user space.
//!
//! The programs themselves are in the binary of this package (`main.rs`, feature `bpf`), built for the BPF target by
//! `cargo xtask build`; the library part has no dependencies and runs anywhere.

#![no_std]

pub mod birth;

/// Name of the per-CPU hash map from [`TrafficKey`] to [`Traffic`].
pub const TRAFFIC_MAP: &str = "TRAFFIC";
/// Name of the per-CPU array of [`LossCount`], indexed by [`Loss`].
pub const LOSSES_MAP: &str = "LOSSES";
/// Name of the ring buffer that tells of each process when it first counts: its [`TrafficKey::tgid`], four bytes. What does
/// not fit is counted as [`Loss::Untold`].
pub const ARRIVALS_MAP: &str = "ARRIVALS";
/// Bytes of [`ARRIVALS_MAP`] unless the loader asks for another number: some thousand processes between two looks.
pub const ARRIVALS_BYTES: u32 = 64 * 1024;
/// Processes that [`ARRIVALS_MAP`] is known to have told of; beyond, the one seen longest ago may be told again.
pub const ARRIVED_ENTRIES: u32 = 16_384;
/// Entries of [`TRAFFIC_MAP`] unless the loader asks for another number: pairs of one socket and one process.
pub const TRAFFIC_ENTRIES: u32 = 65_536;

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
    /// `struct sock`: `sk_socket`.
    SockSocket,
    /// `struct socket_alloc`: `vfs_inode`; its `socket` is the first member.
    SocketInode,
}

impl Offset {
    /// Every member, in the order of its index.
    pub const ALL: [Self; 13] = [
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
        Self::SockSocket,
        Self::SocketInode,
    ];
}

/// Sizes that are told apart: one for each power of two that a call's result can reach.
pub const SIZES: usize = 32;

/// One socket as used by one process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TrafficKey {
    /// The socket's cookie: equals `SO_COOKIE` and UNIX_DIAG's. By the system-call programs, which cannot ask for a cookie: the
    /// socket's inode.
    pub cookie: u64,
    /// Process (thread group) that made the calls, as the reader's pid namespace numbers it; 0 for one outside it.
    pub tgid: u32,
    /// Zero: the key has no unset bytes.
    pub reserved: u32,
}

/// What one CPU saw of one [`TrafficKey`]; the sum over all CPUs is the truth.
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
    /// Cookie (or inode, as in the key) of the socket that got this CPU's latest sent bytes; 0 if this CPU never learned it.
    pub peer: u64,
    /// Name of the thread that made this CPU's first call, zero-padded; all zero on a CPU that saw none.
    pub comm: [u8; 16],
    /// Of `tx_calls`, how many sent 2^i bytes or more and less than 2^(i+1). The messages of one sendmmsg(2) count with their mean size
    /// where the system-call programs count.
    pub tx_sizes: [u64; SIZES],
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
}

impl Loss {
    /// Every cause, in the order of its index.
    pub const ALL: [Self; 5] = [Self::MapFull, Self::NoMemory, Self::Refused, Self::Unreadable, Self::Untold];
}

// The tracer reads these bytes as the kernel wrote them: no padding anywhere.
const _: () = {
    assert!(size_of::<TrafficKey>() == 16);
    assert!(size_of::<Traffic>() == 56 + 8 * SIZES);
    assert!(size_of::<LossCount>() == 16);
};
