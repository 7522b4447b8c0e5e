//! Whether the peer still lives, without asking the kernel at every write.
//!
//! A peer that closes says so in the segment, and one that sleeps is found dead by the doorbell it does not take. That leaves
//! a peer that was killed while awake: nobody tells, and its ring has room. What it does is proof of life: bytes that it has
//! read since our last write, if that was only just, or bytes of its own that came while we were looking. A peer that
//! keeps up is never asked about. Otherwise a write asks the kernel if it has not been asked for a while. Processes die as a
//! whole, so one answer counts, briefly, for all connections to the same process, and less briefly for the connection
//! itself, which other processes may hold too.

use core::ffi::c_int;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::segment::Segment;
use tssx_core::{clock, sys};

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

/// Whether the peer lived a moment ago, as far as it showed or the kernel said; asks the kernel if that is too long ago.
/// `head` is how far the peer has read.
#[inline]
pub(super) fn is_believed(fd: c_int, endpoint: &Endpoint, segment: &Segment, head: u64) -> bool {
    let now = clock::ticks();
    let recent = PROCESS_US * clock::ticks_per_us();
    let has_read = endpoint.last_head.load(Relaxed) != head;
    let just_wrote = now.wrapping_sub(endpoint.last_write.load(Relaxed)) < recent;
    endpoint.last_head.store(head, Relaxed);
    endpoint.last_write.store(now, Relaxed);
    if has_read && just_wrote {
        endpoint.last_alive.store(now, Relaxed);
        return true;
    }
    now.wrapping_sub(endpoint.last_alive.load(Relaxed)) < recent || ask(fd, endpoint, segment, now)
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
