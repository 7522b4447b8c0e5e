//! poll, select and epoll (level- and edge-triggered): what they say, and when they wake.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{BRIEFLY, Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "poll-and-select-tell-what-is-ready", server: ready_server, client: ready_client, expect: Expect::Accelerated },
    Case { name: "poll-wakes-a-sleeper", server: sleeper_server, client: sleeper_client, expect: Expect::Accelerated },
    Case { name: "poll-tells-the-peers-end", server: end_server, client: end_client, expect: Expect::Accelerated },
    Case { name: "pollout-comes-back-after-full", server: full_server, client: full_client, expect: Expect::Accelerated },
    Case { name: "epoll-level-triggered", server: level_server, client: level_client, expect: Expect::Accelerated },
    Case { name: "epoll-edge-triggered", server: edge_server, client: edge_client, expect: Expect::Either },
    Case { name: "epoll-control-errors", server: control_server, client: control_client, expect: Expect::Accelerated },
    Case { name: "epoll-mod-and-del", server: change_server, client: change_client, expect: Expect::Accelerated },
    Case { name: "epoll-registered-before-the-upgrade", server: before_server, client: before_client, expect: Expect::Accelerated },
    Case { name: "epoll-with-other-descriptors", server: mixed_server, client: mixed_client, expect: Expect::Accelerated },
];

const ALL: i16 = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;

fn ready_server(role: &Role) {
    let fd = role.open_warm();
    role.note("poll idle", sys::poll(fd, ALL, BRIEFLY));
    role.note("poll idle for input", sys::poll(fd, libc::POLLIN, BRIEFLY));
    role.note("poll for nothing", sys::poll(fd, 0, Duration::ZERO));
    role.note("select idle", sys::select(fd, Duration::ZERO));
    role.meet();
    role.meet();
    role.note("poll with data", sys::poll(fd, ALL, SOON));
    role.note("still, level-triggered", sys::poll(fd, libc::POLLIN, Duration::ZERO));
    role.note("select with data", sys::select(fd, Duration::ZERO));
    role.note("available", sys::readable_bytes(fd));
    role.note("read a part", sys::read(fd, &mut [0; 3]));
    role.note("poll with the rest", sys::poll(fd, ALL, Duration::ZERO));
    role.note("read the rest", sys::read(fd, &mut [0; 30]));
    role.note("poll empty", sys::poll(fd, ALL, Duration::ZERO));
    role.note("select empty", sys::select(fd, Duration::ZERO));
    role.note("available", sys::readable_bytes(fd));
}

fn ready_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"ten bytes."));
    role.meet();
    role.note("poll at the end", sys::poll(fd, libc::POLLIN, SOON).map(|events| events & libc::POLLIN));
    role.note("end", sys::read(fd, &mut [0]));
}

fn sleeper_server(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..30 {
        role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
        role.note("read", sys::read(fd, &mut [0; 10]));
        role.note("write", sys::write(fd, b"y"));
    }
}

fn sleeper_client(role: &Role) {
    let fd = role.open_warm();
    for round in 0..30 {
        std::thread::sleep(Duration::from_millis(round % 5));
        role.note("write", sys::write(fd, b"x"));
        role.note("select", sys::select_read(fd, Duration::from_millis(999)));
        role.note("read", sys::read(fd, &mut [0; 10]));
    }
}

fn end_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("poll after SHUT_WR", sys::poll(fd, ALL, SOON));
    role.note("read", sys::read(fd, &mut [0; 2]));
    role.note("poll after the data", sys::poll(fd, ALL, Duration::ZERO));
    role.note("end", sys::read(fd, &mut [0; 9]));
    role.note("write is still allowed", sys::write(fd, b"late"));
    role.meet();
    role.meet();
    role.note("poll after close", sys::poll(fd, ALL, SOON));
    role.note("end", sys::read(fd, &mut [0; 9]));
}

fn end_client(role: &Role) {
    let fd = role.open_warm();
    role.note("write", sys::write(fd, b"ab"));
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.meet();
    role.note("poll after my SHUT_WR", sys::poll(fd, ALL, SOON));
    role.note("read", sys::read(fd, &mut [0; 9]));
    role.note("close", sys::close(fd));
    role.meet();
}

fn full_server(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let epoll = sys::epoll_create();
    role.note("add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLOUT));
    for round in 0..5 {
        let mut sent = 0;
        while let Ok(count) = sys::write(fd, &pattern(round, sent, 10_000)) {
            sent += count;
        }
        role.note("full: poll, epoll", (sys::poll(fd, ALL, BRIEFLY), sys::epoll_wait(epoll, 4, Duration::ZERO).len()));
        std::fs::write(role.directory().join("sent"), sent.to_string()).expect("write");
        role.meet();
        let woken =
            if round % 2 == 0 { sys::poll(fd, libc::POLLOUT, SOON).is_ok() } else { sys::epoll_wait(epoll, 4, SOON).len() == 1 };
        role.note("woken when there is room", woken);
        role.meet();
    }
}

fn full_client(role: &Role) {
    let fd = role.open_warm();
    for round in 0..5 {
        role.meet();
        std::thread::sleep(BRIEFLY);
        let sent: usize = std::fs::read_to_string(role.directory().join("sent")).expect("written").parse().expect("a number");
        let mut bytes = vec![0; sent];
        read_exactly(fd, &mut bytes);
        role.note("all came", bytes == pattern(round, 0, sent));
        role.meet();
    }
}

fn said(events: &[(i32, u32)]) -> Vec<u32> {
    events.iter().map(|(_, events)| *events).collect()
}

fn level_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | libc::EPOLLRDHUP));
    role.note("idle", said(&sys::epoll_wait(epoll, 8, BRIEFLY)));
    role.meet();
    for _ in 0..2 {
        let events = sys::epoll_wait(epoll, 8, SOON);
        role.note("data", (said(&events), events.first().map(|event| event.0) == Some(fd)));
    }
    role.note("read a part", sys::read(fd, &mut [0; 2]));
    role.note("the rest", said(&sys::epoll_wait(epoll, 8, SOON)));
    role.note("read the rest", sys::read(fd, &mut [0; 9]));
    role.note("empty", said(&sys::epoll_wait(epoll, 8, BRIEFLY)));
    role.note("for output too", sys::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN | libc::EPOLLOUT));
    role.note("writable", said(&sys::epoll_wait(epoll, 8, SOON)));
    role.note("for input only", sys::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN | libc::EPOLLRDHUP));
    role.meet();
    role.note("half closed", said(&sys::epoll_wait(epoll, 8, SOON)));
    role.note("end", sys::read(fd, &mut [0; 9]));
    role.meet();
    role.meet();
    role.note("closed", said(&sys::epoll_wait(epoll, 8, SOON)));
}

fn level_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(BRIEFLY);
    role.note("write", sys::write(fd, b"data"));
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

fn edge_server(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let epoll = sys::epoll_create();
    role.note("add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET));
    role.note("idle", said(&sys::epoll_wait(epoll, 8, BRIEFLY)));
    for _ in 0..20 {
        role.meet();
        role.note("an arrival", said(&sys::epoll_wait(epoll, 8, SOON)));
        role.note("told once", said(&sys::epoll_wait(epoll, 8, Duration::from_millis(5))));
        role.note("read a part", sys::read(fd, &mut [0; 2]));
        role.note("a partial read is no edge", said(&sys::epoll_wait(epoll, 8, Duration::from_millis(5))));
        role.note("read the rest", sys::read(fd, &mut [0; 99]));
        role.meet();
    }
    role.meet();
    role.note("the end", said(&sys::epoll_wait(epoll, 8, SOON)));
    role.note("read", sys::read(fd, &mut [0; 9]));
}

fn edge_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..20 {
        role.meet();
        role.note("write", sys::write(fd, b"edge"));
        role.meet();
    }
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.note("end", sys::read(fd, &mut [0]));
}

fn control_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("mod before add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN));
    role.note("del before add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0));
    role.note("add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN));
    role.note("add again", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN));
    role.note("to itself", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, epoll, libc::EPOLLIN));
    role.note("not an epoll", sys::epoll_ctl(fd, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN));
    role.note("no such descriptor", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, 999, libc::EPOLLIN));
    role.meet();
    role.note("data", said(&sys::epoll_wait(epoll, 1, SOON)));
    role.note("read", sys::read(fd, &mut [0; 9]));
    role.note("close", sys::close(fd));
    role.note("gone from the set", said(&sys::epoll_wait(epoll, 1, BRIEFLY)));
    role.note("del after close", sys::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0));
}

fn control_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"data"));
    role.note("end", sys::read(fd, &mut [0]));
}

fn change_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    // redis-cli's habit: ADD, MOD and DEL around each request.
    for _ in 0..50 {
        assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
        let ready = sys::epoll_wait(epoll, 1, SOON);
        assert_eq!(said(&ready), [libc::EPOLLIN as u32]);
        assert_eq!(sys::read(fd, &mut [0; 9]), Ok(4));
        assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, libc::EPOLLOUT), Ok(0));
        let ready = sys::epoll_wait(epoll, 1, SOON);
        assert_eq!(said(&ready), [libc::EPOLLOUT as u32]);
        assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0), Ok(0));
        assert_eq!(sys::write(fd, b"back"), Ok(4));
    }
    role.say("50 rounds");
}

fn change_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 4];
    for _ in 0..50 {
        write_all(fd, b"ping");
        read_exactly(fd, &mut into);
    }
    role.note("last", into);
}

fn before_server(role: &Role) {
    let fd = role.open();
    sys::set_nonblocking(fd, true);
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
    let mut into = [0; 100];
    for round in 0..200 {
        let ready = sys::epoll_wait(epoll, 1, SOON);
        assert_eq!(said(&ready), [libc::EPOLLIN as u32], "round {round}");
        let got = sys::read(fd, &mut into).unwrap_or_else(|error| panic!("round {round}: ready but {error}"));
        assert_eq!(got, 64);
        write_all(fd, into.get(..got).expect("bounded"));
    }
    role.say("200 rounds");
}

fn before_client(role: &Role) {
    let fd = role.open();
    let mut into = [0; 64];
    for round in 0..200 {
        let bytes = pattern(round, 0, 64);
        write_all(fd, &bytes);
        read_exactly(fd, &mut into);
        assert_eq!(bytes, into, "round {round}");
    }
    role.say("200 rounds");
}

fn mixed_server(role: &Role) {
    let fd = role.open_warm();
    let (reader, writer) = std::io::pipe().expect("pipe");
    let pipe = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, pipe, libc::EPOLLIN), Ok(0));
    role.note("idle", sys::epoll_wait(epoll, 8, BRIEFLY).len());
    std::io::Write::write_all(&mut &writer, b"p").expect("write");
    let ready = sys::epoll_wait(epoll, 8, SOON);
    role.note("the pipe alone", (ready.len(), ready.first().map(|event| event.0) == Some(pipe)));
    role.meet();
    role.meet();
    let mut ready = sys::epoll_wait(epoll, 8, SOON);
    ready.sort_by_key(|event| event.0 != fd);
    role.note("both", (said(&ready), ready.first().map(|event| event.0) == Some(fd)));
    role.note("one at a time", sys::epoll_wait(epoll, 1, SOON).len());
    // A connection that stays ready must not starve the pipe.
    let seen = (0..200).any(|_| sys::epoll_wait(epoll, 1, SOON).first().map(|event| event.0) == Some(pipe));
    role.note("the pipe gets its turn", seen);
    drop(writer);
}

fn mixed_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"data"));
    role.meet();
    role.note("reset or end", sys::poll(fd, libc::POLLIN, SOON).is_ok());
}
