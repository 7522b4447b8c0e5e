//! Selecting connections, and driving their upgrade.

#![allow(unsafe_code, reason = "reads the address that the program passed")]

use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Relaxed, Release};

use libc::{sockaddr, sockaddr_un, socklen_t};
use tssx_core::ledger::layout::{NAME_MAX, ROLE_ACCEPTOR, ROLE_CONNECTOR, SLOT_SELECTED, SLOT_UPGRADED, Slot};
use tssx_core::ledger::slots;
use tssx_core::reason::Reason;
use tssx_core::segment::{Segment, Side};
use tssx_core::switchover;
use tssx_core::sys;
use tssx_core::upgrade::Step;

use super::mailboxes;
use crate::endpoint::{Endpoint, Way, lock_stream};
use crate::fd_table::{self, Entry};
use crate::process::descriptors;
use crate::process::log::{self, Event};
use crate::readiness::control;
use crate::readiness::pending::{self, Pending};
use crate::{init, process};

/// Bytes of an address before the name.
const NAME_OFFSET: usize = offset_of!(sockaddr_un, sun_path);

/// The name in an AF_UNIX address of `length` bytes: a path up to its NUL, or a NUL and all the bytes of an abstract name.
fn name_of(address: &sockaddr_un, length: usize) -> ([u8; NAME_MAX], usize) {
    let mut name = [0_u8; NAME_MAX];
    let given = length.saturating_sub(NAME_OFFSET).min(NAME_MAX);
    for (to, from) in name.iter_mut().zip(address.sun_path.iter().take(given)) {
        *to = from.cast_unsigned();
    }
    let path_length = name.iter().take(given).position(|byte| *byte == 0);
    let length = match path_length {
        Some(0) | None => given,
        Some(length) => length,
    };
    (name, length)
}

/// After socket(2) made a Unix stream socket.
pub(crate) fn made(fd: c_int) {
    if init::active().is_some() {
        // Without memory for the entry it is one of which nothing is known.
        let _ = fd_table::set(fd, Some(Entry::Unconnected { duplicated: false }));
    }
}

/// After a `connect` that succeeded: selects the connection if its name is selected and it is a stream.
///
/// # Safety
/// `address` must be readable for `length` bytes.
pub(crate) unsafe fn connected(fd: c_int, address: *const sockaddr, length: socklen_t) {
    let Some(policy) = init::active() else { return };
    let length = length as usize;
    if length <= NAME_OFFSET || length > size_of::<sockaddr_un>() {
        return;
    }
    // SAFETY: all zero is a valid `sockaddr_un`; the copy stays within what the caller promises.
    let address = unsafe {
        let mut copy: sockaddr_un = core::mem::zeroed();
        core::ptr::copy_nonoverlapping(address.cast::<u8>(), (&raw mut copy).cast::<u8>(), length);
        copy
    };
    if c_int::from(address.sun_family) != libc::AF_UNIX {
        return;
    }
    let (name, length) = name_of(&address, length);
    let name = name.get(..length).unwrap_or(&[]);
    let entry = fd_table::get(fd);
    let made_here = matches!(entry, Some(Entry::Unconnected { .. } | Entry::Registered(_)));
    if policy.selects(name)
        && (made_here || is_stream(fd))
        && let Some(path) = init::ledger().and_then(|ledger| slots::path_index(ledger, name))
    {
        // In an epoll set already?
        let told = match entry {
            Some(Entry::Unconnected { duplicated }) => (duplicated && pending::duplicates_are_in_sets()).then_some(None),
            Some(Entry::Registered(pending)) => Some(pending.and_then(Pending::told)),
            // Made where we did not see it.
            _ => control::any_set().then_some(None),
        };
        select(fd, path, ROLE_CONNECTOR);
        if told.is_some_and(|told| !control::connected(fd, told)) {
            give_up(fd, Reason::EpollMode);
        }
    } else if made_here {
        descriptors::lead(fd, None);
    }
}

/// After an `accept` on `listener` that gave `fd`: selects the connection if the listener's name is selected.
pub(crate) fn accepted(listener: c_int, fd: c_int) {
    if init::active().is_none() {
        return;
    }
    let path = match fd_table::get(listener) {
        Some(Entry::Listener(path)) => path,
        _ => look_up_listener(listener),
    };
    match path {
        Some(path) => select(fd, path, ROLE_ACCEPTOR),
        None => descriptors::clear_stale(fd),
    }
}

fn select(fd: c_int, path: u32, role: u32) {
    let gate = process::enter_gate();
    let selected = Endpoint::select(fd, path, role).is_some();
    drop(gate);
    log::say_of_path(Some(fd), path, if selected { Event::Selected } else { Event::NotCounted });
}

/// A connection that the last image of this process has left with us, bytes in a ring included. It was selected there, so that it is ours
/// even where the kernel does not tell its name. `None`: it is no connection of that kind.
///
/// # Errors
/// [`Reason::NoMemory`].
pub(crate) fn inherited(fd: c_int, side: Side) -> Result<Option<&'static Endpoint>, Reason> {
    let named = match side {
        Side::Acceptor => sys::getsockname(fd),
        Side::Connector => sys::getpeername(fd),
    };
    let nameless =
        (sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] }, size_of::<libc::sa_family_t>());
    let (address, length) = named.unwrap_or(nameless);
    // Believed where the kernel does not say: bytes that are left to it would be lost.
    let is_other = match sys::getsockopt::<c_int>(fd, libc::SO_TYPE) {
        Ok(kind) => kind != libc::SOCK_STREAM,
        Err(errno) => matches!(errno.0, libc::EBADF | libc::ENOTSOCK),
    };
    if c_int::from(address.sun_family) != libc::AF_UNIX || is_other {
        return Ok(None);
    }
    let (name, length) = name_of(&address, length);
    let ledger = init::ledger().ok_or(Reason::NoMemory)?;
    let path = slots::path_index(ledger, name.get(..length).unwrap_or(&[])).ok_or(Reason::NoMemory)?;
    let _gate = process::enter_gate();
    let role = if side == Side::Acceptor { ROLE_ACCEPTOR } else { ROLE_CONNECTOR };
    Endpoint::select(fd, path, role).map(Some).ok_or(Reason::NoMemory)
}

/// Looks the listener's name up once and remembers the answer for the descriptor.
fn look_up_listener(listener: c_int) -> Option<u32> {
    let (address, length) = sys::getsockname(listener).ok()?;
    let unix = c_int::from(address.sun_family) == libc::AF_UNIX && is_stream(listener);
    let mut path = None;
    if unix {
        let (name, length) = name_of(&address, length);
        let name = name.get(..length).unwrap_or(&[]);
        let policy = init::active()?;
        // HAProxy binds one name and renames it; the kernel knows the file, whatever it is called now.
        let file = || sys::fstat(listener).ok().and_then(|socket| tssx_core::diag::bound_file(socket.inode));
        if policy.selects(name) || (name.first().is_some_and(|first| *first != 0) && policy.selects_file(file)) {
            path = init::ledger().and_then(|ledger| slots::path_index(ledger, name));
        }
    }
    descriptors::lead(listener, Some(Entry::Listener(path)));
    path
}

pub(crate) fn is_stream(fd: c_int) -> bool {
    sys::getsockopt::<c_int>(fd, libc::SO_TYPE) == Ok(libc::SOCK_STREAM)
}

/// After an operation on the kernel socket: makes the step of the upgrade that is due, if any.
pub(crate) fn after_kernel_operation(fd: c_int, endpoint: &'static Endpoint) {
    let Some(slot) = endpoint.slot() else { return };
    let state = slot.state.load(Relaxed);
    match endpoint.segment(slot) {
        // Each direction switches by itself: one may be in its ring while the other still waits for consent.
        Some(_) if state == SLOT_SELECTED || state == SLOT_UPGRADED => consent(fd),
        None if state == SLOT_SELECTED && endpoint.schedule.due(slot, init::threshold()) => step(fd, endpoint),
        _ => {}
    }
}

fn step(fd: c_int, endpoint: &'static Endpoint) {
    let Some(slot) = endpoint.slot() else { return };
    // A fork between "only holder" and "mapped" would leave a child without the mapping.
    let Some(_gate) = process::try_enter_gate() else { return };
    let Some(turn) = endpoint.schedule.turn() else { return };
    if endpoint.schedule.may_open(slot) && !mailboxes::may_have_place() {
        endpoint.schedule.postpone(slot);
        return;
    }
    match turn.step(fd, slot, init::threshold()) {
        Step::Nothing => {}
        Step::Opened(mailbox) => {
            descriptors::lead(mailbox, Some(Entry::Mailbox(endpoint)));
            if !mailboxes::enter(mailbox) {
                // All places are taken by mailboxes that were opened just now: theirs is the turn.
                endpoint.schedule.postpone(slot);
                close_mailbox(mailbox, endpoint);
            }
        }
        Step::Closed(mailbox) => close_mailbox(mailbox, endpoint),
        Step::Joined(segment, mailbox) => {
            join(fd, endpoint, segment);
            mailbox.into_iter().for_each(|mailbox| close_mailbox(mailbox, endpoint));
            consent(fd);
        }
        Step::GiveUp(reason, mailbox) => {
            give_up(fd, reason);
            mailbox.into_iter().for_each(|mailbox| close_mailbox(mailbox, endpoint));
        }
    }
}

/// Closes a mailbox if the number is still ours: the program may have closed every descriptor it found.
pub(crate) fn close_mailbox(mailbox: c_int, endpoint: &'static Endpoint) {
    let ours = matches!(fd_table::get(mailbox), Some(Entry::Mailbox(owner)) if core::ptr::eq(owner, endpoint));
    if ours {
        let _ = fd_table::set(mailbox, None);
        sys::close(mailbox);
        mailboxes::left();
    }
}

fn join(fd: c_int, endpoint: &'static Endpoint, segment: Segment) {
    // Both directions, receiving first, as everywhere.
    let (rx, tx) = (lock_stream(fd, Way::Rx), lock_stream(fd, Way::Tx));
    let ours = |locked: &crate::endpoint::Locked| core::ptr::eq(locked.endpoint, endpoint);
    let (Some(rx), Some(tx)) = (rx.filter(ours), tx.filter(ours)) else {
        // SAFETY: the handle was not shared with anybody.
        unsafe { segment.unmap() };
        return;
    };
    note_options(fd, rx.slot);
    endpoint.join(segment);
    super::options::say_ends(fd, endpoint, tx.slot, &segment);
    switchover::publish_counts(tx.slot, &segment);
    let own = segment.own_side();
    own.pid.store(process::pid(), Relaxed);
    own.holders.store(1, Relaxed);
    // Given up by another thread while the segment was on its way (`give_up`, which takes the sending lock too).
    own.refused.store(u32::from(tx.slot.state.load(Relaxed) != SLOT_SELECTED), Relaxed);
    own.joined.store(1, Release);
}

/// What the program has asked of the socket so far, of what a ring must know.
pub(crate) fn note_options(fd: c_int, slot: &Slot) {
    if let Ok(flags) = sys::fcntl(fd, libc::F_GETFL, 0) {
        slot.nonblocking.store(u32::from(flags & libc::O_NONBLOCK != 0), Relaxed);
    }
    if let Ok(least) = sys::getsockopt::<c_int>(fd, libc::SO_RCVLOWAT) {
        slot.rx_lowat.store(least.max(1).cast_unsigned(), Relaxed);
    }
}

/// Consents to the peer's switch if the counts agree now.
fn consent(fd: c_int) {
    let Some(rx) = lock_stream(fd, Way::Rx) else { return };
    let Some(segment) = rx.segment else { return };
    if let Err(reason) = switchover::try_consent(fd, rx.slot, &segment, init::pause_us())
        && let Some(ledger) = init::ledger()
        && slots::mark_plain(ledger, rx.slot, reason)
    {
        log::say(fd, rx.slot, Event::Plain(reason));
    }
}

/// Keeps a connection that is not (yet) in a ring on the kernel socket for good.
pub(crate) fn give_up(fd: c_int, reason: Reason) {
    let Some(tx) = lock_stream(fd, Way::Tx) else { return };
    if let Some(segment) = tx.segment {
        segment.own_side().refused.store(1, Release);
    }
    if init::ledger().is_some_and(|ledger| slots::mark_plain(ledger, tx.slot, reason)) {
        log::say(fd, tx.slot, Event::Plain(reason));
    }
}
