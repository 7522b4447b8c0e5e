//! poll and select.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_ulong};

use libc::{fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};

use crate::errno::{self, Errno, Result};
use crate::readiness::deadline::Deadline;
use crate::readiness::poll::Masked;
use crate::readiness::select::{DESCRIPTORS_MAX, Set, Sets};
use crate::readiness::{poll as polling, postponed};
use crate::user_memory::{self, Access};
use crate::{fd_table, next};

/// The calls without a signal mask leave the thread's as it is.
pub(super) const NO_MASK: *const sigset_t = core::ptr::null();

/// Descriptors that one call can name: more than a process can have (fs.nr_open) are refused by the kernel.
pub(super) const ARRAY_MAX: usize = 1 << 20;

/// The program's array, if it can be one and names any descriptor of ours.
///
/// # Safety
/// As poll(2).
#[inline(never)]
unsafe fn naming_ours<'a>(fds: *mut pollfd, count: nfds_t) -> Option<&'a mut [pollfd]> {
    let count = usize::try_from(count).ok().filter(|count| *count <= ARRAY_MAX)?;
    if !fds.is_aligned() || !user_memory::is_accessible(fds.addr(), count * size_of::<pollfd>(), Access::Write) {
        return None;
    }
    // SAFETY: the caller's promise, and there is memory.
    let fds = unsafe { core::slice::from_raw_parts_mut(fds, count) };
    fds.iter().any(|entry| fd_table::is_ours(entry.fd)).then_some(fds)
}

/// The program's time-out; `None` for one that the kernel refuses: no time, or no memory.
///
/// # Safety
/// As ppoll(2).
pub(super) unsafe fn deadline(timeout: *const timespec) -> Option<Deadline> {
    if timeout.is_null() {
        return Some(Deadline::Never);
    }
    let there = user_memory::is_accessible(timeout.addr(), size_of::<timespec>(), Access::Read);
    // SAFETY: the caller's promise, and there is memory.
    there.then(|| unsafe { timeout.read_unaligned() }).and_then(|time| Deadline::from_timespec(Some(&time)))
}

fn poll_with(fds: &mut [pollfd], deadline: Deadline, mask: *const sigset_t) -> Result<c_int> {
    postponed::settle(); // an epoll instance may be among them
    polling::poll(fds, deadline, |fds, left, masked| {
        let mask = if masked == Masked::Yes { mask } else { NO_MASK };
        let left = left.map_or(core::ptr::null(), core::ptr::from_ref);
        // SAFETY: a live array, a live or no time-out, and the program's mask.
        errno::from_int(unsafe { next::ppoll(fds.as_mut_ptr(), fds.len() as nfds_t, left, mask) })
    })
}

/// poll(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller keeps poll(2)'s contract.
    unsafe {
        match fd_table::has_streams().then(|| naming_ours(fds, count)).flatten() {
            Some(named) => poll_ours(named, timeout),
            None => next::poll(fds, count, timeout),
        }
    }
}

/// poll(2), where descriptors of ours are named.
#[inline(never)]
unsafe fn poll_ours(named: &mut [pollfd], timeout: c_int) -> c_int {
    let (fds, count) = (named.as_mut_ptr(), named.len() as nfds_t);
    // SAFETY: the caller keeps poll(2)'s contract.
    unsafe { poll_anyhow(named, Deadline::from_ms(timeout), NO_MASK, || next::poll(fds, count, timeout)) }
}

/// A wait for a set: with its rings, or if none concerns it by the kernel's own call, `plain`. A connection may move into a ring during
/// that: then the kernel's answer is looked at again.
///
/// # Safety
/// As poll(2).
unsafe fn poll_anyhow(named: &mut [pollfd], deadline: Deadline, mask: *const sigset_t, plain: impl FnOnce() -> c_int) -> c_int {
    if polling::concerns_us(named) {
        return errno::int(poll_with(named, deadline, mask));
    }
    let (fds, count) = (named.as_mut_ptr(), named.len() as nfds_t);
    let found = plain();
    // SAFETY: as above. The kernel has written to the array.
    match (found > 0).then(|| unsafe { naming_ours(fds, count) }).flatten().filter(|named| polling::concerns_us(named)) {
        Some(named) => errno::int(poll_with(named, deadline, mask)),
        None => found,
    }
}

/// poll(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller's.
    unsafe { poll(fds, count, timeout) }
}

/// ppoll(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
    // SAFETY: the caller keeps ppoll(2)'s contract.
    unsafe {
        match fd_table::has_streams().then(|| naming_ours(fds, count)).flatten() {
            Some(named) => ppoll_ours(named, timeout, mask),
            None => next::ppoll(fds, count, timeout, mask),
        }
    }
}

/// ppoll(2), where descriptors of ours are named. A bad time is the kernel's to refuse.
#[inline(never)]
unsafe fn ppoll_ours(named: &mut [pollfd], timeout: *const timespec, mask: *const sigset_t) -> c_int {
    let (fds, count) = (named.as_mut_ptr(), named.len() as nfds_t);
    // SAFETY: the caller keeps ppoll(2)'s contract.
    let plain = || unsafe { next::ppoll(fds, count, timeout, mask) };
    // SAFETY: as above.
    match unsafe { deadline(timeout) } {
        // SAFETY: as above.
        Some(deadline) => unsafe { poll_anyhow(named, deadline, mask, plain) },
        None => plain(),
    }
}

/// poll(2), as glibc's headers call it when they know the array's size in bytes; an overrun is libc's to abort on.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, size: size_t) -> c_int {
    check_size(count, size);
    // SAFETY: the caller's.
    unsafe { poll(fds, count, timeout) }
}

/// ppoll(2), likewise.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    size: size_t,
) -> c_int {
    check_size(count, size);
    // SAFETY: the caller's.
    unsafe { ppoll(fds, count, timeout, mask) }
}

/// glibc's `__chk_fail` for an array that is shorter than its count says.
fn check_size(count: nfds_t, size: size_t) {
    if size / size_of::<pollfd>() < usize::try_from(count).unwrap_or(usize::MAX) {
        tssx_core::sys::write_stderr(b"*** buffer overflow detected ***: terminated\n");
        tssx_core::sys::abort();
    }
}

/// The sets of a call, if a ring is concerned.
///
/// # Safety
/// As select(2).
#[inline(never)]
unsafe fn sets(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set) -> Option<Sets> {
    let count = usize::try_from(count).ok().filter(|count| *count <= DESCRIPTORS_MAX)?;
    let bytes = count.div_ceil(c_ulong::BITS as usize) * size_of::<c_ulong>();
    let there = |set: *mut fd_set| set.is_null() || user_memory::is_accessible(set.addr(), bytes, Access::Write);
    if !(there(read) && there(write) && there(except)) {
        return None;
    }
    // SAFETY: the caller's promise, and there is memory.
    let sets = unsafe { Sets { count, read: Set::new(read), write: Set::new(write), except: Set::new(except) } };
    sets.concern_us().then_some(sets)
}

/// Not inlined: its arrays are pages of stack, which a call that is passed on must not touch.
#[inline(never)]
fn select_with(sets: Sets, deadline: Deadline, mask: *const sigset_t) -> Result<c_int> {
    let mut fds = [pollfd { fd: -1, events: 0, revents: 0 }; DESCRIPTORS_MAX];
    let used = sets.to_poll(&mut fds);
    let fds = fds.get_mut(..used).unwrap_or_default();
    while poll_with(fds, deadline, mask)? > 0 && !sets.are_answered_by(fds) {
        // A hang-up that no set asks for ends poll(2), but not select(2).
        let mut others = [pollfd { fd: -1, events: 0, revents: 0 }; DESCRIPTORS_MAX];
        for (other, entry) in others.iter_mut().zip(&*fds).filter(|(_, entry)| entry.revents == 0) {
            *other = *entry;
        }
        let others = others.get_mut(..used).unwrap_or_default();
        if poll_with(others, deadline.at_most(HUNG_UP_MS), mask)? == 0 && deadline.is_over() {
            fds.iter_mut().for_each(|entry| entry.revents = 0);
            break;
        }
    }
    sets.take_answer(fds)
}

/// How often select(2) looks again at streams of which it has nothing to tell but that they are hung up, milliseconds.
const HUNG_UP_MS: c_int = 10;

/// select(2); like the kernel's, it leaves in `timeout` what is left of it.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller keeps select(2)'s contract.
    unsafe {
        match fd_table::has_streams().then(|| sets(count, read, write, except)).flatten() {
            Some(sets) => select_ours(&sets, timeout, |timeout| next::select(count, read, write, except, timeout)),
            None => next::select(count, read, write, except, timeout),
        }
    }
}

/// select(2), where streams of ours are named.
///
/// # Safety
/// As select(2).
#[inline(never)]
unsafe fn select_ours(sets: &Sets, timeout: *mut timeval, plain: impl FnOnce(*mut timeval) -> c_int) -> c_int {
    // SAFETY: the caller keeps select(2)'s contract.
    let timed = timeout.is_null() || user_memory::is_accessible(timeout.addr(), size_of::<timeval>(), Access::Write);
    if !timed || !timeout.is_aligned() {
        return plain(timeout);
    }
    // SAFETY: null, or the caller's.
    let time = unsafe { timeout.as_mut() };
    let spec = time.as_ref().map(|time| {
        let us = time.tv_usec;
        // Linux takes more than a million microseconds and carries them over (fs/select.c, kern_select).
        timespec { tv_sec: time.tv_sec.saturating_add(us / 1_000_000), tv_nsec: us % 1_000_000 * 1000 }
    });
    let Some(deadline) = Deadline::from_timespec(spec.as_ref()) else {
        return errno::int(Err(Errno(libc::EINVAL)));
    };
    let result = select_with(*sets, deadline, NO_MASK);
    if let (Some(time), Some(left)) = (time, deadline.left()) {
        *time = timeval { tv_sec: left.tv_sec, tv_usec: left.tv_nsec / 1000 };
    }
    errno::int(result)
}

/// select(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller's.
    unsafe { select(count, read, write, except, timeout) }
}

/// pselect(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pselect(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    if !fd_table::has_streams() {
        // SAFETY: the caller keeps pselect(2)'s contract.
        return unsafe { next::pselect(count, read, write, except, timeout, mask) };
    }
    // SAFETY: as above.
    let (sets, time) = unsafe { (sets(count, read, write, except), deadline(timeout)) };
    match (sets, time) {
        (Some(sets), Some(deadline)) => errno::int(select_with(sets, deadline, mask)),
        // SAFETY: as above; the kernel refuses a bad time.
        _ => unsafe { next::pselect(count, read, write, except, timeout, mask) },
    }
}

same_signature! {
    poll: unsafe extern "C" fn(*mut pollfd, nfds_t, c_int) -> c_int;
    ppoll: unsafe extern "C" fn(*mut pollfd, nfds_t, *const timespec, *const sigset_t) -> c_int;
    select: unsafe extern "C" fn(c_int, *mut fd_set, *mut fd_set, *mut fd_set, *mut timeval) -> c_int;
    pselect: unsafe extern "C" fn(c_int, *mut fd_set, *mut fd_set, *mut fd_set, *const timespec, *const sigset_t) -> c_int;
}
