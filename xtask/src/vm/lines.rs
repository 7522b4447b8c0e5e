//! What the guest tells the host on its console: one line when a test begins, one when it has ended, one at the end of all.
//!
//! Whatever else is printed between the first two belongs to that test: the reason why it failed, and the kernel's own complaints.

use std::fmt;
use std::time::Duration;

/// How such a line begins. Other lines are for people.
const MARK: &str = "@tssx-vm";

/// One of those lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The test of that name begins.
    Begin(String),
    /// It ended: its name, whether it passed, how long it took.
    End(String, bool, Duration),
    /// So many tests were run, and there are no more.
    All(usize),
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(name) => write!(out, "{MARK} begin {name}"),
            Self::End(name, true, time) => write!(out, "{MARK} passed {name} {}", time.as_millis()),
            Self::End(name, false, time) => write!(out, "{MARK} failed {name} {}", time.as_millis()),
            Self::All(count) => write!(out, "{MARK} all {count}"),
        }
    }
}

impl Line {
    /// Reads a line of the console; `None` if it is not one of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.trim_end().strip_prefix(MARK)?.split_whitespace();
        let line = match words.next()? {
            "begin" => Self::Begin(words.next()?.to_owned()),
            "all" => Self::All(words.next()?.parse().ok()?),
            ending @ ("passed" | "failed") => {
                let (name, milliseconds) = (words.next()?, words.next()?.parse().ok()?);
                Self::End(name.to_owned(), ending == "passed", Duration::from_millis(milliseconds))
            }
            _ => return None,
        };
        words.next().is_none().then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let time = Duration::from_millis(1234);
        let name = || "trace::tp_btf".to_owned();
        for line in [Line::Begin(name()), Line::End(name(), true, time), Line::End(name(), false, time), Line::All(7)] {
            assert_eq!(Line::parse(&format!("{line}\r\n")), Some(line));
        }
        for other in
            ["", "begin x", "@tssx-vm", "@tssx-vm passed x", "@tssx-vm passed x y", "@tssx-vm all 1 2", "[ 1.0] @tssx-vm all 1"]
        {
            assert_eq!(Line::parse(other), None, "{other}");
        }
    }
}
