//! POSIX semantics of a selected stream: one file per thing a program does with it.
//!
//! - [`establish`]: `connect` and `accept` select a connection; its operations drive the upgrade;
//! - [`send`], [`receive`]: the data, with every rule of send(2), recv(2) and unix(7); [`copying`]: beside signal handlers;
//! - [`wait`]: spinning and sleeping; [`abandon`]: waits that never come back;
//! - [`crossing`], [`ended`], [`reset`]: the delicate moments, switch-over, a ring's end and the peer's end;
//! - [`empty`]: a receive that finds nothing; [`lone`]: one that sleeps and shares the end with nobody; [`kept`]: one whose descriptor is gone;
//! - [`options`]: `getsockopt`, `setsockopt`, `ioctl`, `fcntl`, `shutdown` where a ring changes the answer;
//! - [`recall`]: leaving the rings at once, because the descriptor goes elsewhere;
//! - [`fallback`]: leaving the ring for what it cannot carry.

pub(crate) mod abandon;
mod alive;
pub(crate) mod ancillary;
pub(crate) mod copying;
mod crossing;
mod empty;
mod ended;
pub(crate) mod establish;
pub(crate) mod fallback;
pub(crate) mod gathering;
mod kept;
pub(crate) mod lone;
pub(crate) mod mailboxes;
pub(crate) mod options;
mod patience;
pub(crate) mod recall;
pub(crate) mod receive;
pub(crate) mod reset;
pub(crate) mod send;
pub(crate) mod transfer;
pub(crate) mod wait;
