//! Property: a close that races with calls on the same number takes nothing from under them. A segment is touched only while it is
//! mapped, and unmapped once; what a call reads belongs to the connection that the table named while the call had the lock; in the end
//! everything is given back. [`crate::reclaim`] has the argument.
//!
//! A segment that is touched and unmapped at once, or by two callers at once, is a race on its cells; one that is touched later, or in the
//! name of another connection, fails an assertion. Endpoints and slots are few, so that the next connection gets those of the last.

#![allow(unsafe_code, reason = "the cells that the rules under test guard")]

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use loom::cell::UnsafeCell;
use loom::thread;

use super::atomics::{AtomicU32, AtomicU64};
use super::support::{explore, relaxed_if};
use super::world::World;
use crate::ledger::layout::{ROLE_CONNECTOR, SLOT_CLOSED, SLOT_FREE, Slot};
use crate::ledger::slots;
use crate::lock::{self, Guard};
use crate::reclaim::{Pins, lock_named};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// What was found before the lock was had is taken for granted.
    NoSecondLook,
    /// The second look is at the table only: the endpoint may be the next connection's by then, with another slot.
    LooksAtTheTableOnly,
    /// Who closes does not wait for those inside.
    DoesNotWait,
    /// Who closes clears the table after it had the locks.
    ClearsTooLate,
    /// Who closes gives back although calls go on without a lock.
    IgnoresPins,
    /// A call lets go of the lock first.
    PinsTooLate,
    /// The last to go does not see what the others did.
    UnpinsRelaxed,
    /// The next connection begins with free locks, whoever holds them.
    ResetsLocks,
}

/// The descriptor under test, and the one that keeps the socket while calls outlast it.
const FD: usize = 0;
const SPARE: usize = 1;

/// Something that a rule under test guards.
struct Cell(UnsafeCell<u32>);

// SAFETY: the rules under test are what makes it sound; loom checks every access.
unsafe impl Sync for Cell {}
// SAFETY: a number.
unsafe impl Send for Cell {}

impl Cell {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn get(&self) -> u32 {
        // SAFETY: nobody writes meanwhile, by the rules under test.
        self.0.with(|value| unsafe { *value })
    }

    /// Returns what was there.
    fn set(&self, new: u32) -> u32 {
        // SAFETY: exclusive by the rules under test.
        self.0.with_mut(|value| unsafe { std::mem::replace(&mut *value, new) })
    }
}

struct Endpoint {
    /// Number of the slot, plus one.
    slot: AtomicU64,
    /// Number of the segment, plus one; a connection's segment has its number.
    segment: AtomicU64,
    descriptors: AtomicU32,
    pins: Pins,
    spare: AtomicU32,
    /// Whose it is.
    connection: Cell,
}

struct Segment {
    mapped: Cell,
    /// How far the ring was read.
    head: Cell,
}

/// A process that holds one end, of one connection after the other.
struct Process {
    /// For [`super::kernel::process_lives`].
    _world: Arc<World>,
    table: [AtomicU64; 2],
    endpoints: Vec<Endpoint>,
    slots: Vec<Slot>,
    /// Whose each slot is.
    owners: Vec<Cell>,
    segments: [Segment; 2],
    pool: AtomicU64,
    /// Bits of the endpoints in the pool.
    free: Cell,
    flaw: Flaw,
}

/// A lock that was had by the endpoint's name.
type Locked<'a> = (&'a Endpoint, &'a Slot, Guard<'a>);

impl Process {
    fn new(endpoints: usize, slots: usize, flaw: Flaw) -> Arc<Self> {
        let endpoint = |_| Endpoint {
            slot: AtomicU64::new(0),
            segment: AtomicU64::new(0),
            descriptors: AtomicU32::new(0),
            pins: Pins::new(),
            spare: AtomicU32::new(0),
            connection: Cell::new(),
        };
        let slot = |_| Slot {
            state: AtomicU32::new(SLOT_FREE),
            holders: AtomicU32::new(0),
            tx_lock: AtomicU64::new(0),
            rx_lock: AtomicU64::new(0),
            ..Slot::default()
        };
        let segment = || Segment { mapped: Cell::new(), head: Cell::new() };
        let free = Cell::new();
        free.set((1 << endpoints) - 1);
        Arc::new(Self {
            _world: World::new(4),
            table: [AtomicU64::new(0), AtomicU64::new(0)],
            endpoints: (0..endpoints).map(endpoint).collect(),
            slots: (0..slots).map(slot).collect(),
            owners: (0..slots).map(|_| Cell::new()).collect(),
            segments: [segment(), segment()],
            pool: AtomicU64::new(0),
            free,
            flaw,
        })
    }

    /// fd_table.rs, `stream`.
    fn stream(&self, fd: usize) -> Option<&Endpoint> {
        named(&self.endpoints, self.table[fd].load(Acquire))
    }

    /// endpoint.rs, `slot`.
    fn slot(&self, endpoint: &Endpoint) -> Option<&Slot> {
        named(&self.slots, endpoint.slot.load(Acquire))
    }

    /// endpoint.rs, `lock_stream` for receiving.
    fn lock_stream(&self, fd: usize, pid: u64) -> Option<Locked<'_>> {
        if !matches!(self.flaw, Flaw::NoSecondLook | Flaw::LooksAtTheTableOnly) {
            let (stream, slot) = (|| self.stream(fd), |endpoint| self.slot(endpoint));
            return lock_named(stream, slot, |_, slot| lock::acquire(&slot.rx_lock, pid));
        }
        loop {
            let endpoint = self.stream(fd)?;
            let slot = self.slot(endpoint)?;
            let guard = lock::acquire(&slot.rx_lock, pid);
            if self.flaw == Flaw::NoSecondLook || self.stream(fd).is_some_and(|again| std::ptr::eq(again, endpoint)) {
                return Some((endpoint, slot, guard));
            }
        }
    }

    /// receive.rs, `take`: touches all that the lock guards.
    fn take(&self, (endpoint, slot, _guard): &Locked<'_>) {
        let connection = endpoint.connection.get();
        assert_eq!(self.owner(slot).get(), connection, "another connection's slot");
        if let Some(segment) = named(&self.segments, endpoint.segment.load(Acquire)) {
            assert!(std::ptr::eq(segment, &raw const self.segments[connection as usize]), "another connection's segment");
            assert_eq!(segment.mapped.get(), 1, "touched after it was unmapped");
            segment.head.set(segment.head.get() + 1);
        }
    }

    /// A receive that finds bytes.
    fn read(&self, fd: usize, pid: u64) {
        if let Some(locked) = self.lock_stream(fd, pid) {
            self.take(&locked);
        }
    }

    /// receive.rs, `receive` by `sleep`: nothing there at first; goes on with what it began with, by whatever descriptor.
    fn sleep_and_read(&self, pid: u64) {
        let Some((endpoint, slot, guard)) = self.lock_stream(FD, pid) else { return };
        if self.flaw == Flaw::PinsTooLate {
            drop(guard);
            endpoint.pins.add();
        } else {
            endpoint.pins.add();
            drop(guard);
        }
        // receive.rs, `counted`: after the kernel's call, without looking anything up.
        let guard = lock::acquire(&slot.rx_lock, pid);
        assert_eq!(self.owner(slot).get(), endpoint.connection.get(), "the slot of a call was given away");
        drop(guard);
        let ours = |locked: &Locked<'_>| std::ptr::eq(locked.0, endpoint);
        let spare = || (endpoint.spare.load(Acquire) == 1).then(|| self.lock_stream(SPARE, pid)).flatten();
        if let Some(locked) = self.lock_stream(FD, pid).filter(ours).or_else(spare).filter(ours) {
            self.take(&locked);
        }
        self.unpin(endpoint, pid);
    }

    /// process/descriptors.rs, `close` by `closing` and `finish`, and endpoint.rs, `detach`.
    fn close(&self, fd: usize, pid: u64) {
        let cleared = if self.flaw == Flaw::ClearsTooLate { self.table[fd].load(Acquire) } else { self.table[fd].swap(0, AcqRel) };
        let Some(endpoint) = named(&self.endpoints, cleared) else { return };
        if endpoint.descriptors.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        if let Some(slot) = self.slot(endpoint).filter(|_| self.flaw != Flaw::DoesNotWait) {
            let _rx = lock::acquire(&slot.rx_lock, pid);
            let _tx = lock::acquire(&slot.tx_lock, pid);
            if endpoint.pins.others() {
                self.table[SPARE].swap(cleared, AcqRel);
                endpoint.spare.store(1, Release);
            }
        }
        if self.flaw == Flaw::ClearsTooLate {
            self.table[fd].swap(0, AcqRel);
        }
        self.unpin(endpoint, pid);
    }

    /// endpoint.rs, `unpin`.
    fn unpin(&self, endpoint: &Endpoint, pid: u64) {
        let last = relaxed_if(self.flaw == Flaw::UnpinsRelaxed, || endpoint.pins.remove());
        if !last && self.flaw != Flaw::IgnoresPins {
            return;
        }
        let Some(slot) = self.slot(endpoint) else { return };
        if endpoint.spare.swap(0, AcqRel) == 1 {
            self.table[SPARE].swap(0, AcqRel);
        }
        let segment = named(&self.segments, endpoint.segment.load(Acquire));
        endpoint.slot.store(0, Release);
        endpoint.segment.store(0, Release);
        if let Some(segment) = segment {
            assert_eq!(segment.mapped.set(0), 1, "unmapped twice");
        }
        assert!(slots::close(slot, 1).is_some(), "the only holder");
        let _guard = lock::acquire(&self.pool, pid);
        let number = self.endpoints.iter().position(|other| std::ptr::eq(other, endpoint)).expect("of this process");
        self.free.set(self.free.get() | 1 << number);
    }

    /// endpoint.rs, `select` and `attach`, and establish.rs, `join`: a connection at `fd`, as far as there is room.
    fn open(&self, fd: usize, connection: u32, pid: u64) {
        let claimed = |slot: &&Slot| slots::try_claim(slot, 0, ROLE_CONNECTOR, 1);
        // As the ledger's cursor does, which goes round.
        let mut from_cursor = self.slots.iter().cycle().skip(connection as usize).take(self.slots.len());
        let Some(slot) = from_cursor.find(claimed) else { return };
        if self.flaw == Flaw::ResetsLocks {
            slot.tx_lock.store(0, Relaxed);
            slot.rx_lock.store(0, Relaxed);
        }
        self.owner(slot).set(connection);
        let guard = lock::acquire(&self.pool, pid);
        let free = self.free.get();
        if free == 0 {
            slots::close(slot, 1);
            return;
        }
        let other = 1 << connection & free; // if there is one, else the one just given back
        let number = if other == 0 { free } else { other }.trailing_zeros();
        self.free.set(free & !(1 << number));
        drop(guard);
        let endpoint = &self.endpoints[number as usize];
        endpoint.segment.store(0, Relaxed);
        endpoint.descriptors.store(0, Relaxed);
        endpoint.pins.reset();
        endpoint.spare.store(0, Relaxed);
        endpoint.connection.set(connection);
        let place = self.slots.iter().position(|other| std::ptr::eq(other, slot)).expect("of this process");
        endpoint.slot.store(place as u64 + 1, Release);
        endpoint.descriptors.fetch_add(1, Relaxed);
        self.table[fd].swap(u64::from(number) + 1, AcqRel);
        self.segments[connection as usize].mapped.set(1);
        let _rx = lock::acquire(&slot.rx_lock, pid);
        let _tx = lock::acquire(&slot.tx_lock, pid);
        endpoint.segment.store(u64::from(connection) + 1, Release);
    }

    fn owner(&self, slot: &Slot) -> &Cell {
        let place = self.slots.iter().position(|other| std::ptr::eq(other, slot)).expect("of this process");
        &self.owners[place]
    }

    /// After all: closes what is open, and finds nothing of any connection.
    fn ends(&self) {
        self.close(FD, 1);
        assert_eq!(self.table.each_ref().map(|entry| entry.load(Acquire)), [0, 0]);
        assert!(self.segments.iter().all(|segment| segment.mapped.get() == 0), "a segment stays mapped");
        assert_eq!(self.free.get(), (1 << self.endpoints.len()) - 1, "an endpoint is lost");
        for slot in &self.slots {
            assert!([SLOT_FREE, SLOT_CLOSED].contains(&slot.state.load(Acquire)), "a slot is lost");
            assert_eq!([slot.rx_lock.load(Acquire), slot.tx_lock.load(Acquire)], [0, 0]);
        }
    }
}

/// What a word of the table or of an endpoint leads to; 0 is nothing.
fn named<T>(all: &[T], word: u64) -> Option<&T> {
    all.get(usize::try_from(word).expect("small").checked_sub(1)?)
}

/// Who the threads are; thread 1 is the model's own.
type Call = fn(&Process, u64);

fn reads(process: &Process, pid: u64) {
    process.read(FD, pid);
}

fn sleeps(process: &Process, pid: u64) {
    process.sleep_and_read(pid);
}

fn closes(process: &Process, pid: u64) {
    process.close(FD, pid);
}

/// Closes, and the next connection gets the same number.
fn turns_over(process: &Process, pid: u64) {
    process.close(FD, pid);
    process.open(FD, 1, pid);
    process.read(FD, pid);
}

/// The calls race, on one connection in a process that has so many endpoints and slots.
fn race(name: &str, (endpoints, slots): (usize, usize), calls: &'static [Call], flaw: Flaw) {
    // Two that sleep and one that closes compete for a lock in very many ways.
    let preemptions = if calls.len() == 2 { 4 } else { 1 };
    explore(&format!("{name}, {endpoints} endpoints, {slots} slots, {flaw:?}"), preemptions, move || {
        let process = Process::new(endpoints, slots, flaw);
        process.open(FD, 0, 1);
        let (own, others) = calls.split_first().expect("somebody");
        let threads: Vec<_> = others
            .iter()
            .zip(2..)
            .map(|(call, pid)| {
                let process = Arc::clone(&process);
                thread::spawn(move || call(&process, pid))
            })
            .collect();
        own(&process, 1);
        threads.into_iter().for_each(|thread| thread.join().expect("a call"));
        process.ends();
    });
}

/// What a read touches is mapped and its own connection's, though another thread closes the number meanwhile.
///
/// Bound: two threads, one read and one close, one endpoint and one slot.
#[test]
fn a_read_races_with_a_close() {
    race("a read, a close", (1, 1), &[closes, reads], Flaw::None);
}

/// The same, and of two threads that close the same number one gives everything back, once.
///
/// Bound: three threads, one read and two closes, one endpoint and one slot.
#[test]
fn a_read_races_with_two_closes() {
    race("a read, two closes", (1, 1), &[closes, reads, closes], Flaw::None);
}

/// A call that lets go of the lock to sleep finds its endpoint, its slot and its segment still there, although the number was closed.
///
/// Bound: two threads, one call that sleeps and one close, one endpoint and one slot.
#[test]
fn a_sleeper_outlasts_the_descriptor() {
    race("a sleeper, a close", (1, 1), &[closes, sleeps], Flaw::None);
}

/// The same for two such calls, of which the last gives back what the close could not.
///
/// Bound: three threads, two calls that sleep and one close, one endpoint and one slot.
#[test]
fn two_sleepers_outlast_the_descriptor() {
    race("two sleepers, a close", (1, 1), &[closes, sleeps, sleeps], Flaw::None);
}

/// A call that comes late reads of no connection but the one that the table named, although the next has the same number, endpoint and slot.
///
/// Bound: two threads, a read, a close, a connection and a read of it, one endpoint and one slot.
#[test]
fn the_next_connection_takes_over_everything() {
    race("a read, the next connection", (1, 1), &[turns_over, reads], Flaw::None);
}

/// The same where the next connection has the endpoint and another slot.
///
/// Bound: two threads, a read, a close, a connection and a read of it, one endpoint and two slots.
#[test]
fn the_next_connection_takes_over_the_endpoint() {
    race("a read, the next connection", (1, 2), &[turns_over, reads], Flaw::None);
}

/// The same where the next connection has the slot and another endpoint.
///
/// Bound: two threads, a read, a close, a connection and a read of it, two endpoints and one slot.
#[test]
fn the_next_connection_takes_over_the_slot() {
    race("a read, the next connection", (2, 1), &[turns_over, reads], Flaw::None);
}

/// A call that sleeps goes on with its own connection, although the next has its number by then.
///
/// Bound: two threads, a call that sleeps, a close, a connection and a read of it, two endpoints and two slots.
#[test]
fn the_next_connection_comes_while_a_call_sleeps() {
    race("a sleeper, the next connection", (2, 2), &[turns_over, sleeps], Flaw::None);
}

/// What a call that sleeps goes on with is not given to the next connection, which has the only slot or nothing.
///
/// Bound: two threads, a call that sleeps, a close, a connection and a read of it, two endpoints and one slot.
#[test]
fn the_next_connection_does_not_get_what_a_sleeping_call_has() {
    race("a sleeper, the next connection", (2, 1), &[turns_over, sleeps], Flaw::None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_no_second_look() {
    race("a read, a close", (1, 1), &[closes, reads], Flaw::NoSecondLook);
}

#[test]
#[should_panic(expected = "another connection's slot")]
fn flaw_a_second_look_at_the_table_only() {
    race("a read, the next connection", (1, 2), &[turns_over, reads], Flaw::LooksAtTheTableOnly);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_close_that_does_not_wait() {
    race("a read, a close", (1, 1), &[closes, reads], Flaw::DoesNotWait);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_table_that_is_cleared_after_the_locks() {
    race("a read, a close", (1, 1), &[closes, reads], Flaw::ClearsTooLate);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_pins_that_are_ignored() {
    race("a sleeper, a close", (1, 1), &[closes, sleeps], Flaw::IgnoresPins);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_pin_after_the_lock_is_let_go() {
    race("a sleeper, a close", (1, 1), &[closes, sleeps], Flaw::PinsTooLate);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_pin_let_go_without_release() {
    race("a sleeper, a close", (1, 1), &[closes, sleeps], Flaw::UnpinsRelaxed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_locks_that_begin_free() {
    race("a read, the next connection", (1, 1), &[turns_over, reads], Flaw::ResetsLocks);
}
