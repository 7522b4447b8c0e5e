//! Which locks a thread holds, so that a jump out of a signal handler does not leave one locked.
//!
//! siglongjmp(3) out of a handler may leave the middle of a locked section. The next section of the same thread would notice
//! ([`acquire`]), but another thread would wait for ever. So each thread notes what it holds in a place of its own, found by its
//! thread pointer, and the jump (`abi/jump.rs`) frees what lies in the frames that it leaves. Two threads may share a place
//! by chance; then a note can be lost, and never is a lock freed that the jumping thread does not own.

#![allow(unsafe_code, reason = "follows the note of a lock")]

use core::mem::ManuallyDrop;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, compiler_fence};

use tssx_core::lock::{self, Guard};
use tssx_core::sys;

use super::{owner, thread_pointer};

/// Places. A page of them for each 64; touched only as threads use them.
const PLACES: usize = 2048;
/// Bytes of stack between an operation and one in a signal handler that interrupts it: the kernel's frame alone has more.
const SIGNAL_FRAME: usize = 512;
/// Farther apart than this, two addresses are not on one stack.
const STACK: usize = 64 << 20;

/// What kind of lock; a thread seldom holds two of a kind.
#[derive(Clone, Copy)]
#[repr(usize)]
pub(crate) enum Kind {
    /// A stream's sending direction.
    Tx = 0,
    /// A stream's receiving direction.
    Rx = 1,
    /// An epoll set, a pool, a table.
    Other = 2,
}

const KINDS: usize = 3;

struct Note {
    /// The lock's word, null for none.
    word: AtomicPtr<AtomicU64>,
    /// Where on the stack its holder is.
    frame: AtomicUsize,
}

#[repr(align(64))]
struct Place([Note; KINDS]);

static NOTES: [Place; PLACES] =
    [const { Place([const { Note { word: AtomicPtr::new(core::ptr::null_mut()), frame: AtomicUsize::new(0) } }; KINDS]) }; PLACES];

fn notes() -> Option<&'static [Note; KINDS]> {
    // Thread pointers are far apart and end in zeros: a multiplication spreads them.
    let hash = (thread_pointer() >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    NOTES.get(hash % PLACES).map(|place| &place.0)
}

/// A lock, held until dropped.
pub(crate) struct Held {
    guard: ManuallyDrop<Guard<'static>>,
    note: Option<&'static Note>,
    /// What the note said before: of a section that a signal handler interrupted.
    before: (*mut AtomicU64, usize),
}

impl Held {
    /// Whether this is a signal handler inside a section of the same thread.
    pub(crate) fn is_nested(&self) -> bool {
        self.guard.is_nested()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        // Only now: a jump between the two must find the note.
        if let Some(note) = self.note {
            note.set(self.before);
        }
    }
}

impl Note {
    fn get(&self) -> (*mut AtomicU64, usize) {
        (self.word.load(Relaxed), self.frame.load(Relaxed))
    }

    fn set(&self, (word, frame): (*mut AtomicU64, usize)) {
        self.frame.store(frame, Relaxed);
        self.word.store(word, Relaxed);
        compiler_fence(SeqCst);
    }
}

/// Takes a lock. If this thread holds it already, then either we are in a signal handler, or a handler left the holder's section
/// by a jump that was not noticed and the lock is nobody's. In the second case we are not below the holder on the stack, and not on
/// a signal stack: then the lock is ours as if it had been free.
#[inline]
pub(crate) fn acquire(word: &'static AtomicU64, kind: Kind) -> Held {
    let marker = 0_u8;
    let here = core::ptr::from_ref(&marker).addr();
    let note = notes().and_then(|notes| notes.get(kind as usize));
    let before = note.map_or((core::ptr::null_mut(), 0), Note::get);
    // Before the lock is had: a jump frees it only if it is ours by then.
    if let Some(note) = note {
        note.set((core::ptr::from_ref(word).cast_mut(), here));
    }
    let mut guard = lock::acquire(word, owner());
    if guard.is_nested() && is_abandoned(before, word, here) {
        guard.succeed();
    }
    Held { guard: ManuallyDrop::new(guard), note, before }
}

#[cold]
fn is_abandoned((noted, holder): (*mut AtomicU64, usize), word: &AtomicU64, here: usize) -> bool {
    core::ptr::eq(noted, word) && here + SIGNAL_FRAME > holder && here.abs_diff(holder) < STACK && !sys::on_signal_stack()
}

/// Before a jump to the stack address `target`: frees the locks whose holders are in the frames that it leaves.
pub(crate) fn leave_frames_below(target: usize) {
    let own = owner();
    for note in notes().into_iter().flatten() {
        let holder = note.frame.load(Relaxed);
        // SAFETY: a word is noted while it is held, and lies in memory that is never unmapped.
        let word = unsafe { note.word.load(Relaxed).as_ref() }.filter(|_| holder < target && holder.abs_diff(target) < STACK);
        if let Some(word) = word {
            note.word.store(core::ptr::null_mut(), Relaxed);
            lock::free_if_owned(word, own);
        }
    }
}
