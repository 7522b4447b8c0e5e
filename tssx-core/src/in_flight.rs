//! Sends on the kernel socket that are in progress: the program's own, and doorbells that wait for room. A direction does not move while there
//! is one, because what it sends is not counted yet.
//!
//! Whoever is killed in one never comes back to count. So the word names the process that began the last one, and the ring may end
//! without it, once the peer has taken all that was sent: then it does not matter whether the last byte was counted
//! ([`crate::doorbell::before_resume`] stops at nothing left).

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::ledger::layout::Slot;
use crate::sys;

/// Bits of `Slot::kernel_tx_inflight` that count; those above are the process (22 bits, PID_MAX_LIMIT of linux/threads.h).
const COUNT_BITS: u32 = 10;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// What is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// Nothing: the direction may move.
    Nothing,
    /// A send of a living process.
    Something,
    /// Nothing but a send of a dead process, and the peer has not taken all that was sent.
    Abandoned,
}

/// A send of process `pid` begins; under the sending lock. 0: of one that the others cannot name, and never take for dead.
pub fn begins(slot: &Slot, pid: u32) {
    let count = (slot.kernel_tx_inflight.load(Relaxed) & COUNT).saturating_add(1).min(COUNT);
    slot.kernel_tx_inflight.store(pid << COUNT_BITS | count, Release);
}

/// A send has ended; under the sending lock.
pub fn ends(slot: &Slot) {
    let word = slot.kernel_tx_inflight.load(Relaxed);
    let left = (word & COUNT).saturating_sub(1);
    slot.kernel_tx_inflight.store(if left == 0 { 0 } else { word & !COUNT | left }, Release);
}

/// Whether a send is in progress, dead or not.
#[inline]
#[must_use]
pub fn any(slot: &Slot) -> bool {
    slot.kernel_tx_inflight.load(Acquire) != 0
}

/// Looks closely, under the sending lock, at a direction that is in its ring and has to leave it: forgets the send of a process that is dead.
#[must_use]
pub fn look(fd: i32, slot: &Slot) -> InFlight {
    let word = slot.kernel_tx_inflight.load(Acquire);
    if word == 0 {
        return InFlight::Nothing;
    }
    let pid = word >> COUNT_BITS;
    let dead = word & COUNT == 1 && pid != 0 && pid != sys::getpid() && !sys::process_lives(pid, true);
    if !dead {
        return InFlight::Something;
    }
    if sys::unsent_bytes(fd) != Ok(0) {
        return InFlight::Abandoned;
    }
    slot.kernel_tx_inflight.store(0, Release);
    InFlight::Nothing
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::ledger::slots;

    #[test]
    fn sends_are_counted_until_the_last_has_ended() {
        let (ledger, own) = (slots::create().expect("ledger"), sys::getpid());
        let slot = slots::claim(&ledger, 0, 1, own).expect("slot");
        begins(slot, own);
        begins(slot, own);
        ends(slot);
        assert!(any(slot));
        ends(slot);
        ends(slot);
        assert!(!any(slot));
    }

    #[test]
    fn a_dead_process_send_is_forgotten_once_the_peer_has_taken_everything() {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let mut child = std::process::Command::new("true").spawn().expect("spawn true");
        let ledger = slots::create().expect("ledger");
        let slot = slots::claim(&ledger, 0, 1, sys::getpid()).expect("slot");
        begins(slot, child.id());
        child.wait().expect("wait");
        sys::send(ours.as_raw_fd(), b"x").expect("send");
        assert_eq!(look(ours.as_raw_fd(), slot), InFlight::Abandoned);
        sys::receive(theirs.as_raw_fd(), &mut [0], 0).expect("receive");
        assert_eq!(look(ours.as_raw_fd(), slot), InFlight::Nothing);
        begins(slot, sys::getpid());
        assert_eq!(look(ours.as_raw_fd(), slot), InFlight::Something);
    }
}
