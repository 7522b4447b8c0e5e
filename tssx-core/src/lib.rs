//! What two processes share.
#![cfg_attr(not(test), no_std)]

pub mod ledger;
pub mod reason;
