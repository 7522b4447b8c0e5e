//! Bad addresses: the answer is EFAULT, nothing is lost or sent, and the process lives.

use std::time::{Duration, Instant};

use crate::faults::{self, Bad, READS, WRITES};
use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "bad-buffers-to-read-into", server: reads_server, client: reads_client, expect: Expect::Accelerated },
    Case { name: "bad-buffers-while-nothing-is-there", server: idle_server, client: idle_client, expect: Expect::Accelerated },
    Case { name: "bad-buffers-to-write-from", server: writes_server, client: writes_client, expect: Expect::Accelerated },
    Case { name: "bad-parts-to-read-into", server: scatter_server, client: scatter_client, expect: Expect::Accelerated },
    Case { name: "bad-parts-to-write-from", server: gather_server, client: gather_client, expect: Expect::Accelerated },
    Case { name: "bad-buffers-before-any-traffic", server: early_server, client: early_client, expect: Expect::Accelerated },
    Case { name: "bad-tables", server: tables_server, client: tables_client, expect: Expect::Accelerated },
    Case { name: "bad-epoll-events", server: events_server, client: events_client, expect: Expect::Accelerated },
    Case { name: "bad-values", server: values_server, client: values_client, expect: Expect::Accelerated },
    Case { name: "bad-address-for-accept", server: accept_server, client: accept_client, expect: Expect::Accelerated },
    Case { name: "bad-buffers-after-the-end", server: ended_server, client: ended_client, expect: Expect::Accelerated },
    Case { name: "bad-buffer-of-a-blocked-read", server: blocked_server, client: blocked_client, expect: Expect::Accelerated },
    Case { name: "a-large-write-from-bad-memory", server: large_server, client: large_client, expect: Expect::Accelerated },
    Case {
        name: "constant-memory-can-be-written-from",
        server: constant_server,
        client: constant_client,
        expect: Expect::Accelerated,
    },
    Case { name: "bad-buffers-after-a-pause", server: paused_server, client: paused_client, expect: Expect::Accelerated },
];

fn reads_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    role.meet();
    for call in READS {
        for (kind, address) in bad.all(true) {
            role.note(kind, (call, faults::read_by(call, fd, address, 10)));
        }
        role.note("still there", sys::readable_bytes(fd));
    }
    let mut into = [0; 99];
    role.note("read", (sys::read(fd, &mut into), into[..50] == pattern(1, 0, 50)));
    role.settle(fd);
}

fn reads_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, &pattern(1, 0, 50));
    role.meet();
    role.settle(fd);
}

/// Nothing is copied, so nothing is wrong yet: EAGAIN, and 0 for no bytes.
fn idle_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    sys::set_nonblocking(fd, true);
    for call in READS {
        for (kind, address) in bad.all(true) {
            role.note(kind, (call, faults::read_by(call, fd, address, 10), faults::read_by(call, fd, address, 0)));
        }
    }
    for call in WRITES {
        role.note("no bytes from nowhere", (call, faults::write_by(call, fd, Bad::nowhere(), 0)));
    }
    sys::set_nonblocking(fd, false);
    role.settle(fd);
}

fn idle_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}

fn writes_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    for call in WRITES {
        for (kind, address) in bad.all(false) {
            role.note(kind, (call, faults::write_by(call, fd, address, 10)));
        }
    }
    role.meet();
    write_all(fd, b"fine");
    role.meet();
    role.settle(fd);
}

fn writes_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    let mut into = [0; 9];
    role.note("only what was fine", (sys::read(fd, &mut into), into));
    role.settle(fd);
}

/// One message of 12 bytes: the part that is bad takes none of it away.
fn scatter_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    role.meet();
    let parts = [(bad.edge(4), 4), (Bad::nowhere(), 4), (bad.edge(8), 4)];
    role.note("readv", faults::readv(fd, &parts));
    role.note("still there", sys::readable_bytes(fd));
    role.note("recvmsg", faults::recvmsg(fd, &parts));
    role.note("still there", sys::readable_bytes(fd));
    role.note("bad but empty", faults::readv(fd, &[(bad.edge(4), 4), (Bad::nowhere(), 0), (bad.edge(8), 4)]));
    role.note("bad beyond what is there", faults::readv(fd, &[(bad.edge(8), 4), (Bad::nowhere(), 4)]));
    role.meet();
    role.settle(fd);
}

fn scatter_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"twelve bytes");
    role.meet();
    role.meet();
    role.settle(fd);
}

fn gather_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    bad.fill(b'g');
    let parts = [(bad.edge(4), 4), (bad.closed(), 4), (bad.edge(8), 4)];
    role.note("writev", faults::writev(fd, &parts));
    role.note("sendmsg", faults::sendmsg(fd, &parts));
    role.note("bad but empty", faults::writev(fd, &[(bad.edge(4), 4), (Bad::nowhere(), 0), (bad.edge(8), 4)]));
    role.note("bad at the end", faults::sendmsg(fd, &[(bad.edge(4), 4), (Bad::nowhere(), 4)]));
    role.note("a length without end", faults::writev(fd, &[(bad.edge(4), 4), (bad.edge(4), usize::MAX)]));
    role.meet();
    role.settle(fd);
}

fn gather_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 99];
    role.note("only what was fine", (sys::recv(fd, &mut into, libc::MSG_DONTWAIT), into[0]));
    role.settle(fd);
}

fn early_server(role: &Role) {
    let fd = role.open();
    let bad = Bad::new();
    role.meet();
    role.note("no access", faults::read_by("read", fd, bad.closed(), 10));
    role.note("bad after 3 bytes", faults::read_by("recv", fd, bad.edge(3), 4));
    role.note("write", faults::write_by("write", fd, bad.closed(), 10));
    let mut into = [0; 9];
    role.note("read", (sys::read(fd, &mut into), into));
    role.settle(fd);
}

fn early_client(role: &Role) {
    let fd = role.open();
    role.note("from nowhere", faults::write_by("send", fd, Bad::nowhere(), 10));
    write_all(fd, b"data");
    role.meet();
    role.settle(fd);
}

fn tables_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    for address in [Bad::nowhere(), bad.closed(), bad.unmapped()] {
        for (call, answer) in faults::bad_tables(fd, address) {
            role.note(call, answer);
        }
    }
    role.settle(fd);
    role.meet();
    for (call, answer) in faults::bad_tables(fd, bad.closed()) {
        role.note(call, answer);
    }
    let mut into = [0; 9];
    role.note("read", (sys::read(fd, &mut into), into));
    role.settle(fd);
}

fn tables_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
    write_all(fd, b"data");
    role.meet();
    role.settle(fd);
}

fn events_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    let epoll = sys::epoll_create();
    role.note("bad ADD", faults::bad_controls(epoll, fd, bad.closed())[1]);
    role.note("add", sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN));
    role.note("nothing is there", (faults::bad_wait(epoll, Bad::nowhere()), faults::bad_controls(epoll, fd, Bad::nowhere())));
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
    role.note("with data, a constant array", faults::bad_wait(epoll, bad.constant()));
    role.note("with data", (faults::bad_wait(epoll, bad.closed()), faults::bad_controls(epoll, fd, bad.closed())));
    let told = sys::epoll_wait(epoll, 4, SOON);
    role.note("told nevertheless", (told.len(), told.first().map(|event| event.1)));
    role.note("read", sys::read(fd, &mut [0; 9]));
    role.settle(fd);
}

fn events_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"data");
    role.settle(fd);
}

fn values_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    for address in [Bad::nowhere(), bad.closed(), bad.unmapped()] {
        for (call, answer) in faults::bad_values(fd, address) {
            role.note(call, answer);
        }
    }
    role.settle(fd);
}

fn values_client(role: &Role) {
    let fd = role.open_warm();
    for (call, answer) in faults::bad_values(fd, Bad::nowhere()) {
        role.note(call, answer);
    }
    role.settle(fd);
}

/// The connection is taken from the queue and closed when its name cannot be written.
fn accept_server(role: &Role) {
    role.note("accept", faults::accept(role.listener(), Bad::nowhere()));
    let fd = role.open_warm();
    role.settle(fd);
}

fn accept_client(role: &Role) {
    let lost = role.open();
    role.note("end", sys::read(lost, &mut [0; 9]));
    let fd = role.open_warm();
    role.settle(fd);
}

fn ended_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    for call in READS {
        role.note("at the end", (call, faults::read_by(call, fd, Bad::nowhere(), 10)));
    }
    for call in ["send", "sendmsg"] {
        role.note("to nobody", (call, faults::write_by(call, fd, Bad::nowhere(), 10)));
    }
}

fn ended_client(role: &Role) {
    let fd = role.open_warm();
    role.note("close", sys::close(fd));
    role.meet();
}

fn blocked_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    role.meet();
    role.note("when it comes", faults::read_by("read", fd, bad.closed(), 10));
    let mut into = [0; 9];
    role.note("read", (sys::read(fd, &mut into), into));
    role.settle(fd);
}

fn blocked_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(10));
    write_all(fd, b"data");
    role.settle(fd);
}

/// 4096 good bytes and then none: what is taken of them may be nothing or something, but what is taken arrives.
fn large_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    bad.fill(b'L');
    let answer = faults::write_by("write", fd, bad.edge(4096), 100_000);
    role.note("write", answer);
    role.meet();
    role.note("write", faults::writev(fd, &[(bad.edge(4096), 4096), (bad.edge(4096), 4096), (bad.closed(), 4096)]));
    role.meet();
    role.settle(fd);
}

fn large_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..2 {
        role.meet();
        role.note("came", sys::recv(fd, &mut [0; 20_000], libc::MSG_DONTWAIT));
    }
    role.settle(fd);
}

fn constant_server(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    for call in WRITES {
        role.note(call, faults::write_by(call, fd, bad.constant(), 10));
    }
    role.settle(fd);
}

fn constant_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 10 * WRITES.len()];
    read_exactly(fd, &mut into);
    role.note("all the constant", into.iter().all(|byte| *byte == b'c'));
    role.settle(fd);
}

/// A reader that sleeps does not return for what was never sent, nor wait longer for its time-out.
fn paused_server(role: &Role) {
    let fd = role.open_warm();
    for call in WRITES {
        role.meet();
        let mut into = [0; 9];
        role.note(call, (sys::recv(fd, &mut into, 0), into == pattern(3, 0, 9).as_slice()));
    }
    let limit = libc::timeval { tv_sec: 0, tv_usec: 120_000 };
    role.note("set", sys::set_option(fd, libc::SO_RCVTIMEO, &limit));
    role.meet();
    let start = Instant::now();
    role.note("nothing", (sys::recv(fd, &mut [0; 9], 0), start.elapsed() >= Duration::from_millis(115)));
    role.settle(fd);
}

fn paused_client(role: &Role) {
    let fd = role.open_warm();
    let bad = Bad::new();
    for call in WRITES {
        role.meet();
        std::thread::sleep(Duration::from_millis(10));
        role.note(call, faults::write_by(call, fd, Bad::nowhere(), 9));
        std::thread::sleep(Duration::from_millis(10));
        for (kind, address) in bad.all(false) {
            role.note(kind, (call, faults::write_by(call, fd, address, 9)));
        }
        write_all(fd, &pattern(3, 0, 9));
    }
    role.meet();
    std::thread::sleep(Duration::from_millis(40));
    role.note("nothing", faults::write_by("send", fd, Bad::nowhere(), 9));
    role.settle(fd);
}
