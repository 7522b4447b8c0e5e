//! What two processes share: the transport under `tssx-preload`, and the statistics that `tssx-trace` reads.
//!
//! A connection walks through the modules like this:
//!
//! 1. A selected connection gets a slot in the [`ledger`]: counters, locks ([`lock`]) and the state of each direction.
//! 2. After a few operations [`upgrade`] is due: the connector learns from [`diag`] who its peer is, and offers a [`segment`] through
//!    a mailbox ([`rendezvous`]).
//! 3. Each direction moves by itself ([`switchover`]): counts are compared, the receiver consents, the sender switches.
//! 4. From then on bytes go through a [`ring`], and [`doorbell`]s keep the kernel socket's readiness true for whoever sleeps.
//! 5. Back to the kernel socket: the sender ends the ring ([`switchover`]), or the receiver gives it up ([`recall`]).
//!
//! Whatever ends otherwise has a [`reason`]. The bytes are in [`layout`] and [`ledger::layout`]; [`sys`] is the only door to the kernel.
//! Nothing here knows libc's symbol names, environment variables or the command line.
#![cfg_attr(not(test), no_std)]

pub mod budget;
pub mod clock;
pub mod diag;
pub mod doorbell;
pub mod glob;
pub mod in_flight;
pub mod layout;
pub mod ledger;
pub mod lock;
#[cfg(loom)]
mod models;
#[cfg(all(test, not(loom)))]
mod mutations;
pub mod packets;
pub mod reason;
pub mod recall;
pub mod reclaim;
pub mod release;
pub mod remainder;
pub mod rendezvous;
pub mod ring;
pub mod segment;
mod shared_bytes;
pub mod switchover;
mod sync;
pub mod sys;
pub mod upgrade;
pub mod whereabouts;
