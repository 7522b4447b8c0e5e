//! fork: both processes may use the connection, and it ends when the last of them closes it.

use std::time::Duration;

use crate::harness::{Case, Expect};
use crate::ledger;
use crate::role::{BRIEFLY, Role, pattern, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "child-serves-what-the-parent-accepted",
        server: prefork_server,
        client: prefork_client,
        expect: Expect::Accelerated,
    },
    Case { name: "fork-before-any-traffic", server: early_server, client: early_client, expect: Expect::Accelerated },
    Case { name: "parent-and-child-take-turns", server: turns_server, client: turns_client, expect: Expect::Accelerated },
    Case {
        name: "parents-close-leaves-the-child-connected",
        server: leave_server,
        client: leave_client,
        expect: Expect::Accelerated,
    },
    Case {
        name: "a-child-is-killed-while-it-waits-for-room",
        server: killed_server,
        client: killed_client,
        expect: Expect::Accelerated,
    },
    Case { name: "killed-children-leave-no-connection-open", server: losing_server, client: losing_client, expect: Expect::Either },
    Case { name: "forking-client", server: echo_server, client: forking_client, expect: Expect::Accelerated },
];

fn echo(fd: i32, rounds: usize) {
    let mut into = [0; 64];
    for _ in 0..rounds {
        read_exactly(fd, &mut into);
        write_all(fd, &into);
    }
}

fn ask(fd: i32, rounds: usize) {
    let mut into = [0; 64];
    for round in 0..rounds {
        let bytes = pattern(round, 0, 64);
        write_all(fd, &bytes);
        read_exactly(fd, &mut into);
        assert_eq!(bytes, into, "round {round}");
    }
}

fn prefork_server(role: &Role) {
    let fd = role.open_warm();
    let child = sys::in_child(|| {
        echo(fd, 500);
        assert_eq!(sys::close(fd), Ok(0));
    });
    role.note("close in the parent", sys::close(fd));
    role.note("child", child.wait());
}

fn prefork_client(role: &Role) {
    let fd = role.open_warm();
    ask(fd, 500);
    role.note("end", sys::read(fd, &mut [0]));
}

fn early_server(role: &Role) {
    let fd = role.open();
    let child = sys::in_child(|| {
        role.warm_up(fd);
        echo(fd, 200);
    });
    role.note("close in the parent", sys::close(fd));
    role.note("child", child.wait());
}

fn early_client(role: &Role) {
    let fd = role.open();
    role.warm_up(fd);
    ask(fd, 200);
    role.note("end", sys::read(fd, &mut [0]));
}

fn turns_server(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..3 {
        let child = sys::in_child(|| echo(fd, 50));
        role.note("child", child.wait());
        echo(fd, 50);
    }
    role.note("close", sys::close(fd));
}

fn turns_client(role: &Role) {
    let fd = role.open_warm();
    ask(fd, 300);
    role.note("end", sys::read(fd, &mut [0]));
}

fn leave_server(role: &Role) {
    let fd = role.open_warm();
    let child = sys::in_child(|| {
        std::thread::sleep(Duration::from_millis(60));
        write_all(fd, b"from the child");
    });
    role.note("close in the parent", sys::close(fd));
    role.meet();
    role.note("child", child.wait());
    role.meet();
}

fn leave_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 14];
    role.note("no end yet", sys::recv(fd, &mut into, libc::MSG_DONTWAIT));
    read_exactly(fd, &mut into);
    role.note("read", into);
    role.note("end", sys::read(fd, &mut into));
    role.meet();
}

fn echo_server(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 64];
    while sys::read(fd, &mut into[..1]) == Ok(1) {
        read_exactly(fd, &mut into[1..]);
        write_all(fd, &into);
    }
    role.say("the last client left");
}

fn forking_client(role: &Role) {
    let fd = role.open_warm();
    ask(fd, 20);
    let child = sys::in_child(|| ask(fd, 100));
    role.note("child", child.wait());
    ask(fd, 100);
    let child = sys::in_child(|| {
        std::thread::sleep(Duration::from_millis(20));
        ask(fd, 10);
    });
    role.note("close in the parent", sys::close(fd));
    role.note("child", child.wait());
}

/// A child is killed in a write that waits; then the parent does what a ring cannot do.
/// Children that are killed, and what their family's ledger may count as open then: what claims begin to look at, and some more.
const CHILDREN: usize = 560;
const STILL_OPEN: u32 = 420;

/// Some are killed before they can have done anything.
fn losing_server(role: &Role) {
    for round in 0..CHILDREN {
        let fd = role.open();
        let child = sys::in_child(|| {
            let _ = sys::read(fd, &mut [0]);
            std::thread::sleep(BRIEFLY * 100);
        });
        assert_eq!(sys::close(fd), Ok(0));
        if round.is_multiple_of(2) {
            std::thread::yield_now();
        }
        child.kill();
        assert_eq!(child.wait(), "signal 9");
    }
    let open = ledger::open_connections().expect("our own ledger");
    assert!(open < STILL_OPEN, "{open} of {CHILDREN} connections count as open");
    let fd = role.open_warm();
    role.note("close", sys::close(fd));
}

fn losing_client(role: &Role) {
    for _ in 0..CHILDREN {
        let fd = role.open();
        // The child may be dead already, with or without having read.
        let _ = sys::write(fd, b"!");
        let _ = sys::read(fd, &mut [0]);
        assert_eq!(sys::close(fd), Ok(0));
    }
    let fd = role.open_warm();
    role.note("end", sys::read(fd, &mut [0]));
}

fn killed_server(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let child = sys::in_child(|| write_all(fd, &pattern(1, 0, 2_000_000)));
    std::thread::sleep(BRIEFLY);
    child.kill();
    role.note("child", child.wait());
    role.meet();
    role.note("pass a descriptor", sys::send_descriptor(fd, role.listener()));
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut [0]));
}

fn killed_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.meet();
    let (mut came, mut into, mut descriptor) = (Vec::new(), vec![0; 50_000], None);
    while let (Ok(count @ 1..), passed) = sys::recv_descriptor(fd, &mut into) {
        came.extend_from_slice(into.get(..count).unwrap_or_default());
        descriptor = descriptor.or(passed);
    }
    let (last, before) = came.split_last().expect("bytes came");
    role.note("right", *before == *pattern(1, 0, before.len()));
    role.note("enough", before.len() > 100_000);
    role.note("with the descriptor", (*last, descriptor.map(sys::is_socket)));
    role.note("close", sys::close(fd));
}
