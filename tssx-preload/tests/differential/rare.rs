//! Operations that few programs make: descriptors and credentials that travel, other ways to move bytes, floods, bad memory.

use crate::facts::OVERFLOW;
use crate::generate::{Generator, Kind, transmit_plain};
use crate::program::Op;
use crate::state::{Fill, State, What};
use crate::words::{Call, Flags, Handle, Place, Question, Side, Size, Switch};

impl Generator {
    pub(crate) fn rare_op(&mut self, kind: Kind, state: &State, side: Side, on: Handle) -> Op {
        match kind {
            Kind::Descriptors => {
                if self.rng.bool() {
                    let own: Vec<_> =
                        Handle::ALL.iter().copied().filter(|handle| state.what(side, *handle) != What::Nothing).collect();
                    let what = if own.is_empty() || self.chance(4) { self.spare() } else { self.pick(&own) };
                    let what = if state.end(side, what).is_some() && !self.chance(6) { Handle::PipeOut } else { what };
                    Op::Pass {
                        on,
                        what,
                        copies: Size(self.rng.u32(1..4)),
                        size: Size(self.size().clamp(1, 100)),
                        flags: self.send_flags(),
                    }
                } else {
                    self.message(on)
                }
            }
            Kind::Credentials => match self.rng.u32(0..3) {
                0 => Op::PassCredentials { on, to: self.pick(Switch::ALL) },
                1 => Op::Vouch { on, size: Size(self.size().clamp(1, 100)), flags: self.send_flags() },
                _ => self.message(on),
            },
            Kind::Foreign => {
                let (size, dontwait) = (Size(self.size().clamp(1, 3000)), self.pick(Switch::ALL));
                match self.rng.u32(0..4) {
                    0 => Op::Sendfile { on, size },
                    1 => Op::SpliceIn { on, size, dontwait },
                    2 => Op::SpliceOut { on, size, dontwait },
                    _ => Op::Dprintf { on, size },
                }
            }
            Kind::Bulk => self.bulk(state, side, on),
            Kind::OutOfBand => match self.rng.u32(0..3) {
                0 => Op::Transmit {
                    on,
                    by: Call::Send,
                    size: Size(self.rng.u32(1..6)),
                    flags: Flags(libc::MSG_OOB),
                    at: Place::Good,
                },
                1 => Op::Receive { on, by: Call::Recv, size: Size(1), flags: Flags(libc::MSG_OOB), at: Place::Good },
                _ => Op::Ask { on, what: Question::Mark },
            },
            Kind::Faults => self.fault(on),
            Kind::Pipe if self.rng.bool() => transmit_plain(Handle::PipeIn, self.rng.u32(1..5)),
            _ => Op::Receive {
                on: Handle::PipeOut,
                by: Call::Read,
                size: Size(self.rng.u32(1..9)),
                flags: Flags(0),
                at: Place::Good,
            },
        }
    }

    fn fault(&mut self, on: Handle) -> Op {
        let size = self.size().max(2);
        let at = match self.rng.u32(0..4) {
            0 => Place::Null,
            1 => Place::Guard,
            _ => Place::Tail(self.rng.u32(1..size)),
        };
        match self.rng.u32(0..5) {
            0 | 1 => Op::Receive { on, by: self.pick(&[Call::Read, Call::Recv]), size: Size(size), flags: Flags(0), at },
            2 | 3 => Op::Transmit { on, by: self.pick(&[Call::Write, Call::Send]), size: Size(size), flags: Flags(0), at },
            _ => {
                let mut parts = self.parts();
                if let Some(last) = parts.0.last_mut() {
                    last.1 = true;
                }
                if self.rng.bool() { Op::Readv { on, parts } } else { Op::Writev { on, parts } }
            }
        }
    }

    fn bulk(&mut self, state: &State, side: Side, on: Handle) -> Op {
        let piece = Size(self.pick(&[1, 100, 4096, 65_536, 300_000]));
        let full = state.end(side, on).is_some_and(|end| state.incoming(end).fill != Fill::Known);
        match self.rng.u32(0..6) {
            _ if full && self.chance(2) => Op::Gather { on, size: piece },
            0 => Op::Fill { on, size: Size(piece.0.clamp(50, 65_536)) },
            1 | 2 => Op::Drain { on, size: piece },
            3 => Op::Gather { on, size: piece },
            _ => {
                let size = Size(OVERFLOW as u32 + self.rng.u32(0..100_000));
                Op::Transmit { on, by: self.pick(&[Call::Write, Call::Send]), size, flags: Flags(0), at: Place::Good }
            }
        }
    }
}
