//! Waiting for several descriptors: poll, select, epoll.
//!
//! The kernel's own wait stays in use for everything; we look at the rings first, and make the kernel's readiness of a
//! ring's socket mirror the ring before we enter it (tssx-core's doorbell.rs). So descriptors of other kinds, time-outs,
//! signal masks and cancellation need nothing from us.
//!
//! - [`state`]: what one descriptor's rings say, and what the kernel's answer for it means;
//! - [`poll`], [`select`]: a set that is given anew with each call;
//! - [`interest`], [`control`], [`epoll`]: a set that the kernel keeps, and our notes about the streams in it, which [`records`] holds;
//!   [`scan`]: looking at the active ones; [`sleep`]: leaving them to the kernel; [`pending`]: a socket in it that is connected later;
//! - [`nested`]: a set that is polled itself; [`edge`], [`oneshot`]: streams that are reported when something is new, or once;
//! - [`deadline`]: what is left of a time-out after looking.

pub(crate) mod control;
pub(crate) mod deadline;
mod edge;
pub(crate) mod epoll;
pub(crate) mod interest;
mod nested;
mod oneshot;
pub(crate) mod pending;
pub(crate) mod poll;
pub(crate) mod postponed;
mod records;
mod scan;
pub(crate) mod select;
mod sleep;
pub(crate) mod state;
