//! Waiting for the peer: spin while it pays, then sleep in the kernel.
//!
//! How long spinning pays is learned per connection: a spin that finds what it waited for restores the full budget, one that
//! does not halves it, down to none; after that a full spin is tried now and then, in case the peer has become fast.
//! Two programs that share one CPU thus stop spinning after a few messages, and a connection that is idle most of the
//! time spends microseconds, not milliseconds. With one usable CPU nobody ever spins.
//!
//! The reader of a stream that goes one way rests before it looks ([`super::gathering`]).

#![allow(unsafe_code, reason = "calls libc's own blocking functions")]

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::{clock, sys};

use crate::errno::{self, Errno, Result};
use crate::{init, next};

/// Waits without a spin before one is tried again.
const SKIPS: u32 = 256;
/// Halvings after which no spin is made.
const HALVINGS_MAX: u32 = 5;
/// Looks between two readings of the clock.
const LOOKS: u32 = 32;

/// What a connection has learned. Zero is the start: the full budget.
#[derive(Debug, Default)]
pub(crate) struct SpinBudget {
    /// Spins in vain in a row: the budget is the full one halved that often.
    halvings: AtomicU32,
    /// Waits that were not spun.
    skipped: AtomicU32,
}

impl SpinBudget {
    pub(crate) const fn new() -> Self {
        Self { halvings: AtomicU32::new(0), skipped: AtomicU32::new(0) }
    }

    pub(crate) fn reset(&self) {
        self.halvings.store(0, Relaxed);
        self.skipped.store(0, Relaxed);
    }

    /// Whether the last spin has found what it waited for: then the peer runs, on another CPU.
    pub(super) fn pays(&self) -> bool {
        self.halvings.load(Relaxed) == 0 && init::spin_us() > 0
    }

    /// Spins until `ready` says so. False when the budget is used up, at once if there is none.
    pub(crate) fn spin(&self, ready: impl FnMut() -> bool) -> bool {
        self.spin_for(0, ready)
    }

    /// The same, with a full budget of at least so many microseconds: for a caller for whom a sleep costs as much.
    pub(crate) fn spin_for(&self, least_us: u64, mut ready: impl FnMut() -> bool) -> bool {
        let most = init::spin_us();
        let halvings = self.halvings.load(Relaxed);
        if most == 0 {
            return false;
        }
        let most = most.max(least_us.min(init::SPIN_US_BOUND));
        let mut budget = most.saturating_mul(clock::ticks_per_us()) >> halvings.min(HALVINGS_MAX);
        if halvings >= HALVINGS_MAX {
            if self.skipped.fetch_add(1, Relaxed) + 1 < SKIPS {
                return false;
            }
            self.skipped.store(0, Relaxed);
            budget = most.saturating_mul(clock::ticks_per_us());
        }
        let start = clock::ticks();
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    self.halvings.store(0, Relaxed);
                    return true;
                }
                core::hint::spin_loop();
            }
            if clock::ticks().wrapping_sub(start) > budget {
                self.halvings.store((halvings + 1).min(HALVINGS_MAX), Relaxed);
                return false;
            }
        }
    }
}

/// Blocks in libc's `recv` until the kernel socket has a byte, its end (0), an error, a signal or a time-out. The byte stays.
pub(crate) fn look_for_one(fd: c_int) -> Result<usize> {
    let mut byte = 0_u8;
    // SAFETY: one byte into a local.
    errno::from_bytes(unsafe { next::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK) })
}

/// The same, but the byte is taken, and put where `to` points.
///
/// # Safety
/// `to` must be writable for one byte.
pub(super) unsafe fn take_one(fd: c_int, to: *mut u8) -> Result<usize> {
    // SAFETY: the caller's promise.
    errno::from_bytes(unsafe { next::recv(fd, to.cast(), 1, 0) })
}

/// Blocks in libc's `send` of one junk byte until the kernel socket takes it, which it does when the consumer has made room.
/// A broken pipe raises no signal here: the program's own call follows.
pub(crate) fn send_one(fd: c_int) -> Result<usize> {
    let byte = 0_u8;
    // SAFETY: one byte from a local.
    errno::from_bytes(unsafe { next::send(fd, (&raw const byte).cast(), 1, libc::MSG_NOSIGNAL) })
}

/// What stands for "no time-out" while a send waits that a signal must end: about three years.
pub(crate) const YEARS: libc::timeval = libc::timeval { tv_sec: 100_000_000, tv_usec: 0 };

/// The same, but a signal ends it even if its handler was installed with SA_RESTART: the kernel restarts no send with a time-out
/// (socket(7), SO_SNDTIMEO), so one without gets a very long one for the while.
pub(crate) fn send_one_unless_signalled(fd: c_int) -> Result<usize> {
    const NONE: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let unlimited =
        sys::getsockopt::<libc::timeval>(fd, libc::SO_SNDTIMEO).is_ok_and(|limit| limit.tv_sec == 0 && limit.tv_usec == 0);
    if !unlimited {
        return send_one(fd);
    }
    let _ = sys::set_time_out(fd, libc::SO_SNDTIMEO, &YEARS);
    let sent = send_one(fd);
    // Unless the program has set one of its own meanwhile.
    if sys::getsockopt::<libc::timeval>(fd, libc::SO_SNDTIMEO).is_ok_and(|limit| limit.tv_sec == YEARS.tv_sec) {
        let _ = sys::set_time_out(fd, libc::SO_SNDTIMEO, &NONE);
    }
    sent
}

/// Sends the program's bytes on the kernel socket, as the rest of a call that has sent some already: no signal for a broken pipe.
pub(crate) fn send_rest(fd: c_int, from: *const u8, length: usize, flags: c_int) -> Result<usize> {
    // SAFETY: the caller's memory; the kernel checks it.
    errno::from_bytes(unsafe { next::send(fd, from.cast(), length, flags | libc::MSG_NOSIGNAL) })
}

/// send(2) of no bytes: it waits for nothing and sends nothing, but fails as every send does once no more can be sent.
pub(crate) fn send_nothing(fd: c_int, flags: c_int) -> isize {
    let nothing = 0_u8;
    // SAFETY: no bytes of a local.
    unsafe { next::send(fd, (&raw const nothing).cast(), 0, flags & libc::MSG_NOSIGNAL) }
}

/// Waits in libc's `poll` for an event of one descriptor, or its end, as long as the socket's own time-out (SO_RCVTIMEO for
/// input, SO_SNDTIMEO for output) allows. Unlike a blocking receive or send it ends with every signal. False if the descriptor was closed
/// meanwhile: then the kernel does not say whether an event or a signal has ended the wait.
///
/// # Errors
/// EINTR; EAGAIN after the time-out.
pub(crate) fn for_event(fd: c_int, events: i16) -> Result<bool> {
    let option = if events & libc::POLLOUT != 0 { libc::SO_SNDTIMEO } else { libc::SO_RCVTIMEO };
    let limit = sys::getsockopt::<libc::timeval>(fd, option).ok().filter(|limit| limit.tv_sec != 0 || limit.tv_usec != 0);
    let limit = limit.map(|limit| libc::timespec { tv_sec: limit.tv_sec, tv_nsec: limit.tv_usec * 1000 });
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let time = limit.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: one live entry, a live or no time, and no signal mask.
    match errno::from_int(unsafe { next::ppoll(&raw mut entry, 1, time, core::ptr::null()) })? {
        0 => Err(Errno::AGAIN),
        _ => Ok(entry.revents & libc::POLLNVAL == 0),
    }
}
