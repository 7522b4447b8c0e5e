//! Which processes to look into for a ledger now.
//!
//! Reading `/proc/PID/maps` of every process ten times a second would cost more than all the rest of the tracer, and
//! most processes will never have a ledger. So each image of a process (it changes with `exec`) is judged once it has
//! had the time to load its libraries: one with the library is looked into at every scan until its ledger is found, one
//! without only every [`SLOW`], in case it loads the library late.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::foreign;

/// An image younger than this may still be loading its libraries.
const YOUNG: Duration = Duration::from_secs(1);
/// Time between two looks into a process that seems to have nothing to do with the library.
const SLOW: Duration = Duration::from_secs(1);

/// What a look into a process found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Neither library nor ledger.
    Nothing,
    /// The library, and no ledger yet.
    Library,
    /// A ledger that is known now; an image never has a second one.
    Ledger,
}

/// Changes when a process number is used again (start time) and at `exec` (address of the stack).
type Image = (u64, u64);

struct Look {
    image: Image,
    first: Instant,
    last: Instant,
    found: Found,
}

/// What earlier scans learned.
#[derive(Default)]
pub(crate) struct Scan {
    looks: HashMap<u32, Look>,
    begun: bool,
}

impl Scan {
    /// Goes through all processes and calls `look` for those that are worth it.
    pub(crate) fn run(&mut self, mut look: impl FnMut(u32) -> Option<Found>) {
        let now = Instant::now();
        let mut looks = HashMap::with_capacity(self.looks.len());
        for pid in crate::processes::pids() {
            let pid = pid.unsigned_abs();
            let Some(image) = image_of(pid) else { continue }; // gone
            let known = self.looks.remove(&pid).filter(|known| known.image == image);
            // Whoever is there when the first scan comes is taken for grown up: if it is not, the next slow look will tell.
            let first = if self.begun { now } else { now.checked_sub(YOUNG).unwrap_or(now) };
            let mut known = known.unwrap_or(Look { image, first, last: now, found: Found::Library });
            if is_due(&known, now) {
                let Some(found) = look(pid) else { continue }; // gone
                known.found = found;
                known.last = now;
            }
            looks.insert(pid, known);
        }
        self.looks = looks;
        self.begun = true;
    }
}

fn is_due(look: &Look, now: Instant) -> bool {
    match look.found {
        Found::Ledger => false,
        Found::Library => true,
        Found::Nothing => now - look.first < YOUNG || now - look.last >= SLOW,
    }
}

/// Fields `starttime` and `startstack` of `/proc/PID/stat`, see proc_pid_stat(5).
fn image_of(pid: u32) -> Option<Image> {
    parse_stat(&foreign::read(pid, "stat")?)
}

fn parse_stat(stat: &[u8]) -> Option<Image> {
    // The name, field 2, is in parentheses and may hold anything; field 3 follows the last one.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let start_time = fields.nth(22 - 3)?.parse().ok()?;
    let start_stack = fields.nth(28 - 23)?.parse().ok()?;
    Some((start_time, start_stack))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_read_whatever_the_process_is_called() {
        let numbers: Vec<String> = (3..=40).map(|field| field.to_string()).collect();
        let stat = format!("1 (a) b (c) {}", numbers.join(" "));
        assert_eq!(parse_stat(stat.as_bytes()), Some((22, 28)));
        assert_eq!(parse_stat(b"garbage"), None);
        assert!(image_of(std::process::id()).is_some_and(|(start, stack)| start > 0 && stack > 0));
    }

    #[test]
    fn no_name_of_a_process_is_taken_for_what_follows_it_and_no_bytes_make_it_panic() {
        let numbers: Vec<String> = (3..=40).map(|field| field.to_string()).collect();
        let fields = numbers.join(" ");
        // A process gives itself any name.
        crate::mutations::each(b"a) S 1 (b", 20_000, |name| {
            let stat = [b"1 (", name, b") ", fields.as_bytes()].concat();
            assert_eq!(parse_stat(&stat), Some((22, 28)));
        });
        crate::mutations::each(format!("1 (a) {fields}").as_bytes(), 20_000, |bytes| {
            let has = |number: u64| bytes.windows(number.to_string().len()).any(|word| word == number.to_string().as_bytes());
            // A number may have had zeros or a sign in front of it.
            assert!(parse_stat(bytes).is_none_or(|(start, stack)| has(start) && has(stack)));
        });
    }

    #[test]
    fn a_process_with_the_library_is_looked_into_until_its_ledger_is_there() {
        let own = std::process::id();
        let mut scan = Scan::default();
        let mut looks = 0;
        for found in [Found::Library, Found::Library, Found::Ledger, Found::Ledger] {
            scan.run(|pid| {
                looks += u32::from(pid == own);
                Some(found)
            });
        }
        assert_eq!(looks, 3);
    }
}
