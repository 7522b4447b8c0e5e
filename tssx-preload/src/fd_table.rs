//! What each descriptor of the process is to us: an fd-indexed, lock-free table of two levels.
//!
//! The lookup that every interposed call makes is one load and a branch for the descriptors of the first chunk, which is always there, and
//! two and two for others: the chunk, then the entry. An entry is a tagged word; 0 is "none of ours". Entries lead to objects that are never unmapped ([`crate::memory`]), so a racing lookup may find
//! a stale object but never a dangling one; users look again under the object's lock ([`crate::endpoint`]).

#![allow(unsafe_code, reason = "follows entries to never-unmapped objects")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};

use crate::endpoint::Endpoint;
use crate::memory::{self, ZeroInit};
use crate::readiness::interest::EpollSet;
use crate::readiness::pending::Pending;

/// Entries of one chunk, and bits of a descriptor that index it.
const CHUNK_BITS: u32 = 12;
const CHUNK: usize = 1 << CHUNK_BITS;
/// Chunks: descriptors up to 2^26; Linux allows no more by default than 2^20 (fs.nr_open).
const CHUNKS: usize = 1 << 14;

/// The low bits of an entry say what it is.
const TAG_MASK: usize = 0b111;
const TAG_STREAM: usize = 0;
const TAG_EPOLL: usize = 1;
const TAG_LISTENER: usize = 2;
const TAG_MAILBOX: usize = 3;
const TAG_REGISTERED: usize = 4;
const TAG_UNCONNECTED: usize = 5;
/// Of an unconnected socket: other numbers lead to it too.
const DUPLICATED: usize = 1 << 3;

#[repr(transparent)]
struct Chunk([AtomicUsize; CHUNK]);

// SAFETY: integers; zero is "none of ours".
unsafe impl ZeroInit for Chunk {}

/// The first chunk. Untouched pages of it cost no memory.
static FIRST: Chunk = Chunk([const { AtomicUsize::new(0) }; CHUNK]);

/// The others; of the first, nothing.
static TABLE: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS];

/// Whether there ever was a stream.
static STREAMS: AtomicBool = AtomicBool::new(false);

/// One past the highest chunk that ever had an entry.
static CHUNKS_USED: AtomicUsize = AtomicUsize::new(0);

/// What a descriptor is to us.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    /// A selected stream.
    Stream(&'static Endpoint),
    /// An epoll instance that watches selected streams.
    Epoll(&'static EpollSet),
    /// A listening socket whose name was looked up: the ledger's path index if it is selected.
    Listener(Option<u32>),
    /// A mailbox of ours, for this endpoint. Not the program's.
    Mailbox(&'static Endpoint),
    /// A Unix stream socket that socket(2) has made and nobody has connected. It is in no epoll set, unless it was duplicated.
    Unconnected { duplicated: bool },
    /// The same in an epoll set: what that was told, if it is the only one.
    Registered(Option<&'static Pending>),
}

impl Entry {
    fn encode(self) -> usize {
        match self {
            Self::Stream(endpoint) => core::ptr::from_ref(endpoint).expose_provenance() | TAG_STREAM,
            Self::Epoll(set) => core::ptr::from_ref(set).expose_provenance() | TAG_EPOLL,
            Self::Listener(path) => path.map_or(0, |index| (index as usize) + 1) << 3 | TAG_LISTENER,
            Self::Mailbox(endpoint) => core::ptr::from_ref(endpoint).expose_provenance() | TAG_MAILBOX,
            Self::Unconnected { duplicated } => TAG_UNCONNECTED | if duplicated { DUPLICATED } else { 0 },
            Self::Registered(pending) => {
                pending.map_or(0, |pending| core::ptr::from_ref(pending).expose_provenance()) | TAG_REGISTERED
            }
        }
    }

    fn decode(word: usize) -> Option<Self> {
        if word == 0 {
            return None;
        }
        let address = word & !TAG_MASK;
        // SAFETY: `encode` made the word from a reference to an object that is never unmapped.
        unsafe {
            match word & TAG_MASK {
                TAG_STREAM => core::ptr::with_exposed_provenance::<Endpoint>(address).as_ref().map(Self::Stream),
                TAG_EPOLL => core::ptr::with_exposed_provenance::<EpollSet>(address).as_ref().map(Self::Epoll),
                TAG_UNCONNECTED => Some(Self::Unconnected { duplicated: address & DUPLICATED != 0 }),
                TAG_REGISTERED => Some(Self::Registered(core::ptr::with_exposed_provenance::<Pending>(address).as_ref())),
                TAG_MAILBOX => core::ptr::with_exposed_provenance::<Endpoint>(address).as_ref().map(Self::Mailbox),
                _ => Some(Self::Listener(u32::try_from(address >> 3).ok().and_then(|index| index.checked_sub(1)))),
            }
        }
    }
}

/// A chunk that was made.
#[inline]
fn chunk(number: usize) -> Option<&'static Chunk> {
    if number == 0 {
        return Some(&FIRST);
    }
    // SAFETY: a chunk, once there, is never unmapped.
    unsafe { TABLE.get(number)?.load(Acquire).as_ref() }
}

/// Where a descriptor's entry is; `None` if its chunk was never made.
#[inline]
fn cell(fd: c_int) -> Option<&'static AtomicUsize> {
    let index = fd.cast_unsigned() as usize;
    match FIRST.0.get(index) {
        Some(cell) => Some(cell),
        None => chunk(index >> CHUNK_BITS)?.0.get(index & (CHUNK - 1)),
    }
}

#[inline]
fn word(fd: c_int) -> usize {
    cell(fd).map_or(0, |entry| entry.load(Acquire))
}

/// Whether a descriptor has an entry: all that a call on one of the others costs.
#[inline]
pub(crate) fn is_ours(fd: c_int) -> bool {
    word(fd) != 0
}

/// Whether any descriptor was a selected stream ever. Until then no wait concerns us.
#[inline]
pub(crate) fn has_streams() -> bool {
    STREAMS.load(Acquire)
}

/// The entry of a descriptor.
pub(crate) fn get(fd: c_int) -> Option<Entry> {
    Entry::decode(word(fd))
}

/// The selected stream at a descriptor: the lookup of every data call.
#[inline]
pub(crate) fn stream(fd: c_int) -> Option<&'static Endpoint> {
    let word = word(fd);
    if word == 0 || word & TAG_MASK != TAG_STREAM {
        return None;
    }
    // SAFETY: as in `decode`.
    unsafe { core::ptr::with_exposed_provenance::<Endpoint>(word).as_ref() }
}

/// The epoll set at a descriptor.
#[inline]
pub(crate) fn epoll(fd: c_int) -> Option<&'static EpollSet> {
    match get(fd) {
        Some(Entry::Epoll(set)) => Some(set),
        _ => None,
    }
}

/// The lowest descriptor that leads to the endpoint.
pub(crate) fn find_stream(endpoint: &Endpoint) -> Option<c_int> {
    let mut found = None;
    for_each(0, u32::MAX, |fd, entry| {
        if matches!(entry, Entry::Stream(other) if core::ptr::eq(other, endpoint)) {
            found = found.or(Some(fd));
        }
    });
    found
}

/// A chunk, made if it was not; `None` without memory or beyond the table.
fn made(number: usize) -> Option<&'static Chunk> {
    if let Some(chunk) = chunk(number) {
        return Some(chunk);
    }
    let cell = TABLE.get(number)?;
    let fresh = core::ptr::from_ref(memory::allocate::<Chunk>()?).cast_mut();
    // If another thread was faster, 32 KiB of untouched address space are lost.
    let _ = cell.compare_exchange(core::ptr::null_mut(), fresh, AcqRel, Acquire);
    chunk(number)
}

/// Makes (`Some`) or clears (`None`) an entry; returns the one that was there. `Err` when there is no memory for a chunk or
/// the number is beyond the table: the descriptor is then none of ours.
pub(crate) fn set(fd: c_int, entry: Option<Entry>) -> Result<Option<Entry>, ()> {
    let number = fd.cast_unsigned() as usize >> CHUNK_BITS;
    let Some(chunk) = (if entry.is_some() { made(number) } else { chunk(number) }) else {
        return if entry.is_some() || number >= CHUNKS { Err(()) } else { Ok(None) };
    };
    if entry.is_some() && CHUNKS_USED.load(Relaxed) <= number {
        CHUNKS_USED.fetch_max(number + 1, AcqRel);
    }
    if matches!(entry, Some(Entry::Stream(_))) {
        STREAMS.store(true, Release);
    }
    let cell = chunk.0.get(fd.cast_unsigned() as usize & (CHUNK - 1)).ok_or(())?;
    Ok(Entry::decode(cell.swap(entry.map_or(0, Entry::encode), AcqRel)))
}

/// Clears the entry of a socket that nobody has connected or duplicated. False if it is something else.
pub(crate) fn forget_unconnected(fd: c_int) -> bool {
    cell(fd).is_some_and(|cell| cell.compare_exchange(TAG_UNCONNECTED, 0, AcqRel, Relaxed).is_ok())
}

/// Calls `visit` for every descriptor from `first` to `last` that has an entry. Costs nothing where nothing was ever selected.
pub(crate) fn for_each(first: u32, last: u32, mut visit: impl FnMut(c_int, Entry)) {
    for number in 0..CHUNKS_USED.load(Acquire) {
        let base = number << CHUNK_BITS;
        let Some(chunk) = chunk(number) else { continue };
        if base > last as usize || base + CHUNK <= first as usize {
            continue;
        }
        for (offset, entry) in chunk.0.iter().enumerate() {
            let fd = base + offset;
            if fd >= first as usize
                && fd <= last as usize
                && let (Some(entry), Ok(fd)) = (Entry::decode(entry.load(Relaxed)), c_int::try_from(fd))
            {
                visit(fd, entry);
            }
        }
    }
}
