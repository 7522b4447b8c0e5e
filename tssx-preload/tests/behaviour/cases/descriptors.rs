//! Descriptors: copies, numbers that come back, files sent onto the connection, descriptors sent over it.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "a-copy-outlives-the-original", server: copy_server, client: copy_client, expect: Expect::Accelerated },
    Case { name: "dup2-onto-a-connection-closes-it", server: onto_server, client: onto_client, expect: Expect::Accelerated },
    Case { name: "dup2-of-a-connection", server: moved_server, client: moved_client, expect: Expect::Accelerated },
    Case { name: "sendfile-onto-the-connection", server: file_server, client: file_client, expect: Expect::Either },
    Case { name: "descriptors-over-the-connection", server: rights_server, client: rights_client, expect: Expect::Either },
    Case { name: "no-descriptor-is-left-behind", server: count_server, client: count_client, expect: Expect::Accelerated },
    Case { name: "numbers-are-the-lowest-free", server: lowest, client: lowest, expect: Expect::Accelerated },
];

fn copy_server(role: &Role) {
    let fd = role.open_warm();
    let copy = sys::dup(fd);
    let other = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, 50).expect("F_DUPFD") as i32;
    role.note("at least 50", other >= 50);
    write_all(fd, b"one ");
    write_all(copy, b"two ");
    write_all(other, b"three");
    role.note("close the original", sys::close(fd));
    role.meet();
    role.warm_up(copy);
    role.note("close a copy", sys::close(copy));
    role.meet();
    role.note("nothing was closed for the peer", sys::poll(other, libc::POLLIN, SOON));
    role.note("read by the last copy", sys::read(other, &mut [0; 9]));
    role.note("close the last", sys::close(other));
}

fn copy_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 13];
    read_exactly(fd, &mut into);
    role.note("all three", into);
    role.meet();
    role.warm_up(fd);
    role.meet();
    role.note("not closed", sys::recv(fd, &mut into, libc::MSG_DONTWAIT));
    role.note("write", sys::write(fd, b"data"));
    role.note("end", sys::read(fd, &mut into));
}

fn onto_server(role: &Role) {
    let fd = role.open_warm();
    let zero = File::open("/dev/zero").expect("open");
    role.note("dup2", sys::dup2(zero.as_raw_fd(), fd).map(|made| made as i32 == fd));
    role.note("reads zeros now", sys::read(fd, &mut [1; 5]));
    role.meet();
    role.note("close", sys::close(fd));
}

fn onto_client(role: &Role) {
    let fd = role.open_warm();
    role.note("end", sys::read(fd, &mut [0]));
    role.note("send", sys::send(fd, b"x", libc::MSG_NOSIGNAL));
    role.meet();
}

fn moved_server(role: &Role) {
    let fd = role.open_warm();
    let file = File::open("/dev/null").expect("open");
    let number = file.as_raw_fd();
    role.note("dup2", sys::dup2(fd, number).map(|made| made as i32 == number));
    role.note("close the original", sys::close(fd));
    write_all(number, b"moved");
    role.warm_up(number);
    role.note("dup2 onto itself", sys::dup2(number, number).map(|made| made as i32 == number));
    role.warm_up(number);
    role.note("dup2 of nothing", sys::dup2(999, number));
    role.warm_up(number);
    drop(file);
}

fn moved_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 5];
    read_exactly(fd, &mut into);
    role.note("read", into);
    for _ in 0..3 {
        role.warm_up(fd);
    }
    role.note("end", sys::read(fd, &mut into));
}

fn file_server(role: &Role) {
    let fd = role.open_warm();
    let path = role.directory().join("file");
    std::fs::write(&path, pattern(3, 0, 500_000)).expect("write");
    let file = File::open(path).expect("open");
    write_all(fd, b"before");
    let mut sent = 0;
    while sent < 500_000 {
        match sys::sendfile(fd, file.as_raw_fd(), 500_000 - sent) {
            Ok(0) => break,
            Ok(count) => sent += count,
            Err(error) => panic!("sendfile: {error} after {sent}"),
        }
    }
    role.note("sent", sent);
    write_all(fd, b"after");
    role.note("end", sys::read(fd, &mut [0]));
}

fn file_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = vec![0; 500_011];
    read_exactly(fd, &mut into);
    role.note("in order and whole", into == [b"before".as_slice(), &pattern(3, 0, 500_000), b"after"].concat());
}

fn rights_server(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"before");
    let path = role.directory().join("passed");
    std::fs::write(&path, b"passed on").expect("write");
    let file = File::open(path).expect("open");
    role.note("send a descriptor", sys::send_descriptor(fd, file.as_raw_fd()));
    write_all(fd, b"after");
    role.meet();
    role.warm_up(fd);
}

fn rights_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 6];
    read_exactly(fd, &mut into);
    role.note("before", into);
    let (received, passed) = sys::recv_descriptor(fd, &mut into[..1]);
    role.note("the byte beside it", (received, into[0]));
    let mut text = String::new();
    if let Some(number) = passed {
        std::io::Read::read_to_string(&mut owned(number), &mut text).expect("read");
    }
    role.note("the file", text);
    read_exactly(fd, &mut into[..5]);
    role.note("after", &into[..5]);
    role.warm_up(fd);
}

#[allow(unsafe_code, reason = "takes ownership of a descriptor that was just received")]
fn owned(number: i32) -> File {
    // SAFETY: SCM_RIGHTS made the descriptor for us, and nobody else in this process knows it.
    unsafe { File::from_raw_fd(number) }
}

fn open_descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("proc").filter_map(Result::ok);
    let mut numbers: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    numbers.sort();
    numbers
}

fn count_server(role: &Role) {
    let before = open_descriptors();
    for _ in 0..10 {
        let fd = role.open_warm();
        role.note("open: one more", open_descriptors().len() - before.len());
        role.note("close", sys::close(fd));
        role.meet();
    }
    role.note("as before", open_descriptors() == before);
}

fn count_client(role: &Role) {
    let before = open_descriptors();
    for _ in 0..10 {
        let fd = role.open_warm();
        role.note("end", sys::read(fd, &mut [0]));
        role.note("close", sys::close(fd));
        role.meet();
    }
    role.note("as before", open_descriptors() == before);
}

/// Programs that close 0 and open something rely on getting 0.
fn lowest(role: &Role) {
    let fd = role.open_warm();
    let file = File::open("/dev/null").expect("open");
    role.note("the next number", file.as_raw_fd() == fd + 1);
    role.warm_up(fd);
    let second = sys::dup(fd);
    role.note("and the next", second == fd + 2);
    role.meet();
}
