//! poll, select and epoll.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_ulong};
use core::sync::atomic::Ordering::SeqCst;

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};

use crate::errno::{self, Errno, Result};
use crate::process::descriptors;
use crate::readiness::deadline::Deadline;
use crate::readiness::interest::EpollSet;
use crate::readiness::poll::Masked;
use crate::readiness::select::{DESCRIPTORS_MAX, Set, Sets};
use crate::readiness::{control, epoll, poll as polling};
use crate::user_memory::{self, Access};
use crate::{fd_table, init, next};

/// The calls without a signal mask leave the thread's as it is.
const NO_MASK: *const sigset_t = core::ptr::null();

/// Descriptors that one call can name: more than a process can have (fs.nr_open) are refused by the kernel.
const ARRAY_MAX: usize = 1 << 20;

/// The program's array, if it can be one and a ring is concerned.
///
/// # Safety
/// As poll(2).
unsafe fn array<'a>(fds: *mut pollfd, count: nfds_t) -> Option<&'a mut [pollfd]> {
    init::active()?;
    let count = usize::try_from(count).ok().filter(|count| *count <= ARRAY_MAX)?;
    if !fds.is_aligned() || !user_memory::is_accessible(fds.addr(), count * size_of::<pollfd>(), Access::Write) {
        return None;
    }
    // SAFETY: the caller's promise, and there is memory.
    let fds = unsafe { core::slice::from_raw_parts_mut(fds, count) };
    polling::concerns_us(fds).then_some(fds)
}

/// The program's time-out; `None` for one that the kernel refuses: no time, or no memory.
///
/// # Safety
/// As ppoll(2).
unsafe fn deadline(timeout: *const timespec) -> Option<Deadline> {
    if timeout.is_null() {
        return Some(Deadline::Never);
    }
    let there = user_memory::is_accessible(timeout.addr(), size_of::<timespec>(), Access::Read);
    // SAFETY: the caller's promise, and there is memory.
    there.then(|| unsafe { timeout.read_unaligned() }).and_then(|time| Deadline::from_timespec(Some(&time)))
}

fn poll_with(fds: &mut [pollfd], deadline: Deadline, mask: *const sigset_t) -> Result<c_int> {
    polling::poll(fds, deadline, |fds, left, masked| {
        let mask = if masked == Masked::Yes { mask } else { NO_MASK };
        let left = left.map_or(core::ptr::null(), core::ptr::from_ref);
        // SAFETY: a live array, a live or no time-out, and the program's mask.
        errno::from_int(unsafe { next::ppoll(fds.as_mut_ptr(), fds.len() as nfds_t, left, mask) })
    })
}

/// poll(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller keeps poll(2)'s contract.
    let plain = || unsafe { next::poll(fds, count, timeout) };
    if init::active().is_none() {
        return plain();
    }
    // SAFETY: as above.
    unsafe { poll_anyhow(fds, count, Deadline::from_ms(timeout), NO_MASK, plain) }
}

/// A wait for a set: with its rings, or if none concerns it by the kernel's own call, `plain`. A connection may move into a ring during
/// that: then the kernel's answer is looked at again.
///
/// # Safety
/// As poll(2).
unsafe fn poll_anyhow(
    fds: *mut pollfd,
    count: nfds_t,
    deadline: Deadline,
    mask: *const sigset_t,
    plain: impl FnOnce() -> c_int,
) -> c_int {
    // SAFETY: the caller's.
    if let Some(fds) = unsafe { array(fds, count) } {
        return errno::int(poll_with(fds, deadline, mask));
    }
    let found = plain();
    // SAFETY: as above.
    match (found > 0).then(|| unsafe { array(fds, count) }).flatten() {
        Some(fds) => errno::int(poll_with(fds, deadline, mask)),
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
pub(crate) unsafe extern "C" fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
    // SAFETY: the caller keeps ppoll(2)'s contract.
    let plain = || unsafe { next::ppoll(fds, count, timeout, mask) };
    // SAFETY: as above.
    match init::active().and_then(|_| unsafe { deadline(timeout) }) {
        // SAFETY: as above.
        Some(deadline) => unsafe { poll_anyhow(fds, count, deadline, mask, plain) },
        None => plain(), // none of ours, or a bad time, which the kernel refuses
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
unsafe fn sets(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set) -> Option<Sets> {
    init::active()?;
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
pub(crate) unsafe extern "C" fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller keeps select(2)'s contract.
    let timed = timeout.is_null() || user_memory::is_accessible(timeout.addr(), size_of::<timeval>(), Access::Write);
    // SAFETY: as above.
    let sets = unsafe { sets(count, read, write, except) };
    let Some(sets) = sets.filter(|_| timed && timeout.is_aligned()) else {
        // SAFETY: as above.
        return unsafe { next::select(count, read, write, except, timeout) };
    };
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
    let result = select_with(sets, deadline, NO_MASK);
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
    // SAFETY: the caller keeps pselect(2)'s contract.
    let (sets, time) = unsafe { (sets(count, read, write, except), deadline(timeout)) };
    match (sets, time) {
        (Some(sets), Some(deadline)) => errno::int(select_with(sets, deadline, mask)),
        // SAFETY: as above; the kernel refuses a bad time.
        _ => unsafe { next::pselect(count, read, write, except, timeout, mask) },
    }
}

/// A fresh number carries nothing of ours; notes about the set begin now.
fn created(epoll_fd: c_int) -> c_int {
    let kept = errno::get();
    descriptors::clear_stale(epoll_fd);
    if epoll_fd >= 0 {
        control::created(epoll_fd);
    }
    errno::set(kept);
    epoll_fd
}

/// epoll_create(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_create(size: c_int) -> c_int {
    // SAFETY: no pointers.
    created(unsafe { next::epoll_create(size) })
}

/// epoll_create1(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: no pointers.
    created(unsafe { next::epoll_create1(flags) })
}

/// epoll_ctl(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_ctl(epoll_fd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    let there = || user_memory::is_accessible(event.addr(), size_of::<epoll_event>(), Access::Read);
    let noted = if operation != libc::EPOLL_CTL_DEL && fd_table::stream(fd).is_some() && there() {
        // SAFETY: there is memory; `epoll_event` is packed, so any address is aligned.
        control::before_change(epoll_fd, fd, unsafe { event.read_unaligned() })
    } else {
        None
    };
    // SAFETY: the caller keeps epoll_ctl(2)'s contract.
    let result = unsafe { next::epoll_ctl(epoll_fd, operation, fd, event) };
    if result < 0 {
        let kept = errno::get();
        control::refused(noted);
        errno::set(kept);
        return result;
    }
    if fd_table::get(fd).is_some() || init::active().is_some() {
        // The kernel has read it, but for EPOLL_CTL_DEL.
        let event = event.cast_const();
        // SAFETY: as above; `epoll_event` is packed, so any address is aligned.
        let event = (operation != libc::EPOLL_CTL_DEL).then(|| unsafe { event.read_unaligned() });
        control::changed(epoll_fd, operation, fd, event, noted);
    }
    result
}

/// The set and the program's array, if a ring is concerned. The array is empty where there is no memory for it: the kernel finds out
/// when there is an event to write.
///
/// # Safety
/// As epoll_wait(2).
unsafe fn wait_on<'a>(
    epoll_fd: c_int,
    events: *mut epoll_event,
    count: c_int,
) -> Option<(&'static EpollSet, &'a mut [epoll_event])> {
    let set = fd_table::epoll(epoll_fd)?;
    let count = usize::try_from(count).ok().filter(|count| *count > 0)?;
    let (room, bytes) = (events.addr(), count.saturating_mul(size_of::<epoll_event>()));
    if count > ARRAY_MAX || user_memory::is_beyond(room.saturating_add(bytes)) || !set.is_concerned() {
        return None;
    }
    if !user_memory::is_accessible(room, bytes, Access::Write) {
        return Some((set, &mut []));
    }
    // SAFETY: the caller's promise, and there is memory; `epoll_event` is packed, so any address is aligned.
    Some((set, unsafe { core::slice::from_raw_parts_mut(events, count) }))
}

/// The real wait, epoll_pwait, with what is left of the time rounded up to milliseconds.
fn wait_with(
    epoll_fd: c_int,
    set: &'static EpollSet,
    events: &mut [epoll_event],
    deadline: Deadline,
    mask: *const sigset_t,
) -> c_int {
    if events.is_empty() {
        let mut local = [epoll_event { events: 0, u64: 0 }; 1];
        let found = wait_with(epoll_fd, set, &mut local, deadline, mask);
        return if found > 0 { errno::int(Err(Errno(libc::EFAULT))) } else { found };
    }
    let result = epoll::wait(set, events, deadline, |events, left, masked| {
        let mask = if masked == Masked::Yes { mask } else { NO_MASK };
        let count = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
        let ms = left.map_or(-1, |left| {
            let ms = left.tv_sec.saturating_mul(1000).saturating_add((left.tv_nsec + 999_999) / 1_000_000);
            c_int::try_from(ms).unwrap_or(c_int::MAX)
        });
        // SAFETY: a live array and the program's mask.
        let found = unsafe { next::epoll_pwait(epoll_fd, events.as_mut_ptr(), count, ms, mask) };
        errno::from_int(found).map(|found| usize::try_from(found).unwrap_or(0))
    });
    errno::int(result.map(|count| c_int::try_from(count).unwrap_or(c_int::MAX)))
}

/// epoll_wait(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_wait(epoll_fd: c_int, events: *mut epoll_event, count: c_int, timeout: c_int) -> c_int {
    // SAFETY: the caller's.
    unsafe { epoll_pwait(epoll_fd, events, count, timeout, NO_MASK) }
}

/// epoll_pwait(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_pwait(
    epoll_fd: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller keeps epoll_pwait(2)'s contract.
    let plain = || unsafe { next::epoll_pwait(epoll_fd, events, count, timeout, mask) };
    // SAFETY: as above.
    unsafe { wait_anyhow(epoll_fd, events, count, Deadline::from_ms(timeout), mask, plain) }
}

/// A wait for a set: with its rings, or if none concerns it by the kernel's own call, `plain`. A thread that adds a stream notes it and
/// then looks who waits plainly; we say that we do and then look for streams.
///
/// # Safety
/// As epoll_wait(2).
unsafe fn wait_anyhow(
    epoll_fd: c_int,
    events: *mut epoll_event,
    count: c_int,
    deadline: Deadline,
    mask: *const sigset_t,
    plain: impl FnOnce() -> c_int,
) -> c_int {
    // SAFETY: the caller's.
    if let Some((set, events)) = unsafe { wait_on(epoll_fd, events, count) } {
        return wait_with(epoll_fd, set, events, deadline, mask);
    }
    let set = fd_table::epoll(epoll_fd);
    let count_waits = |by: u32| set.map(|set| set.plain_sleepers.fetch_add(by, SeqCst));
    count_waits(1);
    // SAFETY: as above.
    let late = unsafe { wait_on(epoll_fd, events, count) };
    let found = if late.is_none() { plain() } else { 0 };
    count_waits(1_u32.wrapping_neg());
    match late {
        Some((set, events)) => wait_with(epoll_fd, set, events, deadline, mask),
        // SAFETY: as above.
        None => unsafe { review(epoll_fd, events, count, found, deadline, mask) },
    }
}

/// After the kernel's own wait: another thread may have added a stream meanwhile whose bytes are in a ring.
///
/// # Safety
/// As epoll_wait(2).
unsafe fn review(
    epoll_fd: c_int,
    events: *mut epoll_event,
    count: c_int,
    found: c_int,
    deadline: Deadline,
    mask: *const sigset_t,
) -> c_int {
    let Ok(written @ 1..) = usize::try_from(found) else { return found };
    // SAFETY: the caller's.
    let Some((set, events)) = (unsafe { wait_on(epoll_fd, events, count) }) else { return found };
    match epoll::review(set, events, written) {
        0 => wait_with(epoll_fd, set, events, deadline, mask),
        left => c_int::try_from(left).unwrap_or(found),
    }
}

/// epoll_pwait2(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn epoll_pwait2(
    epoll_fd: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller keeps epoll_pwait2(2)'s contract.
    let plain = || unsafe { next::epoll_pwait2(epoll_fd, events, count, timeout, mask) };
    // SAFETY: as above.
    match unsafe { deadline(timeout) } {
        // SAFETY: as above.
        Some(deadline) => unsafe { wait_anyhow(epoll_fd, events, count, deadline, mask, plain) },
        None => plain(), // a bad time, which the kernel refuses
    }
}

same_signature! {
    poll: unsafe extern "C" fn(*mut pollfd, nfds_t, c_int) -> c_int;
    ppoll: unsafe extern "C" fn(*mut pollfd, nfds_t, *const timespec, *const sigset_t) -> c_int;
    select: unsafe extern "C" fn(c_int, *mut fd_set, *mut fd_set, *mut fd_set, *mut timeval) -> c_int;
    pselect: unsafe extern "C" fn(c_int, *mut fd_set, *mut fd_set, *mut fd_set, *const timespec, *const sigset_t) -> c_int;
    epoll_create: unsafe extern "C" fn(c_int) -> c_int;
    epoll_create1: unsafe extern "C" fn(c_int) -> c_int;
    epoll_ctl: unsafe extern "C" fn(c_int, c_int, c_int, *mut epoll_event) -> c_int;
    epoll_wait: unsafe extern "C" fn(c_int, *mut epoll_event, c_int, c_int) -> c_int;
    epoll_pwait: unsafe extern "C" fn(c_int, *mut epoll_event, c_int, c_int, *const sigset_t) -> c_int;
}
