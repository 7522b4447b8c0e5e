//! What random programs found and no other case asks for: room that comes back, edges of the ends, writes that are never cut, a thread
//! asleep in a set to which a stream comes.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::rare;
use crate::role::{Role, SOON, read_exactly, write_all};
use crate::signals;
use crate::sys;
use crate::waits::epoll::{ET, IN, OUT};
use crate::waits::{By, control, events, select_all};

pub(super) const CASES: &[Case] = &[
    Case { name: "a-small-write-is-never-cut", server: whole_server, client: quiet_client, expect: Expect::Accelerated },
    Case { name: "full-is-full-for-any-size", server: full_server, client: quiet_client, expect: Expect::Accelerated },
    Case { name: "no-signal-for-a-writer-that-waited", server: silent_server, client: silent_client, expect: Expect::Accelerated },
    Case { name: "a-larger-send-buffer-wakes-a-writer", server: larger_server, client: larger_client, expect: Expect::Accelerated },
    Case { name: "epoll-edge-of-room-after-an-arrival", server: room_server, client: room_client, expect: Expect::Accelerated },
    Case { name: "epoll-edge-of-a-half-close", server: half_server, client: half_client, expect: Expect::Accelerated },
    Case { name: "epoll-edge-of-its-own-shutdown", server: own_server, client: own_client, expect: Expect::Accelerated },
    Case { name: "epoll-edge-of-room-from-the-start", server: start_server, client: start_client, expect: Expect::Accelerated },
    Case { name: "epoll-asleep-when-a-stream-comes", server: comes_server, client: comes_client, expect: Expect::Accelerated },
    Case { name: "select-of-a-hung-up-stream-waits", server: hung_server, client: hung_client, expect: Expect::Accelerated },
    Case { name: "a-print-is-unsent-too", server: print_server, client: quiet_client, expect: Expect::Accelerated },
];

const BRIEFLY: Duration = Duration::from_millis(20);

fn fill(fd: i32, size: usize) -> usize {
    let piece = vec![7; size];
    let mut sent = 0;
    while let Ok(count) = sys::send(fd, &piece, libc::MSG_DONTWAIT) {
        sent += count;
    }
    sent
}

fn quiet_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    assert_eq!(sys::close(fd), Ok(0));
}

fn set_with(fd: i32, wanted: i32) -> i32 {
    let epoll = sys::epoll_create();
    assert_eq!(control(epoll, libc::EPOLL_CTL_ADD, fd, wanted, 7), Ok(0));
    epoll
}

fn now(epoll: i32) -> Result<Vec<(u64, u32)>, &'static str> {
    events(By::Wait, epoll, 4, Duration::ZERO)
}

fn whole_server(role: &Role) {
    let fd = role.open_warm();
    for size in [30_000, 7001, 300] {
        role.note("only whole writes", fill(fd, size) % size);
    }
    role.meet();
}

fn full_server(role: &Role) {
    let fd = role.open_warm();
    assert!(fill(fd, 20_000) > 0);
    role.note("a byte", sys::send(fd, b"x", libc::MSG_DONTWAIT));
    role.note("many", sys::send(fd, &[0; 300_000], libc::MSG_DONTWAIT));
    role.note("for output", sys::poll(fd, libc::POLLOUT, Duration::ZERO));
    role.meet();
}

fn silent_server(role: &Role) {
    let fd = role.open_warm();
    signals::count_all(libc::SIGPIPE, true);
    assert!(fill(fd, 4096) > 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| sys::send(fd, &[8; 500], 0));
        std::thread::sleep(BRIEFLY);
        role.meet();
        role.note("the send that waited", writer.join().ok());
    });
    role.note("signals", signals::counted());
    role.note("the next", (sys::send(fd, b"x", 0), signals::counted()));
    role.meet();
}

fn silent_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_RD));
    role.meet();
}

fn larger_server(role: &Role) {
    let fd = role.open_warm();
    role.note("small", sys::set_option(fd, libc::SO_SNDBUF, &4000_i32));
    assert!(fill(fd, 500) > 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| sys::send(fd, &[8; 500], 0));
        std::thread::sleep(BRIEFLY);
        role.note("large", sys::set_option(fd, libc::SO_SNDBUF, &100_000_i32));
        role.note("the send", writer.join().ok());
    });
    role.note("for output", sys::poll(fd, libc::POLLOUT, SOON));
    assert!(fill(fd, 5000) > 0);
    role.note("for output, full", sys::poll(fd, libc::POLLOUT, Duration::ZERO));
    role.meet();
    role.note("for output, read", sys::poll(fd, libc::POLLOUT, SOON));
    role.meet();
}

fn larger_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    while sys::recv(fd, &mut [0; 9000], libc::MSG_DONTWAIT).is_ok() {}
    role.meet();
}

/// Room is missed, an arrival is told in between, and then room comes back.
fn room_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = set_with(fd, IN | OUT | ET);
    role.note("at first", now(epoll));
    let sent = fill(fd, 8192);
    role.note("full", now(epoll));
    std::fs::write(role.directory().join("sent"), sent.to_string()).expect("write");
    role.meet();
    role.meet();
    role.note("an arrival", now(epoll).map(|all| all.first().map(|event| event.1 & IN.cast_unsigned())));
    role.note("read", sys::read(fd, &mut [0; 9]));
    role.meet();
    let told = events(By::Wait, epoll, 4, SOON);
    role.note("room", told.map(|all| all.first().map(|event| event.1 & OUT.cast_unsigned())));
    role.meet();
}

fn room_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"arrival");
    role.meet();
    role.meet();
    let sent = std::fs::read_to_string(role.directory().join("sent")).expect("written").parse().expect("a number");
    read_exactly(fd, &mut vec![0; sent]);
    role.meet();
}

fn half_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = set_with(fd, IN | ET);
    role.meet();
    role.note("an arrival", events(By::Wait, epoll, 4, SOON));
    role.note("again", now(epoll));
    role.meet();
    role.note("the end", events(By::Wait, epoll, 4, SOON));
    role.note("read", (sys::read(fd, &mut [0; 9]), sys::read(fd, &mut [0; 9])));
    role.note("no more", now(epoll));
    role.meet();
}

fn half_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"data");
    role.meet();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
}

fn own_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = set_with(fd, IN | ET);
    role.meet();
    role.note("an arrival", events(By::Wait, epoll, 4, SOON));
    for how in [libc::SHUT_WR, libc::SHUT_RD] {
        role.note("shutdown", sys::shutdown(fd, how));
        role.note("told again", now(epoll));
        role.note("once", now(epoll));
    }
    role.meet();
}

fn own_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"data");
    role.meet();
    role.meet();
}

/// Bytes that the peer has not read must not hide the room that there is.
fn start_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"unread");
    std::thread::sleep(BRIEFLY);
    let epoll = set_with(fd, OUT | ET);
    role.note("room", events(By::Wait, epoll, 4, SOON));
    role.note("once", now(epoll));
    role.meet();
}

fn start_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("look", sys::poll(fd, libc::POLLIN, SOON));
    role.meet();
    role.note("read", sys::read(fd, &mut [0; 9]));
}

/// A thread sleeps in an empty set; the bytes of the stream that is added are in the ring already, their doorbell is taken.
fn comes_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("there", sys::poll(fd, libc::POLLIN, SOON));
    for wanted in [IN, IN | ET, OUT, IN | OUT | libc::EPOLLONESHOT] {
        let epoll = sys::epoll_create();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| events(By::Wait, epoll, 4, SOON));
            std::thread::sleep(BRIEFLY);
            role.note("add", control(epoll, libc::EPOLL_CTL_ADD, fd, wanted, 7));
            role.note("told", waiter.join().ok());
        });
        if wanted & ET != 0 {
            role.note("once", now(epoll));
        }
        assert_eq!(sys::close(epoll), Ok(0));
    }
    role.meet();
}

fn comes_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"data");
    role.meet();
    role.meet();
}

/// Both directions are shut down and the queue is full: poll tells of the hang-up, select has no set for it.
fn hung_server(role: &Role) {
    let fd = role.open_warm();
    assert!(fill(fd, 4096) > 0);
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLOUT, SOON));
    role.note("select", select_all([&[], &[fd], &[]], Some(Duration::from_millis(30)), None).0);
    role.note("select for input", select_all([&[fd], &[fd], &[]], Some(SOON), None).0);
    role.meet();
}

fn hung_client(role: &Role) {
    let fd = role.open_warm();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.meet();
}

fn print_server(role: &Role) {
    let fd = role.open_warm();
    role.note("dprintf", rare::print(fd, "line", 1));
    role.note("unsent", crate::waits::ioctl(fd, libc::TIOCOUTQ, 0).1 > 0);
    role.meet();
}
