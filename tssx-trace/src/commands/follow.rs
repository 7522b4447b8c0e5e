//! `discover --follow`: each interval as it ends. In a terminal the last one is drawn over the one before, elsewhere one
//! follows the other.
//!
//! The terminal is left as it is: no other screen, no hidden cursor. So nothing has to be put right, however this process ends.

use crate::cli::{DiscoverArgs, Format};
use crate::commands::discover::record;
use crate::output::try_result;
use crate::report::Selection;
use crate::report::follow::{Course, Shape};
use crate::screen::{Screen, clip};
use crate::watch::{Observation, Viewer};

/// Shows the intervals of one window.
pub(crate) struct Follower {
    selection: Selection,
    max_sockets: u32,
    all: bool,
    format: Format,
    course: Course,
    /// Lines that the last view has on the terminal, and the terminal's size then.
    drawn: usize,
    size: Option<(usize, usize)>,
}

impl Follower {
    pub(crate) fn new(args: &DiscoverArgs) -> Self {
        Self {
            selection: args.selection(),
            max_sockets: args.window.max_sockets,
            all: args.all,
            format: args.format(),
            course: Course::default(),
            drawn: 0,
            size: None,
        }
    }

    /// The view with what draws it over the one before.
    fn draw(&mut self, text: &str, screen: Screen, (columns, rows): (usize, usize)) -> String {
        // A terminal whose size changed has broken the old lines anew: where they are is not known any more.
        let moved = self.size.is_some_and(|size| size != (columns, rows));
        let mut drawn = if moved { String::from("\x1b[2J\x1b[H") } else { self.up() };
        self.size = Some((columns, rows));
        let lines = fold(text, columns, rows.saturating_sub(1));
        self.drawn = lines.len();
        for (index, line) in lines.iter().enumerate() {
            drawn.push_str(&match index {
                0 => screen.bold(line),
                _ if line.starts_with("INCOMPLETE") => screen.alarm(line),
                _ => line.clone(),
            });
            drawn.push_str("\x1b[K\n");
        }
        drawn + "\x1b[J"
    }

    /// Moves to the first line of the last view.
    fn up(&self) -> String {
        if self.drawn == 0 { String::from("\r") } else { format!("\r\x1b[{}A", self.drawn) }
    }
}

impl Viewer for Follower {
    fn look(&mut self, seen: &Observation) -> anyhow::Result<bool> {
        let recording = record(seen, self.max_sockets, false);
        let screen = Screen::of_stdout();
        // Colours come after the lines are cut.
        let plain = Screen { color: false, ..screen };
        let shape = match self.format {
            Format::Jsonl => Shape::Lines,
            Format::Table | Format::Json => Shape::Table { all: self.all, screen: plain },
        };
        let text = self.course.interval(&recording, &self.selection, shape)?;
        Ok(try_result(&match (self.format, screen.size) {
            (Format::Table, Some(size)) => self.draw(&text, screen, size),
            (Format::Table, None) => text + "\n",
            _ => text,
        })?)
    }

    fn end(&mut self) {
        if self.drawn > 0 {
            let _unseen = try_result(&format!("{}\x1b[J", self.up()));
            self.drawn = 0;
        }
    }
}

/// The lines of `text`, cut to the terminal: the table loses its last rows, not what is said below it.
fn fold(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let below = lines.iter().position(|line| line.is_empty()).unwrap_or(lines.len());
    let (table, sentences) = lines.split_at(below);
    let excess = lines.len().saturating_sub(rows);
    let kept = if excess == 0 { table.len() } else { table.len().saturating_sub(excess + 1).max(1) };
    let mut folded: Vec<String> = table.iter().take(kept).map(|line| clip(line, columns).to_owned()).collect();
    if kept < table.len() {
        folded.push(clip(&format!("… and {} more", table.len() - kept), columns).to_owned());
    }
    folded.extend(sentences.iter().map(|line| clip(line, columns).to_owned()));
    folded.truncate(rows);
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_terminal_loses_rows_of_the_table_and_says_how_many() {
        let text = "HEAD\nfirst row\nsecond\nthird\n\nsentence\nlost\n";
        assert_eq!(fold(text, 80, 24).len(), 7);
        assert_eq!(fold(text, 5, 6), ["HEAD", "first", "… and", "", "sente", "lost"]);
        assert_eq!(fold(text, 80, 6)[2], "… and 2 more");
        assert_eq!(fold(text, 80, 1), ["HEAD"]);
    }
}
