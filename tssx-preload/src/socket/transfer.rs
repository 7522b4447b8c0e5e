//! Moving bytes from a stream into a pipe without passing the program's memory: splice(2).

#![allow(unsafe_code, reason = "lets the kernel read from the ring")]

use core::ffi::{c_int, c_uint};
use core::sync::atomic::Ordering::Relaxed;

use libc::pollfd;
use tssx_core::doorbell;
use tssx_core::ledger::layout::MODE_RING;
use tssx_core::ring::consumer::Consumer;
use tssx_core::sys;

use super::receive;
use crate::endpoint::{Way, lock_stream};
use crate::errno::{Errno, Result};
use crate::next;
use crate::user_buf::{Parts, single};

/// Writes what the ring holds to the pipe `out`, at most `count` bytes; the kernel copies straight from the ring. An empty ring is
/// waited for as a read would, unless `flags` or the stream say otherwise.
pub(crate) fn stream_to_pipe(fd: c_int, out: c_int, count: usize, flags: c_uint, plain: impl Fn() -> isize) -> Result<usize> {
    let nonblock = flags & libc::SPLICE_F_NONBLOCK != 0;
    loop {
        let peek = libc::MSG_PEEK | if nonblock { libc::MSG_DONTWAIT } else { 0 };
        {
            let rx = lock_stream(fd, Way::Rx);
            let in_ring = rx.as_ref().is_some_and(|rx| rx.slot.rx_mode.load(Relaxed) == MODE_RING);
            if !in_ring {
                drop(rx);
                return receive::receive_plainly(fd, plain);
            }
        }
        // Waits, and finds end of file and errors, exactly as a read would, without taking a byte.
        let mut byte = [0_u8];
        let place = (&raw mut byte).cast::<core::ffi::c_void>();
        let parts = single(place, 1);
        // SAFETY: a look at one byte into a local, on the kernel socket.
        let look = || unsafe { next::recv(fd, place, 1, peek) };
        if receive::receive(fd, &Parts::new(&parts)?, peek, core::ptr::null_mut(), look)? == 0 {
            return Ok(0);
        }
        if let Some(moved) = move_piece(fd, out, count)? {
            return Ok(moved);
        }
        if nonblock {
            return Err(Errno::AGAIN);
        }
        wait_for_pipe(out)?;
    }
}

/// One piece from the ring to the pipe. `None`: the pipe is full, or the bytes are gone to another reader.
fn move_piece(fd: c_int, out: c_int, count: usize) -> Result<Option<usize>> {
    let Some(rx) = lock_stream(fd, Way::Rx) else { return Ok(None) };
    let Some(segment) = rx.segment.filter(|_| rx.slot.rx_mode.load(Relaxed) == MODE_RING) else { return Ok(None) };
    let mut consumer = Consumer::open(&segment).map_err(|_| Errno(libc::ECONNRESET))?;
    let (address, length) = consumer.piece(count);
    // A pipe with room for anything takes a page at least; more could block with the lock held.
    let length = length.min(4096);
    if length == 0 || sys::poll_now(out, libc::POLLOUT)? & libc::POLLOUT == 0 {
        return Ok(None);
    }
    // SAFETY: `piece` lies inside the ring.
    let moved = unsafe { sys::write(out, address, length) }?;
    consumer.skip(moved);
    let (before, after) = consumer.publish();
    rx.slot.ring_rx_bytes.fetch_add(moved as u64, Relaxed);
    rx.slot.ring_rx_calls.fetch_add(1, Relaxed);
    if doorbell::should_release(&segment, before, after) && after == 0 {
        doorbell::take_doorbells(fd, rx.slot, &segment);
    }
    Ok(Some(moved))
}

fn wait_for_pipe(out: c_int) -> Result<()> {
    let mut entry = pollfd { fd: out, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry.
    crate::errno::from_int(unsafe { next::poll(&raw mut entry, 1, -1) }).map(drop)
}
