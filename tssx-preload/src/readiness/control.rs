//! epoll_ctl: our notes about a set are kept in step with the kernel's.

use core::ffi::c_int;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use libc::epoll_event;
use tssx_core::reason::Reason;

use super::epoll::{EDGE, NOTHING_REPORTED};
use super::interest::{EpollSet, Watch};
use super::{epoll, oneshot, state};
use crate::endpoint::{Way, lock_stream};
use crate::fd_table::{self, Entry};
use crate::init;
use crate::process::descriptors;
use crate::process::held::{self, Kind};
use crate::socket::recall;

/// Before the kernel is told of a stream: a thread may be asleep in the set, in a wait that began when no stream was in it, and would
/// pass on what the kernel says of a doorbell that is nobody's.
pub(crate) fn before_change(fd: c_int) {
    if let Some(rx) = lock_stream(fd, Way::Rx)
        && let Some(segment) = rx.segment.filter(|segment| state::concerns_us(rx.slot, segment))
    {
        state::prepare_to_wait(fd, &rx, &segment);
    }
}

/// After an epoll_ctl(2) that succeeded: keeps our notes in step.
pub(crate) fn changed(epoll: c_int, operation: c_int, fd: c_int, event: Option<epoll_event>) {
    if operation != libc::EPOLL_CTL_DEL
        && let Some(Entry::Epoll(_)) = fd_table::get(fd)
    {
        nested(fd);
    }
    let Some(endpoint) = fd_table::stream(fd) else {
        note_registered(operation, fd);
        return;
    };
    let known = fd_table::epoll(epoll);
    let Some(set) = known.or_else(|| adopt(epoll)) else {
        recall::wind_down(fd, Reason::EpollMode);
        return;
    };
    let mut open = set.open();
    // Not one of the same number whose descriptor was closed while a duplicate lives: that is in the set still.
    if let Some(index) = open.all().iter().position(|watch| watch.fd == fd && core::ptr::eq(watch.endpoint, endpoint))
        && let Some(watch) = open.all().get(index).copied()
    {
        open.remove_at(index);
        watch.endpoint.watchers.remove(set);
    }
    let Some(event) = event.filter(|_| operation != libc::EPOLL_CTL_DEL) else { return };
    let (events, data) = (event.events, event.u64);
    let watch = Watch {
        fd,
        events,
        data,
        endpoint,
        active: false,
        armed: true,
        nudged: false,
        idle_waits: 0,
        reported: NOTHING_REPORTED,
        refusals: NOTHING_REPORTED,
        bells: 0,
    };
    if oneshot::is_one(&watch) || events & EDGE != 0 {
        set.once.store(1, Relaxed);
        // The kernel's first event of the record is asked for before the rings, or it would come once more behind theirs.
        set.kernel_first.store(1, Relaxed);
    }
    let noted = endpoint.watchers.insert(set) && open.add(watch);
    drop(open);
    if !noted {
        recall::wind_down(fd, Reason::EpollMode);
    } else if known.is_none() || set.sleepers.load(Relaxed) > 0 {
        wake_sleepers(set, epoll, fd);
    }
}

/// A thread that is asleep in the set learns of what the kernel has queued, but not of bytes that are in the ring already.
fn wake_sleepers(set: &'static EpollSet, epoll: c_int, fd: c_int) {
    let mut open = set.open();
    let index = open.find(fd);
    let Some(watch) = index.and_then(|index| open.all().get_mut(index)) else { return };
    if epoll::ready_events(watch) & epoll::READABLE == 0 {
        return;
    }
    watch.nudged = true;
    let watch = *watch;
    drop(open);
    oneshot::nudge(epoll, &watch);
}

/// Remembers that a socket is in some set: if it is connected later, to a selected name, it stays with the kernel.
fn note_registered(operation: c_int, fd: c_int) {
    match fd_table::get(fd) {
        None if operation == libc::EPOLL_CTL_ADD && init::active().is_some() => {
            let _ = fd_table::set(fd, Some(Entry::Registered));
        }
        Some(Entry::Registered) if operation == libc::EPOLL_CTL_DEL => {
            let _ = fd_table::set(fd, None);
        }
        _ => {}
    }
}

/// Held while a set is made for an epoll descriptor.
static ADOPTING: AtomicU64 = AtomicU64::new(0);

/// In a forked child: whoever held the lock does not exist here.
pub(crate) fn after_fork_in_child() {
    ADOPTING.store(0, Relaxed);
}

/// An epoll descriptor that was made before we were asked: notes begin now.
fn adopt(epoll: c_int) -> Option<&'static EpollSet> {
    init::active()?;
    // Two threads may add the first streams at the same time: there must be one set.
    let _guard = held::acquire(&ADOPTING, Kind::Other);
    if let Some(set) = fd_table::epoll(epoll) {
        return Some(set);
    }
    let set = EpollSet::create()?;
    set.attach();
    match fd_table::set(epoll, Some(Entry::Epoll(set))) {
        Ok(previous) => {
            descriptors::retire(epoll, previous, descriptors::Cause::Stale);
            Some(set)
        }
        Err(()) => None,
    }
}

/// The set at `inner` is waited for through another set, where we do not look: its streams stay with the kernel.
fn nested(inner: c_int) {
    let Some(set) = fd_table::epoll(inner) else { return };
    let mut index = 0;
    loop {
        let watch = set.open().all().get(index).copied();
        let Some(watch) = watch else { return };
        recall::wind_down(watch.fd, Reason::EpollMode);
        index += 1;
    }
}
