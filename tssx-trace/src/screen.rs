//! The terminal that a report is printed on: its size, whether it may be coloured, and what fits on a line.

use std::io::IsTerminal;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::table;

/// Lines of a terminal that does not tell.
const USUAL_ROWS: usize = 24;

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
        if !stdout.is_terminal() || is_dumb() {
            return Self::default();
        }
        let told = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        let size = size(told, std::env::var("COLUMNS").ok().as_deref());
        // no-color.org: present and not empty, whatever it says.
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { size, color }
    }

    /// `text` in bold, where that is wanted.
    pub(crate) fn bold(self, text: &str) -> String {
        if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.into() }
    }

    /// `text` as a warning.
    pub(crate) fn alarm(self, text: &str) -> String {
        if self.color { format!("\x1b[1;31m{text}\x1b[0m") } else { text.into() }
    }

    /// A table of which columns are shortened in the middle until it fits, in a terminal only; where that does not do, columns are
    /// left out, and the last line says which.
    pub(crate) fn table(self, columns: &Columns, rows: &[Vec<String>]) -> String {
        let Some((width, _)) = self.size else { return columns.table(&[], rows.to_vec()) };
        let widest = |text: &str| text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0);
        let fits = |count: usize| {
            let hidden = columns.expendable.get(..count).unwrap_or_default();
            let text = columns.shortened(width, hidden, rows.to_vec());
            (widest(&text) <= width).then_some((text, hidden))
        };
        let all = columns.expendable;
        let fitting = (0..=all.len()).find_map(fits);
        let (text, hidden) = fitting.unwrap_or_else(|| (columns.shortened(width, all, rows.to_vec()), all));
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let names: Vec<_> = hidden.iter().filter_map(|column| columns.header.get(*column).copied()).collect();
        let left_out = match format!("(no room for {})", names.join(", ")) {
            _ if names.is_empty() => String::new(),
            text if text.width() > width => format!("{}…\n", clip(&text, width.saturating_sub(1))),
            text => text + "\n",
        };
        format!("{}\n{rest}{left_out}", self.bold(first))
    }
}

/// The columns of a table.
pub(crate) struct Columns {
    pub(crate) header: &'static [&'static str],
    /// Those that hold numbers.
    pub(crate) numeric: &'static [usize],
    /// Those that are shortened where a terminal is narrow, in that order, and to no less than the width beside each.
    pub(crate) long: &'static [(usize, usize)],
    /// Those that are left out where it is too narrow even for that, the first first.
    pub(crate) expendable: &'static [usize],
}

impl Columns {
    /// The table without `hidden` columns.
    fn table(&self, hidden: &[usize], rows: Vec<Vec<String>>) -> String {
        let kept: Vec<usize> = (0..self.header.len()).filter(|column| !hidden.contains(column)).collect();
        let header: Vec<&str> = kept.iter().filter_map(|column| self.header.get(*column).copied()).collect();
        let numeric: Vec<usize> =
            (0..kept.len()).filter(|at| kept.get(*at).is_some_and(|column| self.numeric.contains(column))).collect();
        let keep = |row: Vec<String>| {
            let cells = row.into_iter().enumerate();
            cells.filter(|(column, _)| kept.contains(column)).map(|(_, cell)| cell).collect()
        };
        table(&header, &numeric, rows.into_iter().map(keep).collect())
    }

    /// The same, with what is long shortened until it fits `width`, or as far as it may be.
    fn shortened(&self, width: usize, hidden: &[usize], mut rows: Vec<Vec<String>>) -> String {
        let mut text = self.table(hidden, rows.clone());
        for (column, least) in self.long.iter().filter(|(column, _)| !hidden.contains(column)) {
            let excess = text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0).saturating_sub(width);
            if excess == 0 {
                break;
            }
            let cells = || rows.iter().filter_map(|row| row.get(*column));
            let widest = cells().map(|cell| cell.width()).max().unwrap_or(0);
            let most = widest.saturating_sub(excess).max(*least);
            for cell in rows.iter_mut().filter_map(|row| row.get_mut(*column)) {
                *cell = shorten(cell, most);
            }
            text = self.table(hidden, rows.clone());
        }
        text
    }
}

/// Whether the terminal obeys no control sequences.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// The size that a terminal told, if any, and what COLUMNS says: it can make it narrower, or known where the terminal tells none.
fn size(told: Option<(usize, usize)>, wanted: Option<&str>) -> Option<(usize, usize)> {
    let told = told.filter(|(columns, rows)| *columns > 0 && *rows > 0);
    let wanted = wanted.and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    match (told, wanted) {
        (Some((columns, rows)), Some(wanted)) => Some((columns.min(wanted), rows)),
        (None, Some(wanted)) => Some((wanted, USUAL_ROWS)),
        (told, None) => told,
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
    fn the_variable_makes_a_terminal_narrower_never_wider() {
        assert_eq!(size(Some((100, 30)), Some("80")), Some((80, 30)));
        assert_eq!(size(Some((100, 30)), Some("200")), Some((100, 30)));
        assert_eq!(size(Some((0, 0)), Some("60")), Some((60, USUAL_ROWS)));
        for nonsense in ["0", "", "-5", "wide"] {
            assert_eq!(size(Some((100, 30)), Some(nonsense)), Some((100, 30)));
            assert_eq!(size(None, Some(nonsense)), None);
        }
    }

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
        const COLUMNS: Columns =
            Columns { header: &["SOCKET", "BYTES", "SERVER"], numeric: &[1], long: &[(0, 20), (2, 12), (0, 12)], expendable: &[2] };
        let draw = |size| Screen { size, color: false }.table(&COLUMNS, &rows);
        assert!(draw(None).contains("/a/very/long/name/of/a/socket.sock"));
        let narrow = draw(Some((48, 24)));
        assert!(narrow.lines().all(|line| line.width() <= 48), "{narrow}");
        assert!(narrow.contains('…') && narrow.contains("123456") && narrow.contains("1 process-name +3"), "{narrow}");
        assert!(draw(Some((40, 24))).lines().all(|line| line.width() <= 40));
        assert_eq!(draw(Some((28, 24))), "SOCKET                 BYTES\n/a/very/l…ocket.sock  123456\n(no room for SERVER)\n");
        assert_eq!(draw(Some((3, 24))).lines().count(), 3);
    }
}
