//! Receiving: `read`, `recv`, `recvmsg` and their relatives, on a selected stream.
//!
//! Where the next byte comes from is decided under the receiving lock: the kernel socket (not switched yet, or back), or
//! the ring. One call may take from both, because the kernel would have had all of it in one queue: kernel bytes up to the
//! switch and ring bytes behind it ([`super::crossing`]), ring bytes up to its end and kernel bytes behind ([`super::ended`]).
//! An empty ring says nothing about end of file or errors: those are the kernel's, and are asked for only then
//! ([`super::empty`]); bytes in the ring always come first, because a peer publishes before it closes.

#![allow(unsafe_code, reason = "hands the caller's memory to the ring")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use tssx_core::layout::STATE_ENDED;
use tssx_core::ledger::layout::{MODE_FINAL, MODE_KERNEL, MODE_RECALLED, MODE_RING, Slot};
use tssx_core::ring::consumer::Consumer;
use tssx_core::segment::Segment;
use tssx_core::{doorbell, switchover, sys};

use super::abandon::{guarded, test_cancel};
use super::patience::{self, Patience};
use super::{alive, ancillary, crossing, empty, ended, establish, fallback, gathering, recall, reset};
use crate::endpoint::{Endpoint, Locked, Pin, Way, lock_stream};
use crate::errno::{self, Errno, Result};
use crate::process::log;
use crate::user_buf::Parts;
use crate::user_memory::Access;
use crate::{fd_table, next};

/// One call of the program: what it asked for and what it has so far.
pub(super) struct Call<'a, 'p> {
    pub(super) fd: c_int,
    /// The `recvmsg` header, for ancillary data that comes with kernel bytes; null for the other calls.
    pub(super) message: *mut libc::msghdr,
    pub(super) parts: &'a Parts<'p>,
    pub(super) flags: c_int,
    pub(super) got: usize,
    /// The kernel filled the header in.
    pub(super) told: bool,
    /// Descriptors came with the last bytes and found no room: they end a receive all the same.
    pub(super) descriptors: bool,
    /// The bytes that are taken from the kernel now come with credentials, which those of the ring do not have.
    pub(super) credentials: bool,
    /// Bytes of a ring are among those that the call has.
    pub(super) from_ring: bool,
    /// A signal or a time-out has ended the wait: the call takes what there is and waits no more.
    pub(super) interrupted: Option<Errno>,
    /// The kernel has ended a wait and there was nothing: perhaps a doorbell that nobody has counted.
    pub(super) woken: bool,
    /// Once the call has waited: the end that it waits on, which it stays with whatever becomes of the descriptor's number.
    pub(super) pin: Option<Pin>,
    /// What the last wait ended with, for a call whose descriptor was closed meanwhile.
    pub(super) waited: Result<usize>,
    /// What SO_RCVLOWAT and O_NONBLOCK were when the call began: they hold for all of it.
    least: Option<usize>,
    /// Room for name and control messages in the program's header, bytes, before the kernel wrote there.
    pub(super) room: (libc::socklen_t, usize),
    nonblocking: Option<bool>,
    pub(super) patience: Patience,
}

/// What a step led to.
pub(super) enum Step {
    /// Look again.
    Again,
    /// The call is over.
    Return(Result<usize>),
    /// Not ours to answer: make the program's own call on the kernel socket.
    Kernel(Locked),
}

impl<'a, 'p> Call<'a, 'p> {
    fn new(fd: c_int, parts: &'a Parts<'p>, flags: c_int, message: *mut libc::msghdr) -> Self {
        let waited = Err(Errno(libc::EBADF));
        // SAFETY: null, or the header that the program passed to recvmsg(2).
        let room = unsafe { message.as_ref() }.map_or((0, 0), |header| (header.msg_namelen, header.msg_controllen));
        Self {
            fd,
            message,
            parts,
            flags,
            got: 0,
            told: false,
            descriptors: false,
            credentials: false,
            from_ring: false,
            interrupted: None,
            woken: false,
            pin: None,
            waited,
            least: None,
            room,
            nonblocking: None,
            patience: Patience::default(),
        }
    }

    pub(super) fn peeks(&self) -> bool {
        self.flags & libc::MSG_PEEK != 0
    }

    /// Before a wait: from now on the call is this end's.
    pub(super) fn keep(&mut self, rx: &Locked) {
        if self.pin.is_none() {
            self.pin = Some(rx.pin());
        }
    }

    /// After a wait: if the descriptor was closed meanwhile, the call goes on with another one of the file that it began with.
    pub(super) fn follow(&mut self) {
        self.patience.slept();
        if let Some(pin) = &self.pin {
            self.fd = pin.endpoint().descriptor(self.fd);
        }
    }

    /// Whether the program's memory has room for more.
    pub(super) fn has_room(&self) -> bool {
        self.got < self.parts.total()
    }

    /// Whether the call has what it waits for: all with MSG_WAITALL, else SO_RCVLOWAT's bytes. A look waits for any.
    pub(super) fn is_satisfied(&mut self, slot: &Slot) -> bool {
        let least = if self.peeks() {
            1
        } else if self.flags & libc::MSG_WAITALL != 0 {
            self.parts.total()
        } else {
            *self.least.get_or_insert_with(|| slot.rx_lowat.load(Relaxed) as usize)
        };
        self.got >= self.parts.total().min(least.max(1))
    }

    /// Whether descriptors came with the bytes so far.
    pub(super) fn has_descriptors(&self) -> bool {
        // SAFETY: null, or the header that the program passed to recvmsg(2), which the kernel has filled in.
        let header = unsafe { self.message.as_ref() }.filter(|_| self.told);
        // SAFETY: as above.
        self.descriptors || header.is_some_and(|header| unsafe { ancillary::find(header) }.rights)
    }

    /// What the call returns when nothing more can be had: what it has, else `otherwise`.
    pub(super) fn finish(&self, otherwise: Result<usize>) -> Step {
        Step::Return(match (otherwise, self.interrupted) {
            _ if self.got > 0 => Ok(self.got),
            (Err(Errno::AGAIN), Some(interruption)) => Err(interruption),
            (otherwise, _) => otherwise,
        })
    }

    /// Whether the call waits for more.
    pub(super) fn blocks(&mut self, slot: &Slot) -> bool {
        let nonblocking = *self.nonblocking.get_or_insert_with(|| slot.nonblocking.load(Relaxed) != 0);
        self.flags & libc::MSG_DONTWAIT == 0 && !nonblocking && self.interrupted.is_none() && !self.is_satisfied(slot)
    }
}

/// Receives into `parts` from the stream at `fd`. `plain` is the program's own call, made where the kernel carries the bytes.
/// `message` is `recvmsg`'s header or null.
pub(crate) fn receive(
    fd: c_int,
    parts: &Parts<'_>,
    flags: c_int,
    message: *mut libc::msghdr,
    plain: impl Fn() -> isize,
) -> Result<usize> {
    let mut call = Call::new(fd, parts, flags, message);
    test_cancel();
    loop {
        let ours = |rx: &Locked| call.pin.as_ref().is_none_or(|pin| core::ptr::eq(pin.endpoint(), rx.endpoint));
        let Some(rx) = lock_stream(call.fd, Way::Rx).filter(ours) else {
            match call.pin.as_ref().map(|pin| pin.endpoint().other_descriptor()) {
                None => return errno::from_bytes(plain()),
                // The descriptor was closed while the call was asleep: it goes on with the file that it began with.
                Some(Some(spare)) if spare != call.fd => call.fd = spare,
                Some(_) => return super::kept::rest_without_descriptor(&mut call),
            }
            continue;
        };
        if parts.total() == 0 || flags & libc::MSG_OOB != 0 {
            drop(rx);
            return errno::from_bytes(plain());
        }
        if rx.segment.is_some_and(|segment| recall::is_due(rx.slot, &segment)) {
            recall::answer(call.fd);
        }
        let step = match (rx.slot.rx_mode.load(Relaxed), rx.segment) {
            (MODE_RING, Some(segment)) => from_ring(&mut call, rx, &segment),
            (MODE_KERNEL, Some(segment)) if switchover::has_consented(&segment) => crossing::step(&mut call, rx, &segment),
            (MODE_RECALLED, Some(segment)) => recall::wait_for_answer(&mut call, rx, &segment),
            _ => Step::Kernel(rx),
        };
        let result = match step {
            Step::Again if call.patience.allows(call.got) => continue,
            Step::Again => {
                patience::end(call.fd);
                return if call.got > 0 { Ok(call.got) } else { Err(Errno(libc::ECONNRESET)) };
            }
            Step::Return(result) => result,
            // Only a call that has not waited yet: what held when it began is still to be seen.
            Step::Kernel(rx) if call.got == 0 && call.pin.is_none() => return through_kernel(&mut call, rx, &plain),
            Step::Kernel(rx) => match ended::rest_through_kernel(&mut call, rx) {
                Step::Return(result) => result,
                _ => continue,
            },
        };
        if !call.told {
            no_ancillary(call.fd, message, flags, result, call.interrupted);
        }
        if matches!(result, Ok(0) | Err(Errno(libc::ECONNRESET))) {
            fd_table::stream(fd).into_iter().for_each(alive::doubt);
        }
        return result;
    }
}

/// `recv` and `recvmsg` with room for nothing: they wait, fail and end as others do. 1 if there is something to read, else 0: the
/// program gets 0 for both.
pub(crate) fn receive_nothing(fd: c_int, flags: c_int, message: *mut libc::msghdr, plain: impl Fn() -> isize) -> Result<usize> {
    if flags & libc::MSG_OOB != 0 {
        return errno::from_bytes(plain());
    }
    if !lock_stream(fd, Way::Rx).is_some_and(|rx| may_hold_bytes(fd, &rx)) {
        return nothing_through_kernel(fd, errno::from_bytes(plain()));
    }
    let mut byte = 0_u8;
    let place = (&raw mut byte).cast();
    let parts = crate::user_buf::single(place, 1);
    let flags = (flags | libc::MSG_PEEK) & !libc::MSG_WAITALL;
    // SAFETY: one byte of a local.
    let look = || unsafe { next::recv(fd, place, 1, flags) };
    // The peer's name is told while the socket is there for certain.
    // SAFETY: all zero is a valid `msghdr`.
    let mut named: libc::msghdr = unsafe { core::mem::zeroed() };
    // SAFETY: null, or the header that the program passed to recvmsg(2).
    if let Some(message) = unsafe { message.as_ref() } {
        (named.msg_name, named.msg_namelen) = (message.msg_name, message.msg_namelen);
    }
    let result = receive(fd, &Parts::new(&parts)?, flags, &raw mut named, look);
    // What is there is the kernel's: its own call says what comes with it.
    let in_kernel = || lock_stream(fd, Way::Rx).is_some_and(|rx| rx.slot.rx_mode.load(Relaxed) != MODE_RING);
    if result == Ok(1) && in_kernel() {
        return errno::from_bytes(plain()).map(|_| 1);
    }
    no_ancillary(fd, message, flags, result, None);
    // SAFETY: as above.
    if let Some(message) = unsafe { message.as_mut() }.filter(|_| result.is_ok()) {
        message.msg_namelen = named.msg_namelen;
    }
    result
}

/// The kernel's answer to a receive of nothing. What the peer has left unread may be in a ring, of which the kernel knows nothing.
fn nothing_through_kernel(fd: c_int, result: Result<usize>) -> Result<usize> {
    let Some(rx) = lock_stream(fd, Way::Rx) else { return result };
    let Some(segment) = rx.segment else { return result };
    match result {
        Ok(0) if reset::pending(fd, rx.slot, &segment) => match sys::receive(fd, &mut [0], libc::MSG_PEEK) {
            Ok(0) => reset::end_of_file(fd, rx.slot, &segment),
            _ => result, // there is something to read first
        },
        Err(errno) => reset::failed(rx.slot, &segment, errno),
        ok => ok,
    }
}

/// Whether bytes for this end can be in a ring.
fn may_hold_bytes(fd: c_int, rx: &Locked) -> bool {
    let Some(segment) = rx.segment else { return false };
    match rx.slot.rx_mode.load(Relaxed) {
        MODE_KERNEL => {
            let _ = switchover::arrival(rx.slot, &segment);
            log::say_if_receiving(fd, rx.slot);
        }
        MODE_RING => {
            let _ = switchover::try_resume(fd, rx.slot, &segment);
        }
        _ => {}
    }
    match rx.slot.rx_mode.load(Relaxed) {
        MODE_RING | MODE_RECALLED => true,
        MODE_KERNEL if switchover::has_consented(&segment) => true,
        _ => reset::pending(fd, rx.slot, &segment), // of which the kernel does not know
    }
}

/// What `recvmsg` says besides the bytes when they came from a ring: no control messages, no flags, and the peer's name. `by`: what has ended its wait.
pub(super) fn no_ancillary(fd: c_int, message: *mut libc::msghdr, flags: c_int, result: Result<usize>, by: Option<Errno>) {
    // SAFETY: null, or the header that the program passed to recvmsg(2), which writes it.
    let Some(message) = (unsafe { message.as_mut() }).filter(|_| result.is_ok()) else { return };
    message.msg_flags = flags & libc::MSG_CMSG_CLOEXEC;
    // The kernel gives credentials as a receive ends, but not as a signal ends it.
    let any = by.is_none_or(|errno| errno != Errno(libc::EINTR)).then_some(result != Ok(0));
    // SAFETY: as above.
    unsafe { ancillary::nobodys_credentials(fd, message, any) };
    if !message.msg_name.is_null() {
        let room = if result == Ok(0) { 0 } else { message.msg_namelen };
        // SAFETY: the program says how much room there is.
        message.msg_namelen = unsafe { peer_name(fd, message.msg_name.cast(), room) };
    }
}

/// The peer's address as recvfrom(2) gives it on a connected stream: nothing for a peer that has no name.
///
/// # Safety
/// `address` must be writable for `room` bytes.
pub(crate) unsafe fn peer_name(fd: c_int, address: *mut libc::sockaddr, room: libc::socklen_t) -> libc::socklen_t {
    if room == 0 {
        return 0;
    }
    let mut length = room;
    // SAFETY: the caller's promise.
    let unnamed =
        unsafe { libc::getpeername(fd, address, &raw mut length) } < 0 || length as usize <= size_of::<libc::sa_family_t>();
    if unnamed { 0 } else { length }
}

/// A receive from the kernel socket, counted. What it received before a cancellation or a jump is not known: the comparison of counts
/// finds out.
pub(super) fn counted(rx: Locked, peeks: bool, receive: impl FnOnce() -> Result<usize>) -> Result<usize> {
    let (endpoint, slot) = (rx.endpoint, rx.slot);
    slot.kernel_rx_inflight.fetch_add(1, Relaxed);
    drop(rx);
    let end = |received: usize| {
        let _guard = endpoint.lock(slot, Way::Rx);
        let before = slot.kernel_rx_inflight.load(Relaxed);
        slot.kernel_rx_inflight.store(before.saturating_sub(1), Relaxed);
        if received > 0 && !peeks {
            slot.kernel_rx_bytes.fetch_add(received as u64, Relaxed);
            slot.kernel_rx_calls.fetch_add(1, Relaxed);
        }
    };
    let undo = || {
        end(0);
        endpoint.unpin();
    };
    let result = guarded(&undo, receive);
    end(result.unwrap_or(0));
    result
}

/// The program's own call on the kernel socket, counted.
fn through_kernel(call: &mut Call<'_, '_>, rx: Locked, plain: &impl Fn() -> isize) -> Result<usize> {
    let (fd, pin, endpoint, slot) = (call.fd, rx.pin(), rx.endpoint, rx.slot);
    let mut kept = Errno(0);
    call.is_satisfied(slot); // what it waits for is decided now
    let mut result = counted(rx, call.peeks(), || {
        let result = errno::from_bytes(plain());
        kept = errno::get();
        result
    });
    call.fd = endpoint.descriptor(fd); // the program's may have been closed meanwhile
    let fd = call.fd;
    if let Some(segment) = endpoint.segment(slot) {
        // What we sent may be in a ring, of which the kernel knows nothing.
        result = match result {
            Ok(0) => {
                alive::doubt(endpoint);
                reset::end_of_file(fd, slot, &segment)
            }
            Err(errno) => {
                let result = reset::failed(slot, &segment, errno);
                // The kernel has failed, and has written nothing into the header.
                no_ancillary(fd, call.message, call.flags, result, None);
                result
            }
            Ok(received) => {
                call.got = received;
                ended::tell_if_at_end(call, slot, &segment);
                Ok(received)
            }
        };
    } else if result == Ok(0) && reset::take_owed(slot) {
        result = Err(Errno(libc::ECONNRESET));
    }
    establish::after_kernel_operation(fd, endpoint);
    drop(pin);
    errno::set(kept);
    result
}

fn from_ring(call: &mut Call<'_, '_>, rx: Locked, segment: &Segment) -> Step {
    let Ok(consumer) = gathering::open(call, &rx, segment) else {
        fallback::mark_corrupt(call.fd, rx.slot);
        rx.slot.rx_mode.store(MODE_FINAL, Relaxed); // what follows is the kernel's end of file
        return call.finish(Err(Errno(libc::ECONNRESET)));
    };
    if consumer.available() > 0 {
        let (emptied, seen) = match take(call, &rx, segment, consumer) {
            Taken::Disturbed => return Step::Again,
            Taken::Fault => return call.finish(Err(Errno(libc::EFAULT))),
            Taken::Some { emptied, seen } => (emptied, seen),
        };
        if ended::concerns(call, segment, seen) {
            return ended::follow(call, &rx, segment);
        }
        // Bytes that came before the doorbells were taken rang none of their own: a program that waits for the next edge after
        // a short read must be given them now.
        let more = emptied && call.has_room() && holds_bytes(segment);
        return if call.is_satisfied(rx.slot) && !more { Step::Return(Ok(call.got)) } else { Step::Again };
    }
    if switchover::try_resume(call.fd, rx.slot, segment) {
        return Step::Again;
    }
    if segment.rx().state.load(Acquire) == STATE_ENDED {
        return ended::at_false_end(call, &rx, segment);
    }
    if call.blocks(rx.slot) { empty::wait_for_bytes(call, rx, segment) } else { empty::look_at_kernel(call, &rx, segment) }
}

/// What came of taking bytes from the ring.
pub(super) enum Taken {
    /// A signal handler of this thread took from it meanwhile: look again.
    Disturbed,
    /// The program's memory cannot be written; the bytes stay.
    Fault,
    /// Bytes were copied, up to the position `seen`; if the ring was emptied, the doorbells behind it were taken too.
    Some { emptied: bool, seen: u64 },
}

/// Copies out and frees the space.
pub(super) fn take(call: &mut Call<'_, '_>, rx: &Locked, segment: &Segment, mut consumer: Consumer<'_>) -> Taken {
    let mut wanted = (call.parts.total() - call.got).min(usize::try_from(consumer.available()).unwrap_or(0));
    let good = call.parts.accessible(call.got, wanted, Access::Write);
    if good < wanted {
        // The kernel gives the writes before the one that meets bad memory. Where the last began is known.
        let before = segment.rx().last_write.load(Relaxed).wrapping_sub(consumer.position());
        match usize::try_from(before) {
            Ok(before @ 1..) if before <= good => wanted = before,
            _ => return Taken::Fault,
        }
    }
    // SAFETY: `walk` passes addresses of the caller's memory, which was found to be writable.
    let count = call.parts.walk(call.got, wanted, |to, length| unsafe { consumer.copy_out(to, length) });
    let seen = consumer.position();
    call.from_ring = true;
    if call.peeks() {
        if !consumer.is_current() {
            return Taken::Disturbed; // a signal handler has read: what was copied may be what came in its place
        }
        call.got += count;
        return Taken::Some { emptied: false, seen };
    }
    let Some((before, after)) = consumer.publish() else { return Taken::Disturbed };
    let released = doorbell::should_release(segment, before, after) && release(call.fd, rx, segment);
    rx.slot.count_from_ring(count as u64, u64::from(call.got == 0));
    call.got += count;
    Taken::Some { emptied: released && after == 0, seen }
}

/// The producer waits for room that there is now: takes its junk out, if no doorbell that somebody needs is among it. Otherwise
/// that is left to a later read.
fn release(fd: c_int, rx: &Locked, segment: &Segment) -> bool {
    let needed = || holds_bytes(segment) && !nobody_waits(rx);
    let stale = doorbell::stale(rx.slot, segment);
    if needed() {
        return false; // and nobody is announced, which the next write would ring for
    }
    announce_for_others(rx.endpoint, rx.slot, segment);
    if needed() {
        return false;
    }
    doorbell::take_doorbells(fd, rx.slot, segment, stale);
    true
}

/// Whether nobody else may be asleep or waking up: while the ring holds bytes, the doorbell is theirs, and the producer's junk,
/// which cannot be told from it, stays until the ring is empty. Epoll sets are told to look at this stream first: a thread
/// that goes to wait counts itself asleep and then looks whether it was told, we tell and then look who is asleep.
fn nobody_waits(rx: &Locked) -> bool {
    rx.endpoint.watchers.call_attention(rx.endpoint);
    // A relative may be asleep in an epoll set of its own, which nobody counts here.
    rx.slot.rx_waiters.load(Relaxed) == 0 && rx.slot.holder_count() == 1 && !rx.endpoint.watchers.any_asleep()
}

/// Before doorbells are taken: the bytes that they were rung for may be gone, but whoever else was woken by them may not have seen that yet, and
/// sleeps on without an announcement once they are taken: another thread, or a relative, in a receive or in poll, or an epoll set that leaves the
/// stream to the kernel. The caller looks at the ring again before it takes them: what comes after that look rings.
pub(crate) fn announce_for_others(endpoint: &Endpoint, slot: &Slot, segment: &Segment) {
    if endpoint.watchers.any() || slot.rx_waiters.load(Relaxed) != 0 || slot.holder_count() != 1 {
        doorbell::announce(segment);
    }
}

/// Something to read, or the ring's end: in both cases a reader should look instead of sleeping.
pub(super) fn holds_bytes(segment: &Segment) -> bool {
    let (head, tail) = (segment.rx().head.load(Relaxed), segment.rx().tail.load(Acquire));
    head != tail || segment.rx().state.load(Acquire) == STATE_ENDED
}

/// Receives by the program's own call on a stream whose receiving direction is on the kernel socket, and counts it.
pub(crate) fn receive_plainly(fd: c_int, plain: impl Fn() -> isize) -> Result<usize> {
    match lock_stream(fd, Way::Rx) {
        Some(rx) => through_kernel(&mut Call::new(fd, &Parts::new(&[])?, 0, core::ptr::null_mut()), rx, &plain),
        None => errno::from_bytes(plain()),
    }
}
