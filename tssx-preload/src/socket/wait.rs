//! Waiting for the peer: spin while it pays, then sleep in the kernel.
//!
//! Whether spinning pays is learned per connection, as an account: a spin that finds what it waited for has saved two system calls and a wake-up, one
//! that does not has cost its time. While the balance allows, every wait spins that
//! does not come long after the last one; afterwards one is tried now and then, in case the peer has
//! become fast. Where more threads want to run than there are CPUs most spins find nothing, and it is still worth it: two ends that happen to run at
//! once go on for a whole slice without the kernel, which is a thousand round trips. Where the peer was last seen on our own CPU
//! (tssx-core's whereabouts.rs) it cannot run while we spin, so that is hardly ever tried. With one usable CPU nobody ever spins.
//!
//! The reader of a stream that goes one way rests before it looks ([`super::gathering`]).

#![allow(unsafe_code, reason = "calls libc's own blocking functions")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

use tssx_core::ledger::layout::Slot;
use tssx_core::{clock, sys};

use super::receive::Call;
use crate::errno::{self, Errno, Result};
use crate::{init, next};

/// What a spin that finds something saves, microseconds: two system calls and a wake-up.
const GAIN_US: i32 = 4;
/// What may be lost by spins in vain before they stop: so many full spins more than all finds have saved, and so many at most.
const LOSSES: i32 = 4;
const SAVED_MAX: i32 = 64;
/// Time since the last wait began, in longest spins, after which this one does not spin: the peer has slept as long or thinks as long, and waking it
/// takes longer than a spin. A burst that begins so costs one sleep. By default 8 ms.
const IDLE: u64 = 200;
/// Waits without a spin before one is tried again, and after one that was in vain too. Two ends on one CPU wait longer: chances are that it is as
/// it was.
const SKIPS: [u32; 2] = [256, 512];
const SKIPS_HERE: u32 = 4096;
/// Looks between two readings of the clock.
const LOOKS: u32 = 32;

/// What a connection has learned. Zero is the start.
#[derive(Debug, Default)]
pub(crate) struct SpinBudget {
    /// What spins in vain have cost more than the others have saved, microseconds.
    lost: AtomicI32,
    /// Spins in vain in a row, as far as that matters: 2 after a single one that was tried for a change.
    vain: AtomicU32,
    /// 1 when a spin has found something although the peer was last seen on our CPU: what was seen is old.
    moved: AtomicU32,
    /// Waits that were not spun.
    skipped: AtomicU32,
    /// When the last wait began, in ticks.
    last: AtomicU64,
}

impl SpinBudget {
    pub(crate) const fn new() -> Self {
        Self {
            lost: AtomicI32::new(0),
            vain: AtomicU32::new(0),
            moved: AtomicU32::new(0),
            skipped: AtomicU32::new(0),
            last: AtomicU64::new(0),
        }
    }

    pub(crate) fn reset(&self) {
        self.lost.store(0, Relaxed);
        self.vain.store(0, Relaxed);
        self.moved.store(0, Relaxed);
        self.skipped.store(0, Relaxed);
        self.last.store(0, Relaxed);
    }

    /// Whether the last spin has found what it waited for: then the peer runs, on another CPU.
    pub(super) fn pays(&self) -> bool {
        self.vain.load(Relaxed) == 0 && init::spin_us() > 0
    }

    /// Spins until `ready` says so. False when the budget is used up, at once if there is none.
    pub(crate) fn spin(&self, ready: impl FnMut() -> bool) -> bool {
        self.spin_for(0, false, ready)
    }

    /// The same, for a wait for one peer: `here` if it was last seen on our own CPU.
    pub(crate) fn spin_for_peer(&self, here: bool, ready: impl FnMut() -> bool) -> bool {
        self.spin_for(0, here, ready)
    }

    /// The same, with a full budget of at least so many microseconds: for a caller for whom a sleep costs as much.
    pub(crate) fn spin_at_least(&self, least_us: u64, ready: impl FnMut() -> bool) -> bool {
        self.spin_for(least_us, false, ready)
    }

    fn spin_for(&self, least_us: u64, here: bool, mut ready: impl FnMut() -> bool) -> bool {
        let most = init::spin_us();
        if most == 0 {
            return false;
        }
        let most = most.max(least_us.min(init::SPIN_US_BOUND));
        let full = i32::try_from(most).unwrap_or(i32::MAX / SAVED_MAX);
        let lost = self.lost.load(Relaxed);
        let here = here && self.moved.load(Relaxed) == 0;
        let gave_up = here || lost >= full.saturating_mul(LOSSES);
        let start = clock::ticks();
        if self.is_idle(start, most) || (gave_up && self.skips(here)) {
            return false;
        }
        let budget = most.saturating_mul(clock::ticks_per_us());
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    self.found(lost, full, gave_up, here);
                    return true;
                }
                core::hint::spin_loop();
            }
            if clock::ticks().wrapping_sub(start) > budget {
                self.lost.store(lost.saturating_add(full), Relaxed);
                self.vain.store(if gave_up { 2 } else { 1 }, Relaxed);
                self.moved.store(0, Relaxed);
                return false;
            }
        }
    }

    /// Whether the wait that begins now comes long after the last one, where a spin lasts so many microseconds at most.
    fn is_idle(&self, now: u64, longest: u64) -> bool {
        let last = self.last.load(Relaxed);
        self.last.store(now, Relaxed);
        last != 0 && now.saturating_sub(last) > IDLE * longest * clock::ticks_per_us()
    }

    /// A spin has found something. After many waits without, that is a new start.
    fn found(&self, lost: i32, full: i32, gave_up: bool, here: bool) {
        let lost = if gave_up { lost.min(0) } else { lost };
        self.lost.store((lost - GAIN_US).max(-full.saturating_mul(SAVED_MAX)), Relaxed);
        self.vain.store(0, Relaxed);
        if here {
            self.moved.store(1, Relaxed);
        }
    }

    /// Whether this wait is one without a spin, where spins have been given up.
    fn skips(&self, here: bool) -> bool {
        let [first, later] = SKIPS;
        let skips = match self.vain.load(Relaxed) {
            _ if here => SKIPS_HERE,
            0 | 1 => first,
            _ => later,
        };
        if self.skipped.fetch_add(1, Relaxed) + 1 < skips {
            return true;
        }
        self.skipped.store(0, Relaxed);
        false
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

/// A time-out of the socket, SO_RCVTIMEO or SO_SNDTIMEO, if it has one.
fn time_out(fd: c_int, option: c_int) -> Option<libc::timeval> {
    sys::getsockopt::<libc::timeval>(fd, option).ok().filter(|limit| limit.tv_sec != 0 || limit.tv_usec != 0)
}

/// Whether a receive's next sleep is to be in [`for_event`]. The kernel returns what a call has when a signal comes, whatever SA_RESTART says, and
/// so does poll(2). Nor does poll care about O_NONBLOCK, which another thread has set since the call began to wait; and its time-out can be what
/// is left of the call's.
pub(super) fn is_in_poll(call: &Call<'_, '_>, slot: &Slot) -> bool {
    call.got > 0 || slot.nonblocking.load(Relaxed) != 0 || (call.patience.again && time_out(call.fd, libc::SO_RCVTIMEO).is_some())
}

/// What is left of a time-out that began at `since`, in ticks; all of it if that is 0. The kernel's is for a whole call, however often that is woken.
fn left(limit: libc::timeval, since: u64) -> libc::timespec {
    let limit_us = u64::try_from(limit.tv_sec).unwrap_or(0).saturating_mul(1_000_000).saturating_add(limit.tv_usec.cast_unsigned());
    let elapsed_us = if since == 0 { 0 } else { clock::ticks().saturating_sub(since) / clock::ticks_per_us() };
    let left_us = limit_us.saturating_sub(elapsed_us).cast_signed();
    libc::timespec { tv_sec: left_us / 1_000_000, tv_nsec: left_us % 1_000_000 * 1000 }
}

/// Waits in libc's `poll` for an event of one descriptor, or its end, as long as the socket's own time-out (SO_RCVTIMEO for
/// input, SO_SNDTIMEO for output) allows, which began at `since`. Unlike a blocking receive or send it ends with every signal. False if the descriptor was closed
/// meanwhile: then the kernel does not say whether an event or a signal has ended the wait.
///
/// # Errors
/// EINTR; EAGAIN after the time-out.
pub(crate) fn for_event(fd: c_int, events: i16, since: u64) -> Result<bool> {
    let option = if events & libc::POLLOUT != 0 { libc::SO_SNDTIMEO } else { libc::SO_RCVTIMEO };
    let limit = time_out(fd, option).map(|limit| left(limit, since));
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let time = limit.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: one live entry, a live or no time, and no signal mask.
    match errno::from_int(unsafe { next::ppoll(&raw mut entry, 1, time, core::ptr::null()) })? {
        0 => Err(Errno::AGAIN),
        _ => Ok(entry.revents & libc::POLLNVAL == 0),
    }
}
