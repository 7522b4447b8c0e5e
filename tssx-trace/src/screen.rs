//! The terminal that a report is printed on: its size, whether it may be coloured, and what fits on a line.

use std::io::IsTerminal;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::table;

/// What standard output is. Everything is off for a pipe or a file: they get the whole text, unadorned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Columns and lines, where it is a terminal that tells.
    pub(crate) size: Option<(usize, usize)>,
    pub(crate) color: bool,
}

impl Screen {
    /// Standard output as it is now.
    pub(crate) fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        if !stdout.is_terminal() || dumb {
            return Self::default();
        }
        let size = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        // no-color.org: present and not empty, whatever it says.
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { size: size.filter(|(columns, rows)| *columns > 0 && *rows > 0), color }
    }

    /// `text` in bold, where that is wanted.
    pub(crate) fn bold(self, text: &str) -> String {
        if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.into() }
    }

    /// `text` as a warning.
    pub(crate) fn alarm(self, text: &str) -> String {
        if self.color { format!("\x1b[1;31m{text}\x1b[0m") } else { text.into() }
    }

    /// A table of which columns are shortened in the middle until it fits, in a terminal only: each of `long`, in that order, to
    /// no less than the width beside it.
    pub(crate) fn table(self, header: &[&str], numeric: &[usize], long: &[(usize, usize)], mut rows: Vec<Vec<String>>) -> String {
        let mut text = table(header, numeric, rows.clone());
        let Some((columns, _)) = self.size else { return text };
        for (column, least) in long {
            let excess = text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0).saturating_sub(columns);
            if excess == 0 {
                break;
            }
            let cells = || rows.iter().filter_map(|row| row.get(*column));
            let widest = cells().map(|cell| cell.width()).max().unwrap_or(0);
            let most = widest.saturating_sub(excess).max(*least);
            for cell in rows.iter_mut().filter_map(|row| row.get_mut(*column)) {
                *cell = shorten(cell, most);
            }
            text = table(header, numeric, rows.clone());
        }
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        format!("{}\n{rest}", self.bold(first))
    }
}

/// `text` in at most `columns` columns, with what is too much taken out of its middle.
pub(crate) fn shorten(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.into();
    }
    let room = columns.saturating_sub(1);
    let head = clip(text, room / 2);
    let mut tail = String::new();
    for character in text.chars().rev() {
        if tail.width() + character.width().unwrap_or(0) > room - head.width() {
            break;
        }
        tail.insert(0, character);
    }
    format!("{head}…{tail}")
}

/// The first `columns` columns of `text`.
pub(crate) fn clip(text: &str, columns: usize) -> &str {
    let mut taken = 0;
    for (at, character) in text.char_indices() {
        taken += character.width().unwrap_or(0);
        if taken > columns {
            return text.get(..at).unwrap_or_default();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_in_the_middle_by_columns_not_by_bytes() {
        assert_eq!(shorten("/run/short", 10), "/run/short");
        assert_eq!(shorten("/run/long/name.sock", 11), "/run/….sock");
        assert_eq!(shorten("日本語日本語", 7), "日…本語");
        assert_eq!(clip("日本語", 3), "日");
        assert_eq!(shorten("abc", 1), "…");
    }

    #[test]
    fn a_table_fits_a_terminal_and_is_whole_elsewhere() {
        let rows = vec![vec!["/a/very/long/name/of/a/socket.sock".into(), "123456".into(), "1 process-name +3".into()]];
        let draw = |size| {
            Screen { size, color: false }.table(&["SOCKET", "BYTES", "SERVER"], &[1], &[(0, 20), (2, 12), (0, 12)], rows.clone())
        };
        assert!(draw(None).contains("/a/very/long/name/of/a/socket.sock"));
        let narrow = draw(Some((48, 24)));
        assert!(narrow.lines().all(|line| line.width() <= 48), "{narrow}");
        assert!(narrow.contains('…') && narrow.contains("123456") && narrow.contains("1 process-name +3"), "{narrow}");
        assert!(draw(Some((40, 24))).lines().all(|line| line.width() <= 40));
    }
}
