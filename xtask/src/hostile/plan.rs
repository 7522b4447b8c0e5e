//! What happens on each connection: attacker and victim derive it from the seed and the round's number.

use crate::exchange::Dice;

use super::offers::Abuse;

/// Bytes of a message before anything bad happens.
pub(super) const MESSAGE: usize = 16;
/// Of so many rounds one is [still](Attack::Still).
const STILL_EVERY: u64 = 29;
/// And one is about an offer.
const OFFER_EVERY: u64 = 9;

/// What the victim does with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Any call after any other.
    Mixed,
    Read,
    WaitAll,
    Readv,
    Recvmsg,
    Poll,
    Select,
    Epoll,
    EpollEdge,
    Write,
    Sendmsg,
    PollOut,
    EpollOut,
    /// Answers each message with the same.
    Echo,
}

/// Those that wait without a time-out.
const WAITING: [Manner; 12] = [
    Manner::Read,
    Manner::WaitAll,
    Manner::Readv,
    Manner::Recvmsg,
    Manner::Poll,
    Manner::Select,
    Manner::Epoll,
    Manner::EpollEdge,
    Manner::Write,
    Manner::Sendmsg,
    Manner::PollOut,
    Manner::EpollOut,
];

/// What the attacker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    /// So many mutations, in so many different fields.
    Mutate { count: u64, fields: usize },
    /// One, then nothing, while the victim must not use the CPU.
    Still,
    /// Offers something that it should not.
    Offer(Abuse),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub round: u64,
    /// The victim's end comes from `accept`.
    pub victim_accepts: bool,
    pub manner: Manner,
    pub attack: Attack,
    /// Messages exchanged before.
    pub messages: u64,
    /// The attacker moves its own direction into its ring.
    pub switches: bool,
    /// Most steps of a victim that does anything.
    pub steps: u64,
    /// What both roll from here on.
    pub dice: u64,
}

impl Plan {
    pub(super) fn of(seed: u64, round: u64) -> Self {
        let mut dice = Dice::new(seed, round);
        let attack = if round % STILL_EVERY == STILL_EVERY - 1 {
            Attack::Still
        } else if round % OFFER_EVERY == OFFER_EVERY - 1 {
            let turn = (round / OFFER_EVERY) as usize % Abuse::ALL.len();
            Attack::Offer(Abuse::ALL.get(turn).copied().unwrap_or(Abuse::Nothing))
        } else {
            let fields = if dice.one_in(4) { 46 } else { dice.size(6) as usize };
            Attack::Mutate { count: 40 + dice.below(240), fields }
        };
        let manner = match attack {
            Attack::Offer(_) => Manner::Echo,
            Attack::Mutate { .. } if !dice.one_in(3) => Manner::Mixed,
            _ => dice.pick(&WAITING),
        };
        let victim_accepts = match attack {
            Attack::Offer(abuse) => abuse.victim_accepts(),
            _ => dice.one_in(2),
        };
        Self {
            round,
            victim_accepts,
            manner,
            attack,
            messages: 4 + dice.below(5),
            switches: !dice.one_in(5),
            steps: 40 + dice.size(2000),
            dice: dice.next(),
        }
    }

    /// Of the victim, or of the attacker.
    pub(super) fn dice(&self, victim: bool) -> Dice {
        Dice::new(self.dice, u64::from(victim))
    }
}
