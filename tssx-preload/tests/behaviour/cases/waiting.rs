//! Blocking: timeouts, signals, and waits that end when they should. Durations are compared with bounds that only
//! tell "waited" from "did not wait".

use std::time::{Duration, Instant};

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "receive-timeout", server: timeout_server, client: timeout_client, expect: Expect::Accelerated },
    Case { name: "send-timeout", server: send_timeout_server, client: send_timeout_client, expect: Expect::Accelerated },
    Case { name: "signal-interrupts-a-read", server: signal_server, client: signal_client, expect: Expect::Accelerated },
    Case { name: "signal-restarts-a-read", server: restart_server, client: restart_client, expect: Expect::Accelerated },
    Case {
        name: "signal-interrupts-poll-and-epoll",
        server: poll_signal_server,
        client: poll_signal_client,
        expect: Expect::Accelerated,
    },
    Case { name: "blocked-writer-goes-on", server: blocked_writer, client: slow_reader, expect: Expect::Accelerated },
    Case { name: "many-sleeps-and-wakes", server: nap_server, client: nap_client, expect: Expect::Accelerated },
];

fn timeout_server(role: &Role) {
    let fd = role.open_warm();
    let limit = libc::timeval { tv_sec: 0, tv_usec: 60_000 };
    role.note("set", sys::set_option(fd, libc::SO_RCVTIMEO, &limit));
    for call in ["read", "recv", "recvmsg", "waitall"] {
        let start = Instant::now();
        let answer = match call {
            "read" => sys::read(fd, &mut [0; 4]),
            "recv" => sys::recv(fd, &mut [0; 4], 0),
            "recvmsg" => sys::recvmsg(fd, &mut [&mut [0; 4]], 0).0,
            _ => sys::recv(fd, &mut [0; 4], libc::MSG_WAITALL),
        };
        role.note(call, (answer, start.elapsed() >= Duration::from_millis(55)));
    }
    role.meet();
    role.meet();
    role.note("with data", sys::recv(fd, &mut [0; 4], 0));
    role.note("poll is not bound by it", sys::poll(fd, libc::POLLIN, Duration::from_millis(5)));
}

fn timeout_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"ab"));
    role.meet();
    role.note("end", sys::read(fd, &mut [0]));
}

fn send_timeout_server(role: &Role) {
    let fd = role.open_warm();
    let limit = libc::timeval { tv_sec: 0, tv_usec: 60_000 };
    role.note("set", sys::set_option(fd, libc::SO_SNDTIMEO, &limit));
    let start = Instant::now();
    let mut sent = 0;
    let end = loop {
        match sys::send(fd, &pattern(2, sent, 50_000), 0) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    role.note("full", (end, start.elapsed() >= Duration::from_millis(55)));
    std::fs::write(role.directory().join("sent"), sent.to_string()).expect("write");
    role.meet();
    role.note("end", sys::read(fd, &mut [0]));
}

fn send_timeout_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let sent: usize = std::fs::read_to_string(role.directory().join("sent")).expect("written").parse().expect("a number");
    let mut bytes = vec![0; sent];
    read_exactly(fd, &mut bytes);
    role.note("all that was accepted came", bytes == pattern(2, 0, sent));
    role.note("nothing more", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
}

fn signal_server(role: &Role) {
    let fd = role.open_warm();
    sys::alarm(Duration::from_millis(60), false);
    role.note("read", sys::read(fd, &mut [0]));
    sys::alarm(Duration::from_millis(60), false);
    role.note("recvmsg", sys::recvmsg(fd, &mut [&mut [0; 4]], 0));
    role.meet();
    role.note("data is not lost", sys::read(fd, &mut [0; 9]));
}

fn signal_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"data"));
    role.note("end", sys::read(fd, &mut [0]));
}

fn restart_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    sys::alarm(Duration::from_millis(40), true);
    role.note("read", sys::read(fd, &mut [0; 9]));
}

fn restart_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(120));
    role.note("write", sys::write(fd, b"after"));
    role.note("end", sys::read(fd, &mut [0]));
}

fn poll_signal_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
    for restart in [false, true] {
        sys::alarm(Duration::from_millis(40), restart);
        role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
        sys::alarm(Duration::from_millis(40), restart);
        role.note("select", sys::select_read(fd, Duration::from_millis(999)));
        sys::alarm(Duration::from_millis(40), restart);
        role.note("epoll", sys::epoll_wait(epoll, 1, SOON).len());
    }
    role.meet();
    role.note("epoll with data", sys::epoll_wait(epoll, 1, SOON).len());
}

fn poll_signal_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"data"));
    role.note("end", sys::poll(fd, libc::POLLIN, SOON).is_ok());
}

fn blocked_writer(role: &Role) {
    let fd = role.open_warm();
    let all = pattern(8, 0, 3 << 20);
    // One call: a blocking write takes everything, however small the buffer.
    role.note("one write", sys::write(fd, &all));
    role.note("one writev", sys::writev(fd, &[&all, b"tail", &all]));
    role.note("end", sys::read(fd, &mut [0]));
}

fn slow_reader(role: &Role) {
    let fd = role.open_warm();
    let all = pattern(8, 0, 3 << 20);
    std::thread::sleep(Duration::from_millis(60));
    let mut into = vec![0; 3 << 20];
    read_exactly(fd, &mut into);
    role.note("the write", into == all);
    std::thread::sleep(Duration::from_millis(60));
    let mut into = vec![0; (6 << 20) + 4];
    read_exactly(fd, &mut into);
    role.note("the writev", into == [all.as_slice(), b"tail", &all].concat());
}

fn nap_server(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 64];
    for _ in 0..300 {
        read_exactly(fd, &mut into);
        write_all(fd, &into);
    }
    role.say("300 echoes");
}

fn nap_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 64];
    for round in 0..300_usize {
        std::thread::sleep(Duration::from_micros((round * 37 % 400) as u64));
        let bytes = pattern(round, 0, 64);
        write_all(fd, &bytes);
        read_exactly(fd, &mut into);
        assert_eq!(bytes, into, "round {round}");
    }
    role.say("300 echoes");
}
