//! A sleep that takes the doorbell that wakes it.
//!
//! Whoever shares an end with others must leave doorbells to them, and takes them when the ring is known to be empty: two system calls more for each
//! sleep, on the way of the very message if both ends share a CPU. A receive of a process with one thread, on an end that no relative and no epoll
//! set has too, need not: nobody else can rely on its doorbell.
//!
//! But it can be interrupted. Between the kernel's taking the byte and our counting it a signal handler may use the same stream, or leave the
//! receive by a jump; so the byte goes to a place that whoever takes the receiving lock next looks at, and counts what it finds there
//! ([`LoneSleep::account`]). And a handler may read up to the ring's end, or give the ring up, before the kernel restarts the receive: then what comes
//! is the program's, which [`doorbell::took_programs`] finds out by its position, and the receive keeps it.

#![allow(unsafe_code, reason = "a place that the kernel writes to, and the caller's memory")]

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use tssx_core::doorbell;
use tssx_core::ledger::layout::Slot;
use tssx_core::segment::Segment;

use super::receive::{Call, Step};
use super::wait;
use crate::endpoint::{Endpoint, Locked};
use crate::errno::Result;
use crate::next;

/// In the place of a byte, as long as none has come. Doorbells are zero; a byte of the program's that looks like this is known by the system
/// call's result alone, see [`LoneSleep::end`].
const NOTHING: u8 = 0xaa;

/// Nobody sleeps alone.
const IDLE: u32 = 0;
/// Somebody does, and nothing that it has taken is counted.
const ASLEEP: u32 = 1;
/// It has taken a doorbell, which is counted.
const DOORBELL: u32 = 2;
/// It has taken a byte of the program's, which the receive counts when it keeps it.
const PROGRAMS: u32 = 3;

/// The one sleep of an endpoint that takes its doorbell. Zero is the state without.
pub(crate) struct LoneSleep {
    state: AtomicU32,
    byte: UnsafeCell<u8>,
    /// What the count of doorbells is once this one is among them; 0 as long as nobody has said.
    counted: AtomicU64,
}

// SAFETY: `byte` is written by the one sleeper under the receiving lock, and by the kernel within that sleeper's system call; it is read under the
// lock, by a volatile access. The sleeper is the process's only thread.
unsafe impl Sync for LoneSleep {}

impl LoneSleep {
    /// Forgets a sleep that its frame was left in without a word.
    pub(crate) fn reset(&self) {
        self.state.store(IDLE, Relaxed);
    }

    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.state.load(Relaxed) != IDLE
    }

    /// Under the receiving lock, once it is [announced](doorbell::announce_alone).
    pub(super) fn begin(&self) {
        // SAFETY: nobody else sleeps here, see `may_begin`, so the kernel does not write.
        unsafe { self.byte.get().write_volatile(NOTHING) };
        self.counted.store(0, Relaxed);
        self.state.store(ASLEEP, Relaxed);
    }

    /// Blocks until there is a byte, and takes it; 0 at the end of file.
    pub(super) fn block(&self, fd: c_int) -> Result<usize> {
        // SAFETY: endpoints are never unmapped, and only the one sleeper comes here.
        unsafe { wait::take_one(fd, self.byte.get()) }
    }

    /// What was taken, if anything was.
    fn byte(&self) -> Option<u8> {
        // SAFETY: aligned, never unmapped; the kernel writes it within a system call of this thread, never while code of this thread runs.
        let byte = unsafe { self.byte.get().read_volatile() };
        (byte != NOTHING).then_some(byte)
    }

    /// Under the receiving lock: the sleep is over. The byte that it has taken, if that is the program's. `took`: the system call said that it has
    /// taken one. If nobody has found it in its place, it is the one that looks like none.
    pub(super) fn end(&self, slot: &Slot, segment: &Segment, took: bool) -> Option<u8> {
        let byte = match self.state.load(Relaxed) {
            PROGRAMS => self.byte(),
            ASLEEP if took && doorbell::took_programs(slot, segment) => Some(NOTHING),
            ASLEEP if took => {
                doorbell::count_taken(slot, segment, NOTHING, slot.doorbell_rx_bytes.load(Relaxed));
                None
            }
            _ => None,
        };
        self.reset();
        byte
    }

    /// Under the receiving lock, before anything else: counts what the sleep has taken. A handler that interrupts this does it too: both say first
    /// what the count will be, and only one gets it there.
    #[cold]
    pub(crate) fn account(&self, slot: &Slot, segment: &Segment) {
        let before = slot.doorbell_rx_bytes.load(Relaxed);
        let Some(byte) = self.byte().filter(|_| self.state.load(Relaxed) == ASLEEP) else { return };
        if doorbell::took_programs(slot, segment) {
            // Not if a handler has counted it since we looked, and has then read up to behind the ring's end: it was a doorbell.
            let _ = self.state.compare_exchange(ASLEEP, PROGRAMS, Relaxed, Relaxed);
            return;
        }
        let after = match self.counted.load(Relaxed) {
            0 => before.wrapping_add(1),
            after => after,
        };
        self.counted.store(after, Relaxed);
        doorbell::count_taken(slot, segment, byte, after.wrapping_sub(1));
        self.state.store(DOORBELL, Relaxed);
    }
}

/// Whether nobody but this call can rely on the doorbell that it is about to announce itself for; and whether its byte could be the call's own, if
/// it turns out to be the program's: a plain read, which gives descriptors that come with it up.
pub(super) fn may_begin(call: &Call<'_, '_>, rx: &Locked) -> bool {
    call.got == 0
        && call.message.is_null()
        && !call.peeks()
        && next::is_single_threaded()
        && !rx.is_nested()
        && rx.slot.nonblocking.load(Relaxed) == 0
        && rx.slot.rx_waiters.load(Relaxed) == 0
        && rx.slot.holder_count() == 1
        && !rx.endpoint.watchers.any()
        && !rx.endpoint.lone.is_any()
}

/// The call keeps a byte of the program's that its sleep has taken, and goes on behind it.
pub(super) fn keep(call: &mut Call<'_, '_>, slot: &Slot, byte: u8) -> Step {
    slot.kernel_rx_bytes.fetch_add(1, Relaxed);
    slot.kernel_rx_calls.fetch_add(1, Relaxed);
    // SAFETY: `walk` passes an address of the memory that the program has given for this very byte.
    call.got += call.parts.walk(0, 1, |to, length| unsafe {
        to.write(byte);
        length
    });
    Step::Again
}

/// Whether a signal handler has made others share `endpoint` during the sleep: a forked child, or an epoll set. They have not heard the doorbell
/// that it has taken.
pub(super) fn is_shared_since(endpoint: &Endpoint, slot: &Slot) -> bool {
    endpoint.watchers.any() || slot.holder_count() != 1
}
