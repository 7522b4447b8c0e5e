//! The byte ring: single producer, single consumer, positions that never wrap in practice.
//!
//! A position is a free-running 64-bit count of bytes; the place in memory is `position & (capacity - 1)`. `tail` is
//! written by the producer, `head` by the consumer, `tail - head` bytes are readable. A full ring refuses (the caller
//! waits or says EAGAIN), an empty one returns nothing. "Single" is per direction: threads and forked processes that
//! share an end take turns by [`crate::lock`].
//!
//! The peer can write both positions, so each call loads both once, believes them only if `tail - head` is between 0
//! and the capacity, and derives every address from the values it checked. A half-done copy is invisible: the
//! position moves by one store, after the bytes (Release), and is read before them (Acquire).
//!
//! **What is not asked.** Each position is on a line that the other side writes; to look at it costs a transfer of that line, and
//! makes the next store to it dearer. So each process remembers what it saw last ([`producer::SeenHead`], [`consumer::SeenTail`]). Positions only
//! grow while a ring is in use, so what was seen is a lower bound: of the room, of the bytes. It is asked for again when it does not suffice.
//!
//! **Warm memory.** A ring that is read as fast as it is written needs a few lines, not all of its memory. `base` says which position lies
//! at the ring's first byte; the place in memory is `(position - base) & (capacity - 1)`. A producer that finds the ring empty may begin at the first
//! byte again: it changes `base` before it publishes. That is sound because `base` stands still as long as the ring holds bytes: a consumer that
//! sees a `tail` beyond its own `head` sees the `base` of these bytes (it was stored before that `tail`), and no later one, which would have needed
//! a `head` that the consumer has not published yet. The consumer holds its lock from its look to its publication, so nobody else publishes one.

use core::sync::atomic::Ordering::Relaxed;

use crate::sync::AtomicU64;

pub mod consumer;
pub mod producer;
#[cfg(all(test, not(loom)))]
mod threads;

/// The positions contradict each other: the peer (or a stray pointer) wrote into the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// A checked pair of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First readable byte.
    pub head: u64,
    /// One past the last readable byte.
    pub tail: u64,
}

impl Span {
    /// Believes the positions if they can be true of a ring of `capacity` bytes.
    fn checked(head: u64, tail: u64, capacity: u64) -> Result<Self, Corrupt> {
        if tail.wrapping_sub(head) > capacity { Err(Corrupt) } else { Ok(Self { head, tail }) }
    }

    /// Looks at both positions by `other`, which loads the peer's and puts it together with the `own` one that it is given. A signal
    /// handler of this thread may use the ring between the two loads, so that the older contradicts the newer: then it is looked at
    /// again, but not for ever, because the peer can write there too.
    fn of(own: &AtomicU64, other: impl Fn(u64) -> Result<Self, Corrupt>) -> Result<Self, Corrupt> {
        const LOOKS: u32 = 8;
        let mut position = own.load(Relaxed);
        for _ in 0..LOOKS {
            let span = other(position);
            let now = own.load(Relaxed);
            if span.is_ok() || now == position {
                return span;
            }
            position = now;
        }
        Err(Corrupt)
    }

    /// Readable bytes.
    #[must_use]
    pub fn used(self) -> u64 {
        self.tail.wrapping_sub(self.head)
    }
}

/// The part of `length` bytes from `position` that lies in one piece before the ring wraps: (offset, bytes).
fn contiguous(position: u64, base: u64, length: usize, capacity: u64) -> (usize, usize) {
    let offset = position.wrapping_sub(base) & (capacity - 1);
    let room = capacity - offset;
    // Both fit usize: capacity is at most layout::CAPACITY_MAX.
    (usize::try_from(offset).unwrap_or(0), length.min(usize::try_from(room).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_positions_are_corrupt() {
        assert_eq!(Span::checked(10, 9, 64), Err(Corrupt));
        assert_eq!(Span::checked(0, 65, 64), Err(Corrupt));
        assert_eq!(Span::checked(u64::MAX, 63, 64).map(Span::used), Ok(64));
        assert_eq!(Span::checked(5, 5, 64).map(Span::used), Ok(0));
    }

    #[test]
    fn a_position_that_a_handler_moves_is_looked_at_again() {
        let (own, first) = (AtomicU64::new(10), core::cell::Cell::new(true));
        let look = |position| {
            if first.replace(false) {
                own.store(30, Relaxed); // the handler wrote, and the peer has read it
            }
            Span::checked(20, position, 64)
        };
        assert_eq!(Span::of(&own, look).map(Span::used), Ok(10));
    }

    #[test]
    fn a_position_that_never_stands_still_is_corrupt() {
        let own = AtomicU64::new(0);
        let look = |position| {
            own.fetch_add(1, Relaxed);
            Span::checked(1000, position, 64)
        };
        assert_eq!(Span::of(&own, look), Err(Corrupt));
    }

    #[test]
    fn a_piece_ends_where_the_ring_wraps() {
        assert_eq!(contiguous(60, 0, 10, 64), (60, 4));
        assert_eq!(contiguous(64, 0, 10, 64), (0, 10));
        assert_eq!(contiguous(u64::MAX, 0, 10, 64), (63, 1));
        assert_eq!([contiguous(70, 70, 64, 64), contiguous(69, 70, 64, 64)], [(0, 64), (63, 1)]);
    }
}
