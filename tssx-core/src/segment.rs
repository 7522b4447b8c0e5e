//! Segments: making one, believing one that the peer made, and reaching its parts.
//!
//! A segment is a memfd, sealed against shrinking (so that no access can raise SIGBUS), growing and further seals, and
//! mapped by both ends. The descriptor is closed as soon as both have it: the mapping keeps the memory, and the kernel
//! frees it with the last mapping, however the processes end.

#![allow(unsafe_code, reason = "turns a checked mapping into references to atomics and ring addresses")]

use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::budget;
use crate::layout::{
    ASLEEP, CAPACITY_MAX, CAPACITY_MIN, DATA_OFFSET, DIRECTION_SIZE, DIRECTIONS_OFFSET, Direction, LINE, SEGMENT_MAGIC,
    SEGMENT_VERSION, SIDES_OFFSET, SegmentHeader, SideBlock, segment_size,
};
use crate::reason::Reason;
use crate::sys;

/// Name given to memfd_create(2); `/proc/PID/maps` shows it as `/memfd:tssx-segment (deleted)`.
pub const MEMFD_NAME: &core::ffi::CStr = c"tssx-segment";

/// In the place of both inodes, for a segment that is no connection's.
pub(crate) const NO_INODE: u64 = 0;

/// The seals every segment carries, fcntl(2) F_ADD_SEALS.
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Which end of the connection: the index of its [`SideBlock`], and of the [`Direction`] it produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Side {
    /// The end that called `connect`.
    Connector = 0,
    /// The end that came from `accept`.
    Acceptor = 1,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Connector => Self::Acceptor,
            Self::Acceptor => Self::Connector,
        }
    }
}

/// A mapped segment, seen from one side. Copies are addresses: whoever unmaps makes sure that none is used afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    base: NonNull<u8>,
    capacity: u64,
    side: Side,
}

impl Segment {
    /// Makes, seals and maps a new segment. The descriptor returned is for the peer; close it once it is sent.
    ///
    /// # Errors
    /// [`Reason::NoMemory`] if any step fails, or the process's [bound](budget) is reached; nothing is left behind.
    pub fn create(capacity: u64, connector_inode: u64, acceptor_inode: u64) -> Result<(Self, i32), Reason> {
        Self::make(capacity, connector_inode, acceptor_inode, budget::claim)
    }

    /// The same without a bound, for unread bytes that a new image is to find ([`crate::remainder`]).
    pub(crate) fn create_regardless(capacity: u64) -> Result<(Self, i32), Reason> {
        Self::make(capacity, NO_INODE, NO_INODE, budget::claim_regardless)
    }

    fn make(capacity: u64, connector: u64, acceptor: u64, claim: fn(u64) -> bool) -> Result<(Self, i32), Reason> {
        let capacity = capacity.clamp(CAPACITY_MIN, CAPACITY_MAX).next_power_of_two();
        let size = segment_size(capacity);
        if !claim(size) {
            return Err(Reason::NoMemory);
        }
        Self::make_claimed(capacity, connector, acceptor).inspect_err(|_| budget::give_back(size))
    }

    fn make_claimed(capacity: u64, connector_inode: u64, acceptor_inode: u64) -> Result<(Self, i32), Reason> {
        let fd = sys::memfd_create(MEMFD_NAME, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING).map_err(|_| Reason::NoMemory)?;
        let Some(segment) = Self::fill(fd, capacity, connector_inode, acceptor_inode) else {
            sys::close(fd);
            return Err(Reason::NoMemory);
        };
        Ok((segment, fd))
    }

    fn fill(fd: i32, capacity: u64, connector_inode: u64, acceptor_inode: u64) -> Option<Self> {
        let size = usize::try_from(segment_size(capacity)).ok()?;
        sys::ftruncate(fd, size).ok()?;
        sys::fcntl(fd, libc::F_ADD_SEALS, SEALS.cast_unsigned() as usize).ok()?;
        let base = NonNull::new(sys::map(fd, size).ok()?)?;
        let segment = Self { base, capacity, side: Side::Connector };
        let header = segment.header();
        header.version.store(SEGMENT_VERSION, Relaxed);
        header.capacity.store(capacity, Relaxed);
        header.connector_inode.store(connector_inode, Relaxed);
        header.acceptor_inode.store(acceptor_inode, Relaxed);
        // A receiver may sleep in the kernel, in a call that began before there was a segment, and announces nothing: the
        // first bytes in either ring ring the doorbell.
        segment.direction(0).asleep.store(ASLEEP, Relaxed);
        segment.direction(1).asleep.store(ASLEEP, Relaxed);
        header.magic.store(SEGMENT_MAGIC, Release);
        Some(segment)
    }

    /// Maps a segment that the connector offered, if it is one: seals, size, magic, version, capacity and inodes are checked.
    /// The descriptor stays the caller's.
    ///
    /// # Errors
    /// [`Reason::BadSegment`] if a check fails, [`Reason::NoMemory`] if it cannot be mapped, or the process's [bound](budget) is reached.
    pub fn adopt(fd: i32, acceptor_inode: u64) -> Result<Self, Reason> {
        Self::adopt_if(fd, acceptor_inode, budget::claim)
    }

    /// The same without a bound, for unread bytes that the last image has left ([`crate::remainder`]).
    pub(crate) fn adopt_regardless(fd: i32) -> Result<Self, Reason> {
        Self::adopt_if(fd, NO_INODE, budget::claim_regardless)
    }

    fn adopt_if(fd: i32, acceptor_inode: u64, claim: fn(u64) -> bool) -> Result<Self, Reason> {
        let seals = sys::fcntl(fd, libc::F_GET_SEALS, 0).map_err(refused)?;
        let size = sys::fstat(fd).map_err(refused)?.size;
        let data = size.checked_sub(DATA_OFFSET as u64).ok_or(Reason::BadSegment)?;
        let capacity = data / 2;
        let sane =
            capacity.is_power_of_two() && (CAPACITY_MIN..=CAPACITY_MAX).contains(&capacity) && segment_size(capacity) == size;
        if seals & SEALS != SEALS || !sane {
            return Err(Reason::BadSegment);
        }
        let length = usize::try_from(size).map_err(|_| Reason::BadSegment)?;
        if !claim(size) {
            return Err(Reason::NoMemory);
        }
        let Some(base) = sys::map(fd, length).ok().and_then(NonNull::new) else {
            budget::give_back(size);
            return Err(Reason::NoMemory);
        };
        let segment = Self { base, capacity, side: Side::Acceptor };
        let header = segment.header();
        let ours = header.magic.load(Acquire) == SEGMENT_MAGIC
            && header.version.load(Relaxed) == SEGMENT_VERSION
            && header.capacity.load(Relaxed) == capacity
            && header.acceptor_inode.load(Relaxed) == acceptor_inode;
        if !ours {
            // SAFETY: mapped just above, no copy of `segment` exists.
            unsafe { segment.unmap() };
            return Err(Reason::BadSegment);
        }
        Ok(segment)
    }

    /// Ends the mapping.
    ///
    /// # Safety
    /// No copy of this handle, and nothing reached through one, may be used afterwards.
    pub unsafe fn unmap(self) {
        if let Ok(size) = usize::try_from(segment_size(self.capacity)) {
            // SAFETY: base and size are those of the mapping; the caller vouches for the rest.
            unsafe { sys::unmap(self.base.as_ptr(), size) };
            budget::give_back(segment_size(self.capacity));
        }
    }

    /// Ends the mapping of a segment that was made and never shared.
    pub fn discard(self) {
        // SAFETY: the handle is the only one: it was neither stored nor offered with success.
        unsafe { self.unmap() };
    }

    /// The handle taken apart for an atomic cell: address and capacity.
    #[must_use]
    pub fn into_parts(self) -> (*mut u8, u64) {
        (self.base.as_ptr(), self.capacity)
    }

    /// The handle put together again, or `None` for a null address.
    ///
    /// # Safety
    /// The parts must come from [`Self::into_parts`] and the mapping must still exist.
    #[must_use]
    pub unsafe fn from_parts(base: *mut u8, capacity: u64, side: Side) -> Option<Self> {
        NonNull::new(base).map(|base| Self { base, capacity, side })
    }

    /// Bytes of each ring, a power of two.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    fn header(&self) -> &SegmentHeader {
        // SAFETY: a mapping is page-aligned and larger than the header; all fields are atomics.
        unsafe { self.base.cast::<SegmentHeader>().as_ref() }
    }

    fn side_block(&self, side: Side) -> &SideBlock {
        // SAFETY: layout.rs asserts that both blocks lie before the directions, and LINE keeps them aligned.
        unsafe { self.base.add(SIDES_OFFSET + side as usize * LINE).cast::<SideBlock>().as_ref() }
    }

    fn direction(&self, index: usize) -> &Direction {
        // SAFETY: index is 0 or 1 (private callers); layout.rs asserts that both directions lie before the ring bytes.
        unsafe { self.base.add(DIRECTIONS_OFFSET + (index & 1) * DIRECTION_SIZE).cast::<Direction>().as_ref() }
    }

    /// What this end says of itself.
    #[must_use]
    pub fn own_side(&self) -> &SideBlock {
        self.side_block(self.side)
    }

    /// What the peer says of itself.
    #[must_use]
    pub fn peer_side(&self) -> &SideBlock {
        self.side_block(self.side.peer())
    }

    /// The direction this end produces.
    #[must_use]
    pub fn tx(&self) -> &Direction {
        self.direction(self.side as usize)
    }

    /// The direction this end consumes.
    #[must_use]
    pub fn rx(&self) -> &Direction {
        self.direction(self.side.peer() as usize)
    }

    /// First byte of the ring this end writes; `capacity` bytes long.
    #[must_use]
    pub fn tx_bytes(&self) -> *mut u8 {
        self.ring_bytes(self.side)
    }

    /// First byte of the ring this end reads; `capacity` bytes long.
    #[must_use]
    pub fn rx_bytes(&self) -> *mut u8 {
        self.ring_bytes(self.side.peer())
    }

    fn ring_bytes(&self, producer: Side) -> *mut u8 {
        let offset = DATA_OFFSET + producer as usize * usize::try_from(self.capacity).unwrap_or(0);
        // SAFETY: the mapping is segment_size(capacity) bytes long, so both rings lie inside it.
        unsafe { self.base.add(offset).as_ptr() }
    }
}

/// What it means that the kernel does not say what a descriptor is: that it is none, or no memfd; or nothing, where a filter or a lack of
/// memory keeps the answer back.
fn refused(errno: sys::Errno) -> Reason {
    match errno.0 {
        libc::EBADF | libc::EINVAL => Reason::BadSegment,
        _ => Reason::NoMemory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_see_the_same_segment_crosswise() {
        let (ours, fd) = Segment::create(200_000, 11, 22).expect("create");
        assert_eq!(ours.capacity(), 262_144);
        let theirs = Segment::adopt(fd, 22).expect("adopt");
        sys::close(fd);
        ours.tx().tail.store(7, Relaxed);
        assert_eq!(theirs.rx().tail.load(Relaxed), 7);
        theirs.own_side().joined.store(1, Relaxed);
        assert_eq!(ours.peer_side().joined.load(Relaxed), 1);
        // SAFETY: nothing uses the handles below.
        unsafe {
            ours.unmap();
            theirs.unmap();
        }
    }

    #[test]
    fn an_offer_that_is_not_a_sealed_segment_for_us_is_refused() {
        let (ours, fd) = Segment::create(0, 11, 22).expect("create");
        assert_eq!(Segment::adopt(fd, 23).err(), Some(Reason::BadSegment));
        sys::close(fd);
        // SAFETY: not used below.
        unsafe { ours.unmap() };
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let unsealed = sys::memfd_create(c"x", flags).expect("memfd");
        sys::ftruncate(unsealed, usize::try_from(segment_size(CAPACITY_MIN)).expect("small")).expect("truncate");
        assert_eq!(Segment::adopt(unsealed, 22).err(), Some(Reason::BadSegment));
        sys::fcntl(unsealed, libc::F_ADD_SEALS, SEALS.cast_unsigned() as usize).expect("seal");
        assert_eq!(Segment::adopt(unsealed, 22).err(), Some(Reason::BadSegment), "sealed, but no magic");
        sys::close(unsealed);
        assert_eq!(Segment::adopt(-1, 22).err(), Some(Reason::BadSegment));
    }

    /// What an offer's memory says, mutated, in a memory of whatever size: believed only if it is what it was.
    #[cfg(not(loom))]
    #[test]
    fn a_header_of_any_bytes_is_refused_unless_it_is_the_right_one() {
        use std::io::Write;
        use std::os::fd::{AsRawFd, FromRawFd};

        const HEADER: usize = size_of::<SegmentHeader>();
        let (ours, fd) = Segment::create(0, 11, 22).expect("create");
        sys::close(fd);
        // SAFETY: the mapping begins with a header, and lives.
        let good: [u8; HEADER] = unsafe { ours.into_parts().0.cast::<[u8; HEADER]>().read() };
        let size = segment_size(CAPACITY_MIN);
        let mut dice = crate::mutations::Random::new(7);
        let (mut believed, mut refused) = (0, 0);
        crate::mutations::each(&good, 2000, |bytes| {
            let memory = sys::memfd_create(c"x", libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING).expect("memfd");
            // SAFETY: just made, and nobody else's.
            let mut memory = unsafe { std::fs::File::from_raw_fd(memory) };
            let right = bytes == good;
            let length = if right || dice.below(2) == 0 { size } else { dice.below(2 * size as usize) as u64 };
            memory.set_len(length).expect("sized");
            memory.write_all(bytes.get(..HEADER.min(bytes.len()).min(length as usize)).unwrap_or_default()).expect("written");
            sys::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, SEALS.cast_unsigned() as usize).expect("sealed");
            match Segment::adopt(memory.as_raw_fd(), 22) {
                Ok(segment) => {
                    assert_eq!((segment.capacity(), length), (CAPACITY_MIN, size));
                    believed += 1;
                    segment.discard();
                }
                Err(reason) => {
                    assert!(!right && reason == Reason::BadSegment);
                    refused += 1;
                }
            }
        });
        println!("{believed} believed, {refused} refused");
        assert!(believed > 0 && refused > 1000);
        // SAFETY: not used below.
        unsafe { ours.unmap() };
    }
}
