//! A process becomes another program when the peer can send nothing back: what lies in the ring goes along.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::images::image;
use crate::harness::{Case, Expect};
use crate::role::{BRIEFLY, Role, pattern, read_exactly, write_all};
use crate::{filter, rare, sys};

pub(super) const CASES: &[Case] = &[
    Case { name: "the-peer-has-shut-down", server: shutting, client: becoming, expect: Expect::Accelerated },
    Case { name: "the-peer-is-killed", server: killed_server, client: killed_client, expect: Expect::Accelerated },
    Case {
        name: "the-peer-has-shut-down-and-ppoll-is-forbidden",
        server: shutting,
        client: ppollless,
        expect: Expect::Accelerated,
    },
    Case {
        name: "the-peer-is-killed-and-ppoll-is-forbidden",
        server: killed_server,
        client: ppollless_of_killed,
        expect: Expect::Accelerated,
    },
    Case { name: "the-peer-has-gone-on-past-the-ring", server: past_server, client: past_client, expect: Expect::Accelerated },
    Case { name: "the-server-becomes-another-program", server: becoming, client: shutting, expect: Expect::Accelerated },
    Case { name: "an-exec-that-fails-keeps-what-is-left", server: shutting, client: failing_client, expect: Expect::Accelerated },
    Case { name: "a-child-becomes-another-program", server: shutting, client: child_client, expect: Expect::Accelerated },
];

/// Bytes that are unread when the peer is done, and images that read them.
const LEFT: usize = 30_000;
const IMAGES: usize = 10;

/// `--carry-on`: "rest FD POSITION LEFT" reads a piece, as the last image all; "both FD FD" reads by two numbers of one connection.
pub(super) fn carry_on(what: &str, numbers: &[String]) -> bool {
    let number = |at: usize| numbers.get(at).and_then(|text| text.parse::<usize>().ok()).expect("a number");
    match what {
        "rest" => rest(number(0) as i32, number(1), number(2)),
        "two-numbers" => {
            let (first, second) = (number(0) as i32, number(1) as i32);
            let mut into = vec![0; LEFT / 2];
            read_exactly(second, &mut into);
            println!("by one number: {}", into == pattern(5, 0, LEFT / 2));
            assert_eq!(sys::close(second), Ok(0));
            rest(first, LEFT / 2, 0);
        }
        "past" => past(number(0) as i32),
        _ => return false,
    }
    true
}

fn rest(fd: i32, position: usize, left: usize) {
    let mut into = vec![0; if left == 0 { LEFT - position } else { 1234 }];
    read_exactly(fd, &mut into);
    assert!(into == pattern(5, position, into.len()), "wrong bytes behind {position}");
    let position = position + into.len();
    if left > 0 {
        panic!("cannot become the next image: {}", image("rest", &[fd as usize, position, left - 1]).exec());
    }
    println!("up to {position}, and the end: {:?}", sys::read(fd, &mut [0]));
    println!("write: {:?}", sys::send(fd, b"done", libc::MSG_NOSIGNAL));
}

fn inherit(fd: i32) {
    assert_eq!(sys::fcntl(fd, libc::F_SETFD, 0), Ok(0));
}

fn shutting(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, &pattern(5, 0, LEFT));
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.meet();
    let mut into = [0; 4];
    read_exactly(fd, &mut into);
    role.note("answer", into);
    role.note("end", sys::read(fd, &mut into));
}

fn becoming(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    inherit(fd);
    panic!("cannot become the next image: {}", image("rest", &[fd as usize, 0, IMAGES]).exec());
}

/// A filter stays with the images that come.
fn ppollless(role: &Role) {
    filter::refuse(&[libc::SYS_ppoll]);
    becoming(role);
}

fn ppollless_of_killed(role: &Role) {
    filter::refuse(&[libc::SYS_ppoll]);
    killed_client(role);
}

fn failing_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    inherit(fd);
    for _ in 0..3 {
        role.note("exec", Command::new(role.directory().join("nothing")).exec().kind());
    }
    rest(fd, 0, 0);
}

/// A child reads a part and becomes what reads the rest, under two numbers; its parent has the connection too and does not use it.
fn child_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    inherit(fd);
    let child = sys::in_child(|| {
        let copy = sys::dup(fd);
        panic!("cannot become the next image: {}", image("two-numbers", &[fd as usize, copy as usize, 0]).exec());
    });
    role.note("child", child.wait());
    role.note("nothing is left", sys::read(fd, &mut [0]));
}

fn killed_server(role: &Role) {
    let fd = role.open_warm();
    let child = sys::in_child(|| {
        role.meet();
        write_all(fd, &pattern(5, 0, LEFT));
        role.meet();
        loop {
            std::thread::sleep(BRIEFLY);
        }
    });
    role.note("close in the parent", sys::close(fd));
    std::thread::sleep(10 * BRIEFLY);
    child.kill();
    role.note("child", child.wait());
    role.meet();
}

fn killed_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    role.meet();
    inherit(fd);
    panic!("cannot become the next image: {}", image("rest", &[fd as usize, 0, IMAGES]).exec());
}

/// The ring ends for what libc prints, and what follows lies in the kernel's queue.
fn past_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let all = pattern(5, 0, LEFT);
    write_all(fd, &all[..LEFT - 20]);
    let last = String::from_utf8(all[LEFT - 20..].iter().map(|byte| b'a' + byte % 26).collect()).expect("letters");
    role.note("print", rare::print(fd, &last, 7));
    role.meet();
    let mut into = [0; 4];
    read_exactly(fd, &mut into);
    role.note("answer", into);
}

fn past_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    inherit(fd);
    panic!("cannot become the next image: {}", image("past", &[fd as usize, 0, 0]).exec());
}

/// What `past_client` becomes.
fn past(fd: i32) {
    let mut into = vec![0; LEFT - 20];
    read_exactly(fd, &mut into);
    println!("from the ring: {}", into == pattern(5, 0, LEFT - 20));
    let mut line = [0; 23];
    read_exactly(fd, &mut line);
    println!("behind it: {}", String::from_utf8_lossy(&line));
    write_all(fd, b"done");
}
