//! Which steps have no one certain answer, and are passed over.
//!
//! The kernel leaves open which of two waiting calls gets the bytes or the error, and how much fits into a socket; the
//! library may change the latter. Everything else must be the same.

use crate::facts::{OVERFLOW, accounted, asked, direction_of, fit_for_child, given, leaves_ring, may_fail};
use crate::program::{Op, Step};
use crate::slots::End;
use crate::state::{Class, Fill, Pending, State, What};
use crate::words::{Handle, How, Millis, Place, Side, Switch, Worker};

/// Most that one direction holds in the kernel's accounting outside of fills: below the mark at which poll says "not writable".
const ROOM: u32 = 50_000;
/// Most that is sent at once into a socket whose buffer was made small.
const SMALL: u64 = 1000;
/// A send of more is queued in several pieces.
const PIECE: u64 = 30_000;

impl State {
    /// Whether the step, now, has no one certain answer.
    pub(crate) fn hazard(&self, step: &Step) -> bool {
        let side = step.worker.side;
        if self.is_pending(step.worker) {
            return true;
        }
        let waits = self.wait_of(step);
        let competes = waits.is_some() || matches!(step.op, Op::Gather { .. });
        if competes && self.classes(step).into_iter().any(|class| self.class_pending(class)) {
            return true;
        }
        let sends_little = matches!(direction_of(&step.op), Some((_, false))) && given(&step.op).0 < OVERFLOW;
        if waits.is_some() && !sends_little && self.has_ghost(side.other()) {
            return true;
        }
        if step.child && (waits.is_some() || !fit_for_child(&step.op)) {
            return true;
        }
        let unclear = |handle: Handle| self.end(side, handle).is_some_and(|end| self.is_unclear(end));
        match &step.op {
            Op::Signal { whom, restart } => whom.side != side || self.hazard_of_signal(*whom, *restart),
            // What is unread then comes back with the peer's next call only: README.md, limits.
            Op::Pass { what, .. }
                if self.end(side, *what).is_some_and(|end| self.incoming(end).bytes() > 0 || self.is_full(end)) =>
            {
                true
            }
            Op::Await { set, .. } => {
                let urgent = |handle: Handle| self.end(side, handle).is_some_and(|end| self.may_take_urgent_byte(end));
                set.0.iter().any(|(handle, events)| events.writes() && unclear(*handle) || events.reads() && urgent(*handle))
            }
            Op::EpollWait { .. } => {
                let ends = || End::all().filter(|end| self.description(*end).epoll);
                let edge = |end: End| end.side == side && self.has_idle_edge(end);
                let room = self.epoll_out[side.index()] && ends().any(|end| self.is_unclear(end) || edge(end));
                room || ends().any(|end| end.side == side && self.may_take_urgent_byte(end))
            }
            Op::Ask { on, what } => self.hazard_of_question(side, *on, *what),
            // A call that keeps a closed connection is woken by it, and cannot tell that from a signal.
            // And what is shut down already is an edge once more.
            Op::Shutdown { on, how } => {
                let again = |end: End| self.description(end).epoll && self.description(end).deaf;
                // Room where nobody reads any more: CHANGELOG.md, known to differ.
                let deafens = matches!(how, How::Rd | How::Both);
                let room = |end: End| deafens && self.looks_for_room(End { side: side.other(), ..end });
                self.has_ghost(side.other()) || self.end(side, *on).is_some_and(|end| again(end) || room(end))
            }
            // A call that receives several messages looks at the mark for each.
            Op::LowMark { on, .. } => self.end(side, *on).is_some_and(|end| self.receives_several(end)),
            // How much more fits?
            Op::SendBuffer { on, .. } => self.end(side, *on).is_some_and(|end| self.writer_waits(end)),
            // Both rings end; and a receive that waits tells of credentials or not, whenever it looked last.
            Op::PassCredentials { on, .. } => {
                self.end(side, *on).is_some_and(|end| self.is_full(end) || self.class_pending(Class::Incoming(end)))
            }
            // A read of the pipe must not wait for ever.
            Op::Nonblock { on, .. } => self.what(side, *on) == What::Other,
            Op::EpollChange { on, events, .. } => {
                // Room beside bytes, told once too often: CHANGELOG.md, known to differ.
                let holds_bytes = self.end(side, *on).is_some_and(|end| self.incoming(end).bytes() > 0);
                let told_asleep = events.writes() && events.by_edge() && holds_bytes && self.sleeps_in_a_set(side);
                self.hazard_of_change(side, *on) || (events.writes() && unclear(*on)) || told_asleep
            }
            Op::Close { on } | Op::Copy { to: on, .. } => self.end(side, *on).is_some_and(|end| self.hazard_of_close(end)),
            op => match direction_of(op) {
                Some((handle, true)) => self.end(side, handle).is_some_and(|end| self.hazard_of_receive(end, op)),
                Some((handle, false)) => self.end(side, handle).is_some_and(|end| self.hazard_of_send(end, op, waits)),
                None => false,
            },
        }
    }

    /// Nobody is interrupted; or recvmmsg(2) is, after which the kernel leaves an error number of its own (ERESTARTSYS) in the socket; or a
    /// call begins anew that may wait for another number of bytes than it did, or for the other end to answer, which no signal
    /// restarts (README.md, limits).
    fn hazard_of_signal(&self, whom: Worker, restart: Switch) -> bool {
        let Some(pending) = self.pending[whom.side.index()][whom.thread].as_ref() else { return true };
        let marked = |class: &Class| matches!(class, Class::Incoming(end) if self.description(*end).low_mark || self.description(*end).passed);
        // The number may lead elsewhere by now.
        let moved = |class: &Class| match (class, direction_of(&pending.op)) {
            (Class::Incoming(end) | Class::Room(end), Some((handle, _))) => self.end(whom.side, handle) != Some(*end),
            _ => false,
        };
        let anew = restart == Switch::On && pending.classes.iter().any(|class| marked(class) || moved(class));
        matches!(pending.op, Op::Recvmmsg { .. }) || anew
    }

    /// Whether a recvmmsg(2) waits for bytes at `end`.
    fn receives_several(&self, end: End) -> bool {
        let several = |pending: &Pending| matches!(pending.op, Op::Recvmmsg { .. });
        self.waiting().any(|(_, pending)| several(pending) && pending.classes.contains(&Class::Incoming(end)))
    }

    /// Whether poll(2) or one of its kind waits for room at `end`.
    fn looks_for_room(&self, end: End) -> bool {
        let looks = |pending: &Pending| direction_of(&pending.op).is_none();
        self.waiting().any(|(_, pending)| looks(pending) && pending.classes.contains(&Class::Room(end)))
    }

    /// Whether a thread waits in an epoll set of this side.
    fn sleeps_in_a_set(&self, side: Side) -> bool {
        self.waiting().any(|(worker, pending)| worker.side == side && matches!(pending.op, Op::EpollWait { .. }))
    }

    /// A receive that waits takes an urgent byte out of the kernel's queue when it comes; the library's only looks, and the byte stays
    /// readable for poll(2).
    fn may_take_urgent_byte(&self, end: End) -> bool {
        self.incoming(end).uncounted && self.class_pending(Class::Incoming(end))
    }

    /// A direction of the connection has been filled, so that a ring's end would make room in the kernel's socket.
    fn is_full(&self, end: End) -> bool {
        self.incoming(end).fill != Fill::Known || self.outgoing(end).fill != Fill::Known
    }

    /// Whether there is room to send is not certain.
    fn is_unclear(&self, end: End) -> bool {
        match self.outgoing(end).fill {
            Fill::Known => self.description(end).small_buffer && !self.outgoing(end).messages.is_empty(),
            // poll(2) calls a full socket whose other end reads no more not writable, though a send would not wait: it fails.
            Fill::Full => !self.settled || self.description(End { side: end.side.other(), ..end }).deaf,
            Fill::Unknown => true,
        }
    }

    /// Whether a call waits that alone keeps a closed connection: when it is over the connection ends, behind the program's back.
    fn has_ghost(&self, side: Side) -> bool {
        End::all().any(|end| end.side == side && self.description(end).holders == 0) && self.waits_at(side) > 0
    }

    fn waits_at(&self, side: Side) -> usize {
        self.waiting().filter(|(worker, _)| worker.side == side).count()
    }

    /// Which of two calls that wait at the other end would get the one ECONNRESET? And would it come before or after what ends
    /// a call that waits at this end?
    fn hazard_of_close(&self, end: End) -> bool {
        // "If a file descriptor being monitored by select() is closed in another thread, the result is unspecified": select(2).
        if self.waiting().any(|(worker, pending)| worker.side == end.side && matches!(pending.op, Op::Await { .. })) {
            return true;
        }
        // A call that receives several messages polls between them.
        if self.receives_several(end) {
            return true;
        }
        // One that has a part of its bytes polls too: select(2)'s words hold for it.
        let waits_for_all = |op: &Op| match op {
            Op::Receive { flags, .. } | Op::Recvmsg { flags, .. } => flags.has(libc::MSG_WAITALL),
            _ => false,
        };
        let parts = |pending: &Pending| waits_for_all(&pending.op) || self.description(end).low_mark;
        let incoming = |pending: &Pending| pending.classes.contains(&Class::Incoming(end));
        if self.waiting().any(|(worker, pending)| worker.side == end.side && incoming(pending) && parts(pending)) {
            return true;
        }
        // It tells again of an error that came behind the messages, which poll(2) then shows.
        let at_peer = |pending: &Pending| matches!(pending.op, Op::Recvmmsg { .. });
        if self.waiting().any(|(worker, pending)| worker.side != end.side && at_peer(pending)) {
            return true;
        }
        let there = self.waits_at(end.side.other());
        there > 1 || (there > 0 && self.waits_at(end.side) > 0)
    }

    /// A set gets a stream whose bytes a thread waits for that is no part of it, while another waits for the set.
    fn hazard_of_change(&self, side: Side, on: Handle) -> bool {
        let Some(end) = self.end(side, on) else { return false };
        let watched = self.waiting().any(|(worker, pending)| worker.side == side && matches!(pending.op, Op::EpollWait { .. }));
        // Or the kernel's queue is full: then nothing wakes the other for what is in the ring already (CHANGELOG.md, known to differ).
        let full = self.outgoing(end).fill != Fill::Known;
        watched && (full || [Class::Incoming(end), Class::Room(end)].into_iter().any(|class| self.class_pending(class)))
    }

    fn hazard_of_question(&self, side: Side, on: Handle, what: crate::words::Question) -> bool {
        use crate::words::Question::{Unread, Unsent};
        let Some(end) = self.end(side, on) else { return false };
        match what {
            Unread => self.incoming(end).fill != Fill::Known || self.class_pending(Class::Incoming(end)),
            Unsent => self.outgoing(end).fill == Fill::Unknown || self.description(end).printed,
            _ => false,
        }
    }

    fn hazard_of_receive(&self, end: End, op: &Op) -> bool {
        let direction = self.incoming(end);
        let peer = End { connection: end.connection, side: end.side.other() };
        if self.waits_for_idle_edge(peer) {
            return true;
        }
        // The kernel closes descriptors that find no room as the call returns, ours after each message: CHANGELOG.md, known to differ.
        let own = || [end, peer].into_iter().any(|end| self.description(end).passed);
        if matches!(op, Op::Recvmmsg { count, .. } if count.0 > 1) && own() {
            return true;
        }
        if self.writer_waits(peer) {
            // A writer goes on somewhere in the middle: only who waits for all of it knows what comes.
            let description = self.description(end);
            let sure = !description.nonblocking
                && !description.receive_time.is_short_limit()
                && !description.low_mark
                && !direction.uncounted;
            return !matches!(op, Op::Gather { .. }) || !sure || self.waiting().any(|(_, pending)| may_fail(&pending.op));
        }
        // Whether the last piece is less than the mark depends on how much there was.
        if direction.was_filled && self.description(end).low_mark {
            return true;
        }
        // The kernel moves a packet into each of the pipe's sixteen places.
        if matches!(op, Op::SpliceIn { .. }) && (direction.messages.len() > 12 || direction.several) {
            return true;
        }
        // An urgent byte that one receive takes away while another looks: in the kernel too, a look then sleeps on when bytes come.
        if direction.uncounted && (looks(op) || self.class_pending(Class::Incoming(end))) {
            return true;
        }
        // With room for nothing a look goes on to the next message and what comes with it.
        if looks_at_nothing(op) && (direction.messages.len() > 1 || direction.several) {
            return true;
        }
        if ends_in_bad_memory(op) && (direction.messages.len() > 1 || direction.several) {
            return true;
        }
        if matches!(op, Op::Gather { .. }) {
            return false;
        }
        if direction.fill != Fill::Known && self.class_pending(Class::Room(peer)) && !matches!(op, Op::Drain { .. }) {
            // Is there room again, for who waits for it?
            return true;
        }
        if direction.fill == Fill::Known || matches!(op, Op::Drain { .. }) {
            return false;
        }
        let sure = !self.description(peer).small_buffer && direction.taken - direction.taken_at_full + asked(op) < direction.sure;
        !sure || matches!(op, Op::Recvmmsg { .. } | Op::SpliceIn { .. })
    }

    fn hazard_of_send(&self, end: End, op: &Op, waits: Option<Millis>) -> bool {
        let direction = self.outgoing(end);
        let peer = End { connection: end.connection, side: end.side.other() };
        let (size, messages) = given(op);
        let reader = self.class_pending(Class::Incoming(peer));
        if reader && self.waits_for_idle_edge(end) {
            return true;
        }
        let gatherer = self
            .waiting()
            .any(|(_, pending)| matches!(pending.op, Op::Gather { .. }) && pending.classes.contains(&Class::Incoming(peer)));
        if reader && !gatherer && (size > PIECE || messages > 1) {
            // The reader gets what is there when it wakes up.
            return true;
        }
        if gatherer && matches!(op, Op::Fill { .. }) {
            return true;
        }
        // A receive with room for nothing that waits takes the urgent byte away; the library only looks.
        let urgent = matches!(op, Op::Transmit { flags, .. } if flags.has(libc::MSG_OOB));
        let nothing = |pending: &Pending| pending.classes.contains(&Class::Incoming(peer)) && asked(&pending.op) == 0;
        if urgent && reader && direction.uncounted {
            return true; // the one before it may have been taken away, or not
        }
        if urgent && direction.was_filled {
            return true; // what is received is not all that was sent, so its content is written down, which depends on the place
        }
        if urgent && self.waiting().any(|(_, pending)| nothing(pending)) {
            return true;
        }
        match direction.fill {
            Fill::Unknown => true,
            Fill::Full => messages > 1 || !self.settled || leaves_ring(op),
            Fill::Known if matches!(op, Op::Fill { .. }) => false,
            Fill::Known if size >= OVERFLOW && self.description(end).small_buffer => true,
            Fill::Known if size >= OVERFLOW => messages > 1 || (waits.is_none() && gatherer),
            Fill::Known if self.description(end).small_buffer => !direction.messages.is_empty() || size > SMALL || messages > 1,
            Fill::Known => direction.accounted() + accounted(size / messages.max(1)) * messages as u32 > ROOM,
        }
    }
}

/// A look at an urgent byte's surroundings: where it ends depends on what it has seen.
fn looks(op: &Op) -> bool {
    match op {
        Op::Receive { flags, .. } | Op::Recvmsg { flags, .. } | Op::Recvmmsg { flags, .. } => flags.has(libc::MSG_PEEK),
        _ => false,
    }
}

fn looks_at_nothing(op: &Op) -> bool {
    match op {
        Op::Receive { size, flags, .. } => size.0 == 0 && flags.has(libc::MSG_PEEK),
        Op::Recvmsg { parts, flags, .. } => parts.total() == 0 && flags.has(libc::MSG_PEEK),
        Op::Recvmmsg { size, flags, .. } => size.0 == 0 && flags.has(libc::MSG_PEEK),
        _ => false,
    }
}

/// The kernel gives the messages before the one that does not fit into good memory; a ring knows where the last one began, not the others:
/// README.md, limits.
fn ends_in_bad_memory(op: &Op) -> bool {
    match op {
        Op::Receive { at, .. } => matches!(at, Place::Tail(_)),
        Op::Readv { parts, .. } | Op::Recvmsg { parts, .. } => parts.0.iter().any(|(_, bad)| *bad),
        _ => false,
    }
}
