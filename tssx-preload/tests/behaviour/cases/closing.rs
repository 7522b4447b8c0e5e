//! The end of a connection: half-close, EOF after the last byte and not before, EPIPE, SIGPIPE, ECONNRESET, sudden death.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "half-close-then-read-on", server: half_server, client: half_client, expect: Expect::Accelerated },
    Case { name: "end-only-after-the-last-byte", server: last_server, client: last_client, expect: Expect::Accelerated },
    Case { name: "write-after-the-peer-closed", server: pipe_server, client: pipe_client, expect: Expect::Accelerated },
    Case { name: "close-with-unread-data-resets", server: reset_server, client: reset_client, expect: Expect::Accelerated },
    Case { name: "own-shutdowns", server: own_server, client: own_client, expect: Expect::Accelerated },
    Case { name: "peer-shuts-down-reading", server: deaf_server, client: deaf_client, expect: Expect::Accelerated },
    Case { name: "blocked-reader-sees-the-close", server: blocked_server, client: blocked_client, expect: Expect::Accelerated },
    Case { name: "blocked-writer-sees-the-close", server: stuck_server, client: stuck_client, expect: Expect::Accelerated },
    Case { name: "killed-writers-bytes-arrive", server: killed_server, client: killed_client, expect: Expect::Accelerated },
    Case { name: "killed-while-the-peer-sleeps", server: orphan_server, client: orphan_client, expect: Expect::Accelerated },
    Case { name: "shutdown-from-another-thread-wakes", server: wake_server, client: wake_client, expect: Expect::Accelerated },
    Case { name: "calls-after-close", server: after_server, client: after_client, expect: Expect::Accelerated },
];

fn half_server(role: &Role) {
    let fd = role.open_warm();
    let mut request = vec![0; 5000];
    read_exactly(fd, &mut request);
    role.note("request", request == pattern(1, 0, 5000));
    role.note("end of the request", sys::read(fd, &mut [0]));
    write_all(fd, &pattern(2, 0, 300_000));
    role.note("close", sys::close(fd));
}

fn half_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, &pattern(1, 0, 5000));
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("write after it", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    let mut reply = vec![0; 300_000];
    read_exactly(fd, &mut reply);
    role.note("reply", reply == pattern(2, 0, 300_000));
    role.note("end", sys::read(fd, &mut [0]));
    role.note("end again", sys::read(fd, &mut [0]));
}

fn last_server(role: &Role) {
    for round in 0..20 {
        let fd = role.open_warm();
        write_all(fd, &pattern(round, 0, 20_000 + round));
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("20 connections");
}

fn last_client(role: &Role) {
    for round in 0..20 {
        let fd = role.open_warm();
        let mut bytes = vec![0; 20_000 + round];
        read_exactly(fd, &mut bytes);
        assert!(bytes == pattern(round, 0, 20_000 + round), "round {round}");
        assert_eq!(sys::read(fd, &mut [0]), Ok(0));
        assert_eq!(sys::close(fd), Ok(0));
    }
    role.say("20 connections");
}

fn pipe_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT, SOON));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    role.note("write with SIGPIPE ignored", sys::write(fd, b"x"));
    role.note("writev", sys::writev(fd, &[b"x"]));
    role.note("sendmsg", sys::sendmsg(fd, &[b"x"], libc::MSG_NOSIGNAL));
    role.note("read", sys::read(fd, &mut [0]));
    let child = sys::in_child(|| {
        sys::default_sigpipe();
        // Killed here unless the library forgets the signal; then the exit code is 0.
        let _ = sys::write(fd, b"x");
    });
    role.note("write with SIGPIPE's default", child.wait());
    let child = sys::in_child(|| {
        sys::default_sigpipe();
        let _ = sys::send(fd, b"x", libc::MSG_NOSIGNAL);
    });
    role.note("MSG_NOSIGNAL with SIGPIPE's default", child.wait());
}

fn pipe_client(role: &Role) {
    let fd = role.open_warm();
    role.note("close", sys::close(fd));
    role.meet();
}

fn reset_server(role: &Role) {
    for how in 0..4 {
        let fd = role.open_warm();
        write_all(fd, &pattern(1, 0, 1000));
        role.meet();
        role.meet();
        role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, SOON));
        match how {
            0 => role
                .note("error option", (sys::option(fd, libc::SOL_SOCKET, libc::SO_ERROR).map(sys::name), sys::read(fd, &mut [0]))),
            1 => role.note("reads", (sys::read(fd, &mut [0]), sys::read(fd, &mut [0]))),
            2 => role.note("nonblocking", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT)),
            _ => role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL)),
        }
        role.note("poll after", sys::poll(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, SOON));
        role.note("close", sys::close(fd));
    }
}

fn reset_client(role: &Role) {
    for _ in 0..4 {
        let fd = role.open_warm();
        role.meet();
        role.note("read a part", sys::recv(fd, &mut [0; 10], libc::MSG_WAITALL));
        role.note("close with the rest unread", sys::close(fd));
        role.meet();
    }
}

fn own_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("poll before", sys::poll(fd, libc::POLLIN, SOON));
    role.note("shut reading", sys::shutdown(fd, libc::SHUT_RD));
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, SOON));
    role.note("read what was there", sys::read(fd, &mut [0; 9]));
    role.note("then the end", sys::read(fd, &mut [0; 9]));
    role.note("write", sys::write(fd, b"still"));
    role.note("shut writing", sys::shutdown(fd, libc::SHUT_WR));
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, SOON));
    role.note("write", sys::send(fd, b"no", libc::MSG_NOSIGNAL));
    role.note("a bad argument", sys::shutdown(fd, 17));
    role.meet();
}

fn own_client(role: &Role) {
    let fd = role.open_warm();
    role.note("write", sys::write(fd, b"data"));
    role.meet();
    let mut into = [0; 5];
    read_exactly(fd, &mut into);
    role.note("read", into);
    role.note("end", sys::read(fd, &mut into));
    role.meet();
    role.note("send to the deaf", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, SOON));
}

fn deaf_server(role: &Role) {
    let fd = role.open_warm();
    role.note("shut reading", sys::shutdown(fd, libc::SHUT_RD));
    role.meet();
    role.meet();
    role.note("read", sys::read(fd, &mut [0]));
}

fn deaf_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, SOON));
    role.note("read", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    role.meet();
}

fn blocked_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("read", sys::read(fd, &mut [0]));
}

fn blocked_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(50));
    role.note("close", sys::close(fd));
}

fn stuck_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let piece = pattern(1, 0, 100_000);
    let end = loop {
        if let Err(error) = sys::send(fd, &piece, libc::MSG_NOSIGNAL) {
            break error;
        }
    };
    role.note("blocked write ends by", end == "EPIPE" || end == "ECONNRESET");
    // Which of the two came first depends on where the writer was; the other follows.
    role.note("after that", sys::send(fd, &piece, libc::MSG_NOSIGNAL));
}

fn stuck_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(50));
    role.note("close", sys::close(fd));
}

fn killed_server(role: &Role) {
    let fd = role.open_warm();
    let child = sys::in_child(|| {
        write_all(fd, &pattern(3, 0, 100_000));
        std::thread::sleep(SOON);
    });
    role.note("close in the parent", sys::close(fd));
    role.meet();
    child.kill();
    role.note("the writer", child.wait());
    role.meet();
}

fn killed_client(role: &Role) {
    let fd = role.open_warm();
    let mut first = vec![0; 50_000];
    read_exactly(fd, &mut first);
    // The rest is in flight when the writer dies: wait until it is all there.
    while sys::readable_bytes(fd).expect("FIONREAD") < 50_000 {
        std::thread::sleep(Duration::from_millis(1));
    }
    role.meet();
    role.meet();
    let mut rest = vec![0; 50_000];
    read_exactly(fd, &mut rest);
    role.note("nothing lost", [first, rest].concat() == pattern(3, 0, 100_000));
    role.note("end", sys::read(fd, &mut [0]));
}

fn orphan_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("read", sys::read(fd, &mut [0]));
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT, SOON));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
}

fn orphan_client(role: &Role) {
    let fd = role.open_warm();
    let child = sys::in_child(|| std::thread::sleep(SOON));
    role.note("close in the parent", sys::close(fd));
    role.meet();
    std::thread::sleep(Duration::from_millis(50));
    child.kill();
    role.note("the last holder", child.wait());
}

fn wake_server(role: &Role) {
    let fd = role.open_warm();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| sys::read(fd, &mut [0]));
        std::thread::sleep(Duration::from_millis(50));
        role.note("shutdown", sys::shutdown(fd, libc::SHUT_RDWR));
        role.note("the blocked read", reader.join().ok());
    });
    role.note("read", sys::read(fd, &mut [0]));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
}

fn wake_client(role: &Role) {
    let fd = role.open_warm();
    role.note("read", sys::read(fd, &mut [0]));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
}

fn after_server(role: &Role) {
    let fd = role.open_warm();
    role.note("close", sys::close(fd));
    role.note("read", sys::read(fd, &mut [0]));
    role.note("write", sys::write(fd, b"x"));
    role.note("close again", sys::close(fd));
    role.note("poll", sys::poll(fd, libc::POLLIN, Duration::ZERO));
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_RDWR));
    // The number comes back as something else, and must then be that.
    let file = std::fs::File::open("/dev/zero").expect("open");
    role.note("the same number", std::os::fd::AsRawFd::as_raw_fd(&file) == fd);
    role.note("read zeros", sys::read(std::os::fd::AsRawFd::as_raw_fd(&file), &mut [1; 3]));
    role.meet();
}

fn after_client(role: &Role) {
    let fd = role.open_warm();
    role.note("end", sys::read(fd, &mut [0]));
    role.meet();
}
