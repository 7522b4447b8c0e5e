//! How long a call looks at a ring that its peer may change all the time.
//!
//! A call looks again when what it saw was not so any more: a signal handler has used the ring, another thread was faster. All that ends by
//! itself, but a peer can make it so at every look, and then a call that must not wait would not end as long as the peer goes on.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::ledger::layout::MODE_FINAL;
use tssx_core::{clock, sys};

use super::{fallback, options};
use crate::endpoint::{Way, lock_stream};

/// Looks without getting anywhere, and without a sleep, after which it is the peer's doing. Handlers and threads need a few.
const LOOKS_MAX: u32 = 10_000;
/// Looks at a peer that says it is gone, and is not, before each costs a rest; and how many rests there are.
const GONE_LOOKS: u32 = 100;
const GONE_RESTS: u32 = 4;
/// One such rest, microseconds.
const REST_US: u32 = 500;

/// What one call has left.
#[derive(Debug, Default)]
pub(super) struct Patience {
    looks: u32,
    /// Bytes that the call had at the last look.
    moved: usize,
    /// Looks at a peer that says it is gone.
    gone: u32,
    /// When the call has gone to sleep first, in ticks; 0 as long as it has not.
    pub(super) since: u64,
    /// Whether it sleeps not for the first time.
    pub(super) again: bool,
}

impl Patience {
    /// Before another look of a call that has moved so many bytes. False: it has looked too often.
    #[inline]
    pub(super) fn allows(&mut self, moved: usize) -> bool {
        if moved != self.moved {
            (self.looks, self.moved) = (0, moved);
        }
        self.looks += 1;
        self.looks <= LOOKS_MAX
    }

    /// Before a sleep. A time-out is for all of a call's together.
    pub(super) fn falls_asleep(&mut self) {
        self.again = self.since != 0;
        if !self.again {
            self.since = clock::ticks();
        }
    }

    /// The call has slept: whoever has woken it has done as much.
    pub(super) fn slept(&mut self) {
        self.looks = 0;
    }

    /// The peer says that it reads no more, which it does right before it is so; the kernel says that it does. Waits a moment. If it is still
    /// not so, it is made so: no more can be sent, as if the peer had done what it says.
    pub(super) fn awaits_leaver(&mut self, fd: c_int) {
        self.gone += 1;
        if self.gone <= GONE_LOOKS {
            sys::yield_now();
        } else if self.gone <= GONE_LOOKS + GONE_RESTS {
            sys::rest(REST_US);
        } else {
            if let Some(tx) = lock_stream(fd, Way::Tx) {
                fallback::count_corrupt(tx.slot);
            }
            options::shut_down_sending(fd);
        }
    }
}

/// The peer never stood still: the connection is reset.
#[cold]
pub(super) fn end(fd: c_int) {
    if let Some(rx) = lock_stream(fd, Way::Rx) {
        fallback::mark_corrupt(fd, rx.slot);
        rx.slot.rx_mode.store(MODE_FINAL, Relaxed); // what follows is the kernel's end of file
    }
}
