//! The calls that wait for readiness, with all their arguments: several descriptors, signal masks, the time that is left,
//! and what an epoll set carries for the program.
#![allow(unsafe_code, reason = "calls the C functions under test directly; every pointer comes from a live slice or local")]

use std::mem::zeroed;
use std::time::Duration;

use libc::c_int;

use crate::sys::{Answer, answer, milliseconds, narrow};

/// The names of epoll_ctl(2), short.
pub(crate) mod epoll {
    pub(crate) const ADD: i32 = libc::EPOLL_CTL_ADD;
    pub(crate) const MOD: i32 = libc::EPOLL_CTL_MOD;
    pub(crate) const DEL: i32 = libc::EPOLL_CTL_DEL;
    pub(crate) const IN: i32 = libc::EPOLLIN;
    pub(crate) const OUT: i32 = libc::EPOLLOUT;
    pub(crate) const ET: i32 = libc::EPOLLET;
    pub(crate) const RDHUP: i32 = libc::EPOLLRDHUP;
}

/// `poll` over several descriptors: its answer and each one's events.
pub(crate) fn poll_all(entries: &[(i32, i16)], timeout: Duration) -> (Answer, Vec<i16>) {
    let mut all: Vec<_> = entries.iter().map(|(fd, events)| libc::pollfd { fd: *fd, events: *events, revents: -1 }).collect();
    // SAFETY: the pointer and count are those of a live vector.
    let ready = narrow(unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, milliseconds(timeout)) });
    (ready, all.iter().map(|entry| entry.revents).collect())
}

/// A set of no signals, or of all.
pub(crate) fn mask(all: bool) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data that either call initialises.
    unsafe {
        let mut set = zeroed();
        if all {
            libc::sigfillset(&raw mut set)
        } else {
            libc::sigemptyset(&raw mut set)
        };
        set
    }
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() }
}

fn pointer<T>(value: Option<&T>) -> *const T {
    value.map_or(std::ptr::null(), |value| &raw const *value)
}

/// `ppoll` of one descriptor.
pub(crate) fn ppoll(fd: i32, events: i16, timeout: Option<Duration>, mask: Option<&libc::sigset_t>) -> (Answer, i16) {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let time = timeout.map(timespec);
    // SAFETY: one live entry; the time and mask are null or live.
    let ready = unsafe { libc::ppoll(&raw mut entry, 1, pointer(time.as_ref()), pointer(mask)) };
    (narrow(ready), entry.revents)
}

/// `ppoll` with a time that is no time: EINVAL.
pub(crate) fn ppoll_with(fd: i32, seconds: i64, nanoseconds: i64) -> Answer {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let time = libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    // SAFETY: one live entry and a live time.
    narrow(unsafe { libc::ppoll(&raw mut entry, 1, &raw const time, std::ptr::null()) })
}

/// `select` with a time that is no time: EINVAL.
pub(crate) fn select_with(fd: i32, seconds: i64, microseconds: i64) -> Answer {
    // SAFETY: fd_set is plain data for which zero is the empty set; the time is live.
    unsafe {
        let mut set: libc::fd_set = zeroed();
        libc::FD_SET(fd, &raw mut set);
        let mut time = libc::timeval { tv_sec: seconds, tv_usec: microseconds };
        let none = std::ptr::null_mut();
        narrow(libc::select(fd + 1, &raw mut set, none, none, &raw mut time))
    }
}

/// What a `select` said.
#[derive(Debug)]
#[allow(dead_code, reason = "the fields are read by Debug, which writes the transcript")]
pub(crate) struct Selected {
    /// What the call returned.
    pub(crate) ready: Answer,
    readable: Vec<usize>,
    writable: Vec<usize>,
    exceptional: Vec<usize>,
}

/// `select` or `pselect` over three lists; the lists in the answer are positions in them. Also the time that `select` left.
pub(crate) fn select_all(lists: [&[i32]; 3], timeout: Option<Duration>, mask: Option<&libc::sigset_t>) -> (Selected, Duration) {
    // SAFETY: fd_set is plain data for which zero is the empty set; the cases' descriptors are below FD_SETSIZE.
    unsafe {
        let mut sets: [libc::fd_set; 3] = zeroed();
        for (set, list) in sets.iter_mut().zip(lists) {
            list.iter().for_each(|fd| libc::FD_SET(*fd, &raw mut *set));
        }
        let most = lists.concat().into_iter().max().map_or(0, |fd| fd + 1);
        let [readable, writable, exceptional] = sets.each_mut().map(|set| &raw mut *set);
        let mut left = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let ready = if mask.is_some() {
            let time = timeout.map(timespec);
            libc::pselect(most, readable, writable, exceptional, pointer(time.as_ref()), pointer(mask))
        } else {
            let time = timeout.unwrap_or_default();
            left = libc::timeval { tv_sec: time.as_secs().cast_signed(), tv_usec: time.subsec_micros().into() };
            let at = if timeout.is_some() { &raw mut left } else { std::ptr::null_mut() };
            libc::select(most, readable, writable, exceptional, at)
        };
        let ready = narrow(ready);
        let set_in = |index: usize| {
            let all = lists[index].iter().enumerate();
            all.filter(|(_, fd)| libc::FD_ISSET(**fd, &raw const sets[index])).map(|(position, _)| position).collect()
        };
        let selected = Selected { ready, readable: set_in(0), writable: set_in(1), exceptional: set_in(2) };
        (selected, Duration::new(left.tv_sec.cast_unsigned(), left.tv_usec as u32 * 1000))
    }
}

/// `epoll_ctl` with data of the program's own.
pub(crate) fn control(epoll: i32, operation: c_int, fd: i32, events: c_int, data: u64) -> Answer {
    let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: data };
    // SAFETY: one live event.
    narrow(unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut event) })
}

/// How to wait in an epoll set.
#[derive(Clone, Copy)]
pub(crate) enum By<'a> {
    /// `epoll_wait`.
    Wait,
    /// `epoll_pwait`.
    Pwait(Option<&'a libc::sigset_t>),
    /// `epoll_pwait2`.
    Pwait2(Option<&'a libc::sigset_t>),
}

/// The ready (data, events), sorted by data.
pub(crate) fn events(by: By<'_>, epoll: i32, most: usize, timeout: Duration) -> Result<Vec<(u64, u32)>, &'static str> {
    let mut all = vec![libc::epoll_event { events: 0, u64: 0 }; most.max(1)];
    let (at, count, time) = (all.as_mut_ptr(), most as c_int, timespec(timeout));
    // SAFETY: the pointer and count are those of a live vector; times and masks are null or live.
    let ready = narrow(unsafe {
        match by {
            By::Wait => libc::epoll_wait(epoll, at, count, milliseconds(timeout)),
            By::Pwait(mask) => libc::epoll_pwait(epoll, at, count, milliseconds(timeout), pointer(mask)),
            By::Pwait2(mask) => pwait2(epoll, at, count, &raw const time, pointer(mask)),
        }
    })?;
    let mut all: Vec<_> = all.iter().take(ready).map(|event| (event.u64, event.events)).collect();
    all.sort_unstable();
    Ok(all)
}

unsafe extern "C" {
    // sys/epoll.h; the libc crate does not declare it for every target.
    #[link_name = "epoll_pwait2"]
    fn pwait2(
        epoll: c_int,
        at: *mut libc::epoll_event,
        count: c_int,
        time: *const libc::timespec,
        mask: *const libc::sigset_t,
    ) -> c_int;
}

/// `epoll_wait` for no event at all, or fewer: EINVAL.
pub(crate) fn wait_for(epoll: i32, most: c_int) -> Answer {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel refuses the count before it looks at the array.
    narrow(unsafe { libc::epoll_wait(epoll, &raw mut event, most, 0) })
}

/// An eventfd that holds `count`.
pub(crate) fn eventfd(count: u32) -> i32 {
    // SAFETY: takes no pointer.
    unsafe { libc::eventfd(count, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }
}

/// A timerfd that expires every `period`.
pub(crate) fn timerfd(period: Duration) -> i32 {
    let time = libc::itimerspec { it_interval: timespec(period), it_value: timespec(period) };
    // SAFETY: a live itimerspec; the old one is not asked for.
    unsafe {
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK);
        assert_eq!(libc::timerfd_settime(fd, 0, &raw const time, std::ptr::null_mut()), 0);
        fd
    }
}

/// `ioctl` with an int: its answer and the int afterwards.
pub(crate) fn ioctl(fd: i32, request: libc::c_ulong, value: c_int) -> (Answer, c_int) {
    let mut value = value;
    // SAFETY: the cases only use requests that read or write one int.
    let returned = unsafe { libc::ioctl(fd, request, &raw mut value) };
    (answer(returned as isize), value)
}
