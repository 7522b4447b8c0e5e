//! What is left in a ring that nobody can give back: its producer has ended it, has shut its direction down, or is dead. A process that
//! becomes another program has no ring afterwards, so the bytes go along in a segment of their own: the peer's direction holds them and has
//! ended, and behind them is the kernel socket.

#![allow(unsafe_code, reason = "copies from ring to ring, and takes a handle apart")]

use core::sync::atomic::Ordering::{Relaxed, Release};

use crate::layout::STATE_ENDED;
use crate::reason::Reason;
use crate::ring::consumer::Consumer;
use crate::ring::producer::Producer;
use crate::segment::{Segment, Side};

/// Bytes that were put into a segment of their own.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// The segment's memfd, with FD_CLOEXEC.
    pub memfd: i32,
    /// Where the ring was read up to before.
    head: u64,
    tail: u64,
}

/// Consumer, under the receiving lock: takes all that is unread into a segment from which `side` can read it. `None`: there is nothing, or no
/// memory, or the positions are impossible; then the ring is as it was.
#[must_use]
pub fn pack(segment: &Segment, side: Side) -> Option<Packed> {
    let mut consumer = Consumer::open(segment).ok()?;
    let (head, length) = (consumer.position(), consumer.available());
    if length == 0 {
        return None;
    }
    let (fresh, memfd) = Segment::create_regardless(length).ok()?;
    let (base, capacity) = fresh.into_parts();
    // SAFETY: the parts of a mapping that lives until the end of this function.
    let writer = unsafe { Segment::from_parts(base, capacity, side.peer())? };
    if let Ok(mut producer) = Producer::open(&writer) {
        while consumer.available() > 0 {
            let (bytes, count) = consumer.piece(usize::try_from(consumer.available()).unwrap_or(0));
            // SAFETY: `piece` lies inside the ring; nobody writes there, see the module's text.
            unsafe { producer.copy_in(bytes, count) };
            consumer.skip(count);
        }
        let _ = producer.publish();
    }
    let direction = writer.tx();
    direction.end_at.store(length, Relaxed);
    direction.state.store(STATE_ENDED, Release);
    let whole = direction.tail.load(Relaxed) == length;
    fresh.discard();
    if !whole || consumer.publish().is_none() {
        crate::sys::close(memfd);
        return None;
    }
    Some(Packed { memfd, head, tail: head.wrapping_add(length) })
}

impl Packed {
    /// Under the receiving lock, if the other program did not begin: the ring is unread again, unless it has moved on.
    pub fn put_back(&self, segment: &Segment) {
        let direction = segment.rx();
        if direction.tail.load(Relaxed) == self.tail {
            let _ = direction.head.compare_exchange(self.tail, self.head, Release, Relaxed);
        }
    }
}

/// Maps what another image has packed. The descriptor stays the caller's.
///
/// # Errors
/// As [`Segment::adopt`].
pub fn unpack(memfd: i32, side: Side) -> Result<Segment, Reason> {
    let (base, capacity) = Segment::adopt_regardless(memfd)?.into_parts();
    // SAFETY: the parts of a mapping that was just made.
    unsafe { Segment::from_parts(base, capacity, side) }.ok_or(Reason::NoMemory)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::layout::{DATA_OFFSET, DIRECTION_SIZE, DIRECTIONS_OFFSET};
    use crate::ring::Corrupt;
    use crate::sys;

    fn written(bytes: &[u8]) -> (Segment, Segment) {
        let (ours, fd) = Segment::create(0, 1, 2).expect("create");
        let theirs = Segment::adopt(fd, 2).expect("adopt");
        sys::close(fd);
        let mut producer = Producer::open(&ours).expect("sane");
        // SAFETY: a live slice.
        assert_eq!(unsafe { producer.copy_in(bytes.as_ptr(), bytes.len()) }, bytes.len());
        assert!(producer.publish());
        (ours, theirs)
    }

    fn read(segment: &Segment) -> Vec<u8> {
        let mut consumer = Consumer::open(segment).expect("sane");
        let mut bytes = vec![0; consumer.available() as usize];
        // SAFETY: a live vector.
        unsafe { consumer.copy_out(bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    #[test]
    fn what_is_packed_is_found_by_the_same_side_and_gone_from_the_ring() {
        for side in [Side::Acceptor, Side::Connector] {
            let (_ours, theirs) = written(b"what is left");
            let packed = pack(&theirs, side).expect("packed");
            assert!(read(&theirs).is_empty());
            let found = unpack(packed.memfd, side).expect("unpacked");
            assert_eq!(read(&found), b"what is left");
            assert_eq!(found.rx().state.load(Relaxed), STATE_ENDED);
            packed.put_back(&theirs);
            assert_eq!(read(&theirs), b"what is left");
            sys::close(packed.memfd);
        }
    }

    #[test]
    fn a_memory_of_any_bytes_is_refused_or_read_within_its_bounds() {
        use std::os::fd::FromRawFd;
        use std::os::unix::fs::FileExt;

        let (_ours, theirs) = written(b"what is left");
        let packed = pack(&theirs, Side::Acceptor).expect("packed");
        // SAFETY: just made, and nobody else's.
        let file = unsafe { std::fs::File::from_raw_fd(packed.memfd) };
        let mut good = vec![0; DATA_OFFSET];
        file.read_exact_at(&mut good, 0).expect("read");
        let (mut refused, mut corrupt, mut believed) = (0, 0, 0);
        let mut take = |bytes: &[u8]| {
            let count = bytes.len().min(DATA_OFFSET);
            file.write_all_at(&[&bytes[..count], &good[count..]].concat(), 0).expect("written");
            let Ok(found) = unpack(packed.memfd, Side::Acceptor) else {
                refused += 1;
                return;
            };
            match Consumer::open(&found) {
                Ok(consumer) => {
                    assert!(consumer.available() <= found.capacity());
                    read(&found);
                    believed += 1;
                }
                Err(Corrupt) => corrupt += 1,
            }
            found.discard();
        };
        crate::mutations::each(&good, 5000, &mut take);
        // Most of the structures are empty: these positions are the peer's word in full.
        let at = DIRECTIONS_OFFSET..DIRECTIONS_OFFSET + 2 * DIRECTION_SIZE;
        crate::mutations::each(&good[at.clone()], 5000, |bytes| {
            let count = bytes.len().min(at.len());
            take(&[&good[..at.start], &bytes[..count], &good[at.start + count..]].concat());
        });
        println!("{refused} refused, {corrupt} corrupt, {believed} believed");
        assert!(refused > 20 && corrupt > 20 && believed > 20);
    }

    #[test]
    fn an_empty_ring_leaves_nothing() {
        let (_ours, theirs) = written(b"");
        assert!(pack(&theirs, Side::Acceptor).is_none());
    }
}
