//! What two processes share.
#![cfg_attr(not(test), no_std)]

pub mod clock;
pub mod diag;
pub mod doorbell;
pub mod layout;
pub mod ledger;
pub mod lock;
#[cfg(loom)]
mod models;
pub mod reason;
pub mod recall;
pub mod rendezvous;
pub mod ring;
pub mod segment;
mod shared_bytes;
pub mod switchover;
mod sync;
pub mod sys;
pub mod upgrade;
