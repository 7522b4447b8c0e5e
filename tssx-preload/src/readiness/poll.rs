//! poll and ppoll.

use core::ffi::c_int;

use libc::{pollfd, timespec};
use tssx_core::sys;

use super::deadline::Deadline;
use super::nested;
use super::state::{self, READABLE};
use crate::endpoint::{Way, lock_stream};
use crate::errno::Result;
use crate::fd_table::{self, Entry};
use crate::socket::wait::SpinBudget;

/// How long spinning pays for poll and select, learned for the process as a whole: a set has no identity between calls.
static SPIN: SpinBudget = SpinBudget::new();

/// Whether the real wait gets the program's signal mask.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Masked {
    Yes,
    No,
}

/// Whether any descriptor of the set has a ring.
pub(crate) fn concerns_us(fds: &[pollfd]) -> bool {
    fds.iter().any(|entry| look_at(entry.fd).is_some())
}

/// What the rings say of one descriptor; `None` if none concerns it.
pub(super) fn look_at(fd: c_int) -> Option<i16> {
    match fd_table::get(fd)? {
        Entry::Stream(_) => state::look(fd),
        Entry::Epoll(set) => set.is_concerned().then(|| nested::look(set)),
        _ => None,
    }
}

/// Waits for the set. `kernel` is the real ppoll on the same array, with the program's signal mask where the call may wait: where
/// something is ready, the kernel looks at that first and lets no pending signal through.
pub(crate) fn poll(
    fds: &mut [pollfd],
    deadline: Deadline,
    mut kernel: impl FnMut(&mut [pollfd], Option<&timespec>, Masked) -> Result<c_int>,
) -> Result<c_int> {
    loop {
        let ready = look(fds);
        if ready > 0 && fds.iter().all(|entry| entry.fd < 0 || state::rings_suffice(entry.fd)) {
            return Ok(ready);
        }
        if ready > 0 || deadline == Deadline::Now {
            // What the rings said may be gone by now (another thread took it): then this call goes on waiting.
            let masked = if ready > 0 { Masked::No } else { Masked::Yes };
            match ask(fds, Deadline::Now, masked, &mut kernel)? {
                0 if deadline != Deadline::Now => {}
                count => return Ok(count),
            }
        }
        if SPIN.spin(|| look(fds) > 0) {
            continue;
        }
        let waiting = arm(fds);
        let asked = if waiting.ready { Ok(1) } else { ask(fds, deadline, Masked::Yes, &mut kernel) };
        disarm(fds, waiting.armed);
        match asked {
            // Woken for nothing (a doorbell that was too late): wait for the rest of the time.
            Ok(0) if deadline.left().is_none_or(|left| left.tv_sec > 0 || left.tv_nsec > 0) => sys::yield_now(),
            Ok(_) if waiting.ready => {}
            asked => return asked,
        }
    }
}

/// Fills in what the rings say; the count of ready entries.
fn look(fds: &mut [pollfd]) -> c_int {
    let mut count = 0;
    for entry in fds {
        entry.revents = if entry.fd < 0 { 0 } else { look_at(entry.fd).unwrap_or(0) & entry.events };
        count += c_int::from(entry.revents != 0);
    }
    count
}

/// The kernel's answer, with the rings' in it.
fn ask(
    fds: &mut [pollfd],
    deadline: Deadline,
    masked: Masked,
    kernel: &mut impl FnMut(&mut [pollfd], Option<&timespec>, Masked) -> Result<c_int>,
) -> Result<c_int> {
    let left = deadline.left();
    kernel(fds, left.as_ref(), masked)?;
    let mut count = 0;
    for entry in fds {
        if entry.fd >= 0 {
            entry.revents = interpret(entry);
        }
        count += c_int::from(entry.revents != 0);
    }
    Ok(count)
}

/// What the kernel's answer for one entry means.
fn interpret(entry: &pollfd) -> i16 {
    if let Some(set) = fd_table::epoll(entry.fd).filter(|set| set.is_concerned()) {
        return nested::interpret(entry.fd, set, entry.events, entry.revents);
    }
    let Some(rx) = lock_stream(entry.fd, Way::Rx) else { return entry.revents };
    match rx.segment.filter(|segment| state::concerns_us(rx.slot, segment)) {
        Some(segment) => state::interpret(entry.fd, &rx, &segment, entry.events, entry.revents),
        None => entry.revents,
    }
}

struct Armed {
    /// How many entries from the start were armed.
    armed: usize,
    /// One of them is ready already.
    ready: bool,
}

fn arm(fds: &[pollfd]) -> Armed {
    for (index, entry) in fds.iter().enumerate() {
        if entry.fd >= 0 && entry.events & READABLE != 0 && arm_one(entry.fd) {
            return Armed { armed: index + 1, ready: true };
        }
    }
    Armed { armed: fds.len(), ready: false }
}

fn disarm(fds: &[pollfd], armed: usize) {
    for entry in fds.iter().take(armed).filter(|entry| entry.fd >= 0 && entry.events & READABLE != 0) {
        match fd_table::epoll(entry.fd) {
            Some(set) => nested::disarm(set),
            None => state::disarm(entry.fd),
        }
    }
}

fn arm_one(fd: c_int) -> bool {
    match fd_table::epoll(fd) {
        Some(set) => nested::arm(set),
        None => state::arm(fd),
    }
}
