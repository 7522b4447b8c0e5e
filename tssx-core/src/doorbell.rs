//! Waking a peer that sleeps in the kernel, and keeping the kernel's readiness true.
//!
//! Sleeping is always done on the real socket, so that signals, time-outs, cancellation and the death of the peer come
//! from the kernel. Two mechanisms make the socket's own readiness mirror the ring while somebody may be asleep:
//!
//! **Readable.** A consumer that is about to sleep sets a bit in `asleep`, fences, and looks at the ring again. A producer
//! publishes bytes, fences, and looks at `asleep`; if the bit is set it clears it and sends one byte. Either the consumer's
//! second look sees the bytes, or the producer sees the bit: both fences are sequentially consistent, so "neither" would need a
//! cycle in their total order (the store-buffering litmus test; [`rouse`] and [`announce`] are its two halves). Nobody takes a
//! doorbell by sleeping, but for a sleeper that is [alone](announce_alone): a blocked receive only looks (MSG_PEEK), so it can be left by a signal or a cancellation at any moment,
//! and never takes a byte or a descriptor of the program's in a doorbell's place. A doorbell is taken only under the receiving
//! lock and only if it is *stale*: sent before the ring was seen empty ([`stale`]). So as long as the ring holds bytes and
//! somebody sleeps, the kernel's queue holds a byte, whoever else reads. Nor is it taken from under somebody whom it has woken and
//! who has not run yet, and would sleep on unannounced: where others may sleep, the order is *count what is stale, announce, look at the
//! ring, take*. Bytes that the look does not see ring, and what they ring is not among the stale.
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

use crate::layout::{ALONE, ASLEEP, ENDING, GONE_CLOSED, GONE_SHUTDOWN, GONE_SOON, GONE_UNREAD, STATE_ENDED};
use crate::ledger::layout::{MODE_FINAL, Slot};
use crate::segment::Segment;
use crate::sync::{fence, kernel};
use crate::sys::Errno;
use crate::sys::Undisturbed;

/// What doorbell bytes contain. They never reach a program.
static JUNK: [u8; 8192] = [0; 8192];

/// Producer, after publishing, under the sending lock: wakes the consumer if it sleeps. True if a doorbell was sent, which a peer that is
/// gone would not have taken.
///
/// # Errors
/// What the kernel said of the socket: EPIPE or ECONNRESET when the peer is gone. A full queue is no error: it is readable. Nor is a kernel
/// without memory: it says nothing of the peer, and the next bytes ring again.
pub fn rouse(fd: i32, slot: &Slot, segment: &Segment) -> Result<bool, Errno> {
    fence(SeqCst);
    if !is_awaited(segment) {
        return Ok(false);
    }
    let before = segment.tx().asleep.fetch_and(!ASLEEP, SeqCst);
    if before & ASLEEP == 0 {
        return Ok(false);
    }
    match ring(fd, slot, segment) {
        Ok(()) => Ok(true),
        Err(errno) if errno.is_passing() => {
            segment.tx().asleep.fetch_or(ASLEEP, SeqCst);
            Ok(false)
        }
        Err(errno) => Err(errno),
    }
}

/// Producer: whether the next bytes ring a doorbell, unless the consumer wakes by itself before.
#[inline]
#[must_use]
pub fn is_awaited(segment: &Segment) -> bool {
    segment.tx().asleep.load(Relaxed) & ASLEEP != 0
}

/// Sends one doorbell. It is counted before it is sent, so that whoever finds it in the queue finds it counted: a doorbell that
/// cannot be told to be stale would keep the socket readable for nothing.
fn ring(fd: i32, slot: &Slot, segment: &Segment) -> Result<(), Errno> {
    segment.tx().doorbells.fetch_add(1, Release);
    let bell = JUNK.get(..1).unwrap_or(&JUNK);
    let mut sent = kernel::send(fd, bell);
    if sent == Err(Errno::AGAIN) && segment.tx().writer_waiting.load(Relaxed) == 0 {
        // What the peer has not read from before the switch fills the small buffer. That is readable, but an edge-triggered set must be told
        // of what is new.
        let _ = kernel::setsockopt(fd, libc::SO_SNDBUF, (slot.sndbuf.load(Relaxed) / 2).cast_signed());
        sent = kernel::send(fd, bell);
        let _ = kernel::setsockopt(fd, libc::SO_SNDBUF, 1);
    }
    if sent.is_ok() {
        slot.doorbell_tx_bytes.fetch_add(1, Relaxed);
        slot.doorbell_tx_calls.fetch_add(1, Relaxed);
    } else {
        segment.tx().doorbells.fetch_sub(1, Release);
    }
    match sent {
        Ok(_) | Err(Errno::AGAIN) => Ok(()), // a full queue is readable
        Err(errno) => Err(errno),
    }
}

fn send_junk(fd: i32, slot: &Slot, segment: &Segment, count: usize) -> Result<(), Errno> {
    match kernel::send(fd, JUNK.get(..count).unwrap_or(&JUNK)) {
        Ok(sent) => {
            count_sent(slot, segment, sent as u64);
            if sent == JUNK.len() {
                // A small buffer takes less: the program has enlarged it since, to let a writer go on.
                kernel::setsockopt(fd, libc::SO_SNDBUF, 1)?;
            }
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
    // Where the kernel does not say, more junk does no harm.
    if fresh || kernel::poll_now(fd, libc::POLLOUT).map_or(true, |ready| ready & libc::POLLOUT != 0) {
        send_junk(fd, slot, segment, JUNK.len())?;
    }
    fence(SeqCst);
    Ok(())
}

/// Producer, under the sending lock: wakes the peer whatever it announced, to make it look at more than the ring.
pub fn poke(fd: i32, slot: &Slot, segment: &Segment) {
    segment.tx().asleep.fetch_and(!ASLEEP, SeqCst);
    let _ = ring(fd, slot, segment);
}

/// Producer, under the sending lock, before the ring ends: what comes next to a sleeper that is alone must be a doorbell, not a byte of the
/// program's. This and [`announce_alone`] change one word, so one of them comes first: either the sleeper is seen and rung for, or it sees that the
/// ring is ending and only looks.
pub(crate) fn ring_for_lone(fd: i32, slot: &Slot, segment: &Segment) {
    if segment.tx().asleep.fetch_or(ENDING, SeqCst) & ALONE != 0 {
        poke(fd, slot, segment);
    }
}

/// Counts doorbell bytes that went into the kernel socket: ours, or the one of a caller that sends to wait for room.
pub fn count_sent(slot: &Slot, segment: &Segment, bytes: u64) {
    segment.tx().doorbells.fetch_add(bytes, Release);
    slot.doorbell_tx_bytes.fetch_add(bytes, Relaxed);
    slot.doorbell_tx_calls.fetch_add(1, Relaxed);
}

/// Consumer, under the receiving lock: says that somebody is about to sleep. The caller must look at the ring (and at
/// `state`) again afterwards, and must not sleep if there is something.
pub fn announce(segment: &Segment) {
    segment.rx().asleep.fetch_or(ASLEEP, SeqCst);
    fence(SeqCst);
}

/// [`announce`] for a sleeper that nobody shares the end with: it takes the doorbell that wakes it, which saves it two system calls. False if the
/// ring is ending: then what comes may be the program's, and it must only look.
#[must_use]
pub fn announce_alone(segment: &Segment) -> bool {
    let before = segment.rx().asleep.fetch_or(ASLEEP | ALONE, SeqCst);
    fence(SeqCst);
    let ending = before & ENDING != 0;
    if ending {
        awake(segment);
    }
    !ending
}

/// Consumer, under the receiving lock: the sleeper that was alone is awake.
pub fn awake(segment: &Segment) {
    segment.rx().asleep.fetch_and(!ALONE, Relaxed);
}

/// Consumer, under the receiving lock: whether what a sleeper has just taken out of the kernel's queue was the program's, and no doorbell. It can
/// be if a signal handler has read to the ring's end during the sleep, and the kernel has restarted it.
#[must_use]
pub fn took_programs(slot: &Slot, segment: &Segment) -> bool {
    let ended = segment.rx().state.load(Acquire) == STATE_ENDED;
    slot.rx_mode.load(Relaxed) == MODE_FINAL || (ended && before_resume(slot, segment) == 0)
}

/// Consumer, under the receiving lock: counts a doorbell that a sleeper has taken. `before` is `doorbell_rx_bytes` from before it was known that
/// nobody had counted it: a signal handler that interrupts this counts it too, and only one of both succeeds.
pub fn count_taken(slot: &Slot, segment: &Segment, byte: u8, before: u64) {
    if byte != 0 {
        condemn(segment);
    }
    if slot.doorbell_rx_bytes.compare_exchange(before, before.wrapping_add(1), Relaxed, Relaxed).is_ok() {
        slot.doorbell_rx_calls.fetch_add(1, Relaxed);
    }
}

/// Consumer, under the receiving lock: whether a sleeper is announced.
#[must_use]
pub fn is_watched(segment: &Segment) -> bool {
    segment.rx().asleep.load(Relaxed) & ASLEEP != 0
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
    /// No end and no error; carries how many doorbell bytes were taken.
    Empty(u64),
    /// End of file: the peer shut down or closed.
    EndOfFile,
    /// The socket's pending error, now cleared in the kernel.
    Failed(Errno),
}

/// For [`drain`] and [`take_doorbells`]: whatever there is.
pub const ALL: u64 = u64::MAX;

/// Consumer, under the receiving lock: doorbell bytes that nobody needs any more *if the ring is seen empty after this*: they
/// were sent for bytes that have been read. What is sent later may be what another sleeper waits for: were it taken here, and a
/// part of the bytes it was rung for left in the ring, that sleeper would sleep on.
#[must_use]
pub fn stale(slot: &Slot, segment: &Segment) -> u64 {
    let left = segment.rx().doorbells.load(Acquire).wrapping_sub(slot.doorbell_rx_bytes.load(Relaxed));
    if left > ALL / 2 { 0 } else { left }
}

/// The same, asked of the kernel: what waits in its queue, which while the ring has not ended is doorbells alone. For a caller whom the kernel
/// wakes and who finds nothing: a producer that was killed between sending a doorbell and counting it has left one that is never
/// [`stale`], and would hide even the end of file.
#[must_use]
pub fn waiting(fd: i32) -> u64 {
    let queued = kernel::queued_bytes(fd).unwrap_or(0);
    fence(SeqCst); // what these were sent for is in the ring for whoever looks now
    queued
}

/// Consumer, under the receiving lock, direction in the ring: takes up to `most` doorbell bytes out of the kernel's queue, lets
/// the producer write again, and tells end of file and errors. An error is told once: the caller must pass it on.
pub fn drain(fd: i32, slot: &Slot, segment: &Segment, most: u64) -> Drained {
    let total = take_up_to(fd, slot, segment, most);
    match kernel::receive(fd, &mut [0], libc::MSG_PEEK) {
        Ok(0) => Drained::EndOfFile,
        Ok(_) | Err(Errno::AGAIN) => Drained::Empty(total),
        Err(errno) => Drained::Failed(errno),
    }
}

/// As [`drain`], but content with the doorbells that wait now: end of file and errors stay for whoever asks.
pub fn take_doorbells(fd: i32, slot: &Slot, segment: &Segment, most: u64) -> u64 {
    segment.rx().writer_waiting.store(0, SeqCst);
    take_some(fd, slot, segment, most)
}

/// As [`take_doorbells`], all that the kernel has queued by now. Not until there are none: a peer that goes on sending would hold up a call that
/// does not wait.
pub fn take_queued(fd: i32, slot: &Slot, segment: &Segment) {
    take_up_to(fd, slot, segment, waiting(fd));
}

/// Lets the producer write again and takes doorbells until there are none, or `most` are taken; how many.
fn take_up_to(fd: i32, slot: &Slot, segment: &Segment, most: u64) -> u64 {
    segment.rx().writer_waiting.store(0, SeqCst);
    let mut total = 0;
    while total < most {
        match take_some(fd, slot, segment, most - total) {
            0 => break,
            count => total += count,
        }
    }
    total
}

/// Whether the kernel has nothing but the end of file, or an error, for this direction. Takes neither.
#[must_use]
pub fn is_at_end(fd: i32) -> bool {
    // Not POLLIN: a doorbell may come between the two questions.
    let ends = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    kernel::queued_bytes(fd) == Ok(0) && kernel::poll_now(fd, libc::POLLRDHUP).unwrap_or(0) & ends != 0
}

/// Takes what waits and is certainly a doorbell; how many. First what is queued (asked so that a pending error stays pending),
/// then whether the ring has ended: a producer says so before it sends its first byte behind the end, so what was queued before
/// is not the program's.
fn take_some(fd: i32, slot: &Slot, segment: &Segment, limit: u64) -> u64 {
    let _undisturbed = Undisturbed::begin();
    let queued = kernel::queued_bytes(fd).unwrap_or(0);
    fence(Acquire);
    let mut most = queued.min(limit);
    if segment.rx().state.load(Acquire) == STATE_ENDED {
        most = most.min(before_resume(slot, segment));
    }
    match most {
        0 => 0,
        // Most often it is one, and clearing room for a writer's junk is dear.
        1..=FEW => take(fd, slot, segment, &mut [0; FEW as usize], most),
        _ => take(fd, slot, segment, &mut [0; 4608], most),
    }
}

/// Doorbells for which little room is enough.
const FEW: u64 = 32;

/// Takes up to `most` bytes that are certainly doorbells, as far as there is room; how many.
fn take(fd: i32, slot: &Slot, segment: &Segment, scratch: &mut [u8], most: u64) -> u64 {
    let most = usize::try_from(most).map_or(scratch.len(), |most| most.min(scratch.len()));
    let room = scratch.get_mut(..most).unwrap_or_default();
    // An error: another process of the family was faster.
    let count = kernel::receive(fd, room, 0).unwrap_or(0) as u64;
    if room.iter().take(usize::try_from(count).unwrap_or(0)).any(|byte| *byte != 0) {
        condemn(segment);
    }
    slot.doorbell_rx_bytes.fetch_add(count, Relaxed);
    slot.doorbell_rx_calls.fetch_add(u64::from(count > 0), Relaxed);
    count
}

/// Consumer: what it took for a doorbell was none. Somebody writes to the kernel socket past the library, and nobody can say any more where in the
/// stream those bytes belong. A connection that breaks is better than one that loses them: the ring's positions become impossible,
/// for both ends.
#[cold]
fn condemn(segment: &Segment) {
    let direction = segment.rx();
    direction.head.store(direction.tail.load(Relaxed).wrapping_add(1), Release);
}

/// Consumer, once the ring has ended: bytes in the kernel's queue before what the program sent behind the end. Doorbells, and before the
/// switch is reached what was sent before that.
#[must_use]
pub fn before_resume(slot: &Slot, segment: &Segment) -> u64 {
    let carried = slot.kernel_rx_bytes.load(Relaxed).wrapping_add(slot.doorbell_rx_bytes.load(Relaxed));
    segment.rx().resume_at.load(Relaxed).saturating_sub(carried)
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

/// Consumer, before `shutdown(SHUT_RD)`: what the kernel says of the connection from now on is not the silence of the dead.
pub fn say_going(segment: &Segment) {
    segment.rx().asleep.fetch_or(GONE_SOON, SeqCst);
}

/// Producer: whether the consumer has shut its receiving side down or is doing so.
#[must_use]
pub fn reader_going(segment: &Segment) -> bool {
    segment.tx().asleep.load(Acquire) & (GONE_SOON | GONE_SHUTDOWN) != 0
}

/// Consumer, before the last close: tells the producer that bytes from before the switch were left unread. The kernel will report a
/// reset, and it is no doorbell's fault.
pub fn say_unread(segment: &Segment) {
    segment.rx().asleep.fetch_or(GONE_UNREAD, SeqCst);
}

/// Producer: whether the consumer left bytes from before the switch unread.
#[must_use]
pub fn left_unread(segment: &Segment) -> bool {
    segment.tx().asleep.load(Acquire) & GONE_UNREAD != 0
}

/// Producer: tells the consumer that nothing more will come, so that it asks the kernel for the end of file.
pub fn say_finished(segment: &Segment) {
    segment.tx().finished.store(1, Release);
}

/// Consumer: whether this end itself reads no more.
#[must_use]
pub fn self_gone(segment: &Segment) -> bool {
    segment.rx().asleep.load(Relaxed) & (GONE_CLOSED | GONE_SHUTDOWN | GONE_SOON) != 0
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
