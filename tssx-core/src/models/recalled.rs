//! Property: who is asked to take back what it has sent learns that before it sleeps on the other direction, or is woken. The doorbell that tells
//! of it may be taken with others, by a receive that has looked for a recall just before it came: so it looks again afterwards.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use loom::thread;

use super::kernel;
use super::support::explore;
use super::world::World;
use crate::layout::STATE_RING;
use crate::ledger::layout::{MODE_RING, Slot};
use crate::{doorbell, lock, recall};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A receive that took doorbells goes to sleep by what it saw before.
    LooksOnlyBefore,
}

/// Ring capacity: the least that a limit may be.
const CAPACITY: u64 = 4096;

/// receive.rs, `receive` with empty.rs, `sleep`, of an end whose peer sends nothing more: until it sees that it is asked.
fn receive(world: &World, flaw: Flaw) {
    let (slot, segment) = (&world.rx, world.consuming());
    loop {
        let guard = lock::acquire(&slot.rx_lock, 1);
        if recall::is_wanted(&segment) {
            return;
        }
        let stale = doorbell::stale(slot, &segment);
        if stale > 0 {
            doorbell::take_doorbells(0, slot, &segment, stale);
        }
        doorbell::announce(&segment);
        if flaw != Flaw::LooksOnlyBefore && recall::is_wanted(&segment) {
            return;
        }
        assert_eq!(segment.rx().head.load(Relaxed), segment.rx().tail.load(Acquire), "nothing was sent");
        drop(guard);
        kernel::receive_one(true);
        // A doorbell that is not counted yet must not keep loom here for ever.
        kernel::yield_now();
    }
}

fn recalled(flaw: Flaw) {
    explore(&format!("a recall for a sleeper, {flaw:?}"), 4, move || {
        let world = World::new(CAPACITY);
        world.tx.tx_mode.store(MODE_RING, Relaxed);
        world.rx.rx_mode.store(MODE_RING, Relaxed);
        world.producing().tx().state.store(STATE_RING, Relaxed);
        doorbell::withdraw(&world.consuming());
        world.socket.shrink();
        let asker = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                // recall.rs, `ask` and `wake_peer`.
                let (own, segment) = (Slot::default(), world.producing());
                own.rx_mode.store(MODE_RING, Relaxed);
                recall::revoke(&own, &segment);
                doorbell::poke(0, &world.tx, &segment);
            })
        };
        receive(&world, flaw);
        asker.join().expect("the one that asks");
    });
}

/// Who is asked for what it has sent learns that before it sleeps, or is woken.
///
/// Bound: two threads, one recall and a receive that sleeps until it sees it, one doorbell.
#[test]
fn a_recall_is_seen_before_a_sleep_or_ends_it() {
    recalled(Flaw::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn flaw_a_recall_whose_doorbell_was_taken_with_others() {
    recalled(Flaw::LooksOnlyBefore);
}
