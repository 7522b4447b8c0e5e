//! Time-outs that are spent in several waits.

use core::ffi::c_int;

use libc::timespec;
use tssx_core::sys;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Until when a call may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// It must not wait.
    Now,
    /// CLOCK_MONOTONIC, nanoseconds.
    At(u64),
    /// For ever.
    Never,
}

impl Deadline {
    /// From poll(2)'s and epoll_wait(2)'s milliseconds.
    pub(crate) fn from_ms(timeout: c_int) -> Self {
        match u64::try_from(timeout) {
            Err(_) => Self::Never,
            Ok(0) => Self::Now,
            Ok(ms) => Self::At(sys::monotonic_ns().saturating_add(ms * NS_PER_MS)),
        }
    }

    /// From ppoll(2)'s and pselect(2)'s time; none is for ever. `None` for one that the kernel refuses.
    pub(crate) fn from_timespec(timeout: Option<&timespec>) -> Option<Self> {
        let Some(timeout) = timeout else { return Some(Self::Never) };
        let seconds = u64::try_from(timeout.tv_sec).ok()?;
        let ns = u64::try_from(timeout.tv_nsec).ok().filter(|ns| *ns < NS_PER_S)?;
        let total = seconds.saturating_mul(NS_PER_S).saturating_add(ns);
        Some(if total == 0 { Self::Now } else { Self::At(sys::monotonic_ns().saturating_add(total)) })
    }

    /// The sooner of this and `ms` milliseconds from now.
    pub(crate) fn at_most(self, ms: c_int) -> Self {
        match (self, Self::from_ms(ms)) {
            (Self::At(at), Self::At(soon)) => Self::At(at.min(soon)),
            (Self::Never, soon) => soon,
            (own, _) => own,
        }
    }

    /// Whether it has passed.
    pub(crate) fn is_over(self) -> bool {
        self.left().is_some_and(|left| left.tv_sec == 0 && left.tv_nsec == 0)
    }

    /// What is left: `None` for ever, zero when it has passed.
    pub(crate) fn left(self) -> Option<timespec> {
        let ns = match self {
            Self::Never => return None,
            Self::Now => 0,
            Self::At(at) => at.saturating_sub(sys::monotonic_ns()),
        };
        Some(timespec { tv_sec: (ns / NS_PER_S).cast_signed(), tv_nsec: (ns % NS_PER_S).cast_signed() })
    }
}
