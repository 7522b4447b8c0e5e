//! Descriptors that are closed, duplicated and replaced.

#![allow(unsafe_code, reason = "calls libc's close and dup family")]

use core::ffi::c_int;

use tssx_core::reason::Reason;
use tssx_core::sys;

use crate::endpoint::Endpoint;
use crate::errno::{self, Errno, Result};
use crate::fd_table::{self, Entry};
use crate::process::images;
use crate::readiness::pending::Pending;
use crate::readiness::postponed;
use crate::socket::recall;
use crate::{next, process};

/// Why an entry goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The program closes the descriptor: it still refers to the socket.
    Closing,
    /// The number turned up as something else: it was closed behind our back.
    Stale,
}

/// What is left to do once the kernel has closed the descriptor.
#[must_use]
pub(crate) struct Closing {
    last_of: Option<&'static Endpoint>,
}

impl Closing {
    /// After the kernel's close.
    pub(crate) fn finish(self) {
        if let Some(endpoint) = self.last_of {
            endpoint.let_go();
        }
    }
}

/// Before the kernel closes `fd`: clears its entry, and waits until nobody is inside an operation through it.
pub(crate) fn closing(fd: c_int) -> Closing {
    if fd_table::stream(fd).is_some() {
        recall::answer_at_last(fd); // what the peer asked back must not go with us
    }
    let entry = fd_table::set(fd, None).ok().flatten();
    part_with(fd, entry, Cause::Closing)
}

fn part_with(fd: c_int, entry: Option<Entry>, cause: Cause) -> Closing {
    let mut last_of = None;
    match entry {
        Some(Entry::Stream(endpoint)) => {
            let own = (cause == Cause::Closing).then_some(fd);
            last_of = endpoint.detach(own).then_some(endpoint);
            if last_of.is_some()
                && let Some(mailbox) = endpoint.schedule.forget_mailbox()
            {
                crate::socket::establish::close_mailbox(mailbox, endpoint);
            }
        }
        Some(Entry::Epoll(set)) => set.detach(),
        Some(Entry::Mailbox(endpoint)) => {
            // The program closes every number it finds. Ours to lose: the connection tries again later.
            endpoint.schedule.forget_mailbox();
        }
        Some(Entry::Registered(Some(pending))) => pending.forget(),
        Some(Entry::Listener(_) | Entry::Unconnected { .. } | Entry::Registered(None)) | None => {}
    }
    Closing { last_of }
}

/// The number leads to something new: makes its entry, or clears it, and forgets the one that was there. Without memory for the entry it has none.
pub(crate) fn lead(fd: c_int, entry: Option<Entry>) {
    let previous = fd_table::set(fd, entry).ok().flatten();
    retire(fd, previous);
}

/// Forgets an entry that was replaced: the number turned up as something else.
pub(crate) fn retire(fd: c_int, previous: Option<Entry>) {
    part_with(fd, previous, Cause::Stale).finish();
}

/// A number that the kernel has just handed out for something that is not selected: nothing of ours can be there.
pub(crate) fn clear_stale(fd: c_int) {
    if fd >= 0 && fd_table::get(fd).is_some() && !process::is_borrowed() {
        lead(fd, None);
    }
}

/// A descriptor that came from elsewhere: if it is a connection that we hold already, it leads where that does.
pub(crate) fn appeared(fd: c_int) {
    clear_stale(fd);
    let Ok(file) = sys::fstat(fd) else { return };
    let mut same = None;
    fd_table::for_each(0, u32::MAX, |known, entry| {
        if let Entry::Stream(endpoint) = entry
            && endpoint.slot().is_some_and(|_| sys::fstat(known) == Ok(file))
        {
            same = Some(known);
        }
    });
    if let Some(known) = same {
        copied(known, fd);
    }
}

/// close(2).
#[inline]
pub(crate) fn close(fd: c_int) -> c_int {
    // SAFETY: no pointers.
    if fd_table::is_ours(fd) { close_ours_at(fd) } else { unsafe { next::close(fd) } }
}

#[inline(never)]
fn close_ours_at(fd: c_int) -> c_int {
    // What is noted of these is found out again, or done without: no need to ask the kernel whose the table is.
    let noted = matches!(fd_table::get(fd), Some(Entry::Unconnected { .. } | Entry::Registered(_) | Entry::Listener(_)));
    if fd_table::forget_unconnected(fd) || (!noted && process::is_borrowed()) {
        // SAFETY: no pointers.
        return unsafe { next::close(fd) };
    }
    postponed::settle();
    let _gate = process::enter_gate();
    // The program has never opened it, and closes every number that there might be.
    let ours = matches!(fd_table::get(fd), Some(Entry::Mailbox(_)));
    let closing = closing(fd);
    // SAFETY: no pointers.
    let result = unsafe { next::close(fd) };
    closing.finish();
    if ours { errno::int(Err(Errno(libc::EBADF))) } else { result }
}

/// Closes each descriptor of ours from `first` to `last`, before a call that closes them all. Closing them one by one first gives the
/// kernel the same result.
pub(crate) fn close_ours(first: u32, last: u32) {
    if process::is_borrowed() {
        return;
    }
    fd_table::for_each(first, last, |fd, _| {
        close(fd);
    });
}

/// dup(2) or F_DUPFD: by the system call itself, `direct`, if that is all that the next function in line does: there is something to do behind it,
/// and a frame more costs what [`next::Next`] says.
#[inline]
pub(crate) fn duplicate(fd: c_int, direct: impl Fn() -> Result<c_int>, plain: impl Fn() -> c_int) -> c_int {
    let copy = if next::is_dup_libcs() { errno::int(direct()) } else { plain() };
    copied(fd, copy);
    copy
}

/// After dup(2) or F_DUPFD.
#[inline]
fn copied(fd: c_int, copy: c_int) {
    if copy >= 0 && (fd_table::is_ours(fd) || fd_table::is_ours(copy)) {
        ours_copied(fd, copy);
    }
}

#[inline(never)]
fn ours_copied(fd: c_int, copy: c_int) {
    postponed::settle();
    if !lent(fd) {
        let _gate = process::enter_gate();
        duplicated(fd, copy);
    }
}

/// Whether a child that borrows our memory duplicates a descriptor. It does so for the program that it is going to be, which has no ring.
fn lent(fd: c_int) -> bool {
    let borrowed = process::is_borrowed();
    if borrowed && fd_table::stream(fd).is_some_and(|endpoint| images::is_at(fd, endpoint)) {
        recall::leave_rings_now(fd, Reason::DescriptorTravels);
    }
    borrowed
}

/// Makes `copy` lead where `fd` does.
fn duplicated(fd: c_int, copy: c_int) {
    if copy < 0 || fd == copy {
        return;
    }
    match fd_table::get(fd) {
        Some(Entry::Stream(endpoint)) => {
            // No memory for the entry: the duplicate would bypass the ring. The number is taken back; see dup's wrapper.
            if endpoint.attach(copy).is_err() {
                sys::close(copy);
            } else if copy <= 2 {
                become_standard(copy);
            }
        }
        Some(Entry::Epoll(set)) => {
            set.attach();
            lead(copy, Some(Entry::Epoll(set)));
        }
        Some(Entry::Listener(path)) => lead(copy, Some(Entry::Listener(path))),
        Some(Entry::Unconnected { .. }) => {
            lead(fd, Some(Entry::Unconnected { duplicated: true }));
            lead(copy, Some(Entry::Unconnected { duplicated: true }));
        }
        Some(Entry::Registered(pending)) => {
            // Either may be connected; the set knows the first number, which may be closed by then.
            let _ = fd_table::set(fd, Some(Entry::Registered(None)));
            pending.into_iter().for_each(Pending::forget);
            lead(copy, Some(Entry::Registered(None)));
        }
        Some(Entry::Mailbox(_)) | None => clear_stale(copy),
    }
}

/// A connection is standard input or output now: stdio uses it there without passing any entry point of ours. Most likely another program is
/// going to, and neither direction could be taken back any more once the other is gone.
fn become_standard(fd: c_int) {
    recall::leave_rings_now(fd, Reason::Stdio);
}

/// dup2(2) says EBUSY of a number that another thread is just getting: it may be for a mailbox of ours, of which the program knows nothing.
#[inline]
fn patiently(replace: &impl Fn() -> Result<c_int>) -> Result<c_int> {
    match replace() {
        Err(Errno(libc::EBUSY)) => until_free(replace),
        result => result,
    }
}

#[cold]
fn until_free(replace: &impl Fn() -> Result<c_int>) -> Result<c_int> {
    /// More than an open takes by far.
    const TRIES: u32 = 10_000;
    for _ in 0..TRIES {
        sys::yield_now();
        match replace() {
            Err(Errno(libc::EBUSY)) => {}
            result => return result,
        }
    }
    replace()
}

/// dup2 and dup3 with two different numbers: `plain` is the real call, `flags` what dup3 is to be told ([`duplicate`]).
#[inline]
pub(crate) fn replace(fd: c_int, target: c_int, flags: c_int, plain: impl Fn() -> c_int) -> c_int {
    let replace = || if fd != target && next::is_dup_libcs() { sys::dup3(fd, target, flags) } else { errno::from_int(plain()) };
    errno::int(if fd_table::is_ours(fd) || fd_table::is_ours(target) {
        replace_ours(fd, target, || patiently(&replace))
    } else {
        patiently(&replace)
    })
}

#[inline(never)]
fn replace_ours(fd: c_int, target: c_int, replace: impl Fn() -> Result<c_int>) -> Result<c_int> {
    // A call that will fail must not close anything.
    let is_closed = || sys::fcntl(fd, libc::F_GETFD, 0) == Err(Errno(libc::EBADF));
    if fd == target || target < 0 || is_closed() || lent(fd) {
        return replace();
    }
    postponed::settle();
    let _gate = process::enter_gate();
    let closing = closing(target);
    let result = replace();
    closing.finish();
    if result.is_ok() {
        duplicated(fd, target);
    }
    result
}
