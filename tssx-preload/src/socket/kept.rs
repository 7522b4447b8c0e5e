//! A receive that was asleep while its descriptor was closed, in a process that can have no other: what has come into the ring is had without one.
//! A kernel's receive keeps the file itself.

use core::sync::atomic::Ordering::Relaxed;

use tssx_core::ledger::layout::MODE_RING;
use tssx_core::ring::consumer::Consumer;

use super::receive::{Call, Taken, no_ancillary, take};
use crate::endpoint::{Locked, NO_DESCRIPTOR, Way};
use crate::errno::{Errno, Result};

/// The end of such a call, which cannot wait any more.
#[cold]
pub(super) fn rest_without_descriptor(call: &mut Call<'_, '_>) -> Result<usize> {
    call.fd = NO_DESCRIPTOR;
    let rx = call.pin.as_ref().and_then(|pin| pin.lock(Way::Rx));
    let fault = rx.is_some_and(|rx| !take_from_ring(call, &rx));
    let result = match call.got {
        0 if fault => Err(Errno(libc::EFAULT)),
        0 => call.waited,
        got => Ok(got),
    };
    if !call.told {
        no_ancillary(call.fd, call.message, call.flags, result, call.interrupted);
    }
    result
}

/// False if the program's memory cannot be written.
fn take_from_ring(call: &mut Call<'_, '_>, rx: &Locked) -> bool {
    let Some(segment) = rx.segment.filter(|_| rx.slot.rx_mode.load(Relaxed) == MODE_RING) else { return true };
    loop {
        let Ok(consumer) = Consumer::open(&segment) else { return true };
        if consumer.available() == 0 || !call.has_room() {
            return true;
        }
        match take(call, rx, &segment, consumer) {
            Taken::Disturbed => {}
            Taken::Fault => return false,
            Taken::Some { .. } => return true,
        }
    }
}
