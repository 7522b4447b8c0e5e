//! What we note about an epoll instance: the selected streams in it, and which of them were active lately.
//!
//! Only *active* streams are looked at in user space. A stream becomes active when it is added or changed, and when the
//! kernel reports it; it stops being active when a wait finds its ring empty and leaves it to the kernel, announced as
//! asleep. So the cost of a wait grows with the active streams. The invariant, kept under the set's lock: a stream in
//! a ring that is not active has a watcher announced, or a doorbell in its kernel queue. Whoever takes a doorbell of a
//! watched stream announces a watcher again ([`Watchers::any`]), so the invariant holds for threads that read beside a wait.

#![allow(unsafe_code, reason = "keeps its records in mappings of its own")]

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, fence};

use tssx_core::sys;

use crate::endpoint::Endpoint;
use crate::memory::{Pool, Pooled, ZeroInit};
use crate::process::held::{self, Held, Kind};
use crate::socket::wait::SpinBudget;

/// Epoll sets one connection can be in.
const WATCHERS_MAX: usize = 4;
/// Records a set starts with.
const RECORDS_MIN: usize = 64;

/// One stream in a set.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    pub(crate) fd: c_int,
    pub(crate) events: u32,
    pub(crate) data: u64,
    pub(crate) endpoint: &'static Endpoint,
    pub(crate) active: bool,
    /// With EPOLLONESHOT: not reported since the program armed it.
    pub(crate) armed: bool,
    /// The kernel was asked to report it at once, for bytes that it does not know of ([`super::oneshot::nudge`]).
    pub(crate) nudged: bool,
    /// Edge-triggered: the kernel was told of the record anew after a nudge, and reports once more what was reported.
    pub(crate) echo: bool,
    /// Kernel waits in a row that brought this stream nothing.
    pub(crate) idle_waits: u8,
    /// Edge-triggered: the events that were reported last.
    pub(crate) told: u32,
    /// Edge-triggered: ring position up to which arrivals were reported; `u64::MAX` when none was.
    pub(crate) reported: u64,
    /// Edge-triggered: room was reported while it was a ring's. The send buffer's return makes the kernel report it once more.
    pub(crate) room_in_ring: bool,
    /// Edge-triggered: which ends of the stream had been announced when it was reported.
    pub(crate) ends: u32,
    /// Edge-triggered: how many sends had been refused when room was reported; `u64::MAX` when it was not.
    pub(crate) refusals: u64,
    /// Doorbells that had been taken when a kernel event of this stream was looked at last.
    pub(crate) bells: u64,
}

/// What is noted about one epoll instance. Zero is an unused set.
#[repr(C)]
pub(crate) struct EpollSet {
    lock: AtomicU64,
    descriptors: AtomicU32,
    /// Threads that may be in the kernel's wait for this set.
    pub(crate) sleepers: AtomicU32,
    /// Threads in a wait of the kernel's that began when no ring concerned the set; they look at what it says afterwards.
    pub(crate) plain_sleepers: AtomicU32,
    /// 1 when a stream of the set lost its doorbell while its ring held bytes: the next wait looks at all streams.
    pub(crate) attention: AtomicU32,
    /// 1 when rings filled the program's array while the kernel was due: it is asked before them next time.
    pub(crate) kernel_first: AtomicU32,
    /// 1 once a stream was added with EPOLLONESHOT or EPOLLET: what the kernel reports must be seen here, whether rings are concerned
    /// or not.
    pub(crate) once: AtomicU32,
    /// 1 once a stream was added: until then a wait costs nothing here.
    pub(crate) used: AtomicU32,
    /// Tells the epoll instances apart that these notes are used for, one after the other.
    pub(crate) generation: AtomicU64,
    /// When the kernel was asked last, in ticks.
    pub(crate) asked: AtomicU64,
    pub(crate) spin: SpinBudget,
    records: UnsafeCell<Records>,
    link: AtomicPtr<EpollSet>,
}

/// A growable array in a mapping of its own.
struct Records {
    first: *mut Watch,
    capacity: usize,
    length: usize,
    active: usize,
    /// Changes whenever a record moves: a walk by index that sees it change begins again.
    version: u64,
}

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
    _held: Held,
}

impl EpollSet {
    /// A set for a new epoll descriptor.
    pub(crate) fn create() -> Option<&'static Self> {
        let set = POOL.take()?;
        set.generation.fetch_add(1, Relaxed);
        set.descriptors.store(0, Relaxed);
        set.sleepers.store(0, Relaxed);
        set.plain_sleepers.store(0, Relaxed);
        set.attention.store(0, Relaxed);
        set.kernel_first.store(0, Relaxed);
        set.once.store(0, Relaxed);
        set.used.store(0, Relaxed);
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
            while let Some(watch) = open.all().first().copied() {
                open.remove_at(0);
                watch.endpoint.watchers.remove(self);
            }
            drop(open);
            POOL.give(self);
        }
    }

    /// Locks the set.
    pub(crate) fn open(&'static self) -> Open<'static> {
        let held = held::acquire(&self.lock, Kind::Other);
        // SAFETY: the lock is held as long as the reference lives.
        Open { records: unsafe { &mut *self.records.get() }, _held: held }
    }

    /// In a forked child: whoever held the lock or slept does not exist here.
    pub(crate) fn after_fork_in_child(&self) {
        self.lock.store(0, Release);
        self.sleepers.store(0, Relaxed);
        self.plain_sleepers.store(0, Relaxed);
    }
}

impl Open<'_> {
    /// All records; the active ones come first.
    pub(crate) fn all(&mut self) -> &mut [Watch] {
        if self.records.first.is_null() {
            return &mut [];
        }
        // SAFETY: `length` records were written from `first` on.
        unsafe { core::slice::from_raw_parts_mut(self.records.first, self.records.length) }
    }

    /// The active records.
    pub(crate) fn active(&mut self) -> &mut [Watch] {
        let active = self.records.active;
        self.all().get_mut(..active).unwrap_or_default()
    }

    /// Changes whenever a record moves.
    pub(crate) fn version(&self) -> u64 {
        self.records.version
    }

    /// Index of the record of a descriptor.
    pub(crate) fn find(&mut self, fd: c_int) -> Option<usize> {
        self.all().iter().position(|watch| watch.fd == fd)
    }

    /// Adds a record, active. False when there is no memory.
    pub(crate) fn add(&mut self, watch: Watch) -> bool {
        if self.records.length == self.records.capacity && !self.grow() {
            return false;
        }
        let index = self.records.length;
        // SAFETY: index < capacity.
        unsafe { self.records.first.add(index).write(Watch { active: false, ..watch }) };
        self.records.length += 1;
        self.activate(index);
        true
    }

    fn grow(&mut self) -> bool {
        let capacity = (self.records.capacity * 2).max(RECORDS_MIN);
        let Ok(fresh) = sys::map(-1, capacity * size_of::<Watch>()) else { return false };
        let fresh = fresh.cast::<Watch>();
        if !self.records.first.is_null() {
            // SAFETY: `length` records are there and fit; the old mapping is not used afterwards.
            unsafe {
                core::ptr::copy_nonoverlapping(self.records.first, fresh, self.records.length);
                sys::unmap(self.records.first.cast(), self.records.capacity * size_of::<Watch>());
            }
        }
        self.records.first = fresh;
        self.records.capacity = capacity;
        true
    }

    /// Moves the record at `index` among the active ones.
    pub(crate) fn activate(&mut self, index: usize) {
        let active = self.records.active;
        let all = self.all();
        if let Some(watch) = all.get_mut(index).filter(|watch| !watch.active) {
            watch.active = true;
            all.swap(index, active);
            self.records.active += 1;
            self.records.version += 1;
        }
    }

    /// Moves the record at `index` among the others.
    pub(crate) fn deactivate(&mut self, index: usize) {
        let Some(last) = self.records.active.checked_sub(1) else { return };
        let all = self.all();
        if let Some(watch) = all.get_mut(index).filter(|watch| watch.active) {
            watch.active = false;
            all.swap(index, last);
            self.records.active = last;
            self.records.version += 1;
        }
    }

    /// Removes the record at `index`.
    pub(crate) fn remove_at(&mut self, index: usize) {
        let Some(watch) = self.all().get(index).copied() else { return };
        let index = if watch.active {
            self.deactivate(index);
            self.records.active
        } else {
            index
        };
        let Some(last) = self.records.length.checked_sub(1) else { return };
        self.all().swap(index, last);
        self.records.length = last;
        self.records.version += 1;
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
        self.sets.iter().for_each(|cell| cell.store(core::ptr::null_mut(), Relaxed));
        self.count.store(0, Release);
    }

    /// Notes one more set; false if there are too many.
    pub(crate) fn insert(&self, set: &'static EpollSet) -> bool {
        let pointer = core::ptr::from_ref(set).cast_mut();
        let free = |cell: &AtomicPtr<EpollSet>| cell.compare_exchange(core::ptr::null_mut(), pointer, AcqRel, Relaxed).is_ok();
        let inserted = self.sets.iter().any(free);
        self.count.fetch_add(u32::from(inserted), AcqRel);
        inserted
    }

    /// Forgets a set.
    pub(crate) fn remove(&self, set: &EpollSet) {
        let pointer = core::ptr::from_ref(set).cast_mut();
        let ours = |cell: &AtomicPtr<EpollSet>| cell.compare_exchange(pointer, core::ptr::null_mut(), AcqRel, Relaxed).is_ok();
        if self.sets.iter().any(ours) {
            self.count.fetch_sub(1, AcqRel);
        }
    }

    /// Whether any set watches the connection.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// Makes the next wait of every set look at all its streams. Comes with a full fence.
    pub(crate) fn call_attention(&self) {
        self.each().for_each(|set| set.attention.store(1, Relaxed));
        fence(SeqCst);
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
            while let Some(index) = open.all().iter().position(|watch| core::ptr::eq(watch.endpoint, endpoint)) {
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
