//! Whether the peer still lives, without asking the kernel at every write.
//!
//! A peer that closes says so in the segment, and one that sleeps is found dead by the doorbell it does not take. That leaves
//! a peer that was killed while awake: nobody tells, and its ring has room. What it does is proof of life: that it has read
//! of our last write, if that was only just, or anything since we looked, if that was only just, or bytes of its own that came while we were
//! looking. A peer that keeps up is never asked about, and one that sleeps answers the doorbell that the write sends anyway. Otherwise a
//! write asks the kernel if it has not been asked for a while. Processes die as a whole, so one answer counts, briefly, for all connections
//! to the same process, and less briefly for the connection itself, which other processes may hold too.

use core::ffi::c_int;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::ring::producer::Producer;
use tssx_core::segment::Segment;
use tssx_core::{clock, doorbell, sys};

use crate::endpoint::Endpoint;

/// How long an answer about a process holds, microseconds: shorter than it takes to kill a process and to be told so.
const PROCESS_US: u64 = 50;
/// How long an answer about a connection holds, microseconds, while its process is known to live.
const CONNECTION_US: u64 = 5000;
/// Processes that are remembered; two that share a place only cost each other questions.
const PLACES: usize = 64;

/// When a process was last known to live: ticks, with the low byte replaced by that of its id.
static LAST_ALIVE: [AtomicU64; PLACES] = [const { AtomicU64::new(0) }; PLACES];
const ID_MASK: u64 = 0xff;

/// What is known of the peer before a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Belief {
    /// It lived a moment ago, as far as it showed or the kernel said.
    Lives,
    /// Nothing; but it sleeps, so the write rings a doorbell, and what the kernel says to that is the answer. The write is
    /// [taken back](Producer::take_back) if it is not good.
    Unproven,
    /// The kernel says that it is gone.
    Gone,
}

/// Whether the peer lived a moment before `now`; asks the kernel if that is too long ago and the write itself will not.
#[inline]
pub(super) fn look(fd: c_int, endpoint: &Endpoint, segment: &Segment, now: u64) -> Belief {
    let recent = PROCESS_US * clock::ticks_per_us();
    let just_wrote = now.wrapping_sub(endpoint.last_write.load(Relaxed)) < recent;
    let age = now.wrapping_sub(endpoint.last_alive.load(Relaxed));
    if age < recent / 2 {
        return Belief::Lives;
    }
    if has_moved(endpoint, segment, now, just_wrote) {
        answered(endpoint, now);
        return Belief::Lives;
    }
    if age < recent {
        return Belief::Lives;
    }
    // One that is about to read no more would get what the kernel refuses.
    if doorbell::is_awaited(segment) && !doorbell::reader_going(segment) {
        return Belief::Unproven;
    }
    if ask(fd, endpoint, segment, now) { Belief::Lives } else { Belief::Gone }
}

/// A write begins: not before it is known that it will be made, or the next one would take what was read of the one before for a sign.
#[inline]
pub(super) fn writes(endpoint: &Endpoint, now: u64) {
    endpoint.last_write.store(now, Relaxed);
}

/// It has shown, or a doorbell was taken.
#[inline]
pub(super) fn answered(endpoint: &Endpoint, now: u64) {
    endpoint.last_alive.store(now, Relaxed);
}

/// The doorbell of an unproven write, of the bytes from `from` to before `to`, was refused: whether the peer was gone before, and the write
/// is taken back. One that only reads no more, or has read of it, got it.
#[cold]
pub(super) fn take_back(fd: c_int, segment: &Segment, from: u64, to: u64) -> bool {
    let hung_up = sys::poll_now(fd, 0).unwrap_or(0) & libc::POLLHUP != 0;
    hung_up && !doorbell::reader_going(segment) && Producer::take_back(segment, from, to)
}

/// Whether the peer has read any of our last write, if that was only just, or anything since we looked last, if that was only just.
fn has_moved(endpoint: &Endpoint, segment: &Segment, now: u64, just_wrote: bool) -> bool {
    let direction = segment.tx();
    let head = direction.head.load(Relaxed);
    let read = head.wrapping_sub(direction.last_write.load(Relaxed));
    let just_looked = now.wrapping_sub(endpoint.last_look.load(Relaxed)) < PROCESS_US * clock::ticks_per_us();
    let before = endpoint.last_head.load(Relaxed);
    endpoint.last_head.store(head, Relaxed);
    endpoint.last_look.store(now, Relaxed);
    just_wrote && (1..=segment.capacity()).contains(&read) || just_looked && head != before
}

/// The peer has just done something while we looked.
#[inline]
pub(super) fn seen(endpoint: &Endpoint) {
    endpoint.last_alive.store(clock::ticks(), Relaxed);
}

/// The stream has ended, or failed: the next write asks.
pub(super) fn doubt(endpoint: &Endpoint) {
    endpoint.last_alive.store(0, Relaxed);
    endpoint.last_write.store(0, Relaxed);
    endpoint.last_look.store(0, Relaxed);
}

#[cold]
fn ask(fd: c_int, endpoint: &Endpoint, segment: &Segment, now: u64) -> bool {
    let per_us = clock::ticks_per_us();
    // What the peer says of its id can be wrong; then it only misleads about its own death.
    let peer = u64::from(segment.peer_side().pid.load(Relaxed));
    let Some(place) = LAST_ALIVE.get(usize::try_from(peer).unwrap_or(0) % PLACES) else { return true };
    let id = (peer / PLACES as u64) & ID_MASK;
    let known = place.load(Relaxed);
    let process_lives = known & ID_MASK == id && now.wrapping_sub(known) < PROCESS_US * per_us;
    if process_lives && now.wrapping_sub(endpoint.last_alive.load(Relaxed)) < CONNECTION_US * per_us {
        return true;
    }
    let lives = sys::poll_now(fd, 0).unwrap_or(0) & (libc::POLLHUP | libc::POLLERR) == 0;
    if lives {
        endpoint.last_alive.store(now, Relaxed);
        place.store((now & !ID_MASK) | id, Relaxed);
    }
    lives
}
