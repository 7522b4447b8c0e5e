//! Reading from a ring. The caller holds the direction's receiving lock.

#![allow(unsafe_code, reason = "copies out of the ring's memory")]

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{Corrupt, Span, contiguous};
use crate::layout::Direction;
use crate::segment::Segment;
use crate::sync::AtomicU64;
use crate::{shared_bytes, sync};

/// How far the producer had written when this process looked last, and where the bytes before that lie.
#[derive(Debug, Default)]
pub struct SeenTail {
    tail: AtomicU64,
    base: AtomicU64,
}

impl SeenTail {
    /// For a ring that begins.
    pub fn reset(&self) {
        self.tail.store(0, Relaxed);
        self.base.store(0, Relaxed);
    }
}

/// The consuming end of one direction.
#[derive(Clone, Copy)]
pub struct Consumer<'a> {
    direction: &'a Direction,
    bytes: *mut u8,
    capacity: u64,
    span: Span,
    taken: u64,
    base: u64,
    seen: Option<&'a SeenTail>,
}

impl<'a> Consumer<'a> {
    /// Looks at the ring this end reads. `head` is our own; `tail` is the producer's, and its Acquire pairs with the
    /// Release in [`super::producer::Producer::publish`]: the bytes before it are there.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn open(segment: &'a Segment) -> Result<Self, Corrupt> {
        let mut consumer = Self::new(segment, None);
        consumer.refresh()?;
        Ok(consumer)
    }

    /// The same without a look at `tail`, as long as what was `seen` of it can be true: there may be more bytes than it says ([`Self::refresh`]).
    ///
    /// # Errors
    /// [`Corrupt`].
    #[inline]
    pub fn open_seen(segment: &'a Segment, seen: &'a SeenTail) -> Result<Self, Corrupt> {
        let mut consumer = Self::new(segment, Some(seen));
        let (tail, base) = (seen.tail.load(Acquire), seen.base.load(Relaxed));
        match Span::checked(consumer.direction.head.load(Relaxed), tail, segment.capacity()) {
            Ok(span) => (consumer.span, consumer.base) = (span, base),
            // A relative has read since.
            Err(Corrupt) => consumer.refresh()?,
        }
        Ok(consumer)
    }

    /// Not looked at yet.
    #[inline]
    fn new(segment: &'a Segment, seen: Option<&'a SeenTail>) -> Self {
        let span = Span { head: 0, tail: 0 };
        Self { direction: segment.rx(), bytes: segment.rx_bytes(), capacity: segment.capacity(), span, taken: 0, base: 0, seen }
    }

    /// Looks at `tail`, before anything is taken.
    ///
    /// # Errors
    /// [`Corrupt`].
    #[inline]
    pub fn refresh(&mut self) -> Result<(), Corrupt> {
        let direction = self.direction;
        self.span = Span::of(&direction.head, |head| Span::checked(head, direction.tail.load(Acquire), self.capacity))?;
        // After `tail`: with the bytes comes the base.
        self.base = direction.base.load(Relaxed);
        if let Some(seen) = self.seen {
            seen.tail.store(self.span.tail, Relaxed);
            seen.base.store(self.base, Relaxed);
        }
        Ok(())
    }

    /// Whether nobody has read since this was opened.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.direction.head.load(Relaxed) == self.span.head
    }

    /// Readable bytes that were not taken yet.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.span.used() - self.taken
    }

    /// Position of the next byte to take.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.span.head.wrapping_add(self.taken)
    }

    /// Copies up to `length` bytes behind those already taken; they stay in the ring until [`Self::publish`].
    ///
    /// # Safety
    /// `to` must be writable for `length` bytes.
    pub unsafe fn copy_out(&mut self, to: *mut u8, length: usize) -> usize {
        let length = length.min(usize::try_from(self.available()).unwrap_or(0));
        let mut done = 0;
        while done < length {
            let (offset, piece) = contiguous(self.position(), self.base, length - done, self.capacity);
            // SAFETY: offset + piece <= capacity by `contiguous`, so the source lies inside the ring; the target is the
            // caller's promise; private and ring memory do not overlap.
            unsafe { shared_bytes::load(to.add(done), self.bytes.add(offset), piece) };
            done += piece;
            self.taken += piece as u64;
        }
        done
    }

    /// Takes up to `length` bytes without copying: for MSG_TRUNC and for callers that let the kernel copy.
    pub fn skip(&mut self, length: usize) -> usize {
        let length = length.min(usize::try_from(self.available()).unwrap_or(0));
        self.taken += length as u64;
        length
    }

    /// The next readable bytes that lie in one piece: address and count.
    #[must_use]
    pub fn piece(&self, length: usize) -> (*const u8, usize) {
        let length = length.min(usize::try_from(self.available()).unwrap_or(0));
        let (offset, piece) = contiguous(self.position(), self.base, length, self.capacity);
        // SAFETY: offset < capacity, inside the ring.
        (unsafe { self.bytes.add(offset) }, piece)
    }

    /// Frees what was taken for the producer. Release: our reads come before the position. Returns (bytes unread before,
    /// bytes unread after), or `None` if a signal handler of this thread has read from the ring since [`Self::open`]: nothing
    /// was taken then, and the caller begins again.
    #[must_use]
    pub fn publish(self) -> Option<(u64, u64)> {
        let moved = self.taken == 0 || sync::advance(&self.direction.head, self.span.head, self.position());
        moved.then(|| (self.span.used(), self.available()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::producer::Producer;
    #[cfg(not(miri))]
    use crate::sys;

    /// Both ends of a segment that is no mapping: Miri knows of none. Behind the ring that is written there is nothing.
    #[cfg(miri)]
    fn pair() -> (Segment, Segment) {
        use crate::layout::{CAPACITY_MIN, segment_size};
        use crate::segment::Side;

        let layout = std::alloc::Layout::from_size_align(segment_size(CAPACITY_MIN) as usize, 4096).expect("a layout");
        // SAFETY: a size that is not 0. What both ends look at is never given back.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        // SAFETY: aligned memory of a segment's size, whose fields may be zero.
        let end = |side| unsafe { Segment::from_parts(memory, CAPACITY_MIN, side) }.expect("memory");
        (end(Side::Acceptor), end(Side::Connector))
    }

    #[cfg(not(miri))]
    fn pair() -> (Segment, Segment) {
        let (ours, fd) = Segment::create(0, 1, 2).expect("create");
        let theirs = Segment::adopt(fd, 2).expect("adopt");
        sys::close(fd);
        (ours, theirs)
    }

    #[test]
    fn bytes_arrive_in_order_across_many_wraps() {
        let (ours, theirs) = pair();
        let (mut next_in, mut next_out) = (0_u32, 0_u32);
        // Miri interprets: few steps, and the ring's end is near.
        let (steps, start) = if cfg!(miri) { (37, ours.capacity() - 3000) } else { (1, 0) };
        ours.tx().tail.store(start, Relaxed);
        theirs.rx().head.store(start, Relaxed);
        for step in (1..3000_usize).step_by(steps) {
            let message: Vec<u8> = (0..step % 977)
                .map(|_| {
                    next_in = next_in.wrapping_add(1);
                    next_in as u8
                })
                .collect();
            let mut producer = Producer::open(&ours).expect("sane");
            // SAFETY: a live vector.
            assert_eq!(unsafe { producer.copy_in(message.as_ptr(), message.len()) }, message.len());
            assert!(producer.publish());
            let mut back = vec![0_u8; step % 977];
            let mut consumer = Consumer::open(&theirs).expect("sane");
            // SAFETY: a live vector.
            assert_eq!(unsafe { consumer.copy_out(back.as_mut_ptr(), back.len()) }, back.len());
            assert!(consumer.publish().is_some());
            assert!(back.iter().all(|byte| {
                next_out = next_out.wrapping_add(1);
                *byte == next_out as u8
            }));
        }
    }

    #[test]
    fn a_full_ring_takes_no_more_and_an_unpublished_copy_is_invisible() {
        let (ours, theirs) = pair();
        let bytes = vec![1_u8; 200_000];
        let mut producer = Producer::open(&ours).expect("sane");
        // SAFETY: a live vector.
        let took = unsafe { producer.copy_in(bytes.as_ptr(), bytes.len()) };
        assert_eq!(took as u64, ours.capacity());
        assert_eq!(Consumer::open(&theirs).expect("sane").available(), 0);
        assert!(producer.publish());
        assert_eq!(Producer::open(&ours).expect("sane").room(u64::MAX), 0);
        assert_eq!(Consumer::open(&theirs).expect("sane").available(), ours.capacity());
    }

    /// What a signal handler does to the operation that it interrupts.
    #[test]
    fn an_operation_inside_another_makes_the_outer_one_begin_again() {
        let (ours, theirs) = pair();
        let mut outer = Producer::open(&ours).expect("sane");
        // SAFETY: live bytes.
        assert_eq!(unsafe { outer.copy_in(b"outer".as_ptr(), 5) }, 5);
        let mut inner = Producer::open(&ours).expect("sane");
        // SAFETY: live bytes.
        assert_eq!(unsafe { inner.copy_in(b"inner".as_ptr(), 5) }, 5);
        assert!(inner.publish() && !outer.publish());
        let mut bytes = [0; 5];
        let mut outer = Consumer::open(&theirs).expect("sane");
        // SAFETY: live bytes.
        assert_eq!(unsafe { outer.copy_out(bytes.as_mut_ptr(), 2) }, 2);
        let mut inner = Consumer::open(&theirs).expect("sane");
        // SAFETY: live bytes.
        assert_eq!(unsafe { inner.copy_out(bytes.as_mut_ptr(), 5) }, 5);
        assert_eq!((inner.publish(), outer.publish(), bytes), (Some((5, 0)), None, *b"inner"));
    }

    #[test]
    fn positions_forged_by_the_peer_are_refused_by_both_ends() {
        let (ours, theirs) = pair();
        theirs.rx().head.store(1, Relaxed);
        assert_eq!(Producer::open(&ours).err(), Some(Corrupt));
        assert_eq!(Consumer::open(&theirs).err(), Some(Corrupt));
        theirs.rx().tail.store(u64::MAX, Relaxed);
        assert_eq!(Consumer::open(&theirs).err(), Some(Corrupt));
    }
}
