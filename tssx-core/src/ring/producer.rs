//! Writing into a ring. The caller holds the direction's sending lock.

#![allow(unsafe_code, reason = "copies into the ring's memory")]

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{Corrupt, Span, contiguous};
use crate::layout::Direction;
use crate::segment::Segment;
use crate::sync::AtomicU64;
use crate::{shared_bytes, sync};

/// Messages for which a producer goes on through the ring before it looks whether it can begin at the first byte again.
const MESSAGES: u64 = if cfg!(loom) { 1 } else { 16 };
/// Least bytes of such a stretch.
const STRETCH_MIN: u64 = if cfg!(loom) { 2 } else { 1024 };

/// Bytes behind a message whose lines are fetched ahead: a fifth more messages a second in a one-way stream of small ones.
const PREFETCH: usize = 128;

/// How far the consumer had read when this process looked last.
#[derive(Debug, Default)]
pub struct SeenHead(AtomicU64);

impl SeenHead {
    /// For a ring that begins.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// The producing end of one direction.
#[derive(Clone, Copy)]
pub struct Producer<'a> {
    direction: &'a Direction,
    bytes: *mut u8,
    capacity: u64,
    span: Span,
    written: u64,
    /// Position at the ring's first byte: that of the segment, or the one that [`Self::publish`] will put there.
    base: u64,
    seen: Option<&'a SeenHead>,
}

impl<'a> Producer<'a> {
    /// Looks at the ring this end writes. `tail` is our own (Relaxed, the lock orders it among producers); `head` is the
    /// consumer's, and its Acquire pairs with the Release in [`super::consumer::Consumer::publish`]: what lies behind it
    /// has been copied out.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn open(segment: &'a Segment) -> Result<Self, Corrupt> {
        let mut producer = Self::new(segment, None);
        producer.refresh()?;
        Ok(producer)
    }

    /// The same without a look at `head`, as long as what was `seen` of it can be true: there may be more room than it says ([`Self::refresh`]).
    ///
    /// # Errors
    /// [`Corrupt`].
    #[inline]
    pub fn open_seen(segment: &'a Segment, seen: &'a SeenHead) -> Result<Self, Corrupt> {
        let mut producer = Self::new(segment, Some(seen));
        match Span::checked(seen.0.load(Acquire), producer.direction.tail.load(Relaxed), segment.capacity()) {
            Ok(span) => (producer.span, producer.base) = (span, producer.direction.base.load(Relaxed)),
            // A relative has written since. The loads are in no order that a signal handler respects: the thorough way is.
            Err(Corrupt) => producer.refresh()?,
        }
        Ok(producer)
    }

    /// Not looked at yet.
    #[inline]
    fn new(segment: &'a Segment, seen: Option<&'a SeenHead>) -> Self {
        let span = Span { head: 0, tail: 0 };
        Self { direction: segment.tx(), bytes: segment.tx_bytes(), capacity: segment.capacity(), span, written: 0, base: 0, seen }
    }

    /// Looks at `head`, before anything is copied.
    ///
    /// # Errors
    /// [`Corrupt`].
    #[inline]
    pub fn refresh(&mut self) -> Result<(), Corrupt> {
        let direction = self.direction;
        self.span = Span::of(&direction.tail, |tail| Span::checked(direction.head.load(Acquire), tail, self.capacity))?;
        self.base = direction.base.load(Relaxed);
        if let Some(seen) = self.seen {
            seen.0.store(self.span.head, Relaxed);
        }
        Ok(())
    }

    /// Before `length` bytes are copied: if the ring is empty, begins at its first byte again, where memory is warm. Looks only now and then,
    /// because to look costs a transfer. Not for a signal handler inside another write, whose bytes may still be on their way to the old place.
    #[inline]
    pub fn warm(&mut self, length: usize) {
        let length = (length as u64).max(1);
        let stretch = length.saturating_mul(MESSAGES).clamp(STRETCH_MIN, self.capacity).next_power_of_two();
        let offset = self.tail().wrapping_sub(self.base) & (self.capacity - 1);
        let crosses = offset / stretch != (offset + length) / stretch;
        if offset != 0 && self.written == 0 && crosses && self.refresh().is_ok() && self.span.used() == 0 {
            self.base = self.span.tail;
        }
    }

    /// Position at the ring's first byte, for a copy that is to go to the same place ([`Self::rebase`]).
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Takes over what another write of this thread, of which this one makes the copy, has chosen by [`Self::warm`].
    pub fn rebase(&mut self, base: u64) {
        self.base = base;
    }

    /// Whether nobody has written since this was opened.
    #[inline]
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.direction.tail.load(Relaxed) == self.span.tail
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
        let (offset, piece) = contiguous(position, self.base, usize::try_from(length).unwrap_or(usize::MAX), self.capacity);
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
            let (offset, piece) = contiguous(self.tail(), self.base, length - done, self.capacity);
            // SAFETY: offset + piece <= capacity by `contiguous`, so the target lies inside the ring; the source is the
            // caller's promise; private and ring memory do not overlap (the ring is a mapping of ours).
            unsafe { shared_bytes::store(self.bytes.add(offset), from.add(done), piece) };
            done += piece;
            self.written += piece as u64;
        }
        done
    }

    /// Takes back what was published last, the bytes from `from` to before `to`, if nobody has read of them or written since. For a consumer of
    /// which the kernel says that it is gone, and that so can read no more: a living one may be reading them now.
    #[must_use]
    pub fn take_back(segment: &Segment, from: u64, to: u64) -> bool {
        let direction = segment.tx();
        let read = direction.head.load(Acquire).wrapping_sub(from);
        let unread = read == 0 || read > segment.capacity();
        unread && sync::advance(&direction.tail, to, from)
    }

    /// Fetches the lines of the next message while the fence of this one waits for its own.
    #[inline]
    fn prefetch(&self) {
        let (offset, piece) = contiguous(self.tail(), self.base, PREFETCH, self.capacity);
        for line in (0..piece).step_by(64) {
            shared_bytes::prefetch_for_write(self.bytes.wrapping_add(offset + line));
        }
    }

    /// Makes what was copied visible. Release: the bytes come before the position. False if a signal handler of this thread
    /// has written to the ring since [`Self::open`], over what was copied: nothing is visible then, and the caller begins again.
    #[must_use]
    pub fn publish(self) -> bool {
        if self.written == 0 {
            return true;
        }
        self.prefetch();
        if self.direction.base.load(Relaxed) != self.base {
            self.direction.base.store(self.base, Relaxed);
        }
        sync::advance(&self.direction.tail, self.span.tail, self.tail())
    }
}
