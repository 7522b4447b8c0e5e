//! Copying a write into the ring, so that a signal handler may write to the same stream in the middle of it.
//!
//! A handler that interrupts the copy cannot wait for it, and cannot put its bytes where the copy, when it goes on, will still
//! write. So a copy first says what it is about to do ([`Job`]), and a handler that finds a job unfinished does it: it copies the
//! same bytes to the same place, publishes them, and writes its own behind them. When the interrupted copy goes on, it
//! writes what is there already, finds that the position has moved, and is done. Meanwhile nobody may write a whole ring
//! further, over that place: until the copy has ended, its bytes count as unread ([`room`]).
//!
//! All of this happens on one thread, in the order of its instructions; compiler fences are enough.

#![allow(unsafe_code, reason = "hands the caller's memory to the ring, and finds the interrupted caller's")]

use core::cell::Cell;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::compiler_fence;

use tssx_core::ring::producer::Producer;
use tssx_core::segment::Segment;

use crate::endpoint::{Endpoint, Locked};
use crate::user_buf::Parts;

/// A copy into the ring that has begun. Lies on the stack of whoever makes it.
pub(crate) struct Job<'a> {
    parts: Parts<'a>,
    /// Which of the bytes: from where on, and how many.
    from: usize,
    length: usize,
    /// Ring position at which they begin.
    tail: u64,
    /// Ring position that lies at the ring's first byte.
    base: u64,
    /// A signal handler has done it.
    done: Cell<bool>,
}

/// Bytes to be copied now: `admitted` says how many, given the room below the limit and the most that may be copied at once. In a signal
/// handler that interrupted a copy no more than fit beside it, wherever that cuts; so no copy takes more than half of the ring.
pub(super) fn room(tx: &Locked, producer: &Producer<'_>, capacity: u64, admitted: impl FnOnce(usize, usize) -> usize) -> usize {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let count = admitted(bytes(producer.room(u64::from(tx.slot.tx_limit.load(Relaxed)))), bytes(capacity / 2));
    interrupted(tx).map_or(count, |job| count.min(bytes(producer.room_behind(job.tail))))
}

/// The copy that the calling signal handler interrupted.
fn interrupted(tx: &Locked) -> Option<&Job<'_>> {
    // SAFETY: the lock is held by this very thread further out, so we are above its frame, which set the pointer and clears
    // it before it goes. A frame that was left by a jump is no holder any more (the next section clears the pointer).
    unsafe { tx.endpoint.job.load(Relaxed).as_ref() }.filter(|_| tx.is_nested())
}

/// In a signal handler, before it writes: finishes the copy that it interrupted. Returns whether there was something to do; then
/// the ring has to be opened again.
pub(super) fn help(tx: &Locked, segment: &Segment) -> bool {
    let Some(job) = interrupted(tx) else { return false };
    let Ok(mut producer) = Producer::open(segment) else { return false };
    if producer.tail() != job.tail || job.done.get() {
        return false;
    }
    producer.rebase(job.base);
    // SAFETY: what the interrupted call found to be readable.
    job.parts.walk(job.from, job.length, |from, length| unsafe { producer.copy_in(from, length) });
    tx.slot.count_bytes_into_ring(job.length as u64);
    job.done.set(producer.publish());
    compiler_fence(SeqCst);
    true
}

/// Copies `length` of the bytes from `from` on into the ring and publishes them. `None` if a signal handler has used the ring
/// meanwhile without doing this: the caller begins again.
pub(super) fn copy(tx: &Locked, mut producer: Producer<'_>, parts: &Parts<'_>, from: usize, length: usize) -> Option<usize> {
    if !tx.is_nested() {
        producer.warm(length);
    }
    let job = Job { parts: *parts, from, length, tail: producer.tail(), base: producer.base(), done: Cell::new(false) };
    let outer = announce(tx.endpoint, &job);
    // A handler that came before the job could be seen has written where it was to begin; one that comes now finds it.
    if !producer.is_current() {
        tx.endpoint.job.store(outer, Relaxed);
        return None;
    }
    // SAFETY: the caller has found so many bytes to be readable.
    let count = parts.walk(from, length, |from, length| unsafe { producer.copy_in(from, length) });
    compiler_fence(SeqCst);
    let published = producer.publish();
    compiler_fence(SeqCst);
    tx.endpoint.job.store(outer, Relaxed);
    if published {
        tx.slot.count_bytes_into_ring(count as u64);
    }
    (published || job.done.get()).then_some(count)
}

/// Shows the job to signal handlers; the one that was shown before, if this is a handler itself.
fn announce(endpoint: &Endpoint, job: &Job<'_>) -> *mut Job<'static> {
    let outer = endpoint.job.load(Relaxed);
    endpoint.job.store(core::ptr::from_ref(job).cast_mut().cast(), Relaxed);
    compiler_fence(SeqCst);
    outer
}
