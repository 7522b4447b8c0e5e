//! A connection's own descriptor goes to another process, over another socket, through a queue, or by pidfd_getfd(2): whoever has it carries
//! on, with the library or without.

use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::process::Child;

use super::images::image;
use crate::births::descriptor_of;
use crate::harness::{Case, Expect};
use crate::role::{BRIEFLY, Role, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "a-descriptor-is-sent-away", server: away_server, client: away_client, expect: Expect::Accelerated },
    Case { name: "a-descriptor-is-sent-to-a-bare-process", server: bare_server, client: away_client, expect: Expect::Accelerated },
    Case { name: "a-descriptor-is-sent-before-any-traffic", server: new_server, client: new_client, expect: Expect::Either },
    Case { name: "a-descriptor-is-sent-and-kept", server: kept_server, client: kept_client, expect: Expect::Accelerated },
    Case { name: "a-descriptor-is-sent-there-and-back", server: back_server, client: kept_client, expect: Expect::Accelerated },
    Case { name: "a-descriptor-waits-in-a-queue", server: queue_server, client: queue_client, expect: Expect::Accelerated },
    Case { name: "a-descriptor-is-sent-by-the-client", server: from_server, client: from_client, expect: Expect::Accelerated },
    Case { name: "a-descriptor-comes-from-oneself", server: own_server, client: own_client, expect: Expect::Accelerated },
    Case { name: "a-descriptor-is-taken-before-any-traffic", server: taken_server, client: taken_client, expect: Expect::Either },
    Case { name: "a-thief-writes", server: scribbled_server, client: scribbled_client, expect: Expect::Accelerated },
    Case { name: "a-listener-is-inherited", server: listener_server, client: listener_client, expect: Expect::Either },
];

const ROUNDS: usize = 30;
const QUESTION: usize = 200;

/// A process that gets descriptors over `control`.
struct Helper {
    control: UnixStream,
    process: Child,
}

impl Helper {
    fn start(what: &str, bare: bool) -> Self {
        let (control, theirs) = UnixStream::pair().expect("socketpair");
        assert_eq!(sys::fcntl(theirs.as_raw_fd(), libc::F_SETFD, 0), Ok(0));
        let mut command = image(what, &[theirs.as_raw_fd() as usize, 0, 0]);
        if bare {
            command.env_clear();
        }
        Self { control, process: command.spawn().expect("a helper") }
    }

    fn give(&self, fd: i32) {
        assert_eq!(sys::send_descriptor(self.control.as_raw_fd(), fd), Ok(1));
    }

    fn finish(mut self, role: &Role) {
        let ended = self.process.wait().expect("wait");
        role.note("helper", ended.code());
    }
}

fn take(control: i32) -> i32 {
    let (answer, passed) = sys::recv_descriptor(control, &mut [0]);
    assert_eq!(answer, Ok(1));
    passed.expect("a descriptor came")
}

/// What the images of this file do: `numbers` begins with the descriptor of the control socket, or of a listener.
pub(super) fn carry_on(what: &str, numbers: &[String]) -> bool {
    let first = numbers.first().and_then(|text| text.parse().ok()).unwrap_or(-1);
    match what {
        "serve" => serve_to_the_end(take(first)),
        "serve-some" => answer(take(first), ROUNDS),
        "serve-and-return" => {
            let fd = take(first);
            answer(fd, ROUNDS);
            assert_eq!(sys::send_descriptor(first, fd), Ok(1));
        }
        "ask" => {
            let fd = take(first);
            ask(fd, 0, ROUNDS);
            assert_eq!(sys::shutdown(fd, libc::SHUT_WR), Ok(0));
        }
        "steal" => {
            let number = |at: usize| numbers.get(at).and_then(|text| text.parse().ok()).expect("a number");
            let fd = descriptor_of(number(1), number(2) as i32);
            answer(fd, ROUNDS);
        }
        "scribble" => {
            let number = |at: usize| numbers.get(at).and_then(|text| text.parse().ok()).expect("a number");
            assert_eq!(sys::write(descriptor_of(number(1), number(2) as i32), b"PAST"), Ok(4));
        }
        "accept" => {
            let fd = sys::accept4(first, libc::SOCK_CLOEXEC);
            serve_to_the_end(fd);
        }
        _ => return false,
    }
    true
}

fn answer(fd: i32, rounds: usize) {
    let mut into = [0; QUESTION];
    for _ in 0..rounds {
        read_exactly(fd, &mut into);
        write_all(fd, &into);
    }
}

fn serve_to_the_end(fd: i32) {
    answer(fd, ROUNDS);
    assert_eq!(sys::read(fd, &mut [0]), Ok(0));
    write_all(fd, b"bye");
}

fn ask(fd: i32, from: usize, rounds: usize) {
    let mut into = [0; QUESTION];
    for round in from..from + rounds {
        write_all(fd, &pattern(round, 0, QUESTION));
        read_exactly(fd, &mut into);
        assert!(into == *pattern(round, 0, QUESTION), "round {round}");
    }
}

fn hear_the_end(role: &Role, fd: i32) {
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    let mut into = [0; 3];
    read_exactly(fd, &mut into);
    role.note("last word", into);
    role.note("end", sys::read(fd, &mut into));
}

fn away_server(role: &Role) {
    away(role, false);
}

fn bare_server(role: &Role) {
    away(role, true);
}

fn away(role: &Role, bare: bool) {
    let fd = role.open_warm();
    role.meet();
    let helper = Helper::start("serve", bare);
    helper.give(fd);
    role.note("close", sys::close(fd));
    helper.finish(role);
}

/// The first question waits to be read when the descriptor goes.
fn away_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, &pattern(0, 0, QUESTION));
    role.meet();
    let mut into = [0; QUESTION];
    read_exactly(fd, &mut into);
    role.note("first", into == *pattern(0, 0, QUESTION));
    ask(fd, 1, ROUNDS - 1);
    hear_the_end(role, fd);
}

fn new_server(role: &Role) {
    let fd = role.open();
    let helper = Helper::start("serve", false);
    helper.give(fd);
    role.note("close", sys::close(fd));
    helper.finish(role);
}

fn new_client(role: &Role) {
    let fd = role.open();
    ask(fd, 0, ROUNDS);
    hear_the_end(role, fd);
}

fn kept_server(role: &Role) {
    let fd = role.open_warm();
    for bare in [false, true] {
        let helper = Helper::start("serve-some", bare);
        helper.give(fd);
        helper.finish(role);
        answer(fd, ROUNDS);
    }
    serve_to_the_end(fd);
}

fn kept_client(role: &Role) {
    let fd = role.open_warm();
    ask(fd, 0, 5 * ROUNDS);
    hear_the_end(role, fd);
}

fn back_server(role: &Role) {
    let fd = role.open_warm();
    for bare in [false, true] {
        let helper = Helper::start("serve-and-return", bare);
        helper.give(fd);
        let again = take(helper.control.as_raw_fd());
        role.note("another number", again != fd);
        answer(again, ROUNDS / 2);
        answer(fd, ROUNDS / 2);
        role.note("close", sys::close(again));
        helper.finish(role);
    }
    serve_to_the_end(fd);
}

/// Nobody holds the descriptor but the queue of a socket, and the peer writes.
fn queue_server(role: &Role) {
    let fd = role.open_warm();
    let (one, two) = UnixStream::pair().expect("socketpair");
    role.note("send", sys::send_descriptor(one.as_raw_fd(), fd));
    role.note("close", sys::close(fd));
    role.meet();
    role.meet();
    std::thread::sleep(BRIEFLY);
    let fd = take(two.as_raw_fd());
    let mut into = [0; QUESTION];
    read_exactly(fd, &mut into);
    role.note("came meanwhile", into == *pattern(7, 0, QUESTION));
    serve_to_the_end(fd);
}

fn queue_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("no end", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    write_all(fd, &pattern(7, 0, QUESTION));
    role.meet();
    ask(fd, 0, ROUNDS);
    hear_the_end(role, fd);
}

fn from_server(role: &Role) {
    let fd = role.open_warm();
    answer(fd, ROUNDS);
    role.note("end", sys::read(fd, &mut [0]));
}

fn from_client(role: &Role) {
    let fd = role.open_warm();
    let helper = Helper::start("ask", false);
    helper.give(fd);
    role.note("close", sys::close(fd));
    helper.finish(role);
}

/// Sent to oneself, and taken from oneself: each is one more number for the same connection.
fn own_server(role: &Role) {
    let fd = role.open_warm();
    let taken = descriptor_of(std::process::id(), fd);
    answer(taken, ROUNDS);
    answer(fd, ROUNDS);
    role.note("close", sys::close(fd));
    answer(taken, ROUNDS);
    let (one, two) = UnixStream::pair().expect("socketpair");
    role.note("send", sys::send_descriptor(one.as_raw_fd(), taken));
    let came = take(two.as_raw_fd());
    answer(came, ROUNDS);
    answer(taken, ROUNDS);
    role.note("close", sys::close(taken));
    serve_to_the_end(came);
}

fn own_client(role: &Role) {
    let fd = role.open_warm();
    ask(fd, 0, 6 * ROUNDS);
    hear_the_end(role, fd);
}

/// A process that nobody told takes the descriptor and uses it; then its owner does.
fn taken_server(role: &Role) {
    let fd = role.open();
    let (control, theirs) = UnixStream::pair().expect("socketpair");
    let mut command = image("steal", &[theirs.into_raw_fd() as usize, std::process::id() as usize, fd as usize]);
    let ended = command.env_clear().status().expect("a thief");
    role.note("thief", ended.code());
    answer(fd, ROUNDS);
    drop(control);
    serve_to_the_end(fd);
}

fn taken_client(role: &Role) {
    let fd = role.open();
    ask(fd, 0, 3 * ROUNDS);
    hear_the_end(role, fd);
}

/// A process that nobody told writes in mid-stream. The kernel puts its bytes somewhere between ours; a ring cannot, and must not pass over
/// them in silence.
fn scribbled_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, &pattern(1, 0, QUESTION));
    let ended = image("scribble", &[0, std::process::id() as usize, fd as usize]).env_clear().status().expect("a thief");
    role.note("thief", ended.code());
    let _ = sys::send(fd, &pattern(1, QUESTION, QUESTION), libc::MSG_NOSIGNAL);
    role.meet();
    role.note("close", sys::close(fd));
}

fn scribbled_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    let (mut came, mut into) = (Vec::new(), [0; 1000]);
    let last = loop {
        match sys::read(fd, &mut into) {
            Ok(count @ 1..) => came.extend_from_slice(into.get(..count).unwrap_or_default()),
            last => break last,
        }
    };
    let whole = came == [&pattern(1, 0, QUESTION)[..], b"PAST", &pattern(1, QUESTION, QUESTION)].concat();
    role.note("whole, or known to be broken", whole || last == Err("ECONNRESET"));
}

/// As systemd starts a server: it is given the socket that listens.
fn listener_server(role: &Role) {
    let listener = sys::dup(role.listener());
    assert_eq!(sys::fcntl(listener, libc::F_SETFD, 0), Ok(0));
    for bare in [false, true] {
        let mut command = image("accept", &[listener as usize, 0, 0]);
        if bare {
            command.env_clear();
        }
        role.note("server", command.status().expect("a server").code());
    }
}

fn listener_client(role: &Role) {
    for _ in 0..2 {
        let fd = role.open();
        ask(fd, 0, ROUNDS);
        hear_the_end(role, fd);
        role.note("close", sys::close(fd));
    }
}
