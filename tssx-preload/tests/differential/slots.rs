//! What a player process has open: a table of named places, so that no transcript ever holds a descriptor's number.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicU32};

use crate::words::{Handle, Side};

/// One end of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub connection: usize,
    pub side: Side,
}

impl End {
    /// Every end of two connections.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..2).flat_map(|connection| Side::BOTH.into_iter().map(move |side| Self { connection, side }))
    }

    /// As a number; 0 is for what is no end of a connection.
    pub(crate) fn code(end: Option<Self>) -> u32 {
        end.map_or(0, |end| (end.connection * 2 + end.side.index() + 1) as u32)
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::all().find(|end| Self::code(Some(*end)) == code)
    }
}

struct Slot {
    fd: AtomicI32,
    end: AtomicU32,
}

static TABLE: [Slot; Handle::ALL.len()] = [const { Slot { fd: AtomicI32::new(-1), end: AtomicU32::new(0) } }; Handle::ALL.len()];

/// The descriptor at a place, -1 if there is none.
pub(crate) fn fd(handle: Handle) -> i32 {
    TABLE[handle.index()].fd.load(SeqCst)
}

/// The connection's end at a place.
pub(crate) fn end(handle: Handle) -> Option<End> {
    End::from_code(TABLE[handle.index()].end.load(SeqCst))
}

/// Puts a descriptor at a place that is empty.
pub(crate) fn put(handle: Handle, fd: i32, end: Option<End>) {
    TABLE[handle.index()].end.store(End::code(end), SeqCst);
    TABLE[handle.index()].fd.store(fd, SeqCst);
}

/// Empties a place. The descriptor is the caller's.
pub(crate) fn take(handle: Handle) -> i32 {
    TABLE[handle.index()].end.store(0, SeqCst);
    TABLE[handle.index()].fd.swap(-1, SeqCst)
}
