//! epoll_wait. What epoll_ctl notes is in [`super::control`].
//!
//! The program's own epoll instance stays in use, with its events and data unaltered. A wait looks at the active streams'
//! rings first ([`super::interest`]); if none is ready it spins, leaves the active ones to the kernel, looks once more, and
//! enters the real wait. What the kernel reports for a stream in a ring is interpreted: a doorbell is not an event.
//! While rings stay busy the kernel is still asked at least every [`ASK_US`] microseconds, so nothing else starves.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use core::sync::atomic::fence;

use libc::{epoll_event, timespec};
use tssx_core::ledger::layout::MODE_RING;
use tssx_core::{clock, doorbell, sys};

use super::deadline::Deadline;
use super::edge::{self, EDGE, NOTHING_REPORTED, refusals};
use super::interest::{EpollSet, Watch};
use super::poll::Masked;
use super::{oneshot, state};
use crate::endpoint::{Locked, Way, lock_stream};
use crate::errno::Result;
use crate::fd_table;

/// Longest time for which busy rings keep the kernel from being asked, microseconds.
const ASK_US: u64 = 20;
/// Waits in a row in which a stream may be silent and still be looked at in user space.
const IDLE_WAITS_MAX: u8 = 4;
/// epoll's bits for writable are poll's.
pub(super) const WRITABLE: u32 = state::WRITABLE.cast_unsigned() as u32;
/// epoll's bits for readable are poll's.
pub(super) const READABLE: u32 = state::READABLE.cast_unsigned() as u32;

/// Waits for the set. `kernel` is the real wait with the program's signal mask: into the array, for at most the time given.
pub(crate) fn wait(
    set: &'static EpollSet,
    events: &mut [epoll_event],
    deadline: Deadline,
    mut kernel: impl FnMut(&mut [epoll_event], Option<timespec>, Masked) -> Result<usize>,
) -> Result<usize> {
    loop {
        heed(set);
        let first =
            if set.kernel_first.swap(0, Relaxed) == 1 { ask(set, events, 0, Deadline::Now, Masked::No, &mut kernel)? } else { 0 };
        let ready = collect(set, events, first);
        if ready > 0 {
            return Ok(also_kernel(set, events, ready, &mut kernel));
        }
        if deadline == Deadline::Now {
            return ask(set, events, 0, Deadline::Now, Masked::Yes, &mut kernel);
        }
        if has_active(set) && set.spin.spin(|| peek(set)) {
            continue;
        }
        set.sleepers.fetch_add(1, AcqRel);
        fence(SeqCst);
        let asked = if leave_to_kernel(set) || heed(set) { Ok(0) } else { ask(set, events, 0, deadline, Masked::Yes, &mut kernel) };
        take_back(set);
        set.sleepers.fetch_sub(1, AcqRel);
        match asked {
            // A doorbell that was too late, or something that became ready just before the wait.
            Ok(0) if peek(set) => {}
            Ok(0) if deadline.left().is_none_or(|left| left.tv_sec > 0 || left.tv_nsec > 0) => sys::yield_now(),
            asked => return asked,
        }
    }
}

/// Whether a stream of the set may be in a ring: otherwise the kernel's wait is all there is to do.
pub(crate) fn concerns_us(set: &'static EpollSet) -> bool {
    if set.used.load(Relaxed) == 0 {
        return false;
    }
    let mut open = set.open();
    set.once.load(Relaxed) != 0
        || open.all().iter().any(|watch| watch.endpoint.slot().is_some_and(|slot| watch.endpoint.segment(slot).is_some()))
}

/// Looks at every stream again if somebody took a doorbell that a wait might rely on.
pub(super) fn heed(set: &'static EpollSet) -> bool {
    if set.attention.load(Relaxed) == 0 || set.attention.swap(0, AcqRel) == 0 {
        return false;
    }
    let mut open = set.open();
    (0..open.all().len()).for_each(|index| open.activate(index));
    true
}

fn has_active(set: &'static EpollSet) -> bool {
    set.open().active().iter().any(in_ring)
}

/// What the rings say of one record, without asking the kernel and without reporting it.
pub(super) fn ready_events(watch: &Watch) -> u32 {
    let Some(slot) = watch.endpoint.slot() else { return 0 };
    // The record keeps the segment mapped: a connection leaves its sets before it is let go.
    let Some(segment) = watch.endpoint.segment(slot) else { return 0 };
    if !oneshot::is_armed(watch) {
        return 0;
    }
    let mut rings = state::from_rings(slot, &segment);
    if watch.events & WRITABLE != 0 {
        rings |= state::room_after_end(watch.fd, slot, &segment);
    }
    let mut ready = u32::from(rings.cast_unsigned()) & watch.events;
    if watch.events & EDGE != 0 {
        // Writability alone is an edge when it is there from the start, or comes back, which the kernel reports.
        let new = || segment.rx().tail.load(Acquire) != watch.reported || edge::ends(slot, &segment) != watch.ends;
        let bytes = ready & READABLE != 0 && new();
        let room = ready & WRITABLE != 0 && watch.refusals == NOTHING_REPORTED;
        if !bytes && !room {
            ready = 0;
        }
    }
    ready
}

/// Room to tell of with an edge that a ring has told: the kernel tells of it once, and again only with edges of its own.
fn room_in_kernel(watch: &Watch) -> u32 {
    let slot = watch.endpoint.slot().filter(|slot| slot.tx_mode.load(Relaxed) != MODE_RING);
    if slot.is_none() || watch.events & EDGE == 0 || watch.events & WRITABLE == 0 {
        return 0;
    }
    let seen = sys::poll_now(watch.fd, libc::POLLOUT | libc::POLLWRNORM).unwrap_or(0);
    u32::from(seen.cast_unsigned()) & WRITABLE & watch.events
}

/// Notes that what has arrived so far is reported, and room if `ready` tells of it.
fn mark_reported(watch: &mut Watch, ready: u32) {
    let Some(slot) = watch.endpoint.slot() else { return };
    if let Some(segment) = watch.endpoint.segment(slot) {
        watch.reported = segment.rx().tail.load(Acquire);
        watch.ends = edge::ends(slot, &segment);
        if ready & WRITABLE != 0 {
            watch.refusals = refusals(watch);
            watch.room_in_ring = slot.tx_mode.load(Relaxed) == MODE_RING;
        }
    }
}

/// Whether the rings know all that is asked of a stream: its bytes and its room are in them, and no end is announced. If they do not, the
/// kernel is asked beside them.
fn rings_suffice(watch: &Watch) -> bool {
    let Some(slot) = watch.endpoint.slot() else { return false };
    let Some(segment) = watch.endpoint.segment(slot) else { return false };
    let bytes = watch.events & (READABLE | libc::EPOLLPRI.cast_unsigned()) == 0 || state::receives_in_ring(slot, &segment);
    let room = watch.events & WRITABLE == 0 || slot.tx_mode.load(Relaxed) == MODE_RING;
    bytes && room && edge::ends(slot, &segment) == 0
}

fn peek(set: &'static EpollSet) -> bool {
    set.open().active().iter().any(|watch| ready_events(watch) != 0)
}

/// Adds what the active streams' rings say to the first `used` events; how many there are then.
fn collect(set: &'static EpollSet, events: &mut [epoll_event], used: usize) -> usize {
    let (known, room) = events.split_at_mut(used.min(events.len()));
    let mut open = set.open();
    let active = open.active();
    let mut count = 0;
    let mut once = None;
    for watch in active.iter_mut() {
        if !rings_suffice(watch) {
            set.asked.store(0, Relaxed);
        }
        let Some(event) = room.get_mut(count).filter(|_| once.is_none()) else { break };
        let ready = ready_events(watch);
        let reported = known.iter().any(|event| { event.u64 } == watch.data);
        if ready != 0 && !reported {
            let ready = ready | room_in_kernel(watch);
            *event = epoll_event { events: ready, u64: watch.data };
            mark_reported(watch, ready);
            count += 1;
            if oneshot::is_one(watch) {
                watch.armed = false;
                once = Some(*watch); // one in a wait: the kernel is told when the set is let go
            }
        }
    }
    // Whoever did not fit comes first next time.
    if count == room.len() && count < active.len() {
        active.rotate_left(count);
    }
    drop(open);
    if let Some(watch) = once {
        // All that there is to tell, since nothing follows before it is armed again.
        if let Some(event) = count.checked_sub(1).and_then(|last| room.get_mut(last)) {
            event.events |= all_events(&watch);
        }
        oneshot::disarm_in_kernel(set, &watch);
    }
    used + count
}

/// While rings are busy: if the kernel was not asked for a while, asks it too for what still fits into the array, or first thing
/// next time if nothing fits. How many events there are then.
fn also_kernel(
    set: &'static EpollSet,
    events: &mut [epoll_event],
    ready: usize,
    kernel: &mut impl FnMut(&mut [epoll_event], Option<timespec>, Masked) -> Result<usize>,
) -> usize {
    if clock::ticks().wrapping_sub(set.asked.load(Relaxed)) <= ASK_US * clock::ticks_per_us() {
        return ready;
    }
    if ready >= events.len() {
        set.kernel_first.store(1, Relaxed);
        return ready;
    }
    ask(set, events, ready, Deadline::Now, Masked::No, kernel).unwrap_or(ready)
}

/// The real wait into the array behind its first `used` events, and what its events mean. How many there are then. A stream that is
/// among the first already gets its kernel bits there, not a second event.
fn ask(
    set: &'static EpollSet,
    events: &mut [epoll_event],
    used: usize,
    deadline: Deadline,
    masked: Masked,
    kernel: &mut impl FnMut(&mut [epoll_event], Option<timespec>, Masked) -> Result<usize>,
) -> Result<usize> {
    let count = kernel(events.get_mut(used..).unwrap_or_default(), deadline.left(), masked)?;
    set.asked.store(clock::ticks(), Relaxed);
    Ok(understand(set, events, used, count))
}

/// What `count` events that the kernel wrote behind the first `used` mean. How many there are then.
fn understand(set: &'static EpollSet, events: &mut [epoll_event], used: usize, count: usize) -> usize {
    let mut kept = used;
    let ends = (libc::EPOLLHUP | libc::EPOLLRDHUP | libc::EPOLLERR).cast_unsigned();
    if events.iter().skip(used).take(count).any(|event| { event.events } & ends != 0) {
        set.asked.store(0, Relaxed); // the rings do not know of every end: the kernel is asked again with them
    }
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
    kept
}

/// After a wait that began when no ring concerned the set: what the first `count` events mean now. How many are left.
pub(crate) fn review(set: &'static EpollSet, events: &mut [epoll_event], count: usize) -> usize {
    understand(set, events, 0, count)
}

/// The event as the program gets it: unchanged unless its data is that of a stream in a ring.
fn interpret(set: &'static EpollSet, mut event: epoll_event) -> Option<epoll_event> {
    let data = event.u64;
    let watch = {
        let mut open = set.open();
        let found = open.all().iter().position(|watch| watch.data == data && (in_ring(watch) || concerns_epoll(watch)));
        let Some(index) = found else { return Some(event) };
        let watch = open.all().get_mut(index).map(|watch| {
            let before = *watch;
            watch.armed = false; // in the kernel too, now
            watch.echo = watch.nudged && watch.events & EDGE != 0;
            watch.nudged = false;
            watch.bells = bells(watch);
            if event.events & WRITABLE != 0 && !in_ring(watch) {
                watch.refusals = refusals(watch); // the kernel has told of room
            }
            before
        });
        open.activate(index);
        watch
    };
    let Some(watch) = watch else { return Some(event) };
    if !oneshot::is_armed(&watch) {
        return None;
    }
    if watch.nudged {
        event.events &= !WRITABLE | watch.events;
        if !oneshot::is_one(&watch) {
            oneshot::arm_in_kernel(set, &watch);
        }
    }
    // Without the set's lock: taking doorbells needs the stream's, and the order is stream before set nowhere.
    let rest = |event: epoll_event| Some(event).filter(|event| !watch.nudged || { event.events } & 0xffff != 0);
    let Some((fd, rx)) = lock_watched(&watch) else { return rest(event) };
    let Some(segment) = rx.segment else { return rest(event) };
    let refused = refusals(&watch);
    let revents = state::interpret(fd, &rx, &segment, low_bits(watch.events), low_bits(event.events));
    let mut ready = (event.events & !0xffff) | u32::from(revents.cast_unsigned());
    // An arrival that was reported before; or doorbells: taken since this record was looked at (also for another record of the same
    // stream), or still there because somebody else may need them.
    let explained = revents != 0 || bells(&watch) != watch.bells || sys::poll_now(fd, libc::POLLIN).unwrap_or(0) != 0;
    if !edge::has_news(set, &watch, &rx, fd, event.events, ready) {
        ready = 0;
    }
    drop(rx);
    edge::note(set, &watch, ready, refused);
    if ready != 0 {
        return Some(epoll_event { events: ready, u64: data });
    }
    if oneshot::is_one(&watch) {
        update(set, &watch, |same| same.armed = true);
        oneshot::arm_in_kernel(set, &watch);
        return None;
    }
    // Not a doorbell either: the event may be another descriptor's with the same data.
    (!explained).then_some(event).and_then(rest)
}

/// Changes the record of which `watch` is a copy, if it is there still.
pub(super) fn update<T>(set: &'static EpollSet, watch: &Watch, change: impl FnOnce(&mut Watch) -> T) -> Option<T> {
    let mut open = set.open();
    let index = open.find(watch.fd)?;
    open.all().get_mut(index).map(change)
}

/// What rings and kernel say of one record.
fn all_events(watch: &Watch) -> u32 {
    let Some((fd, rx)) = lock_watched(watch) else { return 0 };
    let Some(segment) = rx.segment else { return 0 };
    let wanted = low_bits(watch.events);
    u32::from(state::interpret(fd, &rx, &segment, wanted, sys::poll_now(fd, wanted).unwrap_or(0)).cast_unsigned())
}

/// Doorbells of the stream that were taken.
fn bells(watch: &Watch) -> u64 {
    watch.endpoint.slot().map_or(0, |slot| slot.doorbell_rx_bytes.load(Relaxed))
}

/// Whether what the kernel says of the record must be looked at even if no ring is.
fn concerns_epoll(watch: &Watch) -> bool {
    watch.nudged || oneshot::is_one(watch) || watch.events & EDGE != 0
}

fn in_ring(watch: &Watch) -> bool {
    let Some(slot) = watch.endpoint.slot() else { return false };
    watch.endpoint.segment(slot).is_some_and(|segment| state::concerns_us(slot, &segment))
}

/// poll's bits of an epoll mask.
pub(super) fn low_bits(events: u32) -> i16 {
    u16::try_from(events & 0xffff).unwrap_or(0).cast_signed()
}

/// Announces a watcher on every active stream. True if one is ready after all.
pub(super) fn leave_to_kernel(set: &'static EpollSet) -> bool {
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
pub(super) fn take_back(set: &'static EpollSet) {
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
fn look_after_wait(set: &'static EpollSet, watch: &Watch) -> AfterWait {
    let Some((_, rx)) = lock_watched(watch) else { return AfterWait::Quiet };
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

/// The watched stream, locked, with a descriptor that leads to it: the one that was added, or a duplicate that has outlived it.
pub(super) fn lock_watched(watch: &Watch) -> Option<(c_int, Locked)> {
    let own = |fd: c_int| lock_stream(fd, Way::Rx).filter(|rx| core::ptr::eq(rx.endpoint, watch.endpoint)).map(|rx| (fd, rx));
    own(watch.fd).or_else(|| fd_table::find_stream(watch.endpoint).and_then(own))
}

fn announce(watch: &Watch) -> bool {
    let Some((fd, rx)) = lock_watched(watch) else { return false };
    let Some(segment) = rx.segment else { return false };
    state::prepare_to_wait(fd, &rx, &segment)
}

/// The ring holds bytes; are they an event for this record?
fn is_still_ready(set: &'static EpollSet, watch: &Watch) -> bool {
    let mut open = set.open();
    let index = open.find(watch.fd);
    index.and_then(|index| open.all().get(index)).is_some_and(|watch| ready_events(watch) != 0)
}
