//! What happens in a round. Parent, survivor and victim derive it from the seed and the round's number.

use clap::ValueEnum;

use crate::exchange::Dice;

/// Longest time between the connection and the kill, microseconds.
const DELAY_MAX_US: u64 = 30_000;

/// What the survivor is blocked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    Read,
    Recvmsg,
    /// recv(2) with MSG_WAITALL.
    WaitAll,
    Readv,
    Poll,
    Select,
    Epoll,
    /// EPOLLET, reading until EAGAIN.
    EpollEdge,
    Write,
    Sendmsg,
    /// poll(2) for room, and a send that does not wait.
    PollOut,
    /// EPOLLOUT, and a send that does not wait.
    EpollOut,
    /// A thread in read(2) and one in write(2).
    BothWays,
    /// read(2); two forked processes write at the other end, and one of them is killed.
    Family,
    /// write(2); two forked processes read at the other end, and one of them is killed.
    Readers,
}

impl Kind {
    /// Whether the survivor receives, and what came can be held against what was written.
    pub(super) fn receives(self) -> bool {
        !matches!(self, Self::Write | Self::Sendmsg | Self::PollOut | Self::EpollOut | Self::Readers)
    }

    /// Whether the victim is one of two, and its end lives on.
    pub(super) fn is_family(self) -> bool {
        matches!(self, Self::Family | Self::Readers)
    }
}

/// How the victim goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Without a pause.
    Flood,
    /// With pauses in which the survivor falls asleep.
    Trickle,
    /// So many calls, and then nothing: the survivor is asleep when the blow comes, unless that comes at once.
    Few(u64),
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub round: u64,
    pub kind: Kind,
    pub survivor_accepts: bool,
    pub pace: Pace,
    /// Largest write or read of the victim's, bytes.
    pub chunk_max: u64,
    /// From the connection to the kill, microseconds.
    pub delay_us: u64,
    /// What the bytes of this round look like.
    pub pattern: u64,
}

impl Plan {
    pub(super) fn of(seed: u64, round: u64) -> Self {
        let mut dice = Dice::new(seed, round);
        let kinds = Kind::value_variants();
        let turn = round as usize % kinds.len();
        let few = dice.size(200);
        Self {
            round,
            kind: kinds.get(turn).copied().unwrap_or(Kind::Read),
            survivor_accepts: (round / kinds.len() as u64).is_multiple_of(2),
            pace: dice.pick(&[Pace::Flood, Pace::Flood, Pace::Trickle, Pace::Few(few)]),
            chunk_max: dice.size(300_000).max(8),
            // As often around the upgrade as long after it.
            delay_us: if dice.one_in(2) { dice.size(DELAY_MAX_US) - 1 } else { dice.below(DELAY_MAX_US) },
            pattern: dice.next(),
        }
    }

    /// What the victim rolls for its calls.
    pub(super) fn dice(&self) -> Dice {
        Dice::new(self.pattern, self.round)
    }
}
