//! Operations that wait for readiness: poll, select, epoll.

#![allow(unsafe_code, reason = "makes the calls under test")]

use std::mem::zeroed;
use std::ptr::{null, null_mut};

use crate::slots;
use crate::sys::{narrow, told};
use crate::words::{Change, Events, Handle, Millis, Wait, Watches, Word};

fn timespec(time: Millis) -> Option<libc::timespec> {
    let time = u32::try_from(time.0).ok()?;
    Some(libc::timespec { tv_sec: i64::from(time / 1000), tv_nsec: i64::from(time % 1000) * 1_000_000 })
}

/// poll, ppoll, select or pselect.
pub(crate) fn wait(by: Wait, set: &Watches, time: Millis) -> String {
    match by {
        Wait::Poll | Wait::Ppoll => poll(by, set, time),
        Wait::Select | Wait::Pselect => select(by, set, time),
    }
}

fn poll(by: Wait, set: &Watches, time: Millis) -> String {
    let entry = |(handle, events): &(Handle, Events)| libc::pollfd { fd: slots::fd(*handle), events: events.0 as i16, revents: 0 };
    let mut entries: Vec<_> = set.0.iter().map(entry).collect();
    let count = entries.len() as libc::nfds_t;
    let limit = timespec(time);
    // SAFETY: live entries, a live or no time-out, no signal mask.
    let ready = narrow(unsafe {
        if by == Wait::Poll {
            libc::poll(entries.as_mut_ptr(), count, time.0)
        } else {
            libc::ppoll(entries.as_mut_ptr(), count, limit.as_ref().map_or(null(), |limit| &raw const *limit), null())
        }
    });
    let Ok(ready) = ready else { return told(ready) };
    let answers = set.0.iter().zip(&entries).filter(|(_, entry)| entry.revents != 0);
    let answers: Vec<_> = answers
        .map(|((handle, _), entry)| format!(" {}:{}", handle.text(), Events(u32::from(entry.revents.cast_unsigned())).text()))
        .collect();
    format!("{ready}{}", answers.concat())
}

fn select(by: Wait, set: &Watches, time: Millis) -> String {
    // SAFETY: fd_set is plain data for which zero is the empty set; players have few descriptors, all below FD_SETSIZE.
    let mut sets: [libc::fd_set; 3] = unsafe { zeroed() };
    let mut highest = -1;
    let open = || set.0.iter().map(|(handle, events)| (*handle, slots::fd(*handle), *events)).filter(|(_, fd, _)| *fd >= 0);
    for (_, fd, events) in open() {
        highest = highest.max(fd);
        let wanted = [libc::EPOLLIN, libc::EPOLLOUT, libc::EPOLLPRI];
        for (set, _) in sets.iter_mut().zip(wanted).filter(|(_, bit)| events.0 & bit.cast_unsigned() != 0) {
            // SAFETY: as above.
            unsafe { libc::FD_SET(fd, &raw mut *set) };
        }
    }
    let [read, write, except] = &mut sets;
    let limit = timespec(time);
    let mut short = limit.map(|limit| libc::timeval { tv_sec: limit.tv_sec, tv_usec: limit.tv_nsec / 1000 });
    // SAFETY: live sets, a live or no time-out, no signal mask.
    let ready = narrow(unsafe {
        if by == Wait::Select {
            libc::select(highest + 1, read, write, except, short.as_mut().map_or(null_mut(), |limit| &raw mut *limit))
        } else {
            let limit = limit.as_ref().map_or(null(), |limit| &raw const *limit);
            libc::pselect(highest + 1, read, write, except, limit, null())
        }
    });
    let Ok(ready) = ready else { return told(ready) };
    let mut text = ready.to_string();
    for (handle, fd, _) in open() {
        for (set, name) in sets.iter().zip(["r", "w", "x"]) {
            // SAFETY: as above.
            if unsafe { libc::FD_ISSET(fd, &raw const *set) } {
                text += &format!(" {}:{name}", handle.text());
            }
        }
    }
    text
}

/// epoll_ctl.
pub(crate) fn change(what: Change, on: Handle, events: Events) -> String {
    let mut event = libc::epoll_event { events: events.0, u64: on.index() as u64 };
    let operation = match what {
        Change::Add => libc::EPOLL_CTL_ADD,
        Change::Mod => libc::EPOLL_CTL_MOD,
        Change::Del => libc::EPOLL_CTL_DEL,
    };
    // SAFETY: one live event.
    told(narrow(unsafe { libc::epoll_ctl(slots::fd(Handle::Epoll), operation, slots::fd(on), &raw mut event) }))
}

/// epoll_wait, with room for all events; their order is nobody's business.
pub(crate) fn epoll_wait(time: Millis) -> String {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    // SAFETY: live events.
    let ready = narrow(unsafe { libc::epoll_wait(slots::fd(Handle::Epoll), events.as_mut_ptr(), 16, time.0) });
    let Ok(ready) = ready else { return told(ready) };
    let name = |data: u64| Handle::ALL.get(data as usize).map_or_else(|| format!("data {data}"), Word::text);
    let mut all: Vec<_> =
        events.iter().take(ready).map(|event| format!(" {}:{}", name(event.u64), Events(event.events).text())).collect();
    all.sort();
    format!("{ready}{}", all.concat())
}
