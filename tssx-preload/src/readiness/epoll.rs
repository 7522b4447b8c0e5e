//! epoll_ctl and epoll_wait.
//!
//! The program's own epoll instance stays in use, with its events and data unaltered. A wait looks at the active streams'
//! rings first ([`super::interest`]); if none is ready it spins, leaves the active ones to the kernel, looks once more, and
//! enters the real wait. What the kernel reports for a stream in a ring is interpreted: a doorbell is not an event.
//! While rings stay busy the kernel is still asked at least every [`ASK_US`] microseconds, so nothing else starves.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, fence};

use libc::{epoll_event, timespec};
use tssx_core::ledger::layout::MODE_RING;
use tssx_core::reason::Reason;
use tssx_core::{clock, doorbell, lock};

use super::deadline::Deadline;
use super::interest::{EpollSet, Watch};
use super::state;
use crate::endpoint::{Way, lock_stream};
use crate::errno::Result;
use crate::fd_table::{self, Entry};
use crate::init;
use crate::process::{self, descriptors};
use crate::socket::recall;

/// Longest time for which busy rings keep the kernel from being asked, microseconds.
const ASK_US: u64 = 20;
/// Waits in a row in which a stream may be silent and still be looked at in user space.
const IDLE_WAITS_MAX: u8 = 4;
/// No arrival was reported yet.
const NOTHING_REPORTED: u64 = u64::MAX;
/// Modes in which the kernel must do all the reporting.
const KERNEL_MODES: u32 = (libc::EPOLLONESHOT | libc::EPOLLEXCLUSIVE).cast_unsigned();
const EDGE: u32 = libc::EPOLLET.cast_unsigned();
/// epoll's bits for readable are poll's.
const READABLE: u32 = state::READABLE.cast_unsigned() as u32;

/// After an epoll_ctl(2) that succeeded: keeps our notes in step.
pub(crate) fn changed(epoll: c_int, operation: c_int, fd: c_int, event: Option<epoll_event>) {
    if operation != libc::EPOLL_CTL_DEL
        && let Some(Entry::Epoll(_)) = fd_table::get(fd)
    {
        nested(fd);
    }
    let Some(endpoint) = fd_table::stream(fd) else {
        note_registered(operation, fd);
        return;
    };
    let Some(set) = fd_table::epoll(epoll).or_else(|| adopt(epoll)) else {
        recall::leave_rings_now(fd, Reason::EpollMode);
        return;
    };
    let mut open = set.open();
    if let Some(index) = open.find(fd)
        && let Some(watch) = open.all().get(index).copied()
    {
        open.remove_at(index);
        watch.endpoint.watchers.remove(set);
    }
    let Some(event) = event.filter(|_| operation != libc::EPOLL_CTL_DEL) else { return };
    let watch =
        Watch { fd, events: event.events, data: event.u64, endpoint, active: false, idle_waits: 0, reported: NOTHING_REPORTED };
    let noted = endpoint.watchers.insert(set) && open.add(watch);
    drop(open);
    if !noted || event.events & KERNEL_MODES != 0 {
        recall::leave_rings_now(fd, Reason::EpollMode);
    }
}

/// Remembers that a socket is in some set: if it is connected later, to a selected name, it stays with the kernel.
fn note_registered(operation: c_int, fd: c_int) {
    match fd_table::get(fd) {
        None if operation == libc::EPOLL_CTL_ADD && init::active().is_some() => {
            let _ = fd_table::set(fd, Some(Entry::Registered));
        }
        Some(Entry::Registered) if operation == libc::EPOLL_CTL_DEL => {
            let _ = fd_table::set(fd, None);
        }
        _ => {}
    }
}

/// Held while a set is made for an epoll descriptor.
static ADOPTING: AtomicU32 = AtomicU32::new(0);

/// In a forked child: whoever held the lock does not exist here.
pub(crate) fn after_fork_in_child() {
    ADOPTING.store(0, Relaxed);
}

/// An epoll descriptor that was made before we were asked: notes begin now.
fn adopt(epoll: c_int) -> Option<&'static EpollSet> {
    init::active()?;
    // Two threads may add the first streams at the same time: there must be one set.
    let _guard = lock::acquire(&ADOPTING, process::pid());
    if let Some(set) = fd_table::epoll(epoll) {
        return Some(set);
    }
    let set = EpollSet::create()?;
    set.attach();
    match fd_table::set(epoll, Some(Entry::Epoll(set))) {
        Ok(previous) => {
            descriptors::retire(epoll, previous, descriptors::Cause::Stale);
            Some(set)
        }
        Err(()) => None,
    }
}

/// The set at `inner` is waited for through another set, where we do not look: its streams stay with the kernel.
fn nested(inner: c_int) {
    let Some(set) = fd_table::epoll(inner) else { return };
    let mut index = 0;
    loop {
        let watch = set.open().all().get(index).copied();
        let Some(watch) = watch else { return };
        recall::leave_rings_now(watch.fd, Reason::EpollMode);
        index += 1;
    }
}

/// Waits for the set. `kernel` is the real wait with the program's signal mask: into the array, for at most the time given.
pub(crate) fn wait(
    set: &'static EpollSet,
    events: &mut [epoll_event],
    deadline: Deadline,
    mut kernel: impl FnMut(&mut [epoll_event], Option<timespec>) -> Result<usize>,
) -> Result<usize> {
    loop {
        heed(set);
        let first = if set.kernel_first.swap(0, Relaxed) == 1 { ask(set, events, 0, Deadline::Now, &mut kernel)? } else { 0 };
        let ready = collect(set, events, first);
        if ready > 0 {
            return Ok(also_kernel(set, events, ready, &mut kernel));
        }
        if deadline == Deadline::Now {
            return ask(set, events, 0, Deadline::Now, &mut kernel);
        }
        if has_active(set) && set.spin.spin(|| peek(set)) {
            continue;
        }
        set.sleepers.fetch_add(1, AcqRel);
        fence(SeqCst);
        let asked = if leave_to_kernel(set) || heed(set) { Ok(0) } else { ask(set, events, 0, deadline, &mut kernel) };
        take_back(set);
        set.sleepers.fetch_sub(1, AcqRel);
        match asked {
            // A doorbell that was too late, or something that became ready just before the wait.
            Ok(0) if peek(set) || deadline.left().is_none_or(|left| left.tv_sec > 0 || left.tv_nsec > 0) => {}
            asked => return asked,
        }
    }
}

/// Whether a stream of the set may be in a ring: otherwise the kernel's wait is all there is to do.
pub(crate) fn concerns_us(set: &EpollSet) -> bool {
    let mut open = set.open();
    open.all().iter().any(|watch| watch.endpoint.slot().is_some_and(|slot| watch.endpoint.segment(slot).is_some()))
}

/// Looks at every stream again if somebody took a doorbell that a wait might rely on.
fn heed(set: &EpollSet) -> bool {
    if set.attention.load(Relaxed) == 0 || set.attention.swap(0, AcqRel) == 0 {
        return false;
    }
    let mut open = set.open();
    (0..open.all().len()).for_each(|index| open.activate(index));
    true
}

fn has_active(set: &EpollSet) -> bool {
    set.open().active().iter().any(in_ring)
}

/// What the rings say of one record, without asking the kernel and without reporting it.
fn ready_events(watch: &Watch) -> u32 {
    let Some(slot) = watch.endpoint.slot() else { return 0 };
    // The record keeps the segment mapped: a connection leaves its sets before it is let go.
    let Some(segment) = watch.endpoint.segment(slot) else { return 0 };
    let mut ready = u32::from(state::from_rings(slot, &segment).cast_unsigned()) & watch.events;
    if watch.events & EDGE != 0 {
        let tail = segment.rx().tail.load(Acquire);
        if ready & READABLE == 0 || tail == watch.reported {
            // Writability alone is an edge only when it comes back, which the kernel reports.
            ready = 0;
        }
    }
    ready
}

/// Notes that what has arrived so far is reported.
fn mark_reported(watch: &mut Watch) {
    if let Some(segment) = watch.endpoint.slot().and_then(|slot| watch.endpoint.segment(slot)) {
        watch.reported = segment.rx().tail.load(Acquire);
    }
}

fn peek(set: &EpollSet) -> bool {
    set.open().active().iter().any(|watch| ready_events(watch) != 0)
}

/// Adds what the active streams' rings say to the first `used` events; how many there are then.
fn collect(set: &EpollSet, events: &mut [epoll_event], used: usize) -> usize {
    let (known, room) = events.split_at_mut(used.min(events.len()));
    let mut open = set.open();
    let active = open.active();
    let mut count = 0;
    for watch in active.iter_mut() {
        let Some(event) = room.get_mut(count) else { break };
        let ready = ready_events(watch);
        let reported = known.iter().any(|event| { event.u64 } == watch.data);
        if ready != 0 && !reported {
            *event = epoll_event { events: ready, u64: watch.data };
            mark_reported(watch);
            count += 1;
        }
    }
    // Whoever did not fit comes first next time.
    if count == room.len() && count < active.len() {
        active.rotate_left(count);
    }
    used + count
}

/// While rings are busy: if the kernel was not asked for a while, asks it too for what still fits into the array, or first thing
/// next time if nothing fits. How many events there are then.
fn also_kernel(
    set: &'static EpollSet,
    events: &mut [epoll_event],
    ready: usize,
    kernel: &mut impl FnMut(&mut [epoll_event], Option<timespec>) -> Result<usize>,
) -> usize {
    if clock::ticks().wrapping_sub(set.asked.load(Relaxed)) <= ASK_US * clock::ticks_per_us() {
        return ready;
    }
    if ready >= events.len() {
        set.kernel_first.store(1, Relaxed);
        return ready;
    }
    ask(set, events, ready, Deadline::Now, kernel).unwrap_or(ready)
}

/// The real wait into the array behind its first `used` events, and what its events mean. How many there are then. A stream that is
/// among the first already gets its kernel bits there, not a second event.
fn ask(
    set: &'static EpollSet,
    events: &mut [epoll_event],
    used: usize,
    deadline: Deadline,
    kernel: &mut impl FnMut(&mut [epoll_event], Option<timespec>) -> Result<usize>,
) -> Result<usize> {
    let count = kernel(events.get_mut(used..).unwrap_or_default(), deadline.left())?;
    set.asked.store(clock::ticks(), Relaxed);
    let mut kept = used;
    for index in used..used + count {
        let Some(event) = events.get(index).copied() else { break };
        let Some(event) = interpret(set, event) else { continue };
        let data = event.u64;
        if let Some(known) = events.iter_mut().take(used).find(|known| { known.u64 } == data) {
            known.events |= event.events;
        } else if let Some(place) = events.get_mut(kept) {
            *place = event;
            kept += 1;
        }
    }
    Ok(kept)
}

/// The event as the program gets it: unchanged unless its data is that of a stream in a ring.
fn interpret(set: &'static EpollSet, event: epoll_event) -> Option<epoll_event> {
    let data = event.u64;
    let watch = {
        let mut open = set.open();
        let found = open.all().iter().position(|watch| watch.data == data && in_ring(watch));
        let Some(index) = found else { return Some(event) };
        let watch = open.all().get(index).copied();
        open.activate(index);
        watch
    };
    let Some(watch) = watch else { return Some(event) };
    // Without the set's lock: taking doorbells needs the stream's, and the order is stream before set nowhere.
    let Some(rx) = lock_stream(watch.fd, Way::Rx).filter(|rx| core::ptr::eq(rx.endpoint, watch.endpoint)) else {
        return Some(event); // closed under its number, but alive as a duplicate: the kernel's word stands
    };
    let Some(segment) = rx.segment else { return Some(event) };
    let before = rx.slot.doorbell_rx_bytes.load(Relaxed);
    let revents = state::interpret(watch.fd, &rx, &segment, low_bits(watch.events), low_bits(event.events));
    let mut ready = (event.events & !0xffff) | u32::from(revents.cast_unsigned());
    if watch.events & EDGE != 0 && ready & READABLE != 0 && !is_new_edge(set, &watch, &segment, event.events) {
        ready &= !READABLE;
    }
    drop(rx);
    if ready != 0 {
        return Some(epoll_event { events: ready, u64: data });
    }
    // Readable, the ring empty, and no doorbell to take: the event may be another descriptor's with the same data.
    let unexplained = revents.cast_unsigned() == 0 && slot_doorbells(&watch) == before;
    unexplained.then_some(event)
}

/// Edge-triggered: whether bytes have arrived since the last report, or the peer has ended the stream.
fn is_new_edge(set: &EpollSet, watch: &Watch, segment: &tssx_core::segment::Segment, events: u32) -> bool {
    let ended = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();
    let tail = segment.rx().tail.load(Acquire);
    let fresh = tail != watch.reported || events & ended != 0;
    let mut open = set.open();
    if let Some(index) = open.find(watch.fd)
        && let Some(watch) = open.all().get_mut(index)
    {
        watch.reported = tail;
    }
    fresh
}

fn slot_doorbells(watch: &Watch) -> u64 {
    watch.endpoint.slot().map_or(0, |slot| slot.doorbell_rx_bytes.load(Relaxed))
}

fn in_ring(watch: &Watch) -> bool {
    let Some(slot) = watch.endpoint.slot() else { return false };
    watch.endpoint.segment(slot).is_some_and(|segment| state::concerns_us(slot, &segment))
}

/// poll's bits of an epoll mask.
fn low_bits(events: u32) -> i16 {
    u16::try_from(events & 0xffff).unwrap_or(0).cast_signed()
}

/// Announces a watcher on every active stream. True if one is ready after all.
fn leave_to_kernel(set: &'static EpollSet) -> bool {
    let (mut index, mut version) = (0, set.open().version());
    loop {
        // A copy: taking doorbells needs the stream's lock, which is never taken inside the set's.
        let (next, now) = {
            let mut open = set.open();
            (open.active().get(index).copied(), open.version())
        };
        if now != version {
            // Another thread moved records; announcing twice does no harm, leaving one out does.
            (index, version) = (0, now);
            continue;
        }
        let Some(watch) = next else { return false };
        if announce(&watch) && is_still_ready(set, &watch) {
            return true;
        }
        index += 1;
    }
}

/// After the kernel's wait: streams that were busy lately are looked at in user space again, and need no doorbell for their next
/// bytes; the others stay with the kernel.
fn take_back(set: &'static EpollSet) {
    let mut index = 0;
    loop {
        let next = set.open().active().get(index).copied();
        let Some(watch) = next else { return };
        let found = look_after_wait(set, &watch);
        let mut open = set.open();
        match open.active().get_mut(index).filter(|same| same.fd == watch.fd) {
            Some(same) if found == AfterWait::Busy => same.idle_waits = 0,
            Some(same) if found == AfterWait::Quiet => same.idle_waits = same.idle_waits.saturating_add(1),
            Some(_) => {
                open.deactivate(index);
                drop(open);
                if look_after_wait(set, &watch) != AfterWait::Idle {
                    // Its peer rang in between: the doorbell may be taken by now, and nobody else would look.
                    let mut open = set.open();
                    open.find(watch.fd).into_iter().for_each(|index| open.activate(index));
                }
                continue; // another record is at this index now
            }
            // Another thread moved the record, perhaps to the inactive ones, and we may have withdrawn what it relies on.
            None => open.find(watch.fd).into_iter().for_each(|index| open.activate(index)),
        }
        index += 1;
    }
}

/// What a stream looks like after a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterWait {
    /// Its ring holds bytes.
    Busy,
    /// Nothing came, but it was busy not long ago.
    Quiet,
    /// Nothing came for several waits, and its peer knows that it must ring.
    Idle,
}

/// Withdraws the announcement of a stream that was busy lately, if nobody else can be relying on it.
fn look_after_wait(set: &EpollSet, watch: &Watch) -> AfterWait {
    let Some(rx) = lock_stream(watch.fd, Way::Rx).filter(|rx| core::ptr::eq(rx.endpoint, watch.endpoint)) else {
        return AfterWait::Quiet;
    };
    let Some(segment) = rx.segment.filter(|_| rx.slot.rx_mode.load(Relaxed) == MODE_RING) else { return AfterWait::Quiet };
    let bytes = state::from_rings(rx.slot, &segment) & state::READABLE != 0;
    // Announced still, under the lock: whoever takes a doorbell that is rung from now on announces again.
    if !bytes && watch.idle_waits >= IDLE_WAITS_MAX && doorbell::is_watched(&segment) {
        return AfterWait::Idle;
    }
    if rx.slot.rx_waiters.load(Relaxed) == 0 && set.sleepers.load(Relaxed) == 1 && rx.endpoint.watchers.count() == 1 {
        doorbell::withdraw(&segment);
    }
    if bytes { AfterWait::Busy } else { AfterWait::Quiet }
}

fn announce(watch: &Watch) -> bool {
    let Some(rx) = lock_stream(watch.fd, Way::Rx).filter(|rx| core::ptr::eq(rx.endpoint, watch.endpoint)) else {
        return false;
    };
    let Some(segment) = rx.segment else { return false };
    state::prepare_to_wait(watch.fd, &rx, &segment)
}

/// The ring holds bytes; are they an event for this record?
fn is_still_ready(set: &EpollSet, watch: &Watch) -> bool {
    let mut open = set.open();
    let index = open.find(watch.fd);
    index.and_then(|index| open.all().get(index)).is_some_and(|watch| ready_events(watch) != 0)
}
