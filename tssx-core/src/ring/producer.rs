//! Writing into a ring. The caller holds the direction's sending lock.

#![allow(unsafe_code, reason = "copies into the ring's memory")]

use core::sync::atomic::Ordering::Acquire;

use super::{Corrupt, Span, contiguous};
use crate::layout::Direction;
use crate::segment::Segment;
use crate::{shared_bytes, sync};

/// The producing end of one direction.
#[derive(Clone, Copy)]
pub struct Producer<'a> {
    direction: &'a Direction,
    bytes: *mut u8,
    capacity: u64,
    span: Span,
    written: u64,
}

impl<'a> Producer<'a> {
    /// Looks at the ring this end writes. `tail` is our own (Relaxed, the lock orders it among producers); `head` is the
    /// consumer's, and its Acquire pairs with the Release in [`super::consumer::Consumer::publish`]: what lies behind it
    /// has been copied out.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn open(segment: &'a Segment) -> Result<Self, Corrupt> {
        let direction = segment.tx();
        let look = |tail| Span::checked(direction.head.load(Acquire), tail, segment.capacity());
        let span = Span::of(&direction.tail, look)?;
        Ok(Self { direction, bytes: segment.tx_bytes(), capacity: segment.capacity(), span, written: 0 })
    }

    /// Bytes that fit now if no more than `limit` may lie unread.
    #[must_use]
    pub fn room(&self, limit: u64) -> u64 {
        limit.min(self.capacity).saturating_sub(self.span.used() + self.written)
    }

    /// Bytes that fit into the ring, as if nothing from `position` on had been read.
    #[must_use]
    pub fn room_behind(&self, position: u64) -> u64 {
        let kept = self.tail().wrapping_sub(position);
        let room = self.room(self.capacity);
        if kept > self.capacity { room } else { room.min(self.capacity - kept) }
    }

    /// Bytes the peer has not read yet, without those not published.
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.span.used()
    }

    /// Position after the last byte written.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.span.tail.wrapping_add(self.written)
    }

    /// Position after the last byte the peer has read.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.span.head
    }

    /// Bytes of the ring from `position` on that lie in one piece, at most `length`: address and count.
    #[must_use]
    pub fn piece(&self, position: u64, length: u64) -> (*const u8, usize) {
        let (offset, piece) = contiguous(position, usize::try_from(length).unwrap_or(usize::MAX), self.capacity);
        // SAFETY: offset < capacity, inside the ring.
        (unsafe { self.bytes.add(offset) }, piece)
    }

    /// Copies `length` bytes behind those already copied; invisible until [`Self::publish`]. Copies less if there is less room.
    ///
    /// # Safety
    /// `from` must be readable for `length` bytes.
    pub unsafe fn copy_in(&mut self, from: *const u8, length: usize) -> usize {
        let length = length.min(usize::try_from(self.room(self.capacity)).unwrap_or(0));
        let mut done = 0;
        while done < length {
            let (offset, piece) = contiguous(self.tail(), length - done, self.capacity);
            // SAFETY: offset + piece <= capacity by `contiguous`, so the target lies inside the ring; the source is the
            // caller's promise; private and ring memory do not overlap (the ring is a mapping of ours).
            unsafe { shared_bytes::store(self.bytes.add(offset), from.add(done), piece) };
            done += piece;
            self.written += piece as u64;
        }
        done
    }

    /// Makes what was copied visible. Release: the bytes come before the position. False if a signal handler of this thread
    /// has written to the ring since [`Self::open`], over what was copied: nothing is visible then, and the caller begins again.
    #[must_use]
    pub fn publish(self) -> bool {
        self.written == 0 || sync::advance(&self.direction.tail, self.span.tail, self.tail())
    }
}
