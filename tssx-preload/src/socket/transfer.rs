//! Moving bytes from a stream into a pipe without passing the program's memory: splice(2).

#![allow(unsafe_code, reason = "calls libc's recv and poll")]

use core::ffi::{c_int, c_uint};

use libc::pollfd;
use tssx_core::sys;

use super::receive;
use crate::endpoint::{Way, lock_stream};
use crate::errno::{Errno, Result};
use crate::next;
use crate::user_buf::{Parts, single};

/// Most bytes moved at once: what a pipe with room for anything takes without blocking (PIPE_BUF, pipe(7)).
const PIECE: usize = 4096;

/// Moves what a read would give into the pipe `out`, at most `count` bytes, waiting as a read would unless `flags` or the stream say
/// otherwise. A connection that has no segment yet is the kernel's to splice.
pub(crate) fn stream_to_pipe(fd: c_int, out: c_int, count: usize, flags: c_uint, plain: impl Fn() -> isize) -> Result<usize> {
    if lock_stream(fd, Way::Rx).is_none_or(|rx| rx.segment.is_none()) {
        return receive::receive_plainly(fd, plain);
    }
    let nonblock = check(out, count, flags)?;
    // First the pipe: a byte that was read must have a place to go.
    while !has_room(out)? {
        if nonblock {
            return Err(Errno::AGAIN);
        }
        wait_for_pipe(out)?;
    }
    let mut piece = [0_u8; PIECE];
    let place = (&raw mut piece).cast::<core::ffi::c_void>();
    let room = count.min(PIECE);
    let parts = single(place, room);
    let flags = if nonblock { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: `room` bytes of a local.
    let read = || unsafe { next::recv(fd, place, room, flags) };
    let got = receive::receive(fd, &Parts::new(&parts)?, flags, core::ptr::null_mut(), read)?;
    put(out, piece.get(..got).unwrap_or_default())?;
    Ok(got)
}

/// Writes bytes that the stream does not have any more: somebody else may have filled the pipe meanwhile, and a signal may come.
fn put(out: c_int, bytes: &[u8]) -> Result<()> {
    /// Refusals of a pipe that has room: more than there are reasons for.
    const REFUSALS: u32 = 1000;
    let (mut moved, mut refused) = (0, 0);
    while let Some(rest) = bytes.get(moved..).filter(|rest| !rest.is_empty()) {
        // SAFETY: a live slice.
        match unsafe { sys::write(out, rest.as_ptr(), rest.len()) } {
            Ok(count) => moved += count,
            Err(Errno(libc::EAGAIN | libc::EINTR | libc::ENOMEM)) if refused < REFUSALS => {
                refused += 1;
                // What it says is told by the next write.
                let _ = wait_for_pipe(out);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What the kernel checks before it moves anything (fs/splice.c, `do_splice`), in its order. Whether the call must not wait.
fn check(out: c_int, count: usize, flags: c_uint) -> Result<bool> {
    const KNOWN: c_uint = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE | libc::SPLICE_F_GIFT;
    if count > 0 && flags & !KNOWN != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let mode = sys::fcntl(out, libc::F_GETFL, 0)?;
    if mode & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(Errno(libc::EBADF));
    }
    if sys::fstat(out)?.mode & libc::S_IFMT != libc::S_IFIFO {
        return Err(Errno(libc::EINVAL));
    }
    Ok(flags & libc::SPLICE_F_NONBLOCK != 0 || mode & libc::O_NONBLOCK != 0)
}

/// Whether the pipe takes a piece.
///
/// # Errors
/// EPIPE, with its signal, when nobody can read it.
fn has_room(out: c_int) -> Result<bool> {
    let ready = sys::poll_now(out, libc::POLLOUT)?;
    if ready & libc::POLLERR != 0 {
        // SAFETY: no pointers.
        unsafe { libc::raise(libc::SIGPIPE) };
        return Err(Errno(libc::EPIPE));
    }
    Ok(ready & libc::POLLOUT != 0)
}

fn wait_for_pipe(out: c_int) -> Result<()> {
    let mut entry = pollfd { fd: out, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry.
    crate::errno::from_int(unsafe { next::poll(&raw mut entry, 1, -1) }).map(drop)
}
