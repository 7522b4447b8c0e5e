//! Scattered and gathered bytes: empty parts, as many as are allowed and more, several messages in one call, offsets,
//! and the names that fortified programs call.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::messages::{self, receive_batch, send_batch};
use crate::role::{BRIEFLY, Role, SOON, pattern, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "empty-parts", server: empty_server, client: empty_client, expect: Expect::Accelerated },
    Case { name: "a-thousand-parts", server: thousand_server, client: thousand_client, expect: Expect::Accelerated },
    Case { name: "no-parts", server: none_server, client: none_client, expect: Expect::Accelerated },
    Case { name: "parts-across-many-writes", server: across_server, client: across_client, expect: Expect::Accelerated },
    Case { name: "sendmmsg-of-several", server: batch_sender, client: batch_reader, expect: Expect::Either },
    Case { name: "recvmmsg-of-several", server: batch_receiver, client: batch_writer, expect: Expect::Either },
    Case { name: "recvmmsg-waits-for-one", server: one_receiver, client: one_writer, expect: Expect::Either },
    Case { name: "recvmmsg-with-a-timeout", server: late_receiver, client: late_writer, expect: Expect::Either },
    Case { name: "sendmmsg-with-a-bad-message", server: bad_sender, client: bad_reader, expect: Expect::Either },
    Case { name: "positioned-calls", server: positioned_server, client: positioned_client, expect: Expect::Either },
    Case { name: "flags-of-preadv2-and-pwritev2", server: flagged_server, client: flagged_client, expect: Expect::Either },
    Case { name: "fortified-names", server: checked_server, client: checked_client, expect: Expect::Accelerated },
    Case { name: "recvfrom-names-the-peer", server: named_server, client: named_client, expect: Expect::Accelerated },
];

fn empty_server(role: &Role) {
    let fd = role.open_warm();
    role.note("only empty", sys::writev(fd, &[b"", b"", b""]));
    role.note("empty around", sys::writev(fd, &[b"", b"ab", b"", b"", b"cde", b""]));
    role.note("sendmsg, empty around", sys::sendmsg(fd, &[b"", b"f", b""], 0));
    role.meet();
    role.meet();
}

fn empty_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("only empty", sys::readv(fd, &mut [&mut [], &mut []]));
    let (mut one, mut two, mut three) = ([0; 1], [0; 2], [0; 9]);
    role.note("readv", (sys::readv(fd, &mut [&mut [], &mut one, &mut [], &mut two]), one, two));
    role.note("recvmsg", (sys::recvmsg(fd, &mut [&mut [], &mut three, &mut []], 0), three));
    role.note("empty while nothing is there", sys::readv(fd, &mut [&mut [], &mut []]));
    role.note("nothing more", sys::recv(fd, &mut one, libc::MSG_DONTWAIT));
    role.meet();
}

fn thousand_server(role: &Role) {
    let fd = role.open_warm();
    let bytes = pattern(1, 0, 5000);
    for count in [1024, 1025] {
        let parts: Vec<&[u8]> = bytes.chunks(3).take(count).collect();
        role.note("writev", (count, sys::writev(fd, &parts)));
        role.note("sendmsg", (count, sys::sendmsg(fd, &parts, 0)));
    }
    role.meet();
    role.meet();
}

fn thousand_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 3072];
    for count in [1025, 1024] {
        let mut room = [0; 5000];
        let mut parts: Vec<&mut [u8]> = room.chunks_mut(3).take(count).collect();
        role.note("readv", (count, sys::readv(fd, &mut parts)));
    }
    let mut parts: Vec<&mut [u8]> = into.chunks_mut(3).collect();
    role.note("recvmsg", sys::recvmsg(fd, &mut parts, 0));
    role.note("right", into.as_slice() == pattern(1, 0, 3072));
    role.note("nothing more", sys::recv(fd, &mut into, libc::MSG_DONTWAIT));
    role.meet();
}

fn none_server(role: &Role) {
    let fd = role.open_warm();
    role.note("writev", sys::writev(fd, &[]));
    role.note("readv", sys::readv(fd, &mut []));
    role.note("sendmsg", sys::sendmsg(fd, &[], 0));
    role.note("recvmsg, not waiting", sys::recvmsg(fd, &mut [], libc::MSG_DONTWAIT));
    role.note("sendmmsg", send_batch(fd, &[], 0));
    role.note("recvmmsg", receive_batch(fd, &[], 0, None));
    role.meet();
    role.meet();
    role.note("recvmsg with data", sys::recvmsg(fd, &mut [], 0));
    role.note("data", sys::read(fd, &mut [0; 9]));
    role.meet();
    role.note("recvmsg at the end", sys::recvmsg(fd, &mut [], 0));
}

fn none_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("nothing came", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    write_all(fd, b"data");
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
}

fn across_server(role: &Role) {
    let fd = role.open_warm();
    for piece in pattern(2, 0, 9000).chunks(500) {
        write_all(fd, piece);
    }
    role.meet();
    role.meet();
}

fn across_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 9000];
    let (first, rest) = into.split_at_mut(499);
    let (second, third) = rest.split_at_mut(2002);
    role.note("readv", sys::readv(fd, &mut [first, second, third]));
    role.note("right", into.as_slice() == pattern(2, 0, 9000));
    role.meet();
}

fn batch_sender(role: &Role) {
    let fd = role.open_warm();
    role.note("three", send_batch(fd, &[Some(b"one "), Some(b"two "), Some(b"three")], 0));
    role.note("with an empty one", send_batch(fd, &[Some(b" four"), Some(b""), Some(b" five")], libc::MSG_NOSIGNAL));
    let many = [Some(b".".as_slice()); 100];
    role.note("a hundred", send_batch(fd, &many, libc::MSG_DONTWAIT).0);
    role.meet();
    role.meet();
}

fn batch_reader(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 400];
    let got = sys::read(fd, &mut into);
    role.note("one read", (got, String::from_utf8_lossy(&into[..got.unwrap_or(0)]).into_owned()));
    role.meet();
}

fn batch_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("four", receive_batch(fd, &[2, 3, 1, 9], 0, None));
    role.meet();
    role.meet();
    role.note("peek gives the same to each", receive_batch(fd, &[2, 3], libc::MSG_PEEK, None));
    role.note("not waiting", receive_batch(fd, &[2, 3, 9, 9], libc::MSG_DONTWAIT, None));
    role.note("nothing", receive_batch(fd, &[2, 3], libc::MSG_DONTWAIT, None));
    role.meet();
    role.meet();
    role.note("at the end", receive_batch(fd, &[2, 3], 0, None));
}

fn batch_writer(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"abcde");
    write_all(fd, b"fghij");
    role.meet();
    role.meet();
    write_all(fd, b"klm");
    write_all(fd, b"nop");
    role.meet();
    role.meet();
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
}

fn one_receiver(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..3 {
        role.meet();
        role.note("one", receive_batch(fd, &[2, 2, 2, 2, 2], libc::MSG_WAITFORONE, None));
        role.meet();
    }
}

/// The last round is written while the other end waits.
fn one_writer(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"ab");
    role.meet();
    role.meet();
    write_all(fd, b"cdefg");
    role.meet();
    role.meet();
    role.meet();
    std::thread::sleep(BRIEFLY);
    write_all(fd, b"hi");
    role.meet();
}

/// recvmmsg looks at its timeout only after a message: it ends the call with the message during which it passed.
fn late_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("with time", receive_batch(fd, &[2, 3], 0, Some(SOON)));
    role.note("no time", receive_batch(fd, &[2, 2], 0, Some(Duration::ZERO)));
    role.note("the next", receive_batch(fd, &[1], 0, Some(Duration::ZERO)));
    role.meet();
    role.note("passed while waiting", receive_batch(fd, &[2, 2, 2], 0, Some(Duration::from_millis(5))));
    role.note("the rest", receive_batch(fd, &[9], 0, None));
    role.meet();
}

fn late_writer(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"abcdefgh");
    role.meet();
    role.meet();
    std::thread::sleep(BRIEFLY);
    write_all(fd, b"ijklm");
    role.meet();
}

fn bad_sender(role: &Role) {
    let fd = role.open_warm();
    role.note("bad in the middle", send_batch(fd, &[Some(b"one"), Some(b"two"), None, Some(b"four")], 0));
    role.note("bad at first", send_batch(fd, &[None, Some(b"two")], 0));
    role.note("fine", send_batch(fd, &[Some(b"!")], 0));
    role.meet();
    role.meet();
}

fn bad_reader(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 100];
    role.note("read", (sys::read(fd, &mut into), String::from_utf8_lossy(&into[..8]).into_owned()));
    role.meet();
}

fn positioned_server(role: &Role) {
    let fd = role.open_warm();
    role.note("pread, pwrite, preadv, pwritev, lseek", messages::positioned(fd));
    role.meet();
    role.meet();
    role.note("pread, pwrite, preadv, pwritev, lseek, with data", messages::positioned(fd));
    let mut into = [0; 8];
    role.note("data", (sys::read(fd, &mut into), into));
    role.meet();
}

fn positioned_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"data");
    role.meet();
    role.note("nothing came", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    role.meet();
}

fn flagged_server(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 4];
    role.note("an offset", messages::preadv2(fd, &mut into, 5, 0));
    role.note("a negative offset", messages::preadv2(fd, &mut into, -2, 0));
    role.note("an unknown flag", messages::preadv2(fd, &mut into, -1, 0x4000_0000));
    role.note("RWF_NOWAIT on nothing", messages::preadv2(fd, &mut into, -1, libc::RWF_NOWAIT));
    role.meet();
    role.meet();
    role.note("RWF_NOWAIT", (messages::preadv2(fd, &mut into, -1, libc::RWF_NOWAIT), into));
    role.note("RWF_HIPRI", (messages::preadv2(fd, &mut into, -1, libc::RWF_HIPRI), into));
    role.note("no flag", (messages::preadv2(fd, &mut into, -1, 0), into));
    role.meet();
    role.meet();
}

fn flagged_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("no flag", messages::pwritev2(fd, b"0123", -1, 0));
    role.note("RWF_NOWAIT", messages::pwritev2(fd, b"4567", -1, libc::RWF_NOWAIT));
    role.note("RWF_SYNC", messages::pwritev2(fd, b"89ab", -1, libc::RWF_SYNC));
    role.note("an offset", messages::pwritev2(fd, b"no", 5, 0));
    role.note("an unknown flag", messages::pwritev2(fd, b"no", -1, 0x4000_0000));
    role.meet();
    role.meet();
    role.meet();
}

fn checked_server(role: &Role) {
    let fd = role.open_warm();
    role.note("poll on nothing", messages::poll_checked(fd, libc::POLLIN, Duration::ZERO));
    role.meet();
    role.meet();
    let mut into = [0; 4];
    role.note("poll", messages::poll_checked(fd, libc::POLLIN | libc::POLLOUT, SOON));
    role.note("read", (messages::read_checked(fd, &mut into), into));
    role.note("peek", (messages::recv_checked(fd, &mut into, libc::MSG_PEEK), into));
    role.note("recv", (messages::recv_checked(fd, &mut into, 0), into));
    role.note("recvfrom", (messages::recvfrom_checked(fd, &mut into, 0), into));
    role.note("recvfrom nothing", messages::recvfrom_checked(fd, &mut into, libc::MSG_DONTWAIT));
    role.meet();
    role.note("waits", (messages::read_checked(fd, &mut into), into));
}

fn checked_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"0123456789");
    role.meet();
    role.meet();
    write_all(fd, b"late");
    role.note("end", sys::read(fd, &mut [0]));
}

fn named_server(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 3];
    role.meet();
    role.note("an unnamed peer", (messages::recvfrom_named(fd, &mut into, 110), into));
    write_all(fd, b"abcdef");
    role.meet();
}

fn named_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"xyz");
    role.meet();
    let mut into = [0; 3];
    role.meet();
    let full = role.path().to_string_lossy().into_owned();
    let (answer, length, path) = messages::recvfrom_named(fd, &mut into, 110);
    role.note("a named peer", (answer, length as usize == full.len() + 3, path == full));
    let (answer, length, path) = messages::recvfrom_named(fd, &mut into, 5);
    role.note("with little room", (answer, length as usize == full.len() + 3, path));
}
