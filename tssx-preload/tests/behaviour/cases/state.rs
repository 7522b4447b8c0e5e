//! What a socket remembers: blocking or not, whoever set it and how; time limits; sizes; who is told by SIGIO.

use std::time::{Duration, Instant};

use crate::harness::{Case, Expect};
use crate::messages::{receive_beside, recvfrom_named};
use crate::role::{BRIEFLY, Role, SOON, pattern, read_exactly, write_all};
use crate::waits::ioctl;
use crate::{signals, sys};

pub(super) const CASES: &[Case] = &[
    Case { name: "nonblocking-through-a-copy", server: copy_server, client: idle_client, expect: Expect::Accelerated },
    Case { name: "nonblocking-by-fionbio", server: ioctl_server, client: idle_client, expect: Expect::Accelerated },
    Case { name: "nonblocking-from-the-start", server: born_server, client: born_client, expect: Expect::Accelerated },
    Case { name: "nonblocking-set-by-a-child", server: child_server, client: idle_client, expect: Expect::Accelerated },
    Case {
        name: "receive-timeout-set-before-the-upgrade",
        server: early_server,
        client: early_client,
        expect: Expect::Accelerated,
    },
    Case { name: "timeouts-read-back-and-reset", server: reset_server, client: reset_client, expect: Expect::Accelerated },
    Case { name: "one-timeout-for-the-whole-call", server: whole_server, client: whole_client, expect: Expect::Accelerated },
    Case { name: "tiny-timeouts", server: tiny_server, client: staying_client, expect: Expect::Accelerated },
    Case { name: "receive-low-water-mark", server: mark_server, client: mark_client, expect: Expect::Either },
    Case { name: "peek-offset", server: offset_server, client: offset_client, expect: Expect::Either },
    Case { name: "bytes-not-read-yet", server: queue_server, client: queue_client, expect: Expect::Accelerated },
    Case { name: "a-small-send-buffer", server: small_server, client: small_client, expect: Expect::Accelerated },
    Case { name: "flags-of-descriptors", server: flags_server, client: idle_client, expect: Expect::Accelerated },
    Case { name: "identity-in-proc", server: proc_server, client: idle_client, expect: Expect::Accelerated },
    Case { name: "names-with-little-room", server: names_server, client: names_client, expect: Expect::Accelerated },
    Case { name: "sigio", server: sigio_server, client: sigio_client, expect: Expect::Either },
    Case { name: "options-of-odd-lengths", server: odd_server, client: idle_client, expect: Expect::Accelerated },
];

fn idle_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}

/// As [`idle_client`], but there until the server has done all: an end that goes meanwhile would be seen.
fn staying_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
    role.meet();
    sys::close(fd).expect("close");
}

/// Whether a read of an empty stream answers at once.
fn nonblocking(fd: i32) -> (sys::Answer, bool) {
    let flags = sys::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags as i32 & libc::O_NONBLOCK != 0);
    (sys::read(fd, &mut [0; 4]), flags == Ok(true))
}

fn copy_server(role: &Role) {
    let fd = role.open_warm();
    let copy = sys::dup(fd);
    sys::set_nonblocking(copy, true);
    role.note("the original", nonblocking(fd));
    role.note("close the copy", sys::close(copy));
    role.note("the original", nonblocking(fd));
    let copy = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, 50).expect("a copy") as i32;
    role.note("another copy", (copy >= 50, nonblocking(copy)));
    role.note("not for one call", sys::recv(copy, &mut [0], libc::MSG_DONTWAIT));
    sys::set_nonblocking(fd, false);
    role.note("blocking again", sys::fcntl(copy, libc::F_GETFL, 0).map(|flags| flags as i32 & libc::O_NONBLOCK));
    role.settle(copy);
}

fn ioctl_server(role: &Role) {
    let fd = role.open_warm();
    role.note("on", ioctl(fd, libc::FIONBIO, 1));
    role.note("empty", nonblocking(fd));
    role.note("on again, by another number", ioctl(fd, libc::FIONBIO, 7));
    role.note("empty", nonblocking(fd));
    role.note("off", ioctl(fd, libc::FIONBIO, 0));
    role.note("flags", sys::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags as i32 & libc::O_NONBLOCK));
    role.note("FIOASYNC off", ioctl(fd, libc::FIOASYNC, 0));
    role.note("FIONREAD", ioctl(fd, libc::FIONREAD, 55));
    role.note("an unknown request", ioctl(fd, 0x1234_5678, 0));
    role.settle(fd);
}

/// `accept4` and `socket` with SOCK_NONBLOCK.
fn born_server(role: &Role) {
    sys::poll(role.listener(), libc::POLLIN, SOON).expect("a connection comes");
    let fd = sys::accept4(role.listener(), libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    role.note("born", (nonblocking(fd), sys::fcntl(fd, libc::F_GETFD, 0)));
    role.meet();
    for _ in 0..30 {
        let mut byte = [0];
        read_exactly(fd, &mut byte);
        write_all(fd, &byte);
    }
    role.meet();
    role.note("still", nonblocking(fd));
    role.meet();
}

fn born_client(role: &Role) {
    let fd = sys::socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    role.note("connect", sys::connect(fd, &role.path().to_string_lossy()));
    role.note("born", (nonblocking(fd), sys::fcntl(fd, libc::F_GETFD, 0)));
    role.meet();
    for round in 0..30 {
        let mut byte = [round];
        write_all(fd, &byte);
        read_exactly(fd, &mut byte);
    }
    role.note("still", nonblocking(fd));
    role.meet();
    role.meet();
}

fn child_server(role: &Role) {
    let fd = role.open_warm();
    let child = sys::in_child(|| sys::set_nonblocking(fd, true));
    role.note("child", child.wait());
    role.note("the parent", nonblocking(fd));
    let child = sys::in_child(|| {
        let _ = ioctl(fd, libc::FIONBIO, 0);
    });
    role.note("child", child.wait());
    role.note("blocking", sys::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags as i32 & libc::O_NONBLOCK));
    role.settle(fd);
}

fn limit(microseconds: i64) -> libc::timeval {
    libc::timeval { tv_sec: 0, tv_usec: microseconds }
}

fn early_server(role: &Role) {
    let fd = role.open();
    role.note("set", sys::set_option(fd, libc::SO_RCVTIMEO, &limit(8000)));
    role.note("before any traffic", sys::read(fd, &mut [0; 4]));
    role.settle(fd);
    let start = Instant::now();
    role.note("after the upgrade", sys::read(fd, &mut [0; 4]));
    role.note("waited", start.elapsed() >= Duration::from_micros(7000));
    role.meet();
    role.note("with data", sys::read(fd, &mut [0; 4]));
    role.note("waitall with a part", sys::recv(fd, &mut [0; 9], libc::MSG_WAITALL));
    role.meet();
}

fn early_client(role: &Role) {
    let fd = role.open();
    role.settle(fd);
    role.meet();
    write_all(fd, b"seven b");
    role.meet();
}

/// The time-out is for the whole call, not for each byte that wakes it.
fn whole_server(role: &Role) {
    let fd = role.open_warm();
    role.note("set", sys::set_option(fd, libc::SO_RCVTIMEO, &limit(200_000)));
    role.meet();
    let part = sys::recv(fd, &mut [0; DRIPS], libc::MSG_WAITALL);
    role.note("a part", part.is_ok_and(|count| count < DRIPS));
    role.meet();
}

fn whole_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    for _ in 0..DRIPS {
        std::thread::sleep(BRIEFLY);
        write_all(fd, b"x");
    }
    role.meet();
}

/// Bytes that come one by one, together later than the time-out, each sooner.
const DRIPS: usize = 40;

fn reset_server(role: &Role) {
    let fd = role.open_warm();
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        role.note("set", sys::set_option(fd, option, &libc::timeval { tv_sec: 3, tv_usec: 500_000 }));
        role.note("read back", sys::time_option(fd, option));
        role.note("reset", sys::set_option(fd, option, &limit(0)));
        role.note("read back", sys::time_option(fd, option));
    }
    role.note("short", sys::set_option(fd, libc::SO_RCVTIMEO, &limit(4000)));
    role.note("times out", sys::read(fd, &mut [0; 4]));
    role.note("reset", sys::set_option(fd, libc::SO_RCVTIMEO, &limit(0)));
    role.meet();
    role.note("waits as long as it takes", sys::read(fd, &mut [0; 4]));
    role.settle(fd);
}

fn reset_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(BRIEFLY);
    write_all(fd, b"late");
    role.settle(fd);
}

fn tiny_server(role: &Role) {
    let fd = role.open_warm();
    for microseconds in [1, 10, 999] {
        role.note("set", sys::set_option(fd, libc::SO_RCVTIMEO, &limit(microseconds)));
        role.note("times out", sys::read(fd, &mut [0; 4]));
        role.note("set", sys::set_option(fd, libc::SO_SNDTIMEO, &limit(microseconds)));
    }
    role.note("no limit", sys::set_option(fd, libc::SO_RCVTIMEO, &limit(0)));
    role.settle(fd);
    while sys::send(fd, &[1; 5000], 0).is_ok() {}
    role.note("a full buffer", sys::send(fd, &[1; 5000], 0));
    role.meet();
}

/// A blocking receive waits for that many bytes or for what it asked for; poll does not wait for them.
fn mark_server(role: &Role) {
    let fd = role.open_warm();
    role.note("at first", sys::option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT));
    role.note("set", sys::set_option(fd, libc::SO_RCVLOWAT, &6_i32));
    role.note("read back", sys::option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT));
    role.meet();
    role.meet();
    role.note("poll with less", sys::poll(fd, libc::POLLIN, Duration::ZERO));
    role.note("not waiting, with less", sys::recv(fd, &mut [0; 2], libc::MSG_DONTWAIT));
    role.meet();
    role.note("waits for six", sys::recv(fd, &mut [0; 20], 0));
    role.meet();
    role.note("asked for less than six", sys::recv(fd, &mut [0; 3], 0));
    role.note("set", (sys::set_option(fd, libc::SO_RCVLOWAT, &0_i32), sys::set_option(fd, libc::SO_RCVLOWAT, &-1_i32)));
    role.note("read back", sys::option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT));
    role.meet();
}

fn mark_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"four");
    role.meet();
    role.meet();
    std::thread::sleep(Duration::from_millis(5));
    write_all(fd, b"more");
    role.meet();
    write_all(fd, b"abc");
    role.meet();
}

fn offset_server(role: &Role) {
    let fd = role.open_warm();
    role.note("at first", sys::option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF));
    role.note("set", sys::set_option(fd, libc::SO_PEEK_OFF, &0_i32));
    role.meet();
    role.meet();
    let mut into = [0; 4];
    role.note("peek", (sys::recv(fd, &mut into, libc::MSG_PEEK), into));
    role.note("peek on", (sys::recv(fd, &mut into, libc::MSG_PEEK), into));
    role.note("offset", sys::option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF));
    role.note("read", (sys::recv(fd, &mut into, 0), into));
    role.note("offset", sys::option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF));
    role.note("off", sys::set_option(fd, libc::SO_PEEK_OFF, &-1_i32));
    role.note("peek", (sys::recv(fd, &mut into, libc::MSG_PEEK), into));
    let mut rest = [0; 20];
    role.note("the rest", (sys::read(fd, &mut rest), rest));
    role.settle(fd);
}

fn offset_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"0123456789");
    role.meet();
    role.settle(fd);
}

fn queue_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("nothing queued", ioctl(fd, libc::TIOCOUTQ, 5));
    write_all(fd, &pattern(1, 0, 3000));
    let (answer, queued) = ioctl(fd, libc::TIOCOUTQ, 0);
    role.note("something queued", (answer, queued > 0));
    role.meet();
    role.meet();
    role.note("nothing queued", ioctl(fd, libc::TIOCOUTQ, 5));
    role.note("after shutdown", (sys::shutdown(fd, libc::SHUT_WR), ioctl(fd, libc::TIOCOUTQ, 5)));
    role.meet();
}

fn queue_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    role.note("queued here", ioctl(fd, libc::FIONREAD, 0));
    role.note("nothing queued to send", ioctl(fd, libc::TIOCOUTQ, 5));
    read_exactly(fd, &mut [0; 3000]);
    role.note("queued here", ioctl(fd, libc::FIONREAD, 7));
    role.meet();
    role.meet();
}

/// With the smallest buffer a writer still makes progress, and blocks until its reader reads.
fn small_server(role: &Role) {
    let fd = role.open_warm();
    role.note("set", sys::set_option(fd, libc::SO_SNDBUF, &1_i32));
    role.note("read back", sys::option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF));
    role.note("a large write", sys::write(fd, &pattern(2, 0, 300_000)));
    role.meet(); // nobody reads any more
    let mut sent = 0;
    while let Ok(count) = sys::send(fd, &[9; 100], libc::MSG_DONTWAIT) {
        sent += count;
    }
    role.note("then it is full soon", sent < 20_000);
    role.note("not writable", sys::poll(fd, libc::POLLOUT, Duration::ZERO));
    role.meet();
    role.note("close", sys::close(fd));
}

fn small_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = vec![0; 300_000];
    read_exactly(fd, &mut into);
    role.note("all came", into == pattern(2, 0, 300_000));
    role.meet();
    role.meet();
    while let Ok(1..) = sys::read(fd, &mut into) {}
}

fn flags_server(role: &Role) {
    let fd = role.open_warm();
    role.note("F_GETFL", sys::fcntl(fd, libc::F_GETFL, 0));
    role.note("F_GETFD", sys::fcntl(fd, libc::F_GETFD, 0));
    role.note("F_SETFD", (sys::fcntl(fd, libc::F_SETFD, 0), sys::fcntl(fd, libc::F_GETFD, 0)));
    role.note("F_SETFL", (sys::fcntl(fd, libc::F_SETFL, libc::O_APPEND), sys::fcntl(fd, libc::F_GETFL, 0)));
    role.note("F_SETFL", (sys::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK), sys::fcntl(fd, libc::F_GETFL, 0), nonblocking(fd)));
    role.note("F_SETFL", (sys::fcntl(fd, libc::F_SETFL, 0), sys::fcntl(fd, libc::F_GETFL, 0)));
    let copies = [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC].map(|command| sys::fcntl(fd, command, 60).expect("a copy") as i32);
    role.note("copies", (copies, copies.map(|copy| sys::fcntl(copy, libc::F_GETFD, 0))));
    role.note("bad commands", (sys::fcntl(fd, libc::F_DUPFD, -1), sys::fcntl(fd, 9999, 0), sys::fcntl(999, libc::F_GETFL, 0)));
    role.note("F_GETPIPE_SZ", sys::fcntl(fd, libc::F_GETPIPE_SZ, 0));
    role.settle(copies[1]);
}

fn proc_server(role: &Role) {
    let fd = role.open_warm();
    let link = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).map(|path| path.to_string_lossy().into_owned());
    let first = link(fd).expect("a link");
    role.note("socket:[N]", first.starts_with("socket:[") && first.ends_with(']'));
    role.note("a socket", sys::is_socket(fd));
    let copy = sys::dup(fd);
    role.note("the same for a copy", link(copy).ok().as_ref() == Some(&first));
    role.settle(fd);
    role.note("the same afterwards", link(fd).ok().as_ref() == Some(&first));
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
    role.note("position and flags", info.lines().take(2).collect::<Vec<_>>());
}

fn names_server(role: &Role) {
    let fd = role.open_warm();
    for room in [0, 1, 2, 5, 110] {
        role.note("own name", sys::name_into(fd, false, room).0.map(|length| length > 10));
        role.note("own name's start", sys::name_into(fd, false, room).1.chars().take(room.min(3)).collect::<String>());
        role.note("peer's name", sys::name_into(fd, true, room));
    }
    role.settle(fd);
}

fn names_client(role: &Role) {
    let fd = role.open_warm();
    role.note("peer's family in two bytes", sys::name_into(fd, true, 2).1);
    role.note("own name", sys::name_into(fd, false, 110));
    role.settle(fd);
}

fn sigio_server(role: &Role) {
    let fd = role.open_warm();
    signals::count_all(libc::SIGIO, true);
    role.note("owner", sys::fcntl(fd, libc::F_SETOWN, std::process::id().cast_signed()));
    role.note("read back", sys::fcntl(fd, libc::F_GETOWN, 0).map(|pid| pid as u32 == std::process::id()));
    let flags = sys::fcntl(fd, libc::F_GETFL, 0).expect("flags") as i32;
    role.note("O_ASYNC", sys::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC));
    role.note("flags", sys::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags as i32 & libc::O_ASYNC != 0));
    let _ = signals::counted();
    for _ in 0..3 {
        role.meet();
        role.meet();
        role.note("told of an arrival", signals::counted() > 0);
        role.note("read", receive_beside(fd, 9, 0, 0).text);
        let _ = signals::counted();
    }
    role.note("off", sys::fcntl(fd, libc::F_SETFL, flags));
    role.meet();
    role.meet();
    role.note("told", signals::counted() > 0);
    role.note("read", recvfrom_named(fd, &mut [0; 9], 110).0);
}

fn sigio_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..4 {
        role.meet();
        write_all(fd, b"data");
        role.meet();
    }
    role.note("end", sys::read(fd, &mut [0]));
}

fn odd_server(role: &Role) {
    let fd = role.open_warm();
    role.note("SO_SNDBUF of two bytes", sys::set_option(fd, libc::SO_SNDBUF, &7_i16));
    role.note("SO_SNDBUF of eight bytes", sys::set_option(fd, libc::SO_SNDBUF, &50_000_i64));
    role.note("read back", sys::option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF));
    role.note("negative", sys::set_option(fd, libc::SO_SNDBUF, &-5_i32));
    role.note("read back", sys::option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF));
    role.note("SO_LINGER of four bytes", sys::set_option(fd, libc::SO_LINGER, &1_i32));
    for option in [libc::SO_TYPE, libc::SO_DOMAIN, libc::SO_PROTOCOL, libc::SO_ERROR, libc::SO_ACCEPTCONN, libc::SO_PEERCRED] {
        role.note("read-only", (option, sys::set_option(fd, option, &1_i32)));
    }
    role.note("the listener", sys::option(role.listener(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN));
    role.settle(fd);
}
