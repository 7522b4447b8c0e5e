//! What a ring cannot do, or need not: the connection may leave shared memory for it or never enter, but no byte may be
//! lost, doubled or out of order, and everything that follows works.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::harness::{Case, Expect};
use crate::role::{BRIEFLY, Role, SOON, pattern, read_exactly, write_all};
use crate::{rare, sys};

pub(super) const CASES: &[Case] = &[
    Case { name: "unusual-flags", server: flags_server, client: flags_client, expect: Expect::Either },
    Case { name: "out-of-band", server: urgent_server, client: urgent_client, expect: Expect::Either },
    Case { name: "several-messages-at-once", server: batch_server, client: batch_client, expect: Expect::Either },
    Case { name: "splice-in-and-out", server: splice_server, client: splice_client, expect: Expect::Either },
    Case { name: "preadv2-and-pwritev2", server: positioned_server, client: positioned_client, expect: Expect::Either },
    Case { name: "dprintf", server: print_server, client: print_client, expect: Expect::Either },
    Case { name: "epoll-one-shot", server: oneshot_server, client: oneshot_client, expect: Expect::Either },
    Case { name: "epoll-inside-poll", server: nested_server, client: nested_client, expect: Expect::Either },
    Case { name: "another-program-serves-the-connection", server: exec_server, client: exec_client, expect: Expect::Either },
    Case { name: "children-that-do-not-use-it", server: spawn_server, client: spawn_client, expect: Expect::Accelerated },
    Case { name: "a-new-connection-is-passed-on", server: passed_server, client: passed_client, expect: Expect::Either },
    Case { name: "raw-close", server: raw_server, client: raw_client, expect: Expect::Either },
];

fn flags_server(role: &Role) {
    let fd = role.open_warm();
    role.note("MSG_MORE", sys::send(fd, b"more ", libc::MSG_MORE));
    role.note("MSG_EOR", sys::send(fd, b"and end", libc::MSG_EOR));
    role.note("MSG_CONFIRM", sys::send(fd, b"!", libc::MSG_CONFIRM));
    role.meet();
    role.meet();
    role.note("write", sys::write(fd, b"0123456789"));
    role.meet();
    role.warm_up(fd);
}

fn flags_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 13];
    role.note("all", (sys::recv(fd, &mut into, libc::MSG_WAITALL), into));
    role.meet();
    role.meet();
    role.note("MSG_TRUNC into four bytes", sys::recv(fd, &mut into[..4], libc::MSG_TRUNC));
    role.note("MSG_CMSG_CLOEXEC", sys::recvmsg(fd, &mut [&mut into[..3]], libc::MSG_CMSG_CLOEXEC));
    role.note("the rest", (sys::read(fd, &mut into), into));
    role.warm_up(fd);
}

fn urgent_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLPRI, SOON));
    let mut into = [0; 8];
    role.note("urgent", (sys::recv(fd, &mut into[..1], libc::MSG_OOB), into[0]));
    role.note("normal", (sys::read(fd, &mut into), into));
    role.meet();
    role.warm_up(fd);
}

fn urgent_client(role: &Role) {
    let fd = role.open_warm();
    role.note("write", sys::write(fd, b"abc"));
    role.note("send urgent", sys::send(fd, b"U", libc::MSG_OOB));
    role.meet();
    role.meet();
    role.warm_up(fd);
}

fn batch_server(role: &Role) {
    let fd = role.open_warm();
    role.note("sendmmsg", rare::send_messages(fd, &[b"one", b"two", b"three"]));
    role.meet();
    role.meet();
    let mut into = [vec![0; 4], vec![0; 40]];
    role.note("recvmmsg", (rare::receive_messages(fd, &mut into), into));
    role.meet();
    role.warm_up(fd);
}

fn batch_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 11];
    read_exactly(fd, &mut into);
    role.note("read", into);
    role.note("write", sys::write(fd, b"for recvmmsg"));
    role.meet();
    role.meet();
    role.warm_up(fd);
}

fn splice_server(role: &Role) {
    let fd = role.open_warm();
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    write_all(fd, b"before ");
    writer.write_all(&pattern(2, 0, 30_000)).expect("write");
    let mut moved = 0;
    while moved < 30_000 {
        moved += rare::splice(reader.as_raw_fd(), fd, 30_000 - moved).expect("splice");
    }
    write_all(fd, b" after");
    role.note("moved", moved);
    role.warm_up(fd);
}

fn splice_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = vec![0; 7];
    read_exactly(fd, &mut into);
    role.note("before", &into);
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let mut moved = 0;
    while moved < 30_000 {
        moved += rare::splice(fd, writer.as_raw_fd(), 30_000 - moved).expect("splice");
    }
    let mut bytes = vec![0; 30_000];
    reader.read_exact(&mut bytes).expect("read");
    role.note("moved whole", bytes == pattern(2, 0, 30_000));
    let mut into = vec![0; 6];
    read_exactly(fd, &mut into);
    role.note("after", &into);
    role.warm_up(fd);
}

fn positioned_server(role: &Role) {
    let fd = role.open_warm();
    role.note("pwritev2", rare::pwritev2(fd, b"positioned"));
    write_all(fd, b" and not");
    role.meet();
    role.warm_up(fd);
}

fn positioned_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 10];
    role.note("preadv2", (rare::preadv2(fd, &mut into), into));
    read_exactly(fd, &mut into[..8]);
    role.note("read", &into[..8]);
    role.warm_up(fd);
}

fn print_server(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"one ");
    role.note("dprintf", rare::print(fd, "two", 3));
    write_all(fd, b"four");
    role.warm_up(fd);
}

fn print_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 14];
    read_exactly(fd, &mut into);
    role.note("in order", String::from_utf8_lossy(&into));
    role.warm_up(fd);
}

fn oneshot_server(role: &Role) {
    let fd = role.open();
    let epoll = sys::epoll_create();
    role.note("add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | libc::EPOLLONESHOT));
    role.warm_up(fd);
    role.note("armed", sys::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN | libc::EPOLLONESHOT));
    for _ in 0..10 {
        role.meet();
        role.meet();
        role.note("told", sys::epoll_wait(epoll, 4, SOON).len());
        role.note("once", sys::epoll_wait(epoll, 4, BRIEFLY).len());
        role.note("armed again", sys::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN | libc::EPOLLONESHOT));
        role.note("told again", sys::epoll_wait(epoll, 4, SOON).len());
        role.note("read", sys::read(fd, &mut [0; 9]));
        role.note("armed", sys::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN | libc::EPOLLONESHOT));
    }
    role.meet();
    role.warm_up(fd);
}

fn oneshot_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..10 {
        role.meet();
        role.note("write", sys::write(fd, b"shot"));
        role.meet();
    }
    role.meet();
    role.warm_up(fd);
}

/// What must not be missed is an arrival; a set that is readable for nothing only costs a look.
fn nested_server(role: &Role) {
    let fd = role.open();
    let epoll = sys::epoll_create();
    role.note("add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN));
    role.note("nested", sys::poll(epoll, libc::POLLIN, std::time::Duration::ZERO));
    role.meet();
    role.warm_up(fd);
    for _ in 0..10 {
        role.meet();
        role.note("the set is readable", sys::poll(epoll, libc::POLLIN, SOON));
        role.note("its events", sys::epoll_wait(epoll, 4, SOON).len());
        role.note("read", sys::read(fd, &mut [0; 9]));
        role.meet();
    }
    role.warm_up(fd);
}

fn nested_client(role: &Role) {
    let fd = role.open();
    role.meet();
    role.warm_up(fd);
    for _ in 0..10 {
        role.meet();
        role.note("write", sys::write(fd, b"nest"));
        role.meet();
    }
    role.warm_up(fd);
}

/// inetd: another program serves the connection from the start.
fn exec_server(role: &Role) {
    let fd = role.open();
    let child = sys::in_child(|| rare::become_cat(fd));
    role.note("close in the parent", sys::close(fd));
    role.note("cat", child.wait());
}

fn exec_client(role: &Role) {
    let fd = role.open();
    let mut into = vec![0; 20_000];
    for round in 0..20 {
        let bytes = pattern(round, 0, 1000 * (round + 1));
        write_all(fd, &bytes);
        let back = into.get_mut(..bytes.len()).expect("large enough");
        read_exactly(fd, back);
        assert!(back == bytes, "round {round}");
    }
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut into));
}

fn spawn_server(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..3 {
        let output = Command::new("sh").args(["-c", "echo from a child; exec true"]).output().expect("sh");
        role.note("child", (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()));
        role.warm_up(fd);
    }
}

fn spawn_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..3 {
        role.warm_up(fd);
        let status = Command::new("true").status().expect("true");
        role.note("child", status.code());
    }
}

fn passed_server(role: &Role) {
    let fd = role.open();
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    let child = sys::in_child(|| {
        let mut byte = [0];
        let (_, passed) = sys::recv_descriptor(theirs.as_raw_fd(), &mut byte);
        let passed = passed.expect("a descriptor came");
        let mut into = [0; 64];
        for _ in 0..20 {
            read_exactly(passed, &mut into);
            write_all(passed, &into);
        }
    });
    role.note("pass it on", sys::send_descriptor(ours.as_raw_fd(), fd));
    role.note("close", sys::close(fd));
    role.note("child", child.wait());
}

fn passed_client(role: &Role) {
    let fd = role.open();
    let mut into = [0; 64];
    for round in 0..20 {
        let bytes = pattern(round, 0, 64);
        write_all(fd, &bytes);
        read_exactly(fd, &mut into);
        assert_eq!(bytes, into, "round {round}");
    }
    role.note("end", sys::read(fd, &mut into));
}

fn raw_server(role: &Role) {
    let fd = role.open_warm();
    role.note("syscall(SYS_close)", rare::raw_close(fd));
    let file = std::fs::File::open("/dev/zero").expect("open");
    role.note("the same number", file.as_raw_fd() == fd);
    role.note("reads zeros", sys::read(fd, &mut [1; 5]));
    role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
    role.meet();
}

fn raw_client(role: &Role) {
    let fd = role.open_warm();
    role.note("end", sys::read(fd, &mut [0]));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    role.meet();
}
