//! Letting bytes gather for the reader of a stream that goes one way.
//!
//! A reader that is faster than its writer finds one message at a time, and pays for each with transfers of the lines that positions and bytes
//! lie on, as the writer does: both then go at the pace of the transfers. One that rests before it looks finds many at the cost of
//! one. Nobody waits for an answer, and the rest is shorter than any wake-up. Where answers are sent nobody rests, nor where the peer may
//! wait for the CPU that a rest would keep. `tssx-core/benches/ring` has the figures.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::clock;
use tssx_core::ring::Corrupt;
use tssx_core::ring::consumer::Consumer;
use tssx_core::segment::Segment;

use super::receive::Call;
use super::wait::SpinBudget;
use crate::endpoint::Locked;

/// Looks in a row that found bytes, nothing sent between them, after which a stream is taken to go one way.
const ONE_WAY: u32 = 16;
/// First rest of the reader of such a stream, and the longest, nanoseconds.
const REST_NS: u64 = 125;
const REST_NS_MAX: u64 = 2000;

/// What a connection has learned. Zero is the start: no rest.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    in_row: AtomicU32,
    /// How long to rest: 0 not at all, else [`REST_NS`] doubled so often less one.
    step: AtomicU32,
}

impl Gathering {
    /// Something was sent.
    #[inline]
    pub(crate) fn sent(&self) {
        self.in_row.store(0, Relaxed);
    }

    /// Whether nothing was sent for a while.
    #[inline]
    pub(crate) fn is_one_way(&self) -> bool {
        self.in_row.load(Relaxed) >= ONE_WAY
    }

    /// Before a look at a ring of which all bytes that were seen are read.
    pub(crate) fn rest(&self, spin: &SpinBudget) {
        let step = self.step.load(Relaxed);
        if step == 0 || !spin.pays() {
            return;
        }
        let (start, rest) = (clock::ticks(), (REST_NS << (step - 1)) * clock::ticks_per_us() / 1000);
        while clock::ticks().wrapping_sub(start) < rest {
            core::hint::spin_loop();
        }
    }

    /// A look has found so many bytes, of the `limit` that may be unread.
    #[inline]
    pub(crate) fn found(&self, bytes: u64, limit: u64) {
        let in_row = self.in_row.load(Relaxed).saturating_add(1);
        self.in_row.store(in_row, Relaxed);
        let step = self.step.load(Relaxed);
        if in_row < ONE_WAY {
            self.step.store(0, Relaxed);
        } else if bytes > limit / 4 {
            self.step.store(step.saturating_sub(1), Relaxed);
        } else if bytes < limit / 16 && REST_NS << step <= REST_NS_MAX {
            self.step.store(step + 1, Relaxed);
        }
    }

    pub(crate) fn reset(&self) {
        self.in_row.store(0, Relaxed);
        self.step.store(0, Relaxed);
    }
}

/// The ring, looked at as far as the call has room for what is in it.
pub(super) fn open<'s>(call: &mut Call<'_, '_>, rx: &Locked, segment: &'s Segment) -> Result<Consumer<'s>, Corrupt> {
    let endpoint = rx.endpoint;
    let mut consumer = Consumer::open_seen(segment, &endpoint.seen_tail)?;
    if consumer.available() >= (call.parts.total() - call.got) as u64 {
        return Ok(consumer);
    }
    let empty = consumer.available() == 0;
    if empty && endpoint.gathering.is_one_way() && call.blocks(rx.slot) {
        endpoint.gathering.rest(&endpoint.spin);
    }
    consumer.refresh()?;
    if empty && consumer.available() > 0 {
        endpoint.gathering.found(consumer.available(), segment.rx().limit.load(Relaxed));
    }
    Ok(consumer)
}
