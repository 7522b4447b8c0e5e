//! poll and select with all their arguments: many entries, ignored and closed ones, all three sets, times.

use std::time::{Duration, Instant};

use crate::harness::{Case, Expect};
use crate::role::{BRIEFLY, Role, SOON, write_all};
use crate::sys;
use crate::waits::{poll_all, ppoll, ppoll_with, select_all, select_with};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "poll-of-ignored-and-closed-entries",
        server: entries_server,
        client: entries_client,
        expect: Expect::Accelerated,
    },
    Case { name: "poll-of-one-descriptor-often", server: often_server, client: often_client, expect: Expect::Accelerated },
    Case { name: "poll-of-a-hundred-entries", server: hundred_server, client: hundred_client, expect: Expect::Accelerated },
    Case { name: "poll-for-each-event-alone", server: alone_server, client: alone_client, expect: Expect::Accelerated },
    Case { name: "ppoll-and-its-times", server: times_server, client: times_client, expect: Expect::Accelerated },
    Case { name: "select-in-all-three-sets", server: sets_server, client: sets_client, expect: Expect::Accelerated },
    Case { name: "select-tells-the-time-left", server: left_server, client: left_client, expect: Expect::Accelerated },
    Case { name: "pselect-and-its-times", server: pselect_server, client: pselect_client, expect: Expect::Accelerated },
    Case { name: "poll-wakes-for-a-pipe-or-the-stream", server: pipe_server, client: pipe_client, expect: Expect::Accelerated },
    Case { name: "times-that-are-none", server: none_server, client: none_client, expect: Expect::Accelerated },
];

const IN: i16 = libc::POLLIN;
const OUT: i16 = libc::POLLOUT;

fn entries_server(role: &Role) {
    let fd = role.open_warm();
    let all = [(-1, IN), (fd, IN), (999, IN), (-fd, IN | OUT), (fd, OUT), (fd, 0)];
    role.note("idle", poll_all(&all, Duration::ZERO));
    role.meet();
    role.meet();
    role.note("with data", poll_all(&all, SOON));
    role.note("nothing at all", poll_all(&[], Duration::from_millis(1)));
    role.note("only ignored", poll_all(&[(-1, IN), (-1, OUT)], Duration::from_millis(1)));
    role.note("read", sys::read(fd, &mut [0; 9]));
    role.note("a closed one ends the wait", poll_all(&[(fd, IN), (999, IN)], SOON));
    role.meet();
    role.meet();
    role.note("the end", poll_all(&all, SOON));
}

fn entries_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"data");
    role.meet();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

fn often_server(role: &Role) {
    let fd = role.open_warm();
    let copy = sys::dup(fd);
    let all = [(fd, IN), (copy, IN), (fd, IN | OUT), (fd, IN), (copy, OUT)];
    role.note("idle", poll_all(&all[..2], BRIEFLY));
    role.meet();
    role.note("woken", poll_all(&[all[0], all[1], all[3]], SOON));
    role.note("all of them", poll_all(&all, SOON));
    role.note("read by the copy", sys::read(copy, &mut [0; 9]));
    role.note("idle again", poll_all(&all, Duration::ZERO));
    role.settle(fd);
}

fn often_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(3));
    write_all(fd, b"data");
    role.settle(fd);
}

fn hundred_server(role: &Role) {
    let all: Vec<i32> = (0..100).map(|_| role.open_warm()).collect();
    let entries: Vec<_> = all.iter().map(|fd| (*fd, IN)).collect();
    role.note("idle", poll_all(&entries, Duration::ZERO).0);
    role.meet();
    for _ in 0..3 {
        role.meet();
        let (ready, events) = poll_all(&entries, SOON);
        let told: Vec<usize> = events.iter().enumerate().filter(|(_, events)| **events == IN).map(|(index, _)| index).collect();
        role.note("ready", (ready, &told));
        told.iter().for_each(|index| assert_eq!(sys::read(all[*index], &mut [0; 9]), Ok(3)));
        role.meet();
    }
}

fn hundred_client(role: &Role) {
    let all: Vec<i32> = (0..100).map(|_| role.open_warm()).collect();
    role.meet();
    for chosen in [vec![99], vec![0, 1, 50], (0..100).step_by(3).collect()] {
        chosen.iter().for_each(|index: &usize| write_all(all[*index], b"yes"));
        role.meet();
        role.meet();
    }
}

const KINDS: [(&str, i16); 8] = [
    ("IN", IN),
    ("OUT", OUT),
    ("RDHUP", libc::POLLRDHUP),
    ("PRI", libc::POLLPRI),
    ("RDNORM", libc::POLLRDNORM),
    ("RDBAND", libc::POLLRDBAND),
    ("WRNORM", libc::POLLWRNORM),
    ("WRBAND", libc::POLLWRBAND),
];

fn alone_server(role: &Role) {
    let fd = role.open_warm();
    let look = |what: &str| {
        for (name, events) in KINDS {
            role.note(what, (name, sys::poll(fd, events, Duration::ZERO)));
        }
    };
    look("idle");
    role.meet();
    role.meet();
    look("with data");
    role.meet();
    role.meet();
    look("half closed with data");
    role.note("read", sys::read(fd, &mut [0; 9]));
    look("half closed");
    role.meet();
    role.meet();
    look("closed");
}

fn alone_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"data");
    role.meet();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
}

fn times_server(role: &Role) {
    let fd = role.open_warm();
    let start = Instant::now();
    role.note("no time", ppoll(fd, IN, Some(Duration::ZERO), None));
    role.note("a short time", ppoll(fd, IN, Some(Duration::from_micros(2500)), None));
    role.note("a nanosecond", ppoll(fd, IN, Some(Duration::from_nanos(1)), None));
    role.note("waited", start.elapsed() >= Duration::from_micros(2500));
    role.note("for output", ppoll(fd, OUT, None, None));
    role.meet();
    role.note("without limit", ppoll(fd, IN, None, None));
    role.note("with data", ppoll(fd, IN | OUT, Some(Duration::ZERO), None));
    role.meet();
}

fn times_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(3));
    write_all(fd, b"data");
    role.meet();
}

fn sets_server(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    let all = [fd, second];
    role.note("idle", select_all([&all, &all, &all], Some(SOON), None).0);
    role.note("idle, no output", select_all([&all, &[], &all], Some(Duration::from_millis(1)), None).0);
    role.meet();
    role.meet();
    role.note("data on the second", select_all([&all, &all, &all], Some(SOON), None).0);
    role.note("only for errors", select_all([&[], &[], &all], Some(Duration::ZERO), None).0);
    role.note("read", sys::read(second, &mut [0; 9]));
    role.meet();
    role.meet();
    role.note("the first closed", select_all([&all, &[], &all], None, None).0);
    role.note("nothing but time", select_all([&[], &[], &[]], Some(Duration::from_millis(1)), None).0);
}

fn sets_client(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    role.meet();
    write_all(second, b"data");
    role.meet();
    role.meet();
    role.note("close", sys::close(fd));
    role.meet();
    role.note("end", sys::read(second, &mut [0]));
}

fn left_server(role: &Role) {
    let fd = role.open_warm();
    let (selected, left) = select_all([&[fd], &[], &[]], Some(Duration::from_millis(3)), None);
    role.note("nothing", (selected, left));
    role.meet();
    let (selected, left) = select_all([&[fd], &[], &[]], Some(SOON), None);
    role.note("data", (selected, left < SOON && left > Duration::from_secs(5)));
    let (selected, left) = select_all([&[fd], &[], &[]], Some(SOON), None);
    role.note("data at once", (selected, left <= SOON && left > Duration::from_secs(9)));
    role.meet();
}

fn left_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(3));
    write_all(fd, b"data");
    role.meet();
}

fn pselect_server(role: &Role) {
    let fd = role.open_warm();
    let none = crate::waits::mask(false);
    let start = Instant::now();
    role.note("no time", select_all([&[fd], &[], &[fd]], Some(Duration::ZERO), Some(&none)).0);
    role.note("a short time", select_all([&[fd], &[], &[fd]], Some(Duration::from_micros(2500)), Some(&none)).0);
    role.note("waited", start.elapsed() >= Duration::from_micros(2500));
    role.meet();
    role.note("without limit", select_all([&[fd], &[], &[fd]], None, Some(&none)).0);
    role.note("for output", select_all([&[], &[fd], &[fd]], Some(SOON), Some(&none)).0);
    role.meet();
}

fn pselect_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    std::thread::sleep(Duration::from_millis(3));
    write_all(fd, b"data");
    role.meet();
}

fn pipe_server(role: &Role) {
    let fd = role.open_warm();
    let (reader, writer) = std::io::pipe().expect("pipe");
    let pipe = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let mut into = [0; 1];
    for round in 0..10 {
        role.meet();
        std::thread::scope(|scope| {
            if round % 2 == 0 {
                scope.spawn(|| std::io::Write::write_all(&mut &writer, b"p"));
            }
            let told = if round % 4 < 2 {
                poll_all(&[(pipe, IN), (fd, IN)], SOON).1
            } else {
                let (selected, _) = select_all([&[pipe, fd], &[], &[]], Some(SOON), None);
                role.note("select", selected);
                vec![]
            };
            role.note("poll", told);
        });
        assert_eq!(sys::read(if round % 2 == 0 { pipe } else { fd }, &mut into), Ok(1));
        role.meet();
    }
}

fn pipe_client(role: &Role) {
    let fd = role.open_warm();
    for round in 0..10 {
        role.meet();
        if round % 2 == 1 {
            write_all(fd, b"s");
        }
        role.meet();
    }
}

fn none_server(role: &Role) {
    let fd = role.open_warm();
    role.note("ppoll, negative", ppoll_with(fd, -1, 0));
    role.note("ppoll, too many nanoseconds", ppoll_with(fd, 0, 1_000_000_000));
    role.note("ppoll, negative nanoseconds", ppoll_with(fd, 0, -1));
    role.note("select, negative", select_with(fd, -1, 0));
    role.note("select, negative microseconds", select_with(fd, 0, -1));
    role.note("select, many microseconds", select_with(fd, 0, 2_000));
    role.note("a closed descriptor in select", select_with(999, 1, 0));
    role.note("SO_RCVTIMEO", sys::set_option(fd, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 0, tv_usec: 1_000_000 }));
    role.note("SO_SNDTIMEO", sys::set_option(fd, libc::SO_SNDTIMEO, &libc::timeval { tv_sec: 0, tv_usec: -1 }));
    role.note("a negative SO_RCVTIMEO", sys::set_option(fd, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: -1, tv_usec: 0 }));
    role.note("does not wait", sys::recv(fd, &mut [0], 0));
    role.note("SO_RCVTIMEO of 4 bytes", sys::set_option(fd, libc::SO_RCVTIMEO, &1_i32));
    role.note("SO_RCVTIMEO", sys::set_option(fd, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 0, tv_usec: 0 }));
    role.settle(fd);
}

fn none_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}
