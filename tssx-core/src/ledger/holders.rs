//! Which processes hold an end: how many, and the sum of their ids. So of the one that is left alone it is known who that is; and if it was
//! killed, and could not say that it lets go, somebody else finds that out and closes the slot ([`abandoned`]).
//!
//! The word, `Slot::holders`: the count in the low 9 bits, [`UNNAMED`], and above it the sum of the ids, modulo 2^22 (PID_MAX_LIMIT of
//! linux/threads.h). A process adds its own id and takes it away again. The child of a fork is counted before there is one, without an id, and
//! adds its id as the first thing that it does ([`name`]). Whose id would say nothing to its relatives (another pid namespace), or who took the
//! place of a process that did not say so, marks the word as unnamed, for good: nobody is taken for dead by it.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::layout::Slot;
use crate::{diag, sys};

const COUNT: u32 = (1 << 9) - 1;
/// The ids are not known.
const UNNAMED: u32 = 1 << 9;
const ID_SHIFT: u32 = 10;

fn id_part(pid: u32) -> u32 {
    pid << ID_SHIFT
}

fn one(pid: u32) -> u32 {
    id_part(pid) | 1
}

/// The word of an end that this process holds, and no other.
pub(crate) fn alone(pid: u32) -> u32 {
    if sys::is_stranger() { 1 | UNNAMED } else { one(pid) }
}

/// The word of a slot that somebody closes.
const GONE: u32 = UNNAMED;

impl Slot {
    /// Processes of the family that hold the end; [`COUNT`] for that many or more.
    #[inline]
    #[must_use]
    pub fn holder_count(&self) -> u32 {
        self.holders.load(Relaxed) & COUNT
    }
}

/// Changes the word, and returns what it was.
fn change(slot: &Slot, to: impl Fn(u32) -> u32) -> u32 {
    let mut word = slot.holders.load(Relaxed);
    loop {
        match slot.holders.compare_exchange(word, to(word), AcqRel, Relaxed) {
            Ok(before) => return before,
            Err(now) => word = now,
        }
    }
}

/// One process more. `pid`: 0 for a child that is not there yet, which names itself later, or for one whose id would say nothing.
pub fn add(slot: &Slot, pid: u32) {
    change(slot, |word| match word & COUNT {
        // So many that they cannot be counted: the slot is in use for good.
        COUNT => word,
        _ => (word | if word & COUNT == COUNT - 1 { UNNAMED } else { 0 }).wrapping_add(one(pid)),
    });
}

fn without(word: u32, pid: u32) -> u32 {
    match word & COUNT {
        0 | COUNT => word,
        _ => (word & UNNAMED) | (word & !UNNAMED).wrapping_sub(one(pid)),
    }
}

/// One process fewer; true for the last, who closes the slot. `pid` is what it was added with.
pub fn remove(slot: &Slot, pid: u32) -> bool {
    let before = change(slot, |word| if word & COUNT == 1 { GONE } else { without(word, pid) });
    before & COUNT == 1
}

/// One process fewer, which becomes another program: that has the descriptor still, and nobody closes the slot.
pub fn withdraw(slot: &Slot, pid: u32) {
    change(slot, |word| without(word, pid));
}

/// A forked child, which was counted before it was there, says who it is; 0 if that would say nothing.
pub fn name(slot: &Slot, pid: u32) {
    change(slot, |word| {
        let alone = word & COUNT < 2;
        // Alone, with the id of another, it was not counted for us.
        if pid == 0 || word & COUNT == 0 || (alone && word >> ID_SHIFT != 0) {
            word | UNNAMED
        } else {
            word.wrapping_add(id_part(pid))
        }
    });
}

/// Who holds the end is not known any more.
pub fn unname(slot: &Slot) {
    change(slot, |word| word | UNNAMED);
}

/// Whether nobody holds this end any more and nobody said so: the last process was killed, or became another program that has ended since. Asked
/// by process `own`. True once: whoever hears it closes the slot.
pub(crate) fn abandoned(slot: &Slot, own: u32) -> bool {
    let word = slot.holders.load(Acquire);
    let pid = word >> ID_SHIFT;
    let dead = match word & (COUNT | UNNAMED) {
        // Another program, which may have the descriptor still; or a child that was counted and has not said who it is.
        0 => true,
        1 if pid == 0 => true,
        1 => pid != own && !sys::process_lives(pid, false),
        _ => false,
    };
    dead && socket_is_gone(slot, pid == 0) && slot.holders.compare_exchange(word, GONE, AcqRel, Relaxed).is_ok()
}

/// What the kernel says, as a second witness where it can be asked. `surely`: nothing else says so.
fn socket_is_gone(slot: &Slot, surely: bool) -> bool {
    match slot.inode.load(Relaxed) {
        0 => !surely,
        inode => diag::is_gone(inode, slot.cookie.load(Relaxed)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A process that has ended.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().expect("spawn true");
        child.wait().expect("wait");
        child.id()
    }

    fn slot(pid: u32) -> Slot {
        let slot = Slot::default();
        slot.holders.store(alone(pid), Relaxed);
        slot
    }

    #[test]
    fn whoever_is_left_alone_is_known() {
        let (own, child) = (sys::getpid(), dead());
        let slot = slot(own);
        add(&slot, 0);
        name(&slot, child);
        assert_eq!(slot.holder_count(), 2);
        assert!(!abandoned(&slot, own + 1));
        assert!(!remove(&slot, own));
        assert!(abandoned(&slot, own) && !abandoned(&slot, own));
        let closed = self::slot(own);
        assert!(remove(&closed, own) && !abandoned(&closed, own), "who let go of it closes it");
    }

    #[test]
    fn who_lives_or_is_not_known_is_not_taken_for_dead() {
        let own = sys::getpid();
        assert!(!abandoned(&slot(own), own));
        assert!(!abandoned(&slot(0), own));
        let stranger = slot(own);
        add(&stranger, 0);
        name(&stranger, 0);
        remove(&stranger, own);
        assert!(!abandoned(&stranger, own));
        // Not counted for the child: its word may be anything.
        let other = slot(own);
        name(&other, dead());
        assert!(!abandoned(&other, own));
        // Counted, and killed before it could say so, perhaps.
        let early = slot(own);
        add(&early, 0);
        assert!(!remove(&early, own) && !abandoned(&early, own));
        early.inode.store(u64::from(u32::MAX), Relaxed);
        assert!(abandoned(&early, own), "there is no such socket");
    }

    #[test]
    fn a_child_may_say_who_it_is_after_its_parent_has_left() {
        let (own, child) = (sys::getpid(), dead());
        let slot = slot(own);
        add(&slot, 0);
        remove(&slot, own);
        name(&slot, child);
        assert!(abandoned(&slot, own));
    }

    #[test]
    fn what_another_program_holds_is_not_gone_before_its_socket() {
        let (left, right) = UnixStream::pair().expect("pair");
        let own = sys::getpid();
        let slot = slot(own);
        withdraw(&slot, own);
        assert!(!abandoned(&slot, own));
        slot.inode.store(sys::fstat(left.as_raw_fd()).expect("fstat").inode, Relaxed);
        assert!(!abandoned(&slot, own));
        drop((left, right));
        assert!(abandoned(&slot, own));
    }

    #[test]
    fn more_processes_than_can_be_counted_keep_a_slot_for_good() {
        let slot = slot(7);
        (0..600).for_each(|_| add(&slot, 9));
        assert_eq!(slot.holder_count(), COUNT);
        assert!((0..700).all(|_| !remove(&slot, 9)));
        assert!(!abandoned(&slot, 1));
    }
}
