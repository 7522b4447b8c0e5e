//! Every shutdown, at each end and in each order, and every close with something unread: what both ends then see by poll,
//! select, epoll, reads and sends.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::{rare, signals, sys};

const RD: i32 = libc::SHUT_RD;
const WR: i32 = libc::SHUT_WR;
const BOTH: i32 = libc::SHUT_RDWR;

pub(super) const CASES: &[Case] = &[
    Case { name: "shut-reading-twice", server: shuts::<RD, RD>, client: watches, expect: Expect::Accelerated },
    Case { name: "shut-writing-twice", server: shuts::<WR, WR>, client: watches, expect: Expect::Accelerated },
    Case { name: "shut-both-twice", server: shuts::<BOTH, BOTH>, client: watches, expect: Expect::Accelerated },
    Case { name: "shut-reading-then-writing", server: shuts::<RD, WR>, client: watches, expect: Expect::Accelerated },
    Case { name: "shut-writing-then-reading", server: watches, client: shuts::<WR, RD>, expect: Expect::Accelerated },
    Case { name: "shut-both-by-the-connector", server: watches, client: shuts::<BOTH, WR>, expect: Expect::Accelerated },
    Case { name: "each-end-shuts-writing", server: shuts_too::<WR>, client: shuts_too::<WR>, expect: Expect::Accelerated },
    Case { name: "each-end-shuts-reading", server: shuts_too::<RD>, client: shuts_too::<RD>, expect: Expect::Accelerated },
    Case { name: "shut-writing-with-data-in-flight", server: flight_server, client: flight_client, expect: Expect::Accelerated },
    Case { name: "shut-reading-with-data-unread", server: unread_server, client: unread_client, expect: Expect::Accelerated },
    Case { name: "shut-before-the-upgrade", server: early_server, client: early_client, expect: Expect::Accelerated },
    Case { name: "reset-with-data-both-ways", server: twoway_server, client: twoway_client, expect: Expect::Accelerated },
    Case { name: "reset-of-a-blocked-writer", server: writer_server, client: writer_client, expect: Expect::Accelerated },
    Case { name: "reset-seen-by-epoll", server: epoll_server, client: epoll_client, expect: Expect::Accelerated },
    Case { name: "close-with-linger", server: linger_server, client: linger_client, expect: Expect::Accelerated },
    Case { name: "exit-without-close", server: exit_server, client: exit_client, expect: Expect::Accelerated },
    Case { name: "both-close-at-once", server: at_once, client: at_once, expect: Expect::Accelerated },
    Case { name: "sigpipe-counted-for-every-call", server: pipe_server, client: pipe_client, expect: Expect::Either },
    Case { name: "the-end-is-told-again-and-again", server: again_server, client: again_client, expect: Expect::Accelerated },
];

const EVENTS: i16 = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP | libc::POLLPRI;

/// All that can be seen of a stream without waiting.
fn look(role: &Role, what: &str, fd: i32) {
    let epoll = sys::epoll_create();
    let added = sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP);
    let told = sys::epoll_wait(epoll, 4, Duration::ZERO).first().map(|event| event.1);
    role.note(what, (sys::poll(fd, EVENTS, Duration::ZERO), sys::select(fd, Duration::ZERO), added, told));
    assert_eq!(sys::close(epoll), Ok(0));
}

fn use_it(role: &Role, fd: i32) {
    let mut into = [0; 16];
    role.note("read", (sys::recv(fd, &mut into, libc::MSG_DONTWAIT), into[0]));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    role.note("available", sys::readable_bytes(fd));
}

fn shuts<const FIRST: i32, const SECOND: i32>(role: &Role) {
    let fd = role.open_warm();
    for how in [FIRST, SECOND] {
        role.note("shutdown", (how, sys::shutdown(fd, how)));
        look(role, "mine", fd);
        role.meet();
        role.meet();
        look(role, "after the peer used it", fd);
        use_it(role, fd);
        role.meet();
    }
    role.note("close", sys::close(fd));
    role.meet();
}

fn watches(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..2 {
        role.meet();
        look(role, "after the peer's shutdown", fd);
        use_it(role, fd);
        role.meet();
        role.meet();
    }
    role.meet();
    look(role, "after the peer's close", fd);
    use_it(role, fd);
    use_it(role, fd);
}

fn shuts_too<const HOW: i32>(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, HOW));
    role.meet();
    look(role, "both shut", fd);
    use_it(role, fd);
    role.meet();
    role.note("close", sys::close(fd));
}

fn flight_server(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, &pattern(1, 0, 70_000));
    role.note("shutdown", sys::shutdown(fd, WR));
    role.meet();
    let mut into = vec![0; 50_000];
    read_exactly(fd, &mut into);
    role.note("the other direction", into == pattern(2, 0, 50_000));
    role.note("end", sys::read(fd, &mut into));
}

fn flight_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    look(role, "data and the end", fd);
    role.note("available", sys::readable_bytes(fd));
    write_all(fd, &pattern(2, 0, 50_000));
    let mut into = vec![0; 100_000];
    role.note("waitall", sys::recv(fd, &mut into, libc::MSG_WAITALL));
    role.note("right", into[..70_000] == pattern(1, 0, 70_000));
    look(role, "the end", fd);
    role.note("end", sys::read(fd, &mut into));
    role.note("shutdown", sys::shutdown(fd, WR));
}

fn unread_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, RD));
    look(role, "deaf with data", fd);
    role.note("available", sys::readable_bytes(fd));
    let mut into = [0; 4];
    role.note("a part", (sys::read(fd, &mut into), into));
    role.note("peek", (sys::recv(fd, &mut into, libc::MSG_PEEK), into));
    role.note("the rest", (sys::recv(fd, &mut [0; 9], libc::MSG_WAITALL), sys::read(fd, &mut [0; 9])));
    role.note("write", sys::write(fd, b"to you"));
    role.meet();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

fn unread_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"unread data");
    role.meet();
    role.meet();
    look(role, "deaf peer", fd);
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    let mut into = [0; 6];
    role.note("read", (sys::read(fd, &mut into), into));
    role.meet();
    role.meet();
    look(role, "closed peer", fd);
    role.note("end", sys::read(fd, &mut into));
}

/// The shutdown comes after 0 to 8 exchanges, so that it also meets an upgrade that is under way.
fn early_server(role: &Role) {
    for before in 0..9 {
        let fd = role.open();
        role.exchange(fd, before);
        role.note("shutdown", sys::shutdown(fd, WR));
        role.meet();
        let mut into = [0; 99];
        role.note("waitall", (before, sys::recv(fd, &mut into, libc::MSG_WAITALL)));
        role.note("right", into[..90] == pattern(1, 0, 90));
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.open_warm();
}

fn early_client(role: &Role) {
    for before in 0..9 {
        let fd = role.open();
        role.exchange(fd, before);
        role.meet();
        look(role, "half closed", fd);
        role.note("end", sys::read(fd, &mut [0; 9]));
        for part in 0..9 {
            write_all(fd, &pattern(1, part * 10, 10));
        }
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.open_warm();
}

/// Each end has data that the other did not read.
fn twoway_server(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"never read");
    role.meet();
    role.meet();
    look(role, "reset with data", fd);
    role.note("available", sys::readable_bytes(fd));
    let mut into = [0; 6];
    for _ in 0..5 {
        role.note("read", (sys::read(fd, &mut into), into));
    }
    look(role, "after", fd);
    role.note("error", sys::option(fd, libc::SOL_SOCKET, libc::SO_ERROR));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
}

fn twoway_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"ten bytes!");
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

fn writer_server(role: &Role) {
    let fd = role.open_warm();
    while sys::send(fd, &[7; 8192], libc::MSG_DONTWAIT).is_ok() {}
    while sys::send(fd, &[7; 64], libc::MSG_DONTWAIT).is_ok() {}
    role.meet();
    // The other end may have read the last byte of the warm-up only now, which makes room.
    while sys::send(fd, &[7; 1], libc::MSG_DONTWAIT).is_ok() {}
    role.note("blocked until", sys::send(fd, &[7; 8192], libc::MSG_NOSIGNAL));
    role.note("read", [sys::read(fd, &mut [0]), sys::read(fd, &mut [0])]);
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
}

fn writer_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(10));
    role.note("close", sys::close(fd));
}

fn epoll_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | libc::EPOLLRDHUP), Ok(0));
    write_all(fd, b"never read");
    role.meet();
    let told = |what| role.note(what, sys::epoll_wait(epoll, 4, SOON).first().map(|event| event.1));
    told("reset");
    role.meet();
    told("again");
    role.note("error", sys::option(fd, libc::SOL_SOCKET, libc::SO_ERROR).map(sys::name));
    told("after the error was taken");
    role.note("read", sys::read(fd, &mut [0]));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    told("after a send");
}

fn epoll_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

fn linger_server(role: &Role) {
    for on in [1, 0] {
        let fd = role.open_warm();
        let linger = libc::linger { l_onoff: on, l_linger: 0 };
        role.note("set", sys::set_option(fd, libc::SO_LINGER, &linger));
        write_all(fd, &pattern(3, 0, 30_000));
        role.note("close", sys::close(fd));
    }
    role.meet();
}

fn linger_client(role: &Role) {
    let all = [role.open_warm(), role.open_warm()];
    role.meet();
    for fd in all {
        let mut into = vec![0; 30_000];
        read_exactly(fd, &mut into);
        role.note("all came", into == pattern(3, 0, 30_000));
        role.note("end", (sys::read(fd, &mut into), sys::option(fd, libc::SOL_SOCKET, libc::SO_ERROR)));
    }
}

fn exit_server(role: &Role) {
    let fd = role.open_warm();
    let child = sys::in_child(|| {
        write_all(fd, b"last words");
        read_exactly(fd, &mut [0; 3]);
    });
    role.note("close in the parent", sys::close(fd));
    role.note("child", child.wait());
    role.meet();
}

/// Three bytes of ten are read by the one that exits, so that it leaves some unread.
fn exit_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"ten bytes!");
    role.meet();
    look(role, "gone", fd);
    let mut into = [0; 10];
    role.note("last words", (sys::read(fd, &mut into), into));
    role.note("reset", [sys::read(fd, &mut into), sys::read(fd, &mut into)]);
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
}

fn at_once(role: &Role) {
    for round in 0..20 {
        let fd = role.open_warm();
        if round % 2 == 0 {
            write_all(fd, b"unread");
        }
        role.meet();
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("20 connections closed");
}

fn pipe_server(role: &Role) {
    let fd = role.open_warm();
    let path = role.directory().join("file");
    std::fs::write(&path, b"content").expect("write");
    let file = std::fs::File::open(path).expect("open");
    role.meet();
    signals::count_all(libc::SIGPIPE, true);
    let told = |what: &str, answer: sys::Answer| role.note(what, (answer, signals::counted()));
    told("write", sys::write(fd, b"x"));
    told("send", sys::send(fd, b"x", 0));
    told("sendto", sys::sendto(fd, b"x", 0));
    told("writev", sys::writev(fd, &[b"x", b"y"]));
    told("sendmsg", sys::sendmsg(fd, &[b"x"], 0));
    told("sendmmsg", rare::send_messages(fd, &[b"x", b"y"]));
    told("pwritev2", rare::pwritev2(fd, b"x"));
    told("sendfile", sys::sendfile(fd, std::os::fd::AsRawFd::as_raw_fd(&file), 7));
    told("MSG_NOSIGNAL", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    told("sendmsg with MSG_NOSIGNAL", sys::sendmsg(fd, &[b"x"], libc::MSG_NOSIGNAL));
    told("no bytes", sys::write(fd, b""));
    told("send of no bytes", sys::send(fd, b"", 0));
    role.note("after my own shutdown", sys::shutdown(fd, WR));
    told("write", sys::write(fd, b"x"));
}

fn pipe_client(role: &Role) {
    let fd = role.open_warm();
    role.note("close", sys::close(fd));
    role.meet();
}

fn again_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    for _ in 0..3 {
        role.note("read", sys::read(fd, &mut [0; 9]));
        role.note("peek", sys::recv(fd, &mut [0; 9], libc::MSG_PEEK));
        role.note("waitall", sys::recv(fd, &mut [0; 9], libc::MSG_WAITALL));
        role.note("not waiting", sys::recv(fd, &mut [0; 9], libc::MSG_DONTWAIT));
        role.note("readv", sys::readv(fd, &mut [&mut [0; 2], &mut [0; 3]]));
        role.note("recvmsg", sys::recvmsg(fd, &mut [&mut [0; 2]], 0));
        role.note("available", sys::readable_bytes(fd));
        role.note("no bytes", (sys::read(fd, &mut []), sys::recv(fd, &mut [], 0)));
    }
    role.meet();
}

fn again_client(role: &Role) {
    let fd = role.open_warm();
    role.note("shutdown", sys::shutdown(fd, WR));
    role.meet();
    role.meet();
}
