//! O_NONBLOCK and MSG_DONTWAIT: what would block answers EAGAIN, in both directions, and full buffers drain whole.

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "empty-answers-eagain", server: empty_server, client: empty_client, expect: Expect::Accelerated },
    Case { name: "full-answers-eagain-then-drains", server: fill, client: drain, expect: Expect::Accelerated },
    Case { name: "full-by-single-bytes-then-drains", server: fill_bytes, client: drain, expect: Expect::Accelerated },
    Case { name: "toggling-nonblocking", server: toggle_server, client: toggle_client, expect: Expect::Accelerated },
    Case { name: "partial-write-of-more-than-fits", server: partial_server, client: partial_client, expect: Expect::Accelerated },
    Case { name: "nonblocking-stream-driven-by-poll", server: pump_out, client: pump_in, expect: Expect::Accelerated },
];

fn empty_server(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    role.note("read", sys::read(fd, &mut [0; 4]));
    role.note("readv", sys::readv(fd, &mut [&mut [0; 4]]));
    role.note("recv", sys::recv(fd, &mut [0; 4], 0));
    role.note("recvmsg", sys::recvmsg(fd, &mut [&mut [0; 4]], 0));
    role.note("peek", sys::recv(fd, &mut [0; 4], libc::MSG_PEEK));
    role.note("waitall", sys::recv(fd, &mut [0; 4], libc::MSG_WAITALL));
    role.meet();
    role.meet();
    role.note("waitall with less", sys::recv(fd, &mut [0; 4], libc::MSG_WAITALL));
    role.note("read", sys::read(fd, &mut [0; 4]));
    role.meet();
    role.meet();
    role.note("read at the end", sys::read(fd, &mut [0; 4]));
    role.note("read at the end", sys::read(fd, &mut [0; 4]));
}

fn empty_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"ab"));
    role.meet();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

/// Writes 64 KiB pieces until EAGAIN; how much fits may differ, that it all arrives may not.
fn fill(role: &Role) {
    fill_by(role, 65_536);
}

fn fill_bytes(role: &Role) {
    fill_by(role, 1);
}

fn fill_by(role: &Role, piece: usize) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let mut sent = 0;
    let full = loop {
        match sys::write(fd, &pattern(5, sent, piece)) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        assert!(sent < 64 << 20, "a socket without a limit");
    };
    role.note("when full", full);
    role.note("a reasonable capacity", (200..1 << 20).contains(&sent));
    role.note("not writable", sys::poll(fd, libc::POLLOUT, crate::role::BRIEFLY));
    std::fs::write(role.directory().join("sent"), sent.to_string()).expect("write");
    role.meet();
    role.note("writable after the drain", sys::poll(fd, libc::POLLOUT, SOON));
    role.note("write", sys::write(fd, b"more"));
    role.meet();
    role.note("close", sys::close(fd));
}

fn drain(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let sent: usize =
        std::fs::read_to_string(role.directory().join("sent")).expect("the server wrote it").parse().expect("a number");
    let mut bytes = vec![0; sent];
    crate::role::read_exactly(fd, &mut bytes);
    role.note("all that was accepted came", bytes == pattern(5, 0, sent));
    role.meet();
    let mut into = [0; 9];
    role.note("more", (sys::recv(fd, into.get_mut(..4).expect("9"), libc::MSG_WAITALL), into));
    role.note("end", sys::read(fd, &mut into));
}

fn toggle_server(role: &Role) {
    let fd = role.open_warm();
    for on in [true, false, true] {
        sys::set_nonblocking(fd, on);
        role.note("flags", sys::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags as i32 & libc::O_NONBLOCK != 0));
        if on {
            role.note("read", sys::read(fd, &mut [0; 4]));
        }
        role.meet();
        role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
        role.note("read", sys::read(fd, &mut [0; 4]));
    }
}

fn toggle_client(role: &Role) {
    let fd = role.open_warm();
    for part in [b"1", b"2", b"3"] {
        role.meet();
        role.note("write", sys::write(fd, part));
    }
    role.note("end", sys::read(fd, &mut [0]));
}

fn partial_server(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let big = pattern(6, 0, 4 << 20);
    let sent = sys::write(fd, &big).expect("an empty socket takes something");
    role.note("took a part", sent > 0 && sent < big.len());
    std::fs::write(role.directory().join("sent"), sent.to_string()).expect("write");
    role.meet();
    role.note("end", sys::poll(fd, libc::POLLIN, SOON).is_ok());
}

fn partial_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let sent: usize =
        std::fs::read_to_string(role.directory().join("sent")).expect("the server wrote it").parse().expect("a number");
    let mut bytes = vec![0; sent];
    crate::role::read_exactly(fd, &mut bytes);
    role.note("exactly that part", bytes == pattern(6, 0, sent));
    role.note("nothing more", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
}

const PUMPED: usize = 16 << 20;

fn pump_out(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let mut sent = 0;
    while sent < PUMPED {
        match sys::write(fd, &pattern(7, sent, 30_000.min(PUMPED - sent))) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error, "EAGAIN");
                assert_eq!(sys::poll(fd, libc::POLLOUT, SOON), Ok(libc::POLLOUT));
            }
        }
    }
    role.note("sent", sent);
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
    role.note("end", sys::read(fd, &mut [0]));
}

fn pump_in(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let mut received = 0;
    let mut into = vec![0; 70_000];
    loop {
        match sys::read(fd, &mut into) {
            Ok(0) => break,
            Ok(count) => {
                assert!(into.get(..count) == Some(pattern(7, received, count).as_slice()), "wrong bytes after {received}");
                received += count;
            }
            Err(error) => {
                assert_eq!(error, "EAGAIN");
                let ready = sys::poll(fd, libc::POLLIN, SOON).expect("poll");
                assert!(ready & libc::POLLIN != 0, "poll: {ready:#x}");
            }
        }
    }
    role.note("received and right", received);
}
