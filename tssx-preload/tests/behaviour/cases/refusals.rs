//! Calls that are refused, each with its errno, and flags that are odd but allowed; the connection is none the worse.

use crate::harness::{Case, Expect};
use crate::messages::{receive_batch, receive_beside, send_batch};
use crate::role::{Role, SOON, write_all};
use crate::waits::ioctl;
use crate::{files, sys, waits};

/// `sockatmark`'s request; the libc crate does not have it for this target.
const ATMARK: u64 = 0x8905;

pub(super) const CASES: &[Case] = &[
    Case { name: "every-call-on-a-closed-number", server: closed_server, client: closed_client, expect: Expect::Accelerated },
    Case { name: "every-call-before-connect", server: early_server, client: early_client, expect: Expect::Accelerated },
    Case { name: "connect-twice-and-bind-late", server: idle_server, client: twice_client, expect: Expect::Accelerated },
    Case { name: "connects-that-fail", server: idle_server, client: failing_client, expect: Expect::Accelerated },
    Case { name: "send-with-an-address", server: address_server, client: idle_client, expect: Expect::Accelerated },
    Case { name: "calls-for-listeners-on-a-stream", server: listener_server, client: idle_client, expect: Expect::Accelerated },
    Case { name: "receive-flags-that-mean-nothing", server: odd_server, client: odd_client, expect: Expect::Accelerated },
    Case { name: "errqueue-reads-like-no-flag", server: queue_server, client: odd_client, expect: Expect::Either },
    Case { name: "send-flags-that-mean-nothing", server: flags_server, client: flags_client, expect: Expect::Accelerated },
    Case { name: "peek-with-waitall", server: peek_server, client: peek_client, expect: Expect::Accelerated },
    Case { name: "trunc-on-a-stream", server: trunc_server, client: peek_client, expect: Expect::Accelerated },
    Case { name: "urgent-in-the-middle", server: urgent_server, client: urgent_client, expect: Expect::Either },
    Case { name: "urgent-inline", server: inline_server, client: urgent_client, expect: Expect::Either },
    Case { name: "urgent-when-there-is-none", server: none_server, client: idle_client, expect: Expect::Accelerated },
];

fn idle_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}

fn idle_server(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}

/// What each call says to a number.
fn ask_all(role: &Role, fd: i32) {
    let mut into = [0; 4];
    role.note("read, readv, recv", (sys::read(fd, &mut into), sys::readv(fd, &mut [&mut into]), sys::recv(fd, &mut [0; 2], 0)));
    role.note("recvfrom, recvmsg", (sys::recvfrom(fd, &mut into, 0), sys::recvmsg(fd, &mut [&mut into], 0)));
    role.note("write, writev", (sys::write(fd, b"x"), sys::writev(fd, &[b"x"])));
    role.note("send, sendto, sendmsg", (sys::send(fd, b"x", libc::MSG_NOSIGNAL), sys::sendto(fd, b"x", libc::MSG_NOSIGNAL)));
    role.note("sendmsg", sys::sendmsg(fd, &[b"x"], libc::MSG_NOSIGNAL));
    role.note("recvmmsg, sendmmsg", (receive_batch(fd, &[4], 0, None), send_batch(fd, &[Some(b"x")], libc::MSG_NOSIGNAL).0));
    role.note("no bytes", (sys::read(fd, &mut []), sys::write(fd, b""), sys::send(fd, b"", libc::MSG_NOSIGNAL)));
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT, std::time::Duration::ZERO));
    role.note("names", (sys::name_length(fd, false).is_ok(), sys::name_length(fd, true)));
    role.note("options", (sys::option(fd, libc::SOL_SOCKET, libc::SO_TYPE), sys::set_option(fd, libc::SO_KEEPALIVE, &0_i32)));
    role.note("FIONREAD, TIOCOUTQ", (sys::readable_bytes(fd), ioctl(fd, libc::TIOCOUTQ, 3)));
    role.note("shutdown", (sys::shutdown(fd, libc::SHUT_RD), sys::shutdown(fd, 9)));
    role.note("dup, F_GETFL", (sys::dup(fd) >= 0, sys::fcntl(fd, libc::F_GETFL, 0)));
    let epoll = sys::epoll_create();
    role.note("epoll_ctl", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN));
    assert_eq!(sys::close(epoll), Ok(0));
}

fn closed_server(role: &Role) {
    let fd = role.open_warm();
    role.note("close", sys::close(fd));
    ask_all(role, fd);
    ask_all(role, -1);
    role.note("close again", (sys::close(fd), sys::close(-1)));
    role.note("dup2", (sys::dup2(fd, 90), sys::dup2(role.listener(), -1)));
    role.note("splice", (files::splice(fd, fd, 4, 0), files::copy_range(fd, fd, 3)));
    role.note("select", waits::select_with(fd, 0, 0));
    role.meet();
}

fn closed_client(role: &Role) {
    let fd = role.open_warm();
    role.note("end", sys::read(fd, &mut [0; 9]));
    role.meet();
}

fn early_server(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}

fn early_client(role: &Role) {
    let fresh = sys::socket(libc::SOCK_STREAM);
    ask_all(role, fresh);
    role.note("not listening", sys::accept4(fresh, 0));
    assert_eq!(sys::close(fresh), Ok(0));
    let fd = sys::socket(libc::SOCK_STREAM);
    role.note("read", sys::read(fd, &mut [0; 4]));
    role.note("connect", sys::connect(fd, &role.path().to_string_lossy()));
    role.warm_up(fd);
    role.settle(fd);
}

fn twice_client(role: &Role) {
    let fd = role.open_warm();
    let path = role.path().to_string_lossy().into_owned();
    role.note("connect again", sys::connect(fd, &path));
    role.note("to nowhere", sys::connect(fd, &role.directory().join("none").to_string_lossy()));
    role.note("bind", sys::bind(fd, &role.directory().join("late").to_string_lossy()));
    role.note("own name", sys::name_into(fd, false, 110).0.map(|length| length > 10));
    role.note("bind again", sys::bind(fd, &role.directory().join("later").to_string_lossy()));
    role.note("listen", sys::listen(fd));
    role.settle(fd);
}

fn failing_client(role: &Role) {
    let file = role.directory().join("file");
    std::fs::write(&file, b"").expect("write");
    let bound = sys::socket(libc::SOCK_STREAM);
    let silent = role.directory().join("silent");
    role.note("bind", sys::bind(bound, &silent.to_string_lossy()));
    for path in [role.directory().join("none"), file.clone(), file.join("below"), silent, "".into()] {
        let fd = sys::socket(libc::SOCK_STREAM);
        role.note("connect", sys::connect(fd, &path.to_string_lossy()));
        role.note("then", (sys::send(fd, b"x", libc::MSG_NOSIGNAL), sys::read(fd, &mut [0])));
        role.note("and then", sys::connect(fd, &path.to_string_lossy()));
    }
    let datagram = sys::socket(libc::SOCK_DGRAM);
    role.note("another type", sys::connect(datagram, &role.path().to_string_lossy()));
    role.note("no socket", (sys::connect(0, &role.path().to_string_lossy()), sys::connect(999, "x")));
    let fd = role.open_warm();
    role.settle(fd);
}

fn address_server(role: &Role) {
    let fd = role.open_warm();
    let path = role.path().to_string_lossy().into_owned();
    role.note("sendto", sys::send_to(fd, b"x", &path));
    role.note("sendto nowhere", sys::send_to(fd, b"x", "/nowhere"));
    role.note("unconnected", sys::send_to(sys::socket(libc::SOCK_STREAM), b"x", &path));
    role.settle(fd);
}

fn listener_server(role: &Role) {
    let fd = role.open_warm();
    role.note("listen", sys::listen(fd));
    role.note("accept", sys::accept4(fd, 0));
    role.note(
        "read from the listener",
        (sys::read(role.listener(), &mut [0]), sys::send(role.listener(), b"x", libc::MSG_NOSIGNAL)),
    );
    role.note("shutdown how", (sys::shutdown(fd, 3), sys::shutdown(fd, -1)));
    role.note("out of band by ioctl", ioctl(fd, ATMARK, 5));
    role.settle(fd);
}

fn odd_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 2];
    let odd = [libc::MSG_NOSIGNAL, libc::MSG_CTRUNC, 0x10, libc::MSG_EOR, libc::MSG_MORE, libc::MSG_CONFIRM, 0x0200_0000];
    for flags in odd {
        role.note("recv", (flags, sys::recv(fd, &mut into, flags), into));
    }
    let received = receive_beside(fd, 2, 0, libc::MSG_NOSIGNAL | libc::MSG_EOR);
    role.note("recvmsg", received.shown());
    role.settle(fd);
}

fn odd_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"0123456789abcdef");
    role.meet();
    role.settle(fd);
}

/// A Unix stream has no queue of errors and gives data instead.
fn queue_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 8];
    role.note("recv", (sys::recv(fd, &mut into, libc::MSG_ERRQUEUE), into));
    role.note("recvmsg", receive_beside(fd, 8, 0, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT).shown());
    role.note("nothing", sys::recv(fd, &mut into, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT));
    role.settle(fd);
}

fn flags_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 100];
    let got = sys::recv(fd, &mut into, 0);
    role.note("one read", (got, String::from_utf8_lossy(&into[..got.unwrap_or(0)]).into_owned()));
    role.settle(fd);
}

fn flags_client(role: &Role) {
    let fd = role.open_warm();
    let odd = [
        libc::MSG_PEEK,
        libc::MSG_WAITALL,
        libc::MSG_TRUNC,
        libc::MSG_CTRUNC,
        libc::MSG_ERRQUEUE,
        libc::MSG_DONTROUTE,
        0x10,
        0x200,
    ];
    for flags in odd {
        role.note("send", (flags, sys::send(fd, b"flag ", flags)));
    }
    write_all(fd, b"none");
    role.meet();
    role.settle(fd);
}

fn peek_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 20];
    role.note("less than asked for", (sys::recv(fd, &mut into, libc::MSG_PEEK | libc::MSG_WAITALL), into));
    role.note("all", sys::recv(fd, &mut into[..5], libc::MSG_PEEK | libc::MSG_WAITALL));
    role.note("not waiting", sys::recv(fd, &mut into, libc::MSG_WAITALL | libc::MSG_DONTWAIT));
    role.settle(fd);
}

fn peek_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"0123456789");
    role.meet();
    role.settle(fd);
}

/// MSG_TRUNC is for datagrams: a stream gives what fits and keeps the rest.
fn trunc_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 4];
    role.note("peek", (sys::recv(fd, &mut into, libc::MSG_PEEK | libc::MSG_TRUNC), into));
    role.note("recv", (sys::recv(fd, &mut into, libc::MSG_TRUNC), into));
    role.note("no room", sys::recv(fd, &mut [], libc::MSG_TRUNC));
    role.note("recvmsg", receive_beside(fd, 4, 0, libc::MSG_TRUNC).shown());
    role.note("the rest", (sys::recv(fd, &mut into, libc::MSG_TRUNC), into));
    role.settle(fd);
}

fn urgent_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"before");
    role.note("urgent", sys::send(fd, b"U", libc::MSG_OOB));
    write_all(fd, b"after");
    role.meet();
    role.meet();
    write_all(fd, b"later");
    role.meet();
    role.settle(fd);
}

fn urgent_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLPRI, SOON));
    role.note("select", waits::select_all([&[fd], &[], &[fd]], Some(SOON), None).0);
    role.note("at the mark", ioctl(fd, ATMARK, 5));
    let mut into = [0; 20];
    role.note("up to the mark", (sys::read(fd, &mut into), String::from_utf8_lossy(&into).into_owned()));
    role.note("at the mark", ioctl(fd, ATMARK, 5));
    let mut urgent = [0; 1];
    role.note("peek", (sys::recv(fd, &mut urgent, libc::MSG_OOB | libc::MSG_PEEK), urgent));
    role.note("urgent", (sys::recv(fd, &mut urgent, libc::MSG_OOB), urgent));
    role.note("urgent again", sys::recv(fd, &mut urgent, libc::MSG_OOB));
    role.note("the rest", (sys::read(fd, &mut into[..5]), into[0]));
    role.meet();
    role.meet();
    role.note("later", (sys::read(fd, &mut into), into[0]));
    role.settle(fd);
}

fn inline_server(role: &Role) {
    let fd = role.open_warm();
    role.note("inline", sys::set_option(fd, libc::SO_OOBINLINE, &1_i32));
    role.meet();
    let mut into = [0; 20];
    role.note("up to the mark", (sys::read(fd, &mut into), into[0]));
    role.note("urgent by flag", sys::recv(fd, &mut [0], libc::MSG_OOB));
    role.note("from the mark", (sys::read(fd, &mut into), into[0]));
    role.meet();
    role.meet();
    role.note("later", (sys::read(fd, &mut into), into[0]));
    role.settle(fd);
}

fn none_server(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 4];
    role.note("none", sys::recv(fd, &mut into, libc::MSG_OOB));
    role.note("not waiting", sys::recv(fd, &mut into, libc::MSG_OOB | libc::MSG_DONTWAIT));
    role.note("poll", sys::poll(fd, libc::POLLPRI, std::time::Duration::ZERO));
    role.note("at the mark", ioctl(fd, ATMARK, 5));
    role.settle(fd);
}
