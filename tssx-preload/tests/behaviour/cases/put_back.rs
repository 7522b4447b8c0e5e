//! A stream that is taken out of an epoll set and put in again: nobody may be told of it in between, whoever asks.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, read_exactly, write_all};
use crate::sys;
use crate::waits::epoll::{ADD, DEL, ET, IN, MOD, OUT};
use crate::waits::{By, control, events};

pub(super) const CASES: &[Case] = &[
    Case { name: "out-and-in-for-each-message", server: loop_server, client: loop_client, expect: Expect::Accelerated },
    Case { name: "out-of-the-set", server: out_server, client: bytes_client, expect: Expect::Accelerated },
    Case { name: "out-and-closed", server: closed_server, client: two_client, expect: Expect::Accelerated },
    Case { name: "out-and-duplicated", server: copied_server, client: bytes_client, expect: Expect::Accelerated },
    Case { name: "out-before-a-fork", server: forked_server, client: bytes_client, expect: Expect::Accelerated },
    Case { name: "out-and-in-as-something-else", server: other_server, client: bytes_client, expect: Expect::Accelerated },
    Case { name: "out-while-the-peer-goes", server: gone_server, client: gone_client, expect: Expect::Accelerated },
];

const MESSAGES: usize = 300;
/// Long enough to be told of what is there.
const SOONEST: Duration = Duration::from_millis(20);

/// As redis' event loop and its benchmark use a set.
fn loop_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    let mut byte = [0; 3];
    for round in 0..MESSAGES {
        assert_eq!(control(epoll, ADD, fd, IN, 7), Ok(0));
        assert_eq!(events(By::Wait, epoll, 4, SOON), Ok(vec![(7, IN.cast_unsigned())]), "round {round}");
        read_exactly(fd, &mut byte);
        assert_eq!((control(epoll, DEL, fd, 0, 0), control(epoll, ADD, fd, OUT, 7)), (Ok(0), Ok(0)));
        assert_eq!(events(By::Wait, epoll, 4, SOON), Ok(vec![(7, OUT.cast_unsigned())]), "round {round}");
        write_all(fd, &byte);
        assert_eq!(control(epoll, DEL, fd, 0, 0), Ok(0));
    }
    role.note("at the end", events(By::Wait, epoll, 4, Duration::ZERO));
    role.meet();
}

fn loop_client(role: &Role) {
    let fd = role.open_warm();
    let mut back = [0; 3];
    for round in 0..MESSAGES {
        let message = [round as u8, 1, 2];
        write_all(fd, &message);
        read_exactly(fd, &mut back);
        assert_eq!(back, message);
    }
    role.meet();
}

/// Sends a few bytes when it is asked to, and stays until all is done.
fn bytes_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"some");
    role.meet();
    role.meet();
}

/// A set with a stream that was taken out last and whose bytes are there.
fn taken_out(role: &Role) -> (i32, i32) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("in", control(epoll, ADD, fd, IN, 7));
    role.note("idle", events(By::Wait, epoll, 4, SOONEST));
    role.note("out", control(epoll, DEL, fd, 0, 0));
    role.meet();
    role.meet();
    (epoll, fd)
}

fn out_server(role: &Role) {
    let (epoll, fd) = taken_out(role);
    role.note("bytes of one that is out", events(By::Wait, epoll, 4, SOONEST));
    role.note("the set by poll", sys::poll(epoll, libc::POLLIN, SOONEST));
    role.note("out again", control(epoll, DEL, fd, 0, 0));
    role.note("changed", control(epoll, MOD, fd, IN, 7));
    role.note("in", control(epoll, ADD, fd, IN, 8));
    role.note("in again", control(epoll, ADD, fd, IN, 8));
    role.note("bytes", events(By::Wait, epoll, 4, SOON));
    role.note("out", control(epoll, DEL, fd, 0, 0));
    role.note("changed", control(epoll, MOD, fd, IN, 7));
    role.note("in", control(epoll, ADD, fd, IN, 9));
    role.note("out", control(epoll, DEL, fd, 0, 0));
    role.note("the set by poll", sys::poll(epoll, libc::POLLIN, SOONEST));
    let outer = sys::epoll_create();
    role.note("the set in a set", control(outer, ADD, epoll, IN, 1));
    role.note("is silent", events(By::Wait, outer, 4, SOONEST));
    role.note("close", sys::close(epoll));
    role.meet();
}

fn two_client(role: &Role) {
    let (first, second) = (role.open_warm(), role.open_warm());
    role.meet();
    write_all(second, b"x");
    role.meet();
    role.note("end", sys::read(first, &mut [0]));
    role.meet();
}

/// The number comes back as another connection, which nobody has put into the set.
fn closed_server(role: &Role) {
    let (first, second) = (role.open_warm(), role.open_warm());
    let epoll = sys::epoll_create();
    role.note("in", control(epoll, ADD, first, IN | OUT, 7));
    role.note("room", events(By::Wait, epoll, 4, SOON));
    role.note("out", control(epoll, DEL, first, 0, 0));
    role.note("replaced", sys::dup2(second, first).map(|made| made as i32 == first));
    role.meet();
    role.meet();
    role.note("bytes of one that was never in", events(By::Wait, epoll, 4, SOONEST));
    role.note("in", control(epoll, ADD, first, IN, 8));
    role.note("bytes", events(By::Wait, epoll, 4, SOON));
    role.note("out and closed", (control(epoll, DEL, first, 0, 0), sys::close(first)));
    role.note("the other number is not in", events(By::Wait, epoll, 4, SOONEST));
    role.note("in by the other number", control(epoll, ADD, second, IN, 9));
    role.note("bytes", events(By::Wait, epoll, 4, SOON));
    role.meet();
}

/// The file lives on by another number.
fn copied_server(role: &Role) {
    let (epoll, fd) = taken_out(role);
    let copy = sys::dup(fd);
    role.note("a copy", events(By::Wait, epoll, 4, SOONEST));
    role.note("in", control(epoll, ADD, fd, IN, 7));
    role.note("out", control(epoll, DEL, fd, 0, 0));
    role.note("close", sys::close(fd));
    role.note("closed", events(By::Wait, epoll, 4, SOONEST));
    role.note("the copy in", control(epoll, ADD, copy, IN, 8));
    role.note("bytes", events(By::Wait, epoll, 4, SOON));
    role.meet();
}

/// In a child, which has no other way to say that something is wrong.
fn must(right: bool) {
    if !right {
        std::process::abort();
    }
}

/// A child has the set too, and must not find in it what was taken out; nor must the parent what the child takes out.
fn forked_server(role: &Role) {
    let (epoll, fd) = taken_out(role);
    let child = sys::in_child(|| {
        must(events(By::Wait, epoll, 4, SOONEST) == Ok(vec![]));
        must(control(epoll, ADD, fd, IN, 8) == Ok(0));
        must(events(By::Wait, epoll, 4, SOON) == Ok(vec![(8, IN.cast_unsigned())]));
        must(control(epoll, DEL, fd, 0, 0) == Ok(0));
    });
    role.note("a child", child.wait());
    role.note("silent here too", events(By::Wait, epoll, 4, SOONEST));
    role.note("out already", control(epoll, DEL, fd, 0, 0));
    role.note("in", control(epoll, ADD, fd, IN, 9));
    role.note("bytes", events(By::Wait, epoll, 4, SOON));
    role.note("out", control(epoll, DEL, fd, 0, 0));
    role.note("a child finds nothing", sys::in_child(|| must(events(By::Wait, epoll, 4, SOONEST) == Ok(vec![]))).wait());
    role.meet();
}

fn other_server(role: &Role) {
    let (epoll, fd) = taken_out(role);
    for (round, what) in [IN | ET, OUT, IN | OUT | libc::EPOLLRDHUP, IN | libc::EPOLLONESHOT, 0, IN].into_iter().enumerate() {
        role.note("in", control(epoll, ADD, fd, what, 10 + round as u64));
        role.note("told", events(By::Wait, epoll, 4, SOONEST));
        role.note("told again", events(By::Wait, epoll, 4, SOONEST));
        role.note("out", control(epoll, DEL, fd, 0, 0));
    }
    let other = sys::epoll_create();
    role.note("in another", control(other, ADD, fd, IN, 1));
    role.note("told there", events(By::Wait, other, 4, SOON));
    role.note("not here", events(By::Wait, epoll, 4, SOONEST));
    role.meet();
}

fn gone_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    role.note("in", control(epoll, ADD, fd, IN | libc::EPOLLRDHUP, 7));
    role.note("idle", events(By::Wait, epoll, 4, SOONEST));
    role.note("out", control(epoll, DEL, fd, 0, 0));
    role.meet();
    role.meet();
    role.note("nothing of one that is out", events(By::Wait, epoll, 4, SOONEST));
    role.note("in", control(epoll, ADD, fd, IN | libc::EPOLLRDHUP, 7));
    role.note("the end", events(By::Wait, epoll, 4, SOON));
    role.note("out", control(epoll, DEL, fd, 0, 0));
    role.note("nothing", events(By::Wait, epoll, 4, SOONEST));
}

fn gone_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}
