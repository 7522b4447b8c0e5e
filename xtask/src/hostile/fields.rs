//! What of a segment is written to, and with what: every field of every structure, the room between them, and the rings' bytes.

use std::collections::BTreeMap;
use std::mem::offset_of;

use tssx_core::layout::{DATA_OFFSET, DIRECTION_SIZE, DIRECTIONS_OFFSET, Direction, LINE, SIDES_OFFSET, SegmentHeader, SideBlock};

use super::memory::Memory;
use crate::exchange::Dice;

/// A field: its name, where it is in its structure, and its size in bytes.
type Named = (&'static str, usize, usize);

const HEADER: [Named; 6] = [
    ("magic", offset_of!(SegmentHeader, magic), 8),
    ("version", offset_of!(SegmentHeader, version), 4),
    ("flags", offset_of!(SegmentHeader, flags), 4),
    ("capacity", offset_of!(SegmentHeader, capacity), 8),
    ("connector_inode", offset_of!(SegmentHeader, connector_inode), 8),
    ("acceptor_inode", offset_of!(SegmentHeader, acceptor_inode), 8),
];
const SIDE: [Named; 4] = [
    ("joined", offset_of!(SideBlock, joined), 4),
    ("pid", offset_of!(SideBlock, pid), 4),
    ("holders", offset_of!(SideBlock, holders), 4),
    ("refused", offset_of!(SideBlock, refused), 4),
];
const DIRECTION: [Named; 16] = [
    ("tail", offset_of!(Direction, tail), 8),
    ("last_write", offset_of!(Direction, last_write), 8),
    ("base", offset_of!(Direction, base), 8),
    ("state", offset_of!(Direction, state), 4),
    ("writer_waiting", offset_of!(Direction, writer_waiting), 4),
    ("switch_at", offset_of!(Direction, switch_at), 8),
    ("end_at", offset_of!(Direction, end_at), 8),
    ("resume_at", offset_of!(Direction, resume_at), 8),
    ("tx_sequence", offset_of!(Direction, tx_sequence), 8),
    ("tx_bytes", offset_of!(Direction, tx_bytes), 8),
    ("doorbells", offset_of!(Direction, doorbells), 8),
    ("finished", offset_of!(Direction, finished), 8),
    ("head", offset_of!(Direction, head), 8),
    ("asleep", offset_of!(Direction, asleep), 4),
    ("consent", offset_of!(Direction, consent), 4),
    ("limit", offset_of!(Direction, limit), 8),
];

/// Place of the direction that side `producer` (0 the connector, 1 the acceptor) writes.
pub(super) fn direction(producer: usize) -> usize {
    DIRECTIONS_OFFSET + producer * DIRECTION_SIZE
}

/// Place of what side 0 or 1 says of itself.
pub(super) fn side(which: usize) -> usize {
    SIDES_OFFSET + which * LINE
}

/// Somewhere to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub name: String,
    pub offset: usize,
    /// Bytes; 4 or 8 of a field.
    pub size: usize,
}

/// Every field, named from the victim's point of view: `in.` is the direction that it reads, `out.` the one that it writes.
pub(super) fn fields(victim: usize) -> Vec<Target> {
    let attacker = 1 - victim;
    let groups: [(&str, usize, &[Named]); 5] = [
        ("header.", 0, &HEADER),
        ("peer.", side(attacker), &SIDE),
        ("own.", side(victim), &SIDE),
        ("in.", direction(attacker), &DIRECTION),
        ("out.", direction(victim), &DIRECTION),
    ];
    let targets = groups.into_iter().flat_map(|(group, base, names)| {
        names.iter().map(move |(name, offset, size)| Target { name: format!("{group}{name}"), offset: base + offset, size: *size })
    });
    targets.collect()
}

/// What is written into a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Zero,
    Ones,
    /// The highest bit alone.
    High,
    Random,
    /// As the small numbers that states and flags are.
    Small,
    BitFlip,
    OneMore,
    OneLess,
    Backwards,
    Ahead,
    /// As far as a ring is long.
    Full,
    /// One byte further.
    OnePast,
    /// What another field says.
    Copied,
    /// Back and forth between two values, thousands of times, while the victim looks.
    Changing,
    /// Rising all the time, as fast as a CPU can.
    Racing,
    /// Both positions of a ring, which rise together, so that they are always possible and never the same.
    Chasing,
    /// The ring is said to have ended where it is, far more doorbells to have been sent, and they come without end.
    FalseEnd,
    /// A stretch of random bytes, anywhere.
    Scribble,
    /// Bytes in the kernel's socket that nobody has counted.
    Doorbells,
    /// As many as it takes, for as long as the victim is in one call that does not wait.
    Storm,
    /// A hole is punched into the memory.
    Hole,
    /// Something is offered that should not be.
    Offered,
}

/// The kinds that are one store into one field.
pub(super) const STORES: [Kind; 13] = [
    Kind::Zero,
    Kind::Ones,
    Kind::High,
    Kind::Random,
    Kind::Small,
    Kind::BitFlip,
    Kind::OneMore,
    Kind::OneLess,
    Kind::Backwards,
    Kind::Ahead,
    Kind::Full,
    Kind::OnePast,
    Kind::Copied,
];

/// The value that one of [`STORES`] puts into the place of `now`.
pub(super) fn value(kind: Kind, now: u64, size: usize, dice: &mut Dice, memory: &Memory) -> u64 {
    let capacity = ((memory.length().saturating_sub(DATA_OFFSET)) / 2) as u64;
    let bits = size as u64 * 8;
    match kind {
        Kind::Zero => 0,
        Kind::Ones => u64::MAX,
        Kind::High => 1 << (bits - 1),
        Kind::Small => dice.below(9),
        Kind::BitFlip => now ^ 1 << dice.below(bits),
        Kind::OneMore => now.wrapping_add(1),
        Kind::OneLess => now.wrapping_sub(1),
        Kind::Backwards => now.wrapping_sub(dice.size(capacity)),
        Kind::Ahead => now.wrapping_add(dice.size(capacity)),
        Kind::Full => now.wrapping_add(capacity),
        Kind::OnePast => now.wrapping_add(capacity + 1),
        Kind::Copied => memory.load(direction(dice.below(2) as usize) + 8 * dice.below(42) as usize, 8),
        _ => dice.next(),
    }
}

/// Writes a stretch of random bytes; what it may hit: the page of the structures, or the rings.
pub(super) fn scribble(memory: &Memory, dice: &mut Dice) {
    let end = if dice.one_in(3) { memory.length() } else { DATA_OFFSET };
    let start = dice.below(end as u64) as usize;
    let length = dice.size(256) as usize;
    for offset in start..(start + length).min(memory.length()) {
        memory.store_byte(offset, dice.next() as u8);
    }
}

/// How often what was done.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage {
    counts: BTreeMap<(String, Kind), u64>,
}

impl Coverage {
    pub(super) fn count(&mut self, target: &str, kind: Kind) {
        *self.counts.entry((target.to_owned(), kind)).or_default() += 1;
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Fields that nothing was written to, though it should have been.
    pub(super) fn untouched(&self) -> Vec<String> {
        let all = fields(0).into_iter().map(|target| target.name);
        all.filter(|name| !self.counts.keys().any(|(target, _)| target == name)).collect()
    }

    /// Which field, and how often by each kind.
    pub(super) fn table(&self) -> String {
        let mut rows: BTreeMap<&str, (u64, Vec<String>)> = BTreeMap::new();
        for ((target, kind), count) in &self.counts {
            let row = rows.entry(target).or_default();
            row.0 += count;
            row.1.push(format!("{kind:?} {count}"));
        }
        rows.iter().map(|(target, (sum, kinds))| format!("  {target:22} {sum:7}  {}\n", kinds.join(", "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_all_that_the_structures_have_and_none_twice() {
        let fields = fields(1);
        let mut places: Vec<_> = fields.iter().flat_map(|field| field.offset..field.offset + field.size).collect();
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!((places.len(), fields.len()), (count, 46));
        assert!(places.iter().all(|place| *place < DATA_OFFSET));
    }
}
