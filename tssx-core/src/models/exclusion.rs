//! Property: a direction's lock has one holder at a time, each sees what the last one did, and the lock of a dead owner is
//! had by exactly one of those who want it. Two holders, or one that does not see, are a race on the cell that the lock guards.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use loom::cell::UnsafeCell;
use loom::thread;

use super::support::{explore, relaxed_if};
use super::world::World;
use crate::lock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    AcquireRelaxed,
    ReleaseRelaxed,
    /// A living owner is taken for dead.
    WrongDeath,
    /// A dead owner's lock is freed by a store, whoever holds it by now.
    TakenOverByStore,
}

/// The process that may die; the others are 1 and 2.
const MORTAL: u32 = 7;

/// What the lock guards: whoever holds it writes.
struct Guarded(UnsafeCell<u32>);

// SAFETY: the lock under test is what makes it sound; loom checks every access.
#[allow(unsafe_code, reason = "shares what the lock guards")]
unsafe impl Sync for Guarded {}
#[allow(unsafe_code, reason = "shares what the lock guards")]
// SAFETY: a number.
unsafe impl Send for Guarded {}

impl Guarded {
    fn count(&self) {
        #[allow(unsafe_code, reason = "what the lock guards")]
        // SAFETY: exclusive by the lock under test.
        self.0.with_mut(|value| unsafe { *value += 1 });
    }
}

fn hold(world: &World, guarded: &Guarded, pid: u64, flaw: Flaw) {
    let word = &world.tx.tx_lock;
    if flaw == Flaw::TakenOverByStore {
        let owner = word.load(Relaxed);
        if owner != 0 && !super::kernel::process_lives(u32::try_from(owner).expect("no thread in the word"), true) {
            word.store(0, Release);
        }
    }
    let guard = relaxed_if(flaw == Flaw::AcquireRelaxed, || lock::acquire(word, pid));
    guarded.count();
    // Somewhere to be interrupted while the lock is held.
    world.dead.fetch_or(0, Relaxed);
    guarded.count();
    relaxed_if(flaw == Flaw::ReleaseRelaxed, || drop(guard));
}

fn two_holders(flaw: Flaw) {
    explore(&format!("two holders, {flaw:?}"), 4, move || {
        let world = World::new(4);
        if flaw == Flaw::WrongDeath {
            world.dead.store(1, Release);
        }
        let guarded = Arc::new(Guarded(UnsafeCell::new(0)));
        let (other, theirs) = (Arc::clone(&world), Arc::clone(&guarded));
        let thread = thread::spawn(move || {
            hold(&other, &theirs, 2, flaw);
            hold(&other, &theirs, 2, flaw);
        });
        hold(&world, &guarded, 1, flaw);
        thread.join().expect("other holder");
        assert_eq!(world.tx.tx_lock.swap(0, AcqRel), 0);
        guarded.count();
    });
}

/// Takes the lock and dies with it.
fn die_holding(world: &World, guarded: &Guarded) {
    let guard = lock::acquire(&world.tx.tx_lock, u64::from(MORTAL));
    guarded.count();
    core::mem::forget(guard);
    world.dead.store(MORTAL, Release);
}

/// An owner is dead when two others come for the lock.
fn two_heirs(flaw: Flaw) {
    explore(&format!("two heirs, {flaw:?}"), 3, move || {
        let world = World::new(4);
        let guarded = Arc::new(Guarded(UnsafeCell::new(0)));
        die_holding(&world, &guarded);
        let (other, theirs) = (Arc::clone(&world), Arc::clone(&guarded));
        let thread = thread::spawn(move || hold(&other, &theirs, 2, flaw));
        hold(&world, &guarded, 1, flaw);
        thread.join().expect("other heir");
        assert_eq!(world.tx.tx_lock.load(Acquire), 0);
        guarded.count();
    });
}

/// An owner dies while another waits for the lock, or after it had it.
fn death_of_an_owner() {
    explore("death of an owner", 3, move || {
        let world = World::new(4);
        let guarded = Arc::new(Guarded(UnsafeCell::new(0)));
        let (dying, theirs) = (Arc::clone(&world), Arc::clone(&guarded));
        let mortal = thread::spawn(move || die_holding(&dying, &theirs));
        hold(&world, &guarded, 1, Flaw::None);
        mortal.join().expect("mortal");
        hold(&world, &guarded, 1, Flaw::None);
        assert_eq!(world.tx.tx_lock.load(Acquire), 0);
    });
}

/// The same beside another who does no more than to free the lock of one who is dead.
fn death_before_two_heirs() {
    explore("death before two heirs", 2, move || {
        let world = World::new(4);
        let guarded = Arc::new(Guarded(UnsafeCell::new(0)));
        let (dying, theirs) = (Arc::clone(&world), Arc::clone(&guarded));
        let mortal = thread::spawn(move || die_holding(&dying, &theirs));
        let other = Arc::clone(&world);
        let heir = thread::spawn(move || lock::is_free(&other.tx.tx_lock, 2));
        hold(&world, &guarded, 1, Flaw::None);
        heir.join().expect("other heir");
        mortal.join().expect("mortal");
    });
}

/// One holds the lock at a time, and sees what the last one did.
///
/// Bound: two threads, three sections.
#[test]
fn holders_exclude_each_other() {
    two_holders(Flaw::None);
}

/// The lock of an owner that is dead goes to exactly one of those who want it, who sees what the dead has done.
///
/// Bound: two threads and an owner that died before them, two sections.
#[test]
fn the_lock_of_a_dead_owner_goes_to_one() {
    two_heirs(Flaw::None);
}

/// The same whenever the owner dies: before others want the lock, while they wait for it, after they had it.
///
/// Bound: two threads of which one dies holding, two sections of the other.
#[test]
fn an_owner_may_die_at_any_moment() {
    death_of_an_owner();
}

/// Who takes a dead owner's lock sees what the dead has done, although it was another who found it dead.
///
/// Bound: three threads of which one dies holding and one frees its lock, one section of the other.
#[test]
fn who_inherits_a_lock_that_another_freed_sees_all() {
    death_before_two_heirs();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_lock_taken_without_acquire() {
    two_holders(Flaw::AcquireRelaxed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_lock_released_without_release() {
    two_holders(Flaw::ReleaseRelaxed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_living_owner_taken_for_dead() {
    two_holders(Flaw::WrongDeath);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn flaw_a_dead_owner_succeeded_by_a_store() {
    two_heirs(Flaw::TakenOverByStore);
}
