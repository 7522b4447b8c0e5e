//! POSIX semantics of a selected stream: one file per thing a program does with it.
//!
//! - [`establish`]: `connect` and `accept` select a connection; its operations drive the upgrade;
//! - [`send`], [`receive`]: the data, with every rule of send(2), recv(2) and unix(7);
//! - [`wait`]: spinning and sleeping;
//! - [`crossing`], [`reset`]: the two delicate moments, switch-over and the peer's end;
//! - [`options`]: `getsockopt`, `setsockopt`, `ioctl`, `fcntl`, `shutdown` where a ring changes the answer;
//! - [`recall`]: leaving the rings at once, because the descriptor goes elsewhere;
//! - [`fallback`]: leaving the ring for what it cannot carry.

mod alive;
pub(crate) mod ancillary;
mod crossing;
pub(crate) mod establish;
pub(crate) mod fallback;
pub(crate) mod mailboxes;
pub(crate) mod options;
pub(crate) mod recall;
pub(crate) mod receive;
pub(crate) mod reset;
pub(crate) mod send;
pub(crate) mod transfer;
pub(crate) mod wait;
