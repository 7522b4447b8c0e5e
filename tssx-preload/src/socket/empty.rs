//! An empty ring: a receive that must not wait asks the kernel for the end of file and errors; one that may wait spins as long as
//! it pays, and then sleeps in libc's own call on the real socket.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::doorbell::{self, Drained};
use tssx_core::ledger::layout::Slot;
use tssx_core::segment::Segment;
use tssx_core::{switchover, sys, whereabouts};

use super::abandon::guarded;
use super::lone::{self, LoneSleep};
use super::receive::{Call, Step, announce_for_others, holds_bytes};
use super::{alive, recall, reset, wait};
use crate::endpoint::{Endpoint, Locked, Way, lock_stream};
use crate::errno::{Errno, Result};

/// Non-blocking and empty: end of file and errors are the kernel's to tell.
pub(super) fn look_at_kernel(call: &Call<'_, '_>, rx: &Locked, segment: &Segment) -> Step {
    match ask(call, rx.endpoint, rx.slot, segment) {
        Step::Return(Err(Errno::AGAIN)) => call.finish(Err(Errno::AGAIN)),
        end => end,
    }
}

/// Takes the doorbells that nobody needs and looks behind them. EAGAIN if there is nothing.
fn ask(call: &Call<'_, '_>, endpoint: &Endpoint, slot: &Slot, segment: &Segment) -> Step {
    let stale = doorbell::waiting(call.fd);
    if stale > 0 {
        announce_for_others(endpoint, slot, segment);
    }
    if holds_bytes(segment) {
        return Step::Again;
    }
    let drained = doorbell::drain(call.fd, slot, segment, stale);
    recall::answer_if_due(call.fd, slot, segment);
    if holds_bytes(segment) {
        if let Drained::Failed(errno) = drained {
            reset::owe(slot, errno);
        }
        return Step::Again;
    }
    match drained {
        Drained::Empty(_) => Step::Return(Err(Errno::AGAIN)),
        Drained::EndOfFile => call.finish(reset::end_of_file(call.fd, slot, segment)),
        Drained::Failed(errno) => call.finish(reset::failed(slot, segment, errno)),
    }
}

/// Blocking and empty.
pub(super) fn wait_for_bytes(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let (endpoint, slot) = (rx.endpoint, rx.slot);
    call.keep(&rx);
    drop(rx);
    if endpoint.spin.spin_for_peer(whereabouts::peer_is_here(segment), || holds_bytes(segment)) {
        slot.spin_hits.fetch_add(1, Relaxed);
        alive::seen(endpoint);
        return Step::Again;
    }
    let Some(rx) = lock_stream(call.fd, Way::Rx).filter(|rx| core::ptr::eq(rx.endpoint, endpoint)) else {
        return Step::Again;
    };
    call.patience.falls_asleep();
    sleep(call, rx, segment, endpoint)
}

/// Announces, looks again, and blocks in the kernel. See tssx-core's doorbell.rs for why no wake-up is lost.
fn sleep(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment, endpoint: &'static Endpoint) -> Step {
    let slot = rx.slot;
    let stale = if call.woken { doorbell::waiting(call.fd) } else { doorbell::stale(slot, segment) };
    if stale > 0 {
        announce_for_others(endpoint, slot, segment);
    }
    if holds_bytes(segment) {
        return Step::Again;
    }
    if stale > 0 {
        doorbell::take_doorbells(call.fd, slot, segment, stale);
    }
    // Before the announcement, which a handler of this thread may otherwise use up.
    let alone = lone::may_begin(call, &rx);
    slot.rx_waiters.fetch_add(1, Relaxed);
    let alone = alone && doorbell::announce_alone(segment);
    if !alone {
        doorbell::announce(segment);
    }
    recall::answer_if_due(call.fd, slot, segment);
    if holds_bytes(segment) {
        woken(endpoint, slot, segment, alone, false);
        return Step::Again;
    }
    if alone {
        endpoint.lone.begin();
    }
    slot.sleeps.fetch_add(1, Relaxed);
    drop(rx);
    let undo = || {
        let guard = endpoint.lock(slot, Way::Rx);
        woken(endpoint, slot, segment, alone, false);
        drop(guard);
        endpoint.unpin();
    };
    let waited = guarded(&undo, || block(call, slot, alone.then_some(&endpoint.lone)));
    call.waited = waited.and_then(|waited| if waited == Waited::End { Ok(0) } else { call.waited });
    call.follow();
    let _guard = endpoint.lock(slot, Way::Rx);
    if let Some(byte) = woken(endpoint, slot, segment, alone, waited == Ok(Waited::Something)) {
        return lone::keep(call, slot, byte);
    }
    if let Err(errno @ (Errno(libc::EINTR) | Errno::AGAIN)) = waited {
        call.interrupted = Some(errno);
        if segment.rx().head.load(Relaxed) != segment.rx().tail.load(Acquire) || switchover::kernel_follows(call.fd, slot, segment)
        {
            return Step::Again; // what has come meanwhile, perhaps behind the ring's end, is taken first
        }
        return call.finish(Err(errno));
    }
    if holds_bytes(segment) {
        if let Err(errno) = waited {
            reset::owe(slot, errno);
        }
        return Step::Again;
    }
    match waited {
        Ok(Waited::End) => call.finish(reset::end_of_file(call.fd, slot, segment)),
        Ok(Waited::Something) => {
            recall::look_elsewhere(segment);
            call.woken = true;
            Step::Again
        }
        Ok(Waited::Event | Waited::Closed) => after_event(call, endpoint, slot, segment, waited == Ok(Waited::Closed)),
        Err(errno) => call.finish(reset::failed(slot, segment, errno)),
    }
}

/// One sleeper fewer; under the receiving lock. If it was `alone`: the byte of the program's that it has taken, if it has. `took`: that the kernel
/// has said so of some byte.
fn woken(endpoint: &'static Endpoint, slot: &Slot, segment: &Segment, alone: bool, took: bool) -> Option<u8> {
    whereabouts::tell(segment);
    let before = slot.rx_waiters.load(Relaxed);
    slot.rx_waiters.store(before.saturating_sub(1), Relaxed);
    if !alone {
        return None;
    }
    doorbell::awake(segment);
    if lone::is_shared_since(endpoint, slot) {
        announce_for_others(endpoint, slot, segment);
        endpoint.watchers.call_attention(endpoint);
    }
    endpoint.lone.end(slot, segment, took)
}

/// What a sleep ended with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// End of file.
    End,
    /// There is a byte: most likely a doorbell.
    Something,
    /// poll(2) says that there is something to see.
    Event,
    /// The descriptor was closed meanwhile, and poll(2) does not say what has ended the wait.
    Closed,
}

fn block(call: &Call<'_, '_>, slot: &Slot, lone: Option<&LoneSleep>) -> Result<Waited> {
    if wait::is_in_poll(call, slot) {
        return wait::for_event(call.fd, libc::POLLIN, call.patience.since)
            .map(|open| if open { Waited::Event } else { Waited::Closed });
    }
    let waited = lone.map_or_else(|| wait::look_for_one(call.fd), |lone| lone.block(call.fd));
    waited.map(|count| if count == 0 { Waited::End } else { Waited::Something })
}

/// Woken in poll with an empty ring: the end, an error, or a doorbell that was too late or is another sleeper's.
fn after_event(call: &mut Call<'_, '_>, endpoint: &Endpoint, slot: &Slot, segment: &Segment, closed: bool) -> Step {
    match ask(call, endpoint, slot, segment) {
        Step::Return(Err(Errno::AGAIN)) => {
            if closed {
                call.interrupted = Some(Errno(libc::EINTR)); // nothing to see, so it was a signal
            }
            sys::yield_now();
            Step::Again
        }
        step => step,
    }
}
