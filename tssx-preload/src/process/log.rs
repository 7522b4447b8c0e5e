//! The debug log: `TSSX_LOG` is `stderr` or the path of a file; one line for each thing that happens to a connection.
//!
//! It must not disturb the program. No descriptor is kept: each line opens the file, writes once and closes, by system calls of our
//! own, while forks are kept away, so that no child inherits the descriptor. Nothing waits: a line that cannot be written now is
//! dropped. There is no allocation and no lock, and errno is not touched. Only the slow path comes here, a few times in a connection's
//! life.

#![allow(unsafe_code, reason = "owns the path of the file, and hands lines to write(2)")]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int};
use core::fmt::{self, Write};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use tssx_core::ledger::layout::{MODE_RING, SLOT_SELECTED, Slot};
use tssx_core::reason::Reason;
use tssx_core::sys::{self, Errno};

use crate::{fd_table, init, process};

const OFF: u32 = 0;
const STDERR: u32 = 1;
const FILE: u32 = 2;

/// Longest line. A name has at most 108 bytes, so none is cut.
const LINE_MAX: usize = 320;
/// Room for a path with its NUL (PATH_MAX of linux/limits.h).
const PATH_MAX: usize = 4096;
/// How often a line looks again while a fork is under way, before it is dropped.
const LOOKS: u32 = 100;

static STATE: AtomicU32 = AtomicU32::new(OFF);
static PATH: PathCell = PathCell(UnsafeCell::new([0; PATH_MAX]));

/// The file's absolute path, which ends in NUL.
struct PathCell(UnsafeCell<[u8; PATH_MAX]>);

// SAFETY: written by `start` before the Release store of FILE, and read only after it.
unsafe impl Sync for PathCell {}

/// What happened to a connection.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    /// Its name is selected.
    Selected,
    /// Its name is selected, but it cannot be counted.
    NotCounted,
    /// What this end sends goes through the ring from here on.
    Sending,
    /// What this end receives comes from the ring from here on.
    Receiving,
    /// It stays on the kernel socket, or returns to it.
    Plain(Reason),
    /// What this end sends goes through the kernel socket again.
    RingEnded(Reason),
    /// The peer wrote something impossible.
    Corrupt,
}

impl Event {
    /// What to say, and the reason if there is one.
    fn words(self) -> (&'static str, Option<Reason>) {
        match self {
            Self::Selected => ("selected", None),
            Self::NotCounted => ("left alone: no memory, or the ledger is full", Some(Reason::LedgerFull)),
            Self::Sending => ("upgraded: sends through shared memory", None),
            Self::Receiving => ("upgraded: receives through shared memory", None),
            Self::Plain(reason) => ("on the kernel socket for good", Some(reason)),
            Self::RingEnded(reason) => ("sends through the kernel socket again", Some(reason)),
            Self::Corrupt => ("reset: the ring is not to be believed", Some(Reason::Corrupt)),
        }
    }
}

/// Reads `TSSX_LOG`. Called once, by the thread that starts the library, before any other may log. A file that cannot be used is told
/// on standard error, and there is no log.
pub(crate) fn start(value: &[u8]) {
    match value {
        b"" => {}
        b"stderr" => STATE.store(STDERR, Release),
        path => {
            // SAFETY: the only thread that starts the library; STATE is not FILE, so nobody reads.
            let room = unsafe { &mut *PATH.0.get() };
            match remember(path, room).and_then(sys::open_to_append) {
                Ok(fd) => {
                    sys::close(fd);
                    STATE.store(FILE, Release);
                }
                Err(Errno(number)) => {
                    let mut line = Line::new();
                    let _ = writeln!(line, "tssx: TSSX_LOG names a file that cannot be opened (errno {number}); there is no log");
                    sys::write_stderr(line.bytes());
                }
            }
        }
    }
}

/// The path, absolute: the program may change its directory.
fn remember<'a>(path: &[u8], room: &'a mut [u8; PATH_MAX]) -> Result<&'a CStr, Errno> {
    let mut length = 0;
    if path.first() != Some(&b'/') {
        length = sys::current_directory(room)?;
        if room.first() != Some(&b'/') {
            return Err(Errno(libc::ENOENT)); // a directory that the root does not reach
        }
        if let Some(slash) = room.get_mut(length) {
            *slash = b'/';
            length += 1;
        }
    }
    let rest = room.get_mut(length..).and_then(|rest| rest.get_mut(..=path.len())).ok_or(Errno(libc::ENAMETOOLONG))?;
    if let Some((nul, to)) = rest.split_last_mut() {
        to.copy_from_slice(path);
        *nul = 0;
    }
    CStr::from_bytes_until_nul(room).map_err(|_| Errno(libc::ENAMETOOLONG))
}

/// Something about a connection of ours.
#[inline]
pub(crate) fn say(fd: c_int, slot: &Slot, event: Event) {
    if is_on() {
        write_event(Some(fd), slot.path.load(Relaxed), event);
    }
}

/// Something about a connection that has no slot, or none any more; `path` is its name's place in the ledger.
#[inline]
pub(crate) fn say_of_path(fd: Option<c_int>, path: u32, event: Event) {
    if is_on() {
        write_event(fd, path, event);
    }
}

/// After a step between consent and switch: the receiving direction may have moved.
#[inline]
pub(crate) fn say_if_receiving(fd: c_int, slot: &Slot) {
    if slot.rx_mode.load(Relaxed) == MODE_RING {
        say(fd, slot, Event::Receiving);
    }
}

/// Before this process gives its share of a connection up: whether it ends without having moved, and why.
#[inline]
pub(crate) fn say_if_never_decided(slot: &Slot) {
    let undecided = || slot.state.load(Relaxed) == SLOT_SELECTED && slot.holder_count() == 1;
    if is_on() && undecided() {
        let reason = Reason::from_code(slot.reason.load(Relaxed)).unwrap_or(Reason::None);
        write_event(None, slot.path.load(Relaxed), Event::Plain(reason));
    }
}

/// A variable that cannot be used; `complaint` ends in a line feed and was written to standard error already.
#[cold]
pub(crate) fn say_complaint(complaint: &[&[u8]]) {
    if STATE.load(Acquire) == FILE {
        let mut line = Line::begin();
        for part in complaint {
            line.push(part.strip_prefix(b"tssx: ").unwrap_or(part));
        }
        line.send();
    }
}

#[inline]
fn is_on() -> bool {
    STATE.load(Relaxed) != OFF
}

#[cold]
#[inline(never)]
fn write_event(fd: Option<c_int>, path: u32, event: Event) {
    let mut line = Line::begin();
    if let Some(fd) = fd {
        let _ = write!(line, "fd {fd} ");
    }
    if let Some(path) = init::ledger().and_then(|ledger| ledger.path(path as usize)) {
        for byte in path.name() {
            // An abstract name begins with NUL; a line feed would make two lines.
            let shown = if *byte == 0 { b'@' } else { *byte };
            line.push(&[if shown.is_ascii_control() { b'?' } else { shown }]);
        }
    }
    let (words, reason) = event.words();
    let _ = write!(line, ": {words}");
    if let Some(reason) = reason {
        let _ = write!(line, ": {}", reason.name());
    }
    line.push(b"\n");
    line.send();
}

/// One line, on the stack.
struct Line {
    bytes: [u8; LINE_MAX],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; LINE_MAX], length: 0 }
    }

    fn begin() -> Self {
        let mut line = Self::new();
        let _ = write!(line, "tssx: pid {}: ", process::pid());
        line
    }

    /// Appends what there is room for.
    fn push(&mut self, more: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(more) {
            *to = *from;
            self.length += 1;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }

    fn send(&self) {
        match STATE.load(Acquire) {
            STDERR if fd_table::stream(2).is_none() => write_now(2, self.bytes()),
            FILE => {
                // A child that is forked now would inherit the descriptor.
                for _ in 0..LOOKS {
                    if let Some(_gate) = process::try_enter_gate() {
                        return self.append();
                    }
                    sys::yield_now();
                }
            }
            _ => {}
        }
    }

    fn append(&self) {
        // SAFETY: STATE is FILE, so `start` has written the path, and nobody writes it again.
        let path = unsafe { &*PATH.0.get() };
        if let Ok(fd) = CStr::from_bytes_until_nul(path).map_err(|_| Errno(libc::EINVAL)).and_then(sys::open_to_append) {
            write_now(fd, self.bytes());
            sys::close(fd);
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Writes if that neither waits nor raises SIGPIPE.
fn write_now(fd: c_int, text: &[u8]) {
    if sys::send(fd, text) != Err(Errno(libc::ENOTSOCK)) {
        return;
    }
    if sys::poll_now(fd, libc::POLLOUT) == Ok(libc::POLLOUT) {
        // SAFETY: a live slice.
        let _ = unsafe { sys::write(fd, text.as_ptr(), text.len()) };
    }
}
