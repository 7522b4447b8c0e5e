//! Options and state of a selected stream, where a ring changes the kernel's answer.

#![allow(unsafe_code, reason = "reads and writes option values behind the program's pointers")]

use core::ffi::{c_int, c_ulong, c_void};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

use libc::socklen_t;
use tssx_core::layout::STATE_ENDED;
use tssx_core::ledger::layout::{MODE_KERNEL, MODE_RING, Slot};
use tssx_core::reason::Reason;
use tssx_core::ring::consumer::Consumer;
use tssx_core::ring::producer::Producer;
use tssx_core::segment::Segment;
use tssx_core::switchover::Arrival;
use tssx_core::{doorbell, switchover, sys};

use super::{recall, reset};
use crate::endpoint::{Endpoint, Locked, Way, lock_stream};
use crate::errno::{self, Result};
use crate::next;
use crate::process::log;
use crate::user_memory::{self, Access};

/// shutdown(2): the kernel's, and the same for the rings.
pub(crate) fn shutdown(fd: c_int, how: c_int) -> Result<c_int> {
    // The sending lock keeps a concurrent write from slipping into the ring behind the end of file.
    if matches!(how, libc::SHUT_WR | libc::SHUT_RDWR) {
        give_back_first(fd);
    }
    let tx = lock_stream(fd, Way::Tx);
    if let Some(tx) = &tx {
        say_intent(tx, how);
    }
    // SAFETY: no pointers.
    let result = errno::from_int(unsafe { next::shutdown(fd, how) });
    let (Some(tx), Ok(_)) = (tx, result) else { return result };
    let segment = tx.segment;
    if let Some(segment) = &segment {
        say_ends(fd, tx.endpoint, tx.slot, segment);
    }
    drop(tx);
    if let Some(segment) = segment.filter(|_| how != libc::SHUT_WR) {
        release_writer(fd, &segment);
    }
    result
}

/// A peer that has taken its ring back waits for bytes that can be sent now or never. It sees that this end is about to finish, or
/// this end sees the recall.
fn give_back_first(fd: c_int) {
    let joined = lock_stream(fd, Way::Tx).and_then(|tx| tx.segment.map(|segment| doorbell::say_finished(&segment)));
    if joined.is_some() {
        fence(SeqCst);
        recall::answer_at_last(fd);
    }
}

/// Before the kernel's call, which cannot fail on a connected stream: whoever sees it hung up must find the reason, or would take
/// an end with bytes unread for a death.
fn say_intent(tx: &Locked, how: c_int) {
    let segment = tx.segment.as_ref();
    if matches!(how, libc::SHUT_WR | libc::SHUT_RDWR) {
        tx.slot.tx_shutdown.store(1, Relaxed);
        segment.into_iter().for_each(doorbell::say_finished);
    }
    if matches!(how, libc::SHUT_RD | libc::SHUT_RDWR) {
        tx.endpoint.deaf.store(1, Relaxed);
        segment.into_iter().for_each(doorbell::say_going);
        tx.endpoint.watchers.call_attention(tx.endpoint); // the silence of its ring says nothing any more
    }
}

/// Tells the peer what of the connection this end has shut down.
pub(super) fn say_ends(fd: c_int, endpoint: &Endpoint, slot: &Slot, segment: &Segment) {
    if slot.tx_shutdown.load(Relaxed) != 0 {
        doorbell::say_finished(segment);
    }
    // A forked process may have shut it down; or nothing more comes because the peer has, which is as good.
    if endpoint.deaf.load(Relaxed) != 0 || sys::poll_now(fd, libc::POLLRDHUP).unwrap_or(0) & libc::POLLRDHUP != 0 {
        doorbell::say_gone(segment, false);
    }
}

/// Nobody reads any more: a peer that is asleep because the ring is full must see that, and its junk keeps it from waking.
fn release_writer(fd: c_int, segment: &Segment) {
    if let Some(rx) = lock_stream(fd, Way::Rx).filter(|rx| rx.slot.rx_mode.load(Relaxed) == MODE_RING) {
        doorbell::take_doorbells(fd, rx.slot, segment, doorbell::stale(rx.slot, segment));
    }
}

/// Both directions of a connection whose memory is corrupt.
pub(crate) fn shut_down_kernel(fd: c_int) {
    // SAFETY: no pointers.
    unsafe { next::shutdown(fd, libc::SHUT_RDWR) };
}

/// The kernel's socket sends no more.
pub(super) fn shut_down_sending(fd: c_int) {
    // SAFETY: no pointers.
    unsafe { next::shutdown(fd, libc::SHUT_WR) };
}

/// Whether getsockopt has an answer of ours: SO_SNDBUF, which we changed, and SO_ERROR, which a ring knows better.
pub(crate) fn getsockopt(fd: c_int, option: c_int) -> Option<c_int> {
    let tx = lock_stream(fd, Way::Tx)?;
    if option == libc::SO_ERROR && reset::take_owed(tx.slot) {
        return Some(libc::ECONNRESET);
    }
    let segment = tx.segment?;
    let in_ring = tx.slot.tx_mode.load(Relaxed) == MODE_RING;
    match option {
        libc::SO_SNDBUF if in_ring => Some(tx.slot.sndbuf.load(Relaxed).cast_signed()),
        // Also of a ring that has ended: the peer may leave bytes in it unread.
        libc::SO_ERROR if in_ring || segment.tx().state.load(Relaxed) == STATE_ENDED => {
            if reset::take_pending(fd, tx.slot, &segment) {
                return Some(libc::ECONNRESET);
            }
            let pending = sys::getsockopt::<c_int>(fd, libc::SO_ERROR).ok()?;
            Some(if pending == libc::ECONNRESET && reset::is_false(tx.slot, &segment) { 0 } else { pending })
        }
        _ => None,
    }
}

/// Before setsockopt at SOL_SOCKET. True if the call is answered: SO_SNDBUF of a direction in a ring is only noted.
pub(crate) fn setsockopt(fd: c_int, option: c_int, value: c_int) -> bool {
    match option {
        libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => set_send_buffer(fd, option, value),
        // Where a look begins is a place in the kernel's queue: what is unread has to go there.
        libc::SO_PEEK_OFF if value >= 0 => {
            recall::leave_rings_now(fd, Reason::SocketOption);
            false
        }
        libc::SO_PASSCRED | libc::SO_PASSSEC if value != 0 => {
            recall::wind_down(fd, Reason::SocketOption);
            false
        }
        _ => false,
    }
}

/// The kernel says what it would make of the value (doubling it, within net.core.wmem_max, or refusing it), and gets its small buffer
/// back. False if it refuses: then it says so to the program.
fn set_send_buffer(fd: c_int, option: c_int, value: c_int) -> bool {
    let Some(tx) = lock_stream(fd, Way::Tx) else { return false };
    let Some(segment) = tx.segment.filter(|_| tx.slot.tx_mode.load(Relaxed) == MODE_RING) else { return false };
    let made = sys::setsockopt(fd, option, value).and_then(|()| sys::getsockopt::<c_int>(fd, libc::SO_SNDBUF));
    let small = || sys::setsockopt(fd, libc::SO_SNDBUF, 1);
    let Ok(made) = made else {
        let _ = small();
        return false;
    };
    let before = tx.slot.tx_limit.load(Relaxed);
    switchover::limit_unread(tx.slot, &segment, made.max(0).cast_unsigned());
    let waited = segment.tx().writer_waiting.load(Relaxed) != 0;
    if waited && tx.slot.tx_limit.load(Relaxed) > before {
        // There is room now: the kernel has just woken whoever waits for it, and must go on saying so. The next one that finds the ring
        // full makes the buffer small again.
        segment.tx().writer_waiting.store(0, Relaxed);
    } else {
        let _ = small();
    }
    true
}

/// An `int` option value behind the program's pointer, if there is one.
///
/// # Safety
/// `value` must be readable for `length` bytes.
pub(crate) unsafe fn option_value(value: *const c_void, length: socklen_t) -> Option<c_int> {
    let size = size_of::<c_int>();
    if (length as usize) < size || !user_memory::is_accessible(value.addr(), size, Access::Read) {
        return None;
    }
    // SAFETY: checked above; the program's pointer need not be aligned.
    Some(unsafe { value.cast::<c_int>().read_unaligned() })
}

/// FIONREAD and SIOCOUTQ of a stream whose bytes are in rings.
pub(crate) fn queue_length(fd: c_int, request: c_ulong) -> Option<c_int> {
    if request == libc::FIONREAD { unread(fd) } else { unsent(fd) }
}

/// Bytes that can be read: the kernel's before the switch or behind the ring's end, and the ring's.
fn unread(fd: c_int) -> Option<c_int> {
    let rx = lock_stream(fd, Way::Rx)?;
    let segment = rx.segment?;
    let ring = || Consumer::open(&segment).map_or(0, |consumer| consumer.available());
    let behind = || switchover::behind_end(fd, rx.slot, &segment).ok();
    let bytes = match rx.slot.rx_mode.load(Relaxed) {
        MODE_RING => ring() + behind()?,
        MODE_KERNEL if switchover::has_consented(&segment) => match switchover::safe_bytes(fd, rx.slot, &segment) {
            (Arrival::Kernel(Some(left)), _) => left + ring() + behind()?,
            (Arrival::Kernel(None), queued) => queued,
            _ => {
                log::say_if_receiving(fd, rx.slot);
                ring() + behind()?
            }
        },
        _ => return None,
    };
    c_int::try_from(bytes).ok()
}

/// Before the kernel is asked about what it has queued: doorbells in front of what follows a ring's end are taken out of the way.
pub(crate) fn settle(fd: c_int) {
    if let Some(rx) = lock_stream(fd, Way::Rx)
        && let Some(segment) = rx.segment.filter(|_| rx.slot.rx_mode.load(Relaxed) == MODE_RING)
    {
        switchover::try_resume(fd, rx.slot, &segment);
    }
}

/// Whether the ring holds bytes, which come before anything that the kernel has behind its end.
pub(crate) fn is_before_mark(fd: c_int) -> bool {
    let Some(rx) = lock_stream(fd, Way::Rx) else { return false };
    rx.slot.rx_mode.load(Relaxed) == MODE_RING
        && rx.segment.is_some_and(|segment| Consumer::open(&segment).is_ok_and(|consumer| consumer.available() > 0))
}

/// What the kernel would hold of memory for bytes that the peer has not read: it counts its packets with all that belongs to
/// them (`sk_wmem_alloc`, see [`kernel_memory`]). Exact while they are of one write; of several, as if they were.
fn unsent(fd: c_int) -> Option<c_int> {
    let tx = lock_stream(fd, Way::Tx)?;
    let segment = tx.segment?;
    let direction = segment.tx();
    // After the ring's end the kernel's answer is right as soon as it holds bytes of the program's; before, it counts doorbells.
    let only_doorbells = switchover::nothing_behind_end(tx.slot, &segment);
    let producer = Producer::open(&segment).ok()?;
    let unread = producer.unread();
    let closed = reset::is_closed(fd, tx.slot, &segment);
    if tx.slot.tx_mode.load(Relaxed) != MODE_RING && !only_doorbells {
        let behind = sys::unsent_bytes(fd).ok()?;
        return c_int::try_from(behind + kernel_memory(if closed { 0 } else { unread })).ok();
    }
    if closed {
        return Some(0);
    }
    // What was sent before the switch lies in front of all doorbells, each of which is a packet of one byte.
    let bells = tx.slot.doorbell_tx_calls.load(Relaxed).saturating_mul(kernel_memory(1));
    let before = if producer.head() == 0 { sys::unsent_bytes(fd).unwrap_or(0).saturating_sub(bells) } else { 0 };
    if unread == 0 {
        return c_int::try_from(before).ok();
    }
    let last_write = producer.tail().wrapping_sub(direction.last_write.load(Relaxed));
    // A packet that is read in part stays whole.
    let whole = if last_write >= unread && last_write <= segment.capacity() { last_write } else { unread };
    c_int::try_from(before + kernel_memory(whole)).ok()
}

/// Memory that a write of `bytes` takes in the kernel's queue, bytes: `unix_stream_sendmsg` of net/unix/af_unix.c makes packets of
/// at most 32 KiB in pages and the rest in their head; `skb->truesize` counts both, and the structures (net/core/skbuff.c).
fn kernel_memory(bytes: u64) -> u64 {
    /// `SKB_MAX_HEAD(0)`, the most a head holds on 64-bit machines, and what it carries besides, `struct skb_shared_info`.
    const HEAD_MAX: u64 = 3776;
    const HEAD_EXTRA: u64 = 320;
    /// `struct sk_buff`.
    const STRUCTURE: u64 = 256;
    const PAGES_MAX: u64 = 32_768;
    let packet = |bytes: u64| {
        let paged = bytes.saturating_sub(HEAD_MAX).next_multiple_of(4096);
        let head = bytes.saturating_sub(paged);
        (head + HEAD_EXTRA).max(512).next_power_of_two() + STRUCTURE + paged
    };
    let whole = bytes / (HEAD_MAX + PAGES_MAX);
    let rest = bytes % (HEAD_MAX + PAGES_MAX);
    whole * packet(HEAD_MAX + PAGES_MAX) + if rest > 0 { packet(rest) } else { 0 }
}

/// After SO_RCVLOWAT was set: how many bytes a receive waits for is ours to know.
pub(crate) fn note_low_water_mark(fd: c_int) {
    if let (Some(rx), Ok(least)) = (lock_stream(fd, Way::Rx), sys::getsockopt::<c_int>(fd, libc::SO_RCVLOWAT)) {
        rx.slot.rx_lowat.store(least.max(1).cast_unsigned(), Relaxed);
    }
}

/// After O_NONBLOCK was set or cleared on the open file description.
pub(crate) fn note_nonblocking(fd: c_int, on: bool) {
    if let Some(tx) = lock_stream(fd, Way::Tx) {
        tx.slot.nonblocking.store(u32::from(on), Relaxed);
    }
}

/// After F_SETFL or FIOASYNC asked for SIGIO: a ring sends none.
pub(crate) fn note_async(fd: c_int) {
    recall::wind_down(fd, Reason::SocketOption);
}
