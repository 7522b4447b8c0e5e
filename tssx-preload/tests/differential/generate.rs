//! Makes programs, one step at a time while they are played plain, so that each step is chosen knowing what came of the last.
//!
//! Each program has a mood: some kinds of operation are likely in it and some do not occur, so that rare ones meet each
//! other (swarm testing). Most fields are sensible and some are not.

use fastrand::Rng;

use crate::play::Source;
use crate::program::{Op, Setup, Step};
use crate::slots::End;
use crate::state::{Class, State, What};
use crate::words::{
    By, Call, Change, Copying, Events, Flags, Handle, How, Millis, Parts, Place, Question, Side, Size, Switch, THREADS, Wait,
    Watches, Worker,
};

/// Kinds of operation, with how often each is chosen.
const KINDS: [(Kind, u32); 23] = [
    (Kind::Receive, 60),
    (Kind::Transmit, 60),
    (Kind::Vectors, 20),
    (Kind::Messages, 14),
    (Kind::Multiples, 5),
    (Kind::Shutdown, 4),
    (Kind::Close, 3),
    (Kind::Copy, 7),
    (Kind::Nonblock, 6),
    (Kind::Timeouts, 2),
    (Kind::LowMark, 2),
    (Kind::SendBuffer, 1),
    (Kind::Ask, 14),
    (Kind::Await, 20),
    (Kind::Epoll, 24),
    (Kind::Descriptors, 3),
    (Kind::Credentials, 2),
    (Kind::Foreign, 5),
    (Kind::Bulk, 6),
    (Kind::OutOfBand, 2),
    (Kind::Faults, 5),
    (Kind::Pipe, 4),
    (Kind::Child, 4),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Receive,
    Transmit,
    Vectors,
    Messages,
    Multiples,
    Shutdown,
    Close,
    Copy,
    Nonblock,
    Timeouts,
    LowMark,
    SendBuffer,
    Ask,
    Await,
    Epoll,
    Descriptors,
    Credentials,
    Foreign,
    Bulk,
    OutOfBand,
    Faults,
    Pipe,
    Child,
}

/// Makes the steps of one program.
pub(crate) struct Generator {
    pub(crate) rng: Rng,
    weights: [u32; KINDS.len()],
    left: u32,
    last: Vec<Step>,
    small: bool,
}

impl Generator {
    /// A program's setup and the source of its steps.
    pub(crate) fn new(seed: u64) -> (Setup, Self) {
        let mut rng = Rng::with_seed(seed);
        let warm = match rng.u32(0..10) {
            0..3 => rng.u32(0..4),
            3..6 => rng.u32(2..12),
            _ => rng.u32(8..30),
        };
        let setup = Setup { connections: if rng.u32(0..6) == 0 { 2 } else { 1 }, warm };
        let weights = KINDS.map(|(_, weight)| weight * [0, 1, 1, 1, 4][rng.usize(0..5)]);
        let left = if rng.u32(0..8) == 0 { rng.u32(20..60) } else { rng.u32(3..22) };
        let small = rng.bool();
        let last = last_steps(&mut rng, setup);
        (setup, Self { rng, weights, left, last, small })
    }

    pub(crate) fn chance(&mut self, one_in: u32) -> bool {
        self.rng.u32(0..one_in) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(0..from.len())]
    }

    pub(crate) fn size(&mut self) -> u32 {
        let most = if self.small { 12 } else { 300 };
        match self.rng.u32(0..24) {
            0 => 0,
            1..8 => self.rng.u32(1..4),
            8..20 => self.rng.u32(1..most),
            20..23 => self.rng.u32(1..3000),
            _ => self.rng.u32(1..20_000),
        }
    }

    /// A worker that does not wait.
    fn worker(&mut self, state: &State, side: Side) -> Worker {
        let first = if self.rng.u32(0..3) < 2 { 0 } else { self.rng.usize(0..THREADS) };
        let free =
            (0..THREADS).map(|add| Worker { side, thread: (first + add) % THREADS }).find(|worker| !state.is_pending(*worker));
        free.unwrap_or(Worker { side, thread: first })
    }

    fn side(&mut self) -> Side {
        if self.rng.bool() { Side::Server } else { Side::Client }
    }

    /// A place that holds a stream, mostly.
    fn stream(&mut self, state: &State, side: Side) -> Handle {
        if self.chance(60) {
            return self.pick(Handle::ALL);
        }
        let streams: Vec<_> = Handle::ALL.iter().copied().filter(|handle| state.end(side, *handle).is_some()).collect();
        if streams.is_empty() { Handle::A } else { self.pick(&streams) }
    }

    pub(crate) fn spare(&mut self) -> Handle {
        self.pick(&[Handle::X, Handle::Y, Handle::Z])
    }

    fn receive_flags(&mut self) -> Flags {
        let mut flags = 0;
        for (flag, one_in) in [
            (libc::MSG_DONTWAIT, 3),
            (libc::MSG_PEEK, 6),
            (libc::MSG_WAITALL, 8),
            (libc::MSG_TRUNC, 30),
            (libc::MSG_CMSG_CLOEXEC, 20),
            (libc::MSG_NOSIGNAL, 40),
            (libc::MSG_ERRQUEUE, 80),
        ] {
            if self.chance(one_in) {
                flags |= flag;
            }
        }
        Flags(flags)
    }

    pub(crate) fn send_flags(&mut self) -> Flags {
        let mut flags = 0;
        for (flag, one_in) in
            [(libc::MSG_DONTWAIT, 4), (libc::MSG_NOSIGNAL, 3), (libc::MSG_MORE, 12), (libc::MSG_EOR, 25), (libc::MSG_CONFIRM, 40)]
        {
            if self.chance(one_in) {
                flags |= flag;
            }
        }
        Flags(flags)
    }

    pub(crate) fn parts(&mut self) -> Parts {
        let count = match self.rng.u32(0..20) {
            0 => 0,
            1..19 => self.rng.u32(1..6),
            _ => self.rng.u32(6..40),
        };
        Parts((0..count).map(|_| (if self.chance(5) { 0 } else { self.size().min(2000) }, false)).collect())
    }

    fn time(&mut self) -> Millis {
        match self.rng.u32(0..20) {
            0..14 => Millis(0),
            14..19 => Millis(-1),
            _ => Millis(self.rng.i32(1..4)),
        }
    }

    /// What would end a call that waits.
    fn release(&mut self, state: &State) -> Option<(Side, Op)> {
        let waiting: Vec<_> = state.waiting().map(|(worker, pending)| (worker, pending.clone())).collect();
        if waiting.is_empty() {
            return None;
        }
        let (worker, pending) = waiting[self.rng.usize(0..waiting.len())].clone();
        if self.chance(5) {
            let restart = if self.rng.bool() { Switch::On } else { Switch::Off };
            return Some((worker.side, Op::Signal { whom: worker, restart }));
        }
        let class = *pending.classes.get(self.rng.usize(0..pending.classes.len().max(1)))?;
        match class {
            Class::Incoming(end) => {
                let other = end.side.other();
                let on = self.handle_of(state, End { side: other, ..end })?;
                let op = match self.rng.u32(0..12) {
                    0 => Op::Shutdown { on, how: self.pick(&[How::Wr, How::Both]) },
                    1 => Op::Close { on },
                    2 => {
                        return Some((
                            end.side,
                            Op::Shutdown { on: self.handle_of(state, end)?, how: self.pick(&[How::Rd, How::Both]) },
                        ));
                    }
                    _ => self.transmit(on),
                };
                Some((other, op))
            }
            Class::Room(end) => {
                let other = end.side.other();
                let on = self.handle_of(state, End { side: other, ..end })?;
                let op = match self.rng.u32(0..8) {
                    0 => Op::Shutdown { on, how: self.pick(&[How::Rd, How::Both]) },
                    1 => Op::Close { on },
                    _ => Op::Gather { on, size: Size(self.pick(&[100, 4096, 65_536, 300_000])) },
                };
                Some((other, op))
            }
            Class::Pipe(side) => Some((side, transmit_plain(Handle::PipeIn, self.rng.u32(1..5)))),
        }
    }

    fn handle_of(&self, state: &State, end: End) -> Option<Handle> {
        Handle::ALL.iter().copied().find(|handle| state.end(end.side, *handle) == Some(end))
    }

    fn transmit(&mut self, on: Handle) -> Op {
        let by = self.pick(&[Call::Write, Call::Send, Call::Send, Call::Sendto]);
        let flags = if by == Call::Write { Flags(0) } else { self.send_flags() };
        Op::Transmit { on, by, size: Size(self.size()), flags, at: Place::Good }
    }

    fn receive(&mut self, on: Handle) -> Op {
        let by = self.pick(&[Call::Read, Call::Recv, Call::Recv, Call::Recvfrom]);
        let flags = if by == Call::Read { Flags(0) } else { self.receive_flags() };
        Op::Receive { on, by, size: Size(self.size()), flags, at: Place::Good }
    }

    fn step(&mut self, state: &State) -> Step {
        if self.chance(3)
            && let Some((side, op)) = self.release(state)
        {
            return Step { worker: self.worker(state, side), child: false, op };
        }
        let total: u32 = self.weights.iter().sum();
        let mut at = if total == 0 { 0 } else { self.rng.u32(0..total) };
        let chosen = self.weights.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let kind = KINDS[chosen.unwrap_or(0)].0;
        let side = self.side();
        let worker = self.worker(state, side);
        if kind == Kind::Child {
            let inner = self.pick(&[Kind::Receive, Kind::Transmit, Kind::Vectors, Kind::Shutdown, Kind::Ask, Kind::Await]);
            return Step { worker, child: true, op: self.op(inner, state, side) };
        }
        Step { worker, child: false, op: self.op(kind, state, side) }
    }

    fn op(&mut self, kind: Kind, state: &State, side: Side) -> Op {
        let on = self.stream(state, side);
        match kind {
            Kind::Receive => {
                // Mostly where there is something.
                let end = state.end(side, on);
                if end.is_some_and(|end| state.incoming(end).bytes() == 0) && self.chance(2) {
                    self.transmit(on)
                } else {
                    self.receive(on)
                }
            }
            Kind::Transmit => self.transmit(on),
            Kind::Vectors => {
                let parts = self.parts();
                if self.rng.bool() { Op::Readv { on, parts } } else { Op::Writev { on, parts } }
            }
            Kind::Messages => self.message(on),
            Kind::Multiples => {
                let (count, size) = (Size(self.rng.u32(1..5)), Size(self.size().min(500)));
                if self.rng.bool() {
                    let wait = if self.chance(2) { libc::MSG_WAITFORONE } else { 0 };
                    Op::Recvmmsg { on, count, size, flags: Flags(self.receive_flags().0 | wait) }
                } else {
                    Op::Sendmmsg { on, count, size, flags: self.send_flags() }
                }
            }
            Kind::Shutdown => Op::Shutdown { on, how: self.pick(&[How::Rd, How::Wr, How::Wr, How::Both, How::Wrong]) },
            Kind::Close => Op::Close { on },
            Kind::Copy => Op::Copy { on, to: self.copy_target(state, side), by: self.pick(Copying::ALL) },
            Kind::Nonblock => Op::Nonblock { on, to: self.pick(&[Switch::On, Switch::On, Switch::Off]), by: self.pick(By::ALL) },
            Kind::Timeouts => {
                let time = Millis(self.pick(&[0, 4, 10_000]));
                if self.rng.bool() { Op::ReceiveTimeout { on, time } } else { Op::SendTimeout { on, time } }
            }
            Kind::LowMark => Op::LowMark { on, size: Size(self.rng.u32(0..20)) },
            Kind::SendBuffer => Op::SendBuffer { on, size: Size(self.pick(&[0, 3000, 20_000, 1_000_000])) },
            Kind::Ask => Op::Ask { on, what: self.question() },
            Kind::Await => Op::Await { by: self.pick(Wait::ALL), set: self.watches(state, side), time: self.time() },
            Kind::Epoll => self.epoll(state, side, on),
            _ => self.rare_op(kind, state, side, on),
        }
    }

    fn copy_target(&mut self, state: &State, side: Side) -> Handle {
        let spare = self.spare();
        if self.chance(8) { self.stream(state, side) } else { spare }
    }

    fn question(&mut self) -> Question {
        if self.chance(2) { self.pick(&[Question::Unread, Question::Unsent, Question::Error]) } else { self.pick(Question::ALL) }
    }

    pub(crate) fn message(&mut self, on: Handle) -> Op {
        let parts = self.parts();
        if self.rng.bool() {
            let room = Size(self.pick(&[0, 0, 16, 20, 24, 64, 256]));
            Op::Recvmsg { on, parts, flags: self.receive_flags(), room, keep: self.spare() }
        } else {
            Op::Sendmsg { on, parts, flags: self.send_flags() }
        }
    }

    fn events(&mut self) -> u32 {
        let events = self.pick(&[
            libc::EPOLLIN,
            libc::EPOLLIN,
            libc::EPOLLOUT,
            libc::EPOLLIN | libc::EPOLLOUT,
            libc::EPOLLIN | libc::EPOLLRDHUP,
            libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP,
            libc::EPOLLRDHUP,
            libc::EPOLLRDNORM | libc::EPOLLWRNORM,
            libc::EPOLLIN | libc::EPOLLPRI,
            0,
        ]);
        events.cast_unsigned()
    }

    fn watches(&mut self, state: &State, side: Side) -> Watches {
        let count = self.pick(&[1, 1, 1, 2, 2, 3]);
        let mut all = Vec::new();
        for _ in 0..count {
            let handle = if self.chance(5) { self.pick(&[Handle::PipeOut, Handle::PipeIn]) } else { self.stream(state, side) };
            if all.iter().all(|(known, _)| *known != handle) {
                all.push((handle, Events(self.events())));
            }
        }
        Watches(all)
    }

    fn epoll(&mut self, state: &State, side: Side, on: Handle) -> Op {
        if state.what(side, Handle::Epoll) == What::Nothing && !self.chance(10) {
            return Op::EpollCreate {};
        }
        if self.chance(2) {
            return Op::EpollWait { time: self.time() };
        }
        let on = if self.chance(6) { Handle::PipeOut } else { on };
        let how = self.pick(&[0, 0, 0, libc::EPOLLET, libc::EPOLLET, libc::EPOLLONESHOT]).cast_unsigned();
        let what = self.pick(&[Change::Add, Change::Add, Change::Add, Change::Mod, Change::Mod, Change::Del]);
        Op::EpollChange { what, on, events: Events(self.events() | how) }
    }
}

pub(crate) fn transmit_plain(on: Handle, size: u32) -> Op {
    Op::Transmit { on, by: Call::Write, size: Size(size), flags: Flags(0), at: Place::Good }
}

/// At the end nothing may be missing: what is left is looked at on both sides, mostly.
fn last_steps(rng: &mut Rng, setup: Setup) -> Vec<Step> {
    let mut last = Vec::new();
    if rng.u32(0..4) > 0 {
        for side in Side::BOTH {
            for on in crate::player::CONNECTIONS.into_iter().take(setup.connections) {
                let worker = Worker { side, thread: rng.usize(0..THREADS) };
                last.push(Step { worker, child: false, op: Op::Ask { on, what: Question::Unread } });
                last.push(Step { worker, child: false, op: Op::Drain { on, size: Size(4096) } });
            }
        }
    }
    last
}

impl Source for Generator {
    fn next(&mut self, state: &State) -> Option<Step> {
        /// Choices before the generator gives up on a step.
        const CHOICES: usize = 40;
        while self.left > 0 {
            self.left -= 1;
            for _ in 0..CHOICES {
                let step = self.step(state);
                if !state.hazard(&step) {
                    return Some(step);
                }
            }
        }
        loop {
            let step = self.last.pop()?;
            if !state.hazard(&step) {
                return Some(step);
            }
        }
    }
}
