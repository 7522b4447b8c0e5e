//! How the two ends of a connection meet outside it: a short-lived mailbox in the abstract namespace, unix(7).
//!
//! The acceptor listens on a name derived from the inode of its socket; the connector, to whom the kernel tells that inode
//! ([`crate::diag`]), connects and passes the segment. Both check the user id that the kernel vouches for (SO_PEERCRED, of a
//! listening socket the listener's) against the one of the stream itself, *before* anything is passed or believed, so that
//! a third user who squats on the name or guesses it gets nothing. Nobody waits: each step is one try, made in passing.

#![allow(unsafe_code, reason = "builds control messages for SCM_RIGHTS")]

use core::mem::{MaybeUninit, size_of};

use crate::clock;
use crate::reason::Reason;
use crate::sys;

/// First bytes of every mailbox name after the NUL; the version is that of the protocol.
const NAME_PREFIX: &[u8] = b"\0tssx/3/";
/// What an offer's only message says; the descriptor rides along.
const OFFER: &[u8; 8] = b"TSSXOFR1";
/// Mailbox descriptors are moved to at least this number, out of the way of programs that count on low ones.
const DESCRIPTOR_MIN: usize = 200;

/// Longest wait for the message of a visitor who has connected, microseconds.
const OFFER_WAIT_US: u64 = 300;

/// What one try brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It worked.
    Done(T),
    /// The peer is not there (yet).
    NotYet,
    /// It will not work.
    Refused(Reason),
}

fn address(acceptor_inode: u64) -> (libc::sockaddr_un, usize) {
    let mut name = [0_u8; 32];
    let digits = (0..16).rev().map(|nibble| b"0123456789abcdef"[(acceptor_inode >> (4 * nibble)) as usize & 15]);
    let mut length = 0;
    for (to, from) in name.iter_mut().zip(NAME_PREFIX.iter().copied().chain(digits)) {
        *to = from;
        length += 1;
    }
    // SAFETY: all-zero is a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    (address, size_of::<libc::sa_family_t>() + length)
}

fn socket() -> sys::Result<i32> {
    sys::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
}

/// Whether the process at the other end of `fd` runs as `uid`, or as root, who could do anything anyway.
fn is_user(fd: i32, uid: u32) -> bool {
    let peer = sys::getsockopt::<libc::ucred>(fd, libc::SO_PEERCRED);
    peer.is_ok_and(|peer| peer.uid == 0 || (peer.uid == uid && (uid != OVERFLOW || sees_all_users())))
}

/// Whom the kernel names for every user that our user namespace has no number for (user_namespaces(7)): many, who are not the same. A user
/// of that number is often there as well.
const OVERFLOW: u32 = 65_534;

/// Whether our user namespace has a number for every user.
fn sees_all_users() -> bool {
    let mut room = [0; 128];
    let map = sys::read_file(c"/proc/self/uid_map", &mut room).unwrap_or(&[]);
    let mut numbers = map.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    // The first of this namespace, whom it is outside, and how many.
    [b"0".as_slice(), b"0", b"4294967295"].into_iter().all(|wanted| numbers.next() == Some(wanted))
}

/// The user at the other end of the stream `fd`, as the kernel recorded it.
///
/// # Errors
/// [`Reason::PeerCredentials`] if the kernel does not say.
pub fn stream_user(fd: i32) -> Result<u32, Reason> {
    sys::getsockopt::<libc::ucred>(fd, libc::SO_PEERCRED).map(|peer| peer.uid).map_err(|_| Reason::PeerCredentials)
}

/// Acceptor: opens the mailbox for the socket with this inode. The descriptor is the caller's to close.
///
/// # Errors
/// [`Reason::PeerNotReady`] if no socket can be made or the name is taken.
pub fn open_mailbox(acceptor_inode: u64) -> Result<i32, Reason> {
    let low = socket().map_err(|_| Reason::PeerNotReady)?;
    let fd = match sys::fcntl(low, libc::F_DUPFD_CLOEXEC, DESCRIPTOR_MIN) {
        Ok(high) => {
            sys::close(low);
            high
        }
        Err(_) => low,
    };
    let (name, length) = address(acceptor_inode);
    if sys::bind(fd, &name, length).and_then(|()| sys::listen(fd, 2)).is_err() {
        sys::close(fd);
        return Err(Reason::PeerNotReady);
    }
    Ok(fd)
}

/// Acceptor: looks whether an offer has come from user `uid`. On success the segment's descriptor, the caller's to close.
#[must_use]
pub fn take_offer(mailbox: i32, uid: u32) -> Outcome<i32> {
    let Ok(visitor) = sys::accept(mailbox) else {
        return Outcome::NotYet;
    };
    let outcome = if is_user(visitor, uid) { await_offer(visitor) } else { Outcome::Refused(Reason::PeerCredentials) };
    sys::close(visitor);
    outcome
}

/// Connector: offers `segment` to the mailbox of the acceptor with this inode, if it is open and belongs to user `uid`.
/// `make` is called once the acceptor is known to be there and to be the right one, `unmake` if it is gone by then.
pub fn offer<T>(
    acceptor_inode: u64,
    uid: u32,
    make: impl FnOnce() -> Result<(T, i32), Reason>,
    unmake: impl FnOnce(T),
) -> Outcome<T> {
    let Ok(fd) = socket() else {
        return Outcome::NotYet;
    };
    let (name, length) = address(acceptor_inode);
    let outcome = if sys::connect(fd, &name, length).is_err() {
        Outcome::NotYet
    } else if !is_user(fd, uid) {
        Outcome::Refused(Reason::PeerCredentials)
    } else {
        match make() {
            Ok((made, memory)) => {
                let sent = send_offer(fd, memory);
                sys::close(memory);
                if sent {
                    Outcome::Done(made)
                } else {
                    unmake(made);
                    Outcome::NotYet
                }
            }
            Err(reason) => Outcome::Refused(reason),
        }
    };
    sys::close(fd);
    outcome
}

/// The connector connects first and makes the segment then, so its message comes some microseconds after it; a visitor that
/// says nothing for longer is sent away, and an honest one tries again.
fn await_offer(visitor: i32) -> Outcome<i32> {
    let (start, patience) = (clock::ticks(), OFFER_WAIT_US * clock::ticks_per_us());
    loop {
        match receive_offer(visitor) {
            Outcome::NotYet if clock::ticks().wrapping_sub(start) < patience => sys::yield_now(),
            outcome => return outcome,
        }
    }
}

/// Room for one control message with one descriptor, aligned as `struct cmsghdr`.
#[repr(C, align(8))]
struct Control([u8; 32]);

/// Length of a control message that carries one descriptor: CMSG_LEN(sizeof(int)), cmsg(3).
const CONTROL_LENGTH: usize = size_of::<libc::cmsghdr>() + size_of::<i32>();

fn send_offer(fd: i32, memory: i32) -> bool {
    let mut control = Control([0; 32]);
    let header = libc::cmsghdr { cmsg_len: CONTROL_LENGTH, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS };
    let place = control.0.as_mut_ptr();
    // SAFETY: the buffer is aligned for `cmsghdr` and holds header and descriptor (20 of 32 bytes).
    unsafe {
        place.cast::<libc::cmsghdr>().write(header);
        place.add(size_of::<libc::cmsghdr>()).cast::<i32>().write(memory);
    }
    let mut text = *OFFER;
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let message = message(&mut part, &mut control);
    // SAFETY: all pointers lead to locals that are alive.
    unsafe { sys::sendmsg(fd, &message) == Ok(OFFER.len()) }
}

fn receive_offer(fd: i32) -> Outcome<i32> {
    let mut control = Control([0; 32]);
    let mut text = [0_u8; OFFER.len()];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let mut message = message(&mut part, &mut control);
    // SAFETY: all pointers lead to locals that are alive.
    let received = unsafe { sys::recvmsg(fd, &mut message, libc::MSG_CMSG_CLOEXEC) };
    if received == Err(sys::Errno::AGAIN) {
        return Outcome::NotYet;
    }
    // More than one descriptor finds no room, and the kernel gives none of the others.
    let whole = received == Ok(OFFER.len()) && text == *OFFER && message.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) == 0;
    let length = message.msg_controllen;
    // SAFETY: the buffer is aligned for `cmsghdr` and initialised, whatever the kernel wrote.
    let (header, memory) = unsafe {
        let place = control.0.as_ptr();
        (place.cast::<libc::cmsghdr>().read(), place.add(size_of::<libc::cmsghdr>()).cast::<i32>().read())
    };
    let carries = length >= CONTROL_LENGTH
        && header.cmsg_level == libc::SOL_SOCKET
        && header.cmsg_type == libc::SCM_RIGHTS
        && header.cmsg_len == CONTROL_LENGTH;
    match (carries, whole) {
        (true, true) => Outcome::Done(memory),
        (true, false) => {
            sys::close(memory);
            Outcome::Refused(Reason::BadSegment)
        }
        (false, _) => Outcome::Refused(without_descriptor(received, message.msg_flags)),
    }
}

/// Why there is no descriptor: the visitor has left without an offer, as one that has no memory for a segment does; we have no number or no memory
/// for it, as unix(7) and recvmsg(2) tell; or what came is no offer.
fn without_descriptor(received: sys::Result<usize>, flags: i32) -> Reason {
    match received {
        Ok(0) => Reason::PeerNotReady,
        Ok(_) if flags & libc::MSG_CTRUNC == 0 => Reason::BadSegment,
        Ok(_) => Reason::NoMemory,
        Err(errno) if errno.is_passing() => Reason::NoMemory,
        Err(_) => Reason::BadSegment,
    }
}

fn message(part: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // Without the padding, in which a second descriptor would find room.
    message.msg_controllen = CONTROL_LENGTH;
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segment;

    fn uid() -> u32 {
        // SAFETY: no arguments.
        unsafe { libc::getuid() }
    }

    #[test]
    fn an_offer_reaches_the_open_mailbox_and_only_that() {
        let inode = 0xfeed_0000 + u64::from(std::process::id());
        assert_eq!(offer(inode, uid(), || -> Result<((), i32), Reason> { panic!("nobody listens") }, drop), Outcome::NotYet);
        let mailbox = open_mailbox(inode).expect("mailbox");
        assert_eq!(take_offer(mailbox, uid()), Outcome::NotYet);
        assert!(open_mailbox(inode).is_err(), "the name is taken");
        let sent = offer(inode, uid(), || Segment::create(0, 1, inode), |_| panic!("not sent"));
        let Outcome::Done(segment) = sent else { panic!("not sent: {sent:?}") };
        let Outcome::Done(memory) = take_offer(mailbox, uid()) else { panic!("not received") };
        assert!(Segment::adopt(memory, inode).is_ok());
        sys::close(memory);
        sys::close(mailbox);
        // SAFETY: not used below.
        unsafe { segment.unmap() };
    }

    /// Descriptors that a visitor brings and nobody closes would add up to all that the process may have.
    #[test]
    fn of_a_visitor_with_more_descriptors_none_is_kept() {
        let inode = 0xfeed_1000 + u64::from(std::process::id());
        let mailbox = open_mailbox(inode).expect("mailbox");
        for count in [2, 3, 253] {
            let visitor = socket().expect("socket");
            let (name, length) = address(inode);
            sys::connect(visitor, &name, length).expect("connect");
            let memory = sys::memfd_create(c"brought", libc::MFD_CLOEXEC).expect("memfd");
            bring(visitor, OFFER, &vec![memory; count]);
            assert_eq!(take_offer(mailbox, uid()), Outcome::Refused(Reason::BadSegment));
            sys::close(memory);
            sys::close(visitor);
        }
        assert_eq!(kept("memfd:brought"), 0);
        sys::close(mailbox);
    }

    #[test]
    fn what_brings_no_descriptor_is_told_apart() {
        let why = without_descriptor;
        let errno = |number| Err(sys::Errno(number));
        assert_eq!(why(Ok(0), 0), Reason::PeerNotReady, "gone");
        assert_eq!(why(Ok(OFFER.len()), 0), Reason::BadSegment, "there never was one");
        assert_eq!(why(Ok(OFFER.len()), libc::MSG_CTRUNC), Reason::NoMemory, "there was, and no number for it");
        assert_eq!([why(errno(libc::ENOMEM), 0), why(errno(libc::ENOBUFS), 0)], [Reason::NoMemory; 2]);
        assert_eq!(why(errno(libc::EPERM), 0), Reason::BadSegment);
    }

    /// Whoever visits and has nothing to offer has offered no bad segment.
    #[test]
    fn a_visitor_that_leaves_has_refused_nothing() {
        let inode = 0xfeed_3000 + u64::from(std::process::id());
        let mailbox = open_mailbox(inode).expect("mailbox");
        assert_eq!(offer(inode, uid(), || Err::<((), i32), _>(Reason::NoMemory), drop), Outcome::Refused(Reason::NoMemory));
        assert_eq!(take_offer(mailbox, uid()), Outcome::Refused(Reason::PeerNotReady));
        sys::close(mailbox);
    }

    /// Descriptors of this process that lead to such a file.
    fn kept(name: &str) -> usize {
        let links =
            std::fs::read_dir("/proc/self/fd").expect("proc").filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().contains(name)).count()
    }

    #[cfg(not(loom))]
    #[test]
    fn a_message_of_any_bytes_is_refused_unless_it_is_an_offer() {
        let inode = 0xfeed_2000 + u64::from(std::process::id());
        let mailbox = open_mailbox(inode).expect("mailbox");
        let memory = sys::memfd_create(c"in a message", libc::MFD_CLOEXEC).expect("memfd");
        let mut dice = crate::mutations::Random::new(3);
        let (mut taken, mut refused) = (0, 0);
        crate::mutations::each(OFFER, 2000, |text| {
            let visitor = socket().expect("socket");
            let (name, length) = address(inode);
            sys::connect(visitor, &name, length).expect("connect");
            let count = dice.below(3);
            bring(visitor, text, &vec![memory; count]);
            match take_offer(mailbox, uid()) {
                Outcome::Done(memory) => {
                    assert!(text == OFFER && count == 1);
                    sys::close(memory);
                    taken += 1;
                }
                Outcome::Refused(Reason::BadSegment) => refused += 1,
                Outcome::Refused(Reason::PeerNotReady) => assert!(text.is_empty() && count == 0),
                other => panic!("{other:?}"),
            }
            sys::close(visitor);
        });
        println!("{taken} taken, {refused} refused");
        assert!(taken > 0 && refused > 1000);
        assert_eq!(kept("memfd:in a message"), 1, "our own");
        sys::close(memory);
        sys::close(mailbox);
    }

    fn bring(fd: i32, text: &[u8], descriptors: &[i32]) {
        let length = size_of::<libc::cmsghdr>() + size_of_val(descriptors);
        let mut control = vec![0_u64; length.div_ceil(8)];
        let header = libc::cmsghdr { cmsg_len: length, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS };
        // SAFETY: the buffer is aligned for `cmsghdr` and long enough for header and descriptors.
        unsafe {
            let place = control.as_mut_ptr().cast::<u8>();
            place.cast::<libc::cmsghdr>().write(header);
            let to = place.add(size_of::<libc::cmsghdr>()).cast::<i32>();
            to.copy_from_nonoverlapping(descriptors.as_ptr(), descriptors.len());
        }
        let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
        let mut small = Control([0; 32]);
        let mut message = message(&mut part, &mut small);
        let length = if descriptors.is_empty() { 0 } else { length };
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), length);
        // SAFETY: all pointers lead to locals that are alive; nothing is written through the first.
        assert_eq!(unsafe { sys::sendmsg(fd, &message) }, Ok(text.len()));
    }

    #[test]
    fn whom_the_namespace_has_no_number_for_is_nobody_in_particular() {
        let map = std::fs::read_to_string("/proc/self/uid_map").expect("proc");
        assert_eq!(sees_all_users(), map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"]);
    }

    #[test]
    fn another_user_is_refused_by_both_sides() {
        // SAFETY: no arguments.
        let root = uid() == 0;
        if root {
            // Root is let in by design; the cross-user case with an unprivileged stranger runs as a preloaded test.
            assert!(is_user(loopback_pair(), u32::MAX));
            return;
        }
        assert!(!is_user(loopback_pair(), u32::MAX));
    }

    fn loopback_pair() -> i32 {
        use std::os::fd::IntoRawFd;
        std::os::unix::net::UnixStream::pair().expect("pair").0.into_raw_fd()
    }
}
