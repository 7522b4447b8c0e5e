//! What is known of a program while it is played plain: enough to say which steps would not have one certain answer.
//!
//! Whether a call blocks is not predicted: the coordinator sees it. What must be known is what the kernel leaves open: which of two
//! threads gets the bytes, and how much fits into a socket (which the library may change). [`State::hazard`] rejects such
//! steps (hazard.rs), when a program is generated and when a shorter one is tried.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use crate::board::Board;
use crate::facts::{accounted, direction_of, leaves_ring, never_waits};
use crate::program::{Op, Setup, Step};
use crate::slots::End;
use crate::words::{Copying, Handle, How, Millis, Side, Switch, THREADS, Worker};

/// Ping-pongs after which a connection that can upgrade has done so. An upgrade in the middle gives new room to a full socket.
pub(crate) const SETTLED: u32 = 20;

/// What is at a place of a process' table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Nothing,
    Stream(End),
    Other,
}

/// What the handles of one end have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Description {
    pub nonblocking: bool,
    pub receive_time: Millis,
    pub send_time: Millis,
    pub small_buffer: bool,
    /// SO_RCVLOWAT was set.
    pub low_mark: bool,
    /// Descriptors that refer to it, on both sides.
    pub holders: u32,
    pub epoll: bool,
    /// It is in a set that is told of room by edges.
    pub room_by_edge: bool,
    /// A message has named it, so that it waits for the other end to answer.
    pub passed: bool,
    /// libc has written to it by itself, which is not counted.
    pub printed: bool,
    /// Its receiving side was shut down.
    pub deaf: bool,
}

/// How full one direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// As the messages say.
    Known,
    /// Nothing more fits.
    Full,
    /// It was full and something was taken.
    Unknown,
}

/// One direction of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Direction {
    /// Bytes left of each message, and what the kernel accounts for it.
    pub messages: VecDeque<(u64, u32)>,
    pub fill: Fill,
    /// Urgent bytes were sent: what is received is not all that was sent.
    pub uncounted: bool,
    /// What surely is in it since it was filled, bytes.
    pub sure: u64,
    /// It was filled: how many bytes came before is not certain.
    pub was_filled: bool,
    /// It is back on the kernel's socket: doorbells that the other end takes make room.
    pub left_ring: bool,
    /// One of the messages stands for several.
    pub several: bool,
    sent: u64,
    pub taken: u64,
    pub taken_at_full: u64,
    /// When a set was last told of the room by an edge, or a send was refused since.
    taken_at_edge: Option<u64>,
    /// Whether the other end has looked since then.
    looked: bool,
}

impl Direction {
    pub(crate) fn bytes(&self) -> u64 {
        self.messages.iter().map(|(left, _)| left).sum()
    }

    pub(crate) fn accounted(&self) -> u32 {
        self.messages.iter().map(|(_, size)| size).sum()
    }
}

/// What a waiting call competes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Incoming(End),
    Room(End),
    Pipe(Side),
}

/// A call that waits.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub classes: Vec<Class>,
    pub op: Op,
}

#[derive(Clone, Debug)]
pub(crate) struct State {
    places: [[What; Handle::ALL.len()]; 2],
    ends: [[Description; 2]; 2],
    directions: [[Direction; 2]; 2],
    pub pending: [[Option<Pending>; THREADS]; 2],
    pub epoll_out: [bool; 2],
    /// The connections have had time to upgrade: what is full stays full.
    pub settled: bool,
}

impl State {
    pub(crate) fn new(setup: Setup) -> Self {
        let description = Description {
            nonblocking: false,
            receive_time: Millis(0),
            send_time: Millis(0),
            small_buffer: false,
            low_mark: false,
            holders: 1,
            epoll: false,
            room_by_edge: false,
            passed: false,
            printed: false,
            deaf: false,
        };
        let direction = Direction {
            messages: VecDeque::new(),
            fill: Fill::Known,
            uncounted: false,
            sure: 0,
            was_filled: false,
            left_ring: false,
            several: false,
            sent: 0,
            taken: 0,
            taken_at_full: 0,
            taken_at_edge: None,
            looked: false,
        };
        let mut places = [[What::Nothing; Handle::ALL.len()]; 2];
        for side in Side::BOTH {
            for (connection, handle) in crate::player::CONNECTIONS.into_iter().enumerate().take(setup.connections) {
                places[side.index()][handle.index()] = What::Stream(End { connection, side });
            }
            places[side.index()][Handle::PipeIn.index()] = What::Other;
            places[side.index()][Handle::PipeOut.index()] = What::Other;
        }
        Self {
            places,
            ends: [[description; 2]; 2],
            directions: [[direction.clone(), direction.clone()], [direction.clone(), direction]],
            pending: Default::default(),
            epoll_out: [false; 2],
            settled: setup.warm >= SETTLED,
        }
    }

    pub(crate) fn what(&self, side: Side, handle: Handle) -> What {
        self.places[side.index()][handle.index()]
    }

    pub(crate) fn end(&self, side: Side, handle: Handle) -> Option<End> {
        if let What::Stream(end) = self.what(side, handle) { Some(end) } else { None }
    }

    pub(crate) fn description(&self, end: End) -> &Description {
        &self.ends[end.connection][end.side.index()]
    }

    fn description_mut(&mut self, end: End) -> &mut Description {
        &mut self.ends[end.connection][end.side.index()]
    }

    /// What comes in at `end`.
    pub(crate) fn incoming(&self, end: End) -> &Direction {
        &self.directions[end.connection][end.side.other().index()]
    }

    /// What goes out at `end`.
    pub(crate) fn outgoing(&self, end: End) -> &Direction {
        &self.directions[end.connection][end.side.index()]
    }

    /// Every call that waits.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (Worker, &Pending)> {
        Worker::all().filter_map(|worker| Some((worker, self.pending[worker.side.index()][worker.thread].as_ref()?)))
    }

    pub(crate) fn is_pending(&self, worker: Worker) -> bool {
        self.pending[worker.side.index()][worker.thread].is_some()
    }

    pub(crate) fn class_pending(&self, class: Class) -> bool {
        self.waiting().any(|(_, pending)| pending.classes.contains(&class))
    }

    /// Whether a send at `end` waits for room.
    pub(crate) fn writer_waits(&self, end: End) -> bool {
        self.waiting().any(|(_, pending)| pending.classes.contains(&Class::Room(end)) && direction_of(&pending.op).is_some())
    }

    /// What the step's call would compete for if it waited.
    pub(crate) fn classes(&self, step: &Step) -> Vec<Class> {
        let side = step.worker.side;
        match &step.op {
            Op::Await { set, .. } => {
                let one = |(handle, events): &(Handle, crate::words::Events)| {
                    let reads = events.reads().then(|| self.class(side, *handle, true));
                    let writes = events.writes().then(|| self.class(side, *handle, false));
                    [reads.flatten(), writes.flatten()]
                };
                set.0.iter().flat_map(one).flatten().collect()
            }
            Op::EpollWait { .. } => {
                let ends = End::all().filter(|end| end.side == side && self.description(*end).epoll);
                ends.flat_map(|end| [Class::Incoming(end), Class::Room(end)]).chain([Class::Pipe(side)]).collect()
            }
            op => match direction_of(op) {
                Some((handle, incoming)) => self.class(side, handle, incoming).into_iter().collect(),
                None => Vec::new(),
            },
        }
    }

    fn class(&self, side: Side, handle: Handle, incoming: bool) -> Option<Class> {
        match self.what(side, handle) {
            What::Stream(end) => Some(if incoming { Class::Incoming(end) } else { Class::Room(end) }),
            What::Other => Some(Class::Pipe(side)),
            What::Nothing => None,
        }
    }

    /// Whether the call may wait, and if so whether it ends by itself soon.
    pub(crate) fn wait_of(&self, step: &Step) -> Option<Millis> {
        let forever = |time: Millis| if time.0 == 0 { Millis(-1) } else { time };
        match &step.op {
            Op::Await { time, .. } | Op::EpollWait { time } => (time.0 != 0).then_some(*time),
            op => {
                let (handle, incoming) = direction_of(op)?;
                let end = self.end(step.worker.side, handle)?;
                let description = self.description(end);
                let peer = End { connection: end.connection, side: end.side.other() };
                let fed = matches!(op, Op::Gather { .. }) && self.writer_waits(peer);
                if description.nonblocking || never_waits(op) || fed {
                    return None;
                }
                Some(forever(if incoming { description.receive_time } else { description.send_time }))
            }
        }
    }

    /// Notes what the step did. `answer` is `None` while it waits.
    pub(crate) fn apply(&mut self, step: &Step, answer: Option<&str>, board: &Board) {
        if matches!(step.op, Op::Await { .. } | Op::EpollWait { .. }) || matches!(direction_of(&step.op), Some((_, true))) {
            let others = step.worker.side.other().index();
            for direction in self.directions.iter_mut().map(|connection| &mut connection[others]) {
                direction.looked = true;
                if direction.fill == Fill::Full && direction.left_ring {
                    direction.fill = Fill::Unknown;
                }
            }
        }
        if leaves_ring(&step.op)
            && let Some((on, _)) = direction_of(&step.op)
            && let Some(end) = self.end(step.worker.side, on)
        {
            self.directions[end.connection][end.side.index()].left_ring = true;
        }
        if let Op::PassCredentials { on, .. } = &step.op
            && let Some(end) = self.end(step.worker.side, *on)
        {
            self.directions[end.connection].iter_mut().for_each(|direction| direction.left_ring = true);
        }
        if answer.is_none() {
            let classes = self.classes(step);
            for class in &classes {
                if let Class::Room(end) = class
                    && direction_of(&step.op).is_some()
                {
                    self.fills(*end, &step.op);
                }
            }
            self.pending[step.worker.side.index()][step.worker.thread] = Some(Pending { classes, op: step.op.clone() });
        }
        if let Some(answer) = answer {
            self.note(step, answer, board);
        }
        self.count(board);
    }

    /// Notes that a call that waited is over.
    pub(crate) fn woken(&mut self, worker: Worker, answer: &str, board: &Board) {
        if let Some(pending) = self.pending[worker.side.index()][worker.thread].take() {
            self.note(&Step { worker, child: false, op: pending.op }, answer, board);
        }
        self.count(board);
    }

    fn fills(&mut self, end: End, op: &Op) {
        /// Least number of messages, however small, that a send buffer of usual size holds.
        const MESSAGES: u64 = 250;
        /// Least number of bytes in large ones.
        const SURE: u64 = 40_000;
        let direction = &mut self.directions[end.connection][end.side.index()];
        let already = direction.fill == Fill::Full;
        direction.fill = Fill::Full;
        direction.taken_at_full = direction.taken;
        direction.was_filled = true;
        direction.taken_at_edge = None;
        let sure = match op {
            Op::Fill { size, .. } => SURE.min(u64::from(size.0.max(1)) * MESSAGES),
            _ => SURE,
        };
        direction.sure = if already { direction.sure.min(sure) } else { sure };
    }

    /// Sets of this process have told all that there was to tell.
    fn edges_told(&mut self, side: Side) {
        for end in End::all().filter(|end| end.side == side) {
            let direction = &mut self.directions[end.connection][side.index()];
            direction.taken_at_edge = Some(direction.taken);
            direction.looked = false;
        }
    }

    /// Whether an epoll set at `end` has an edge to tell because the other end has read, or taken doorbells, though there was room all
    /// the time. The kernel tells of each read; a ring only of room that was missed. epoll(7) promises the latter.
    pub(crate) fn has_idle_edge(&self, end: End) -> bool {
        let direction = self.outgoing(end);
        let stirred = |taken| taken != direction.taken || direction.looked;
        self.description(end).room_by_edge && direction.taken_at_edge.is_some_and(stirred)
    }

    /// Whether a call waits for a set that would be told of such a read.
    pub(crate) fn waits_for_idle_edge(&self, end: End) -> bool {
        self.description(end).room_by_edge
            && self.outgoing(end).taken_at_edge.is_some()
            && self.waiting().any(|(worker, pending)| worker.side == end.side && matches!(pending.op, Op::EpollWait { .. }))
    }

    fn note(&mut self, step: &Step, answer: &str, board: &Board) {
        let side = step.worker.side;
        let answer = answer.strip_prefix("child: ").unwrap_or(answer);
        match &step.op {
            Op::Close { on } => self.empty(side, *on),
            Op::Copy { on, to, by } if answer == "made" => {
                let onto = matches!(by, Copying::Dup2 | Copying::Dup3);
                let what = self.what(side, *on);
                if onto {
                    self.empty(side, *to);
                }
                self.fill_place(side, *to, what);
            }
            Op::Recvmsg { keep, .. } if answer.contains(" descriptors") && self.what(side, *keep) == What::Nothing => {
                let what = End::from_code(board.passed.load(Relaxed)).map_or(What::Other, What::Stream);
                self.fill_place(side, *keep, what);
            }
            Op::Pass { what, .. } => {
                if let Some(end) = self.end(side, *what) {
                    self.description_mut(end).passed = true;
                }
                self.note_option(side, &step.op, answer);
            }
            Op::Dprintf { on, .. } => {
                if let Some(end) = self.end(side, *on) {
                    self.description_mut(end).printed = true;
                }
                self.note_option(side, &step.op, answer);
            }
            Op::Shutdown { on, how: How::Rd | How::Both } if answer == "0" => {
                if let Some(end) = self.end(side, *on) {
                    self.description_mut(end).deaf = true;
                }
            }
            Op::EpollWait { .. } if answer.starts_with(|first: char| first.is_ascii_digit()) => self.edges_told(side),
            Op::Sendmmsg { on, .. } | Op::Fill { on, .. } => {
                if let Some(end) = self.end(side, *on) {
                    self.directions[end.connection][end.side.index()].several = true;
                }
                self.note_option(side, &step.op, answer);
            }
            Op::EpollCreate {} if answer == "made" => self.fill_place(side, Handle::Epoll, What::Other),
            Op::EpollChange { on, events, .. } if answer == "0" => {
                self.epoll_out[side.index()] |= events.writes();
                if let Some(end) = self.end(side, *on) {
                    self.description_mut(end).epoll = true;
                    self.description_mut(end).room_by_edge |= events.writes() && events.by_edge();
                    let direction = &mut self.directions[end.connection][side.index()];
                    direction.taken_at_edge = Some(direction.taken);
                    for pending in self.pending[side.index()].iter_mut().flatten() {
                        if matches!(pending.op, Op::EpollWait { .. }) {
                            pending.classes.extend([Class::Incoming(end), Class::Room(end)]);
                        }
                    }
                }
            }
            Op::Transmit { on, flags, .. } if flags.has(libc::MSG_OOB) => {
                if let Some(end) = self.end(side, *on) {
                    self.directions[end.connection][end.side.index()].uncounted = true;
                }
                self.note_option(side, &step.op, answer);
            }
            op => self.note_option(side, op, answer),
        }
    }

    fn note_option(&mut self, side: Side, op: &Op, answer: &str) {
        if let Some((on, false)) = direction_of(op)
            && (answer.starts_with("part") || answer.starts_with("EAGAIN"))
            && let Some(end) = self.end(side, on)
        {
            self.fills(end, op);
        }
        let (Op::Nonblock { on, .. }
        | Op::ReceiveTimeout { on, .. }
        | Op::SendTimeout { on, .. }
        | Op::LowMark { on, .. }
        | Op::SendBuffer { on, .. }) = op
        else {
            return;
        };
        let Some(end) = self.end(side, *on).filter(|_| answer == "0") else { return };
        let description = self.description_mut(end);
        match op {
            Op::Nonblock { to, .. } => description.nonblocking = *to == Switch::On,
            Op::ReceiveTimeout { time, .. } => description.receive_time = *time,
            Op::SendTimeout { time, .. } => description.send_time = *time,
            Op::LowMark { .. } => description.low_mark = true,
            _ => {
                description.small_buffer = true;
                let direction = &mut self.directions[end.connection][end.side.index()];
                if direction.fill == Fill::Full {
                    direction.fill = Fill::Unknown; // how much more fits depends on the ring's size
                }
            }
        }
    }

    fn empty(&mut self, side: Side, handle: Handle) {
        if let Some(end) = self.end(side, handle) {
            let description = self.description_mut(end);
            description.holders = description.holders.saturating_sub(1);
        }
        self.places[side.index()][handle.index()] = What::Nothing;
    }

    fn fill_place(&mut self, side: Side, handle: Handle, what: What) {
        if let What::Stream(end) = what {
            self.description_mut(end).holders += 1;
        }
        self.places[side.index()][handle.index()] = what;
    }

    /// Brings the directions up to date with what the players counted.
    fn count(&mut self, board: &Board) {
        for end in End::all() {
            let stream = board.stream(end.connection, end.side);
            let writer = self.writer_waits(end);
            let direction = &mut self.directions[end.connection][end.side.index()];
            let (sent, taken) = (stream.sent.load(Relaxed), stream.taken.load(Relaxed));
            if sent > direction.sent {
                direction.messages.push_back((sent - direction.sent, accounted(sent - direction.sent)));
                direction.sent = sent;
            }
            let mut newly = taken.saturating_sub(direction.taken);
            direction.taken = taken;
            if newly > 0 && direction.fill == Fill::Full {
                direction.fill = Fill::Unknown;
            }
            while newly > 0 {
                let Some(front) = direction.messages.front_mut() else { break };
                let part = newly.min(front.0);
                front.0 -= part;
                newly -= part;
                if front.0 == 0 {
                    direction.messages.pop_front();
                }
            }
            if taken == sent && !writer {
                direction.fill = Fill::Known;
                direction.several = false;
            }
        }
    }
}
