//! What each CPU counted of the sockets that it served last, so that most calls need not look their record up.
//!
//! A look-up in a hash map is four calls in the kernel, more than all the rest of a program; a place in an array is none. Each of the two
//! programs on the tracepoints has a part of each slot of its own, which no other writes, and the kernel does not run a program while it already runs
//! on that CPU (it counts that as missed): so nothing here is ever seen half done.
//!
//! A slot belongs to the socket that took it until others that fall on the same slot have come [`CREDIT`] times between two calls of its
//! owner. Then its sums go to the record. So many sockets in turn, of which no slot can serve each, cost hardly more than without slots.

#![allow(unsafe_code, reason = "map values are raw pointers, which the kernel's verifier checks at load")]

use core::ffi::c_void;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use tssx_ebpf::{Loss, ReceivedSlot, SIZES, SLOTS, SentSlot, Slot, Traffic, TrafficKey};

use crate::{TRAFFIC, add_sent, cpu, lose, note_size, record_of};

/// Calls on other sockets that a slot's owner outlives.
const CREDIT: u32 = 4;

#[map(name = "SLOTS")]
static ALL: PerCpuArray<Slot> = PerCpuArray::with_max_entries(SLOTS, 0);

#[inline(always)]
fn slot_of(cookie: u64) -> Option<*mut Slot> {
    ALL.get_ptr_mut(cookie as u32 & (SLOTS - 1))
}

#[inline(always)]
fn key(cookie: u64, tgid: u32) -> TrafficKey {
    TrafficKey { cookie, tgid, cpu: cpu() }
}

/// Counts a send. Gives the socket's record back where it had to be looked up.
#[inline(always)]
pub(crate) fn sent(socket: *mut c_void, cookie: u64, tgid: u32, bytes: u64) -> Option<*mut Traffic> {
    let both = slot_of(cookie)?;
    // SAFETY: the verifier proved `both` to be this CPU's; only this program writes to the part for sends.
    unsafe {
        let (slot, receives) = (&raw mut (*both).sent, &raw const (*both).received);
        if (*slot).cookie == cookie && (*slot).tgid == tgid {
            (*slot).credit = CREDIT;
            if (*slot).serial != (*receives).serial {
                (*slot).serial = (*receives).serial;
                note_answer(slot, receives);
            }
            count(slot, bytes);
            return None;
        }
        let record = match record_of(&key(cookie, tgid), socket) {
            Ok(record) => record,
            Err(loss) => {
                lose(loss, 1, bytes);
                return None;
            }
        };
        if (*slot).credit > 0 {
            (*slot).credit -= 1;
            let own = (*receives).cookie == cookie && (*receives).tgid == tgid;
            add_sent(record, (*record).rx_calls + if own { (*receives).rx_calls } else { 0 }, 1, bytes);
            return Some(record);
        }
        put_back_sent(slot);
        slot.write_bytes(0, 1);
        (*slot).cookie = cookie;
        (*slot).tgid = tgid;
        (*slot).credit = CREDIT;
        (*slot).answered = (*record).answered;
        (*slot).serial = (*receives).serial;
        note_answer(slot, receives);
        count(slot, bytes);
        Some(record)
    }
}

/// Notes whether the owner of a slot received something since it sent last.
///
/// # Safety
/// Both are this CPU's.
#[inline(always)]
unsafe fn note_answer(slot: *mut SentSlot, receives: *const ReceivedSlot) {
    // SAFETY: by the caller; a record is this CPU's by its key.
    unsafe {
        let (cookie, tgid) = ((*slot).cookie, (*slot).tgid);
        let received = if (*receives).cookie == cookie && (*receives).tgid == tgid {
            (*receives).before + (*receives).rx_calls
        } else {
            TRAFFIC.get_ptr(&key(cookie, tgid)).map_or((*slot).answered, |record| (*record).rx_calls)
        };
        if received != (*slot).answered {
            (*slot).answered = received;
            (*slot).turns += 1;
        }
    }
}

/// # Safety
/// `slot` is this CPU's.
#[inline(always)]
unsafe fn count(slot: *mut SentSlot, bytes: u64) {
    // SAFETY: by the caller.
    unsafe {
        (*slot).tx_calls += 1;
        (*slot).tx_bytes += bytes;
        note_size((&raw mut (*slot).tx_sizes).cast(), 1, bytes);
    }
}

/// Adds what a slot holds to its owner's record.
///
/// # Safety
/// `slot` is this CPU's.
#[inline(always)]
unsafe fn put_back_sent(slot: *const SentSlot) {
    // SAFETY: by the caller; a record is this CPU's by its key, and only this program writes to these fields.
    unsafe {
        if (*slot).cookie == 0 {
            return;
        }
        let Some(record) = TRAFFIC.get_ptr_mut(&key((*slot).cookie, (*slot).tgid)) else {
            lose(Loss::Refused, (*slot).tx_calls, (*slot).tx_bytes);
            return;
        };
        (*record).tx_calls += (*slot).tx_calls;
        (*record).tx_bytes += (*slot).tx_bytes;
        (*record).turns += (*slot).turns;
        (*record).answered = (*slot).answered;
        let (sums, counts) = ((&raw mut (*record).tx_sizes).cast::<u32>(), (&raw const (*slot).tx_sizes).cast::<u32>());
        for size in 0..SIZES {
            *sums.add(size) = (*sums.add(size)).wrapping_add(*counts.add(size));
        }
    }
}

/// Counts a receive.
#[inline(always)]
pub(crate) fn received(socket: *mut c_void, cookie: u64, tgid: u32, bytes: u64) {
    let Some(both) = slot_of(cookie) else { return };
    // SAFETY: the verifier proved `both` to be this CPU's, and only this program writes to the part for receives; a record is this CPU's
    // by its key.
    unsafe {
        let slot = &raw mut (*both).received;
        (*slot).serial += 1;
        if (*slot).cookie == cookie && (*slot).tgid == tgid {
            (*slot).credit = CREDIT;
            (*slot).rx_calls += 1;
            (*slot).rx_bytes += bytes;
            return;
        }
        let record = match record_of(&key(cookie, tgid), socket) {
            Ok(record) => record,
            Err(loss) => return lose(loss, 1, bytes),
        };
        if (*slot).credit > 0 {
            (*slot).credit -= 1;
            (*record).rx_calls += 1;
            (*record).rx_bytes += bytes;
            return;
        }
        put_back_received(slot);
        (*slot).cookie = cookie;
        (*slot).tgid = tgid;
        (*slot).credit = CREDIT;
        (*slot).before = (*record).rx_calls;
        (*slot).rx_calls = 1;
        (*slot).rx_bytes = bytes;
    }
}

/// As [`put_back_sent`].
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn put_back_received(slot: *const ReceivedSlot) {
    // SAFETY: by the caller; a record is this CPU's by its key, and only this program writes to these fields.
    unsafe {
        if (*slot).cookie == 0 {
            return;
        }
        match TRAFFIC.get_ptr_mut(&key((*slot).cookie, (*slot).tgid)) {
            Some(record) => {
                (*record).rx_calls += (*slot).rx_calls;
                (*record).rx_bytes += (*slot).rx_bytes;
            }
            None => lose(Loss::Refused, (*slot).rx_calls, (*slot).rx_bytes),
        }
    }
}
