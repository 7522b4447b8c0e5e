//! A peer that is stopped (SIGSTOP): whoever waits for it sleeps, in every kind of wait, and goes on when it does.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] =
    &[Case { name: "a-stopped-peer-is-waited-for-asleep", server: answering, client: waiting, expect: Expect::Accelerated }];

/// More than any buffer holds.
const LARGE: usize = 2_000_000;
/// How long the peer stays stopped, and the most CPU time that may pass for the one who waits: far from either, never or always.
const STOPPED: Duration = Duration::from_millis(150);
const ASLEEP_TICKS: u64 = 5;

#[derive(Clone, Copy, Debug)]
enum Wait {
    Read,
    Poll,
    Select,
    Epoll,
    Write,
}

const WAITS: [Wait; 5] = [Wait::Read, Wait::Poll, Wait::Select, Wait::Epoll, Wait::Write];

fn answering(role: &Role) {
    let fd = role.open_warm();
    let mut large = vec![0; LARGE];
    let mut kind = [0];
    while sys::read(fd, &mut kind) == Ok(1) {
        if kind == *b"w" {
            read_exactly(fd, &mut large);
        }
        write_all(fd, b"answer");
    }
    role.say("the client left");
}

fn wait(fd: i32, how: Wait) -> [u8; 6] {
    write_all(fd, if matches!(how, Wait::Write) { b"w" } else { b"r" });
    match how {
        Wait::Read => {}
        Wait::Poll => assert_eq!(sys::poll(fd, libc::POLLIN, SOON), Ok(libc::POLLIN)),
        Wait::Select => assert_eq!(sys::select_read(fd, SOON), Ok(true)),
        Wait::Epoll => {
            let epoll = sys::epoll_create();
            assert_eq!(sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN), Ok(0));
            assert_eq!(sys::epoll_wait(epoll, 1, SOON).len(), 1);
            assert_eq!(sys::close(epoll), Ok(0));
        }
        Wait::Write => write_all(fd, &vec![0; LARGE]),
    }
    let mut answer = [0; 6];
    read_exactly(fd, &mut answer);
    answer
}

/// Ticks of CPU time that this process has used: fields 14 and 15 of proc(5)'s `/proc/PID/stat`, of which the second is the name in brackets.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("proc");
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

fn waiting(role: &Role) {
    let fd = role.open_warm();
    let peer = sys::peer(fd).pid;
    for how in WAITS {
        kill(Pid::from_raw(peer), Signal::SIGSTOP).expect("stop the peer");
        while !is_stopped(peer) {
            std::thread::yield_now();
        }
        let before = cpu_ticks();
        let answer = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(fd, how));
            std::thread::sleep(STOPPED);
            role.note("waits asleep", (how, !waiter.is_finished() && cpu_ticks() - before < ASLEEP_TICKS));
            kill(Pid::from_raw(peer), Signal::SIGCONT).expect("let the peer go on");
            waiter.join().expect("the waiter")
        });
        role.note("answer", answer);
    }
    role.note("close", sys::close(fd));
}
