//! epoll.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::SeqCst;

use libc::{epoll_event, sigset_t, timespec};

use super::readiness::{ARRAY_MAX, NO_MASK, deadline};
use crate::errno::{self, Errno};
use crate::process::descriptors;
use crate::readiness::deadline::Deadline;
use crate::readiness::interest::EpollSet;
use crate::readiness::poll::Masked;
use crate::readiness::postponed::{self, Revived};
use crate::readiness::{control, epoll};
use crate::user_memory::{self, Access};
use crate::{fd_table, next};

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
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn epoll_ctl(epoll_fd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // Of what has no entry nothing is noted.
    let plain = !fd_table::is_ours(fd) && !postponed::any();
    // SAFETY: the caller keeps epoll_ctl(2)'s contract.
    unsafe { if plain { next::epoll_ctl(epoll_fd, operation, fd, event) } else { control(epoll_fd, operation, fd, event) } }
}

/// epoll_ctl on what we know something about, or while a removal is postponed.
///
/// # Safety
/// As epoll_ctl(2).
#[inline(never)]
unsafe fn control(epoll_fd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    let there = || user_memory::is_accessible(event.addr(), size_of::<epoll_event>(), Access::Read);
    if operation == libc::EPOLL_CTL_DEL && postponed::postpone(epoll_fd, fd) {
        control::changed(epoll_fd, operation, fd, None, None);
        return 0;
    }
    let revived = if operation == libc::EPOLL_CTL_ADD && postponed::any() && there() {
        // SAFETY: there is memory; `epoll_event` is packed, so any address is aligned.
        postponed::revive(epoll_fd, fd, unsafe { event.read_unaligned() })
    } else {
        postponed::settle();
        Revived::No
    };
    let noted = if operation != libc::EPOLL_CTL_DEL && fd_table::stream(fd).is_some() && there() {
        // SAFETY: there is memory; `epoll_event` is packed, so any address is aligned.
        control::before_change(epoll_fd, fd, unsafe { event.read_unaligned() })
    } else {
        None
    };
    // SAFETY: the caller keeps epoll_ctl(2)'s contract.
    let tell = |operation: c_int| unsafe { next::epoll_ctl(epoll_fd, operation, fd, event) };
    let result = match revived {
        Revived::Same => 0,
        // If the entry went with a descriptor that was closed unseen, it is made anew.
        Revived::Changed => match tell(libc::EPOLL_CTL_MOD) {
            0 => 0,
            _ => tell(operation),
        },
        Revived::No => tell(operation),
    };
    if result < 0 {
        let kept = errno::get();
        control::refused(noted);
        errno::set(kept);
        return result;
    }
    if fd_table::is_ours(fd) {
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
        postponed::settle();
        // SAFETY: a live array and the program's mask.
        let found = unsafe { next::epoll_pwait(epoll_fd, events.as_mut_ptr(), count, ms, mask) };
        errno::from_int(found).map(|found| usize::try_from(found).unwrap_or(0))
    });
    errno::int(result.map(|count| c_int::try_from(count).unwrap_or(c_int::MAX)))
}

/// epoll_wait(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn epoll_wait(epoll_fd: c_int, events: *mut epoll_event, count: c_int, timeout: c_int) -> c_int {
    let Some(set) = fd_table::epoll(epoll_fd) else {
        // SAFETY: the caller keeps epoll_wait(2)'s contract.
        return unsafe { next::epoll_wait(epoll_fd, events, count, timeout) };
    };
    // No ring concerns the set, and no other thread can change that meanwhile.
    if !set.is_concerned() && next::is_single_threaded() {
        // SAFETY: as above.
        return unsafe { next::epoll_wait(epoll_fd, events, count, timeout) };
    }
    // SAFETY: as above.
    unsafe { wait_watched(set, epoll_fd, events, count, timeout) }
}

/// epoll_wait(2), where a ring concerns the set or may come to do so.
///
/// # Safety
/// As epoll_wait(2).
#[inline(never)]
unsafe fn wait_watched(set: &'static EpollSet, epoll_fd: c_int, events: *mut epoll_event, count: c_int, timeout: c_int) -> c_int {
    // One that does meanwhile is found afterwards, because nobody waits.
    if !set.is_concerned() && timeout == 0 {
        // SAFETY: the caller's.
        let found = unsafe { next::epoll_wait(epoll_fd, events, count, timeout) };
        if found <= 0 || !set.is_concerned() {
            return found;
        }
        // SAFETY: as above.
        return unsafe { review(epoll_fd, events, count, found, Deadline::Now, NO_MASK) };
    }
    // SAFETY: as above.
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
    epoll_create: unsafe extern "C" fn(c_int) -> c_int;
    epoll_create1: unsafe extern "C" fn(c_int) -> c_int;
    epoll_ctl: unsafe extern "C" fn(c_int, c_int, c_int, *mut epoll_event) -> c_int;
    epoll_wait: unsafe extern "C" fn(c_int, *mut epoll_event, c_int, c_int) -> c_int;
    epoll_pwait: unsafe extern "C" fn(c_int, *mut epoll_event, c_int, c_int, *const sigset_t) -> c_int;
}
