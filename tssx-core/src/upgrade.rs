//! When and how an end tries to get a segment: the schedule around [`crate::rendezvous`].
//!
//! Everything is driven by the program's own operations on the connection; there is no thread and no timer, and no step waits.
//! Below the threshold nothing happens, so a short connection costs nothing. From then on the connector tries
//! to make its offer, at once and then ever more rarely; the acceptor opens its mailbox for a window of operations, and
//! after [`WINDOWS_MAX`] windows in vain it stays plain: the peer has no library. Windows grow with the operations
//! seen, and the connector's tries thin out by a smaller factor, so that whatever the ratio of the two ends' operation
//! counts, tries fall into every window.

use core::cell::Cell;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::diag::{self, Peer};
use crate::ledger::layout::{ROLE_CONNECTOR, Slot};
use crate::reason::Reason;
use crate::rendezvous::{self, Outcome};
use crate::segment::Segment;
use crate::sys;

/// Windows an acceptor opens before it gives up.
const WINDOWS_MAX: u32 = 4;
/// How many times the operations so far it stays closed after one: a peer that missed a window is not left out for long.
const PAUSE: u64 = 3;
/// Operations a window lasts at least.
const WINDOW_MIN: u64 = 32;
/// Times the kernel may not know the peer before a connector gives up.
const UNKNOWN_MAX: u32 = 4;
/// Tries in vain after which a connector that is still trying says why it is plain so far.
const TRIES_BEFORE_REASON: u32 = 4;

/// The part of the schedule that one process keeps for one connection. All zero is the start.
#[derive(Debug, Default)]
pub struct Schedule {
    /// 1 while a thread makes a step, and for good once a step has decided: others pass by.
    busy: AtomicU32,
    /// Mailbox descriptor plus one; 0 = none.
    mailbox: AtomicU32,
    /// Operation count at which the next step is due.
    next: AtomicU64,
    /// Operation count at which the open window ends.
    window_end: AtomicU64,
}

/// What a step asks of the caller, who owns the descriptor table.
#[derive(Debug)]
pub enum Step {
    /// Nothing to do now.
    Nothing,
    /// A mailbox was opened at this descriptor.
    Opened(i32),
    /// This mailbox is not needed any more: close it if it is still ours.
    Closed(i32),
    /// A segment is mapped; this mailbox, if any, is not needed any more.
    Joined(Segment, Option<i32>),
    /// The connection stays plain; this mailbox, if any, is not needed any more.
    GiveUp(Reason, Option<i32>),
}

/// One thread's turn, until what its step asks for is done. After a step that decides there is no other turn: a thread that saw the
/// connection without a segment a moment ago would make a second offer, and the peer may hold another segment then.
#[derive(Debug)]
pub struct Turn<'a> {
    schedule: &'a Schedule,
    decided: Cell<bool>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.schedule.busy.store(u32::from(self.decided.get()), Release);
    }
}

impl Turn<'_> {
    /// Makes the step that is due for the socket `fd`.
    pub fn step(&self, fd: i32, slot: &Slot, threshold: u64) -> Step {
        let step = if slot.holder_count() != 1 {
            // A process that shares the connection would have no mapping of the segment.
            Step::Nothing
        } else if slot.role.load(Relaxed) == ROLE_CONNECTOR {
            self.schedule.connector_step(fd, slot, threshold)
        } else {
            self.schedule.acceptor_step(fd, slot)
        };
        self.decided.set(matches!(step, Step::Joined(..) | Step::GiveUp(..)));
        step
    }
}

impl Schedule {
    /// Starts over for a new connection.
    pub fn reset(&self) {
        self.busy.store(0, Relaxed);
        self.mailbox.store(0, Relaxed);
        self.next.store(0, Relaxed);
        self.window_end.store(0, Release);
    }

    /// Whether a step might be due: a look without side effects, cheap enough for every operation.
    #[must_use]
    pub fn due(&self, slot: &Slot, threshold: u64) -> bool {
        let operations = operations(slot);
        // The acceptor is one operation early, so that its mailbox is open when the connector tries.
        let early = u64::from(slot.role.load(Relaxed) != ROLE_CONNECTOR);
        operations + early >= threshold && (operations >= self.next.load(Relaxed) || self.mailbox.load(Relaxed) != 0)
    }

    /// The turn to make a step; `None` while another thread has it, or where the connection is decided.
    #[must_use]
    pub fn turn(&self) -> Option<Turn<'_>> {
        (self.busy.swap(1, Acquire) == 0).then(|| Turn { schedule: self, decided: Cell::new(false) })
    }

    /// Whether a step would open a mailbox, if anything.
    #[must_use]
    pub fn may_open(&self, slot: &Slot) -> bool {
        slot.role.load(Relaxed) != ROLE_CONNECTOR && self.mailbox.load(Relaxed) == 0
    }

    /// Gives the mailbox up for now: tries again at one of the next operations.
    pub fn postpone(&self, slot: &Slot) {
        self.forget_mailbox();
        slot.reason.store(Reason::TooManyPending as u32, Relaxed);
        self.next.store(operations(slot) + 2, Relaxed);
    }

    /// Forgets the mailbox, because it was closed or belongs to another process after `fork`. Returns its descriptor.
    pub fn forget_mailbox(&self) -> Option<i32> {
        self.mailbox.swap(0, AcqRel).checked_sub(1).map(u32::cast_signed)
    }

    fn connector_step(&self, fd: i32, slot: &Slot, threshold: u64) -> Step {
        let operations = operations(slot);
        if operations < self.next.load(Relaxed) {
            return Step::Nothing;
        }
        let attempts = slot.attempts.fetch_add(1, Relaxed) + 1;
        self.next.store(operations + 1 + operations.saturating_sub(threshold) / 2, Relaxed);
        let Some(own) = own_inode(fd, slot) else { return Step::GiveUp(Reason::PeerUnknown, None) };
        let peer = match peer(own, slot) {
            Peer::Inode(peer) => peer,
            Peer::None => return Step::Nothing, // not accepted yet: the program may send before that
            Peer::Unknown if attempts < UNKNOWN_MAX => return Step::Nothing,
            Peer::Unknown => return Step::GiveUp(Reason::PeerUnknown, None),
        };
        let uid = match rendezvous::stream_user(fd) {
            Ok(uid) => uid,
            Err(reason) => return Step::GiveUp(reason, None),
        };
        let buffer = sys::getsockopt::<i32>(fd, libc::SO_SNDBUF).unwrap_or(0).max(0);
        let capacity = u64::from(buffer.cast_unsigned());
        match rendezvous::offer(peer, uid, || Segment::create(capacity, own, peer), Segment::discard) {
            Outcome::Done(segment) => Step::Joined(segment, None),
            Outcome::Refused(reason) => Step::GiveUp(reason, None),
            Outcome::NotYet => {
                if attempts >= TRIES_BEFORE_REASON {
                    slot.reason.store(Reason::PeerNotReady as u32, Relaxed);
                }
                Step::Nothing
            }
        }
    }

    fn acceptor_step(&self, fd: i32, slot: &Slot) -> Step {
        let operations = operations(slot);
        let Some(mailbox) = self.mailbox.load(Relaxed).checked_sub(1) else {
            return self.open_window(fd, slot, operations);
        };
        let mailbox = mailbox.cast_signed();
        let (Ok(uid), Some(own)) = (rendezvous::stream_user(fd), own_inode(fd, slot)) else {
            return Step::GiveUp(Reason::PeerCredentials, self.forget_mailbox());
        };
        match rendezvous::take_offer(mailbox, uid) {
            Outcome::Done(memory) => {
                let adopted = Segment::adopt(memory, own);
                sys::close(memory);
                match adopted {
                    Ok(segment) => Step::Joined(segment, self.forget_mailbox()),
                    Err(reason) => Step::GiveUp(reason, self.forget_mailbox()),
                }
            }
            Outcome::Refused(reason) => {
                // Whoever came was not the peer, or no peer of ours: keep waiting for the right one.
                slot.reason.store(reason as u32, Relaxed);
                Step::Nothing
            }
            Outcome::NotYet if operations < self.window_end.load(Relaxed) => Step::Nothing,
            Outcome::NotYet => self.close_window(own, slot, operations),
        }
    }

    fn open_window(&self, fd: i32, slot: &Slot, operations: u64) -> Step {
        if operations < self.next.load(Relaxed) {
            return Step::Nothing;
        }
        let opened = own_inode(fd, slot).ok_or(Reason::PeerUnknown).and_then(rendezvous::open_mailbox);
        match opened {
            Ok(mailbox) => {
                self.window_end.store(operations + WINDOW_MIN.max(operations * 3), Relaxed);
                self.mailbox.store(mailbox.cast_unsigned() + 1, Release);
                Step::Opened(mailbox)
            }
            Err(_) => self.close_window(own_inode(fd, slot).unwrap_or(0), slot, operations),
        }
    }

    /// No offer came (or no mailbox could be made): tries again much later, or not at all.
    fn close_window(&self, own: u64, slot: &Slot, operations: u64) -> Step {
        // An accepted socket is of its peer's network namespace: if it is not known in ours, the two cannot meet.
        let reason = if diag::peer(own) == Peer::Unknown { Reason::PeerUnknown } else { Reason::PeerNotReady };
        slot.reason.store(reason as u32, Relaxed);
        let mailbox = self.forget_mailbox();
        if slot.attempts.fetch_add(1, Relaxed) + 1 >= WINDOWS_MAX {
            return Step::GiveUp(reason, mailbox);
        }
        self.next.store(operations.saturating_mul(PAUSE), Relaxed);
        mailbox.map_or(Step::Nothing, Step::Closed)
    }
}

/// Operations that the connection has seen on the kernel socket.
fn operations(slot: &Slot) -> u64 {
    slot.kernel_tx_calls.load(Relaxed) + slot.kernel_rx_calls.load(Relaxed)
}

/// The inode of the slot's socket `fd`, asked for once; `None` if the kernel does not say.
pub fn own_inode(fd: i32, slot: &Slot) -> Option<u64> {
    match slot.inode.load(Relaxed) {
        0 => {
            let inode = sys::fstat(fd).ok()?.inode;
            slot.inode.store(inode, Relaxed);
            Some(inode)
        }
        inode => Some(inode),
    }
}

fn peer(own: u64, slot: &Slot) -> Peer {
    match slot.peer_inode.load(Relaxed) {
        0 => {
            let peer = diag::peer(own);
            if let Peer::Inode(inode) = peer {
                slot.peer_inode.store(inode, Relaxed);
            }
            peer
        }
        inode => Peer::Inode(inode),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::ledger::layout::ROLE_ACCEPTOR;

    fn slot(role: u32) -> Slot {
        let slot = Slot::default();
        slot.role.store(role, Relaxed);
        slot.holders.store(1, Relaxed);
        slot
    }

    #[test]
    fn a_connector_makes_one_offer_however_many_threads_look() {
        let (connector, acceptor) = UnixStream::pair().expect("pair");
        let (ours, theirs) = (Schedule::default(), Schedule::default());
        let (own, peer) = (slot(ROLE_CONNECTOR), slot(ROLE_ACCEPTOR));
        let opened = theirs.turn().expect("the first").step(acceptor.as_raw_fd(), &peer, 0);
        let Step::Opened(mailbox) = opened else { panic!("no mailbox: {opened:?}") };
        let turn = ours.turn().expect("the first");
        assert!(ours.turn().is_none(), "one thread at a time");
        let Step::Joined(segment, None) = turn.step(connector.as_raw_fd(), &own, 0) else { panic!("not joined") };
        drop(turn);
        // The mailbox is open still: a second offer would be taken for the first.
        assert!(ours.turn().is_none(), "it is decided");
        ours.reset();
        assert!(ours.turn().is_some(), "another connection");
        sys::close(mailbox);
        Segment::discard(segment);
    }

    #[test]
    fn a_step_that_decides_nothing_leaves_the_turn_to_others() {
        let (connector, _acceptor) = UnixStream::pair().expect("pair");
        let (schedule, slot) = (Schedule::default(), slot(ROLE_CONNECTOR));
        for _ in 0..3 {
            let turn = schedule.turn().expect("free again");
            assert!(matches!(turn.step(connector.as_raw_fd(), &slot, 0), Step::Nothing));
        }
    }
}
