//! Processes that come to be in every way, and use a connection at once or in turn.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::births::{BIRTHS, Birth, become_daemon, born, failures};
use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "every-kind-of-child-takes-a-turn", server: turns_server, client: turns_client, expect: Expect::Accelerated },
    Case { name: "every-kind-of-child-goes-on-alone", server: alone_server, client: alone_client, expect: Expect::Accelerated },
    Case { name: "every-kind-of-child-closes-its-copy", server: copies_server, client: copies_client, expect: Expect::Accelerated },
    Case { name: "a-grandchild-serves", server: grandchild_server, client: alone_client, expect: Expect::Accelerated },
    Case { name: "a-daemon-serves", server: daemon_server, client: alone_client, expect: Expect::Accelerated },
    Case { name: "forks-beside-busy-threads", server: threaded_server, client: threaded_client, expect: Expect::Accelerated },
    Case { name: "a-family-writes-at-once", server: writers_server, client: writers_client, expect: Expect::Accelerated },
    Case { name: "a-family-reads-at-once", server: readers_server, client: readers_client, expect: Expect::Accelerated },
    Case { name: "a-family-does-both-at-once", server: both_server, client: both_client, expect: Expect::Accelerated },
    Case { name: "one-of-a-family-shuts-down", server: shutting_server, client: shutting_client, expect: Expect::Accelerated },
];

/// Questions that each process answers.
const ROUNDS: usize = 40;
/// Bytes of a question, and of a record: far less than the kernel would cut.
const RECORD: usize = 64;
/// Records of each writer.
const RECORDS: usize = 3000;
/// Processes that use one end at once.
const FAMILY: usize = 4;

fn answer(fd: i32) {
    let mut into = [0; RECORD];
    for _ in 0..ROUNDS {
        read_exactly(fd, &mut into);
        write_all(fd, &into);
    }
}

/// Answers, and has the last word when the peer says no more.
fn answer_to_the_end(fd: i32) {
    answer(fd);
    assert_eq!(sys::read(fd, &mut [0]), Ok(0));
    write_all(fd, b"bye");
}

fn ask(fd: i32, seed: usize) {
    let mut into = [0; RECORD];
    for round in 0..ROUNDS {
        let question = pattern(seed, round, RECORD);
        write_all(fd, &question);
        read_exactly(fd, &mut into);
        assert!(into == *question, "round {round} of {seed}");
    }
}

fn turns_server(role: &Role) {
    let fd = role.open_warm();
    for birth in BIRTHS {
        role.note("child", (birth, born(birth, || answer(fd)).wait()));
        answer(fd);
    }
    role.note("end", sys::read(fd, &mut [0]));
}

fn turns_client(role: &Role) {
    let fd = role.open_warm();
    (0..2 * BIRTHS.len()).for_each(|turn| ask(fd, turn));
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut [0]));
}

/// The parent closes its copy at once, and the child serves until the peer leaves.
fn alone_server(role: &Role) {
    for birth in BIRTHS {
        let fd = role.open_warm();
        let child = born(birth, || {
            answer_to_the_end(fd);
        });
        // The child that nobody sees has to be a holder before its parent is none any more.
        role.meet();
        role.note("close", sys::close(fd));
        role.meet();
        role.note("child", (birth, child.wait()));
    }
}

fn alone_client(role: &Role) {
    for _ in BIRTHS {
        let fd = role.open_warm();
        ask(fd, 1);
        role.meet();
        role.meet();
        role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
        let mut into = [0; 3];
        read_exactly(fd, &mut into);
        role.note("last word", into);
        role.note("end", sys::read(fd, &mut into));
        role.note("close", sys::close(fd));
    }
}

/// The child closes, and the parent serves: no end is seen by anybody.
fn copies_server(role: &Role) {
    let fd = role.open_warm();
    for birth in BIRTHS {
        let child = born(birth, || assert_eq!(sys::close(fd), Ok(0)));
        role.note("child", (birth, child.wait()));
        let child = born(birth, || {});
        role.note("child that does nothing", (birth, child.wait()));
        answer(fd);
    }
    role.note("end", sys::read(fd, &mut [0]));
}

fn copies_client(role: &Role) {
    let fd = role.open_warm();
    (0..BIRTHS.len()).for_each(|turn| ask(fd, turn));
    role.note("nothing more", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    role.note("close", sys::close(fd));
}

/// As a daemon of the old school: the child forks once more and ends.
fn grandchild_server(role: &Role) {
    for birth in BIRTHS {
        let fd = role.open_warm();
        let child = born(Birth::Fork, || {
            let _orphan = born(birth, || {
                answer_to_the_end(fd);
            });
        });
        role.note("child", (birth, child.wait()));
        role.meet();
        role.note("close", sys::close(fd));
        role.meet();
    }
}

fn daemon_server(role: &Role) {
    for birth in BIRTHS {
        let fd = role.open_warm();
        let child = born(Birth::Fork, || {
            become_daemon();
            answer_to_the_end(fd);
        });
        role.note("child", (birth, child.wait()));
        role.meet();
        role.note("close", sys::close(fd));
        role.meet();
    }
}

/// Two threads answer on connections of their own while the first forks children that answer on a third.
fn threaded_server(role: &Role) {
    let busy = [role.open_warm(), role.open_warm()];
    let fd = role.open_warm();
    std::thread::scope(|scope| {
        for stream in busy {
            scope.spawn(move || {
                let mut into = [0; RECORD];
                while sys::read(stream, &mut into[..1]) == Ok(1) {
                    read_exactly(stream, &mut into[1..]);
                    write_all(stream, &into);
                }
            });
        }
        for turn in 0..20 {
            let birth = if turn % 2 == 0 { Birth::Fork } else { Birth::BareFork };
            let child = born(birth, || answer(fd));
            assert_eq!(child.wait(), "exit 0", "turn {turn}");
        }
    });
    role.note("end", sys::read(fd, &mut [0]));
}

fn threaded_client(role: &Role) {
    let busy = [role.open_warm(), role.open_warm()];
    let fd = role.open_warm();
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for stream in busy {
            let (over, asked) = (&over, &asked);
            scope.spawn(move || {
                while !over.load(Ordering::Acquire) {
                    ask(stream, 9);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(sys::shutdown(stream, libc::SHUT_WR), Ok(0));
                assert_eq!(sys::read(stream, &mut [0]), Ok(0), "the server's threads are gone with it");
            });
        }
        (0..20).for_each(|turn| ask(fd, turn));
        over.store(true, Ordering::Release);
        role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    });
    role.note("asked", asked.load(Ordering::Relaxed) > 0);
}

/// One record: who wrote it, the number, and bytes that follow from both.
fn record(writer: usize, number: usize) -> Vec<u8> {
    let mut bytes = [(writer as u32).to_le_bytes(), (number as u32).to_le_bytes()].concat();
    bytes.extend(pattern(writer, number, RECORD - bytes.len()));
    bytes
}

fn write_records(fd: i32, writer: usize) {
    for number in 0..RECORDS {
        assert_eq!(sys::write(fd, &record(writer, number)), Ok(RECORD), "a small write is taken whole");
    }
}

/// Reads records until the end; panics at one that is not whole or comes before its turn. How many came from each writer.
fn read_records(fd: i32) -> Vec<usize> {
    let mut seen = vec![0; FAMILY];
    let mut into = [0; RECORD];
    loop {
        match sys::read(fd, &mut into[..1]) {
            Ok(0) => return seen,
            Ok(_) => read_exactly(fd, &mut into[1..]),
            Err(error) => panic!("read: {error}"),
        }
        let writer = into[0] as usize;
        let number = seen.get_mut(writer).expect("one of the family");
        assert!(into == *record(writer, *number), "record {number} of {writer}");
        *number += 1;
    }
}

fn writers_server(role: &Role) {
    let fd = role.open_warm();
    let children: Vec<_> = (1..FAMILY).map(|writer| born(Birth::Fork, || write_records(fd, writer))).collect();
    write_records(fd, 0);
    role.note("failures", failures(children));
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut [0]));
}

fn writers_client(role: &Role) {
    let fd = role.open_warm();
    role.note("records", read_records(fd));
    role.note("close", sys::close(fd));
}

/// What one reader of several saw: how many records, and a sum of their numbers.
fn share(fd: i32) -> (u64, u64) {
    let (mut count, mut sum) = (0, 0);
    let mut into = [0; RECORD];
    while let Ok(length @ 1..) = sys::read(fd, &mut into) {
        assert_eq!(length, RECORD, "records are read whole");
        let number = u32::from_le_bytes([into[4], into[5], into[6], into[7]]) as usize;
        assert!(into == *record(0, number), "record {number}");
        count += 1;
        sum += number as u64;
    }
    (count, sum)
}

/// Runs a reader in each process of a family, and adds up what they saw.
fn shares(role: &Role, fd: i32) {
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let tell = |seen: (u64, u64)| (&writer).write_all(&[seen.0.to_le_bytes(), seen.1.to_le_bytes()].concat()).expect("tell");
    let children: Vec<_> = (1..FAMILY).map(|_| born(Birth::Fork, || tell(share(fd)))).collect();
    tell(share(fd));
    role.note("failures", failures(children));
    let (mut all, mut word) = ((0, 0), [0; 8]);
    for _ in 0..FAMILY {
        reader.read_exact(&mut word).expect("told");
        all.0 += u64::from_le_bytes(word);
        reader.read_exact(&mut word).expect("told");
        all.1 += u64::from_le_bytes(word);
    }
    role.note("records, and the sum of their numbers", all);
    assert!(reader.as_raw_fd() >= 0);
}

fn readers_server(role: &Role) {
    let fd = role.open_warm();
    shares(role, fd);
}

fn readers_client(role: &Role) {
    let fd = role.open_warm();
    write_records(fd, 0);
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut [0]));
}

/// Both ends are families, and in both directions all write and all read.
fn both_server(role: &Role) {
    let fd = role.open_warm();
    let writer = born(Birth::Fork, || write_records(fd, 0));
    shares(role, fd);
    role.note("writer", writer.wait());
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
}

fn both_client(role: &Role) {
    let fd = role.open_warm();
    let writer = born(Birth::Fork, || {
        write_records(fd, 0);
        assert_eq!(sys::shutdown(fd, libc::SHUT_WR), Ok(0));
    });
    shares(role, fd);
    role.note("writer", writer.wait());
}

/// A child's shutdown is the end for all of its family.
fn shutting_server(role: &Role) {
    let fd = role.open_warm();
    let child = born(Birth::Fork, || {
        write_all(fd, b"last");
        assert_eq!(sys::shutdown(fd, libc::SHUT_WR), Ok(0));
    });
    role.note("child", child.wait());
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    let mut into = [0; 5];
    read_exactly(fd, &mut into);
    role.note("still read", into);
}

fn shutting_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 4];
    read_exactly(fd, &mut into);
    role.note("read", into);
    role.note("end", sys::read(fd, &mut into));
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLOUT, SOON));
    write_all(fd, b"after");
    role.note("close", sys::close(fd));
}
