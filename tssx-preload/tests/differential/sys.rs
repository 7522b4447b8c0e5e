//! What the operations of a program share: names of errors, memory to send from and to receive into, and the pattern of bytes
//! by which a stream's position is known.

#![allow(unsafe_code, reason = "memory with pages that must not be touched, and the SIGPIPE that a send is told by")]

use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;

use crate::board::{Board, Stream};
use crate::slots::{self, End};
use crate::words::{Handle, Place};

/// What a call returned: its value, or the error's name.
pub(crate) type Answer = Result<usize, String>;

/// A call's return value and errno.
pub(crate) fn answer(returned: isize) -> Answer {
    usize::try_from(returned).map_err(|_| errno_name(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)))
}

/// As [`answer`], for calls that return an int.
pub(crate) fn narrow(returned: i32) -> Answer {
    answer(returned as isize)
}

/// The name of an error.
pub(crate) fn errno_name(errno: i32) -> String {
    let names = [
        (libc::EAGAIN, "EAGAIN"),
        (libc::EBADF, "EBADF"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::EEXIST, "EEXIST"),
        (libc::EFAULT, "EFAULT"),
        (libc::EINTR, "EINTR"),
        (libc::EINVAL, "EINVAL"),
        (libc::EISCONN, "EISCONN"),
        (libc::EMSGSIZE, "EMSGSIZE"),
        (libc::ENOENT, "ENOENT"),
        (libc::ENOTCONN, "ENOTCONN"),
        (libc::ENOTSOCK, "ENOTSOCK"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EPERM, "EPERM"),
        (libc::EPIPE, "EPIPE"),
        (libc::ESPIPE, "ESPIPE"),
        (libc::ETOOMANYREFS, "ETOOMANYREFS"),
    ];
    names.iter().find(|(number, _)| *number == errno).map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).to_owned())
}

/// An answer as a transcript has it.
pub(crate) fn told<T: std::fmt::Display>(answer: Result<T, String>) -> String {
    answer.map_or_else(|error| error, |value| value.to_string())
}

/// A call that moved more than this and stopped in the middle is only said to have: how much fits is what a library may change.
pub(crate) const LARGE: usize = 65_536;

/// The byte at a position of a stream; never 0.
fn pattern(seed: usize, position: u64) -> u8 {
    let position = usize::try_from(position).unwrap_or(0);
    (1 + (position * 31 + position / 251 + seed * 67) % 255) as u8
}

/// A thread's memory: a mebibyte, then a page without access.
pub(crate) struct Memory {
    base: *mut u8,
}

const REGION: usize = 1 << 20;
const PAGE: usize = 4096;
/// What is in memory before a call receives into it.
const UNTOUCHED: u8 = 0;

impl Memory {
    pub(crate) fn new() -> Self {
        // SAFETY: new mappings, the second over the end of the first.
        unsafe {
            let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let base = libc::mmap(std::ptr::null_mut(), REGION + PAGE, protection, kind, -1, 0);
            assert!(base != libc::MAP_FAILED, "no memory for a player's buffer");
            assert!(libc::mprotect(base.add(REGION), PAGE, libc::PROT_NONE) == 0, "no page without access");
            Self { base: base.cast() }
        }
    }

    /// The address of a buffer, and how many of its first bytes are there.
    pub(crate) fn place(&self, place: Place, size: usize) -> (*mut u8, usize) {
        match place {
            Place::Good => (self.base, size.min(REGION)),
            Place::Null => (std::ptr::without_provenance_mut(8), 0),
            // SAFETY: the end of the mapping, and places before it.
            Place::Guard => (unsafe { self.base.add(REGION) }, 0),
            Place::Tail(bytes) => {
                let bytes = (bytes as usize).min(REGION);
                // SAFETY: as above.
                (unsafe { self.base.add(REGION - bytes) }, bytes.min(size))
            }
        }
    }

    /// Lays parts out one after the other with a byte between them; bad ones in the null page.
    pub(crate) fn parts(&self, parts: &[(u32, bool)]) -> Vec<libc::iovec> {
        let mut offset = 0;
        let lay = |(length, bad): &(u32, bool)| {
            let length = *length as usize;
            // SAFETY: programs' parts are far smaller than the region together.
            let base = if *bad { std::ptr::without_provenance_mut(8) } else { unsafe { self.base.add(offset.min(REGION - 1)) } };
            offset += length + 1;
            libc::iovec { iov_base: base.cast(), iov_len: length }
        };
        let vectors: Vec<_> = parts.iter().map(lay).collect();
        assert!(offset < REGION, "parts too large");
        vectors
    }
}

/// The bytes of a buffer that are there.
///
/// # Safety
/// `(base, length)` must be a readable and writable part of this thread's [`Memory`].
unsafe fn bytes<'m>(base: *mut u8, length: usize) -> &'m mut [u8] {
    if length == 0 {
        return &mut [];
    }
    // SAFETY: the caller's promise; only this thread uses its memory.
    unsafe { std::slice::from_raw_parts_mut(base, length) }
}

/// Good memory of the vectors: those in the null page are left out, and nothing is taken from behind the first of them.
fn reachable(vectors: &[libc::iovec]) -> impl Iterator<Item = (*mut u8, usize)> {
    let good = |vector: &&libc::iovec| vector.iov_len == 0 || vector.iov_base.addr() > PAGE;
    vectors.iter().take_while(good).map(|vector| (vector.iov_base.cast(), vector.iov_len))
}

/// Bytes on their way out: the pattern is laid into memory, and the stream's counts are kept.
pub(crate) struct Sending {
    stream: Option<&'static Stream>,
    size: u64,
}

impl Sending {
    /// `buffers` are (address, reachable bytes); `size` is what the call will be told.
    pub(crate) fn begin(board: &'static Board, on: Handle, size: usize, buffers: impl Iterator<Item = (*mut u8, usize)>) -> Self {
        let end = slots::end(on);
        let stream = end.map(|end| board.stream(end.connection, end.side));
        let seed = end.map_or(0, |end| end.connection * 2 + end.side.index());
        let mut position = stream.map_or(0, |stream| stream.intended.fetch_add(size as u64, SeqCst));
        for (base, length) in buffers {
            // SAFETY: buffers are reachable parts of this thread's memory.
            for byte in unsafe { bytes(base, length) } {
                *byte = pattern(seed, position);
                position += 1;
            }
        }
        SIGPIPES.set(0);
        Self { stream, size: size as u64 }
    }

    /// As [`Sending::begin`], for vectors.
    pub(crate) fn begin_parts(board: &'static Board, on: Handle, vectors: &[libc::iovec]) -> Self {
        Self::begin(board, on, vectors.iter().map(|vector| vector.iov_len).sum(), reachable(vectors))
    }

    /// Counts what was sent.
    pub(crate) fn count(&self, sent: usize) {
        if let Some(stream) = self.stream {
            stream.sent.fetch_add(sent as u64, SeqCst);
            stream.intended.fetch_sub(self.size - (sent as u64).min(self.size), SeqCst);
        }
    }

    /// Counts what was sent and says it, with the SIGPIPE if there was one.
    pub(crate) fn end(self, answer: Answer) -> String {
        self.count(*answer.as_ref().unwrap_or(&0));
        let part = matches!(answer, Ok(sent) if (sent as u64) < self.size && self.size > LARGE as u64);
        let text = if part { "part".to_owned() } else { told(answer) };
        if SIGPIPES.get() > 0 { format!("{text} SIGPIPE") } else { text }
    }
}

/// Clears memory before a call receives into it, so that what the call left alone can be told.
pub(crate) fn clear(buffers: impl Iterator<Item = (*mut u8, usize)>) {
    for (base, length) in buffers {
        // SAFETY: buffers are reachable parts of this thread's memory.
        unsafe { bytes(base, length) }.fill(UNTOUCHED);
    }
}

/// As [`clear`], for vectors.
pub(crate) fn clear_parts(vectors: &[libc::iovec]) {
    clear(reachable(vectors));
}

/// What is said of a call that wrote more than it says.
const BEHIND: &str = " and wrote behind";

/// A call that met bad memory may have written to good memory before it without counting that.
pub(crate) fn forgive(text: &str) -> String {
    text.replace(BEHIND, "")
}

/// Says what was received: whether the bytes are those that the stream has at this place, and that nothing was written behind.
pub(crate) fn received(
    board: &'static Board,
    end: Option<End>,
    answer: Answer,
    peek: bool,
    buffers: impl Iterator<Item = (*mut u8, usize)>,
) -> String {
    let count = match answer {
        Ok(count) => count,
        Err(error) => return error,
    };
    let mut left = count;
    let mut all = Vec::with_capacity(count);
    let mut untouched = true;
    for (base, length) in buffers {
        // SAFETY: buffers are reachable parts of this thread's memory.
        let (taken, rest) = unsafe { bytes(base, length) }.split_at(left.min(length));
        all.extend_from_slice(taken);
        left -= taken.len();
        untouched &= rest.iter().all(|byte| *byte == UNTOUCHED);
    }
    format!("{count}{}{}", verdict(board, end, &all, peek), if untouched { "" } else { BEHIND })
}

/// As [`received`], for vectors.
pub(crate) fn received_parts(
    board: &'static Board,
    end: Option<End>,
    answer: Answer,
    peek: bool,
    vectors: &[libc::iovec],
) -> String {
    let text = received(board, end, answer, peek, reachable(vectors));
    let all_there = reachable(vectors).count() == vectors.len();
    if all_there { text } else { forgive(&text) }
}

/// Whether the bytes are the stream's next; counts them as taken unless they were only peeked at.
pub(crate) fn verdict(board: &'static Board, end: Option<End>, all: &[u8], peek: bool) -> String {
    if all.is_empty() {
        return String::new();
    }
    let Some(end) = end else { return " unknown bytes".to_owned() };
    let sender = end.side.other();
    let stream = board.stream(end.connection, sender);
    let seed = end.connection * 2 + sender.index();
    let from = if peek { stream.taken.load(SeqCst) } else { stream.taken.fetch_add(all.len() as u64, SeqCst) };
    match all.iter().zip(from..).position(|(byte, position)| *byte != pattern(seed, position)) {
        None => " ok".to_owned(),
        Some(first) => format!(" wrong from {first}, hash {:08x}", hash(all)),
    }
}

fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

thread_local! {
    static SIGPIPES: Cell<u32> = const { Cell::new(0) };
}

extern "C" fn on_signal(_: i32) {}

extern "C" fn on_pipe(_: i32) {
    SIGPIPES.set(SIGPIPES.get() + 1);
}

/// A signal whose handler lets calls be interrupted, and one whose handler lets them go on.
pub(crate) const SIGNALS: [i32; 2] = [libc::SIGUSR1, libc::SIGUSR2];

/// Installs the handlers of a player process.
pub(crate) fn install_handlers() {
    let handler = on_signal as *const () as usize;
    let pipe = on_pipe as *const () as usize;
    for (signal, handler, flags) in [(SIGNALS[0], handler, 0), (SIGNALS[1], handler, libc::SA_RESTART), (libc::SIGPIPE, pipe, 0)] {
        // SAFETY: sigaction is plain data for which zero is valid; the handlers only touch a thread's own cell.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler;
            action.sa_flags = flags;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}
