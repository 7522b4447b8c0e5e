//! Where in the library a system call is made.

use std::fmt;

/// A line of the library that wants something of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// From the crate's directory on.
    pub file: String,
    /// In that file.
    pub line: u32,
    /// The function it belongs to.
    pub function: String,
    /// The function of the library's door that it calls.
    pub door: String,
    /// What that function calls in the end, often itself.
    pub innermost: String,
    /// Which of that function's system calls.
    pub door_line: u32,
}

/// One call site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Site {
    /// Made by the library's own instruction; otherwise through libc, mostly because the program has called the same function.
    pub own: bool,
    /// Where.
    pub place: Place,
}

impl fmt::Display for Site {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { file, line, function, door, innermost, .. } = &self.place;
        write!(out, "{file}:{line} {function} → {}::{door}", if self.own { "sys" } else { "libc" })?;
        if door == innermost { Ok(()) } else { write!(out, " ({innermost})") }
    }
}

impl Site {
    /// Whether its call cannot fail, or what it says is not looked at by whoever calls it: then there is nothing to inject.
    pub(super) fn cannot_fail(&self) -> bool {
        const NEVER: [&str; 8] = ["yield_now", "rest", "getpid", "getppid", "exit_group", "begin", "drop", "abort"];
        self.own && (NEVER.contains(&self.place.innermost.as_str()) || self.place.door == "abort")
    }
}
