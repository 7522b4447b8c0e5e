//! epoll_ctl: our notes about a set are kept in step with the kernel's.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU64, fence};

use libc::epoll_event;
use tssx_core::ledger::layout::MODE_RING;
use tssx_core::reason::Reason;
use tssx_core::sys;

use super::edge::{EDGE, NOTHING_REPORTED};
use super::interest::{EpollSet, Open};
use super::records::Watch;
use super::{epoll, oneshot, pending, scan, state};
use crate::endpoint::{Endpoint, Locked, Way, lock_stream};
use crate::fd_table::{self, Entry};
use crate::init;
use crate::process::descriptors;
use crate::process::held::{self, Kind};
use crate::socket::recall;

/// A stream's record that was noted before the kernel was told of it.
pub(crate) struct Noted {
    set: &'static EpollSet,
    fd: c_int,
    endpoint: &'static Endpoint,
    /// What there was before.
    before: Option<Watch>,
    /// There was room for it.
    kept: bool,
}

impl Noted {
    /// Notes a stream, or with no event forgets it.
    fn new(set: &'static EpollSet, fd: c_int, endpoint: &'static Endpoint, event: Option<epoll_event>) -> Self {
        let mut open = set.open();
        let before = remove(set, &mut open, fd, endpoint);
        let Some(event) = event else { return Self { set, fd, endpoint, before, kept: true } };
        let watch = record(fd, endpoint, event);
        if oneshot::is_one(&watch) || watch.events & EDGE != 0 {
            set.once.store(1, Relaxed);
            // The kernel's first event of the record is asked for before the rings, or it would come once more behind theirs.
            set.kernel_first.store(1, Relaxed);
        }
        let kept = endpoint.watchers.insert(set) && open.insert(watch);
        set.concern_with(endpoint);
        Self { set, fd, endpoint, before, kept }
    }

    /// The kernel has refused the change.
    fn undo(self) {
        let mut open = self.set.open();
        remove(self.set, &mut open, self.fd, self.endpoint);
        if let Some(before) = self.before {
            let _ = self.endpoint.watchers.insert(self.set) && open.insert(before);
        }
    }
}

/// Takes the record of a stream out, if there is one. Not one of the same number whose descriptor was closed while a duplicate lives: that
/// is in the set still.
fn remove(set: &EpollSet, open: &mut Open<'_>, fd: c_int, endpoint: &'static Endpoint) -> Option<Watch> {
    let index = open.find(fd, endpoint)?;
    let watch = open.get(index).copied()?;
    open.remove_at(index);
    watch.endpoint.watchers.remove(set);
    Some(watch)
}

fn record(fd: c_int, endpoint: &'static Endpoint, event: epoll_event) -> Watch {
    Watch {
        fd,
        events: event.events,
        data: event.u64,
        endpoint,
        reported_by: 0,
        answered_by: 0,
        armed: true,
        nudged: false,
        echo: false,
        told: 0,
        reported: NOTHING_REPORTED,
        ends: 0,
        room_in_ring: false,
        refusals: NOTHING_REPORTED,
        bells: 0,
    }
}

/// Before the kernel is told of a stream: a thread may be asleep in the set, in a wait that began when no stream was in it, and would
/// pass on what the kernel says of a doorbell that is nobody's. What the kernel tells first must find the record too.
pub(crate) fn before_change(epoll: c_int, fd: c_int, event: epoll_event) -> Option<Noted> {
    let endpoint = fd_table::stream(fd)?;
    let set = fd_table::epoll(epoll);
    let noted = set.map(|set| Noted::new(set, fd, endpoint, Some(event)));
    if let Some(rx) = lock_stream(fd, Way::Rx)
        && let Some(segment) = rx.segment.filter(|segment| state::concerns_us(rx.slot, segment))
        && !set.is_some_and(|set| nobody_sleeps(set, &rx))
    {
        state::prepare_to_wait(fd, &rx, &segment);
    }
    noted
}

/// Whether nobody may be asleep who relies on the peer to ring: then its next bytes are found by the next wait, which looks at what was noted, or
/// announces it before it sleeps. A program that takes a stream out and puts it in again for each message would have a doorbell rung for
/// each. Whoever goes to sleep counts itself and then looks at the notes; we have noted the stream and then look who is counted.
fn nobody_sleeps(set: &EpollSet, rx: &Locked) -> bool {
    fence(SeqCst);
    set.sleepers.load(Relaxed) == 0 && set.plain_sleepers.load(Relaxed) == 0 && rx.slot.holder_count() == 1
}

/// After an epoll_ctl(2) that failed.
pub(crate) fn refused(noted: Option<Noted>) {
    noted.into_iter().for_each(Noted::undo);
}

/// After an epoll_ctl(2) that succeeded: keeps our notes in step.
pub(crate) fn changed(epoll: c_int, operation: c_int, fd: c_int, event: Option<epoll_event>, noted: Option<Noted>) {
    let adds = operation != libc::EPOLL_CTL_DEL;
    if adds && let Some(Entry::Epoll(_)) = fd_table::get(fd) {
        nested(fd);
    }
    let Some(endpoint) = fd_table::stream(fd) else {
        pending::note(epoll, operation, fd, event.filter(|_| adds));
        return;
    };
    let known = fd_table::epoll(epoll);
    let Some(set) = known.or_else(|| adopt(epoll)) else {
        recall::wind_down(fd, Reason::EpollMode);
        return;
    };
    let noted = noted.unwrap_or_else(|| Noted::new(set, fd, endpoint, event.filter(|_| adds)));
    if !noted.kept {
        recall::wind_down(fd, Reason::EpollMode);
    } else if adds && (known.is_none() || set.sleepers.load(SeqCst) > 0 || set.plain_sleepers.load(SeqCst) > 0) {
        wake_sleepers(set, epoll, fd, endpoint);
    }
}

/// A thread that is asleep in the set learns of what the kernel has queued, but not of bytes that are in the ring already, or of its
/// room while the kernel's socket has none.
fn wake_sleepers(set: &'static EpollSet, epoll: c_int, fd: c_int, endpoint: &'static Endpoint) {
    let mut open = set.open();
    let index = open.find(fd, endpoint);
    let Some(watch) = index.and_then(|index| open.get(index)) else { return };
    // What the kernel sees has woken it already.
    let asked = epoll::low_bits(watch.events);
    if scan::ready_events(watch) == 0 || sys::poll_now(fd, asked).is_ok_and(|seen| seen != 0) {
        return;
    }
    watch.nudged = true;
    let watch = *watch;
    drop(open);
    widen(fd);
    oneshot::nudge(epoll, &watch);
}

/// Makes the kernel call a stream writable whose ring has room, though doorbells of ours lie in the small send buffer. The next that finds
/// the ring full makes it small again.
fn widen(fd: c_int) {
    if let Some(tx) = lock_stream(fd, Way::Tx)
        && let Some(segment) = tx.segment
        && tx.slot.tx_mode.load(Relaxed) == MODE_RING
        && segment.tx().writer_waiting.load(Relaxed) == 0
        && sys::poll_now(fd, libc::POLLOUT) == Ok(0)
    {
        let _ = sys::setsockopt(fd, libc::SO_SNDBUF, (tx.slot.sndbuf.load(Relaxed) / 2).cast_signed());
    }
}

/// A socket that was in a set before it was connected is a selected stream now. False if its record cannot be made: then it stays with
/// the kernel.
pub(crate) fn connected(fd: c_int, told: Option<(&'static EpollSet, epoll_event)>) -> bool {
    told.zip(fd_table::stream(fd)).is_some_and(|((set, event), endpoint)| Noted::new(set, fd, endpoint, Some(event)).kept)
}

/// Whether the process has an epoll set that we know of.
pub(crate) fn any_set() -> bool {
    let mut any = false;
    fd_table::for_each(0, u32::MAX, |_, entry| any |= matches!(entry, Entry::Epoll(_)));
    any
}

/// Held while a set is made for an epoll descriptor.
static ADOPTING: AtomicU64 = AtomicU64::new(0);

/// In a forked child: whoever held the lock does not exist here.
pub(crate) fn after_fork_in_child() {
    ADOPTING.store(0, Relaxed);
}

/// A new epoll descriptor. Without memory for its notes they begin with its first stream.
pub(crate) fn created(epoll: c_int) {
    let _ = begin(epoll);
}

/// An epoll descriptor of which nothing was known: made before we were asked, perhaps by another process, which has it still.
pub(super) fn adopt(epoll: c_int) -> Option<&'static EpollSet> {
    let known = fd_table::epoll(epoll);
    known.or_else(|| begin(epoll).inspect(|set| set.share()))
}

/// Notes about an epoll descriptor begin now.
fn begin(epoll: c_int) -> Option<&'static EpollSet> {
    init::active()?;
    // Two threads may add the first streams at the same time: there must be one set.
    let _guard = held::acquire(&ADOPTING, Kind::Other);
    if let Some(set) = fd_table::epoll(epoll) {
        return Some(set);
    }
    let set = EpollSet::create()?;
    set.attach();
    set.number.store(epoll, Relaxed);
    match fd_table::set(epoll, Some(Entry::Epoll(set))) {
        Ok(previous) => {
            descriptors::retire(epoll, previous);
            Some(set)
        }
        Err(()) => None,
    }
}

/// The set at `inner` is waited for through another set, where we do not look: its streams stay with the kernel.
fn nested(inner: c_int) {
    let Some(set) = fd_table::epoll(inner) else { return };
    let mut from = 0;
    while let Some((index, watch)) = set.record_from(from) {
        recall::wind_down(watch.fd, Reason::EpollMode);
        from = index + 1;
    }
}
