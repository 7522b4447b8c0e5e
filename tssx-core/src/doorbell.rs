//! Waking a peer that sleeps in the kernel, and keeping the kernel's readiness true.
//!
//! Sleeping is always done on the real socket, so that signals, time-outs, cancellation and the death of the peer come
//! from the kernel. Two mechanisms make the socket's own readiness mirror the ring while somebody may be asleep:
//!
//! **Readable.** A consumer that is about to sleep sets a bit in `asleep`, fences, and looks at the ring again. A producer
//! publishes bytes, fences, and looks at `asleep`; if a bit is set it clears them and sends one byte (two if a watcher
//! that does not take bytes may be among the sleepers). Either the consumer's second look sees the bytes, or the producer
//! sees the bit: both fences are sequentially consistent, so "neither" would need a cycle in their total order (the
//! store-buffering litmus test; [`rouse`] and [`announce`] are its two halves). A doorbell byte may only be taken while the
//! ring is seen empty under the receiving lock, or by the one sleeper that was counted as the only one; so as long as the
//! ring holds bytes and somebody sleeps, the kernel's queue holds a byte.
//!
//! **Writable.** A producer that finds the ring full sets `writer_waiting`, sends junk bytes until the kernel refuses more
//! (its send buffer was made as small as the kernel allows when the direction moved into the ring, so that is one system
//! call and a few KiB), fences, and looks at the ring again. Now poll, epoll and a blocking send say "not writable" by
//! themselves. A consumer that brings the ring to a quarter or less publishes, fences, looks at `writer_waiting`, and
//! takes the junk out: the kernel wakes whoever waits, as af_unix.c's `unix_write_space` does. It works after either side
//! has shut a direction down, because taking junk needs no sending. The same two fences exclude a lost wake-up.
//!
//! All these bytes are counted by the sender (`doorbells`) and the receiver, so that they can be told from the program's.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::layout::{ASLEEP_EATER, ASLEEP_WATCHER, GONE_CLOSED, GONE_SHUTDOWN, STATE_ENDED};
use crate::ledger::layout::Slot;
use crate::segment::Segment;
use crate::sync::{fence, kernel};
use crate::sys::Errno;

/// The bits that say that somebody sleeps.
const ASLEEP: u32 = ASLEEP_EATER | ASLEEP_WATCHER;
/// What doorbell bytes contain. They never reach a program.
static JUNK: [u8; 8192] = [0; 8192];

/// Producer, after publishing, under the sending lock: wakes the consumer if it sleeps.
///
/// # Errors
/// What the kernel said of the socket: EPIPE or ECONNRESET when the peer is gone. A full queue is no error: it is readable.
pub fn rouse(fd: i32, slot: &Slot, segment: &Segment) -> Result<(), Errno> {
    fence(SeqCst);
    let direction = segment.tx();
    if direction.asleep.load(Relaxed) & ASLEEP == 0 {
        return Ok(());
    }
    let before = direction.asleep.fetch_and(!ASLEEP, SeqCst);
    match before & ASLEEP {
        0 => Ok(()),
        ASLEEP_EATER => send_junk(fd, slot, segment, 1),
        _ => send_junk(fd, slot, segment, 2),
    }
}

fn send_junk(fd: i32, slot: &Slot, segment: &Segment, count: usize) -> Result<(), Errno> {
    match kernel::send(fd, JUNK.get(..count).unwrap_or(&JUNK)) {
        Ok(sent) => {
            count_sent(slot, segment, sent as u64);
            Ok(())
        }
        Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Producer, under the sending lock, after it found less room than it wants: makes the kernel socket unwritable until the
/// consumer has read most of the ring. The caller looks at the ring again afterwards.
///
/// # Errors
/// EPIPE or ECONNRESET when the peer is gone.
pub fn hold_unwritable(fd: i32, slot: &Slot, segment: &Segment) -> Result<(), Errno> {
    let direction = segment.tx();
    let fresh = direction.writer_waiting.swap(1, SeqCst) == 0;
    if fresh {
        slot.ring_full.fetch_add(1, Relaxed);
    }
    // Not fresh, but writable: the consumer took our junk together with what it was draining. Send it again, or a program
    // that waits by poll would be told "writable" over and over.
    if fresh || kernel::poll_now(fd, libc::POLLOUT)? & libc::POLLOUT != 0 {
        send_junk(fd, slot, segment, JUNK.len())?;
    }
    fence(SeqCst);
    Ok(())
}

/// Producer, under the sending lock: wakes the peer whatever it announced, to make it look at more than the ring.
pub fn poke(fd: i32, slot: &Slot, segment: &Segment) {
    segment.tx().asleep.fetch_and(!ASLEEP, SeqCst);
    let _ = send_junk(fd, slot, segment, 2);
}

/// Counts doorbell bytes that went into the kernel socket: ours, or the one of a caller that sends to wait for room.
pub fn count_sent(slot: &Slot, segment: &Segment, bytes: u64) {
    segment.tx().doorbells.fetch_add(bytes, Release);
    slot.doorbell_tx_bytes.fetch_add(bytes, Relaxed);
    slot.doorbell_tx_calls.fetch_add(1, Relaxed);
}

/// Consumer, under the receiving lock: says that somebody is about to sleep. The caller must look at the ring (and at
/// `state`) again afterwards, and must not sleep if there is something.
pub fn announce(segment: &Segment, kind: u32) {
    segment.rx().asleep.fetch_or(kind, SeqCst);
    fence(SeqCst);
}

/// Consumer, under the receiving lock: whether a watcher is announced.
#[must_use]
pub fn is_watched(segment: &Segment) -> bool {
    segment.rx().asleep.load(Relaxed) & ASLEEP_WATCHER != 0
}

/// Consumer, under the receiving lock: nobody sleeps any more, so no doorbell is needed.
pub fn withdraw(segment: &Segment) {
    segment.rx().asleep.fetch_and(!ASLEEP, SeqCst);
}

/// Consumer, after publishing: whether the producer waits for room that it should now be given. `before` and `after` are the
/// unread bytes around the read. The read that crosses the mark, a quarter of what the producer may leave unread, fences and
/// looks; a producer that has not announced itself by then sees the room. Reads below the mark look without a fence, and
/// only make up for a release that had to be put off.
#[must_use]
pub fn should_release(segment: &Segment, before: u64, after: u64) -> bool {
    let mark = match segment.rx().limit.load(Relaxed) {
        0 => segment.capacity(),
        limit => limit.min(segment.capacity()),
    } / 4;
    if after > mark || (before <= mark && segment.rx().writer_waiting.load(Relaxed) == 0) {
        return false;
    }
    fence(SeqCst);
    segment.rx().writer_waiting.load(Relaxed) != 0
}

/// What was found in the kernel's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing is left; carries how many doorbell bytes were taken.
    Empty(u64),
    /// End of file: the peer shut down or closed.
    EndOfFile,
    /// The socket's pending error, now cleared in the kernel.
    Failed(Errno),
}

/// Consumer, under the receiving lock, direction in the ring: takes all doorbell bytes out of the kernel's queue, lets the
/// producer write again, and tells end of file and errors.
pub fn drain(fd: i32, slot: &Slot, segment: &Segment) -> Drained {
    let mut total = 0;
    segment.rx().writer_waiting.store(0, SeqCst);
    loop {
        match take_some(fd, slot, segment) {
            Drained::Empty(0) => return Drained::Empty(total),
            Drained::Empty(count) => total += count,
            end => return end,
        }
    }
}

/// As [`drain`], but content with the doorbells that wait now: end of file and errors stay for whoever asks.
pub fn take_doorbells(fd: i32, slot: &Slot, segment: &Segment) -> u64 {
    segment.rx().writer_waiting.store(0, SeqCst);
    if let Drained::Empty(count) = take_some(fd, slot, segment) { count } else { 0 }
}

/// Takes what waits and is certainly a doorbell. First what is queued, then whether the ring has ended: a producer says so
/// before it sends its first byte behind the end, so what was queued before is not the program's.
fn take_some(fd: i32, slot: &Slot, segment: &Segment) -> Drained {
    let mut scratch = [0_u8; 4608];
    let queued = match kernel::receive(fd, &mut scratch, libc::MSG_PEEK) {
        Ok(0) => return Drained::EndOfFile,
        Ok(count) => count as u64,
        Err(Errno::AGAIN) => return Drained::Empty(0),
        Err(errno) => return Drained::Failed(errno),
    };
    fence(Acquire);
    let direction = segment.rx();
    let mut most = queued;
    if direction.state.load(Acquire) == STATE_ENDED {
        let carried = slot.kernel_rx_bytes.load(Relaxed).wrapping_add(slot.doorbell_rx_bytes.load(Relaxed));
        most = queued.min(direction.resume_at.load(Relaxed).saturating_sub(carried));
    }
    let Some(room) = scratch.get_mut(..usize::try_from(most).unwrap_or(0)).filter(|room| !room.is_empty()) else {
        return Drained::Empty(0);
    };
    match kernel::receive(fd, room, 0) {
        Ok(count) => {
            slot.doorbell_rx_bytes.fetch_add(count as u64, Relaxed);
            slot.doorbell_rx_calls.fetch_add(1, Relaxed);
            Drained::Empty(count as u64)
        }
        Err(_) => Drained::Empty(0), // another process of the family was faster
    }
}

/// Whether doorbell bytes may wait in the kernel's queue: the producer says it sent more than we took.
#[must_use]
pub fn outstanding(slot: &Slot, segment: &Segment) -> bool {
    segment.rx().doorbells.load(Acquire) != slot.doorbell_rx_bytes.load(Relaxed)
}

/// Consumer: tells the producer that nobody will read any more, after `shutdown(SHUT_RD)` or the last close.
pub fn say_gone(segment: &Segment, closed: bool) {
    let bit = if closed { GONE_CLOSED } else { GONE_SHUTDOWN };
    segment.rx().asleep.fetch_or(bit, SeqCst);
}

/// Producer: tells the consumer that nothing more will come, so that it asks the kernel for the end of file.
pub fn say_finished(segment: &Segment) {
    segment.tx().finished.store(1, Release);
}

/// Consumer: whether this end itself reads no more.
#[must_use]
pub fn self_gone(segment: &Segment) -> bool {
    segment.rx().asleep.load(Relaxed) & (GONE_CLOSED | GONE_SHUTDOWN) != 0
}

/// Whether the peer said that it sends or reads no more: what the kernel says then matters even while rings are busy.
#[must_use]
pub fn peer_ending(segment: &Segment) -> bool {
    reader_gone(segment) || segment.rx().finished.load(Relaxed) != 0
}

/// Producer: whether the consumer said that it reads no more.
#[inline]
#[must_use]
pub fn reader_gone(segment: &Segment) -> bool {
    segment.tx().asleep.load(Relaxed) & (GONE_CLOSED | GONE_SHUTDOWN) != 0
}
