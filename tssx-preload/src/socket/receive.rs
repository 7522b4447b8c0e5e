//! Receiving: `read`, `recv`, `recvmsg` and their relatives, on a selected stream.
//!
//! Where the next byte comes from is decided under the receiving lock: the kernel socket (not switched yet, or back), or
//! the ring. An empty ring says nothing about end of file or errors: those are the kernel's, and are asked for only
//! then; bytes in the ring always come first, because a peer publishes before it closes.

#![allow(unsafe_code, reason = "hands the caller's memory to the ring")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::doorbell::Drained;
use tssx_core::layout::{ASLEEP_EATER, ASLEEP_WATCHER, CONSENT_GIVEN, STATE_ENDED};
use tssx_core::ledger::layout::{MODE_FINAL, MODE_KERNEL, MODE_RING, Slot};
use tssx_core::ring::consumer::Consumer;
use tssx_core::segment::Segment;
use tssx_core::{doorbell, switchover};

use super::{crossing, establish, fallback, recall, reset, wait};
use crate::endpoint::{Endpoint, Locked, Way, lock_stream};
use crate::errno::{self, Errno, Result};
use crate::user_buf::Parts;

/// One call of the program: what it asked for and what it has so far.
pub(super) struct Call<'a, 'p> {
    pub(super) fd: c_int,
    /// The `recvmsg` header, for ancillary data that comes with kernel bytes; null for the other calls.
    pub(super) message: *mut libc::msghdr,
    pub(super) parts: &'a Parts<'p>,
    pub(super) flags: c_int,
    pub(super) got: usize,
}

/// What a step led to.
pub(super) enum Step {
    /// Look again.
    Again,
    /// The call is over.
    Return(Result<usize>),
    /// Not ours to answer: make the program's own call on the kernel socket.
    Kernel(Locked),
}

impl Call<'_, '_> {
    pub(super) fn peeks(&self) -> bool {
        self.flags & libc::MSG_PEEK != 0
    }

    /// Bytes that satisfy the call: all with MSG_WAITALL, else any.
    fn satisfied(&self) -> bool {
        self.got >= self.parts.total() || (self.got > 0 && (self.flags & libc::MSG_WAITALL == 0 || self.peeks()))
    }

    /// What the call returns when nothing more can be had: what it has, else `otherwise`.
    pub(super) fn finish(&self, otherwise: Result<usize>) -> Step {
        Step::Return(if self.got > 0 { Ok(self.got) } else { otherwise })
    }

    pub(super) fn blocks(&self, slot: &Slot) -> bool {
        self.flags & libc::MSG_DONTWAIT == 0 && slot.nonblocking.load(Relaxed) == 0
    }
}

/// Flags that only the kernel can answer.
const KERNEL_FLAGS: c_int = libc::MSG_OOB | libc::MSG_ERRQUEUE;

/// Receives into `parts` from the stream at `fd`. `plain` is the program's own call, made where the kernel carries the bytes.
/// `message` is `recvmsg`'s header or null.
pub(crate) fn receive(
    fd: c_int,
    parts: &Parts<'_>,
    flags: c_int,
    message: *mut libc::msghdr,
    plain: impl Fn() -> isize,
) -> Result<usize> {
    let mut call = Call { fd, message, parts, flags, got: 0 };
    loop {
        let Some(rx) = lock_stream(fd, Way::Rx) else {
            return if call.got > 0 { Ok(call.got) } else { errno::from_bytes(plain()) };
        };
        if parts.total() == 0 || flags & KERNEL_FLAGS != 0 {
            drop(rx);
            return errno::from_bytes(plain());
        }
        if rx.segment.is_some_and(|segment| recall::is_due(rx.slot, &segment)) {
            recall::answer(fd);
        }
        let in_ring = rx.slot.rx_mode.load(Relaxed) == MODE_RING;
        let step = match (rx.slot.rx_mode.load(Relaxed), rx.segment) {
            (MODE_RING, Some(segment)) => from_ring(&mut call, rx, &segment),
            (MODE_KERNEL, Some(segment)) if segment.rx().consent.load(Relaxed) == CONSENT_GIVEN => {
                crossing::step(&mut call, rx, &segment)
            }
            _ => Step::Kernel(rx),
        };
        match step {
            Step::Again => {}
            Step::Return(result) => {
                if in_ring {
                    no_ancillary_data(fd, message);
                }
                return result;
            }
            Step::Kernel(rx) if call.got == 0 => return through_kernel(fd, rx, flags, &plain),
            Step::Kernel(_) => return Ok(call.got),
        }
    }
}

/// `recv` and `recvmsg` with room for nothing: they wait, fail and end as others do, and return 0 once there is something.
pub(crate) fn receive_nothing(fd: c_int, flags: c_int, plain: impl Fn() -> isize) -> Result<usize> {
    let in_ring = lock_stream(fd, Way::Rx).is_some_and(|rx| rx.slot.rx_mode.load(Relaxed) == MODE_RING);
    if !in_ring || flags & KERNEL_FLAGS != 0 {
        return errno::from_bytes(plain());
    }
    let mut byte = [0_u8];
    let parts = crate::user_buf::single((&raw mut byte).cast(), 1);
    receive(fd, &Parts::new(&parts)?, flags | libc::MSG_PEEK, core::ptr::null_mut(), plain).map(|_| 0)
}

/// What `recvmsg` says besides the bytes when they came from a ring: no control messages, no flags, and the peer's name.
fn no_ancillary_data(fd: c_int, message: *mut libc::msghdr) {
    // SAFETY: null, or the header that the program passed to recvmsg(2), which writes it.
    let Some(message) = (unsafe { message.as_mut() }) else { return };
    message.msg_controllen = 0;
    message.msg_flags = 0;
    if !message.msg_name.is_null() {
        // SAFETY: the program says how much room there is.
        message.msg_namelen = unsafe { peer_name(fd, message.msg_name.cast(), message.msg_namelen) };
    }
}

/// The peer's address as recvfrom(2) gives it on a connected stream: nothing for a peer that has no name.
///
/// # Safety
/// `address` must be writable for `room` bytes.
pub(crate) unsafe fn peer_name(fd: c_int, address: *mut libc::sockaddr, room: libc::socklen_t) -> libc::socklen_t {
    let mut length = room;
    // SAFETY: the caller's promise.
    let unnamed =
        unsafe { libc::getpeername(fd, address, &raw mut length) } < 0 || length as usize <= size_of::<libc::sa_family_t>();
    if unnamed { 0 } else { length }
}

/// The program's own call on the kernel socket, counted.
fn through_kernel(fd: c_int, rx: Locked, flags: c_int, plain: &impl Fn() -> isize) -> Result<usize> {
    let endpoint = rx.endpoint;
    let (pin, slot) = (rx.pin(), rx.slot);
    slot.kernel_rx_inflight.fetch_add(1, Relaxed);
    drop(rx);
    let mut result = errno::from_bytes(plain());
    {
        let _guard = tssx_core::lock::acquire(&slot.rx_lock, crate::process::pid());
        let before = slot.kernel_rx_inflight.load(Relaxed);
        slot.kernel_rx_inflight.store(before.saturating_sub(1), Relaxed);
        if let Ok(received) = result
            && received > 0
            && flags & libc::MSG_PEEK == 0
        {
            slot.kernel_rx_bytes.fetch_add(received as u64, Relaxed);
            slot.kernel_rx_calls.fetch_add(1, Relaxed);
        }
        if let (Err(errno), Some(segment)) = (result, endpoint.segment(slot)) {
            result = reset::failed(slot, &segment, errno);
        }
    }
    establish::after_kernel_operation(fd, endpoint);
    drop(pin);
    result
}

fn from_ring(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let Ok(consumer) = Consumer::open(segment) else {
        fallback::mark_corrupt(call.fd, rx.slot);
        rx.slot.rx_mode.store(MODE_FINAL, Relaxed); // what follows is the kernel's end of file
        return call.finish(Err(Errno(libc::ECONNRESET)));
    };
    if consumer.available() > 0 {
        let emptied = take(call, &rx, segment, consumer);
        // Bytes that came before the doorbells were taken rang none of their own: a program that waits for the next edge after
        // a short read must be given them now.
        let more = emptied && call.got < call.parts.total() && holds_bytes(segment);
        return if call.satisfied() && !more { Step::Return(Ok(call.got)) } else { Step::Again };
    }
    if switchover::try_resume(call.fd, rx.slot, segment) {
        return Step::Again;
    }
    if segment.rx().state.load(Acquire) == STATE_ENDED {
        return at_false_end(call, &rx, segment);
    }
    if call.blocks(rx.slot) { wait_for_bytes(call, rx, segment) } else { look_at_kernel(call, &rx, segment) }
}

/// The ring has ended, but not where it is empty: bytes that came just before the end, or a lie.
fn at_false_end(call: &Call<'_, '_>, rx: &Locked, segment: &Segment) -> Step {
    // The tail is final once the state says so.
    if segment.rx().tail.load(Acquire) != segment.rx().head.load(Relaxed) || switchover::try_resume(call.fd, rx.slot, segment) {
        return Step::Again;
    }
    fallback::mark_corrupt(call.fd, rx.slot);
    rx.slot.rx_mode.store(MODE_FINAL, Relaxed);
    call.finish(Err(Errno(libc::ECONNRESET)))
}

/// Copies out and frees the space. True if the ring was emptied and the doorbells behind it taken.
fn take(call: &mut Call<'_, '_>, rx: &Locked, segment: &Segment, mut consumer: Consumer<'_>) -> bool {
    // SAFETY: `walk` passes addresses of the caller's memory, which recv(2) requires to be writable.
    let count = call.parts.walk(call.got, usize::MAX, |to, length| unsafe { consumer.copy_out(to, length) });
    if call.peeks() {
        call.got += count;
        return false;
    }
    let (before, after) = consumer.publish();
    let released = doorbell::should_release(segment, before, after) && (after == 0 || nobody_waits(rx));
    if released {
        doorbell::take_doorbells(call.fd, rx.slot, segment);
        rearm(rx.endpoint, segment);
    }
    rx.slot.ring_rx_bytes.fetch_add(count as u64, Relaxed);
    rx.slot.ring_rx_calls.fetch_add(u64::from(call.got == 0), Relaxed);
    call.got += count;
    released && after == 0
}

/// Whether nobody else may be asleep or waking up: while the ring holds bytes, the doorbell is theirs, and the producer's junk,
/// which cannot be told from it, stays until the ring is empty. Epoll sets are told to look at this stream first: a thread
/// that goes to wait counts itself asleep and then looks whether it was told, we tell and then look who is asleep.
fn nobody_waits(rx: &Locked) -> bool {
    rx.endpoint.watchers.call_attention();
    rx.slot.rx_waiters.load(Relaxed) == 0 && !rx.endpoint.watchers.any_asleep()
}

/// After doorbells were taken: an epoll set of ours may rely on the kernel to tell it of the next bytes.
fn rearm(endpoint: &Endpoint, segment: &Segment) {
    if endpoint.watchers.any() {
        doorbell::announce(segment, ASLEEP_WATCHER);
    }
}

/// Non-blocking and empty: end of file and errors are the kernel's to tell.
fn look_at_kernel(call: &Call<'_, '_>, rx: &Locked, segment: &Segment) -> Step {
    let drained = doorbell::drain(call.fd, rx.slot, segment);
    if matches!(drained, Drained::Empty(1..)) {
        rearm(rx.endpoint, segment);
    }
    if holds_bytes(segment) {
        return Step::Again;
    }
    match drained {
        Drained::Empty(_) => call.finish(Err(Errno::AGAIN)),
        Drained::EndOfFile => call.finish(reset::end_of_file(call.fd, rx.slot, segment)),
        Drained::Failed(errno) => call.finish(reset::failed(rx.slot, segment, errno)),
    }
}

/// Something to read, or the ring's end: in both cases a reader should look instead of sleeping.
pub(super) fn holds_bytes(segment: &Segment) -> bool {
    let (head, tail) = (segment.rx().head.load(Relaxed), segment.rx().tail.load(Acquire));
    head != tail || segment.rx().state.load(Acquire) == STATE_ENDED
}

fn wait_for_bytes(call: &Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let (endpoint, slot) = (rx.endpoint, rx.slot);
    let pin = rx.pin();
    drop(rx);
    if endpoint.spin.spin(|| holds_bytes(segment)) {
        slot.spin_hits.fetch_add(1, Relaxed);
        return Step::Again;
    }
    let Some(rx) = lock_stream(call.fd, Way::Rx).filter(|rx| core::ptr::eq(rx.endpoint, endpoint)) else {
        return Step::Again;
    };
    let step = sleep(call, rx, segment, endpoint);
    drop(pin);
    step
}

/// Announces, looks again, and blocks in the kernel. See tssx-core's doorbell.rs for why no wake-up is lost.
fn sleep(call: &Call<'_, '_>, rx: Locked, segment: &Segment, endpoint: &'static Endpoint) -> Step {
    let slot = rx.slot;
    // The only sleeper takes its doorbell with it; with more, or when the ring's bytes are only looked at, the byte stays for
    // all, and stale ones must go first, or nobody would sleep.
    let alone = slot.rx_waiters.fetch_add(1, Relaxed) == 0;
    let writer_waits = segment.rx().writer_waiting.load(Relaxed) != 0;
    if (!alone || writer_waits) && doorbell::outstanding(slot, segment) {
        doorbell::take_doorbells(call.fd, slot, segment);
    }
    doorbell::announce(segment, if alone { ASLEEP_EATER } else { ASLEEP_WATCHER });
    if holds_bytes(segment) {
        slot.rx_waiters.fetch_sub(1, Relaxed);
        return Step::Again;
    }
    slot.sleeps.fetch_add(1, Relaxed);
    drop(rx);
    let (result, byte) = wait::receive_one(call.fd, !alone);
    let _guard = tssx_core::lock::acquire(&slot.rx_lock, crate::process::pid());
    let before = slot.rx_waiters.load(Relaxed);
    slot.rx_waiters.store(before.saturating_sub(1), Relaxed);
    if alone && result == Ok(1) {
        rearm(endpoint, segment);
        if count_taken(slot, segment) {
            let byte = [byte];
            let placed = call.parts.walk(call.got, 1, |to, _| {
                // SAFETY: one byte into the caller's memory, at an address `walk` vouches for.
                unsafe { to.write(byte[0]) };
                1
            });
            return Step::Return(Ok(call.got + placed));
        }
    }
    if holds_bytes(segment) {
        return Step::Again;
    }
    match result {
        Ok(0) => call.finish(reset::end_of_file(call.fd, slot, segment)),
        Ok(_) => Step::Again,
        Err(errno) => call.finish(reset::failed(slot, segment, errno)),
    }
}

/// Counts a byte that a sleeper took from the kernel's queue. True if it is the program's: the ring had ended meanwhile, and all
/// doorbells sent before were taken.
fn count_taken(slot: &Slot, segment: &Segment) -> bool {
    let taken = slot.kernel_rx_bytes.load(Relaxed).wrapping_add(slot.doorbell_rx_bytes.load(Relaxed));
    if segment.rx().state.load(Acquire) == STATE_ENDED && taken >= segment.rx().resume_at.load(Relaxed) {
        slot.kernel_rx_bytes.fetch_add(1, Relaxed);
        slot.kernel_rx_calls.fetch_add(1, Relaxed);
        slot.rx_mode.store(MODE_FINAL, Relaxed);
        return true;
    }
    slot.doorbell_rx_bytes.fetch_add(1, Relaxed);
    slot.doorbell_rx_calls.fetch_add(1, Relaxed);
    false
}

/// Receives by the program's own call on a stream whose receiving direction is on the kernel socket, and counts it.
pub(crate) fn receive_plainly(fd: c_int, plain: impl Fn() -> isize) -> Result<usize> {
    match lock_stream(fd, Way::Rx) {
        Some(rx) => through_kernel(fd, rx, 0, &plain),
        None => errno::from_bytes(plain()),
    }
}
