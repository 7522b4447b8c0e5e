//! A socket that is in an epoll set before it is connected, as nginx does with its upstreams, and what can happen in between.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, write_all};
use crate::sys;
use crate::waits::epoll::{ADD, DEL, ET, IN, MOD, OUT, RDHUP};
use crate::waits::{By, control, events};

pub(super) const CASES: &[Case] = &[
    Case { name: "epoll-before-connected", server: echo_server, client: level_client, expect: Expect::Accelerated },
    Case { name: "epoll-edges-before-connected", server: echo_server, client: edge_client, expect: Expect::Accelerated },
    Case { name: "epoll-changed-before-connected", server: echo_server, client: changed_client, expect: Expect::Accelerated },
    Case { name: "epoll-left-before-connected", server: echo_server, client: left_client, expect: Expect::Accelerated },
    Case { name: "two-epoll-sets-before-connected", server: echo_server, client: two_client, expect: Expect::Either },
    Case { name: "epoll-set-replaced-before-connected", server: echo_server, client: replaced_client, expect: Expect::Either },
    Case { name: "duplicate-in-epoll-before-connected", server: echo_server, client: duplicate_client, expect: Expect::Either },
    Case {
        name: "one-of-two-epoll-sets-left-before-connected",
        server: echo_server,
        client: one_left_client,
        expect: Expect::Either,
    },
    Case {
        name: "duplicated-and-in-epoll-before-connected",
        server: echo_server,
        client: duplicated_client,
        expect: Expect::Either,
    },
    Case { name: "received-and-in-epoll-before-connected", server: echo_server, client: received_client, expect: Expect::Either },
    Case { name: "duplicated-before-connected", server: echo_server, client: moved_client, expect: Expect::Accelerated },
    Case { name: "connected-elsewhere-first", server: echo_server, client: refused_client, expect: Expect::Accelerated },
    Case { name: "epoll-by-a-thread-before-connected", server: echo_server, client: asleep_client, expect: Expect::Either },
];

const ROUNDS: u8 = 30;

/// Sends each byte back.
fn echo_server(role: &Role) {
    let fd = role.open();
    role.exchange(fd, usize::from(ROUNDS));
    role.note("end", sys::read(fd, &mut [0]));
}

fn connect(role: &Role, fd: i32) {
    role.note("connect", sys::connect(fd, &role.path().to_string_lossy()));
}

/// Sends bytes and waits for each to come back.
fn rounds(fd: i32, epoll: i32, data: u64) {
    for round in 0..ROUNDS {
        write_all(fd, &[round]);
        let seen = events(By::Wait, epoll, 16, SOON).expect("events");
        assert!(seen.iter().any(|(which, events)| *which == data && events & IN as u32 != 0), "round {round}: {seen:?}");
        assert_eq!(sys::read(fd, &mut [0; 9]), Ok(1));
    }
}

fn ends(role: &Role, fd: i32, epoll: i32) {
    role.note("nothing", events(By::Wait, epoll, 16, Duration::ZERO));
    role.note("close", sys::close(fd));
    role.note("gone", events(By::Wait, epoll, 16, Duration::ZERO));
}

fn level_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    role.note("add", control(epoll, ADD, fd, IN | OUT, 1));
    role.note("unconnected", events(By::Wait, epoll, 16, Duration::ZERO));
    connect(role, fd);
    role.note("connected", events(By::Wait, epoll, 16, Duration::ZERO));
    role.note("mod", control(epoll, MOD, fd, IN, 1));
    rounds(fd, epoll, 1);
    ends(role, fd, epoll);
}

/// As nginx: everything, with edges, before the connect; and reads until EAGAIN.
fn edge_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    sys::set_nonblocking(fd, true);
    role.note("add", control(epoll, ADD, fd, IN | OUT | RDHUP | ET, 7));
    connect(role, fd);
    for round in 0..ROUNDS {
        write_all(fd, &[round]);
        while sys::read(fd, &mut [0; 9]) != Ok(1) {
            let seen = events(By::Wait, epoll, 16, SOON).expect("events");
            assert!(seen.iter().all(|(which, _)| *which == 7) && !seen.is_empty(), "round {round}: {seen:?}");
        }
        assert_eq!(sys::read(fd, &mut [0; 9]), Err("EAGAIN"));
    }
    role.note("close", sys::close(fd));
    role.note("gone", events(By::Wait, epoll, 16, Duration::ZERO));
}

fn changed_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    role.note("add", control(epoll, ADD, fd, OUT, 1));
    role.note("mod", control(epoll, MOD, fd, IN, 2));
    connect(role, fd);
    rounds(fd, epoll, 2);
    ends(role, fd, epoll);
}

fn left_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    role.note("add", control(epoll, ADD, fd, IN | OUT, 1));
    role.note("del", control(epoll, DEL, fd, 0, 0));
    connect(role, fd);
    role.note("not in the set", events(By::Wait, epoll, 16, Duration::ZERO));
    role.note("add", control(epoll, ADD, fd, IN, 3));
    rounds(fd, epoll, 3);
    ends(role, fd, epoll);
}

fn two_client(role: &Role) {
    let (fd, first, second) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create(), sys::epoll_create());
    role.note("add", (control(first, ADD, fd, IN, 1), control(second, ADD, fd, IN, 2)));
    connect(role, fd);
    rounds(fd, first, 1);
    ends(role, fd, second);
}

/// The set is closed, and another one gets its number.
fn replaced_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    role.note("add", control(epoll, ADD, fd, IN | OUT, 1));
    role.note("close", sys::close(epoll));
    let fresh = sys::epoll_create();
    role.note("same number", fresh == epoll);
    connect(role, fd);
    for round in 0..ROUNDS {
        write_all(fd, &[round]);
        assert_eq!(sys::read(fd, &mut [0; 9]), Ok(1));
        assert_eq!(events(By::Wait, fresh, 16, Duration::ZERO), Ok(vec![]));
    }
    role.note("close", sys::close(fd));
}

fn duplicate_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    role.note("add", control(epoll, ADD, fd, IN, 1));
    let copy = sys::dup(fd);
    role.note("close", sys::close(fd));
    connect(role, copy);
    rounds(copy, epoll, 1);
    ends(role, copy, epoll);
}

/// In the set that is left it is still.
fn one_left_client(role: &Role) {
    let (fd, first, second) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create(), sys::epoll_create());
    role.note("add", (control(first, ADD, fd, IN, 1), control(second, ADD, fd, IN, 2)));
    role.note("del", control(first, DEL, fd, 0, 0));
    connect(role, fd);
    rounds(fd, second, 2);
    ends(role, fd, second);
}

/// One number is in the set, the other one is connected.
fn duplicated_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    let copy = sys::dup(fd);
    role.note("add", control(epoll, ADD, fd, IN, 4));
    connect(role, copy);
    rounds(copy, epoll, 4);
    role.note("close", sys::close(fd));
    ends(role, copy, epoll);
}

/// As programs do that move their sockets to high numbers, and put them into a set afterwards.
fn moved_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    let copy = sys::dup(fd);
    role.note("close", sys::close(fd));
    connect(role, copy);
    role.note("add", control(epoll, ADD, copy, IN, 4));
    rounds(copy, epoll, 4);
    ends(role, copy, epoll);
}

/// Nobody knows where the socket comes from.
fn received_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    let (one, other) = UnixStream::pair().expect("a pair");
    role.note("sent", sys::send_descriptor(one.as_raw_fd(), fd));
    role.note("close", sys::close(fd));
    let (answer, received) = sys::recv_descriptor(other.as_raw_fd(), &mut [0]);
    role.note("received", answer);
    let fd = received.expect("a descriptor");
    role.note("add", control(epoll, ADD, fd, IN, 6));
    connect(role, fd);
    rounds(fd, epoll, 6);
    ends(role, fd, epoll);
}

/// A connect that fails, while the socket is in the set: the next one is as if it had been the first.
fn refused_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    role.note("nobody", sys::connect(fd, "/nonexistent/socket"));
    role.note("add", control(epoll, ADD, fd, IN, 8));
    role.note("nobody", sys::connect(fd, "/nonexistent/socket"));
    connect(role, fd);
    rounds(fd, epoll, 8);
    ends(role, fd, epoll);
}

/// Another thread is asleep in the set from before the connect on.
fn asleep_client(role: &Role) {
    let (fd, epoll) = (sys::socket(libc::SOCK_STREAM), sys::epoll_create());
    role.note("add", control(epoll, ADD, fd, IN | ET, 5));
    role.note("unconnected", events(By::Wait, epoll, 16, Duration::ZERO).map(|all| all.len()));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut came = 0;
            while came < usize::from(ROUNDS) {
                assert!(!events(By::Wait, epoll, 16, SOON).expect("events").is_empty(), "after {came}");
                while let Ok(count @ 1..) = sys::recv(fd, &mut [0; 9], libc::MSG_DONTWAIT) {
                    came += count;
                }
            }
            came
        });
        std::thread::sleep(Duration::from_millis(5));
        connect(role, fd);
        for round in 0..ROUNDS {
            write_all(fd, &[round]);
        }
        role.note("came", reader.join().expect("no panic"));
    });
    role.note("close", sys::close(fd));
}
