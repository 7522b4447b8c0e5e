//! Bytes and their order, by every call that moves them.

use crate::harness::{Case, Expect};
use crate::role::{Role, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "every-size-arrives-whole", server: echo_sizes, client: send_sizes, expect: Expect::Accelerated },
    Case { name: "every-call-moves-bytes", server: calls_server, client: calls_client, expect: Expect::Accelerated },
    Case { name: "peek-leaves-the-bytes", server: peek_server, client: peek_client, expect: Expect::Accelerated },
    Case { name: "waitall-fills-the-buffer", server: waitall_server, client: waitall_client, expect: Expect::Accelerated },
    Case { name: "both-directions-at-once", server: duplex, client: duplex, expect: Expect::Accelerated },
    Case { name: "zero-length-calls", server: empty_server, client: empty_client, expect: Expect::Accelerated },
    Case { name: "writes-of-many-sizes-keep-their-order", server: order_server, client: order_client, expect: Expect::Accelerated },
    Case { name: "bytes-sent-before-accept", server: early_server, client: early_client, expect: Expect::Accelerated },
    Case { name: "bad-pointers-are-efault", server: efault_server, client: efault_client, expect: Expect::Accelerated },
];

const SIZES: [usize; 14] = [1, 2, 7, 64, 100, 1000, 4095, 4096, 4097, 65_536, 100_000, 212_992, 300_001, 1_048_576];

fn echo_sizes(role: &Role) {
    let fd = role.open_warm();
    for (seed, size) in SIZES.into_iter().enumerate() {
        let mut bytes = vec![0; size];
        read_exactly(fd, &mut bytes);
        role.note("arrived whole", (size, bytes == pattern(seed, 0, size)));
        write_all(fd, &bytes);
    }
    role.note("close", sys::close(fd));
}

fn send_sizes(role: &Role) {
    let fd = role.open_warm();
    for (seed, size) in SIZES.into_iter().enumerate() {
        let bytes = pattern(seed, 0, size);
        write_all(fd, &bytes);
        let mut back = vec![0; size];
        read_exactly(fd, &mut back);
        role.note("came back whole", (size, back == bytes));
    }
    role.note("end", sys::read(fd, &mut [0]));
}

/// Each message is read before the next is written.
fn calls_server(role: &Role) {
    let fd = role.open_warm();
    let told = |what: &str, answer: sys::Answer| {
        role.note(what, answer);
        role.meet();
        role.meet();
    };
    told("write", sys::write(fd, b"by write."));
    told("send", sys::send(fd, b"by send..", libc::MSG_NOSIGNAL));
    told("sendto", sys::sendto(fd, b"by sendto", libc::MSG_DONTWAIT));
    told("writev", sys::writev(fd, &[b"by ", b"", b"wri", b"tev"]));
    told("sendmsg", sys::sendmsg(fd, &[b"by send", b"msg", b""], libc::MSG_NOSIGNAL));
    told("write 5", sys::write(fd, b"short"));
    told("write 30", sys::write(fd, &pattern(3, 0, 30)));
    role.note("lseek", sys::lseek(fd));
}

fn calls_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 9];
    role.meet();
    role.note("read", (sys::read(fd, &mut into), into));
    role.meet();
    role.meet();
    role.note("recv", (sys::recv(fd, &mut into, 0), into));
    role.meet();
    role.meet();
    role.note("recvfrom", (sys::recvfrom(fd, &mut into, libc::MSG_DONTWAIT), into));
    role.meet();
    role.meet();
    let (mut first, mut second) = ([0; 4], [0; 20]);
    role.note("readv", (sys::readv(fd, &mut [&mut first, &mut [], &mut second]), first, second));
    role.meet();
    role.meet();
    let (mut first, mut second) = ([0; 3], [0; 20]);
    role.note("recvmsg", (sys::recvmsg(fd, &mut [&mut first, &mut second], 0), first, second));
    role.meet();
    role.meet();
    let mut into = [0; 40];
    role.note("room to spare", (sys::recv(fd, &mut into, 0), into));
    role.meet();
    role.meet();
    let mut total = 0;
    for size in [1, 2, 3, 4, 20] {
        let mut part = vec![0; size];
        let got = sys::read(fd, &mut part).expect("data is there");
        role.note("short read", (got, part.get(..got) == Some(pattern(3, total, got).as_slice())));
        total += got;
    }
    role.note("empty", sys::recv(fd, &mut into, libc::MSG_DONTWAIT));
    role.note("lseek", sys::lseek(fd));
    role.meet();
}

fn peek_server(role: &Role) {
    let fd = role.open_warm();
    role.note("nothing to peek at", sys::recv(fd, &mut [0; 4], libc::MSG_PEEK | libc::MSG_DONTWAIT));
    role.meet();
    role.meet();
    let mut into = [0; 10];
    role.note("peek", (sys::recv(fd, &mut into, libc::MSG_PEEK), into));
    role.note("peek less", (sys::recv(fd, into.get_mut(..3).expect("10"), libc::MSG_PEEK | libc::MSG_DONTWAIT), into));
    role.note("peek by recvmsg", (sys::recvmsg(fd, &mut [&mut into], libc::MSG_PEEK), into));
    role.note("available", sys::readable_bytes(fd));
    let mut into = [0; 4];
    role.note("read", (sys::read(fd, &mut into), into));
    role.note("peek the rest", (sys::recv(fd, &mut into, libc::MSG_PEEK), into));
    let mut into = [0; 10];
    role.note("read the rest", (sys::read(fd, &mut into), into));
    role.meet();
    role.note("peek at the end", sys::recv(fd, &mut into, libc::MSG_PEEK));
}

fn peek_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("write", sys::write(fd, b"look here"));
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    role.note("end", sys::read(fd, &mut [0]));
}

fn waitall_server(role: &Role) {
    let fd = role.open_warm();
    for part in 0..10 {
        write_all(fd, &pattern(1, part * 100, 100));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    role.meet();
    write_all(fd, b"tail");
    role.note("close", sys::close(fd));
}

fn waitall_client(role: &Role) {
    let fd = role.open_warm();
    let mut all = [0; 1000];
    role.note("waitall", sys::recv(fd, &mut all, libc::MSG_WAITALL));
    role.note("whole", all.as_slice() == pattern(1, 0, 1000));
    role.meet();
    role.note("waitall up to the end", (sys::recv(fd, &mut [0; 100], libc::MSG_WAITALL), sys::read(fd, &mut [0])));
}

/// Both ends write and read 24 MiB at once; every byte is checked.
fn duplex(role: &Role) {
    const TOTAL: usize = 24 << 20;
    let fd = role.open_warm();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 0;
            for size in [1, 64, 1000, 4096, 65_536, 9973, 200_000].into_iter().cycle() {
                let size = size.min(TOTAL - sent);
                if size == 0 {
                    break;
                }
                write_all(fd, &pattern(9, sent, size));
                sent += size;
            }
        });
        let mut received = 0;
        let mut into = vec![0; 50_000];
        while received < TOTAL {
            let room = into.len().min(TOTAL - received);
            let got = sys::read(fd, into.get_mut(..room).expect("bounded")).expect("data");
            assert!(got > 0, "end of stream after {received} bytes");
            assert!(into.get(..got) == Some(pattern(9, received, got).as_slice()), "wrong bytes after {received}");
            received += got;
        }
        role.note("received and right", received);
    });
    role.meet();
    role.note("nothing more", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    role.meet();
}

fn empty_server(role: &Role) {
    let fd = role.open_warm();
    role.note("write 0", sys::write(fd, b""));
    role.note("send 0", sys::send(fd, b"", 0));
    role.note("writev 0", sys::writev(fd, &[]));
    role.note("read 0 while empty", sys::read(fd, &mut []));
    role.note("nonblocking recv 0 while empty", sys::recv(fd, &mut [], libc::MSG_DONTWAIT));
    role.meet();
    role.meet();
    role.note("read 0 with data", sys::read(fd, &mut []));
    role.note("recv 0 with data", sys::recv(fd, &mut [], 0));
    let mut into = [0; 8];
    role.note("data", (sys::read(fd, &mut into), into));
}

fn empty_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("nothing came", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    role.note("write", sys::write(fd, b"data"));
    role.meet();
    role.note("end", sys::read(fd, &mut [0; 2]));
}

fn order_server(role: &Role) {
    let fd = role.open_warm();
    let mut state = 12345_usize;
    let mut sent = 0;
    for _ in 0..3000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let size = (state >> 33) % 3000 + 1;
        write_all(fd, &pattern(4, sent, size));
        sent += size;
    }
    role.note("sent", sent);
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut [0]));
}

fn order_client(role: &Role) {
    let fd = role.open_warm();
    let (mut received, mut state) = (0, 99_usize);
    loop {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut into = vec![0; (state >> 33) % 5000 + 1];
        let got = sys::read(fd, &mut into).expect("read");
        if got == 0 {
            break;
        }
        assert!(into.get(..got) == Some(pattern(4, received, got).as_slice()), "wrong bytes after {received}");
        received += got;
    }
    role.note("received and right", received);
}

fn early_server(role: &Role) {
    role.meet();
    let fd = role.open();
    let mut into = [0; 64];
    role.note("sent before accept", (sys::recv(fd, into.get_mut(..9).expect("64"), libc::MSG_WAITALL), into.get(..9)));
    role.warm_up(fd);
    write_all(fd, b"after");
    role.note("end", sys::read(fd, &mut into));
}

fn early_client(role: &Role) {
    let fd = role.open();
    for part in [b"one", b"two", b"3.."] {
        role.note("write before accept", sys::write(fd, part));
    }
    role.meet();
    role.warm_up(fd);
    let mut into = [0; 5];
    read_exactly(fd, &mut into);
    role.note("after", into);
}

fn efault_server(role: &Role) {
    let fd = role.open_warm();
    role.note("write from nowhere", sys::write_nowhere(fd, 16));
    role.note("write", sys::write(fd, b"fine"));
    role.meet();
    role.note("end", sys::read(fd, &mut [0]));
}

fn efault_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("read into nowhere", sys::read_nowhere(fd, 16));
    role.note("bytes are still there", sys::readable_bytes(fd));
    let mut into = [0; 8];
    role.note("read", (sys::read(fd, &mut into), into));
}
