//! Why a selected connection is on the kernel socket: stable codes that a report can be compared by.
//!
//! The numbers are part of the ledger's layout (PROTOCOL.md, "Reasons"); they are only ever appended.

/// One reason for a selected connection not to be carried by shared memory.
///
/// Stored in the ledger as its number (`as u32`); read back with [`Reason::from_code`], because a number
/// in shared memory may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Reason {
    /// No reason: accelerated, or not decided yet.
    None = 0,
    /// Fewer operations than the upgrade threshold so far.
    TooFewOperations = 1,
    /// The peer did not answer within the attempts allowed: most likely it runs without the library.
    PeerNotReady = 2,
    /// The kernel does not tell who the peer is (other network namespace, or no NETLINK_SOCK_DIAG).
    PeerUnknown = 3,
    /// The peer's user, as the kernel vouches for it, is not the one the connection was made with.
    PeerCredentials = 4,
    /// The byte counts of both ends never agreed: bytes moved past the library.
    CountsDisagree = 5,
    /// No segment: `memfd_create`, `ftruncate`, `mmap` or sealing failed, or the memory bound is reached.
    NoMemory = 6,
    /// The segment offered by the peer was refused (size, seals, magic or version).
    BadSegment = 7,
    /// The shared memory held something impossible, or somebody wrote to the kernel socket past the library; the connection was reset.
    Corrupt = 8,
    /// Ancillary data (descriptors or credentials) was sent.
    AncillaryData = 9,
    /// `sendfile` or `splice` wrote to the socket.
    Splice = 10,
    /// A stdio stream was opened on the socket.
    Stdio = 11,
    /// The socket is in an epoll set in a way the library does not serve (a nested set, or one that it entered before it was connected).
    EpollMode = 12,
    /// Out-of-band data was used.
    OutOfBand = 13,
    /// A socket option asked for something a ring cannot do (SO_PASSCRED, SO_PEEK_OFF, O_ASYNC …).
    SocketOption = 14,
    /// The descriptor itself was sent to another process, or may live on in a new image after `exec`.
    DescriptorTravels = 15,
    /// The ledger was full, so the connection could not be counted.
    LedgerFull = 16,
    /// The socket is shut down or closed before it paid to upgrade.
    Closed = 17,
    /// Too many connections of this process were waiting for their peer at the same time.
    TooManyPending = 18,
    /// A system call made past the library (`syscall`, io_uring) named the descriptor.
    RawSystemCall = 19,
}

/// One more than the highest code: the length of the per-path reason counters.
pub const REASON_COUNT: usize = 20;

/// Every reason in the order of its code, with its stable name and a sentence for a report.
const TABLE: [(Reason, &str, &str); REASON_COUNT] = [
    (Reason::None, "none", "accelerated, or not decided yet"),
    (Reason::TooFewOperations, "too-few-operations", "the connection has not seen enough traffic to be worth a segment"),
    (Reason::PeerNotReady, "peer-not-ready", "the other end never answered: is it running with the library and the same USE_TSSX?"),
    (Reason::PeerUnknown, "peer-unknown", "the kernel does not name the peer: other network namespace, or no NETLINK_SOCK_DIAG"),
    (Reason::PeerCredentials, "peer-credentials", "the other end runs as another user than the one the connection was made with"),
    (Reason::CountsDisagree, "counts-disagree", "bytes moved past the library (stdio, io_uring or raw system calls)"),
    (Reason::NoMemory, "no-memory", "no shared segment could be made (memfd, mmap, or the memory bound)"),
    (Reason::BadSegment, "bad-segment", "the segment offered by the other end was refused"),
    (
        Reason::Corrupt,
        "corrupt",
        "the shared memory held something impossible, or bytes came past the library; the connection was reset",
    ),
    (Reason::AncillaryData, "ancillary-data", "descriptors or credentials were sent over the connection"),
    (Reason::Splice, "splice", "sendfile or splice wrote to the socket"),
    (Reason::Stdio, "stdio", "a stdio stream was opened on the socket"),
    (Reason::EpollMode, "epoll-mode", "the socket is in a nested epoll set, or was in one before it was connected"),
    (Reason::OutOfBand, "out-of-band", "out-of-band data was used"),
    (Reason::SocketOption, "socket-option", "a socket option asked for what a ring cannot do"),
    (Reason::DescriptorTravels, "descriptor-travels", "the descriptor was sent to another process or kept over exec"),
    (Reason::LedgerFull, "ledger-full", "no room to count the connection"),
    (Reason::Closed, "closed", "closed before it paid to upgrade"),
    (Reason::TooManyPending, "too-many-pending", "too many connections were waiting for their peer at once"),
    (Reason::RawSystemCall, "raw-system-call", "a system call made past the library named the descriptor"),
];

impl Reason {
    /// The reason with this code, or `None` where the code is not one of ours.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        TABLE.get(code as usize).map(|row| row.0)
    }

    /// The stable, lower-case name that reports and scripts use.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE.get(self as usize).map_or("", |row| row.1)
    }

    /// One sentence for a human reader.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        TABLE.get(self as usize).map_or("", |row| row.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_as_itself_and_names_are_distinct() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
            assert_eq!(Reason::from_code(u32::try_from(index).expect("small")), Some(row.0));
            assert_eq!(TABLE.iter().filter(|other| other.1 == row.1).count(), 1);
        }
        assert_eq!(Reason::from_code(u32::try_from(REASON_COUNT).expect("small")), None);
    }
}
