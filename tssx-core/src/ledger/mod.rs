//! The ledger: per-process statistics of every selected connection, in memory that other processes can read.
//!
//! One ledger is one memfd named [`MEMFD_NAME`], mapped `MAP_SHARED` by the process that selected its first
//! connection and, through `fork`, by its children: a connection that is accepted in a parent and served in a
//! child is one slot. A tracer finds it as the `/memfd:tssx-ledger` mapping in `/proc/PID/maps` and maps it
//! read-only through `/proc/PID/map_files`; nobody is stopped and nothing is asked.
//!
//! - [`layout`]: the bytes, documented in PROTOCOL.md and asserted at compile time;
//! - [`view`]: reading a ledger that may be lying (it belongs to another, unprivileged process);
//! - [`slots`]: claiming and releasing slots and paths, lock-free, so that a killed process leaves no lock.

pub mod holders;
pub mod layout;
pub mod slots;
pub mod view;

/// Name given to `memfd_create(2)`; `/proc/PID/maps` shows it as `/memfd:tssx-ledger (deleted)`.
pub const MEMFD_NAME: &core::ffi::CStr = c"tssx-ledger";
