//! Before and after the kernel's wait: announcing watchers, and taking streams back.
//!
//! A thread that goes to sleep counts itself ([`EpollSet::sleepers`]) and announces a watcher on each active stream that is not *announced*
//! yet ([`Look::announced`]). From then on the peer rings for what comes, so a stream that stays silent costs nothing at the next sleep.
//! After a sleep announcements of streams that were busy lately are withdrawn, so that their peers need not ring while this process is awake:
//! about as many as there were events, so that a sleep costs no more than what it is for. A stream that stays silent for long is left to the
//! kernel for good ([`leave`]).
//!
//! The flag is set and cleared with the stream's lock and the set's held. A withdrawal holds both too, so one by a thread of this set has
//! either seen us counted, or is over, and the flag cleared, before we look; one by another set's thread or by a relative, which have flags of
//! their own, has seen that it is not alone since we held the stream's lock, or was over then. What the producer has cleared has rung, and whoever
//! takes that doorbell announces again. So an announced stream keeps the invariant of the inactive ones ([`super::interest`]).

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::doorbell;
use tssx_core::layout::STATE_KERNEL;
use tssx_core::ledger::layout::{MODE_FINAL, MODE_KERNEL, MODE_RING};

use super::interest::{EpollSet, Open};
use super::records::{Look, SLEEP, Watch};
use super::{scan, state};
use crate::endpoint::{Endpoint, Locked, Way, lock_stream};
use crate::fd_table;

/// Streams that are dealt with between two looks at the set.
const BATCH: usize = 32;
/// Announcements that a sleep may withdraw, however few events there were.
const WITHDRAWN_MIN: u32 = 64;
/// Streams that are looked at between two batches.
const LOOK_AROUND: usize = 8 * BATCH;

/// A record, for use without the set's lock: the stream's is never taken inside it.
#[derive(Clone, Copy)]
pub(super) struct Handle {
    fd: c_int,
    endpoint: &'static Endpoint,
}

impl Handle {
    pub(super) fn of(watch: &Watch) -> Self {
        Self { fd: watch.fd, endpoint: watch.endpoint }
    }

    /// The stream, locked, with a descriptor that leads to it: the one that was added, or a duplicate that has outlived it.
    pub(super) fn lock(self) -> Option<(c_int, Locked)> {
        let own = |fd: c_int| {
            let rx = lock_stream(fd, Way::Rx).filter(|rx| core::ptr::eq(rx.endpoint, self.endpoint));
            rx.map(|rx| (fd, rx))
        };
        own(self.fd).or_else(|| fd_table::find_stream(self.endpoint).and_then(own))
    }

    fn index(self, open: &mut Open<'_>) -> Option<usize> {
        open.find(self.fd, self.endpoint)
    }

    fn look<'a>(self, open: &'a mut Open<'static>) -> Option<&'a mut Look> {
        self.index(open).and_then(|index| open.look_of(index))
    }
}

/// Some records, in the order in which they are to be dealt with.
struct Batch {
    items: [Option<Handle>; BATCH],
    count: usize,
}

impl Batch {
    fn push(&mut self, handle: Handle) {
        if let Some(place) = self.items.get_mut(self.count) {
            *place = Some(handle);
            self.count += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.count == BATCH
    }

    fn handles(&self) -> impl Iterator<Item = Handle> + '_ {
        self.items.iter().flatten().copied()
    }
}

/// What `choose` takes of the records.
fn gather(mut open: Open<'static>, mut choose: impl FnMut(&mut Open<'static>, &mut Batch)) -> Batch {
    let mut batch = Batch { items: [None; BATCH], count: 0 };
    choose(&mut open, &mut batch);
    batch
}

/// Announces a watcher on every active stream. True if one is ready after all.
pub(super) fn leave_to_kernel(set: &'static EpollSet) -> bool {
    let (mut place, mut version, mut looked) = (0, None, 0);
    loop {
        let batch = gather(set.open(), |open, batch| {
            if version != Some(open.version()) {
                // Records have moved, or there are more: what is settled is passed quickly, leaving one out would be a lost wake-up.
                (version, place) = (Some(open.version()), 0);
            }
            while !batch.is_full() && place < open.active() {
                place += open.looks().iter().skip(place).take_while(|look| look.announced).count();
                if let Some((_, watch)) = open.active_at(place).filter(|(_, watch)| !is_the_kernels(watch)) {
                    batch.push(Handle::of(watch));
                }
                place += 1;
            }
        });
        if batch.count == 0 {
            return false;
        }
        for handle in batch.handles() {
            if announce(set, handle) && is_still_ready(set, handle) {
                return true;
            }
        }
        // With many streams this takes long: what comes meanwhile ends it, before their peers have to ring for all that follows.
        if scan::peek_at_some(set, &mut looked, LOOK_AROUND) {
            return true;
        }
    }
}

/// Whether the kernel's readiness of the stream is all that there is to know: the peer rings for the first bytes behind a switch.
fn is_the_kernels(watch: &Watch) -> bool {
    let Some(slot) = watch.endpoint.slot() else { return true };
    // The record keeps the segment mapped. One that is made later is born announced.
    let Some(segment) = watch.endpoint.segment(slot) else { return true };
    match slot.rx_mode.load(Relaxed) {
        MODE_KERNEL => segment.rx().state.load(Relaxed) == STATE_KERNEL,
        mode => mode == MODE_FINAL,
    }
}

fn announce(set: &'static EpollSet, handle: Handle) -> bool {
    let Some((fd, rx)) = handle.lock() else { return false };
    let Some(segment) = rx.segment else { return false };
    let holds_bytes = state::prepare_to_wait(fd, &rx, &segment);
    if rx.slot.rx_mode.load(Relaxed) == MODE_RING {
        let mut open = set.open();
        if let Some(look) = handle.look(&mut open) {
            look.announced = true;
        }
    }
    holds_bytes
}

/// The ring holds bytes; are they an event for this record?
fn is_still_ready(set: &'static EpollSet, handle: Handle) -> bool {
    let mut open = set.open();
    let index = handle.index(&mut open);
    index.and_then(|index| open.get(index)).is_some_and(|watch| scan::ready_events(watch) != 0)
}

/// Leaves a silent stream to the kernel: it is not looked at until the kernel reports it. The stream's lock is held from the announcement
/// until the record is inactive, so a doorbell that is rung in between is in the kernel's queue.
pub(super) fn leave(set: &'static EpollSet, handle: Handle) {
    let Some((fd, rx)) = handle.lock() else { return };
    if let Some(segment) = rx.segment {
        if state::prepare_to_wait(fd, &rx, &segment) {
            return;
        }
        match rx.slot.rx_mode.load(Relaxed) {
            // The bytes before the switch are the kernel's; for the first behind it the peer rings.
            MODE_KERNEL => doorbell::announce(&segment),
            MODE_RING | MODE_FINAL => {}
            _ => return,
        }
    }
    let mut open = set.open();
    let Some(index) = handle.index(&mut open) else { return };
    // Room, perhaps.
    if open.get(index).is_some_and(|watch| scan::ready_events(watch) == 0) {
        open.deactivate(index);
    }
}

/// After the kernel's wait: streams that were busy lately need no doorbell for their next bytes, and those that were silent for long stay
/// with the kernel.
pub(super) fn take_back(set: &'static EpollSet) {
    let (mut left, mut place, mut steps) = {
        let mut open = set.open();
        let events = open.clock().wrapping_sub(set.slept.load(Relaxed));
        open.advance(SLEEP);
        set.slept.store(open.clock(), Relaxed);
        (WITHDRAWN_MIN.max(events.saturating_mul(2)), open.cursor, open.active())
    };
    // From the cursor on: what comes next is more likely there.
    while left > 0 && steps > 0 {
        let batch = gather(set.open(), |open, batch| {
            let (clock, patience) = (open.clock(), open.patience());
            while steps > 0 && left > 0 && !batch.is_full() {
                steps -= 1;
                place = if place < open.active() { place } else { 0 };
                let is_recent = |look: &Look| look.announced && clock.wrapping_sub(look.heard) < patience / 2;
                if let Some((_, watch)) = open.active_at(place).filter(|(look, _)| is_recent(look)) {
                    batch.push(Handle::of(watch));
                    left -= 1;
                }
                place += 1;
            }
        });
        batch.handles().for_each(|handle| withdraw(set, handle));
    }
    leave_silent(set);
}

/// Leaves those that were silent for long to the kernel. From the last to the first: what is made inactive changes places with one that was
/// dealt with.
fn leave_silent(set: &'static EpollSet) {
    let mut place = usize::MAX;
    while place > 0 {
        let batch = gather(set.open(), |open, batch| {
            let (clock, patience) = (open.clock(), open.patience());
            place = place.min(open.active());
            while place > 0 && !batch.is_full() {
                place -= 1;
                let is_silent = |look: &Look| clock.wrapping_sub(look.heard) > patience;
                if let Some((_, watch)) = open.active_at(place).filter(|(look, _)| is_silent(look)) {
                    batch.push(Handle::of(watch));
                }
            }
        });
        batch.handles().for_each(|handle| leave(set, handle));
    }
}

/// Takes back the announcement of one stream after a sleep that this thread is counted for.
fn withdraw(set: &'static EpollSet, handle: Handle) {
    if let Some((_, rx)) = handle.lock() {
        withdraw_locked(set, handle, &rx, 1);
    }
}

/// Withdraws the announcement of a stream, if nobody else can be relying on it: no thread that is asleep in a receive or in this set, where
/// `counted` says whether the caller is counted itself, no other set, and no relative that has the descriptor too. Under both locks; the
/// order is the stream's before the set's. An active stream is announced again before anybody sleeps.
pub(super) fn withdraw_locked(set: &'static EpollSet, handle: Handle, rx: &Locked, counted: u32) {
    let Some(segment) = rx.segment.filter(|_| rx.slot.rx_mode.load(Relaxed) == MODE_RING) else { return };
    if rx.slot.rx_waiters.load(Relaxed) != 0 || rx.slot.holder_count() != 1 || rx.endpoint.watchers.count() != 1 {
        return;
    }
    let mut open = set.open();
    // A thread that waits plainly began before a ring concerned the set, and is woken by doorbells too.
    let nobody = set.sleepers.load(Relaxed) == counted && set.plain_sleepers.load(Relaxed) == 0;
    let look = handle.look(&mut open).filter(|_| nobody);
    if let Some(look) = look {
        look.announced = false;
        doorbell::withdraw(&segment);
    }
}
