//! Bytes that tell where they belong: each aligned word is a function of its position in its stream, and no two words of a
//! stream are equal. Made and checked at the speed of memory, so that the exchange measures the transport and not us.

/// Bytes of a word.
pub(super) const WORD: usize = size_of::<u64>();

/// The bytes of one direction of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern(pub u64);

/// Bytes of a word from the position `from` on, for unaligned ends.
fn lead(position: u64) -> usize {
    (position % WORD as u64) as usize
}

impl Pattern {
    /// The word at an index: odd multipliers are invertible, so every index has its own.
    fn word(self, index: u64) -> u64 {
        (index ^ self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn byte(self, position: u64) -> u8 {
        self.word(position / WORD as u64).to_le_bytes().get(lead(position)).copied().unwrap_or_default()
    }

    /// Fills `into` with the stream's bytes from the position `from` on, which must be a multiple of [`WORD`].
    pub(crate) fn fill(self, from: u64, into: &mut [u8]) {
        let mut index = from / WORD as u64;
        let mut words = into.chunks_exact_mut(WORD);
        for word in words.by_ref() {
            word.copy_from_slice(&self.word(index).to_le_bytes());
            index += 1;
        }
        for (byte, right) in words.into_remainder().iter_mut().zip(self.word(index).to_le_bytes()) {
            *byte = right;
        }
    }

    /// Position of the first byte that is not what the stream has there, if any. `bytes` begin at the position `from`.
    pub(crate) fn first_wrong(self, from: u64, bytes: &[u8]) -> Option<u64> {
        let head = bytes.len().min((WORD - lead(from)) % WORD);
        let (head, body) = bytes.split_at(head);
        let mut words = body.chunks_exact(WORD);
        // No branch in the loop: the compiler makes it wide.
        let mut difference = 0;
        for (index, word) in (from.div_ceil(WORD as u64)..).zip(words.by_ref()) {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            difference |= word ^ self.word(index);
        }
        let tail = words.remainder();
        let tail_from = from + (bytes.len() - tail.len()) as u64;
        let same = |from: u64, bytes: &[u8]| (from..).zip(bytes).all(|(position, byte)| *byte == self.byte(position));
        if difference == 0 && same(from, head) && same(tail_from, tail) {
            return None;
        }
        (from..).zip(bytes).find(|(position, byte)| **byte != self.byte(*position)).map(|(position, _)| position)
    }

    /// What a wrong part looks like: the bytes around it, and where in this stream they would belong, if anywhere.
    pub(crate) fn explain(self, wrong: u64, from: u64, bytes: &[u8]) -> String {
        let at = (wrong - from) as usize;
        let shown = bytes.get(at..bytes.len().min(at + 24)).unwrap_or_default();
        let right: Vec<u8> = (wrong..).take(shown.len()).map(|position| self.byte(position)).collect();
        // The inverse of the multiplier, modulo 2^64.
        let inverse = 0xF1DE_83E1_9937_733D_u64;
        let belongs = (0..WORD).find_map(|skip| {
            let word = shown.get(skip..skip + WORD)?.try_into().map_or(0, u64::from_le_bytes);
            let index = word.wrapping_mul(inverse) ^ self.0;
            // Positions of other streams and of junk are anywhere.
            (index < 1 << 40).then(|| index * WORD as u64 - skip as u64)
        });
        let belongs = belongs.map_or_else(|| "nowhere in this stream".to_owned(), |position| format!("at {position}"));
        format!("at {wrong} there are {shown:02x?} instead of {right:02x?}: they belong {belongs}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_stream_is_right_and_a_shifted_or_changed_one_is_wrong() {
        let pattern = Pattern(12345);
        let mut all = vec![0; 1003];
        pattern.fill(800, &mut all);
        for start in 0..20 {
            for end in [start, start + 1, start + 7, start + 9, start + 64, all.len()] {
                let part = &all[start..end];
                assert_eq!(pattern.first_wrong(800 + start as u64, part), None);
                if end > start {
                    assert!(pattern.first_wrong(801 + start as u64, part).is_some() || part.len() < 2);
                    assert!(pattern.first_wrong(808 + start as u64, part).is_some() || part.len() < 2);
                    let mut changed = part.to_vec();
                    *changed.last_mut().expect("not empty") ^= 1;
                    assert_eq!(pattern.first_wrong(800 + start as u64, &changed), Some(800 + end as u64 - 1));
                }
            }
        }
    }

    #[test]
    fn a_wrong_part_says_where_it_belongs() {
        let pattern = Pattern(99);
        let mut bytes = vec![0; 64];
        pattern.fill(8000, &mut bytes);
        assert!(pattern.explain(3, 3, &bytes).contains("belong at 8000"));
        assert!(Pattern(1 << 50).explain(3, 3, &bytes).contains("nowhere"));
    }
}
