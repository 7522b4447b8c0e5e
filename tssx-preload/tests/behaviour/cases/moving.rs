//! Bytes that the kernel moves between descriptors: sendfile, splice, tee, vmsplice, copy_file_range.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::files::{copy_range, sendfile_at, splice, splice_at, tee, vmsplice};
use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;
use crate::waits::{By, control, events};

pub(super) const CASES: &[Case] = &[
    Case { name: "sendfile-with-offsets", server: offsets_server, client: offsets_client, expect: Expect::Either },
    Case { name: "sendfile-glued-with-writes", server: glue_server, client: glue_client, expect: Expect::Either },
    Case { name: "sendfile-from-a-stream", server: from_server, client: from_client, expect: Expect::Accelerated },
    Case { name: "sendfile-not-blocking", server: full_server, client: full_client, expect: Expect::Either },
    Case { name: "sendfile-waits-for-edges", server: edges_server, client: edges_client, expect: Expect::Either },
    Case { name: "splice-out-of-a-stream", server: out_server, client: out_client, expect: Expect::Either },
    Case { name: "splice-into-a-stream", server: into_server, client: into_client, expect: Expect::Either },
    Case { name: "splice-from-stream-to-stream", server: proxy_server, client: proxy_client, expect: Expect::Either },
    Case { name: "splice-that-is-refused", server: refused_server, client: refused_client, expect: Expect::Accelerated },
    Case { name: "vmsplice-and-tee-beside-it", server: tee_server, client: tee_client, expect: Expect::Either },
    Case { name: "copy-file-range-is-refused", server: range_server, client: range_client, expect: Expect::Accelerated },
];

fn file(role: &Role, content: &[u8]) -> File {
    let path = role.directory().join("content");
    std::fs::write(&path, content).expect("write");
    File::open(path).expect("open")
}

fn offsets_server(role: &Role) {
    let fd = role.open_warm();
    let file = file(role, &pattern(1, 0, 20_000));
    role.note("from an offset", sendfile_at(fd, file.as_raw_fd(), 5000, 3000));
    role.note("the position stays", sys::lseek(file.as_raw_fd()));
    role.note("from the position", sys::sendfile(fd, file.as_raw_fd(), 1000));
    role.note("the position moves", sys::lseek(file.as_raw_fd()));
    role.note("past the end", sendfile_at(fd, file.as_raw_fd(), 19_999, 5));
    role.note("at the end", sendfile_at(fd, file.as_raw_fd(), 20_000, 5));
    role.note("no bytes", sendfile_at(fd, file.as_raw_fd(), 0, 0));
    role.note("a negative offset", sendfile_at(fd, file.as_raw_fd(), -1, 5).0);
    role.settle(fd);
}

fn offsets_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = vec![0; 4001];
    read_exactly(fd, &mut into);
    role.note("right", into == [pattern(1, 5000, 3000), pattern(1, 0, 1000), pattern(1, 19_999, 1)].concat());
    role.settle(fd);
}

/// Everything is queued before the peer reads: one read gives it.
fn glue_server(role: &Role) {
    let fd = role.open_warm();
    let file = file(role, b"file");
    write_all(fd, b"before ");
    role.note("sendfile", sendfile_at(fd, file.as_raw_fd(), 0, 4).0);
    write_all(fd, b" after");
    role.meet();
    role.settle(fd);
}

fn glue_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 100];
    role.note("available", sys::readable_bytes(fd));
    let got = sys::read(fd, &mut into).expect("data");
    role.note("one read", String::from_utf8_lossy(&into[..got]));
    role.settle(fd);
}

fn from_server(role: &Role) {
    let fd = role.open_warm();
    let target = File::create(role.directory().join("target")).expect("create");
    role.note("from the stream", sys::sendfile(target.as_raw_fd(), fd, 4));
    role.note("onto itself", sys::sendfile(fd, fd, 4));
    role.note("from a closed one", sys::sendfile(fd, 999, 4));
    role.meet();
    role.note("with data", sys::sendfile(target.as_raw_fd(), fd, 4));
    let mut into = [0; 9];
    role.note("still there", (sys::read(fd, &mut into), into));
    role.settle(fd);
}

fn from_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"data");
    role.meet();
    role.settle(fd);
}

fn full_server(role: &Role) {
    let fd = role.open_warm();
    let file = file(role, &pattern(1, 0, 100_000));
    sys::set_nonblocking(fd, true);
    let mut sent = 0;
    let full = loop {
        match sendfile_at(fd, file.as_raw_fd(), (sent % 100_000) as i64, 100_000 - sent % 100_000) {
            (Ok(count), _) => sent += count,
            (Err(error), _) => break error,
        }
    };
    role.note("full", full);
    std::fs::write(role.directory().join("sent"), sent.to_string()).expect("write");
    sys::set_nonblocking(fd, false);
    role.settle(fd);
}

fn full_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let sent: usize = std::fs::read_to_string(role.directory().join("sent")).expect("written").parse().expect("a number");
    let mut into = vec![0; sent];
    read_exactly(fd, &mut into);
    role.note("right", into.chunks(100_000).all(|chunk| pattern(1, 0, 100_000).starts_with(chunk)));
    role.warm_up(fd);
}

/// As nginx: whatever sends less than was asked for waits for the next edge, the first time while the stream is in a ring.
fn edges_server(role: &Role) {
    let fd = role.open_warm();
    let file = file(role, &pattern(1, 0, EDGES));
    let epoll = sys::epoll_create();
    assert_eq!(control(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLOUT | libc::EPOLLET, 7), Ok(0));
    role.note("room from the start", events(By::Wait, epoll, 4, SOON));
    sys::set_nonblocking(fd, true);
    let (mut sent, mut missed) = (0, 0);
    while sent < EDGES {
        let count = sendfile_at(fd, file.as_raw_fd(), sent as i64, EDGES - sent).0.unwrap_or(0);
        sent += count;
        if sent < EDGES {
            missed += usize::from(events(By::Wait, epoll, 4, SOON).is_ok_and(|events| events.is_empty()));
        }
    }
    role.note("edges that never came", missed);
    sys::set_nonblocking(fd, false);
    role.settle(fd);
}

fn edges_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = vec![0; EDGES];
    into.chunks_mut(7000).for_each(|part| read_exactly(fd, part));
    role.note("right", into == pattern(1, 0, EDGES));
    role.settle(fd);
}

/// Bytes of a file that is many times what a socket takes at once.
const EDGES: usize = 2_000_000;

fn out_server(role: &Role) {
    let fd = role.open_warm();
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let none = splice(fd, writer.as_raw_fd(), 100, libc::SPLICE_F_NONBLOCK);
    role.note("nothing there", none);
    sys::set_nonblocking(fd, true);
    role.note("nothing there", splice(fd, writer.as_raw_fd(), 100, 0));
    sys::set_nonblocking(fd, false);
    role.meet();
    role.meet();
    role.note("a part", splice(fd, writer.as_raw_fd(), 4, libc::SPLICE_F_MOVE));
    role.note("available", sys::readable_bytes(fd));
    let mut into = [0; 10];
    role.note("read between", (sys::read(fd, &mut into[4..6]), std::io::Read::read(&mut reader, &mut into[..4]).ok()));
    role.note("the rest", splice(fd, writer.as_raw_fd(), 100, libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE));
    role.note("read", (std::io::Read::read(&mut reader, &mut into[6..]).ok(), String::from_utf8_lossy(&into).into_owned()));
    role.meet();
    role.meet();
    role.note("at the end", splice(fd, writer.as_raw_fd(), 100, 0));
}

fn out_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"0123456789");
    role.meet();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.note("end", sys::read(fd, &mut [0]));
}

fn into_server(role: &Role) {
    let fd = role.open_warm();
    let (reader, writer) = std::io::pipe().expect("pipe");
    for round in 0..5 {
        write_all(writer.as_raw_fd(), &pattern(round, 0, 1000));
        write_all(fd, b"[");
        role.note("spliced", splice(reader.as_raw_fd(), fd, 1000, if round % 2 == 0 { 0 } else { libc::SPLICE_F_MORE }));
        write_all(fd, b"]");
    }
    role.note("an empty pipe", splice(reader.as_raw_fd(), fd, 10, libc::SPLICE_F_NONBLOCK));
    drop(writer);
    role.note("a pipe at its end", splice(reader.as_raw_fd(), fd, 10, 0));
    role.meet();
    role.settle(fd);
}

fn into_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = vec![0; 10_000];
    let got = sys::read(fd, &mut into).expect("data");
    let all: Vec<u8> = (0..5).flat_map(|round| [b"[".to_vec(), pattern(round, 0, 1000), b"]".to_vec()].concat()).collect();
    role.note("one read", (got, into[..got] == all));
    role.settle(fd);
}

/// From one connection to another through a pipe, as proxies do.
fn proxy_server(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    let (reader, writer) = std::io::pipe().expect("pipe");
    let mut total = 0;
    while let Ok(count @ 1..) = splice(fd, writer.as_raw_fd(), 30_000, 0) {
        let mut left = count;
        while left > 0 {
            left -= splice(reader.as_raw_fd(), second, left, 0).expect("splice");
        }
        total += count;
    }
    role.note("total", total);
    role.note("shutdown", sys::shutdown(second, libc::SHUT_WR));
    role.note("end", sys::read(second, &mut [0]));
}

fn proxy_client(role: &Role) {
    let (fd, second) = (role.open_warm(), role.open_warm());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for piece in pattern(3, 0, 500_000).chunks(7000) {
                write_all(fd, piece);
            }
            assert_eq!(sys::shutdown(fd, libc::SHUT_WR), Ok(0));
        });
        let mut into = vec![0; 500_000];
        read_exactly(second, &mut into);
        role.note("right", into == pattern(3, 0, 500_000));
    });
    role.note("end", sys::read(second, &mut [0]));
}

fn refused_server(role: &Role) {
    let fd = role.open_warm();
    let (reader, writer) = std::io::pipe().expect("pipe");
    role.note("stream to stream", splice(fd, fd, 10, 0));
    role.note("with offsets", (splice_at(fd, writer.as_raw_fd(), 10), splice_at(reader.as_raw_fd(), fd, 10)));
    role.note("wrong ends", (splice(fd, reader.as_raw_fd(), 10, 0), splice(writer.as_raw_fd(), fd, 10, 0)));
    role.note("no bytes", (splice(fd, writer.as_raw_fd(), 0, 0), splice(reader.as_raw_fd(), fd, 0, 0)));
    role.note("an unknown flag", splice(fd, writer.as_raw_fd(), 10, 0x100));
    role.note("closed", (splice(999, writer.as_raw_fd(), 10, 0), splice(fd, 999, 10, 0)));
    role.note("tee", (tee(fd, writer.as_raw_fd(), 10), tee(reader.as_raw_fd(), fd, 10)));
    role.note("vmsplice", vmsplice(fd, b"no"));
    role.settle(fd);
}

fn refused_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}

fn tee_server(role: &Role) {
    let fd = role.open_warm();
    let ((reader, writer), (second, target)) = (std::io::pipe().expect("pipe"), std::io::pipe().expect("pipe"));
    role.note("vmsplice", vmsplice(writer.as_raw_fd(), b"twice"));
    role.note("tee", tee(reader.as_raw_fd(), target.as_raw_fd(), 5));
    write_all(fd, b"(");
    role.note("splice", splice(reader.as_raw_fd(), fd, 5, 0));
    role.note("splice the copy", splice(second.as_raw_fd(), fd, 5, 0));
    write_all(fd, b")");
    role.meet();
    role.settle(fd);
}

fn tee_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 12];
    role.note("one read", (sys::read(fd, &mut into), String::from_utf8_lossy(&into).into_owned()));
    role.settle(fd);
}

fn range_server(role: &Role) {
    let fd = role.open_warm();
    let file = file(role, b"content");
    role.note("onto the stream", copy_range(file.as_raw_fd(), fd, 5));
    role.note("from the stream", copy_range(fd, file.as_raw_fd(), 5));
    role.note("stream to stream", copy_range(fd, fd, 5));
    role.settle(fd);
}

fn range_client(role: &Role) {
    let fd = role.open_warm();
    role.settle(fd);
}
