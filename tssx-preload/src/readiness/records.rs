//! The records of one epoll instance: where each stays, how it is found, and which are looked at.
//!
//! A record keeps its row as long as it lives, so that nothing that names it by its index needs to be told when another goes.
//! Two chained hash tables find it, by connection and by the program's data. What a wait looks at is a compact array beside
//! the rows, the *active* records: an entry tells a silent ring by three neighbouring cache lines of the segment, and the row is
//! touched only where there is something to tell. Links and places are indices plus one, so that zeroed memory is empty.

#![allow(unsafe_code, reason = "keeps its records in a mapping of its own; follows entries to mapped segments")]

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::layout::{Direction, STATE_RING};
use tssx_core::segment::Segment;
use tssx_core::sys;

use crate::endpoint::Endpoint;

/// Records a set starts with; a power of two.
const RECORDS_MIN: usize = 64;
/// Events that a sleep counts for.
pub(super) const SLEEP: u32 = 64;
/// Events after which the least silent of few streams counts as silent.
const EVENTS_MIN: usize = 512;

/// One stream in a set.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Watch {
    pub(crate) fd: c_int,
    pub(crate) events: u32,
    pub(crate) data: u64,
    pub(crate) endpoint: &'static Endpoint,
    /// The wait that reported it last, by its number ([`super::interest::EpollSet::number_wait`]).
    pub(crate) reported_by: u64,
    /// The answer of the kernel's in which an event was taken for its, by a number of the same row: an answer has one for each.
    pub(crate) answered_by: u64,
    /// With EPOLLONESHOT: not reported since the program armed it.
    pub(crate) armed: bool,
    /// The kernel was asked to report it at once, for bytes that it does not know of ([`super::oneshot::nudge`]).
    pub(crate) nudged: bool,
    /// Edge-triggered: the kernel was told of the record anew after a nudge, and reports once more what was reported.
    pub(crate) echo: bool,
    /// Edge-triggered: room was reported while it was a ring's. The send buffer's return makes the kernel report it once more.
    pub(crate) room_in_ring: bool,
    /// Edge-triggered: the events that were reported last.
    pub(crate) told: u32,
    /// Edge-triggered: which ends of the stream had been announced when it was reported.
    pub(crate) ends: u32,
    /// Edge-triggered: ring position up to which arrivals were reported; `u64::MAX` when none was.
    pub(crate) reported: u64,
    /// Edge-triggered: how many sends had been refused when room was reported; `u64::MAX` when it was not.
    pub(crate) refusals: u64,
    /// Doorbells that had been taken when a kernel event of this stream was looked at last.
    pub(crate) bells: u64,
}

/// What a wait looks at of an active record.
#[repr(C)]
pub(super) struct Look {
    /// The ring, if its silence is enough to know that there is nothing to tell; null: the record must be looked at.
    rx: *const Direction,
    /// The record.
    row: u32,
    /// [`Records::clock`] when something came last.
    pub(super) heard: u32,
    /// Since its announcement under the stream's lock, which nobody has withdrawn, the peer rings for what comes: see [`super::sleep`].
    pub(super) announced: bool,
}

impl Look {
    /// Whether there is nothing to tell, by a quick look.
    #[inline]
    pub(super) fn is_silent(&self) -> bool {
        // SAFETY: null, or in a segment that is mapped as long as the record is there ([`Self::trust`]).
        unsafe { self.rx.as_ref() }.is_some_and(|rx| {
            rx.tail.load(Acquire) == rx.head.load(Relaxed) && rx.finished.load(Relaxed) == 0 && rx.state.load(Relaxed) == STATE_RING
        })
    }

    /// From now on, or no longer, a silent ring is enough to know that there is nothing to tell. The segment is the record's, which
    /// keeps it mapped: a connection leaves its sets before it is let go.
    pub(super) fn trust(&mut self, segment: Option<&Segment>) {
        self.rx = segment.map_or(ptr::null(), |segment| ptr::from_ref(segment.rx()));
    }

    /// Whether a ring's silence is trusted.
    pub(super) fn is_trusted(&self) -> bool {
        !self.rx.is_null()
    }
}

/// A record in its row.
struct Row {
    watch: Watch,
    used: bool,
    /// Where it is among the active ones, plus one.
    place: u32,
    /// The next of each chain; in a free row the first leads to the next free one.
    next: [u32; 2],
}

/// What a chain's records have in common.
#[derive(Clone, Copy)]
enum Key {
    Endpoint = 0,
    Data = 1,
}

const KEYS: [Key; 2] = [Key::Endpoint, Key::Data];

impl Key {
    fn of(self, watch: &Watch) -> u64 {
        match self {
            Self::Endpoint => endpoint_key(watch.endpoint),
            Self::Data => watch.data,
        }
    }

    /// The head of the chain, of `capacity` heads for each key.
    fn bucket(self, key: u64, capacity: usize) -> usize {
        let hash = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        self as usize * capacity + (hash & (capacity - 1))
    }
}

fn endpoint_key(endpoint: *const Endpoint) -> u64 {
    endpoint.addr() as u64
}

/// See the module's text. Zero is empty.
pub(crate) struct Records {
    /// One mapping: rows, then looks, then the heads of the chains.
    rows: *mut Row,
    capacity: usize,
    /// Rows that were ever used.
    length: usize,
    active: usize,
    /// Place at which the next scan begins.
    pub(super) cursor: usize,
    /// First free row, plus one.
    free: u32,
    /// Counts the events that were reported, and a sleep for [`SLEEP`] of them.
    clock: u32,
    /// Changes whenever an active record moves or one becomes active: a walk by place that sees it change begins again.
    version: u64,
}

struct Parts<'a> {
    rows: &'a mut [Row],
    looks: &'a mut [Look],
    heads: &'a mut [u32],
}

fn bytes(capacity: usize) -> usize {
    capacity * (size_of::<Row>() + size_of::<Look>() + KEYS.len() * size_of::<u32>())
}

fn one_based(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(0)
}

fn zero_based(index: u32) -> Option<usize> {
    (index as usize).checked_sub(1)
}

impl Records {
    fn parts(&mut self) -> Parts<'_> {
        if self.rows.is_null() {
            return Parts { rows: &mut [], looks: &mut [], heads: &mut [] };
        }
        // SAFETY: the mapping has room for `capacity` of each, one behind the other in the order of their alignments; the first `length`
        // rows were written, and zero is a valid look and a valid head.
        unsafe {
            let looks = self.rows.add(self.capacity).cast::<Look>();
            let heads = looks.add(self.capacity).cast::<u32>();
            Parts {
                rows: core::slice::from_raw_parts_mut(self.rows, self.length),
                looks: core::slice::from_raw_parts_mut(looks, self.capacity),
                heads: core::slice::from_raw_parts_mut(heads, self.capacity * KEYS.len()),
            }
        }
    }

    /// How many records are active.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// In a forked child: what was announced is the parent's word.
    pub(super) fn begin_again(&mut self) {
        self.parts().looks.iter_mut().for_each(|look| look.announced = false);
    }

    /// So many events were reported.
    pub(super) fn advance(&mut self, events: u32) {
        self.clock = self.clock.wrapping_add(events);
    }

    pub(super) fn clock(&self) -> u32 {
        self.clock
    }

    /// Events after which a stream that brought none of them is left to the kernel: when all are equally busy, each has had its turn several
    /// times by then, so it is one that the scans are wasted on.
    pub(super) fn patience(&self) -> u32 {
        u32::try_from(self.active.saturating_mul(4).max(EVENTS_MIN)).unwrap_or(u32::MAX)
    }

    /// The record at an index.
    pub(super) fn get(&mut self, index: usize) -> Option<&mut Watch> {
        self.parts().rows.get_mut(index).filter(|row| row.used).map(|row| &mut row.watch)
    }

    /// The first record at or behind an index, and its index.
    pub(super) fn at_or_behind(&mut self, index: usize) -> Option<(usize, &mut Watch)> {
        let rows = self.parts().rows.iter_mut().enumerate().skip(index);
        rows.filter(|(_, row)| row.used).map(|(index, row)| (index, &mut row.watch)).next()
    }

    /// The active record at a place.
    #[inline]
    pub(super) fn active_at(&mut self, place: usize) -> Option<(&mut Look, &mut Watch)> {
        if place >= self.active {
            return None;
        }
        let Parts { rows, looks, .. } = self.parts();
        let look = looks.get_mut(place)?;
        let row = rows.get_mut(look.row as usize)?;
        Some((look, &mut row.watch))
    }

    /// The active records as a wait looks at them.
    pub(super) fn looks(&mut self) -> &mut [Look] {
        let active = self.active;
        self.parts().looks.get_mut(..active).unwrap_or_default()
    }

    /// The place of the first record from `place` on that a quick look does not find silent, up to `end`. And the place of one of the silent
    /// that has been so for longer than `patience`.
    #[inline]
    pub(super) fn skip_silent(&mut self, place: usize, end: usize, patience: u32) -> (usize, Option<usize>) {
        let clock = self.clock;
        let mut long = None;
        let silent = |(place, look): &(usize, &mut Look)| {
            if clock.wrapping_sub(look.heard) > patience {
                long = Some(*place);
            }
            !look.is_silent()
        };
        let some = self.looks().get_mut(place..end).unwrap_or_default();
        let found = (place..end).zip(some.iter_mut()).find(silent).map(|(place, _)| place);
        (found.unwrap_or(end), long)
    }

    /// The newest record with the key that is accepted.
    fn search(&mut self, key: Key, value: u64, accept: impl FnMut(&Watch) -> bool) -> Option<usize> {
        self.search_behind(None, key, value, accept)
    }

    /// The next one in the key's chain, after an index in it if one is given.
    fn search_behind(
        &mut self,
        after: Option<usize>,
        key: Key,
        value: u64,
        mut accept: impl FnMut(&Watch) -> bool,
    ) -> Option<usize> {
        let capacity = self.capacity;
        let Parts { rows, heads, .. } = self.parts();
        let mut next = match after {
            Some(index) => *rows.get(index)?.next.get(key as usize)?,
            None if capacity == 0 => 0,
            None => *heads.get(key.bucket(value, capacity))?,
        };
        // No more steps than rows: a signal handler may have met the chains half changed.
        for _ in 0..rows.len() {
            let index = zero_based(next)?;
            let row = rows.get(index)?;
            if row.used && key.of(&row.watch) == value && accept(&row.watch) {
                return Some(index);
            }
            next = *row.next.get(key as usize)?;
        }
        None
    }

    /// Index of the record of a descriptor. Not of another of the same number whose descriptor was closed while a duplicate lives.
    pub(super) fn find(&mut self, fd: c_int, endpoint: &Endpoint) -> Option<usize> {
        self.search(Key::Endpoint, endpoint_key(endpoint), |watch| watch.fd == fd)
    }

    /// Index of a record of a connection.
    pub(super) fn find_any(&mut self, endpoint: &Endpoint) -> Option<usize> {
        self.search(Key::Endpoint, endpoint_key(endpoint), |_| true)
    }

    /// Index of the newest record with the program's data that is accepted.
    pub(super) fn find_data(&mut self, data: u64, accept: impl FnMut(&Watch) -> bool) -> Option<usize> {
        self.search(Key::Data, data, accept)
    }

    /// Adds a record, active. False when there is no room and, if it may grow, no memory.
    pub(super) fn add(&mut self, watch: Watch, may_grow: bool) -> bool {
        if self.free == 0 && self.length == self.capacity && !(may_grow && self.grow()) {
            return false;
        }
        let row = Row { watch, used: true, place: 0, next: [0; 2] };
        let index = if let Some(index) = zero_based(self.free) {
            let Some(place) = self.parts().rows.get_mut(index) else { return false };
            let [next, _] = place.next;
            *place = row;
            self.free = next;
            index
        } else {
            // SAFETY: length < capacity.
            unsafe { self.rows.add(self.length).write(row) };
            self.length += 1;
            self.length - 1
        };
        self.link(index);
        self.activate(index);
        true
    }

    /// Twice the room. The rows stay at their indices, the heads of the chains are made anew.
    fn grow(&mut self) -> bool {
        let capacity = (self.capacity * 2).max(RECORDS_MIN);
        let Ok(fresh) = sys::map(-1, bytes(capacity)) else { return false };
        let before = (self.rows, self.capacity);
        let fresh = fresh.cast::<Row>();
        if !before.0.is_null() {
            let looks = self.parts().looks.as_ptr();
            // SAFETY: rows and looks are there and fit; the old mapping is not used afterwards.
            unsafe {
                ptr::copy_nonoverlapping(before.0, fresh, self.length);
                ptr::copy_nonoverlapping(looks, fresh.add(capacity).cast::<Look>(), self.active);
                sys::unmap(before.0.cast(), bytes(before.1));
            }
        }
        (self.rows, self.capacity) = (fresh, capacity);
        let used = |(_, row): &(usize, &Row)| row.used;
        for index in 0..self.length {
            if self.parts().rows.get(index).map(|row| (index, row)).as_ref().is_some_and(used) {
                self.link(index);
            }
        }
        true
    }

    fn link(&mut self, index: usize) {
        let capacity = self.capacity;
        let Parts { rows, heads, .. } = self.parts();
        let Some(row) = rows.get_mut(index) else { return };
        for (key, next) in KEYS.into_iter().zip(&mut row.next) {
            if let Some(head) = heads.get_mut(key.bucket(key.of(&row.watch), capacity)) {
                *next = core::mem::replace(head, one_based(index));
            }
        }
    }

    fn unlink(&mut self, index: usize) {
        let (capacity, length) = (self.capacity, self.length);
        let Parts { rows, heads, .. } = self.parts();
        for key in KEYS {
            let Some((value, after)) = rows.get(index).map(|row| (key.of(&row.watch), row.next)) else { return };
            let Some(&after) = after.get(key as usize) else { return };
            let mut link = heads.get_mut(key.bucket(value, capacity));
            for _ in 0..=length {
                let Some(place) = link else { break };
                if *place == one_based(index) {
                    *place = after;
                    break;
                }
                let following = zero_based(*place);
                link = following.and_then(|row| rows.get_mut(row)).and_then(|row| row.next.get_mut(key as usize));
            }
        }
    }

    /// Puts the record among the active ones, as one that was busy just now.
    pub(super) fn activate(&mut self, index: usize) {
        let (place, clock) = (self.active, self.clock);
        let Parts { rows, looks, .. } = self.parts();
        let Some(row) = rows.get_mut(index).filter(|row| row.used) else { return };
        if let Some(place) = zero_based(row.place) {
            if let Some(look) = looks.get_mut(place) {
                look.heard = clock;
                look.announced = false;
            }
        } else if let (Some(look), Ok(number)) = (looks.get_mut(place), u32::try_from(index)) {
            *look = Look { rx: ptr::null(), row: number, heard: clock, announced: false };
            row.place = one_based(place);
            self.active += 1;
            self.version += 1;
        }
    }

    /// The quick look of an active record is not trusted any more.
    pub(super) fn distrust(&mut self, index: usize) {
        if let Some(look) = self.look_of(index) {
            look.trust(None);
        }
    }

    /// The records of a connection are active again, and their quick looks not trusted.
    pub(super) fn look_again(&mut self, endpoint: *const Endpoint) {
        let mut after = None;
        // Each search passes those that were found before: a connection is seldom twice in a set.
        for _ in 0..self.length {
            let Some(index) = self.search_behind(after, Key::Endpoint, endpoint_key(endpoint), |_| true) else { return };
            self.activate(index);
            self.distrust(index);
            after = Some(index);
        }
    }

    /// All records are.
    pub(super) fn look_again_at_all(&mut self) {
        for index in 0..self.length {
            self.activate(index);
            self.distrust(index);
        }
    }

    /// The kernel has told of one of the records with the program's data: an edge that has come is none that will come, so each is announced
    /// anew before a sleep.
    pub(super) fn doubt_announcements(&mut self, data: u64) {
        let mut after = None;
        for _ in 0..self.length {
            let Some(index) = self.search_behind(after, Key::Data, data, |_| true) else { return };
            if let Some(look) = self.look_of(index) {
                look.announced = false;
            }
            after = Some(index);
        }
    }

    /// What a wait looks at of a record, if it is active.
    pub(super) fn look_of(&mut self, index: usize) -> Option<&mut Look> {
        let Parts { rows, looks, .. } = self.parts();
        let place = rows.get(index).and_then(|row| zero_based(row.place))?;
        looks.get_mut(place)
    }

    /// Takes the record out of the active ones; the last of them gets its place.
    pub(super) fn deactivate(&mut self, index: usize) {
        let Some(last) = self.active.checked_sub(1) else { return };
        let Parts { rows, looks, .. } = self.parts();
        let Some(row) = rows.get_mut(index) else { return };
        let Some(place) = zero_based(core::mem::take(&mut row.place)) else { return };
        looks.swap(place, last);
        if let Some(moved) = looks.get(place).filter(|_| place != last).and_then(|look| rows.get_mut(look.row as usize)) {
            moved.place = one_based(place);
        }
        self.active = last;
        self.version += 1;
    }

    /// Removes the record at an index.
    pub(super) fn remove_at(&mut self, index: usize) {
        if self.get(index).is_none() {
            return;
        }
        self.deactivate(index);
        self.unlink(index);
        let free = self.free;
        if let Some(row) = self.parts().rows.get_mut(index) {
            row.used = false;
            row.next = [free, 0];
            self.free = one_based(index);
        }
    }
}
