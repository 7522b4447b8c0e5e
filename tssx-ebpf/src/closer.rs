//! What the kernel programs note while they look closer, for a part of the window.

use crate::SIZES;

/// Name of the hash map from the inode of a socket to what was seen of it: the bits below.
pub const SIGNALS_MAP: &str = "SIGNALS";
/// Entries of [`SIGNALS_MAP`].
pub const SIGNALS_ENTRIES: u32 = 16_384;
/// Descriptors travelled with a message, `SCM_RIGHTS`.
pub const DESCRIPTORS: u32 = 1;
/// Credentials travelled with a message, `SCM_CREDENTIALS`.
pub const CREDENTIALS: u32 = 2;
/// Bytes went by splice(2) or sendfile(2).
pub const SPLICED: u32 = 4;

/// Name of the hash map from the cookie of a receiving socket to [`Wakeups`].
pub const WAKEUPS_MAP: &str = "WAKEUPS";
/// Entries of [`WAKEUPS_MAP`]: sockets beyond are not sampled.
pub const WAKEUPS_ENTRIES: u32 = 4096;

/// How long it took from the arrival of bytes for which somebody waited to the end of the receive that took the first of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakeups {
    /// How many took 2^i nanoseconds or more and less than 2^(i+1); the last holds all beyond too.
    pub counts: [u32; SIZES],
}
