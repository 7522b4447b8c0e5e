//! epoll beyond one stream in one set: edges and levels for every event, one-shot, nesting, copies, several sets.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, write_all};
use crate::sys;
use crate::waits::epoll::{ADD, DEL, ET, IN, MOD, OUT, RDHUP};
use crate::waits::{By, control, events, wait_for};

pub(super) const CASES: &[Case] = &[
    Case { name: "epoll-data-is-given-back", server: data_server, client: data_client, expect: Expect::Accelerated },
    Case { name: "epoll-with-little-room", server: room_server, client: room_client, expect: Expect::Accelerated },
    Case { name: "epoll-two-copies-in-one-set", server: copies_server, client: copies_client, expect: Expect::Either },
    Case { name: "epoll-one-stream-in-two-sets", server: two_sets_server, client: two_sets_client, expect: Expect::Either },
    Case { name: "epoll-edge-of-two-arrivals", server: edges_server, client: edges_client, expect: Expect::Either },
    Case { name: "epoll-edge-for-output", server: output_server, client: output_client, expect: Expect::Either },
    Case { name: "epoll-edge-for-the-end", server: hup_server, client: hup_client, expect: Expect::Either },
    Case { name: "epoll-mod-tells-again", server: again_server, client: again_client, expect: Expect::Either },
    Case { name: "epoll-one-shot-rearmed", server: shot_server, client: shot_client, expect: Expect::Either },
    Case { name: "epoll-exclusive", server: exclusive_server, client: exclusive_client, expect: Expect::Either },
    Case { name: "epoll-in-epoll", server: nested_server, client: nested_client, expect: Expect::Either },
    Case { name: "epoll-set-polled-and-selected", server: polled_server, client: polled_client, expect: Expect::Either },
    Case { name: "epoll-closed-while-a-copy-lives", server: lives_server, client: lives_client, expect: Expect::Either },
];

/// What is ready without waiting.
fn now(epoll: i32) -> Result<Vec<(u64, u32)>, &'static str> {
    events(By::Wait, epoll, 16, Duration::ZERO)
}

/// What becomes ready.
fn soon(epoll: i32) -> Result<Vec<(u64, u32)>, &'static str> {
    events(By::Wait, epoll, 16, SOON)
}

/// A client that writes between two meetings, again and again, and stays for one more.
fn writes_at_meetings(role: &Role, count: usize, text: &[u8]) -> i32 {
    let fd = role.open_warm();
    for _ in 0..count {
        role.meet();
        write_all(fd, text);
        role.meet();
    }
    role.meet();
    fd
}

fn data_server(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN, u64::MAX));
    role.note("add with the same data", control(epoll, ADD, second, IN, u64::MAX));
    role.meet();
    role.meet();
    role.note("both", soon(epoll));
    role.note("other data", (control(epoll, MOD, fd, IN, 0), control(epoll, MOD, second, IN | OUT, 1 << 40)));
    role.note("both", soon(epoll));
    role.note("epoll_pwait", events(By::Pwait(None), epoll, 16, SOON));
    role.note("epoll_pwait2", events(By::Pwait2(None), epoll, 16, SOON));
    role.note("delete", control(epoll, DEL, fd, 0, 7));
    role.note("one", now(epoll));
    role.note("read", sys::read(second, &mut [0; 9]));
    role.note("only for output", now(epoll));
    role.meet();
}

fn data_client(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    role.meet();
    write_all(fd, b"data");
    write_all(second, b"data");
    role.meet();
    role.meet();
}

fn room_server(role: &Role) {
    let all: Vec<i32> = (0..5).map(|_| role.open_warm()).collect();
    let epoll = sys::epoll_create();
    for (index, fd) in all.iter().enumerate() {
        assert_eq!(control(epoll, ADD, *fd, IN, index as u64), Ok(0));
    }
    role.note("no room", (wait_for(epoll, 0), wait_for(epoll, -1)));
    role.meet();
    role.meet();
    let mut seen = [0; 5];
    for _ in 0..5 {
        for (index, _) in events(By::Wait, epoll, 2, SOON).expect("events") {
            seen[index as usize] += 1;
        }
    }
    role.note("each gets its turn", seen.iter().all(|turns| *turns > 0));
    role.note("with room for all", now(epoll));
    role.meet();
}

fn room_client(role: &Role) {
    let all: Vec<i32> = (0..5).map(|_| role.open_warm()).collect();
    role.meet();
    all.iter().for_each(|fd| write_all(*fd, b"data"));
    role.meet();
    role.meet();
}

fn copies_server(role: &Role) {
    let fd = role.open_warm();
    let (copy, epoll) = (sys::dup(fd), sys::epoll_create());
    role.note("add", control(epoll, ADD, fd, IN, 1));
    role.note("add the copy", control(epoll, ADD, copy, IN | OUT, 2));
    for _ in 0..3 {
        role.note("only the copy, for output", now(epoll));
        role.meet();
        role.meet();
        role.note("both", soon(epoll));
        role.note("read", sys::read(copy, &mut [0; 9]));
    }
    role.note("delete the first", control(epoll, DEL, fd, 0, 0));
    role.meet();
    role.meet();
    role.note("the copy", soon(epoll));
    role.meet();
}

fn copies_client(role: &Role) {
    writes_at_meetings(role, 4, b"data");
}

fn two_sets_server(role: &Role) {
    let fd = role.open_warm();
    let (one, two) = (sys::epoll_create(), sys::epoll_create());
    role.note("add", (control(one, ADD, fd, IN, 1), control(two, ADD, fd, IN | ET, 2)));
    for _ in 0..3 {
        role.note("idle", (now(one), now(two)));
        role.meet();
        role.meet();
        role.note("told", (soon(one), soon(two)));
        role.note("level and edge", (now(one), now(two)));
        role.note("read", sys::read(fd, &mut [0; 9]));
    }
    role.note("close one", sys::close(one));
    role.meet();
    role.meet();
    role.note("the other", soon(two));
    role.meet();
}

fn two_sets_client(role: &Role) {
    writes_at_meetings(role, 4, b"data");
}

fn edges_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN | ET, 1));
    role.meet();
    role.meet();
    role.note("an edge", soon(epoll));
    role.note("once", now(epoll));
    role.note("a part", sys::read(fd, &mut [0; 2]));
    role.note("no edge", now(epoll));
    role.meet();
    role.meet();
    role.note("another arrival", soon(epoll));
    role.note("once", now(epoll));
    role.note("all", sys::recv(fd, &mut [0; 6], libc::MSG_WAITALL));
    role.note("no edge", now(epoll));
    role.meet();
    role.meet();
    role.note("another arrival", soon(epoll));
    role.note("peek", sys::recv(fd, &mut [0; 9], libc::MSG_PEEK));
    role.note("no edge", now(epoll));
    role.meet();
    role.meet();
    role.note("an arrival that nobody read before", soon(epoll));
    role.note("all", sys::recv(fd, &mut [0; 9], 0));
    role.meet();
}

fn edges_client(role: &Role) {
    writes_at_meetings(role, 4, b"edge");
}

fn output_server(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, OUT | ET, 1));
    role.note("writable", soon(epoll));
    role.note("once", now(epoll));
    for _ in 0..3 {
        let mut sent = 0;
        while let Ok(count) = sys::write(fd, &[1; 10_000]) {
            sent += count;
        }
        role.note("full", now(epoll));
        std::fs::write(role.directory().join("sent"), sent.to_string()).expect("write");
        role.meet();
        role.note("writable", soon(epoll));
        role.meet();
        let _ = now(epoll);
        role.note("no edge more", now(epoll));
    }
}

fn output_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..3 {
        role.meet();
        let sent: usize = std::fs::read_to_string(role.directory().join("sent")).expect("written").parse().expect("a number");
        crate::role::read_exactly(fd, &mut vec![0; sent]);
        role.meet();
    }
}

fn hup_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN | OUT | RDHUP | ET, 1));
    role.note("writable", soon(epoll));
    role.meet();
    role.meet();
    role.note("half closed", soon(epoll));
    role.note("once", now(epoll));
    role.note("end", sys::read(fd, &mut [0; 9]));
    role.meet();
    role.meet();
    role.note("closed", soon(epoll));
    role.note("once", now(epoll));
}

fn hup_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

/// MOD looks anew: what is ready is told again even to an edge-triggered set.
fn again_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN | ET, 1));
    role.meet();
    role.meet();
    role.note("an edge", soon(epoll));
    role.note("once", now(epoll));
    role.note("mod", control(epoll, MOD, fd, IN | ET, 2));
    role.note("again", now(epoll));
    role.note("once", now(epoll));
    role.note("mod to output", control(epoll, MOD, fd, OUT | ET, 3));
    role.note("output", now(epoll));
    role.note("mod to both", control(epoll, MOD, fd, IN | OUT | ET, 4));
    role.note("both", now(epoll));
    role.note("mod to nothing", control(epoll, MOD, fd, 0, 5));
    role.note("nothing", now(epoll));
    role.note("delete and add", (control(epoll, DEL, fd, 0, 0), control(epoll, ADD, fd, IN | ET, 6)));
    role.note("again", now(epoll));
    role.note("read", sys::read(fd, &mut [0; 9]));
    role.note("mod", control(epoll, MOD, fd, IN | ET, 7));
    role.note("nothing to tell", now(epoll));
    role.meet();
}

fn again_client(role: &Role) {
    let fd = writes_at_meetings(role, 1, b"data");
    assert_eq!(sys::close(fd), Ok(0));
}

fn shot_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN | libc::EPOLLONESHOT, 1));
    for round in 0..5 {
        role.meet();
        role.meet();
        role.note("told", soon(epoll));
        role.note("once", now(epoll));
        role.note("read", sys::read(fd, &mut [0; 9]));
        role.note("armed", control(epoll, MOD, fd, IN | libc::EPOLLONESHOT | ET, round));
        role.note("nothing", now(epoll));
    }
    role.meet();
    role.meet();
    role.note("told", soon(epoll));
    role.note("armed for both", control(epoll, MOD, fd, IN | OUT | libc::EPOLLONESHOT, 9));
    role.note("told both", now(epoll));
    role.note("once", now(epoll));
    role.meet();
}

fn shot_client(role: &Role) {
    writes_at_meetings(role, 6, b"shot");
}

fn exclusive_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN | libc::EPOLLEXCLUSIVE, 1));
    role.note("mod is refused", control(epoll, MOD, fd, IN, 2));
    role.note("with one-shot", control(epoll, ADD, sys::dup(fd), IN | libc::EPOLLEXCLUSIVE | libc::EPOLLONESHOT, 2));
    for _ in 0..4 {
        role.note("idle", now(epoll));
        role.meet();
        role.meet();
        role.note("told", soon(epoll));
        role.note("read", sys::read(fd, &mut [0; 9]));
    }
    role.meet();
}

fn exclusive_client(role: &Role) {
    writes_at_meetings(role, 4, b"data");
}

fn nested_server(role: &Role) {
    let fd = role.open_warm();
    let (inner, outer) = (sys::epoll_create(), sys::epoll_create());
    role.note("add", (control(inner, ADD, fd, IN, 1), control(outer, ADD, inner, IN, 2)));
    for _ in 0..5 {
        role.meet();
        role.meet();
        role.note("outer", soon(outer));
        role.note("inner", soon(inner));
        role.note("read", sys::read(fd, &mut [0; 9]));
        role.note("inner is empty", now(inner));
    }
    role.meet();
}

fn nested_client(role: &Role) {
    writes_at_meetings(role, 5, b"data");
}

fn polled_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN, 1));
    role.note("idle", now(epoll));
    for _ in 0..5 {
        role.meet();
        role.meet();
        role.note("poll", sys::poll(epoll, libc::POLLIN, SOON));
        role.note("select", sys::select_read(epoll, Duration::from_millis(999)));
        role.note("events", soon(epoll));
        role.note("read", sys::read(fd, &mut [0; 9]));
        role.note("nothing", now(epoll));
    }
    role.meet();
}

fn polled_client(role: &Role) {
    writes_at_meetings(role, 5, b"data");
}

fn lives_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("add", control(epoll, ADD, fd, IN, 11));
    let copy = sys::dup(fd);
    role.note("close the one that was added", sys::close(fd));
    role.meet();
    role.meet();
    role.note("told nevertheless", soon(epoll));
    role.note("read by the copy", sys::read(copy, &mut [0; 9]));
    role.note("nothing", now(epoll));
    role.note("close the copy", sys::close(copy));
    role.meet();
    role.note("gone", events(By::Wait, epoll, 4, Duration::from_millis(3)));
}

fn lives_client(role: &Role) {
    let fd = writes_at_meetings(role, 1, b"data");
    role.note("end", sys::read(fd, &mut [0]));
}
