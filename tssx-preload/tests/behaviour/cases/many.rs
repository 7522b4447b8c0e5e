//! Many at once: connections in one epoll set, threads on one connection, short connections in a row.

use std::collections::HashMap;
use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "two-hundred-connections-in-one-epoll", server: crowd_server, client: crowd_client, expect: Expect::Accelerated },
    Case { name: "threads-share-a-connection", server: threads_server, client: threads_client, expect: Expect::Accelerated },
    Case { name: "connect-request-close", server: short_server, client: short_client, expect: Expect::NeverUpgraded },
    Case { name: "one-way-request", server: one_way_server, client: one_way_client, expect: Expect::NeverUpgraded },
    Case { name: "connections-one-after-another", server: serial_server, client: serial_client, expect: Expect::Accelerated },
    Case { name: "poll-over-many", server: poll_many_server, client: poll_many_client, expect: Expect::Accelerated },
];

const CROWD: usize = 200;
const CROWD_ROUNDS: usize = 30;

fn crowd_server(role: &Role) {
    let epoll = sys::epoll_create();
    let mut served: HashMap<i32, usize> = HashMap::new();
    for _ in 0..CROWD {
        let fd = role.open();
        sys::set_nonblocking(fd, true);
        assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
        served.insert(fd, 0);
    }
    let (mut open, mut into) = (CROWD, [0; 128]);
    while open > 0 {
        let ready = sys::epoll_wait(epoll, 64, SOON);
        assert!(!ready.is_empty(), "{open} connections are open and none became ready");
        for (fd, _) in ready {
            match sys::read(fd, &mut into) {
                Ok(0) => {
                    assert_eq!(sys::close(fd), Ok(0));
                    open -= 1;
                }
                Ok(count) => {
                    write_all(fd, into.get(..count).expect("bounded"));
                    *served.entry(fd).or_default() += 1;
                }
                Err(error) => panic!("ready but {error}"),
            }
        }
    }
    role.note("every connection was served", served.values().all(|count| *count == CROWD_ROUNDS));
}

fn crowd_client(role: &Role) {
    let descriptors: Vec<i32> = (0..CROWD).map(|_| role.open()).collect();
    let mut into = [0; 100];
    for round in 0..CROWD_ROUNDS {
        for (index, fd) in descriptors.iter().enumerate() {
            write_all(*fd, &pattern(index + round, 0, 100));
        }
        for (index, fd) in descriptors.iter().enumerate() {
            read_exactly(*fd, &mut into);
            assert!(into.as_slice() == pattern(index + round, 0, 100), "connection {index}, round {round}");
        }
    }
    for fd in descriptors {
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("all replies right");
}

fn threads_server(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 64];
    while sys::recv(fd, &mut into, libc::MSG_WAITALL) == Ok(64) {
        write_all(fd, &into);
    }
    role.say("end");
}

/// One thread writes while another reads; then four threads write whole messages at once.
fn threads_client(role: &Role) {
    let fd = role.open_warm();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..2000).for_each(|round| write_all(fd, &pattern(round, 0, 64))));
        let mut into = [0; 64];
        for round in 0..2000 {
            read_exactly(fd, &mut into);
            assert!(into.as_slice() == pattern(round, 0, 64), "round {round}");
        }
    });
    role.say("one writing, one reading");
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            scope.spawn(move || (0..500).for_each(|_| write_all(fd, &[thread; 64])));
        }
        let (mut into, mut seen) = ([0; 64], [0; 4]);
        for _ in 0..2000 {
            read_exactly(fd, &mut into);
            assert!(into.iter().all(|byte| *byte == into[0]), "messages were mixed");
            seen[usize::from(into[0])] += 1;
        }
        role.note("messages of each thread", seen);
    });
}

fn short_server(role: &Role) {
    for _ in 0..100 {
        let fd = role.open();
        let mut into = [0; 64];
        read_exactly(fd, &mut into);
        write_all(fd, &into);
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("100 requests");
}

fn short_client(role: &Role) {
    for round in 0..100 {
        let fd = role.open();
        let (bytes, mut into) = (pattern(round, 0, 64), [0; 64]);
        write_all(fd, &bytes);
        read_exactly(fd, &mut into);
        assert_eq!(bytes, into);
        assert_eq!(sys::read(fd, &mut into), Ok(0));
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("100 requests");
}

fn one_way_server(role: &Role) {
    for round in 0..20 {
        let fd = role.open();
        let mut into = vec![0; 40_000];
        read_exactly(fd, &mut into);
        assert!(into == pattern(round, 0, 40_000), "round {round}");
        assert_eq!(sys::read(fd, &mut [0]), Ok(0));
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("20 requests");
}

/// Writes and is gone, perhaps before the server has accepted.
fn one_way_client(role: &Role) {
    for round in 0..20 {
        let fd = role.open();
        write_all(fd, &pattern(round, 0, 40_000));
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("20 requests");
}

fn serial_server(role: &Role) {
    for _ in 0..50 {
        let fd = role.open_warm();
        assert_eq!(sys::read(fd, &mut [0]), Ok(0));
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("50 connections");
}

fn serial_client(role: &Role) {
    for _ in 0..50 {
        let fd = role.open_warm();
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("50 connections");
}

fn poll_many_server(role: &Role) {
    let descriptors: Vec<i32> = (0..20).map(|_| role.open_warm()).collect();
    for round in 0..100 {
        let ready = sys::poll_read(&descriptors, SOON);
        assert_eq!(ready, [*descriptors.get(round * 7 % 20).expect("20")], "round {round}");
        assert_eq!(sys::read(ready[0], &mut [0; 9]), Ok(1));
        assert_eq!(sys::write(ready[0], b"!"), Ok(1));
    }
    role.note("then silence", sys::poll_read(&descriptors, Duration::from_millis(20)).len());
    role.meet();
}

fn poll_many_client(role: &Role) {
    let descriptors: Vec<i32> = (0..20).map(|_| role.open_warm()).collect();
    for round in 0..100 {
        let fd = *descriptors.get(round * 7 % 20).expect("20");
        assert_eq!(sys::write(fd, b"?"), Ok(1));
        assert_eq!(sys::read(fd, &mut [0; 9]), Ok(1));
    }
    role.say("100 rounds");
    role.meet();
}
