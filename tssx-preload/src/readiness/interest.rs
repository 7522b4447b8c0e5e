//! What we note about an epoll instance: the selected streams in it, and which of them were active lately.
//!
//! Only *active* streams are looked at in user space ([`super::scan`]). A stream becomes active when it is added or changed, and when the
//! kernel reports it; it stops being active when it has been silent for long ([`super::sleep`]), and is left to the kernel then. So the cost
//! of a wait grows with the active streams. The invariant: a stream in a ring that is not active has a watcher announced, or a doorbell in
//! its kernel queue. It holds because
//!
//! - a record is made inactive with the stream's receiving lock held since a watcher was announced and the ring was seen empty, so that
//!   nobody can have taken the doorbell of what came since;
//! - only a producer that rings clears an announcement, or [`super::sleep::take_back`], which withdraws that of an active record, and of
//!   one that no other set, thread or process can rely on;
//! - whoever takes a doorbell of a watched stream announces a watcher again ([`Watchers::any`]), so threads may read beside a wait.

#![allow(unsafe_code, reason = "keeps its records behind a lock of its own")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::ptr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, fence};

use super::records::{Records, Watch};
use crate::endpoint::Endpoint;
use crate::memory::{Pool, Pooled, ZeroInit};
use crate::process::held::{self, Held, Kind};
use crate::socket::wait::SpinBudget;

/// Epoll sets one connection can be in.
const WATCHERS_MAX: usize = 4;

/// What is noted about one epoll instance. Zero is an unused set.
#[repr(C)]
pub(crate) struct EpollSet {
    lock: AtomicU64,
    descriptors: AtomicU32,
    /// Threads that may be in the kernel's wait for this set.
    pub(crate) sleepers: AtomicU32,
    /// Threads in a wait of the kernel's that began when no ring concerned the set; they look at what it says afterwards.
    pub(crate) plain_sleepers: AtomicU32,
    /// The stream that lost its doorbell while its ring held bytes, or is not what it was: the next wait looks at it. [`EVERY`]: there are
    /// several.
    attention: AtomicPtr<Endpoint>,
    /// 1 when rings filled the program's array while the kernel was due: it is asked before them next time.
    pub(crate) kernel_first: AtomicU32,
    /// 1 once a stream was added with EPOLLONESHOT or EPOLLET: what the kernel reports must be seen here, whether rings are concerned
    /// or not.
    pub(crate) once: AtomicU32,
    /// 1 once a stream of the set has had a segment: until then a wait costs nothing here.
    concerned: AtomicU32,
    /// 1 once another process may have the epoll instance too.
    shared: AtomicU32,
    /// The waits so far, which are numbered.
    waits: AtomicU64,
    /// A descriptor of the epoll instance, as far as is known.
    pub(crate) number: AtomicI32,
    /// Tells the epoll instances apart that these notes are used for, one after the other.
    pub(crate) generation: AtomicU64,
    /// When the kernel was asked last, in ticks.
    pub(crate) asked: AtomicU64,
    /// When a spin was in vain last, in ticks.
    pub(crate) spun: AtomicU64,
    /// [`Records::clock`] at the last sleep.
    pub(super) slept: AtomicU32,
    pub(crate) spin: SpinBudget,
    records: UnsafeCell<Records>,
    link: AtomicPtr<EpollSet>,
}

/// [`EpollSet::attention`] for more streams than one.
const EVERY: *mut Endpoint = ptr::dangling_mut();

// SAFETY: the records are only touched under the set's lock (`Open` proves it).
unsafe impl Sync for EpollSet {}
// SAFETY: zero: unlocked, no records.
unsafe impl ZeroInit for EpollSet {}

impl Pooled for EpollSet {
    fn link(&self) -> &AtomicPtr<Self> {
        &self.link
    }
}

static POOL: Pool<EpollSet> = Pool::new();

/// A set, locked.
pub(crate) struct Open<'a> {
    records: &'a mut Records,
    held: Held,
}

impl EpollSet {
    /// A set for a new epoll descriptor.
    pub(crate) fn create() -> Option<&'static Self> {
        let set = POOL.take()?;
        set.generation.fetch_add(1, Relaxed);
        set.descriptors.store(0, Relaxed);
        set.sleepers.store(0, Relaxed);
        set.plain_sleepers.store(0, Relaxed);
        set.attention.store(ptr::null_mut(), Relaxed);
        set.kernel_first.store(0, Relaxed);
        set.once.store(0, Relaxed);
        set.concerned.store(0, Relaxed);
        set.shared.store(0, Relaxed);
        set.number.store(-1, Relaxed);
        set.asked.store(0, Relaxed);
        set.spin.reset();
        Some(set)
    }

    /// One more descriptor leads here.
    pub(crate) fn attach(&self) {
        self.descriptors.fetch_add(1, Relaxed);
    }

    /// One descriptor fewer; with the last the set is given back.
    pub(crate) fn detach(&'static self) {
        if self.descriptors.fetch_sub(1, AcqRel) == 1 {
            let mut open = self.open();
            let mut from = 0;
            while let Some((index, watch)) = open.at_or_behind(from) {
                watch.endpoint.watchers.remove(self);
                open.remove_at(index);
                from = index + 1;
            }
            drop(open);
            POOL.give(self);
        }
    }

    /// A copy of the first record at or behind an index, for a walk that lets go of the set in between, and its index.
    pub(crate) fn record_from(&'static self, index: usize) -> Option<(usize, Watch)> {
        self.open().at_or_behind(index).map(|(index, watch)| (index, *watch))
    }

    /// Locks the set.
    pub(crate) fn open(&'static self) -> Open<'static> {
        let held = held::acquire(&self.lock, Kind::Other);
        // SAFETY: the lock is held as long as the reference lives.
        Open { records: unsafe { &mut *self.records.get() }, held }
    }

    /// In a forked child: whoever held the lock or slept does not exist here.
    pub(crate) fn after_fork_in_child(&self) {
        self.lock.store(0, Release);
        self.sleepers.store(0, Relaxed);
        self.plain_sleepers.store(0, Relaxed);
        self.open_in_child().begin_again();
    }

    #[expect(clippy::mut_from_ref, reason = "the only thread of a forked child")]
    fn open_in_child(&self) -> &mut Records {
        // SAFETY: no other thread is there that could use them.
        unsafe { &mut *self.records.get() }
    }

    /// A number for a wait, higher than those before. Not where threads meet; what a record says of a higher number is only a reason
    /// to search the program's array.
    pub(crate) fn number_wait(&self) -> u64 {
        let number = self.waits.load(Relaxed) + 1;
        self.waits.store(number, Relaxed);
        number
    }

    /// Whether a stream of the set may be in a ring, now or later in a wait.
    pub(crate) fn is_concerned(&self) -> bool {
        self.concerned.load(Relaxed) != 0 || self.once.load(Relaxed) != 0
    }

    /// Whether another process may have the epoll instance too, as far as is known.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.load(Relaxed) != 0
    }

    /// The process forks, or passes the epoll instance on.
    pub(crate) fn share(&self) {
        self.shared.store(1, Relaxed);
    }

    /// After a stream was added: its segment may be there. Whoever joins one stores it and then looks for sets, we have noted the set.
    pub(crate) fn concern_with(&self, endpoint: &Endpoint) {
        fence(SeqCst);
        if endpoint.slot().is_some_and(|slot| endpoint.segment(slot).is_some()) {
            self.concerned.store(1, Relaxed);
        }
    }

    /// Looks at the streams that somebody took a doorbell of which a wait might rely on. Whether there were any.
    pub(crate) fn heed(&'static self) -> bool {
        if self.attention.load(Relaxed).is_null() {
            return false;
        }
        let wanted = self.attention.swap(ptr::null_mut(), AcqRel);
        let mut open = self.open();
        if wanted == EVERY {
            open.look_again_at_all();
        } else {
            open.look_again(wanted.cast_const());
        }
        !wanted.is_null()
    }
}

impl Deref for Open<'_> {
    type Target = Records;

    fn deref(&self) -> &Records {
        self.records
    }
}

impl DerefMut for Open<'_> {
    fn deref_mut(&mut self) -> &mut Records {
        self.records
    }
}

impl Open<'_> {
    /// Adds a record, active. False when there is no memory; a signal handler inside another's section must not move the records.
    pub(crate) fn insert(&mut self, watch: Watch) -> bool {
        let may_grow = !self.held.is_nested();
        self.records.add(watch, may_grow)
    }
}

/// The sets that watch one connection. Zero is none.
#[derive(Default)]
pub(crate) struct Watchers {
    sets: [AtomicPtr<EpollSet>; WATCHERS_MAX],
    count: AtomicU32,
}

impl Watchers {
    pub(crate) fn reset(&self) {
        self.sets.iter().for_each(|cell| cell.store(ptr::null_mut(), Relaxed));
        self.count.store(0, Release);
    }

    /// Notes one more set; false if there are too many.
    pub(crate) fn insert(&self, set: &'static EpollSet) -> bool {
        let pointer = ptr::from_ref(set).cast_mut();
        let free = |cell: &AtomicPtr<EpollSet>| cell.compare_exchange(ptr::null_mut(), pointer, AcqRel, Relaxed).is_ok();
        let inserted = self.sets.iter().any(free);
        self.count.fetch_add(u32::from(inserted), AcqRel);
        inserted
    }

    /// Forgets a set.
    pub(crate) fn remove(&self, set: &EpollSet) {
        let pointer = ptr::from_ref(set).cast_mut();
        let ours = |cell: &AtomicPtr<EpollSet>| cell.compare_exchange(pointer, ptr::null_mut(), AcqRel, Relaxed).is_ok();
        if self.sets.iter().any(ours) {
            self.count.fetch_sub(1, AcqRel);
        }
    }

    /// Whether any set watches the connection.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// Makes the next wait of every set look at this connection, which is `endpoint`'s. Comes with a full fence.
    pub(crate) fn call_attention(&self, endpoint: &'static Endpoint) {
        let own = ptr::from_ref(endpoint).cast_mut();
        for set in self.each() {
            let before = set.attention.compare_exchange(ptr::null_mut(), own, AcqRel, Relaxed);
            if before.is_err_and(|other| other != own) {
                set.attention.store(EVERY, Release);
            }
        }
        fence(SeqCst);
    }

    /// The connection has a segment now: waits for its sets concern us.
    pub(crate) fn concern(&self) {
        fence(SeqCst);
        self.each().for_each(|set| set.concerned.store(1, Relaxed));
    }

    /// How many sets watch the connection.
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// Whether a thread may be asleep in a set that watches the connection.
    pub(crate) fn any_asleep(&self) -> bool {
        self.any() && self.each().any(|set| set.sleepers.load(Acquire) > 0)
    }

    fn each(&self) -> impl Iterator<Item = &'static EpollSet> + '_ {
        // SAFETY: sets come from a pool that is never unmapped.
        self.sets.iter().filter_map(|cell| unsafe { cell.load(Acquire).cast_const().as_ref() })
    }

    /// Takes the connection out of every set: its last descriptor was closed.
    pub(crate) fn forget(&self, endpoint: &'static Endpoint) {
        for set in self.each() {
            let mut open = set.open();
            while let Some(index) = open.find_any(endpoint) {
                open.remove_at(index);
            }
        }
        self.reset();
    }
}

/// In a forked child.
pub(crate) fn pool_after_fork_in_child() {
    POOL.after_fork_in_child();
}
