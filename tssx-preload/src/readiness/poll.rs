//! poll and ppoll.

use core::ffi::c_int;

use libc::{pollfd, timespec};

use super::deadline::Deadline;
use super::state::{self, READABLE};
use crate::endpoint::{Way, lock_stream};
use crate::errno::Result;
use crate::fd_table;
use crate::socket::wait::SpinBudget;

/// How long spinning pays for poll and select, learned for the process as a whole: a set has no identity between calls.
static SPIN: SpinBudget = SpinBudget::new();

/// Whether any descriptor of the set has a ring.
pub(crate) fn concerns_us(fds: &[pollfd]) -> bool {
    fds.iter().any(|entry| fd_table::stream(entry.fd).is_some() && state::look(entry.fd).is_some())
}

/// Waits for the set. `kernel` is the real ppoll, with the program's signal mask, on the same array.
pub(crate) fn poll(
    fds: &mut [pollfd],
    deadline: Deadline,
    mut kernel: impl FnMut(&mut [pollfd], Option<&timespec>) -> Result<c_int>,
) -> Result<c_int> {
    loop {
        let ready = look(fds);
        if ready > 0 && fds.iter().all(|entry| entry.fd < 0 || state::rings_suffice(entry.fd)) {
            return Ok(ready);
        }
        if ready > 0 || deadline == Deadline::Now {
            // What the rings said may be gone by now (another thread took it): then this call goes on waiting.
            match ask(fds, Deadline::Now, &mut kernel)? {
                0 if deadline != Deadline::Now => {}
                count => return Ok(count),
            }
        }
        if SPIN.spin(|| look(fds) > 0) {
            continue;
        }
        let waiting = arm(fds);
        let asked = if waiting.ready { Ok(1) } else { ask(fds, deadline, &mut kernel) };
        disarm(fds, waiting.armed);
        match asked {
            // Woken for nothing (a doorbell that was too late): wait for the rest of the time.
            Ok(0) if deadline.left().is_none_or(|left| left.tv_sec > 0 || left.tv_nsec > 0) => {}
            Ok(_) if waiting.ready => {}
            asked => return asked,
        }
    }
}

/// Fills in what the rings say; the count of ready entries.
fn look(fds: &mut [pollfd]) -> c_int {
    let mut count = 0;
    for entry in fds {
        entry.revents = if entry.fd < 0 { 0 } else { state::look(entry.fd).unwrap_or(0) & entry.events };
        count += c_int::from(entry.revents != 0);
    }
    count
}

/// The kernel's answer, with the rings' in it.
fn ask(
    fds: &mut [pollfd],
    deadline: Deadline,
    kernel: &mut impl FnMut(&mut [pollfd], Option<&timespec>) -> Result<c_int>,
) -> Result<c_int> {
    let left = deadline.left();
    kernel(fds, left.as_ref())?;
    let mut count = 0;
    for entry in fds {
        if entry.fd >= 0
            && let Some(rx) = lock_stream(entry.fd, Way::Rx)
            && let Some(segment) = rx.segment.filter(|segment| state::concerns_us(rx.slot, segment))
        {
            entry.revents = state::interpret(entry.fd, &rx, &segment, entry.events, entry.revents);
        }
        count += c_int::from(entry.revents != 0);
    }
    Ok(count)
}

struct Armed {
    /// How many entries from the start were armed.
    armed: usize,
    /// One of them is ready already.
    ready: bool,
}

fn arm(fds: &[pollfd]) -> Armed {
    for (index, entry) in fds.iter().enumerate() {
        if entry.fd >= 0 && entry.events & READABLE != 0 && state::arm(entry.fd) {
            return Armed { armed: index + 1, ready: true };
        }
    }
    Armed { armed: fds.len(), ready: false }
}

fn disarm(fds: &[pollfd], armed: usize) {
    for entry in fds.iter().take(armed).filter(|entry| entry.fd >= 0 && entry.events & READABLE != 0) {
        state::disarm(entry.fd);
    }
}
