//! Seeded mutations of good input, for the tests that no parser panics or goes on for ever: of this crate, of tssx-trace, which includes this
//! file, and of the library, whose tests do.
//!
//! The seed is fixed, so that a failure is the same again; `TSSX_SEED` plays another, and both are printed. A mutation flips
//! bits, overwrites, inserts, removes, repeats and cuts, one to four times.

/// A small generator, xorshift64*: its numbers need only be spread.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.next() >> 32) % u64::try_from(end.max(1)).expect("64 bits")).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        // Those that lengths, counts and ends of lines are made of come more often.
        const EDGES: [u8; 10] = [0, 1, 3, 4, 0x7f, 0x80, 0xff, b'\n', b' ', b'9'];
        if self.below(2) == 0 { EDGES[self.below(EDGES.len())] } else { self.next().to_le_bytes()[5] }
    }
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let end = (at + random.below(9)).min(bytes.len());
        let byte = random.byte();
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = byte,
            2 => bytes.insert(at, byte),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            _ => bytes.truncate(at),
        }
    }
}

/// Hands `count` mutations of `good` to `take`, and `good` itself. Under Miri, which interprets, a thousandth of them.
pub(crate) fn each(good: &[u8], count: usize, mut take: impl FnMut(&[u8])) {
    let count = if cfg!(miri) { count.div_ceil(1000) } else { count };
    let seed = std::env::var("TSSX_SEED").map_or(0x7550_0006, |seed| seed.parse().expect("TSSX_SEED is a number"));
    println!("{count} mutations with TSSX_SEED={seed}");
    let mut random = Random::new(seed);
    take(good);
    for number in 0..count {
        let mut bytes = good.to_vec();
        mutate(&mut random, &mut bytes);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| take(&bytes)));
        if let Err(panic) = outcome {
            eprintln!("mutation {number} of TSSX_SEED={seed}: {:?}", bytes.escape_ascii().to_string());
            std::panic::resume_unwind(panic);
        }
    }
}
