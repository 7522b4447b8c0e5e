//! epoll sets that hold more than streams, or are shared by threads.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, write_all};
use crate::sys;
use crate::waits::epoll::{ADD, ET, IN, RDHUP};
use crate::waits::{By, control, eventfd, events, timerfd};

pub(super) const CASES: &[Case] = &[
    Case { name: "epoll-with-an-eventfd-and-a-timerfd", server: fair_server, client: fair_client, expect: Expect::Accelerated },
    Case { name: "epoll-set-of-two-threads", server: threads_server, client: threads_client, expect: Expect::Either },
    Case { name: "epoll-edges-of-many-writes", server: stream_server, client: stream_client, expect: Expect::Either },
];

fn fair_server(role: &Role) {
    let fd = role.open_warm();
    let epoll = sys::epoll_create();
    let (event, timer) = (eventfd(1), timerfd(Duration::from_millis(1)));
    for (index, one) in [fd, event, timer].into_iter().enumerate() {
        assert_eq!(control(epoll, ADD, one, IN, index as u64), Ok(0));
    }
    role.meet();
    let (mut seen, mut reads) = ([false; 3], 0);
    while reads < 3000 || seen != [true; 3] {
        for (index, _) in events(By::Wait, epoll, 1, SOON).expect("events") {
            seen[index as usize] = true;
            if index == 0 {
                reads += sys::read(fd, &mut [0; 8]).expect("data");
            } else if index == 2 {
                assert_eq!(sys::read(timer, &mut [0; 8]), Ok(8));
            }
        }
    }
    role.note("all of them", seen);
    role.meet();
}

/// More than the server reads before it has seen everything.
fn fair_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, &vec![5; 100_000]);
    role.meet();
}

const EACH: usize = 6400;

/// Reads until EAGAIN what is ready, in one of two threads, until all bytes of all streams are there.
fn share(epoll: i32, bytes: &AtomicUsize) {
    while bytes.load(SeqCst) < 8 * EACH {
        for (fd, _) in events(By::Wait, epoll, 2, Duration::from_millis(5)).expect("events") {
            while let Ok(count @ 1..) = sys::read(fd as i32, &mut [0; 50]) {
                bytes.fetch_add(count, SeqCst);
            }
        }
    }
}

fn threads_server(role: &Role) {
    let all: Vec<i32> = (0..8).map(|_| role.open_warm()).collect();
    let epoll = sys::epoll_create();
    for fd in &all {
        sys::set_nonblocking(*fd, true);
        assert_eq!(control(epoll, ADD, *fd, IN | ET, u64::from(fd.cast_unsigned())), Ok(0));
    }
    let bytes = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| share(epoll, &bytes));
        share(epoll, &bytes);
    });
    role.note("bytes", bytes.into_inner());
    role.meet();
}

fn threads_client(role: &Role) {
    let all: Vec<i32> = (0..8).map(|_| role.open_warm()).collect();
    for _ in 0..100 {
        all.iter().for_each(|fd| write_all(*fd, &[1; 64]));
    }
    role.meet();
}

/// Whoever reads until EAGAIN after each edge misses nothing.
fn stream_server(role: &Role) {
    let fd = role.open();
    sys::set_nonblocking(fd, true);
    let epoll = sys::epoll_create();
    assert_eq!(control(epoll, ADD, fd, IN | ET | RDHUP, 1), Ok(0));
    let (mut total, mut ended) = (0, false);
    while !ended {
        assert_eq!(events(By::Wait, epoll, 16, SOON).map(|all| all.len()), Ok(1), "after {total}");
        loop {
            match sys::read(fd, &mut [0; 700]) {
                Ok(0) => break ended = true,
                Ok(count) => total += count,
                Err(error) => break assert_eq!(error, "EAGAIN"),
            }
        }
    }
    role.note("total", total);
}

fn stream_client(role: &Role) {
    let fd = role.open();
    for round in 0..3000 {
        write_all(fd, &vec![1; round % 900 + 1]);
    }
    role.note("close", sys::close(fd));
}
