//! A process becomes another program (exec) and goes on with its connection, which had been accelerated: nothing is lost or doubled.
//!
//! The other program is this one again, with `--carry-on` and what to do.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::harness::{Case, Expect};
use crate::role::{BRIEFLY, Role, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "a-chain-of-images-reads-on", server: stream_server, client: reading_client, expect: Expect::Accelerated },
    Case { name: "a-chain-of-images-writes-on", server: collecting_server, client: writing_client, expect: Expect::Accelerated },
    Case { name: "an-image-without-the-library-reads-on", server: stream_server, client: bare_client, expect: Expect::Accelerated },
    Case { name: "several-connections-cross-an-exec", server: several_server, client: several_client, expect: Expect::Accelerated },
    Case {
        name: "several-connections-in-another-order",
        server: reversed_server,
        client: reversed_client,
        expect: Expect::Accelerated,
    },
    Case { name: "a-helper-uses-what-it-inherited", server: helper_server, client: helper_client, expect: Expect::Accelerated },
    Case {
        name: "a-helper-without-the-library-too",
        server: bare_helper_server,
        client: helper_client,
        expect: Expect::Accelerated,
    },
    Case { name: "a-helper-that-does-not-use-it", server: idle_helper_server, client: busy_client, expect: Expect::Accelerated },
    Case { name: "close-on-exec-ends-the-connection", server: ended_server, client: ending_client, expect: Expect::Accelerated },
    Case { name: "an-exec-that-fails", server: failing_server, client: failing_client, expect: Expect::Accelerated },
];

/// Images of a chain that reads, and of one that writes.
const READERS: usize = 1000;
const WRITERS: usize = 100;
/// Bytes that a chain's images read or write, one by one, at most.
const PIECE: usize = 4000;
/// Bytes of the stream that a chain reads.
const STREAM: usize = READERS * PIECE / 2;
const SEED: usize = 7;

/// What an image goes on with.
struct Place {
    fd: i32,
    /// Bytes that were read or written so far.
    position: usize,
    /// Images that are still to come.
    left: usize,
}

/// Entry of an image: `--carry-on WHAT FD POSITION LEFT`.
pub(crate) fn carry_on(what: &str, numbers: &[String]) {
    let number = |at: usize| numbers.get(at).and_then(|text| text.parse().ok()).expect("a number");
    let place = Place { fd: number(0) as i32, position: number(1), left: number(2) };
    match what {
        "read" => read_on(&place),
        "write" => write_on(&place),
        "several" => several_on(numbers),
        "reversed" => reversed_on(numbers),
        "echo" => echo(place.fd),
        "nothing" => {}
        _ => {
            let known = super::travelling::carry_on(what, numbers) || super::remainders::carry_on(what, numbers);
            assert!(known, "no image is called {what}");
        }
    }
}

pub(super) fn image(what: &str, numbers: &[usize]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.arg("--carry-on").arg(what).args(numbers.iter().map(usize::to_string));
    command
}

/// Becomes the next image of a chain.
fn next(what: &str, place: &Place) {
    let error = image(what, &[place.fd as usize, place.position, place.left]).exec();
    panic!("cannot become the next image: {error}");
}

/// A descriptor of the connection that survives exec, under a new number: several of a chain's images have another one.
fn renumbered(fd: i32) -> i32 {
    let copy = sys::dup(fd);
    assert_eq!(sys::close(fd), Ok(0));
    copy
}

fn inherit(fd: i32) {
    assert_eq!(sys::fcntl(fd, libc::F_SETFD, 0), Ok(0));
}

fn stream_server(role: &Role) {
    let fd = role.open_warm();
    let bytes = pattern(SEED, 0, STREAM);
    let mut sent = 0;
    for length in (1..).map(|round: usize| round * 7919 % 20_000 + 1) {
        let piece = bytes.get(sent..(sent + length).min(STREAM)).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        write_all(fd, piece);
        sent += piece.len();
    }
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    let mut answer = [0; 4];
    read_exactly(fd, &mut answer);
    role.note("answer", answer);
    role.note("end", sys::read(fd, &mut answer));
}

fn reading_client(role: &Role) {
    let fd = role.open_warm();
    inherit(fd);
    next("read", &Place { fd, position: 0, left: READERS });
}

/// The first image has no library any more, and neither has any that follows.
fn bare_client(role: &Role) {
    let fd = role.open_warm();
    let mut first = [0; 1000];
    read_exactly(fd, &mut first);
    inherit(fd);
    let error = image("read", &[fd as usize, first.len(), 20]).env_clear().exec();
    panic!("cannot become the next image: {error}");
}

fn read_on(place: &Place) {
    let length = (place.left * 7919 % PIECE + 1).min(STREAM - place.position);
    let mut into = vec![0; if place.left == 0 { STREAM - place.position } else { length }];
    read_exactly(place.fd, &mut into);
    assert!(into == pattern(SEED, place.position, into.len()), "wrong bytes behind {} with {} left", place.position, place.left);
    if place.left > 0 {
        let fd = if place.left.is_multiple_of(3) { renumbered(place.fd) } else { place.fd };
        return next("read", &Place { fd, position: place.position + into.len(), left: place.left - 1 });
    }
    println!("end: {:?}", sys::read(place.fd, &mut [0]));
    write_all(place.fd, b"done");
}

fn collecting_server(role: &Role) {
    let fd = role.open_warm();
    let mut all = Vec::new();
    let mut into = vec![0; 3000];
    while let Ok(count @ 1..) = sys::read(fd, &mut into) {
        all.extend_from_slice(into.get(..count).unwrap_or_default());
    }
    role.note("came", (all.len(), all == pattern(SEED, 0, all.len())));
}

fn writing_client(role: &Role) {
    let fd = role.open_warm();
    inherit(fd);
    write_all(fd, &pattern(SEED, 0, 1234));
    next("write", &Place { fd, position: 1234, left: WRITERS });
}

fn write_on(place: &Place) {
    let length = place.left * 7919 % PIECE + 1;
    write_all(place.fd, &pattern(SEED, place.position, length));
    if place.left > 0 {
        let fd = if place.left.is_multiple_of(3) { renumbered(place.fd) } else { place.fd };
        next("write", &Place { fd, position: place.position + length, left: place.left - 1 });
    }
}

fn several_server(role: &Role) {
    let all: Vec<i32> = (0..3).map(|_| role.open_warm()).collect();
    for (number, fd) in all.iter().enumerate() {
        write_all(*fd, &pattern(number, 0, 10_000 * (number + 1)));
    }
    role.meet();
    for (number, fd) in all.iter().enumerate() {
        let mut back = vec![0; 5000];
        read_exactly(*fd, &mut back);
        role.note("back", back == pattern(number, 5, 5000));
    }
    for fd in all {
        role.note("end", sys::read(fd, &mut [0]));
    }
}

fn several_client(role: &Role) {
    let all: Vec<i32> = (0..3).map(|_| role.open_warm()).collect();
    role.meet();
    for fd in &all {
        inherit(*fd);
    }
    let mut first = [0; 100];
    read_exactly(all[1], &mut first);
    role.note("before", first == *pattern(1, 0, 100));
    let numbers: Vec<usize> = all.iter().map(|fd| *fd as usize).collect();
    panic!("cannot become the next image: {}", image("several", &numbers).exec());
}

fn several_on(numbers: &[String]) {
    for (number, fd) in numbers.iter().map(|text| text.parse().expect("a number")).enumerate() {
        let from = if number == 1 { 100 } else { 0 };
        let mut into = vec![0; 10_000 * (number + 1) - from];
        read_exactly(fd, &mut into);
        println!("connection {number}: {}", into == pattern(number, from, into.len()));
        write_all(fd, &pattern(number, 5, 5000));
    }
}

/// The peer sleeps on the first of three connections, and the new image begins with what was left unread on the last.
fn reversed_server(role: &Role) {
    let all: Vec<i32> = (0..3).map(|_| role.open_warm()).collect();
    for (number, fd) in all.iter().enumerate() {
        write_all(*fd, &pattern(number, 0, 10_000 * (number + 1)));
    }
    role.meet();
    let mut back = vec![0; 5000];
    read_exactly(all[0], &mut back);
    role.note("back", back == pattern(0, 5, 5000));
    all.iter().for_each(|fd| role.note("shutdown", sys::shutdown(*fd, libc::SHUT_WR)));
    role.note("end", sys::read(all[0], &mut [0]));
}

fn reversed_client(role: &Role) {
    let all: Vec<i32> = (0..3).map(|_| role.open_warm()).collect();
    role.meet();
    all.iter().for_each(|fd| inherit(*fd));
    std::thread::sleep(BRIEFLY);
    let numbers: Vec<usize> = all.iter().map(|fd| *fd as usize).collect();
    panic!("cannot become the next image: {}", image("reversed", &numbers).exec());
}

fn reversed_on(numbers: &[String]) {
    let all: Vec<i32> = numbers.iter().map(|text| text.parse().expect("a number")).collect();
    for (number, fd) in all.iter().enumerate().rev() {
        let mut into = vec![0; 10_000 * (number + 1)];
        read_exactly(*fd, &mut into);
        println!("connection {number}: {}", into == pattern(number, 0, into.len()));
    }
    write_all(all[0], &pattern(0, 5, 5000));
    all.iter().for_each(|fd| println!("end: {:?}", sys::read(*fd, &mut [0])));
}

/// A child that serves the connection under its own high number, while the parent keeps it.
fn helper_server(role: &Role) {
    help(role, false);
}

fn bare_helper_server(role: &Role) {
    help(role, true);
}

fn help(role: &Role, bare: bool) {
    let fd = role.open_warm();
    inherit(fd);
    role.meet();
    let child = sys::in_child(|| {
        let mut helper = image("echo", &[fd as usize, 0, 0]);
        if bare {
            helper.env_clear();
        }
        panic!("cannot become a helper: {}", helper.exec());
    });
    role.note("helper", child.wait());
    role.meet();
    role.warm_up(fd);
}

fn helper_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 700];
    for round in 0..20 {
        write_all(fd, &pattern(round, 0, 700));
        read_exactly(fd, &mut into);
        assert!(into == *pattern(round, 0, 700), "round {round}");
    }
    role.note("write", sys::write(fd, b"."));
    role.meet();
    role.warm_up(fd);
}

/// Echoes while helpers come and go that inherit the connection and leave it alone.
fn idle_helper_server(role: &Role) {
    let fd = role.open_warm();
    inherit(fd);
    role.meet();
    let mut into = [0; 700];
    for round in 0..200 {
        read_exactly(fd, &mut into);
        if round % 50 == 20 {
            let child = sys::in_child(|| panic!("cannot become a helper: {}", image("nothing", &[0, 0, 0]).exec()));
            if round > 100 {
                role.note("helper", child.wait());
            }
        }
        write_all(fd, &into);
    }
    role.meet();
    role.warm_up(fd);
}

fn busy_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 700];
    for round in 0..200 {
        write_all(fd, &pattern(round, 0, 300));
        write_all(fd, &pattern(round, 300, 400));
        read_exactly(fd, &mut into);
        assert!(into == *pattern(round, 0, 700), "round {round}");
    }
    role.meet();
    role.warm_up(fd);
}

/// Echoes until a single dot comes.
fn echo(fd: i32) {
    let mut into = [0; 700];
    while let Ok(count @ 2..) = sys::recv(fd, &mut into, 0) {
        read_exactly(fd, into.get_mut(count..).unwrap_or_default());
        write_all(fd, &into);
    }
}

fn ended_server(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 3000];
    read_exactly(fd, &mut into);
    role.note("right", into == *pattern(SEED, 0, 3000));
    role.note("end", sys::read(fd, &mut into));
}

fn ending_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, &pattern(SEED, 0, 3000));
    panic!("cannot become the next image: {}", image("nothing", &[0, 0, 0]).exec());
}

fn failing_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.warm_up(fd);
}

fn failing_client(role: &Role) {
    let fd = role.open_warm();
    inherit(fd);
    let error = Command::new(role.directory().join("nothing")).exec();
    role.note("exec", error.kind());
    role.meet();
    role.warm_up(fd);
}
