//! One file for each subcommand; each gives the exit status.

pub(crate) mod bench;
pub(crate) mod discover;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod export;
mod follow;
pub(crate) mod manual;
pub(crate) mod run;
pub(crate) mod suggest;
pub(crate) mod top;
pub(crate) mod verify;
