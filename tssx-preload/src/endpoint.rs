//! An endpoint: this process's half of one end of a selected connection, shared by all descriptors that are duplicates.
//!
//! What outlives the process or is shared with forked ones is in the ledger slot; what the peer shares is in the segment. The
//! endpoint ties both to descriptors.
//!
//! **Reclamation.** Endpoints come from a pool that is never unmapped, so a lookup that races with `close` reads a valid
//! object, perhaps of another connection by now. Every operation therefore (1) looks up the descriptor, (2) takes the
//! direction's lock in the slot the endpoint names, (3) looks up the descriptor again: if it still leads to the same
//! endpoint, then it cannot change hands while the lock is held, because [`Endpoint::detach`] is called with the table cleared and
//! takes both locks. A caller that lets go of the lock to spin or to sleep pins the endpoint first; the last pin to
//! go unmaps the segment and gives slot and endpoint back. So nothing is freed under anybody, and a descriptor number that
//! comes back as another connection never receives our bytes. The steps are `tssx-core`'s ([`tssx_core::reclaim`]), which checks them in
//! every interleaving (`models/closing.rs`).

#![allow(unsafe_code, reason = "puts segment handles together and ends their mappings")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

use tssx_core::doorbell;
use tssx_core::ledger::layout::{MODE_KERNEL, MODE_RING, ROLE_ACCEPTOR, Slot};
use tssx_core::ledger::{holders, slots};
use tssx_core::reclaim::{Pins, lock_named};
use tssx_core::ring::consumer::SeenTail;
use tssx_core::ring::producer::{Producer, SeenHead};
use tssx_core::segment::{Segment, Side};
use tssx_core::switchover::{self, Arrival};
use tssx_core::upgrade::{self, Schedule};

use crate::memory::{Pool, Pooled, ZeroInit};
use crate::process::held::{self, Held, Kind};
use crate::process::log;
use crate::readiness::interest::Watchers;
use crate::socket::copying::Job;
use crate::socket::gathering::Gathering;
use crate::socket::lone::LoneSleep;
use crate::socket::wait::SpinBudget;
use crate::{fd_table, init, process};

/// See the module's text. Zero is the state of a free endpoint.
#[repr(C, align(128))]
pub(crate) struct Endpoint {
    /// The slot, null while free.
    slot: AtomicPtr<Slot>,
    /// The segment's address, null until there is one.
    segment: AtomicPtr<u8>,
    /// Bytes of each of the segment's rings.
    capacity: AtomicU64,
    /// Descriptors of this process that lead here.
    descriptors: AtomicU32,
    /// One for the descriptors together, one for each caller that spins or sleeps.
    pins: Pins,
    /// 1 once the process has given up its share because it ends.
    left: AtomicU32,
    /// 1 once a signal handler has closed the connection in the middle of a locked section of its own thread, which will go on.
    interrupted: AtomicU32,
    /// The copy into the ring that the holder of the sending lock is in the middle of: see `socket/copying.rs`.
    pub(crate) job: AtomicPtr<Job<'static>>,
    /// The sleep, in a receive, that takes its doorbell: see `socket/lone.rs`.
    pub(crate) lone: LoneSleep,
    /// When the peer was last known to live, in ticks.
    pub(crate) last_alive: AtomicU64,
    /// When we last wrote, in ticks.
    pub(crate) last_write: AtomicU64,
    /// How far the peer had read when that was looked at last as a sign of life, and when that was, in ticks.
    pub(crate) last_head: AtomicU64,
    pub(crate) last_look: AtomicU64,
    /// What was seen of the peer's positions.
    pub(crate) seen_head: SeenHead,
    pub(crate) seen_tail: SeenTail,
    /// When poll or select asked the kernel about this socket last, in ticks.
    pub(crate) asked: AtomicU64,
    /// When the peer was first asked for the ring that we read, in ticks.
    pub(crate) asked_back: AtomicU64,
    /// See [`Self::count_refusal`].
    refusals: AtomicU64,
    /// 1 once the program has shut the receiving direction down.
    pub(crate) deaf: AtomicU32,
    /// A descriptor (plus one) that keeps the kernel's socket while calls go on whose descriptor was closed.
    spare: AtomicU32,
    /// How long waiting for the ring pays.
    pub(crate) spin: SpinBudget,
    /// How long its reader rests.
    pub(crate) gathering: Gathering,
    /// The upgrade's schedule.
    pub(crate) schedule: Schedule,
    /// Epoll sets that watch this connection.
    pub(crate) watchers: Watchers,
    link: AtomicPtr<Endpoint>,
}

// SAFETY: atomics, and a byte in a cell; zero is the free state.
unsafe impl ZeroInit for Endpoint {}

impl Pooled for Endpoint {
    fn link(&self) -> &AtomicPtr<Self> {
        &self.link
    }
}

static POOL: Pool<Endpoint> = Pool::new();

/// One direction of an endpoint, locked: whatever it shows stays true until it is dropped.
pub(crate) struct Locked {
    pub(crate) endpoint: &'static Endpoint,
    pub(crate) slot: &'static Slot,
    pub(crate) segment: Option<Segment>,
    held: Held,
}

/// Who holds an end more, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A child that is about to be forked, more.
    Child,
    /// That child, which could not be, no more.
    NoChild,
    /// This process, more or, because it becomes another program, no more.
    Own(bool),
}

/// Which of the two locks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Sending.
    Tx,
    /// Receiving.
    Rx,
}

/// Locks a direction of the stream at `fd`; `None` if `fd` is no selected stream (any more).
#[inline]
pub(crate) fn lock_stream(fd: c_int, way: Way) -> Option<Locked> {
    let take = |_: &'static Endpoint, slot: &'static Slot| Endpoint::take(slot, way);
    let (endpoint, slot, held) = lock_named(|| fd_table::stream(fd), Endpoint::slot, take)?;
    endpoint.take_stock(slot, way, &held);
    Some(Locked { endpoint, slot, segment: endpoint.segment(slot), held })
}

/// Leads nowhere: whatever is asked of the kernel with it fails with EBADF.
pub(crate) const NO_DESCRIPTOR: c_int = -1;

/// Keeps an endpoint, its slot and its segment while no lock is held.
pub(crate) struct Pin {
    endpoint: &'static Endpoint,
}

impl Pin {
    /// The endpoint that is kept.
    pub(crate) fn endpoint(&self) -> &'static Endpoint {
        self.endpoint
    }
}

impl Pin {
    /// Locks a direction of the endpoint, though no descriptor may lead to it any more.
    pub(crate) fn lock(&self, way: Way) -> Option<Locked> {
        let (endpoint, slot) = (self.endpoint, self.endpoint.slot()?);
        let held = endpoint.lock(slot, way);
        Some(Locked { endpoint, slot, segment: endpoint.segment(slot), held })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.endpoint.unpin();
    }
}

impl Locked {
    /// Whether this is a signal handler inside a section of the same thread.
    pub(crate) fn is_nested(&self) -> bool {
        self.held.is_nested()
    }

    /// Pins the endpoint, for use after the lock is released.
    pub(crate) fn pin(&self) -> Pin {
        self.endpoint.pins.add();
        Pin { endpoint: self.endpoint }
    }
}

impl Endpoint {
    /// Makes an endpoint for the connected stream `fd` whose name is the ledger's path `path`. `None`, and the connection stays
    /// unselected, if there is no memory or the ledger is full (which it counts).
    pub(crate) fn select(fd: c_int, path: u32, role: u32) -> Option<&'static Self> {
        let ledger = init::ledger()?;
        let slot = slots::claim(ledger, path, role, process::pid())?;
        let Some(endpoint) = POOL.take() else {
            slots::release(ledger, slot, process::pid_for_relatives());
            return None;
        };
        if let Ok(cookie) = tssx_core::sys::getsockopt::<u64>(fd, libc::SO_COOKIE) {
            slot.cookie.store(cookie, Relaxed);
        }
        endpoint.segment.store(core::ptr::null_mut(), Relaxed);
        endpoint.job.store(core::ptr::null_mut(), Relaxed);
        endpoint.lone.reset();
        endpoint.descriptors.store(0, Relaxed);
        endpoint.pins.reset();
        endpoint.left.store(0, Relaxed);
        endpoint.interrupted.store(0, Relaxed);
        endpoint.deaf.store(0, Relaxed);
        endpoint.spare.store(0, Relaxed);
        for moment in [&endpoint.last_alive, &endpoint.last_write, &endpoint.asked, &endpoint.asked_back, &endpoint.refusals] {
            moment.store(0, Relaxed);
        }
        endpoint.spin.reset();
        endpoint.gathering.reset();
        endpoint.schedule.reset();
        endpoint.watchers.reset();
        endpoint.slot.store(core::ptr::from_ref(slot).cast_mut(), Release);
        if endpoint.attach(fd).is_err() {
            endpoint.unpin();
            return None;
        }
        Some(endpoint)
    }

    /// Takes a direction's lock, of an endpoint that is sure to stay.
    #[inline]
    pub(crate) fn lock(&'static self, slot: &'static Slot, way: Way) -> Held {
        let held = Self::take(slot, way);
        self.take_stock(slot, way, &held);
        held
    }

    #[inline]
    fn take(slot: &'static Slot, way: Way) -> Held {
        match way {
            Way::Tx => held::acquire(&slot.tx_lock, Kind::Tx),
            Way::Rx => held::acquire(&slot.rx_lock, Kind::Rx),
        }
    }

    /// What may have happened before this lock was taken: the last section was left by a jump; or a receive of this thread, which a signal
    /// handler interrupts, has taken a doorbell that nobody has counted. Not before the endpoint is known to be the lock's: it may be another connection's
    /// by then, in the middle of a copy.
    #[inline]
    fn take_stock(&self, slot: &Slot, way: Way, held: &Held) {
        match way {
            Way::Tx if !held.is_nested() => self.job.store(core::ptr::null_mut(), Relaxed),
            Way::Rx if self.lone.is_any() => self.segment(slot).iter().for_each(|segment| self.lone.account(slot, segment)),
            _ => {}
        }
    }

    /// The slot, unless the endpoint is free.
    #[inline]
    pub(crate) fn slot(&self) -> Option<&'static Slot> {
        // SAFETY: slots lie in the ledger, which is never unmapped.
        unsafe { self.slot.load(Acquire).cast_const().as_ref() }
    }

    /// The segment, if there is one. Valid while a lock of the endpoint or a pin is held.
    #[inline]
    pub(crate) fn segment(&self, slot: &Slot) -> Option<Segment> {
        let base = self.segment.load(Acquire);
        let side = if slot.role.load(Relaxed) == ROLE_ACCEPTOR { Side::Acceptor } else { Side::Connector };
        // SAFETY: `join` stored both from a live mapping, which lasts until the last pin is gone.
        unsafe { Segment::from_parts(base, self.capacity.load(Relaxed), side) }
    }

    /// Remembers the segment. Both locks are held by the caller.
    pub(crate) fn join(&self, segment: Segment) {
        let (base, capacity) = segment.into_parts();
        self.seen_head.reset();
        self.seen_tail.reset();
        self.capacity.store(capacity, Relaxed);
        self.segment.store(base, Release);
        self.watchers.concern();
    }

    /// A send has found less room than it wanted, or may find that unseen: room is news then for whoever waits for the edge.
    pub(crate) fn count_refusal(&self) {
        self.refusals.fetch_add(1, Relaxed);
    }

    /// How many sends have.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(Relaxed)
    }

    /// One more descriptor leads here.
    pub(crate) fn attach(&'static self, fd: c_int) -> Result<(), ()> {
        self.descriptors.fetch_add(1, Relaxed);
        match fd_table::set(fd, Some(fd_table::Entry::Stream(self))) {
            Ok(previous) => {
                process::descriptors::retire(fd, previous);
                Ok(())
            }
            Err(()) => {
                self.descriptors.fetch_sub(1, Relaxed);
                Err(())
            }
        }
    }

    /// One descriptor fewer; its table entry is cleared already. For the last one, waits until nobody is inside an operation.
    /// Returns true for the last one: the caller then calls [`Self::let_go`] after the kernel's close.
    ///
    /// `fd` is the descriptor while it still refers to the socket.
    pub(crate) fn detach(&'static self, fd: Option<c_int>) -> bool {
        if self.descriptors.fetch_sub(1, AcqRel) != 1 {
            return false;
        }
        if let Some(slot) = self.slot() {
            let rx = self.lock(slot, Way::Rx);
            let tx = self.lock(slot, Way::Tx);
            if rx.is_nested() || tx.is_nested() {
                self.interrupted.store(1, Relaxed);
            }
            if self.pins.others() {
                // Calls go on in other threads, and the kernel's would keep the file: so do we, for as long as they last.
                fd.into_iter().for_each(|fd| self.keep_socket(fd));
            } else if let Some(fd) = fd.filter(|_| slot.holder_count() == 1) {
                self.prepare_close(fd, slot);
            }
        }
        true
    }

    fn keep_socket(&'static self, fd: c_int) {
        /// Out of the way of programs that count on low numbers; or any, where the limit is low or all of those are taken.
        const LOWEST: [usize; 2] = [200, 3];
        let spare = |lowest| tssx_core::sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest).ok();
        if let Some(spare) = LOWEST.into_iter().find_map(spare) {
            process::descriptors::lead(spare, Some(fd_table::Entry::Stream(self)));
            self.spare.store(spare.cast_unsigned() + 1, Release);
        }
    }

    /// A descriptor that leads to the socket although the one of a call in progress was closed: a duplicate, or ours.
    pub(crate) fn other_descriptor(&self) -> Option<c_int> {
        self.spare.load(Acquire).checked_sub(1).map(u32::cast_signed).or_else(|| fd_table::find_stream(self))
    }

    /// `fd` if it leads here still, else another descriptor that does, or [`NO_DESCRIPTOR`]: the number may be another file's by now.
    pub(crate) fn descriptor(&'static self, fd: c_int) -> c_int {
        let same = fd_table::stream(fd).is_some_and(|endpoint| core::ptr::eq(endpoint, self));
        if same { fd } else { self.other_descriptor().unwrap_or(NO_DESCRIPTOR) }
    }

    /// Unread doorbells would make the kernel tell the peer ECONNRESET, as for unread data; unread data in the ring must do so.
    fn prepare_close(&self, fd: c_int, slot: &Slot) {
        let Some(segment) = self.segment(slot) else { return };
        let mode = slot.rx_mode.load(Relaxed);
        if mode == MODE_KERNEL && matches!(switchover::safe_bytes(fd, slot, &segment), (Arrival::Kernel(_), 1..)) {
            doorbell::say_unread(&segment);
        }
        let in_ring = slot.rx_mode.load(Relaxed) == MODE_RING;
        if in_ring && doorbell::outstanding(slot, &segment) {
            doorbell::take_doorbells(fd, slot, &segment, doorbell::ALL);
        }
    }

    /// After the last descriptor was closed: gives everything back once nobody is asleep on it.
    pub(crate) fn let_go(&'static self) {
        self.watchers.forget(self);
        self.unpin();
    }

    /// The end is let go: tells the peer, if nobody else of the family holds it. A thread that is asleep in a call keeps the connection
    /// open, as it keeps the kernel's file.
    fn say_goodbye(slot: &Slot, segment: &Segment) {
        if slot.holder_count() == 1 {
            doorbell::say_finished(segment);
            doorbell::say_gone(segment, true);
        }
    }

    pub(crate) fn unpin(&'static self) {
        if !self.pins.remove() {
            return;
        }
        let mut interrupted = false;
        if let Some(slot) = self.slot() {
            if let Some(spare) = self.spare.swap(0, AcqRel).checked_sub(1).map(u32::cast_signed) {
                let _ = fd_table::set(spare, None);
                self.prepare_close(spare, slot);
                tssx_core::sys::close(spare);
            }
            let segment = self.segment(slot);
            self.slot.store(core::ptr::null_mut(), Release);
            self.segment.store(core::ptr::null_mut(), Release);
            let share = self.left.load(Relaxed) == 0;
            interrupted = self.interrupted.load(Relaxed) == 1;
            if let Some(segment) = segment {
                Self::say_goodbye(slot, &segment);
                segment.own_side().holders.fetch_sub(u32::from(share), Relaxed);
                if !interrupted {
                    // SAFETY: no descriptor leads here, both locks were free after that, and the last pin is ours.
                    unsafe { segment.unmap() };
                }
            }
            if let Some(ledger) = init::ledger().filter(|_| share) {
                log::say_if_never_decided(slot);
                slots::release(ledger, slot, process::pid_for_relatives());
            }
        }
        // What a section still uses that a handler interrupted is lost to us: nobody says when it ends. Its slot is not, for nobody claims one
        // while a lock of it is held.
        if !interrupted {
            POOL.give(self);
        }
    }

    /// The process ends: gives up its share in ledger and segment, but goes on working for destructors that still write.
    pub(crate) fn leave(&'static self, fd: c_int) {
        if self.left.swap(1, AcqRel) == 1 {
            return;
        }
        crate::socket::recall::answer_at_last(fd); // what the peer asked back must not go with us
        if let Some(rx) = lock_stream(fd, Way::Rx).filter(|rx| rx.slot.holder_count() == 1) {
            self.prepare_close(fd, rx.slot);
        }
        let (Some(slot), Some(ledger)) = (self.slot(), init::ledger()) else { return };
        if let Some(segment) = self.segment(slot) {
            segment.own_side().holders.fetch_sub(1, Relaxed);
        }
        log::say_if_never_decided(slot);
        slots::release(ledger, slot, process::pid_for_relatives());
    }

    /// Whether only one descriptor of this process leads here.
    pub(crate) fn has_one_descriptor(&self) -> bool {
        self.descriptors.load(Relaxed) == 1
    }

    /// Whether `fd` is the lowest descriptor that leads here, of those that are visited in ascending order.
    pub(crate) fn is_first_visit(&self, fd: c_int) -> bool {
        self.descriptors.load(Relaxed) == 1
            || (0..fd).all(|lower| fd_table::stream(lower).is_none_or(|other| !core::ptr::eq(other, self)))
    }

    /// In a forked child: the pins of threads that do not exist here are gone.
    pub(crate) fn after_fork_in_child(&self) {
        self.pins.reset();
        self.schedule.forget_mailbox();
    }

    /// Counts one holder of this end more or fewer, in ledger and segment: around fork and exec.
    pub(crate) fn change_holders(&self, holder: Holder) {
        let Some(slot) = self.slot() else { return };
        match holder {
            Holder::Child => holders::add(slot, 0),
            Holder::Own(true) => holders::add(slot, process::pid_for_relatives()),
            Holder::NoChild => holders::withdraw(slot, 0),
            Holder::Own(false) => holders::withdraw(slot, process::pid_for_relatives()),
        }
        if let Some(segment) = self.segment(slot) {
            let shown = &segment.own_side().holders;
            let _ = if matches!(holder, Holder::Child | Holder::Own(true)) {
                shown.fetch_add(1, AcqRel)
            } else {
                shown.fetch_sub(1, AcqRel)
            };
        }
    }

    /// Before a fork: one holder more. If the child is killed before it has said who it is, only the socket itself tells that it is gone
    /// (`tssx_core::ledger::holders`).
    pub(crate) fn count_child(&self, fd: c_int) {
        if let Some(slot) = self.slot() {
            let _ = upgrade::own_inode(fd, slot);
        }
        self.change_holders(Holder::Child);
    }

    /// In a child that its parent has counted before it was there: says who it is.
    pub(crate) fn name_holder(&self) {
        self.slot().into_iter().for_each(|slot| holders::name(slot, process::pid_for_relatives()));
    }

    /// In a child that took its parent's place: who holds the end is not known.
    pub(crate) fn unname_holder(&self) {
        self.slot().into_iter().for_each(holders::unname);
    }
}

/// Bytes of ours that the peer has not read, 0 if the ring's positions are impossible.
pub(crate) fn unread_by_peer(segment: &Segment) -> u64 {
    Producer::open(segment).map_or(0, |producer| producer.unread())
}

/// In a forked child.
pub(crate) fn pool_after_fork_in_child() {
    POOL.after_fork_in_child();
}
