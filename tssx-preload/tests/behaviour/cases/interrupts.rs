//! Signals that arrive while a call is blocked: EINTR or not, parts that were moved, masks that are exchanged for the time
//! of a wait, and handlers that use the very stream that they interrupted.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::messages::receive_batch;
use crate::role::{BRIEFLY, Role, SOON, pattern, write_all};
use crate::waits::{By, events, mask, ppoll, select_all};
use crate::{signals, sys};

pub(super) const CASES: &[Case] = &[
    Case { name: "eintr-of-every-read", server: reads_server, client: reads_client, expect: Expect::Accelerated },
    Case { name: "restart-of-every-read", server: restart_server, client: restart_client, expect: Expect::Accelerated },
    Case { name: "eintr-of-a-waitall-with-a-part", server: part_server, client: part_client, expect: Expect::Accelerated },
    Case { name: "eintr-of-every-write", server: writes_server, client: stays, expect: Expect::Accelerated },
    Case { name: "eintr-of-a-write-with-a-part", server: taken_server::<false>, client: taken_client, expect: Expect::Accelerated },
    Case {
        name: "restart-of-a-write-with-a-part",
        server: taken_server::<true>,
        client: taken_client,
        expect: Expect::Accelerated,
    },
    Case { name: "eintr-with-a-receive-timeout", server: limit_server, client: stays, expect: Expect::Accelerated },
    Case { name: "eintr-of-every-wait", server: waits_server, client: stays, expect: Expect::Accelerated },
    Case {
        name: "a-wait-that-unblocks-a-pending-signal",
        server: pending_server,
        client: pending_client,
        expect: Expect::Accelerated,
    },
    Case { name: "a-wait-that-blocks-all-signals", server: blocking_server, client: blocking_client, expect: Expect::Accelerated },
    Case { name: "handler-writes-to-the-same-stream", server: handler_writer, client: handler_reader, expect: Expect::Accelerated },
    Case { name: "handler-reads-from-the-same-stream", server: handler_taker, client: handler_giver, expect: Expect::Accelerated },
    Case { name: "handler-closes-what-is-written", server: closing_writer, client: closed_reader, expect: Expect::Accelerated },
    Case { name: "handler-closes-under-a-wait", server: closing_waiter, client: stays, expect: Expect::Accelerated },
    Case { name: "handler-closes-what-is-read", server: closing_reader, client: closed_writer, expect: Expect::Accelerated },
    Case { name: "handler-uses-another-stream", server: other_server, client: other_client, expect: Expect::Accelerated },
];

const ENOUGH: usize = 2000;

/// The other end, which does nothing until it is over.
fn stays(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    assert_eq!(sys::close(fd), Ok(0));
}

/// The blocking calls that read, by name.
const READS: [&str; 8] = ["read", "recv", "recvfrom", "readv", "recvmsg", "recvmmsg", "peek", "waitall"];

fn read_by(call: &str, fd: i32, into: &mut [u8]) -> sys::Answer {
    match call {
        "read" => sys::read(fd, into),
        "recv" => sys::recv(fd, into, 0),
        "recvfrom" => sys::recvfrom(fd, into, 0),
        "readv" => sys::readv(fd, &mut [into]),
        "recvmsg" => sys::recvmsg(fd, &mut [into], 0).0,
        "recvmmsg" => receive_batch(fd, &[into.len()], 0, None).0,
        "peek" => sys::recv(fd, into, libc::MSG_PEEK),
        _ => sys::recv(fd, into, libc::MSG_WAITALL),
    }
}

fn reads_server(role: &Role) {
    let fd = role.open_warm();
    signals::count_all(libc::SIGUSR1, false);
    for call in READS {
        let answer = signals::interrupting(ENOUGH, || {}, || read_by(call, fd, &mut [0; 4]));
        role.note(call, (answer, signals::counted() > 0));
    }
    role.meet();
    role.settle(fd);
}

fn reads_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.settle(fd);
}

fn restart_server(role: &Role) {
    let fd = role.open_warm();
    signals::count_all(libc::SIGUSR1, true);
    for call in READS {
        role.meet();
        let answer = signals::interrupting(ENOUGH, || {}, || read_by(call, fd, &mut [0; 4]));
        role.note(call, (answer, signals::counted() > 0));
        if call == "peek" {
            role.note("what was peeked at", sys::read(fd, &mut [0; 4]));
        }
    }
    role.settle(fd);
}

fn restart_client(role: &Role) {
    let fd = role.open_warm();
    for _ in READS {
        role.meet();
        std::thread::sleep(Duration::from_millis(40));
        write_all(fd, b"data");
    }
    role.settle(fd);
}

fn part_server(role: &Role) {
    let fd = role.open_warm();
    for restart in [false, true] {
        signals::count_all(libc::SIGUSR1, restart);
        role.meet();
        let mut into = [0; 10];
        let answer = signals::interrupting(ENOUGH, || {}, || sys::recv(fd, &mut into, libc::MSG_WAITALL));
        role.note("a part", (restart, answer, into));
        role.meet();
    }
    role.settle(fd);
}

fn part_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..2 {
        write_all(fd, b"part");
        role.meet();
        role.meet();
    }
    role.settle(fd);
}

fn fill(fd: i32) {
    while sys::send(fd, &[7; 8192], libc::MSG_DONTWAIT).is_ok() {}
    while sys::send(fd, &[7; 1], libc::MSG_DONTWAIT).is_ok() {}
    // The other end may be about to read the last byte of the warm-up, which makes room.
    std::thread::sleep(Duration::from_millis(5));
    while sys::send(fd, &[7; 1], libc::MSG_DONTWAIT).is_ok() {}
}

fn writes_server(role: &Role) {
    let fd = role.open_warm();
    fill(fd);
    signals::count_all(libc::SIGUSR1, false);
    for call in ["write", "send", "writev", "sendmsg"] {
        let bytes = [8; 500];
        let answer = signals::interrupting(
            ENOUGH,
            || {},
            || match call {
                "write" => sys::write(fd, &bytes),
                "send" => sys::send(fd, &bytes, libc::MSG_NOSIGNAL),
                "writev" => sys::writev(fd, &[&bytes, &bytes]),
                _ => sys::sendmsg(fd, &[&bytes], 0),
            },
        );
        role.note(call, (answer, signals::counted() > 0));
    }
    role.meet();
}

/// A write of which a part is in the buffer returns that part, whatever SA_RESTART says.
fn taken_server<const RESTART: bool>(role: &Role) {
    let fd = role.open_warm();
    signals::count_all(libc::SIGUSR1, RESTART);
    let done = role.directory().join("written");
    let bytes = pattern(4, 0, 4 << 20);
    role.meet();
    let give_up = || std::fs::write(&done, "0").expect("write");
    let answer = signals::interrupting(100, give_up, || sys::write(fd, &bytes));
    role.note("a part", answer.is_ok_and(|count| count > 0 && count < bytes.len()));
    let sent = answer.unwrap_or(0).to_string();
    std::fs::write(role.directory().join("part"), sent)
        .and_then(|()| std::fs::rename(role.directory().join("part"), &done))
        .expect("write");
    role.note("close", sys::close(fd));
}

/// Reads when the write has returned, or when it is clear that it will not.
fn taken_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let done = role.directory().join("written");
    while !done.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (mut all, mut into) = (Vec::new(), vec![0; 100_000]);
    while let Ok(count @ 1..) = sys::read(fd, &mut into) {
        all.extend_from_slice(&into[..count]);
    }
    let sent: usize = std::fs::read_to_string(done).expect("written").parse().expect("a number");
    role.note("exactly what was taken", all.len() == sent && all == pattern(4, 0, sent));
}

/// A receive with a time limit is not restarted.
fn limit_server(role: &Role) {
    let fd = role.open_warm();
    signals::count_all(libc::SIGUSR1, true);
    let long = libc::timeval { tv_sec: 10, tv_usec: 0 };
    role.note("set", (sys::set_option(fd, libc::SO_RCVTIMEO, &long), sys::set_option(fd, libc::SO_SNDTIMEO, &long)));
    role.note("recv", signals::interrupting(ENOUGH, || {}, || sys::recv(fd, &mut [0; 4], 0)));
    fill(fd);
    role.note("send", signals::interrupting(ENOUGH, || {}, || sys::send(fd, &[8; 500], libc::MSG_NOSIGNAL)));
    role.meet();
}

fn waits_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
    let none = mask(false);
    for restart in [false, true] {
        signals::count_all(libc::SIGUSR1, restart);
        let interrupted = |what: &str, wait: &dyn Fn() -> sys::Answer| {
            role.note(what, signals::interrupting(ENOUGH, || {}, wait));
        };
        interrupted("poll", &|| sys::poll(fd, libc::POLLIN, SOON).map(|_| 0));
        interrupted("ppoll", &|| ppoll(fd, libc::POLLIN, Some(SOON), Some(&none)).0);
        interrupted("ppoll without a limit", &|| ppoll(fd, libc::POLLIN, None, None).0);
        interrupted("select", &|| sys::select_read(fd, Duration::from_millis(999)).map(usize::from));
        interrupted("pselect", &|| select_all([&[fd], &[], &[]], Some(SOON), Some(&none)).0.ready);
        for (what, by) in
            [("epoll_wait", By::Wait), ("epoll_pwait", By::Pwait(Some(&none))), ("epoll_pwait2", By::Pwait2(Some(&none)))]
        {
            interrupted(what, &|| events(by, epoll, 4, SOON).map(|all| all.len()));
        }
    }
    role.meet();
}

/// With nothing ready the pending signal ends the wait at once; with something ready the wait succeeds and the signal stays.
fn pending_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
    signals::count_all(libc::SIGUSR2, true);
    signals::block(libc::SIGUSR2, true);
    let none = mask(false);
    for data in [false, true] {
        let told = |what: &str, answer: sys::Answer| role.note(what, (data, answer, signals::counted()));
        signals::raise(libc::SIGUSR2);
        told("ppoll", ppoll(fd, libc::POLLIN, Some(SOON), Some(&none)).0);
        signals::raise(libc::SIGUSR2);
        role.note("pselect", (select_all([&[fd], &[], &[]], Some(SOON), Some(&none)).0, signals::counted()));
        signals::raise(libc::SIGUSR2);
        told("epoll_pwait", events(By::Pwait(Some(&none)), epoll, 4, SOON).map(|all| all.len()));
        signals::raise(libc::SIGUSR2);
        told("epoll_pwait2", events(By::Pwait2(Some(&none)), epoll, 4, SOON).map(|all| all.len()));
        signals::raise(libc::SIGUSR2);
        told("ppoll without time", ppoll(fd, libc::POLLIN, Some(Duration::ZERO), Some(&none)).0);
        role.meet();
        role.meet();
    }
    signals::block(libc::SIGUSR2, false);
    role.note("the signal that was left", signals::counted());
    role.meet();
}

fn pending_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"data");
    role.meet();
    role.meet();
    role.meet();
    stays_closed(role, fd);
}

fn stays_closed(role: &Role, fd: i32) {
    role.meet();
    assert_eq!(sys::close(fd), Ok(0));
}

/// Signals that the mask keeps away do not end the wait; they are handled right after it.
fn blocking_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
    signals::count_all(libc::SIGUSR1, false);
    let all = mask(true);
    let short = Duration::from_millis(4);
    role.note("ppoll", signals::interrupting(ENOUGH, || {}, || ppoll(fd, libc::POLLIN, Some(short), Some(&all)).0));
    let answer = signals::interrupting(ENOUGH, || {}, || events(By::Pwait(Some(&all)), epoll, 4, short));
    role.note("epoll_pwait", answer);
    role.note("handled", signals::counted() > 0);
    for wait in ["ppoll", "epoll_pwait", "pselect"] {
        role.meet();
        let answer = signals::interrupting(
            ENOUGH,
            || {},
            || match wait {
                "ppoll" => ppoll(fd, libc::POLLIN, Some(SOON), Some(&all)).0,
                "epoll_pwait" => events(By::Pwait(Some(&all)), epoll, 4, SOON).map(|all| all.len()),
                _ => select_all([&[fd], &[], &[]], Some(SOON), Some(&all)).0.ready,
            },
        );
        role.note(wait, (answer, sys::read(fd, &mut [0; 9])));
    }
    role.meet();
}

fn blocking_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..3 {
        role.meet();
        std::thread::sleep(Duration::from_millis(5));
        write_all(fd, b"data");
    }
    stays_closed(role, fd);
}

const OWN: usize = 400_000;

/// The main program writes bytes below 128, the handler bytes of 255 between its writes.
fn handler_writer(role: &Role) {
    let fd = role.open_warm();
    signals::use_in_handler(fd, true, Duration::from_micros(500));
    let mut sent = 0;
    while sent < OWN {
        let bytes: Vec<u8> = (sent..OWN.min(sent + 100)).map(|position| (position % 125) as u8).collect();
        match sys::write(fd, &bytes) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error, "EINTR"),
        }
    }
    let moved = signals::moved_in_handler();
    role.note("the handler wrote too", moved > 0);
    std::fs::write(role.directory().join("moved"), moved.to_string()).expect("write");
    role.note("close", sys::close(fd));
    role.meet();
}

/// Connections that end so, after so many microseconds each and some more.
const CLOSED: usize = 40;
const AFTER_US: usize = 300;

/// What a call gets once a handler has closed its descriptor, wherever it found it.
fn until_it_fails(role: &Role, fd: i32, round: usize, call: impl Fn() -> sys::Answer) {
    signals::close_in_handler(fd, Duration::from_micros((AFTER_US + 37 * round) as u64));
    let failed = loop {
        if let Err(error) = call() {
            break error;
        }
    };
    role.note("failed", failed);
    role.meet();
}

fn closing_writer(role: &Role) {
    let bytes = vec![7; 60_000];
    for round in 0..CLOSED {
        let fd = role.open_warm();
        until_it_fails(role, fd, round, || sys::write(fd, &bytes));
    }
}

fn closed_reader(role: &Role) {
    let mut into = vec![0; 100_000];
    for _ in 0..CLOSED {
        let fd = role.open_warm();
        let mut right = true;
        while let Ok(count @ 1..) = sys::read(fd, &mut into) {
            right &= into[..count].iter().all(|byte| *byte == 7);
        }
        role.note("right", right);
        role.meet();
        assert_eq!(sys::close(fd), Ok(0));
    }
}

/// The kernel makes the call again, and there is no such descriptor.
fn closing_waiter(role: &Role) {
    let fd = role.open_warm();
    signals::close_in_handler(fd, Duration::from_millis(10));
    role.note("read", sys::read(fd, &mut [0; 9]));
    role.meet();
}

fn closing_reader(role: &Role) {
    for round in 0..CLOSED {
        let fd = role.open_warm();
        let call = || sys::recv(fd, &mut [0; 60_000], 0).and_then(|count| if count == 0 { Err("the end") } else { Ok(count) });
        until_it_fails(role, fd, round, call);
    }
}

fn closed_writer(role: &Role) {
    let bytes = vec![7; 60_000];
    for _ in 0..CLOSED {
        let fd = role.open_warm();
        let failed = loop {
            if let Err(error) = sys::send(fd, &bytes, libc::MSG_NOSIGNAL) {
                break error;
            }
        };
        // Bytes that the other end has not read make it ECONNRESET once.
        role.note("failed", ["EPIPE", "ECONNRESET"].contains(&failed));
        role.meet();
        assert_eq!(sys::close(fd), Ok(0));
    }
}

fn handler_reader(role: &Role) {
    let fd = role.open_warm();
    let (mut own, mut others, mut right, mut into) = (0, 0, true, vec![0; 1000]);
    while let Ok(count @ 1..) = sys::read(fd, &mut into) {
        for byte in &into[..count] {
            if *byte == 255 {
                others += 1;
            } else {
                right &= usize::from(*byte) == own % 125;
                own += 1;
            }
        }
    }
    role.meet();
    let moved = std::fs::read_to_string(role.directory().join("moved")).expect("written");
    role.note("own bytes", (own, right));
    role.note("the handler's bytes", others.to_string() == moved);
}

/// The main program reads blocking, the handler takes single bytes between: the sum of all is conserved.
fn handler_taker(role: &Role) {
    let fd = role.open_warm();
    signals::use_in_handler(fd, false, Duration::from_micros(500));
    let (mut sum, mut into) = (0, [0; 64]);
    loop {
        match sys::read(fd, &mut into) {
            Ok(0) => break,
            Ok(count) => sum += into[..count].iter().map(|byte| usize::from(*byte) + 1).sum::<usize>(),
            Err(error) => assert_eq!(error, "EINTR"),
        }
    }
    sum += signals::moved_in_handler();
    role.note("the sum", sum);
}

fn handler_giver(role: &Role) {
    let fd = role.open_warm();
    for piece in pattern(6, 0, 300_000).chunks(100) {
        write_all(fd, piece);
    }
    std::thread::sleep(BRIEFLY);
    write_all(fd, &pattern(6, 0, 1000));
    role.note("close", sys::close(fd));
}

/// The handler writes to a second connection while the first is used: a self-pipe made of a stream.
fn other_server(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    signals::use_in_handler(second, true, Duration::from_micros(500));
    for _ in 0..2000 {
        let mut into = [0; 64];
        assert_eq!(sys::recv(fd, &mut into, libc::MSG_WAITALL), Ok(64));
        write_all(fd, &into);
    }
    let moved = signals::moved_in_handler();
    role.note("the handler wrote", moved > 0);
    std::fs::write(role.directory().join("moved"), moved.to_string()).expect("write");
    assert_eq!(sys::close(second), Ok(0));
    role.meet();
}

fn other_client(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    for round in 0..2000 {
        write_all(fd, &pattern(round, 0, 64));
        let mut into = [0; 64];
        assert_eq!(sys::recv(fd, &mut into, libc::MSG_WAITALL), Ok(64));
        assert!(into.as_slice() == pattern(round, 0, 64));
    }
    role.meet();
    let moved: usize = std::fs::read_to_string(role.directory().join("moved")).expect("written").parse().expect("a number");
    let mut into = vec![0; moved + 10];
    role.note("all of them", sys::recv(second, &mut into, libc::MSG_WAITALL) == Ok(moved));
}
