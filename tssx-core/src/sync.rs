//! Where shared protocol state gets its atomics and fences, and where the protocol meets the kernel.
//!
//! The protocol modules name neither `core::sync::atomic`'s types nor [`crate::sys`] themselves, so that with
//! `--cfg loom` the very same functions run on modelled atomics and a modelled socket (`models/`), in every
//! interleaving that is allowed. In every other build the names below are the real things, at no cost.

#[cfg(not(loom))]
mod real {
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, fence};

    pub(crate) use crate::sys as kernel;
}

#[cfg(not(loom))]
pub(crate) use real::{AtomicU32, AtomicU64, fence, kernel, spin_loop};

#[cfg(loom)]
pub(crate) use crate::models::{
    atomics::{AtomicU32, AtomicU64, fence, spin_loop},
    kernel,
};
