//! What the kernel programs tell of each socket when they first count it: name, file, peer. For connections that are
//! gone before any list of sockets shows them.
//!
//! The kernel keeps a socket's name and its peer in structures whose layout is its own. User space looks the places up in
//! the running kernel's type information and hands them over as [`SHAPE`]; without them (all zero) nothing is told.

/// Name of the ring buffer of [`Birth`] records.
pub const BIRTHS_MAP: &str = "BIRTHS";
/// Bytes of [`BIRTHS_MAP`]: some 13 000 sockets between two looks.
pub const BIRTHS_BYTES: u32 = 2 * 1024 * 1024;
/// Name of the per-CPU array with one `u64`: sockets that found [`BIRTHS_MAP`] full.
pub const UNTOLD_MAP: &str = "UNTOLD";
/// Name of the global with the places of [`Place`], indexed by it.
pub const SHAPE: &str = "SHAPE";

/// Bytes of a name: `sun_path` and the NUL that the kernel may put behind it.
pub const NAME_BYTES: usize = 112;

/// A place within the kernel's structures: its index in [`SHAPE`], which holds bytes from the start of the structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Place {
    /// `unix_sock.addr`, a pointer.
    Address = 0,
    /// `unix_sock.peer`, a pointer.
    Peer = 1,
    /// `unix_sock.path.dentry`, a pointer.
    Dentry = 2,
    /// `unix_address.len`, an `int`.
    AddressLength = 3,
    /// `unix_address.name`, a `sockaddr_un`.
    AddressName = 4,
    /// `sock.__sk_common.skc_cookie`, 64 bits.
    Cookie = 5,
    /// `sock.__sk_common.skc_net`, a pointer.
    Net = 6,
    /// `sock.sk_type`, 16 bits.
    Type = 7,
    /// `net.ns.inum`, 32 bits.
    NetInode = 8,
    /// `dentry.d_inode`, a pointer.
    DentryInode = 9,
    /// `inode.i_ino`, a `long`.
    Inode = 10,
    /// `inode.i_sb`, a pointer.
    SuperBlock = 11,
    /// `super_block.s_dev`, 32 bits.
    Device = 12,
}

/// Length of [`SHAPE`].
pub const PLACES: usize = 13;

/// The name in a [`Birth`] is the socket's own.
pub const OWN: u8 = 1;
/// The name in a [`Birth`] is that of the socket's peer.
pub const OF_PEER: u8 = 2;

/// One socket at its first counted call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// Its cookie.
    pub cookie: u64,
    /// Cookie of its peer; 0 if it has none, or if nobody asked for the peer's cookie yet.
    pub peer: u64,
    /// Inode of the socket file of `name`; 0 for none.
    pub inode: u64,
    /// Device of that file, as the kernel numbers it inside: minor number in the low 20 bits.
    pub device: u32,
    /// Inode of the socket's network namespace.
    pub network: u32,
    /// `SOCK_STREAM` and so on.
    pub kind: u16,
    /// Whose name this is: [`OWN`], [`OF_PEER`], or 0 for no name.
    pub whose: u8,
    /// Bytes of `name`.
    pub length: u8,
    /// Zero: the record has no unset bytes.
    pub reserved: u32,
    /// The name as bind(2) took it: `sun_path`, a NUL first for an abstract one.
    pub name: [u8; NAME_BYTES],
}

const _: () = assert!(size_of::<Birth>() == 152);
