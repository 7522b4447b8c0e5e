//! epoll_wait. What epoll_ctl notes is in [`super::control`].
//!
//! The program's own epoll instance stays in use, with its events and data unaltered. A wait looks at the active streams'
//! rings first ([`super::scan`]); if none is ready it spins, leaves the active ones to the kernel ([`super::sleep`]), looks once more, and
//! enters the real wait. What the kernel reports for a stream in a ring is interpreted: a doorbell is not an event.
//! While rings stay busy the kernel is still asked at least every [`ASK_US`] microseconds, so nothing else starves.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use core::sync::atomic::fence;

use libc::{epoll_event, timespec};
use tssx_core::{clock, doorbell, sys};

use super::deadline::Deadline;
use super::edge::{self, EDGE, refusals};
use super::interest::EpollSet;
use super::poll::Masked;
use super::records::Watch;
use super::sleep::{self, Handle};
use super::{oneshot, scan, state};
use crate::errno::Result;
use crate::init;

/// Longest time for which busy rings keep the kernel from being asked, microseconds.
const ASK_US: u64 = 20;
/// What a sleep costs for each active stream, nanoseconds: it is announced before and withdrawn afterwards, or has to ring.
const SLEEP_NS: u64 = 500;
/// How much longer than a spin in vain it takes until what it taught is forgotten: the share of time that is wasted at most.
const SPIN_SHARE: u64 = 32;
/// Streams at which a look in a spin looks: the clock is read after a number of looks.
const PEEK: usize = 64;
/// epoll's bits for writable are poll's.
pub(super) const WRITABLE: u32 = state::WRITABLE.cast_unsigned() as u32;
/// epoll's bits for readable are poll's.
pub(super) const READABLE: u32 = state::READABLE.cast_unsigned() as u32;

/// One wait for a set.
#[derive(Clone, Copy)]
struct Wait {
    set: &'static EpollSet,
    /// [`EpollSet::number_wait`].
    number: u64,
}

/// Waits for the set. `kernel` is the real wait with the program's signal mask: into the array, for at most the time given.
pub(crate) fn wait(
    set: &'static EpollSet,
    events: &mut [epoll_event],
    deadline: Deadline,
    mut kernel: impl FnMut(&mut [epoll_event], Option<timespec>, Masked) -> Result<usize>,
) -> Result<usize> {
    loop {
        let wait = Wait { set, number: set.number_wait() };
        set.heed();
        let is_due = set.kernel_first.load(Relaxed) != 0 && set.kernel_first.swap(0, Relaxed) != 0;
        let first = if is_due { ask(wait, events, 0, Deadline::Now, Masked::No, &mut kernel)? } else { 0 };
        let ready = scan::collect(set, events, first, wait.number);
        if ready > 0 {
            return Ok(also_kernel(wait, events, ready, &mut kernel));
        }
        if deadline == Deadline::Now {
            return ask(wait, events, 0, Deadline::Now, Masked::Yes, &mut kernel);
        }
        if spin(set) {
            continue;
        }
        set.sleepers.fetch_add(1, AcqRel);
        fence(SeqCst);
        let asked = if sleep::leave_to_kernel(set) || set.heed() {
            Ok(0)
        } else {
            ask(wait, events, 0, deadline, Masked::Yes, &mut kernel)
        };
        sleep::take_back(set);
        set.sleepers.fetch_sub(1, AcqRel);
        match asked {
            // A doorbell that was too late, or something that became ready just before the wait.
            Ok(0) if scan::peek(set) => {}
            Ok(0) if deadline.left().is_none_or(|left| left.tv_sec > 0 || left.tv_nsec > 0) => sys::yield_now(),
            asked => return asked,
        }
    }
}

/// Looks at the active streams until one has something to tell, while it pays: at most as long as is usual, or as going to sleep and coming
/// back costs. Where that is long, waits are few, and what was learned from spins in vain is forgotten after a time.
fn spin(set: &'static EpollSet) -> bool {
    let active = scan::active_in_rings(set);
    let mut place = 0;
    let look = || scan::peek_at_some(set, &mut place, PEEK);
    let least_us = active as u64 * SLEEP_NS / 1000;
    if least_us <= init::spin_us() {
        return active > 0 && set.spin.spin(look);
    }
    let (begun, budget) = (clock::ticks(), least_us * clock::ticks_per_us());
    if begun.wrapping_sub(set.spun.load(Relaxed)) > budget * SPIN_SHARE {
        set.spin.reset();
    }
    let seen = set.spin.spin_at_least(least_us, look);
    let now = clock::ticks();
    if !seen && now.wrapping_sub(begun) * SPIN_SHARE > budget {
        set.spun.store(now, Relaxed); // not one that was left out
    }
    seen
}

/// While rings are busy: if the kernel was not asked for a while, asks it too for what still fits into the array, or first thing
/// next time if nothing fits. How many events there are then.
fn also_kernel(
    wait: Wait,
    events: &mut [epoll_event],
    ready: usize,
    kernel: &mut impl FnMut(&mut [epoll_event], Option<timespec>, Masked) -> Result<usize>,
) -> usize {
    let set = wait.set;
    if clock::ticks().wrapping_sub(set.asked.load(Relaxed)) <= ASK_US * clock::ticks_per_us() {
        return ready;
    }
    if ready >= events.len() {
        set.kernel_first.store(1, Relaxed);
        return ready;
    }
    ask(wait, events, ready, Deadline::Now, Masked::No, kernel).unwrap_or(ready)
}

/// The real wait into the array behind its first `used` events, and what its events mean. How many there are then. A stream that is
/// among the first already gets its kernel bits there, not a second event.
fn ask(
    wait: Wait,
    events: &mut [epoll_event],
    used: usize,
    deadline: Deadline,
    masked: Masked,
    kernel: &mut impl FnMut(&mut [epoll_event], Option<timespec>, Masked) -> Result<usize>,
) -> Result<usize> {
    let count = kernel(events.get_mut(used..).unwrap_or_default(), deadline.left(), masked)?;
    wait.set.asked.store(clock::ticks(), Relaxed);
    Ok(understand(wait, events, used, count))
}

/// What `count` events that the kernel wrote behind the first `used` mean. How many there are then.
fn understand(wait: Wait, events: &mut [epoll_event], used: usize, count: usize) -> usize {
    let mut kept = used;
    let ends = (libc::EPOLLHUP | libc::EPOLLRDHUP | libc::EPOLLERR).cast_unsigned();
    if events.iter().skip(used).take(count).any(|event| { event.events } & ends != 0) {
        wait.set.asked.store(0, Relaxed); // the rings do not know of every end: the kernel is asked again with them
    }
    let answer = wait.set.number_wait();
    for index in used..used + count {
        let Some(event) = events.get(index).copied() else { break };
        let Some((event, may_be_known)) = interpret(wait, answer, event) else { continue };
        let data = event.u64;
        let known = if may_be_known { used } else { 0 };
        if let Some(known) = events.iter_mut().take(known).find(|known| { known.u64 } == data) {
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
    understand(Wait { set, number: set.number_wait() }, events, 0, count)
}

/// The event as the program gets it, unchanged unless its data is that of a stream in a ring; and whether the wait may have reported it before:
/// of what is no stream of ours nobody knows, and the kernel may have been asked twice.
fn interpret(wait: Wait, answer: u64, event: epoll_event) -> Option<(epoll_event, bool)> {
    let Wait { set, number } = wait;
    let Some((watch, concerned)) = look_up(wait, answer, &event) else { return Some((event, true)) };
    let event = if concerned { interpret_for(set, &watch, event) } else { Some(event) };
    event.map(|event| (event, watch.reported_by >= number))
}

/// The record of an event of the kernel's, as it was before, and whether a ring concerns it: it is noted that the event was seen. Of several
/// with the same data, one that a doorbell can be about.
fn look_up(wait: Wait, answer: u64, event: &epoll_event) -> Option<(Watch, bool)> {
    let Wait { set, number } = wait;
    let concerned = |watch: &Watch| in_ring(watch) || concerns_epoll(watch);
    let rung = |watch: &Watch| concerned(watch) && has_bells(watch);
    let fresh = |watch: &Watch| watch.reported_by < number;
    let mut open = set.open();
    // An answer has at most one event for each record.
    let mut find =
        |what: &dyn Fn(&Watch) -> bool| open.find_data(event.u64, |watch: &Watch| watch.answered_by < answer && what(watch));
    let likely = find(&rung).or_else(|| find(&|watch| concerned(watch) && fresh(watch)));
    // One that the kernel carries, with the data of one that a ring has told of in this wait.
    let other = if likely.is_none() { find(&|watch| fresh(watch) && !concerned(watch) && is_ready(watch)) } else { None };
    let found = likely.or_else(|| if other.is_none() { find(&concerned) } else { None });
    let index = found.or(other).or_else(|| find(&|_| true)).or_else(|| open.find_data(event.u64, |_| true))?;
    open.doubt_announcements(event.u64);
    let watch = open.get(index)?;
    let before = *watch;
    watch.reported_by = watch.reported_by.max(number);
    watch.answered_by = answer;
    if found.is_none() {
        return Some((before, false));
    }
    watch.armed = false; // in the kernel too, now
    watch.echo = watch.nudged && watch.events & EDGE != 0;
    watch.nudged = false;
    watch.bells = bells(watch);
    if event.events & WRITABLE != 0 && !in_ring(watch) {
        watch.refusals = refusals(watch); // the kernel has told of room
    }
    open.activate(index);
    Some((before, true))
}

fn interpret_for(set: &'static EpollSet, watch: &Watch, mut event: epoll_event) -> Option<epoll_event> {
    if !oneshot::is_armed(watch) {
        return None;
    }
    if watch.nudged {
        event.events &= !WRITABLE | watch.events;
        if !oneshot::is_one(watch) {
            oneshot::arm_in_kernel(set, watch);
        }
    }
    // Without the set's lock: taking doorbells needs the stream's, which comes first.
    let rest = |event: epoll_event| Some(event).filter(|event| !watch.nudged || { event.events } & 0xffff != 0);
    let handle = Handle::of(watch);
    let Some((fd, rx)) = handle.lock() else { return rest(event) };
    let Some(segment) = rx.segment else { return rest(event) };
    let refused = refusals(watch);
    let revents = state::interpret(fd, &rx, &segment, low_bits(watch.events), low_bits(event.events));
    let mut ready = (event.events & !0xffff) | u32::from(revents.cast_unsigned());
    // An arrival that was reported before; or doorbells: taken since this record was looked at (also for another record of the same
    // stream), or still there because somebody else may need them.
    let explained = revents != 0 || bells(watch) != watch.bells || sys::poll_now(fd, libc::POLLIN).unwrap_or(0) != 0;
    if !edge::has_news(set, watch, &rx, fd, event.events, ready) {
        ready = 0;
    }
    // A doorbell that was taken has announced a watcher, which would make the next bytes ring although nobody sleeps.
    if bells(watch) != watch.bells {
        sleep::withdraw_locked(set, handle, &rx, 0);
    }
    drop(rx);
    edge::note(set, watch, ready, refused);
    if ready != 0 {
        return Some(epoll_event { events: ready, u64: watch.data });
    }
    if oneshot::is_one(watch) {
        update(set, watch, |same| same.armed = true);
        oneshot::arm_in_kernel(set, watch);
        return None;
    }
    // Not a doorbell either: the event may be another descriptor's with the same data.
    (!explained).then_some(event).and_then(rest)
}

/// Changes the record of which `watch` is a copy, if it is there still.
pub(super) fn update<T>(set: &'static EpollSet, watch: &Watch, change: impl FnOnce(&mut Watch) -> T) -> Option<T> {
    let mut open = set.open();
    let index = open.find(watch.fd, watch.endpoint)?;
    open.get(index).map(change)
}

/// What rings and kernel say of one record.
pub(super) fn all_events(watch: &Watch) -> u32 {
    let Some((fd, rx)) = Handle::of(watch).lock() else { return 0 };
    let Some(segment) = rx.segment else { return 0 };
    let wanted = low_bits(watch.events);
    u32::from(state::interpret(fd, &rx, &segment, wanted, sys::poll_now(fd, wanted).unwrap_or(0)).cast_unsigned())
}

/// Doorbells of the stream that were taken.
fn bells(watch: &Watch) -> u64 {
    watch.endpoint.slot().map_or(0, |slot| slot.doorbell_rx_bytes.load(Relaxed))
}

/// Whether doorbells may be in the kernel's queue.
fn has_bells(watch: &Watch) -> bool {
    let slot = watch.endpoint.slot();
    slot.is_some_and(|slot| watch.endpoint.segment(slot).is_some_and(|segment| doorbell::outstanding(slot, &segment)))
}

/// Whether the kernel says that the record's descriptor is ready.
fn is_ready(watch: &Watch) -> bool {
    sys::poll_now(watch.fd, low_bits(watch.events)).unwrap_or(0) != 0
}

/// Whether what the kernel says of the record must be looked at even if no ring is.
fn concerns_epoll(watch: &Watch) -> bool {
    watch.nudged || oneshot::is_one(watch) || watch.events & EDGE != 0
}

/// Whether a ring concerns the record.
pub(super) fn in_ring(watch: &Watch) -> bool {
    let Some(slot) = watch.endpoint.slot() else { return false };
    watch.endpoint.segment(slot).is_some_and(|segment| state::concerns_us(slot, &segment))
}

/// poll's bits of an epoll mask.
pub(super) fn low_bits(events: u32) -> i16 {
    u16::try_from(events & 0xffff).unwrap_or(0).cast_signed()
}
