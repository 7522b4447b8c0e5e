//! A process in which something is not to be had: descriptors, memory, files, system calls, the peer's network. The connection stays plain,
//! or is upgraded all the same; the program notices nothing.

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use tssx_core::reason::Reason;

use crate::harness::{Case, Expect};
use crate::role::{Role, pattern, read_exactly, write_all};
use crate::{filter, sys};

pub(super) const CASES: &[Case] = &[
    Case { name: "no-descriptor-is-free", server: echo_server, client: full_client, expect: Expect::Either },
    Case { name: "no-descriptor-is-free-at-the-server", server: full_server, client: echo_client, expect: Expect::Either },
    Case { name: "no-address-space", server: echo_server, client: narrow_client, expect: Expect::Either },
    Case { name: "no-address-space-at-the-server", server: narrow_server, client: echo_client, expect: Expect::Either },
    Case { name: "no-file-may-grow", server: echo_server, client: fileless_client, expect: Expect::Either },
    Case { name: "no-file-may-grow-at-the-server", server: fileless_server, client: echo_client, expect: Expect::Either },
    Case { name: "no-locked-memory", server: echo_server, client: unlocked_client, expect: Expect::Either },
    Case { name: "no-memfd-by-seccomp", server: echo_server, client: memfdless_client, expect: Expect::Either },
    Case { name: "no-netlink-by-seccomp", server: echo_server, client: deaf_client, expect: Expect::Plain(Reason::PeerUnknown) },
    Case { name: "nothing-but-the-least-by-seccomp", server: echo_server, client: least_client, expect: Expect::Either },
    Case {
        name: "another-network-namespace",
        server: echo_server,
        client: elsewhere_client,
        expect: Expect::PlainForRoot(Reason::PeerUnknown),
    },
    Case {
        name: "no-segment-by-seccomp",
        server: echo_server,
        client: segmentless_client,
        expect: Expect::Plain(Reason::NoMemory),
    },
];

/// Messages back and forth: more than it takes to upgrade, and more than once the time after which it is tried again.
const ROUNDS: usize = 200;

pub(super) fn echo(fd: i32) {
    let mut into = [0; 300];
    for _ in 0..ROUNDS {
        read_exactly(fd, &mut into);
        write_all(fd, &into);
    }
}

pub(super) fn ask(role: &Role, fd: i32) {
    let mut into = [0; 300];
    let right = (0..ROUNDS).all(|round| {
        write_all(fd, &pattern(round, 0, 300));
        read_exactly(fd, &mut into);
        into == *pattern(round, 0, 300)
    });
    role.note("right", right);
}

pub(super) fn echo_server(role: &Role) {
    let fd = role.open();
    echo(fd);
    role.note("end", sys::read(fd, &mut [0]));
}

pub(super) fn echo_client(role: &Role) {
    let fd = role.open();
    ask(role, fd);
    role.note("close", sys::close(fd));
}

pub(super) fn limit(what: Resource, soft: u64) {
    let (_, hard) = getrlimit(what).expect("getrlimit");
    setrlimit(what, soft, hard).expect("a soft limit below the hard one");
}

/// Back to the hard limit: the end of a role needs files and memory.
pub(super) fn all_again(what: Resource) {
    limit(what, getrlimit(what).expect("getrlimit").1);
}

/// No number below the limit is free.
fn no_descriptors(fd: i32) {
    let mut last = fd;
    while let Ok(next) = u64::try_from(sys::dup(fd)) {
        last = last.max(next as i32);
        if next > 40 {
            break;
        }
    }
    limit(Resource::RLIMIT_NOFILE, last.cast_unsigned().into());
}

fn full_client(role: &Role) {
    let fd = role.open();
    no_descriptors(fd);
    ask(role, fd);
    role.note("dup", sys::fcntl(fd, libc::F_DUPFD, 0).is_err());
    all_again(Resource::RLIMIT_NOFILE);
}

fn full_server(role: &Role) {
    let fd = role.open();
    no_descriptors(fd);
    echo(fd);
    role.note("end", sys::read(fd, &mut [0]));
    role.note("dup", sys::fcntl(fd, libc::F_DUPFD, 0).is_err());
    all_again(Resource::RLIMIT_NOFILE);
}

/// Nothing can be mapped any more.
fn no_space() {
    let status = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: u64 = status.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    limit(Resource::RLIMIT_AS, pages * 4096 + 65_536);
}

fn narrow_client(role: &Role) {
    let fd = role.open();
    no_space();
    ask(role, fd);
    all_again(Resource::RLIMIT_AS);
}

fn narrow_server(role: &Role) {
    let fd = role.open();
    no_space();
    echo(fd);
    role.note("end", sys::read(fd, &mut [0]));
    all_again(Resource::RLIMIT_AS);
}

/// Whoever makes a file longer than that is killed by SIGXFSZ, setrlimit(2).
fn no_files() {
    limit(Resource::RLIMIT_FSIZE, 0);
}

fn fileless_client(role: &Role) {
    no_files();
    let fd = role.open();
    ask(role, fd);
    all_again(Resource::RLIMIT_FSIZE);
}

fn fileless_server(role: &Role) {
    no_files();
    let fd = role.open();
    echo(fd);
    role.note("end", sys::read(fd, &mut [0]));
    all_again(Resource::RLIMIT_FSIZE);
}

fn unlocked_client(role: &Role) {
    limit(Resource::RLIMIT_MEMLOCK, 0);
    echo_client(role);
}

fn memfdless_client(role: &Role) {
    filter::refuse(&[libc::SYS_memfd_create]);
    echo_client(role);
}

/// Once the connection is counted.
fn segmentless_client(role: &Role) {
    let fd = role.open();
    filter::refuse(&[libc::SYS_memfd_create]);
    ask(role, fd);
    role.note("close", sys::close(fd));
}

fn deaf_client(role: &Role) {
    let fd = role.open();
    filter::refuse(&[libc::SYS_socket]);
    ask(role, fd);
    role.note("close", sys::close(fd));
}

/// What the library asks of the kernel besides the program's own calls.
fn least_client(role: &Role) {
    let fd = role.open();
    filter::refuse(&[
        libc::SYS_memfd_create,
        libc::SYS_socket,
        libc::SYS_ftruncate,
        libc::SYS_madvise,
        libc::SYS_process_vm_readv,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_ioctl,
        libc::SYS_ppoll,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
    ]);
    ask(role, fd);
    role.note("close", sys::close(fd));
}

fn elsewhere_client(role: &Role) {
    // Where we may not, the case is one more of the ordinary kind; the tests run as root in CI.
    if nix::unistd::geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    }
    echo_client(role);
}
