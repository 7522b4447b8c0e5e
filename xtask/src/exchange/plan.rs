//! What happens on each connection. Both ends derive the same plan from the seed and the connection's number.

use clap::ValueEnum;
use nix::libc::MSG_MORE;
use nix::sys::socket::MsgFlags;

/// Most bytes of one call.
pub(super) const CHUNK_MAX: usize = 1 << 20;
/// Fewest bytes of one direction of a connection.
const BYTES_MIN: u64 = 16 << 10;
/// Most bytes of one direction of a connection.
const BYTES_MAX: u64 = 512 << 20;
/// Calls that one direction makes at most, about.
const CALLS_MAX: u64 = 2000;

/// A small generator (splitmix64): the same numbers on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0xD129_0655_0AE2_8B4F) ^ stream.wrapping_mul(0xA076_1D64_78BD_642F));
        dice.next();
        dice
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// From 1 to `most`, small ones as often as large ones: as many in each power of two.
    pub(crate) fn size(&mut self, most: u64) -> u64 {
        let bits = u64::from(most.max(1).ilog2()) + 1;
        let top = 1_u64 << self.below(bits);
        (top + self.below(top)).min(most)
    }
}

/// Something that a ring cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Demotion {
    /// Some of the bytes go with a descriptor beside them (SCM_RIGHTS).
    Rights,
    /// Some go by `dprintf`, which writes from inside libc.
    Print,
    /// Some go by `sendfile` from a file.
    Sendfile,
    /// Some go by `splice` from a pipe.
    Splice,
    /// This end asks for its peer's credentials with all that comes (SO_PASSCRED).
    PassCredentials,
    /// This end asks for signals (O_ASYNC).
    Async,
    /// The connection's own descriptor is sent through another socket, and what comes out is used from then on.
    Travel,
    /// The same, but what comes out is closed.
    TravelInVain,
}

/// One direction of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Direction {
    /// Bytes that it carries.
    pub bytes: u64,
    /// Most bytes of one call of its sender and of its receiver.
    pub chunk_max: [u64; 2],
    /// What its sender does on the way, and at which position.
    pub demotion: Option<(Demotion, u64)>,
    /// Whether its sender shuts it down at the end, which the receiver then waits for.
    pub shut: bool,
    /// Seed of its bytes and calls.
    pub seed: u64,
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// From the connector to the acceptor, and back.
    pub directions: [Direction; 2],
    /// Whether the connector and the acceptor use their sockets without blocking.
    pub nonblocking: [bool; 2],
    /// Whether the connector and the acceptor wait for edges where they wait with epoll.
    pub edges: [bool; 2],
}

impl Plan {
    /// The plan for a connection when `left` bytes are to be moved, of `total`; with one of the `demotions`, or none.
    pub(crate) fn of(seed: u64, number: u64, total: u64, left: u64, demotions: &[Demotion]) -> Self {
        let mut dice = Dice::new(seed, number);
        // Enough connections in a small exchange too.
        let most = (total / 50).clamp(BYTES_MIN, BYTES_MAX);
        let directions = [(); 2].map(|()| Direction::of(&mut dice, most.min(left / 2).max(1), demotions));
        let nonblocking = [(); 2].map(|()| dice.one_in(4));
        Self { directions, nonblocking, edges: [(); 2].map(|()| dice.one_in(2)) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.directions.iter().map(|direction| direction.bytes).sum()
    }
}

impl Direction {
    fn of(dice: &mut Dice, most: u64, demotions: &[Demotion]) -> Self {
        let chunk_max = [(); 2].map(|()| 1 << (6 + dice.below(u64::from(CHUNK_MAX.ilog2()) - 5)));
        let slowest = chunk_max.iter().copied().min().unwrap_or(1);
        let bytes = (BYTES_MIN + dice.size(most)).min(most).min(slowest * CALLS_MAX);
        let demotion = (!dice.one_in(3) && !demotions.is_empty()).then(|| (dice.pick(demotions), dice.below(bytes)));
        Self { bytes, chunk_max, demotion, shut: dice.one_in(2), seed: dice.next() }
    }
}

/// How some bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Write,
    Send,
    SendMore,
    DontWait,
    Writev,
    Sendmsg,
}

pub(super) const PUTS: [Put; 6] = [Put::Write, Put::Send, Put::SendMore, Put::DontWait, Put::Writev, Put::Sendmsg];

/// How some bytes are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Get {
    Read,
    Recv,
    Readv,
    Recvmsg,
    WaitAll,
    Peek,
    DontWait,
    PollFirst,
}

pub(super) const GETS: [Get; 8] =
    [Get::Read, Get::Recv, Get::Readv, Get::Recvmsg, Get::WaitAll, Get::Peek, Get::DontWait, Get::PollFirst];

impl Put {
    pub(super) fn flags(self) -> MsgFlags {
        MsgFlags::MSG_NOSIGNAL
            | match self {
                Self::SendMore => MsgFlags::from_bits_retain(MSG_MORE),
                Self::DontWait => MsgFlags::MSG_DONTWAIT,
                _ => MsgFlags::empty(),
            }
    }
}

impl Get {
    pub(super) fn flags(self) -> MsgFlags {
        match self {
            Self::WaitAll => MsgFlags::MSG_WAITALL,
            Self::Peek => MsgFlags::MSG_PEEK,
            Self::DontWait | Self::PollFirst => MsgFlags::MSG_DONTWAIT,
            _ => MsgFlags::empty(),
        }
    }
}
