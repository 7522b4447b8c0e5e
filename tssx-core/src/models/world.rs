//! What a model runs on: a segment in ordinary memory, the two ledger slots and the socket of one of its directions.

#![allow(unsafe_code, reason = "lays a segment out by hand")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::sync::{Arc, Weak};

use loom::cell::UnsafeCell;

use super::atomics::{AtomicU32, AtomicU64};
use super::kernel::Socket;
use crate::layout::{ASLEEP, DATA_OFFSET, DIRECTION_SIZE, DIRECTIONS_OFFSET, Direction, LINE, SIDES_OFFSET, SideBlock};
use crate::ledger::layout::Slot;
use crate::ring::consumer::SeenTail;
use crate::ring::producer::SeenHead;
use crate::segment::{Segment, Side};

/// Ring bytes whose accesses are followed; models use no more.
const FOLLOWED: usize = 8;

std::thread_local! {
    /// loom runs a model's threads as coroutines of one thread.
    static CURRENT: RefCell<Weak<World>> = const { RefCell::new(Weak::new()) };
}

/// One connection, connector to acceptor.
pub(crate) struct World {
    base: *mut u8,
    layout: Layout,
    capacity: u64,
    /// One for each ring byte: loom sees a race on them that ordinary memory would not show.
    bytes: Vec<UnsafeCell<()>>,
    pub(crate) socket: Socket,
    /// The producer's slot.
    pub(crate) tx: Slot,
    /// The consumer's slot.
    pub(crate) rx: Slot,
    /// What the ends have seen of each other's positions.
    pub(crate) seen_head: SeenHead,
    pub(crate) seen_tail: SeenTail,
    /// Id of the process that died.
    pub(crate) dead: AtomicU32,
}

// SAFETY: `base` is memory that lives as long as the world; what lies there are atomics, and ring bytes, on which loom runs
// one thread at a time and reports what would be a race.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    /// A connection with rings of `capacity` bytes, not switched yet, both ends joined.
    pub(crate) fn new(capacity: u64) -> Arc<Self> {
        let size = DATA_OFFSET + 2 * usize::try_from(capacity).expect("small");
        let layout = Layout::from_size_align(size, LINE).expect("sane");
        // SAFETY: the size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null() && size_of::<Direction>() <= DIRECTION_SIZE && size_of::<SideBlock>() <= LINE);
        for side in [0, 1] {
            let block = SideBlock { joined: AtomicU32::new(1), ..SideBlock::default() };
            // SAFETY: inside the memory, aligned to LINE, and large enough by the assertion above.
            unsafe { base.add(SIDES_OFFSET + side * LINE).cast::<SideBlock>().write(block) };
        }
        for index in [0, 1] {
            // SAFETY: as above.
            unsafe { base.add(DIRECTIONS_OFFSET + index * DIRECTION_SIZE).cast::<Direction>().write(direction()) };
        }
        let followed = usize::try_from(capacity).expect("small").min(FOLLOWED);
        let bytes = (0..followed).map(|_| UnsafeCell::new(())).collect();
        let dead = AtomicU32::new(0);
        let world = Arc::new(Self {
            base,
            layout,
            capacity,
            bytes,
            socket: Socket::new(),
            tx: slot(),
            rx: slot(),
            seen_head: SeenHead::default(),
            seen_tail: SeenTail::default(),
            dead,
        });
        CURRENT.with(|current| *current.borrow_mut() = Arc::downgrade(&world));
        world
    }

    /// The world of the model that runs on this thread.
    pub(crate) fn current() -> Arc<Self> {
        CURRENT.with(|current| current.borrow().upgrade()).expect("a model is running")
    }

    /// The producer's view of the segment.
    pub(crate) fn producing(&self) -> Segment {
        self.segment(Side::Connector)
    }

    /// The consumer's view of the segment.
    pub(crate) fn consuming(&self) -> Segment {
        self.segment(Side::Acceptor)
    }

    fn segment(&self, side: Side) -> Segment {
        // SAFETY: the memory is laid out as a segment's, as far as models reach, and lives as long as the world.
        unsafe { Segment::from_parts(self.base, self.capacity, side) }.expect("not null")
    }

    fn byte(&self, address: *const u8) -> &UnsafeCell<()> {
        let place = address.addr() - self.base.addr() - DATA_OFFSET;
        self.bytes.get(place).expect("inside the ring, and models use few of its bytes")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: written by `new`, and nobody else is left.
        unsafe {
            self.base.add(SIDES_OFFSET).cast::<SideBlock>().drop_in_place();
            self.base.add(SIDES_OFFSET + LINE).cast::<SideBlock>().drop_in_place();
            self.base.add(DIRECTIONS_OFFSET).cast::<Direction>().drop_in_place();
            self.base.add(DIRECTIONS_OFFSET + DIRECTION_SIZE).cast::<Direction>().drop_in_place();
            dealloc(self.base, self.layout);
        }
    }
}

/// All that the protocol relies on is modelled, and starts as [`Segment::create`] makes it.
fn direction() -> Direction {
    Direction {
        tail: AtomicU64::new(0),
        limit: AtomicU64::new(0),
        base: AtomicU64::new(0),
        state: AtomicU32::new(0),
        writer_waiting: AtomicU32::new(0),
        switch_at: AtomicU64::new(0),
        end_at: AtomicU64::new(0),
        resume_at: AtomicU64::new(0),
        tx_sequence: AtomicU64::new(0),
        tx_bytes: AtomicU64::new(0),
        doorbells: AtomicU64::new(0),
        head: AtomicU64::new(0),
        asleep: AtomicU32::new(ASLEEP),
        consent: AtomicU32::new(0),
        ..Direction::default()
    }
}

/// Of a slot, the locks and what is used under them by several threads.
fn slot() -> Slot {
    Slot {
        tx_lock: AtomicU64::new(0),
        rx_lock: AtomicU64::new(0),
        kernel_rx_bytes: AtomicU64::new(0),
        kernel_rx_inflight: AtomicU32::new(0),
        rx_waiters: AtomicU32::new(0),
        rx_mode: AtomicU32::new(0),
        ..Slot::default()
    }
}

/// The ring's bytes at `address` are being written.
pub(crate) fn written(address: *const u8, length: usize) {
    let world = World::current();
    for index in 0..length {
        world.byte(address.wrapping_add(index)).with_mut(|_| ());
    }
}

/// The ring's bytes at `address` are being read.
pub(crate) fn read(address: *const u8, length: usize) {
    let world = World::current();
    for index in 0..length {
        world.byte(address.wrapping_add(index)).with(|_| ());
    }
}
