//! How far something is that takes longer than two seconds: one line on standard error that the next one replaces, for people at a
//! terminal alone.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use crate::screen::{clip, is_dumb};

/// What takes no longer than this needs no word.
pub(crate) const SHORT: Duration = Duration::from_secs(2);

/// Columns that stay free, so that the `^C` of who ends it early does not begin another line.
const ECHO: usize = 3;

/// The line, which goes when this does.
pub(crate) struct Progress {
    on: bool,
    shown: bool,
}

impl Progress {
    /// Shows nothing yet; and nothing ever where standard error is no terminal or it is not `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        Self { on: wanted && stderr().is_terminal() && !is_dumb(), shown: false }
    }

    /// Whether anybody would see it.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Shows `text`.
    pub(crate) fn show(&mut self, text: &str) {
        if self.on {
            let columns = rustix::termios::tcgetwinsize(stderr()).map_or(80, |size| usize::from(size.ws_col));
            write(clip(&format!("tssx-trace: {text}"), columns.saturating_sub(ECHO)));
            self.shown = true;
        }
    }

    /// Takes the line away: whatever is printed next begins where it began.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            write("");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Writes over the line. There is nobody left to tell if that fails.
fn write(text: &str) {
    let mut errors = stderr().lock();
    let _unheard = write!(errors, "\r{text}\x1b[K").and_then(|()| errors.flush());
}

/// `7 s left`, never too few.
pub(crate) fn left(time: Duration) -> String {
    format!("{:.0} s left", time.as_secs_f64().ceil())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_never_said_to_be_less() {
        let shown = [0, 1, 1000, 1001].map(|time| left(Duration::from_millis(time)));
        assert_eq!(shown, ["0 s left", "1 s left", "1 s left", "2 s left"]);
    }
}
