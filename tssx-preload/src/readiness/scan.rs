//! Looking at the rings of a set's active streams.
//!
//! A scan goes round: it begins where the last one ended, and ends when the program's array is full. So a wait that returns 64
//! events looks at about as many records, and each gets its turn. A silent ring costs a quick look ([`super::records::Look`]); for a record
//! whose silence says too little (it waits for room, an end is announced, the kernel carries its bytes) the whole record is looked at.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use libc::epoll_event;
use tssx_core::ledger::layout::{MODE_RING, Slot};
use tssx_core::segment::Segment;
use tssx_core::sys;

use super::edge::{self, EDGE, NOTHING_REPORTED, refusals};
use super::epoll::{self, READABLE, WRITABLE};
use super::interest::{EpollSet, Open};
use super::records::{Look, Watch};
use super::sleep::{self, Handle};
use super::{oneshot, state};

/// Records that one wait leaves to the kernel while rings are busy, each at the price of a look under its lock.
const LEAVE_MAX: usize = 4;

/// The parts of a record's stream, if it has a segment. The record keeps it mapped: a connection leaves its sets before it is let go.
fn stream(watch: &Watch) -> Option<(&'static Slot, Segment)> {
    let slot = watch.endpoint.slot()?;
    watch.endpoint.segment(slot).map(|segment| (slot, segment))
}

/// What the rings say of one record, without asking the kernel and without reporting it.
pub(super) fn ready_events(watch: &Watch) -> u32 {
    stream(watch).map_or(0, |(slot, segment)| ready_of(watch, slot, &segment))
}

fn ready_of(watch: &Watch, slot: &'static Slot, segment: &Segment) -> u32 {
    if !oneshot::is_armed(watch) {
        return 0;
    }
    let rings = if watch.events & WRITABLE == 0 {
        if state::holds_bytes(slot, segment) { state::READABLE } else { 0 }
    } else {
        state::from_rings(slot, segment) | state::room_after_end(watch.fd, slot, segment)
    };
    let mut ready = u32::from(rings.cast_unsigned()) & watch.events;
    if watch.events & EDGE != 0 {
        // Writability alone is an edge when it is there from the start, or comes back, which the kernel reports.
        let new = || segment.rx().tail.load(Acquire) != watch.reported || edge::ends(slot, segment) != watch.ends;
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
    if watch.events & EDGE == 0 || watch.events & WRITABLE == 0 {
        return 0;
    }
    if watch.endpoint.slot().is_none_or(|slot| slot.tx_mode.load(Relaxed) == MODE_RING) {
        return 0;
    }
    let seen = sys::poll_now(watch.fd, libc::POLLOUT | libc::POLLWRNORM).unwrap_or(0);
    u32::from(seen.cast_unsigned()) & WRITABLE & watch.events
}

/// Notes that what has arrived so far is reported, and room if `ready` tells of it.
fn mark_reported(watch: &mut Watch, ready: u32, wait: u64) {
    watch.reported_by = watch.reported_by.max(wait);
    if watch.events & EDGE == 0 {
        return;
    }
    let Some((slot, segment)) = stream(watch) else { return };
    watch.reported = segment.rx().tail.load(Acquire);
    watch.ends = edge::ends(slot, &segment);
    if ready & WRITABLE != 0 {
        watch.refusals = refusals(watch);
        watch.room_in_ring = slot.tx_mode.load(Relaxed) == MODE_RING;
    }
}

/// Whether the rings know all that is asked of a stream: its bytes and its room are in them, and no end is announced. If they do not, the
/// kernel is asked beside them.
fn rings_suffice(watch: &Watch, slot: &Slot, segment: &Segment) -> bool {
    let bytes = watch.events & (READABLE | libc::EPOLLPRI.cast_unsigned()) == 0 || state::receives_in_ring(slot, segment);
    let room = watch.events & WRITABLE == 0 || slot.tx_mode.load(Relaxed) == MODE_RING;
    bytes && room && edge::ends(slot, segment) == 0
}

/// Whether a silent ring is enough to know that there is nothing to tell of a record whose rings suffice: its bytes come through the ring, and
/// room is not asked for, or its edge has been told, so that the next is the kernel's.
fn silence_is_enough(watch: &Watch, slot: &Slot) -> bool {
    let room = watch.events & WRITABLE != 0 && (watch.events & EDGE == 0 || watch.refusals == NOTHING_REPORTED);
    slot.rx_mode.load(Relaxed) == MODE_RING && !room
}

/// What a look at a whole record finds: what its rings say, and whether the kernel should be asked beside them.
fn look_closely(look: &mut Look, watch: &Watch) -> (u32, bool) {
    let Some((slot, segment)) = stream(watch) else { return (0, true) };
    let suffice = rings_suffice(watch, slot, &segment);
    look.trust(Some(&segment).filter(|_| suffice && silence_is_enough(watch, slot)));
    (ready_of(watch, slot, &segment), !suffice)
}

/// Whether any active stream has something to tell.
pub(super) fn peek(set: &'static EpollSet) -> bool {
    peek_at(&mut set.open(), &mut 0, usize::MAX)
}

/// Looks at some of the active streams, at most so many: from `place` on, which moves on round all of them.
pub(super) fn peek_at_some(set: &'static EpollSet, place: &mut usize, most: usize) -> bool {
    peek_at(&mut set.open(), place, most)
}

fn peek_at(open: &mut Open<'_>, place: &mut usize, most: usize) -> bool {
    if *place >= open.active() {
        *place = 0;
    }
    let end = open.active().min(place.saturating_add(most));
    loop {
        (*place, _) = open.skip_silent(*place, end, u32::MAX);
        if *place >= end {
            return false;
        }
        if open.active_at(*place).is_some_and(|(_, watch)| ready_events(watch) != 0) {
            return true;
        }
        *place += 1;
    }
}

/// How many streams are active, none if none of them can be in a ring: then a spin would see nothing come.
pub(super) fn active_in_rings(set: &'static EpollSet) -> usize {
    let mut open = set.open();
    let count = open.active();
    let in_ring = |(look, watch): (&mut Look, &mut Watch)| look.is_trusted() || epoll::in_ring(watch);
    if (0..count).any(|place| open.active_at(place).is_some_and(in_ring)) { count } else { 0 }
}

/// What a scan has found.
struct Found<'a> {
    /// The program's array behind what is in it already.
    room: &'a mut [epoll_event],
    /// What is in it already.
    known: &'a [epoll_event],
    count: usize,
    /// A record with EPOLLONESHOT, one in a wait: the kernel is told when the set is let go.
    once: Option<Watch>,
    /// Streams that have been silent for long.
    silent: [Option<Handle>; LEAVE_MAX],
    /// The kernel should be asked too.
    ask: bool,
    /// [`super::records::Records::clock`], and [`super::records::Records::patience`].
    clock: u32,
    patience: u32,
}

impl Found<'_> {
    /// Looks at a whole record, and reports what there is.
    fn see(&mut self, look: &mut Look, watch: &mut Watch, wait: u64) {
        let (ready, ask) = look_closely(look, watch);
        self.ask |= ask;
        if ready == 0 {
            if self.clock.wrapping_sub(look.heard) > self.patience {
                self.note_silence(watch);
            }
            return;
        }
        let is_known = watch.reported_by >= wait && self.known.iter().any(|event| { event.u64 } == watch.data);
        let Some(event) = self.room.get_mut(self.count).filter(|_| !is_known) else { return };
        let ready = ready | room_in_kernel(watch);
        *event = epoll_event { events: ready, u64: watch.data };
        mark_reported(watch, ready, wait);
        (look.heard, look.announced) = (self.clock, false); // it may have rung
        self.count += 1;
        if oneshot::is_one(watch) {
            watch.armed = false;
            self.once = Some(*watch);
        }
    }

    /// Notes a stream that has been silent for so long that the kernel should tell of it.
    fn note_silence(&mut self, watch: &Watch) {
        if let Some(free) = self.silent.iter_mut().find(|handle| handle.is_none()) {
            *free = Some(Handle::of(watch));
        }
    }

    fn is_full(&self) -> bool {
        self.count == self.room.len() || self.once.is_some()
    }
}

/// Adds what the active streams' rings say to the first `used` events; how many there are then.
pub(super) fn collect(set: &'static EpollSet, events: &mut [epoll_event], used: usize, wait: u64) -> usize {
    let (known, room) = events.split_at_mut(used.min(events.len()));
    let mut open = set.open();
    let (count, clock, patience) = (open.active(), open.clock(), open.patience());
    let mut found = Found { room, known, count: 0, once: None, silent: [None; LEAVE_MAX], ask: false, clock, patience };
    let begin = open.cursor % count.max(1);
    let mut place = begin;
    // Up to the end, and then from the beginning up to where it began.
    for end in [count, begin] {
        while place < end && !found.is_full() {
            let (next, long) = open.skip_silent(place, end, patience);
            if let Some((_, watch)) = long.and_then(|place| open.active_at(place)) {
                found.note_silence(watch);
            }
            place = next;
            if let Some((look, watch)) = open.active_at(place).filter(|_| place < end) {
                found.see(look, watch, wait);
                place += 1;
            }
        }
        if place >= count {
            place = 0;
        }
    }
    open.cursor = place;
    open.advance(u32::try_from(found.count).unwrap_or(0));
    drop(open);
    let Found { room, count, once, silent, ask, .. } = found;
    if ask {
        set.asked.store(0, Relaxed);
    }
    silent.into_iter().flatten().for_each(|handle| sleep::leave(set, handle));
    if let Some(watch) = once {
        // All that there is to tell, since nothing follows before it is armed again.
        if let Some(event) = count.checked_sub(1).and_then(|last| room.get_mut(last)) {
            event.events |= epoll::all_events(&watch);
        }
        oneshot::disarm_in_kernel(set, &watch);
    }
    used + count
}
