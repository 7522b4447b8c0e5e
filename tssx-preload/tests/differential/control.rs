//! Operations on descriptors, options and processes.

#![allow(unsafe_code, reason = "makes the calls under test")]

use std::ffi::c_int;
use std::mem::zeroed;

use crate::player::Player;
use crate::slots;
use crate::sys::{Answer, SIGNALS, errno_name, narrow, told};
use crate::words::{By, Copying, Handle, How, Millis, Question, Worker};

/// SIOCOUTQ and SIOCATMARK of Linux.
const SIOCOUTQ: libc::Ioctl = 0x5411;
const SIOCATMARK: libc::Ioctl = 0x8905;

pub(crate) fn shutdown(on: Handle, how: How) -> String {
    let how = match how {
        How::Rd => libc::SHUT_RD,
        How::Wr => libc::SHUT_WR,
        How::Both => libc::SHUT_RDWR,
        How::Wrong => 7,
    };
    // SAFETY: takes no pointer.
    told(narrow(unsafe { libc::shutdown(slots::fd(on), how) }))
}

pub(crate) fn close(on: Handle) -> String {
    // SAFETY: the descriptor is the table's.
    told(narrow(unsafe { libc::close(slots::take(on)) }))
}

/// Duplicates; where the place is taken, dup2 and dup3 take it over, and the others leave it alone.
pub(crate) fn copy(on: Handle, to: Handle, by: Copying) -> String {
    let (from, place) = (slots::fd(on), slots::fd(to));
    let onto = matches!(by, Copying::Dup2 | Copying::Dup3);
    if !onto && place >= 0 {
        return "taken".to_owned();
    }
    // SAFETY: no pointers; `place` is the table's, 200 is nobody's.
    let made = narrow(unsafe {
        let target = if place >= 0 { place } else { 200 + to.index() as c_int };
        match by {
            Copying::Dup => libc::dup(from),
            Copying::Dup2 => libc::dup2(from, target),
            Copying::Dup3 => libc::dup3(from, target, libc::O_CLOEXEC),
            Copying::Fcntl => libc::fcntl(from, libc::F_DUPFD, 100),
            Copying::Cloexec => libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 100),
        }
    });
    match made {
        Ok(fd) => {
            slots::put(to, fd as c_int, slots::end(on));
            "made".to_owned()
        }
        Err(error) => error,
    }
}

pub(crate) fn nonblock(on: Handle, yes: bool, by: By) -> String {
    let fd = slots::fd(on);
    // SAFETY: FIONBIO reads one int; the others take integers.
    told(narrow(unsafe {
        match by {
            By::Ioctl => {
                let mut value = c_int::from(yes);
                libc::ioctl(fd, libc::FIONBIO, &raw mut value)
            }
            By::Fcntl => {
                let flags = libc::fcntl(fd, libc::F_GETFL);
                let flags = if yes { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
                libc::fcntl(fd, libc::F_SETFL, flags)
            }
        }
    }))
}

fn set<T>(on: Handle, option: c_int, value: &T) -> String {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: a live value and its size.
    told(narrow(unsafe { libc::setsockopt(slots::fd(on), libc::SOL_SOCKET, option, (&raw const *value).cast(), length) }))
}

pub(crate) fn set_timeout(on: Handle, option: c_int, time: Millis) -> String {
    let time = i64::from(time.0.max(0));
    set(on, option, &libc::timeval { tv_sec: time / 1000, tv_usec: time % 1000 * 1000 })
}

pub(crate) fn set_number(on: Handle, option: c_int, value: u32) -> String {
    set(on, option, &value.cast_signed())
}

fn option<T>(fd: c_int, name: c_int) -> Result<T, String> {
    // SAFETY: only used for plain data for which zero is valid; a live value and its size.
    unsafe {
        let mut value: T = zeroed();
        let mut length = size_of::<T>() as libc::socklen_t;
        narrow(libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)).map(|_| value)
    }
}

fn number(fd: c_int, request: libc::Ioctl) -> Answer {
    let mut value: c_int = 0;
    // SAFETY: these requests write one int.
    narrow(unsafe { libc::ioctl(fd, request, &raw mut value) }).map(|_| value as usize)
}

fn name_length(fd: c_int, of_peer: bool) -> Answer {
    // SAFETY: a live address and its length.
    unsafe {
        let mut name: libc::sockaddr_un = zeroed();
        let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        let (name, length_at) = ((&raw mut name).cast(), &raw mut length);
        narrow(if of_peer { libc::getpeername(fd, name, length_at) } else { libc::getsockname(fd, name, length_at) })?;
        Ok(length as usize)
    }
}

pub(crate) fn ask(on: Handle, what: Question) -> String {
    let fd = slots::fd(on);
    let int = |name| option::<c_int>(fd, name);
    let time = |name| option::<libc::timeval>(fd, name).map(|time| format!("{}.{:06}", time.tv_sec, time.tv_usec));
    match what {
        Question::Unread => told(number(fd, libc::FIONREAD)),
        // How many is a matter of the kernel's own accounting; whether there are any is not.
        Question::Unsent => told(number(fd, SIOCOUTQ).map(|unsent| if unsent == 0 { "none" } else { "some" })),
        Question::Mark => told(number(fd, SIOCATMARK)),
        Question::Error => told(int(libc::SO_ERROR).map(|error| if error == 0 { "none".to_owned() } else { errno_name(error) })),
        Question::SendBuffer => told(int(libc::SO_SNDBUF)),
        Question::ReceiveBuffer => told(int(libc::SO_RCVBUF)),
        Question::LowMark => told(int(libc::SO_RCVLOWAT)),
        Question::Type => told(int(libc::SO_TYPE)),
        Question::Listening => told(int(libc::SO_ACCEPTCONN)),
        Question::ReceiveTimeout => told(time(libc::SO_RCVTIMEO)),
        Question::SendTimeout => told(time(libc::SO_SNDTIMEO)),
        // SAFETY: takes no pointer.
        Question::Flags => told(narrow(unsafe { libc::fcntl(fd, libc::F_GETFL) }).map(|flags| format!("{flags:o}"))),
        Question::Own => told(name_length(fd, false)),
        Question::Peer => told(name_length(fd, true)),
        Question::Credentials => {
            told(option::<libc::ucred>(fd, libc::SO_PEERCRED).map(|peer| format!("{} {} {}", peer.pid > 0, peer.uid, peer.gid)))
        }
        Question::Kind => {
            // SAFETY: stat is plain data for which zero is valid; fstat fills it.
            told(unsafe {
                let mut status: libc::stat = zeroed();
                narrow(libc::fstat(fd, &raw mut status)).map(|_| format!("{:o}", status.st_mode & libc::S_IFMT))
            })
        }
        // SAFETY: takes no pointer.
        Question::Position => told(narrow(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) } as c_int)),
    }
}

pub(crate) fn epoll_create() -> String {
    if slots::fd(Handle::Epoll) >= 0 {
        return "there".to_owned();
    }
    // SAFETY: takes no pointer.
    let made = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    slots::put(Handle::Epoll, made, None);
    "made".to_owned()
}

/// Sends a signal to a thread of this process.
pub(crate) fn signal(player: &Player, whom: Worker, restart: bool) -> String {
    let thread = player.board.mailbox(whom).tid.load(std::sync::atomic::Ordering::SeqCst);
    let signal = SIGNALS[usize::from(restart)];
    // SAFETY: takes no pointer; the thread is one of this process', which never end.
    told(narrow(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) } as c_int))
}
