//! Descriptors and credentials beside the bytes. The kernel gives plain bytes and those of the first message with
//! descriptors in one call and ends the call there; what does not fit into the control buffer is closed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use crate::harness::{Case, Expect};
use crate::messages::{Beside, ROOM, receive_beside, send_beside};
use crate::role::{Role, SOON, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "rights-after-plain-bytes", server: mixed_sender, client: mixed_receiver, expect: Expect::Either },
    Case { name: "rights-on-a-new-connection", server: new_sender, client: new_receiver, expect: Expect::Either },
    Case { name: "rights-in-several-messages", server: several_sender, client: several_receiver, expect: Expect::Either },
    Case { name: "rights-read-by-read", server: mixed_sender, client: read_receiver, expect: Expect::Either },
    Case { name: "rights-peeked-at", server: mixed_sender, client: peek_receiver, expect: Expect::Either },
    Case { name: "rights-with-little-room", server: several_sender, client: truncated_receiver, expect: Expect::Either },
    Case { name: "rights-without-room-are-closed", server: closed_sender, client: closed_receiver, expect: Expect::Either },
    Case { name: "rights-taken-by-a-part-of-the-message", server: part_sender, client: part_receiver, expect: Expect::Either },
    Case { name: "rights-close-on-exec", server: several_sender, client: cloexec_receiver, expect: Expect::Either },
    Case { name: "rights-that-are-refused", server: refused_sender, client: refused_receiver, expect: Expect::Either },
    Case { name: "rights-work", server: pipe_sender, client: pipe_receiver, expect: Expect::Either },
    Case { name: "rights-both-ways-many-times", server: many_sender, client: many_receiver, expect: Expect::Either },
    Case { name: "rights-and-the-end", server: last_sender, client: last_receiver, expect: Expect::Either },
    Case { name: "control-room-without-control-data", server: plain_sender, client: plain_receiver, expect: Expect::Accelerated },
    Case { name: "credentials-given", server: given_sender, client: given_receiver, expect: Expect::Either },
    Case { name: "credentials-asked-for-in-mid-stream", server: asked_sender, client: asked_receiver, expect: Expect::Either },
];

fn null() -> File {
    File::open("/dev/null").expect("open")
}

fn mixed_sender(role: &Role) {
    let fd = role.open_warm();
    let file = null();
    write_all(fd, b"before ");
    role.note("send", send_beside(fd, b"with one", &[Beside::Rights(&[file.as_raw_fd()])], 0));
    write_all(fd, b" after");
    write_all(fd, b" that");
    role.meet();
    role.settle(fd);
}

fn mixed_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
    role.note("available", sys::readable_bytes(fd));
    role.note("first", receive_beside(fd, 100, ROOM, 0).shown());
    role.note("then", receive_beside(fd, 100, ROOM, 0).shown());
    role.note("nothing", receive_beside(fd, 100, ROOM, libc::MSG_DONTWAIT).answer);
    role.settle(fd);
}

fn new_sender(role: &Role) {
    let fd = role.open();
    let file = null();
    role.note("the first message", send_beside(fd, b"with one", &[Beside::Rights(&[file.as_raw_fd()])], 0));
    write_all(fd, b" after");
    role.meet();
    role.settle(fd);
}

fn new_receiver(role: &Role) {
    let fd = role.open();
    role.meet();
    role.note("first", receive_beside(fd, 100, ROOM, 0).shown());
    role.note("then", receive_beside(fd, 100, ROOM, 0).shown());
    role.settle(fd);
}

fn several_sender(role: &Role) {
    let fd = role.open_warm();
    let files = [null(), null(), null()];
    let all = files.each_ref().map(AsRawFd::as_raw_fd);
    role.note("two", send_beside(fd, b"two", &[Beside::Rights(&all[..2])], 0));
    role.note("three", send_beside(fd, b"three", &[Beside::Rights(&all)], libc::MSG_NOSIGNAL));
    role.note("two lots", send_beside(fd, b"lots", &[Beside::Rights(&all[..1]), Beside::Rights(&all[1..])], 0));
    write_all(fd, b"plain");
    role.note("one", send_beside(fd, b"one", &[Beside::Rights(&all[..1])], 0));
    role.meet();
    role.settle(fd);
}

fn several_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    for _ in 0..4 {
        role.note("message", receive_beside(fd, 100, ROOM, 0).shown());
    }
    role.note("nothing", receive_beside(fd, 100, ROOM, libc::MSG_DONTWAIT).answer);
    role.settle(fd);
}

/// The same stops, but nobody gets the descriptors.
fn read_receiver(role: &Role) {
    let fd = role.open_warm();
    let before = std::fs::read_dir("/proc/self/fd").expect("proc").count();
    role.meet();
    let mut into = [0; 100];
    role.note("first", (sys::read(fd, &mut into), String::from_utf8_lossy(&into[..15]).into_owned()));
    role.note("then", (sys::read(fd, &mut into), String::from_utf8_lossy(&into[..11]).into_owned()));
    role.note("no descriptor more", std::fs::read_dir("/proc/self/fd").expect("proc").count() == before);
    role.settle(fd);
}

fn peek_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    for _ in 0..2 {
        let peeked = receive_beside(fd, 100, ROOM, libc::MSG_PEEK);
        role.note("peek", peeked.shown());
        peeked.rights.iter().for_each(|fd| assert_eq!(sys::close(*fd), Ok(0)));
    }
    role.note("first", receive_beside(fd, 100, ROOM, 0).shown());
    role.note("then", receive_beside(fd, 100, ROOM, 0).shown());
    role.settle(fd);
}

fn truncated_receiver(role: &Role) {
    let fd = role.open_warm();
    let before = std::fs::read_dir("/proc/self/fd").expect("proc").count();
    role.meet();
    for room in [20, 16, 0, 8] {
        role.note("message", (room, receive_beside(fd, 100, room, 0).shown()));
    }
    role.note("descriptors more", std::fs::read_dir("/proc/self/fd").expect("proc").count() - before);
    role.settle(fd);
}

/// The last copy of a pipe's writing end is in the message: it is closed when the message is read without room for it.
fn closed_sender(role: &Role) {
    let fd = role.open_warm();
    let (reader, writer) = std::io::pipe().expect("pipe");
    role.note("send", send_beside(fd, b"pipe", &[Beside::Rights(&[writer.as_raw_fd()])], 0));
    drop(writer);
    role.note("open in the message", sys::poll(reader.as_raw_fd(), libc::POLLIN, std::time::Duration::ZERO));
    role.meet();
    role.meet();
    role.note("closed", sys::poll(reader.as_raw_fd(), libc::POLLIN, SOON));
    role.settle(fd);
}

fn closed_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("no room", receive_beside(fd, 100, 0, 0).shown());
    role.meet();
    role.settle(fd);
}

fn part_sender(role: &Role) {
    let fd = role.open_warm();
    let file = null();
    role.note("send", send_beside(fd, b"ten bytes.", &[Beside::Rights(&[file.as_raw_fd()])], 0));
    write_all(fd, b"more");
    role.meet();
    role.settle(fd);
}

fn part_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("a part", receive_beside(fd, 4, ROOM, 0).shown());
    role.note("the rest", receive_beside(fd, 100, ROOM, 0).shown());
    role.settle(fd);
}

fn cloexec_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    for flags in [libc::MSG_CMSG_CLOEXEC, 0, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT, 0] {
        let received = receive_beside(fd, 100, ROOM, flags);
        let set: Vec<_> = received.rights.iter().map(|fd| sys::fcntl(*fd, libc::F_GETFD, 0)).collect();
        role.note("message", (received.shown(), set));
    }
    role.settle(fd);
}

fn refused_sender(role: &Role) {
    let fd = role.open_warm();
    let file = null();
    role.note("a descriptor that is none", send_beside(fd, b"x", &[Beside::Rights(&[999])], 0));
    role.note("an unknown kind", send_beside(fd, b"x", &[Beside::Unknown], 0));
    role.note("too many", send_beside(fd, b"x", &[Beside::Rights(&[file.as_raw_fd(); 254])], 0));
    role.note("no bytes", send_beside(fd, b"", &[Beside::Rights(&[file.as_raw_fd()])], 0));
    role.note("no descriptors", send_beside(fd, b"none", &[Beside::Rights(&[])], 0));
    role.note("no control data", send_beside(fd, b"plain", &[], 0));
    role.meet();
    role.settle(fd);
}

fn refused_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("what came", receive_beside(fd, 100, ROOM, 0).shown());
    role.settle(fd);
}

fn pipe_sender(role: &Role) {
    let fd = role.open_warm();
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    role.note("send", send_beside(fd, b"pipe", &[Beside::Rights(&[writer.as_raw_fd()])], 0));
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    role.note("through the pipe", text);
    role.settle(fd);
}

fn pipe_receiver(role: &Role) {
    let fd = role.open_warm();
    let received = receive_beside(fd, 100, ROOM, 0);
    role.note("received", received.shown());
    for passed in received.rights {
        write_all(passed, b"written by the other process");
        assert_eq!(sys::close(passed), Ok(0));
    }
    role.settle(fd);
}

const MANY: usize = 30;

fn many_sender(role: &Role) {
    let fd = role.open_warm();
    for round in 0..MANY {
        let name = role.directory().join(format!("file{round}"));
        File::create(&name).and_then(|mut file| write!(file, "content {round}")).expect("write");
        let file = File::open(name).expect("open");
        write_all(fd, b"<");
        assert_eq!(send_beside(fd, b"file", &[Beside::Rights(&[file.as_raw_fd()])], 0), Ok(4));
        write_all(fd, b">");
        let mut into = [0; 4];
        assert_eq!(sys::recv(fd, &mut into, libc::MSG_WAITALL), Ok(4));
    }
    role.settle(fd);
}

fn many_receiver(role: &Role) {
    let fd = role.open_warm();
    for round in 0..MANY {
        let (mut text, mut rights) = (String::new(), Vec::new());
        while !text.ends_with('>') {
            let received = receive_beside(fd, 100, ROOM, 0);
            assert!(received.answer.is_ok_and(|count| count > 0), "round {round}: {:?} after {text}", received.answer);
            text += &received.text;
            rights.extend(received.rights);
        }
        assert_eq!((text.as_str(), rights.len()), ("<file>", 1), "round {round}");
        let mut into = [0; 20];
        let got = sys::read(rights[0], &mut into).expect("read");
        assert_eq!(&into[..got], format!("content {round}").as_bytes());
        assert_eq!(sys::close(rights[0]), Ok(0));
        write_all(fd, b"next");
    }
    role.say("all files came");
    role.settle(fd);
}

fn last_sender(role: &Role) {
    let fd = role.open_warm();
    let file = null();
    write_all(fd, b"before ");
    role.note("send", send_beside(fd, b"last", &[Beside::Rights(&[file.as_raw_fd()])], 0));
    role.note("close", sys::close(fd));
    role.meet();
}

fn last_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN | libc::POLLRDHUP, SOON));
    role.note("the last message", receive_beside(fd, 100, ROOM, 0).shown());
    role.note("end", receive_beside(fd, 100, ROOM, 0).shown());
    role.note("end again", receive_beside(fd, 100, 0, libc::MSG_DONTWAIT).shown());
}

fn plain_sender(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"plain");
    role.meet();
    role.settle(fd);
    role.note("close", sys::close(fd));
}

fn plain_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("peek", receive_beside(fd, 100, ROOM, libc::MSG_PEEK).shown());
    role.note("message", receive_beside(fd, 100, ROOM, libc::MSG_CMSG_CLOEXEC).shown());
    let nothing = receive_beside(fd, 100, ROOM, libc::MSG_DONTWAIT);
    role.note("nothing", (nothing.answer, nothing.control));
    role.settle(fd);
    role.note("end", receive_beside(fd, 100, ROOM, 0).shown());
}

fn given_sender(role: &Role) {
    let fd = role.open_warm();
    let own = [Beside::Credentials(std::process::id().cast_signed(), sys::peer(fd).uid, sys::peer(fd).gid)];
    role.note("own", send_beside(fd, b"given", &own, 0));
    write_all(fd, b" and not");
    role.meet();
    role.meet();
    role.note("own, and asked for", send_beside(fd, b"given", &own, 0));
    write_all(fd, b" and not");
    role.meet();
    role.settle(fd);
}

fn given_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("not asked for", receive_beside(fd, 100, ROOM, 0).shown());
    role.note("ask", sys::set_option(fd, libc::SO_PASSCRED, &1_i32));
    role.meet();
    role.meet();
    let received = receive_beside(fd, 100, ROOM, 0);
    let peer = sys::peer(fd);
    let same = received.credentials == [[peer.pid, peer.uid.cast_signed(), peer.gid.cast_signed()]];
    role.note("asked for", (received.shown(), same));
    role.settle(fd);
}

fn asked_sender(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"before");
    role.meet();
    role.meet();
    write_all(fd, b"after ");
    write_all(fd, b"that");
    role.meet();
    role.meet();
    write_all(fd, b"not any more");
    role.meet();
    role.settle(fd);
}

fn asked_receiver(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("ask", sys::set_option(fd, libc::SO_PASSCRED, &1_i32));
    role.note("asked", sys::option(fd, libc::SOL_SOCKET, libc::SO_PASSCRED));
    role.meet();
    role.meet();
    let peer = sys::peer(fd);
    for _ in 0..2 {
        let received = receive_beside(fd, 100, ROOM, 0);
        let same = received.credentials.iter().any(|one| one[0] == peer.pid);
        role.note("message", (received.shown(), same));
    }
    role.note("do not ask", sys::set_option(fd, libc::SO_PASSCRED, &0_i32));
    role.meet();
    role.meet();
    role.note("message", receive_beside(fd, 100, ROOM, 0).shown());
    role.settle(fd);
}
