//! Writes that nobody read in between: the kernel gives all that is queued to one call that has room for it. Each case
//! repeats itself after different numbers of exchanges, so that the writes also lie across the moment at which the
//! connection moves into shared memory.

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "ten-writes-one-read", server: one_recv, client: ten_writes, expect: Expect::Accelerated },
    Case { name: "ten-writes-peeked-at", server: peeks, client: ten_writes, expect: Expect::Accelerated },
    Case { name: "ten-writes-counted-by-fionread", server: counts, client: ten_writes, expect: Expect::Accelerated },
    Case { name: "ten-writes-into-odd-parts", server: scatters, client: ten_writes, expect: Expect::Accelerated },
    Case { name: "ten-writes-read-by-waitall", server: waits_for_all, client: ten_writes, expect: Expect::Accelerated },
    Case { name: "ten-writes-in-odd-pieces", server: odd_pieces, client: ten_writes, expect: Expect::Accelerated },
    Case { name: "a-read-in-the-middle-of-a-burst", server: middle_server, client: middle_client, expect: Expect::Accelerated },
    Case { name: "a-look-in-the-middle-of-a-burst", server: look_server, client: middle_client, expect: Expect::Accelerated },
    Case { name: "many-parts-in-the-middle-of-a-burst", server: parts_server, client: middle_client, expect: Expect::Accelerated },
    Case { name: "a-burst-from-the-acceptor", server: ten_writes, client: one_recv, expect: Expect::Accelerated },
    Case { name: "bursts-in-both-directions", server: both_bursts, client: both_bursts, expect: Expect::Accelerated },
    Case { name: "a-burst-by-every-call", server: one_recv, client: every_call, expect: Expect::Accelerated },
    Case { name: "a-burst-of-mixed-sizes", server: mixed_server, client: mixed_client, expect: Expect::Accelerated },
    Case { name: "a-burst-and-the-end", server: last_server, client: last_client, expect: Expect::Accelerated },
    Case { name: "a-burst-and-half-close", server: half_server, client: half_client, expect: Expect::Accelerated },
    Case { name: "a-long-burst-of-single-bytes", server: bytes_server, client: bytes_client, expect: Expect::Accelerated },
];

/// Exchanges before a burst: from a connection that never spoke to one that was upgraded long ago.
const BEFORE: [usize; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24];
const PARTS: usize = 10;
const PART: usize = 7;
const ALL: usize = PARTS * PART;

/// `body` on a connection for each of [`BEFORE`]; the other end does the same.
fn each(role: &Role, body: impl Fn(i32)) {
    for before in BEFORE {
        role.note("exchanges before", before);
        let fd = role.open();
        role.exchange(fd, before);
        role.meet();
        body(fd);
        role.meet();
        assert_eq!(sys::close(fd), Ok(0));
    }
}

fn ten_writes(role: &Role) {
    each(role, |fd| {
        for part in 0..PARTS {
            assert_eq!(sys::write(fd, &pattern(1, part * PART, PART)), Ok(PART));
        }
        role.meet();
    });
}

fn right(bytes: &[u8], answer: sys::Answer) -> (sys::Answer, bool) {
    (answer, answer.is_ok_and(|count| bytes.get(..count) == Some(pattern(1, 0, count).as_slice())))
}

fn one_recv(role: &Role) {
    each(role, |fd| {
        role.meet();
        let mut into = [0; 1000];
        let answer = sys::recv(fd, &mut into, 0);
        role.note("recv of 1000", right(&into, answer));
        role.note("nothing more", sys::recv(fd, &mut into, libc::MSG_DONTWAIT));
    });
}

fn peeks(role: &Role) {
    each(role, |fd| {
        role.meet();
        for size in [1000, 20, 33, 1000] {
            let mut into = vec![0; size];
            let answer = sys::recv(fd, &mut into, libc::MSG_PEEK);
            role.note("peek", right(&into, answer));
        }
        let mut into = [0; 1000];
        let answer = sys::recv(fd, &mut into, libc::MSG_PEEK | libc::MSG_DONTWAIT);
        role.note("peek, not waiting", right(&into, answer));
        let answer = sys::read(fd, &mut into);
        role.note("read", right(&into, answer));
        role.note("nothing to peek at", sys::recv(fd, &mut into, libc::MSG_PEEK | libc::MSG_DONTWAIT));
    });
}

fn counts(role: &Role) {
    each(role, |fd| {
        role.meet();
        role.note("available", sys::readable_bytes(fd));
        role.note("read 11", sys::read(fd, &mut [0; 11]));
        role.note("available", sys::readable_bytes(fd));
        role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
        role.note("read 58", sys::read(fd, &mut [0; 58]));
        role.note("available", sys::readable_bytes(fd));
        role.note("read", sys::read(fd, &mut [0; 58]));
        role.note("available", sys::readable_bytes(fd));
        role.note("poll", sys::poll(fd, libc::POLLIN, std::time::Duration::ZERO));
    });
}

fn scatters(role: &Role) {
    each(role, |fd| {
        role.meet();
        let (mut one, mut two, mut three, mut four) = ([0; 3], [0; 5], [0; 1], [0; 200]);
        let answer = sys::readv(fd, &mut [&mut one, &mut [], &mut two, &mut three, &mut four]);
        let all = [one.as_slice(), &two, &three, &four].concat();
        role.note("readv", right(&all, answer));
        role.note("nothing more", sys::recv(fd, &mut one, libc::MSG_DONTWAIT));
    });
}

fn waits_for_all(role: &Role) {
    each(role, |fd| {
        role.meet();
        let mut into = [0; ALL];
        let answer = sys::recv(fd, &mut into, libc::MSG_WAITALL | libc::MSG_PEEK);
        role.note("peek for all", right(&into, answer));
        role.note("waitall of 69", sys::recv(fd, &mut into[..69], libc::MSG_WAITALL));
        role.note("waitall of the last", sys::recv(fd, &mut into[69..], libc::MSG_WAITALL));
        role.note("right", into.as_slice() == pattern(1, 0, ALL));
    });
}

fn odd_pieces(role: &Role) {
    each(role, |fd| {
        role.meet();
        let mut all = Vec::new();
        for size in [1, 13, 6, 8, 14, 20, 30] {
            let mut into = vec![0; size];
            let answer = sys::read(fd, &mut into);
            role.note("piece", answer);
            all.extend_from_slice(into.get(..answer.unwrap_or(0)).expect("bounded"));
        }
        role.note("right", all == pattern(1, 0, ALL));
    });
}

fn middle_client(role: &Role) {
    each(role, |fd| {
        for half in 0..2 {
            for part in 0..5 {
                assert_eq!(sys::write(fd, &pattern(1, half * 35 + part * PART, PART)), Ok(PART));
            }
            role.meet();
            role.meet();
        }
    });
}

fn middle_server(role: &Role) {
    each(role, |fd| {
        role.meet();
        let mut into = [0; 1000];
        let first = sys::read(fd, &mut into[..10]);
        role.note("in the middle", right(&into, first));
        role.meet();
        role.meet();
        let rest = sys::recv(fd, &mut into[10..], 0);
        role.note("all the rest", (rest, into[..ALL] == pattern(1, 0, ALL)));
        role.meet();
    });
}

/// Reads a part between the halves, so that bytes may lie on both sides of the switch, then lets `body` see 60 bytes.
fn after_the_middle(role: &Role, body: impl Fn(i32)) {
    each(role, |fd| {
        role.meet();
        read_exactly(fd, &mut [0; 10]);
        role.meet();
        role.meet();
        body(fd);
        role.meet();
    });
}

fn look_server(role: &Role) {
    after_the_middle(role, |fd| {
        let mut into = [0; 1000];
        role.note("available", sys::readable_bytes(fd));
        role.note("peek", (sys::recv(fd, &mut into, libc::MSG_PEEK), into[..60] == pattern(1, 10, 60)));
        role.note("peek past the middle", (sys::recv(fd, &mut into[..40], libc::MSG_PEEK), into[..40] == pattern(1, 10, 40)));
        role.note("waitall", (sys::recv(fd, &mut into[..60], libc::MSG_WAITALL), into[..60] == pattern(1, 10, 60)));
        role.note("available", sys::readable_bytes(fd));
    });
}

fn parts_server(role: &Role) {
    after_the_middle(role, |fd| {
        let mut into = [0; 60];
        let mut parts: Vec<&mut [u8]> = into.chunks_mut(2).collect();
        let answer = sys::readv(fd, &mut parts);
        role.note("thirty parts", (answer, into.as_slice() == pattern(1, 10, 60)));
    });
}

fn both_bursts(role: &Role) {
    each(role, |fd| {
        for part in 0..PARTS {
            assert_eq!(sys::send(fd, &pattern(1, part * PART, PART), libc::MSG_NOSIGNAL), Ok(PART));
        }
        role.meet();
        let mut into = [0; 1000];
        let answer = sys::read(fd, &mut into);
        role.note("read", right(&into, answer));
    });
}

fn every_call(role: &Role) {
    each(role, |fd| {
        let part = |index: usize| pattern(1, index * PART, PART);
        role.note("write", sys::write(fd, &part(0)));
        role.note("send", sys::send(fd, &part(1), libc::MSG_NOSIGNAL));
        role.note("writev", sys::writev(fd, &[&part(2)[..3], &part(2)[3..]]));
        role.note("sendmsg", sys::sendmsg(fd, &[&part(3), &[], &part(4)], 0));
        role.note("sendto", sys::sendto(fd, &part(5), 0));
        role.note("MSG_MORE", sys::send(fd, &part(6), libc::MSG_MORE));
        role.note("MSG_DONTWAIT", sys::send(fd, &part(7), libc::MSG_DONTWAIT));
        role.meet();
    });
}

const MIXED: [usize; 6] = [1, 5000, 1, 60_000, 4096, 3];

fn mixed_client(role: &Role) {
    each(role, |fd| {
        let mut sent = 0;
        for size in MIXED {
            assert_eq!(sys::write(fd, &pattern(1, sent, size)), Ok(size));
            sent += size;
        }
        role.meet();
    });
}

fn mixed_server(role: &Role) {
    each(role, |fd| {
        role.meet();
        role.note("available", sys::readable_bytes(fd));
        let mut into = vec![0; 100_000];
        let answer = sys::read(fd, &mut into);
        role.note("read", right(&into, answer));
    });
}

fn last_client(role: &Role) {
    for before in BEFORE {
        let fd = role.open();
        role.exchange(fd, before);
        role.meet();
        for part in 0..PARTS {
            assert_eq!(sys::write(fd, &pattern(1, part * PART, PART)), Ok(PART));
        }
        role.note("close", sys::close(fd));
        role.meet();
    }
}

fn last_server(role: &Role) {
    for before in BEFORE {
        let fd = role.open();
        role.exchange(fd, before);
        role.meet();
        role.meet();
        role.note("poll", (before, sys::poll(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, SOON)));
        let mut into = [0; 1000];
        let answer = sys::read(fd, &mut into);
        role.note("read", right(&into, answer));
        role.note("end", sys::read(fd, &mut into));
        role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
        assert_eq!(sys::close(fd), Ok(0));
    }
}

fn half_client(role: &Role) {
    each(role, |fd| {
        for part in 0..PARTS {
            assert_eq!(sys::write(fd, &pattern(1, part * PART, PART)), Ok(PART));
        }
        role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
        role.meet();
        let mut into = [0; 30];
        read_exactly(fd, &mut into);
        role.note("answer", into.as_slice() == pattern(1, 0, 30));
    });
}

fn half_server(role: &Role) {
    each(role, |fd| {
        role.meet();
        let mut into = [0; 1000];
        let answer = sys::recv(fd, &mut into, libc::MSG_WAITALL);
        role.note("waitall up to the end", right(&into, answer));
        role.note("end", (sys::read(fd, &mut into), sys::recv(fd, &mut into, libc::MSG_DONTWAIT)));
        for part in 0..3 {
            write_all(fd, &pattern(1, part * 10, 10));
        }
    });
}

/// As many as the kernel's buffer certainly takes.
const SINGLE: usize = 150;

fn bytes_client(role: &Role) {
    each(role, |fd| {
        for position in 0..SINGLE {
            assert_eq!(sys::send(fd, &pattern(1, position, 1), libc::MSG_DONTWAIT), Ok(1));
        }
        role.meet();
    });
}

fn bytes_server(role: &Role) {
    each(role, |fd| {
        role.meet();
        let mut into = [0; 1000];
        let answer = sys::recv(fd, &mut into[..100], 0);
        role.note("a hundred", right(&into, answer));
        let rest = sys::recv(fd, &mut into[100..], 0);
        role.note("and the rest", (rest, into[..SINGLE] == pattern(1, 0, SINGLE)));
    });
}
