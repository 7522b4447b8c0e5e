//! Ways to copy a large message into a ring whose memory the other CPU has read, and reads next.

#![allow(unsafe_code, reason = "copies between threads")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use crate::support::{Group, Variant, race};

const SIZES: [usize; 3] = [4096, 65_536, 1 << 20];
/// Bytes copied in one round.
const TOTAL: usize = 64 << 20;
/// Bytes of the ring.
const RING: usize = 256 * 1024;

/// Memory that two threads use in turn.
struct Shared(*mut u8);

// SAFETY: who may touch what is agreed by positions, as in a ring.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

type Copy = unsafe fn(*mut u8, *const u8, usize);

unsafe fn libc_memcpy(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: the caller's.
    unsafe { libc::memcpy(to.cast(), from.cast(), length) };
}

#[cfg(target_arch = "x86_64")]
unsafe fn string_move(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: the caller's.
    unsafe {
        std::arch::asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") length => _, options(nostack));
    }
}

/// Past the caches.
#[cfg(target_arch = "x86_64")]
unsafe fn streaming(to: *mut u8, from: *const u8, length: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    for offset in (0..length).step_by(16) {
        // SAFETY: the caller's; sizes and addresses here are multiples of 16.
        unsafe { _mm_stream_si128(to.add(offset).cast::<__m128i>(), _mm_loadu_si128(from.add(offset).cast())) };
    }
    // SAFETY: no operands.
    unsafe { _mm_sfence() };
}

pub(crate) fn copies() -> Group {
    let mut variants: Vec<Variant> = Vec::new();
    for size in SIZES {
        let mut add = |name: &str, copy: Copy| {
            variants.push((format!("{size} bytes, {name}"), Box::new(move || through_ring(size, copy))));
        };
        add("memcpy of the C library", libc_memcpy);
        #[cfg(target_arch = "x86_64")]
        add("rep movsb", string_move);
        #[cfg(target_arch = "x86_64")]
        add("non-temporal stores", streaming);
    }
    Group::measure(variants)
}

/// One thread copies in, the other out, at most half a ring apart: nanoseconds for each message.
fn through_ring(size: usize, copy: Copy) -> f64 {
    let mut ring = vec![0_u64; RING / 8 + 16];
    let address = ring.as_mut_ptr().cast::<u8>();
    // SAFETY: inside the vector, which is 128 bytes longer than the ring.
    let ring_bytes = Arc::new(Shared(unsafe { address.add(address.align_offset(64)) }));
    let positions = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let (theirs, their_positions) = (Arc::clone(&ring_bytes), Arc::clone(&positions));
    let piece = size.min(RING / 2);
    let reader = move || {
        let mut private = vec![0_u8; piece];
        for position in (0..TOTAL).step_by(piece) {
            while their_positions[0].load(Acquire) < (position + piece) as u64 {
                std::hint::spin_loop();
            }
            // SAFETY: inside the ring, because pieces divide it; written before the position was.
            unsafe { libc::memcpy(private.as_mut_ptr().cast(), theirs.0.add(position % RING).cast(), piece) };
            their_positions[1].store((position + piece) as u64, Release);
        }
    };
    let private = vec![1_u8; piece];
    let own = || {
        for position in (0..TOTAL).step_by(piece) {
            while positions[1].load(Acquire) + (RING as u64) < (position + piece) as u64 {
                std::hint::spin_loop();
            }
            // SAFETY: as above; the reader has taken what was there.
            unsafe { copy(ring_bytes.0.add(position % RING), private.as_ptr(), piece) };
            positions[0].store((position + piece) as u64, Release);
        }
        while positions[1].load(Acquire) < TOTAL as u64 {
            std::hint::spin_loop();
        }
    };
    race((TOTAL / size) as u64, own, reader)
}
