//! A frame of the model: a head with what holds for the window, the table, what is known of the selected row, and the keys.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row as TableRow, Sparkline, Table, TableState};
use unicode_width::UnicodeWidthStr;

use super::columns::{Column, GAP, fit};
use super::keys::{HELP, HELP_TYPING};
use super::model::{Model, Window};
use super::row::{Row, dash, percent};
use crate::output::{plural, short};
use crate::report::Recent;
use crate::screen::{clip, shorten};

/// Lines of details where the terminal has that many lines in all.
const DETAILS: (u16, u16) = (3, 14);
/// The head takes at most one part in so many of the lines.
const HEAD_SHARE: u16 = 2;

/// How things look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    /// Whether there may be colours: without, what matters is bold or reversed.
    pub(crate) color: bool,
}

impl Theme {
    fn colored(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn alarm(self) -> Style {
        self.colored(Color::Red).add_modifier(Modifier::BOLD)
    }
}

/// Draws the model.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, theme: Theme) {
    let area = frame.area();
    let head = head(model, theme, usize::from(area.width), usize::from(area.height / HEAD_SHARE));
    let details = if area.height >= DETAILS.1 { DETAILS.0 } else { 0 };
    let head_lines = u16::try_from(head.len()).unwrap_or(u16::MAX);
    let parts = [Constraint::Length(head_lines), Constraint::Min(1), Constraint::Length(details), Constraint::Length(1)];
    let [top, middle, below, bottom] = Layout::vertical(parts).areas(area);
    frame.render_widget(Text::from(head), top);
    table(frame, middle, model, theme);
    if let Some(row) = model.shown().get(model.position()) {
        frame.render_widget(Text::from(details_of(row, below)), below);
    }
    frame.render_widget(help(model), bottom);
}

/// What holds for all: traffic, time and cost, what was lost, what could not be seen.
fn head(model: &Model, theme: Theme, width: usize, most: usize) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let Some(window) = &model.window else {
        return vec![Line::styled("tssx-trace top: the first interval has not ended yet", bold)];
    };
    let loss = match window.losses.as_slice() {
        [] => (String::from("Lost: nothing."), Style::new()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", plural(rest.len() as u64, "loss")) };
            (format!("LOST: {first}{more}; the figures are lower bounds."), theme.alarm())
        }
    };
    let mut lines = Vec::new();
    for (text, style) in [(traffic(model), bold), (cost(window), Style::new()), loss, (sight(window), Style::new())] {
        lines.extend(fold(&text, width).into_iter().map(|line| Line::styled(line, style)));
    }
    lines.truncate(most.max(1));
    lines
}

fn traffic(model: &Model) -> String {
    let total = model.total();
    let rate = |count: fn(&Recent) -> Option<u64>| {
        let known = total.and_then(|total| count(&total).map(|count| total.per_second(count)));
        known.map_or_else(dash, short)
    };
    let shown = model.shown().len();
    let sockets = plural(shown as u64, "socket");
    let of = if shown == model.rows.len() { String::new() } else { format!(" of {}", model.rows.len()) };
    let hit = total.and_then(|total| total.hit_rate());
    let hit = hit.map(|hit| format!(", {} of them through shared memory", percent(hit))).unwrap_or_default();
    format!("tssx-trace top: {sockets}{of}, {} calls/s, {} bytes/s{hit}", rate(|total| total.calls), rate(|total| total.bytes))
}

fn cost(window: &Window) -> String {
    let own = window.own_cpu.map_or_else(|| String::from("not measured"), |share| format!("{:.1}% of one CPU", share * 100.0));
    let event = window.event_ns.map_or_else(|| String::from("not measured"), |time| format!("{time:.0} ns"));
    let seconds = window.elapsed_ms as f64 / 1000.0;
    format!("{seconds:.0} s, mode {}; own CPU {own}, kernel time for each event {event}", window.mode)
}

/// What the tracer cannot see, and the better modes that do not work here.
fn sight(window: &Window) -> String {
    let limits = if window.limits.is_empty() { String::from("nothing known") } else { window.limits.join("; ") };
    let refused = match window.refused.as_slice() {
        [] => String::new(),
        refused => format!(" Better modes do not work here: {} (see `tssx-trace doctor`).", refused.join(", ")),
    };
    format!("Limits of mode {}: {limits}.{refused}", window.mode)
}

fn table(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let rows = model.shown();
    if rows.is_empty() {
        let text = if model.rows.is_empty() { "No Unix socket with a connection was seen." } else { "No socket has that text." };
        if model.window.is_some() {
            frame.render_widget(Line::from(text), area);
        }
        return;
    }
    let need = |column: Column| {
        let widest = rows.iter().map(|row| row.text(column).width()).max().unwrap_or(0);
        u16::try_from(widest.max(heading(model, column).width())).unwrap_or(u16::MAX)
    };
    let columns = fit(area.width, need);
    let heads = columns.iter().map(|(column, _)| cell(heading(model, *column), *column, Style::new()));
    let header = TableRow::new(heads).style(Style::new().add_modifier(Modifier::BOLD));
    let dim = |row: &Row| if row.has_ended() { Style::new().add_modifier(Modifier::DIM) } else { Style::new() };
    let cells = |row: &Row| columns.iter().map(|(column, width)| filled(row, *column, *width, theme)).collect::<Vec<_>>();
    let lines = rows.iter().map(|row| TableRow::new(cells(row)).style(dim(row)));
    let widths = columns.iter().map(|(_, width)| Constraint::Length(*width));
    let selected = Style::new().add_modifier(Modifier::REVERSED);
    let widget = Table::new(lines, widths).header(header).column_spacing(GAP).row_highlight_style(selected);
    let mut state = TableState::default().with_selected(model.position());
    frame.render_stateful_widget(widget, area, &mut state);
    let lines = rows.iter().skip(state.offset()).zip(area.rows().skip(1));
    lines.for_each(|(row, line)| sparkline(frame, line, model, row, &columns, theme));
}

/// A title, with a mark where the table is sorted by it.
fn heading(model: &Model, column: Column) -> String {
    let mark = match (column == model.sort, model.reversed) {
        (false, _) => "",
        (true, false) => "▼",
        (true, true) => "▲",
    };
    format!("{}{mark}", column.title())
}

fn filled(row: &Row, column: Column, width: u16, theme: Theme) -> Cell<'static> {
    let style = match column {
        Column::Accelerated if row.accelerated == row.connections => theme.colored(Color::Green),
        Column::Hit if row.recent.hit_rate().is_some_and(|hit| hit > 0.0) => theme.colored(Color::Green),
        _ => Style::new(),
    };
    let (text, width) = (row.text(column), usize::from(width));
    let fits = match column {
        // What comes first says most; of a name and a process both ends do.
        Column::Accelerated if text.width() > width => format!("{}…", clip(&text, width.saturating_sub(1))),
        _ => shorten(&text, width),
    };
    cell(fits, column, style)
}

fn cell(text: String, column: Column, style: Style) -> Cell<'static> {
    let alignment = if column.is_numeric() { Alignment::Right } else { Alignment::Left };
    Cell::from(Text::from(text).alignment(alignment)).style(style)
}

/// The history of a row, in its line of the table.
fn sparkline(frame: &mut Frame<'_>, line: Rect, model: &Model, row: &Row, columns: &[(Column, u16)], theme: Theme) {
    let mut x = line.x;
    for (column, width) in columns {
        if *column == Column::Recent {
            let area = Rect { x, width: *width, ..line }.intersection(line);
            let rates = model.history.last(&row.key, usize::from(area.width));
            let widget = Sparkline::default().data(rates).absent_value_symbol(" ").style(theme.colored(Color::Cyan));
            frame.render_widget(widget, area);
        }
        x = x.saturating_add(*width).saturating_add(GAP);
    }
}

/// The whole name, both ends and the reason, as much as there is room for.
fn details_of(row: &Row, area: Rect) -> Vec<Line<'static>> {
    let width = usize::from(area.width);
    let open = match row.open {
        Some(open) if open != row.connections => format!(" ({open} open)"),
        _ => String::new(),
    };
    let connections = plural(row.connections, "connection");
    let selected = format!("{connections}{open}, {} selected, {} accelerated", row.selected, row.accelerated);
    let why = if row.why.is_empty() { String::new() } else { format!(" {}.", row.why) };
    let mut lines = vec![shorten(&row.name, width)];
    lines.extend(fold(&format!("{}; {selected}.{why}", row.processes), width));
    lines.truncate(usize::from(area.height));
    lines.into_iter().map(Line::from).collect()
}

fn help(model: &Model) -> Line<'static> {
    match (model.typing, model.filter.as_str()) {
        (true, filter) => Line::from(format!("filter: {filter}▏ {HELP_TYPING}")),
        (false, "") => Line::from(HELP),
        (false, filter) => Line::from(format!("filter: {filter} (Esc ends it)  {HELP}")),
    }
}

/// `text` in lines of at most `width`, broken at blanks where there are any.
fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(shorten(word, width)),
        }
    }
    lines
}
