//! Many connections in one epoll set: each gets its turn, what else is in the set too, and records are found among many.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, pattern, read_exactly, write_all};
use crate::sys;
use crate::waits::epoll::{ADD, DEL, ET, IN, MOD, OUT};
use crate::waits::{By, control, eventfd, events};

pub(super) const CASES: &[Case] = &[
    Case { name: "crowd-in-a-small-array", server: small_server, client: small_client, expect: Expect::Accelerated },
    Case { name: "crowd-that-falls-silent", server: silent_server, client: silent_client, expect: Expect::Accelerated },
    Case { name: "crowd-beside-others", server: beside_server, client: beside_client, expect: Expect::Accelerated },
    Case { name: "crowd-of-numbers-that-come-back", server: numbers_server, client: numbers_client, expect: Expect::Accelerated },
    Case { name: "crowd-in-two-sets", server: two_sets_server, client: two_sets_client, expect: Expect::Either },
    Case { name: "crowd-for-two-threads", server: threads_server, client: threads_client, expect: Expect::Accelerated },
];

/// More than one chunk of records, and more than fit into any array.
const CROWD: usize = 1200;
/// Bytes of a message.
const MESSAGE: usize = 40;

fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(8192), hard).expect("setrlimit");
}

/// A set of `count` connections, whose data are their numbers in the order of their coming.
fn gather(role: &Role, count: usize, what: i32) -> (i32, Vec<i32>) {
    raise_limit();
    let epoll = sys::epoll_create();
    let all: Vec<i32> = (0..count).map(|_| role.open()).collect();
    for (index, fd) in all.iter().enumerate() {
        sys::set_nonblocking(*fd, true);
        assert_eq!(control(epoll, ADD, *fd, what, index as u64), Ok(0));
    }
    (epoll, all)
}

/// Echoes until `messages` were echoed; how many of each connection.
fn echo(epoll: i32, all: &[i32], most: usize, messages: usize) -> HashMap<u64, usize> {
    let (mut served, mut bytes, mut into) = (HashMap::new(), 0, [0; MESSAGE]);
    while bytes < messages * MESSAGE {
        let ready = events(By::Wait, epoll, most, SOON).expect("events");
        assert!(!ready.is_empty(), "{bytes} of {} bytes came", messages * MESSAGE);
        let distinct: BTreeSet<u64> = ready.iter().map(|(index, _)| *index).collect();
        assert_eq!(distinct.len(), ready.len(), "one event for each");
        for (index, _) in ready {
            let fd = all[index as usize];
            while let Ok(count @ 1..) = sys::read(fd, &mut into) {
                write_all(fd, &into[..count]);
                *served.entry(index).or_default() += count;
                bytes += count;
            }
        }
    }
    served
}

/// Writes to each and then reads from each.
fn ask(descriptors: &[i32], seed: usize) {
    for (index, fd) in descriptors.iter().enumerate() {
        write_all(*fd, &pattern(index + seed, 0, MESSAGE));
    }
    let mut into = [0; MESSAGE];
    for (index, fd) in descriptors.iter().enumerate() {
        read_exactly(*fd, &mut into);
        assert!(into.as_slice() == pattern(index + seed, 0, MESSAGE), "connection {index}, {seed}");
    }
}

fn join(role: &Role, count: usize) -> Vec<i32> {
    raise_limit();
    (0..count).map(|_| role.open()).collect()
}

const ROUNDS: usize = 20;

fn small_server(role: &Role) {
    let (epoll, all) = gather(role, CROWD, IN);
    let served = echo(epoll, &all, 16, CROWD * ROUNDS);
    role.note("each was served", (served.len(), served.values().all(|bytes| *bytes == ROUNDS * MESSAGE)));
    role.meet();
}

fn small_client(role: &Role) {
    let all = join(role, CROWD);
    (0..ROUNDS).for_each(|round| ask(&all, round));
    role.meet();
}

const FEW: usize = 3;
const FEW_ROUNDS: usize = 800;

/// All are busy, then a few for so long that the others are left to the kernel, then all again.
fn silent_server(role: &Role) {
    let (epoll, all) = gather(role, 300, IN);
    for (what, messages) in [("all", 300 * ROUNDS), ("few", FEW * FEW_ROUNDS), ("all again", 300 * ROUNDS)] {
        role.note(what, echo(epoll, &all, 64, messages).len());
        role.meet();
    }
    let after = events(By::Wait, epoll, 8, Duration::ZERO);
    role.note("nothing is left", after);
    role.meet();
}

fn silent_client(role: &Role) {
    let all = join(role, 300);
    for (some, rounds) in [(&all[..], ROUNDS), (&all[100..100 + FEW], FEW_ROUNDS), (&all[..], ROUNDS)] {
        (0..rounds).for_each(|round| ask(some, round));
        role.meet();
    }
    role.meet();
}

/// While a crowd is busy, an eventfd and a listener are told of, and a stream that has been silent.
fn beside_server(role: &Role) {
    let (epoll, all) = gather(role, 100, IN);
    echo(epoll, &all, 8, 100 * ROUNDS);
    assert_eq!(control(epoll, ADD, eventfd(1), IN, 1000), Ok(0));
    assert_eq!(control(epoll, ADD, role.listener(), IN, 1001), Ok(0));
    role.meet();
    let (mut seen, mut waits, mut into) = (BTreeSet::new(), 0, [0; MESSAGE]);
    while seen.len() < 102 {
        waits += 1;
        assert!(waits < 100_000, "{} were seen", seen.len());
        for (index, _) in events(By::Wait, epoll, 8, SOON).expect("events") {
            seen.insert(index);
            if let Some(fd) = all.get(index as usize) {
                let _ = sys::read(*fd, &mut into[..4]);
            }
        }
    }
    role.note("all of them", seen.len());
    role.meet();
}

fn beside_client(role: &Role) {
    let all = join(role, 100);
    (0..ROUNDS).for_each(|round| ask(&all, round));
    role.meet();
    let late = role.open();
    for fd in &all {
        write_all(*fd, &[7; 60_000]);
    }
    role.meet();
    assert_eq!(sys::close(late), Ok(0));
}

/// Every third connection is closed and another accepted in its place, again and again; every fifth is changed.
fn numbers_server(role: &Role) {
    let (epoll, mut all) = gather(role, 300, IN);
    for round in 0..4 {
        role.note("messages", echo(epoll, &all, 32, 300 * ROUNDS).len());
        role.meet();
        for fd in all.iter().skip(round % 3).step_by(3) {
            assert_eq!(sys::close(*fd), Ok(0));
        }
        for (index, fd) in all.iter_mut().enumerate().skip(round % 3).step_by(3) {
            *fd = role.open();
            sys::set_nonblocking(*fd, true);
            assert_eq!(control(epoll, ADD, *fd, IN, index as u64), Ok(0));
        }
        for (index, fd) in all.iter().enumerate().step_by(5) {
            assert_eq!(control(epoll, MOD, *fd, IN | if round % 2 == 0 { ET } else { 0 }, index as u64), Ok(0));
        }
        role.note("unknown", control(epoll, DEL, 9999, 0, 0));
    }
    role.note("messages", echo(epoll, &all, 32, 300 * ROUNDS).len());
    role.meet();
}

fn numbers_client(role: &Role) {
    let mut all = join(role, 300);
    for round in 0..4 {
        (0..ROUNDS).for_each(|message| ask(&all, round * 100 + message));
        role.meet();
        for fd in all.iter_mut().skip(round % 3).step_by(3) {
            assert_eq!(sys::close(*fd), Ok(0));
            *fd = role.open();
        }
    }
    (0..ROUNDS).for_each(|message| ask(&all, message));
    role.meet();
}

/// Waits until all `count` were told of, reading nothing.
fn told(epoll: i32, count: usize) -> usize {
    let mut seen = BTreeSet::new();
    for _ in 0..1000 {
        seen.extend(events(By::Wait, epoll, 16, SOON).expect("events").iter().map(|(index, _)| *index));
        if seen.len() == count {
            break;
        }
    }
    seen.len()
}

fn two_sets_server(role: &Role) {
    let (one, all) = gather(role, 150, IN);
    let two = sys::epoll_create();
    for (index, fd) in all.iter().enumerate() {
        assert_eq!(control(two, ADD, *fd, IN | if index % 2 == 0 { OUT } else { 0 }, index as u64), Ok(0));
    }
    for round in 0..ROUNDS {
        role.meet();
        role.meet();
        role.note("told", (told(one, 150), told(two, 150)));
        for fd in &all {
            assert_eq!(sys::read(*fd, &mut [0; MESSAGE]), Ok(MESSAGE));
            write_all(*fd, &[round as u8]);
        }
        role.note("quiet", events(By::Wait, one, 16, Duration::ZERO));
        role.note("for output", told(two, 75));
    }
    role.meet();
}

fn two_sets_client(role: &Role) {
    let all = join(role, 150);
    for round in 0..ROUNDS {
        role.meet();
        all.iter().for_each(|fd| write_all(*fd, &pattern(round, 0, MESSAGE)));
        role.meet();
        all.iter().for_each(|fd| assert_eq!(sys::read(*fd, &mut [0]), Ok(1)));
    }
    role.meet();
}

/// Two threads serve one edge-triggered crowd; each stream is served to the end, whoever is told of it.
fn threads_server(role: &Role) {
    let (epoll, all) = gather(role, 200, IN | ET);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let serve = || {
        use std::sync::atomic::Ordering::SeqCst;
        let mut into = [0; MESSAGE];
        while done.load(SeqCst) < 200 * ROUNDS * MESSAGE {
            for (index, _) in events(By::Wait, epoll, 16, Duration::from_millis(20)).expect("events") {
                let fd = all[index as usize];
                while let Ok(count @ 1..) = sys::read(fd, &mut into) {
                    write_all(fd, &into[..count]);
                    done.fetch_add(count, SeqCst);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(serve);
        serve();
    });
    role.note("bytes", done.into_inner());
    role.meet();
}

/// Equal bytes, so that threads which take parts of a message in turn do not show.
fn threads_client(role: &Role) {
    let all = join(role, 200);
    let mut into = [0; MESSAGE];
    for round in 0..ROUNDS {
        all.iter().for_each(|fd| write_all(*fd, &[round as u8; MESSAGE]));
        for fd in &all {
            read_exactly(*fd, &mut into);
            assert_eq!(into, [round as u8; MESSAGE]);
        }
    }
    role.meet();
}
