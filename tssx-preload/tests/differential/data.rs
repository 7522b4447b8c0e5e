//! Operations that move bytes: each makes the program's call and says what came of it.

#![allow(unsafe_code, reason = "makes the calls under test, some with addresses that the kernel must refuse")]

use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::SeqCst;

use crate::player::Player;
use crate::slots;
use crate::sys::{self, Sending, answer, narrow};
use crate::words::{Call, Flags, Handle, Parts, Place};

/// read, recv, recvfrom.
pub(crate) fn receive(player: &Player, on: Handle, by: Call, size: usize, flags: Flags, at: Place) -> String {
    let (base, reachable) = player.memory.place(at, size);
    let buffer = || std::iter::once((base, reachable));
    let end = slots::end(on);
    sys::clear(buffer());
    let fd = slots::fd(on);
    let mut note = String::new();
    // SAFETY: the buffer is this thread's memory, or an address that the kernel answers EFAULT for, which is what is tested.
    let got = unsafe {
        match by {
            Call::Read => answer(libc::read(fd, base.cast(), size)),
            Call::Recvfrom => {
                let mut name: libc::sockaddr_un = zeroed();
                let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
                let got = answer(libc::recvfrom(fd, base.cast(), size, flags.0, (&raw mut name).cast(), &raw mut length));
                if got.is_ok() {
                    note = format!(" name {length}");
                }
                got
            }
            _ => answer(libc::recv(fd, base.cast(), size, flags.0)),
        }
    };
    let peek = by != Call::Read && flags.has(libc::MSG_PEEK);
    let text = sys::received(player.board, end, got, peek, buffer()) + &note;
    if at == Place::Good { text } else { sys::forgive(&text) }
}

/// write, send, sendto.
pub(crate) fn transmit(player: &Player, on: Handle, by: Call, size: usize, flags: Flags, at: Place) -> String {
    let (base, reachable) = player.memory.place(at, size);
    let sending = Sending::begin(player.board, on, size, std::iter::once((base, reachable)));
    let fd = slots::fd(on);
    // SAFETY: as in `receive`; a null address of length 0 is allowed.
    let sent = unsafe {
        match by {
            Call::Write => libc::write(fd, base.cast(), size),
            Call::Sendto => libc::sendto(fd, base.cast(), size, flags.0, std::ptr::null(), 0),
            _ => libc::send(fd, base.cast(), size, flags.0),
        }
    };
    sending.end(answer(sent))
}

/// readv.
pub(crate) fn readv(player: &Player, on: Handle, parts: &Parts) -> String {
    let vectors = player.memory.parts(&parts.0);
    let end = slots::end(on);
    sys::clear_parts(&vectors);
    // SAFETY: vectors of this thread's memory, or addresses that the kernel refuses.
    let got = answer(unsafe { libc::readv(slots::fd(on), vectors.as_ptr(), vectors.len() as c_int) });
    sys::received_parts(player.board, end, got, false, &vectors)
}

/// writev.
pub(crate) fn writev(player: &Player, on: Handle, parts: &Parts) -> String {
    let vectors = player.memory.parts(&parts.0);
    let sending = Sending::begin_parts(player.board, on, &vectors);
    // SAFETY: as in `readv`.
    sending.end(answer(unsafe { libc::writev(slots::fd(on), vectors.as_ptr(), vectors.len() as c_int) }))
}

/// Sends pieces until there is no room.
pub(crate) fn fill(player: &Player, on: Handle, size: usize) -> String {
    const MOST: usize = 4 << 20;
    let size = size.max(1);
    let mut total = 0;
    while total < MOST {
        let (base, reachable) = player.memory.place(Place::Good, size);
        let sending = Sending::begin(player.board, on, size, std::iter::once((base, reachable)));
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `size` bytes of this thread's memory.
        let sent = answer(unsafe { libc::send(slots::fd(on), base.cast(), size, flags) });
        sending.count(*sent.as_ref().unwrap_or(&0));
        match sent {
            Ok(sent) => total += sent,
            Err(error) => return error,
        }
    }
    "never full".to_owned()
}

/// Receives pieces until there is nothing; `wait`: until everything that the other end was told to send has come.
pub(crate) fn drain(player: &Player, on: Handle, size: usize, wait: bool) -> String {
    /// Receives after which pieces are no longer small: a large stream byte by byte takes too long.
    const SMALL_PIECES: usize = 100;
    let mut pieces = 0;
    let Some(end) = slots::end(on) else { return "no stream".to_owned() };
    let stream = player.board.stream(end.connection, end.side.other());
    let mut wrong = String::new();
    let how = loop {
        if wait && stream.taken.load(SeqCst) >= stream.intended.load(SeqCst) {
            break "enough".to_owned();
        }
        pieces += 1;
        let size = size.max(if pieces > SMALL_PIECES { 4096 } else { 1 });
        let (base, reachable) = player.memory.place(Place::Good, size);
        // SAFETY: `size` bytes of this thread's memory.
        let got = answer(unsafe { libc::recv(slots::fd(on), base.cast(), size, if wait { 0 } else { libc::MSG_DONTWAIT }) });
        match got {
            Ok(0) => break "end".to_owned(),
            Ok(count) => {
                let text = sys::received(player.board, Some(end), Ok(count), false, std::iter::once((base, reachable.min(count))));
                if !text.ends_with(" ok") && wrong.is_empty() {
                    wrong = " wrong bytes".to_owned();
                }
            }
            Err(error) => break error,
        }
    };
    let all = if stream.taken.load(SeqCst) == stream.sent.load(SeqCst) { "all" } else { "not all" };
    // While a writer still counts what it sent, "all" would be a matter of luck.
    if wait { format!("{how}{wrong}") } else { format!("{how} {all}{wrong}") }
}

/// sendfile from a file made for it.
pub(crate) fn sendfile(player: &Player, on: Handle, size: usize) -> String {
    let (base, reachable) = player.memory.place(Place::Good, size);
    let sending = Sending::begin(player.board, on, size, std::iter::once((base, reachable)));
    // SAFETY: a file of our own, `size` bytes of this thread's memory, a null offset is allowed.
    let sent = unsafe {
        let file = libc::memfd_create(c"differential".as_ptr(), libc::MFD_CLOEXEC);
        libc::write(file, base.cast(), size);
        libc::lseek(file, 0, libc::SEEK_SET);
        let sent = answer(libc::sendfile(slots::fd(on), file, null_mut(), size));
        libc::close(file);
        sent
    };
    sending.end(sent)
}

/// splice through a pipe made for it, in the direction asked for.
pub(crate) fn splice(player: &Player, on: Handle, size: usize, dontwait: bool, out: bool) -> String {
    let mut pipe = [0; 2];
    let flags = if dontwait { libc::SPLICE_F_NONBLOCK } else { 0 };
    let (base, reachable) = player.memory.place(Place::Good, size.min(4096));
    let size = reachable;
    let buffer = || std::iter::once((base, size));
    // SAFETY: a pipe of our own; `size` bytes of this thread's memory; null offsets are what splice(2) wants for pipes and sockets.
    unsafe {
        libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC);
        let text = if out {
            let sending = Sending::begin(player.board, on, size, buffer());
            libc::write(pipe[1], base.cast(), size);
            sending.end(answer(libc::splice(pipe[0], null_mut(), slots::fd(on), null_mut(), size, flags)))
        } else {
            let end = slots::end(on);
            let got = answer(libc::splice(slots::fd(on), null_mut(), pipe[1], null_mut(), size, flags));
            sys::clear(buffer());
            if matches!(got, Ok(1..)) {
                libc::read(pipe[0], base.cast(), size);
            }
            sys::received(player.board, end, got, false, buffer())
        };
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        text
    }
}

unsafe extern "C" {
    /// dprintf(3), which the libc crate does not declare.
    #[link_name = "dprintf"]
    fn dprintf_of_libc(fd: c_int, format: *const libc::c_char, ...) -> c_int;
}

/// dprintf.
pub(crate) fn dprintf(player: &Player, on: Handle, size: usize) -> String {
    let (base, reachable) = player.memory.place(Place::Good, size);
    let sending = Sending::begin(player.board, on, size, std::iter::once((base, reachable)));
    // SAFETY: `size` bytes that are not 0, then a 0; the format is ours.
    unsafe {
        base.add(size).write(0);
        sending.end(narrow(dprintf_of_libc(slots::fd(on), c"%s".as_ptr(), base.cast::<libc::c_char>())))
    }
}
