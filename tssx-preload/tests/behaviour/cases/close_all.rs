//! Descriptors that are closed in bulk, past libc's `close`, under high numbers, and while they are in use.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::births::{close_from, close_range};
use crate::harness::{Case, Expect};
use crate::rare::{dup3, raw_close};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "a-range-is-closed", server: range_server, client: range_client, expect: Expect::Accelerated },
    Case { name: "everything-is-closed-at-every-step", server: loop_server, client: loop_client, expect: Expect::Accelerated },
    Case { name: "high-numbers", server: high_server, client: high_client, expect: Expect::Accelerated },
    Case { name: "a-marker-takes-the-number", server: marker_server, client: ended_client, expect: Expect::Accelerated },
    Case { name: "a-raw-close-and-the-number-again", server: again_server, client: again_client, expect: Expect::Accelerated },
    Case { name: "connections-onto-each-other", server: swap_server, client: swap_client, expect: Expect::Accelerated },
    Case { name: "connections-and-listeners", server: listener_server, client: listener_client, expect: Expect::Accelerated },
    Case { name: "close-races-read", server: race_server, client: race_client, expect: Expect::Accelerated },
];

/// Four warm connections under numbers that follow each other.
fn in_a_row(role: &Role) -> Vec<i32> {
    let moved = |fd| {
        let high = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100).expect("a free number") as i32;
        assert_eq!(sys::close(fd), Ok(0));
        high
    };
    (0..4).map(|_| moved(role.open_warm())).collect()
}

fn range_server(role: &Role) {
    let all = in_a_row(role);
    role.note("close-on-exec only", close_range(all[0], all[3].cast_unsigned(), libc::CLOSE_RANGE_CLOEXEC));
    all.iter().for_each(|fd| role.settle(*fd));
    role.note("close_range", close_range(all[0], all[1].cast_unsigned(), 0));
    role.note("gone", (sys::read(all[0], &mut [0]), sys::read(all[1], &mut [0])));
    role.note("unknown flags", close_range(all[2], all[3].cast_unsigned(), 64));
    role.note("from high to low", close_range(all[3], all[2].cast_unsigned(), 0));
    role.settle(all[2]);
    role.settle(all[3]);
    close_from(all[2]);
    role.note("gone too", (sys::read(all[2], &mut [0]), sys::read(all[3], &mut [0])));
    role.meet();
}

fn range_client(role: &Role) {
    let all: Vec<i32> = (0..4).map(|_| role.open_warm()).collect();
    all.iter().for_each(|fd| role.settle(*fd));
    role.note("ends", (sys::read(all[0], &mut [0]), sys::read(all[1], &mut [0])));
    role.settle(all[2]);
    role.settle(all[3]);
    role.note("ends", (sys::read(all[2], &mut [0]), sys::read(all[3], &mut [0])));
    role.meet();
}

/// Whatever a program does not know it closes, as daemons do. The connection itself stays.
fn close_all_but(keep: &[i32]) -> usize {
    (3..300).filter(|fd| !keep.contains(fd)).filter(|fd| sys::close(*fd).is_ok()).count()
}

fn open_numbers() -> Vec<i32> {
    (3..300).filter(|fd| sys::fcntl(*fd, libc::F_GETFD, 0).is_ok()).collect()
}

fn loop_server(role: &Role) {
    for round in 0..12 {
        let keep = open_numbers();
        let fd = role.open();
        role.exchange(fd, round);
        let keep = [keep, vec![fd]].concat();
        role.note("closed", close_all_but(&keep));
        role.warm_up(fd);
        role.note("closed later", close_all_but(&keep));
        role.warm_up(fd);
        role.note("end", sys::read(fd, &mut [0]));
        role.note("close", sys::close(fd));
    }
}

fn loop_client(role: &Role) {
    for round in 0..12 {
        let keep = open_numbers();
        let fd = role.open();
        let keep = [keep, vec![fd]].concat();
        role.note("closed", close_all_but(&keep));
        role.exchange(fd, round);
        role.note("closed then", close_all_but(&keep));
        role.warm_up(fd);
        role.warm_up(fd);
        role.note("close", sys::close(fd));
    }
}

/// Above what FD_SETSIZE and the first chunks of any table hold.
const HIGH: [i32; 3] = [1030, 5000, 70_000];

/// Root may have as many as the kernel can; others go as far as they may, and the last numbers are refused.
fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    if setrlimit(Resource::RLIMIT_NOFILE, 100_000, hard.max(100_000)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
    }
}

fn high_server(role: &Role) {
    raise_limit();
    let mut fd = role.open_warm();
    for number in HIGH {
        let high = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, number).map(|made| made as i32);
        role.note("F_DUPFD", high);
        if let Ok(high) = high {
            role.note("close the lower", sys::close(fd));
            fd = high;
        }
        role.settle(fd);
        role.note("poll", sys::poll(fd, libc::POLLOUT, SOON));
        let epoll = sys::epoll_create();
        role.note("epoll_ctl", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN));
        role.meet();
        role.note("epoll_wait", sys::epoll_wait(epoll, 4, SOON).iter().map(|(at, event)| (*at == fd, *event)).collect::<Vec<_>>());
        let mut into = [0; 5];
        read_exactly(fd, &mut into);
        role.note("read", into);
        role.note("close the set", sys::close(epoll));
    }
    role.note("dup2 down again", sys::dup2(fd, 900));
    close_from(1000);
    role.settle(900);
    role.note("end", sys::read(900, &mut [0]));
}

fn high_client(role: &Role) {
    let fd = role.open_warm();
    for _ in HIGH {
        role.settle(fd);
        write_all(fd, b"event");
        role.meet();
    }
    role.settle(fd);
    role.note("close", sys::close(fd));
}

/// Java's asynchronous close: a socket whose other end is shut takes the number, so that whoever uses it sees the end.
fn marker_server(role: &Role) {
    for _ in 0..3 {
        let fd = role.open_warm();
        let (marker, other) = UnixStream::pair().expect("socketpair");
        drop(other);
        role.note("dup2", sys::dup2(marker.as_raw_fd(), fd).map(|made| made as i32 == fd));
        role.note("read", sys::read(fd, &mut [0; 10]));
        role.note("write", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
        role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
        role.note("close", sys::close(fd));
        role.meet();
    }
}

fn ended_client(role: &Role) {
    for _ in 0..3 {
        let fd = role.open_warm();
        role.note("end", sys::read(fd, &mut [0]));
        role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
        role.note("close", sys::close(fd));
        role.meet();
    }
}

/// Each connection has the number of the last, which was closed as libuv does.
fn again_server(role: &Role) {
    let mut number = None;
    for round in 0..6 {
        let fd = role.open_warm();
        role.note("the same number", number.is_none_or(|before| before == fd));
        number = Some(fd);
        write_all(fd, &pattern(round, 0, 3000));
        role.note("close", raw_close(fd));
        role.note("once more", raw_close(fd));
        role.meet();
    }
}

fn again_client(role: &Role) {
    for round in 0..6 {
        let fd = role.open_warm();
        let mut into = [0; 3000];
        read_exactly(fd, &mut into);
        role.note("right", into == *pattern(round, 0, 3000));
        role.note("end", sys::read(fd, &mut into));
        role.note("close", raw_close(fd));
        role.meet();
    }
}

fn swap_server(role: &Role) {
    let (first, second) = (role.open_warm(), role.open_warm());
    write_all(first, b"before");
    role.note("dup2", sys::dup2(second, first).map(|made| made as i32 == first));
    role.note("close-on-exec after dup2", sys::fcntl(first, libc::F_GETFD, 0));
    role.settle(first);
    role.settle(second);
    role.note("close", sys::close(second));
    role.settle(first);
    role.note("dup3 with unknown flags", dup3(first, second, 1));
    role.note("dup3 onto itself", dup3(first, first, 0));
    role.note("dup3", dup3(first, second, libc::O_CLOEXEC).map(|made| made as i32 == second));
    role.note("close-on-exec after dup3", sys::fcntl(second, libc::F_GETFD, 0));
    role.note("close", sys::close(first));
    role.settle(second);
    role.note("end", sys::read(second, &mut [0]));
}

fn swap_client(role: &Role) {
    let (first, second) = (role.open_warm(), role.open_warm());
    let mut into = [0; 6];
    read_exactly(first, &mut into);
    role.note("read", into);
    role.note("end", sys::read(first, &mut into));
    (0..4).for_each(|_| role.settle(second));
    role.note("close", sys::close(second));
}

/// A listening socket under a connection's number, and the other way round.
fn listener_server(role: &Role) {
    let fd = role.open_warm();
    let listener = role.listener();
    let copy = sys::dup(listener);
    role.note("a listener onto a connection", sys::dup2(listener, fd).map(|made| made as i32 == fd));
    let accepted = sys::accept4(fd, 0);
    role.warm_up(accepted);
    role.note("a connection onto a listener", sys::dup2(accepted, fd).map(|made| made as i32 == fd));
    role.note("no listener any more", sys::option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN));
    role.note("close", sys::close(accepted));
    role.settle(fd);
    let accepted = sys::accept4(copy, libc::SOCK_CLOEXEC);
    role.warm_up(accepted);
    role.note("end", sys::read(accepted, &mut [0]));
    role.note("close", sys::close(copy));
}

fn listener_client(role: &Role) {
    let fd = role.open_warm();
    role.note("end", sys::read(fd, &mut [0]));
    let second = role.open_warm();
    role.settle(second);
    let third = role.open_warm();
    role.note("close", sys::close(third));
    role.note("end", sys::read(second, &mut [0]));
}

/// Connections that follow each other on one number.
const RACES: usize = 60;

/// Two threads read from whatever has the number, while it is closed and becomes the next connection: every read is of one connection, and
/// nothing that was freed is used. The next one is opened elsewhere, so that its first bytes are not theirs to take.
fn race_server(role: &Role) {
    let number = role.open_warm();
    let over = AtomicBool::new(false);
    let mixed = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_whatever(number, &over))).collect();
        for round in 0..RACES {
            let next = role.open_warm();
            if round % 2 == 0 {
                assert_eq!(sys::close(number), Ok(0));
            }
            assert!(sys::dup2(next, number).is_ok());
            assert_eq!(sys::close(next), Ok(0));
            role.meet();
        }
        over.store(true, Ordering::Release);
        readers.into_iter().map(|reader| reader.join().expect("reader")).sum::<usize>()
    });
    role.note("reads of more than one connection", mixed);
}

fn read_whatever(number: i32, over: &AtomicBool) -> usize {
    let (mut mixed, mut into) = (0, [0; 500]);
    while !over.load(Ordering::Acquire) {
        // Not blocking: nobody would wake a reader of the last connection.
        let Ok(count @ 1..) = sys::recv(number, &mut into, libc::MSG_DONTWAIT) else { continue };
        let got = into.get(..count).unwrap_or_default();
        mixed += usize::from(got.iter().any(|byte| *byte != into[0]));
    }
    mixed
}

/// Each connection carries one value only, until the next is there in its place.
fn race_client(role: &Role) {
    let mut last = role.open_warm();
    for round in 0..RACES {
        let value = [round as u8 + 1; 300];
        let fd = role.open_warm();
        for _ in 0..100 {
            let _ = sys::send(last, &value, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        }
        role.meet();
        for _ in 0..100 {
            let _ = sys::send(fd, &[round as u8 + 2; 300], libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        }
        assert_eq!(sys::close(last), Ok(0));
        last = fd;
    }
}
