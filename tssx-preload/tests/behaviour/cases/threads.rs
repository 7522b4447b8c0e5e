//! Several threads on one stream: who is woken, who is not, and what stays whole.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicUsize};
use std::time::{Duration, Instant};

use nix::sys::resource::Resource;

use super::limits::{all_again, limit};
use crate::harness::{Case, Expect};
use crate::role::{BRIEFLY, Role, SOON, write_all};
use crate::sys;
use crate::waits::{By, events};

pub(super) const CASES: &[Case] = &[
    Case { name: "two-blocked-readers-two-writes", server: readers_server, client: two_writes, expect: Expect::Accelerated },
    Case { name: "two-blocked-readers-one-write", server: readers_server, client: one_write, expect: Expect::Accelerated },
    Case { name: "four-blocked-readers-and-the-end", server: end_server, client: end_client, expect: Expect::Accelerated },
    Case { name: "shutdown-wakes-a-blocked-writer", server: writer_server, client: quiet_client, expect: Expect::Accelerated },
    Case { name: "shutdown-wakes-every-wait", server: waits_server, client: quiet_client, expect: Expect::Accelerated },
    Case { name: "close-does-not-wake-a-blocked-reader", server: close_server, client: close_client, expect: Expect::Accelerated },
    Case {
        name: "close-does-not-wake-a-blocked-reader-at-a-low-limit",
        server: low_server,
        client: close_client,
        expect: Expect::Accelerated,
    },
    Case {
        name: "close-does-not-wake-a-blocked-reader-without-a-free-number",
        server: full_server,
        client: close_client,
        expect: Expect::Accelerated,
    },
    Case { name: "dup2-does-not-wake-a-blocked-reader", server: dup_server, client: close_client, expect: Expect::Accelerated },
    Case {
        name: "records-of-many-threads-stay-whole",
        server: records_server,
        client: records_client,
        expect: Expect::Accelerated,
    },
    Case {
        name: "a-blocked-reader-beside-one-that-does-not-wait",
        server: looker_server,
        client: looker_client,
        expect: Expect::Accelerated,
    },
    Case { name: "a-poller-beside-a-reader", server: beside_server, client: beside_client, expect: Expect::Accelerated },
    Case { name: "both-ends-full-and-threaded", server: full_both, client: full_both, expect: Expect::Accelerated },
];

fn readers_server(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..10 {
        std::thread::scope(|scope| {
            let readers = [(); 2].map(|()| scope.spawn(|| sys::read(fd, &mut [0; 1])));
            std::thread::sleep(Duration::from_millis(2));
            role.meet();
            role.note("each has one", readers.map(|reader| reader.join().ok()));
        });
        role.meet();
    }
}

fn two_writes(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..10 {
        role.meet();
        write_all(fd, b"1");
        write_all(fd, b"2");
        role.meet();
    }
}

fn one_write(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..10 {
        role.meet();
        write_all(fd, b"12");
        role.meet();
    }
}

fn end_server(role: &Role) {
    let fd = role.open_warm();
    std::thread::scope(|scope| {
        let readers = [(); 4].map(|()| scope.spawn(|| sys::read(fd, &mut [0; 9])));
        std::thread::sleep(Duration::from_millis(5));
        role.meet();
        role.note("all see the end", readers.map(|reader| reader.join().ok()));
    });
}

fn end_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("close", sys::close(fd));
}

fn quiet_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    assert_eq!(sys::close(fd), Ok(0));
}

fn writer_server(role: &Role) {
    let fd = role.open_warm();
    for size in [8192, 1] {
        while sys::send(fd, &vec![7; size], libc::MSG_DONTWAIT).is_ok() {}
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| sys::send(fd, &[8; 500], libc::MSG_NOSIGNAL));
        std::thread::sleep(Duration::from_millis(10));
        role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
        role.note("the blocked send", writer.join().ok());
    });
    role.meet();
}

fn waits_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | libc::EPOLLRDHUP), Ok(0));
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| sys::poll(fd, libc::POLLIN | libc::POLLRDHUP, SOON));
        let selecter = scope.spawn(|| sys::select_read(fd, Duration::from_millis(999)));
        let waiter = scope.spawn(|| events(By::Wait, epoll, 4, SOON).map(|all| all.first().map(|event| event.1)));
        let reader = scope.spawn(|| sys::recv(fd, &mut [0; 9], libc::MSG_WAITALL));
        std::thread::sleep(Duration::from_millis(10));
        role.note("shutdown", sys::shutdown(fd, libc::SHUT_RDWR));
        role.note("poll", poller.join().ok());
        role.note("select", selecter.join().ok());
        role.note("epoll", waiter.join().ok());
        role.note("read", reader.join().ok());
    });
    role.meet();
}

/// The blocked call keeps the connection: it gets what comes later, and only then the peer sees the end.
fn close_server(role: &Role) {
    close_meanwhile(role, || ());
}

/// Few numbers, of which some are free.
fn low_server(role: &Role) {
    close_meanwhile(role, || limit(Resource::RLIMIT_NOFILE, 64));
    all_again(Resource::RLIMIT_NOFILE);
}

fn full_server(role: &Role) {
    let others = close_meanwhile(role, || {
        limit(Resource::RLIMIT_NOFILE, 64);
        std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect::<Vec<_>>()
    });
    drop(others);
    all_again(Resource::RLIMIT_NOFILE);
}

/// Closes what another thread is blocked on, after `before`.
fn close_meanwhile<T>(role: &Role, before: impl FnOnce() -> T) -> T {
    let fd = role.open_warm();
    let thread = AtomicI32::new(0);
    let kept = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            thread.store(nix::unistd::gettid().as_raw(), SeqCst);
            sys::read(fd, &mut [0; 9])
        });
        await_asleep(&thread);
        let kept = before();
        role.note("close", sys::close(fd));
        role.note("not woken", (reader.is_finished(), sys::read(fd, &mut [0; 9])));
        role.meet();
        role.note("what came", reader.join().ok());
        kept
    });
    role.meet();
    kept
}

/// Waits until the thread that leaves its id there is blocked in a system call.
fn await_asleep(thread: &AtomicI32) {
    let start = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", thread.load(SeqCst))).unwrap_or_default();
        if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" S")) {
            return;
        }
        assert!(start.elapsed() < SOON, "the thread does not go to sleep: {stat}");
        std::thread::yield_now();
    }
}

fn close_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("send", sys::send(fd, b"data", libc::MSG_NOSIGNAL));
    role.meet();
    role.note("end", sys::read(fd, &mut [0; 9]));
}

fn dup_server(role: &Role) {
    let fd = role.open_warm();
    let null = std::fs::File::open("/dev/null").expect("open");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| sys::read(fd, &mut [0; 9]));
        std::thread::sleep(BRIEFLY);
        role.note("dup2", sys::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), fd).is_ok());
        role.note("not woken", (reader.is_finished(), sys::read(fd, &mut [0; 9])));
        role.meet();
        role.note("what came", reader.join().ok());
    });
    role.meet();
}

const RECORD: usize = 4096;
const WRITERS: usize = 8;
const EACH: usize = 60;

fn records_server(role: &Role) {
    let fd = role.open_warm();
    let (mut whole, mut seen, mut into) = (true, [0; WRITERS], vec![0; RECORD]);
    for _ in 0..WRITERS * EACH {
        assert_eq!(sys::recv(fd, &mut into, libc::MSG_WAITALL), Ok(RECORD));
        whole &= into.iter().all(|byte| *byte == into[0]);
        seen[usize::from(into[0])] += 1;
    }
    role.note("whole", (whole, seen));
    role.meet();
}

fn records_client(role: &Role) {
    let fd = role.open_warm();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                for round in 0..EACH {
                    let bytes = vec![writer as u8; RECORD];
                    let sent =
                        if round % 2 == 0 { sys::write(fd, &bytes) } else { sys::writev(fd, &[&bytes[..1000], &bytes[1000..]]) };
                    assert_eq!(sent, Ok(RECORD));
                }
            });
        }
    });
    role.meet();
}

/// One thread polls while another takes what comes: the poller may see it or not, but both get on.
fn beside_server(role: &Role) {
    let fd = role.open_warm();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                let _ = sys::poll(fd, libc::POLLIN, Duration::from_millis(3));
            }
        });
        let mut into = [0; 64];
        for _ in 0..500 {
            assert_eq!(sys::recv(fd, &mut into, libc::MSG_WAITALL), Ok(64));
            write_all(fd, &into);
        }
        done.store(true, SeqCst);
    });
    role.say("500 echoes");
}

fn beside_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 64];
    for round in 0..500_usize {
        write_all(fd, &[round as u8; 64]);
        assert_eq!(sys::recv(fd, &mut into, libc::MSG_WAITALL), Ok(64));
        assert_eq!(into, [round as u8; 64]);
    }
    role.say("500 echoes");
}

/// Both ends write more than fits before they read: two threads each keep it moving.
fn full_both(role: &Role) {
    const TOTAL: usize = 2_000_000;
    let fd = role.open_warm();
    std::thread::scope(|scope| {
        scope.spawn(|| write_all(fd, &vec![3; TOTAL]));
        std::thread::sleep(Duration::from_millis(5));
        let (mut total, mut into) = (0, vec![0; 10_000]);
        while total < TOTAL {
            total += sys::read(fd, &mut into).expect("data");
        }
        role.note("total", total);
    });
    role.meet();
}

/// Bytes of one round, and how many of them may be read without waiting: the last are the blocked reader's alone.
const ALL: usize = 60;
const LOOKED_FOR: usize = 20;

/// One thread takes bytes that another was woken for, before that one runs; then it stops, and the other must be woken for what follows.
fn looker_server(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..10 {
        let read = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while read.load(SeqCst) < ALL && sys::read(fd, &mut [0; 1]) == Ok(1) {
                    read.fetch_add(1, SeqCst);
                }
            });
            let mut own = 0;
            while own < LOOKED_FOR && read.load(SeqCst) < ALL / 2 {
                if sys::recv(fd, &mut [0; 1], libc::MSG_DONTWAIT) == Ok(1) {
                    read.fetch_add(1, SeqCst);
                    own += 1;
                }
            }
        });
        role.note("all are read", read.load(SeqCst));
        role.meet();
    }
}

fn looker_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..10 {
        for _ in 0..ALL {
            write_all(fd, b"x");
            std::thread::sleep(Duration::from_micros(30));
        }
        role.meet();
    }
}
