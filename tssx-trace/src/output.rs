//! Printing: results to standard output, everything else to standard error; a closed pipe ends neither in a panic.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Prints a result.
///
/// # Errors
/// Where standard output cannot be written; a reader that went away is no error.
pub(crate) fn result(text: &str) -> io::Result<()> {
    try_result(text).map(|_| ())
}

/// The same, and whether there is still a reader.
///
/// # Errors
/// As [`result`].
pub(crate) fn try_result(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// Prints a line for the person at the terminal. There is nobody left to tell if that fails.
pub(crate) fn note(text: &str) {
    let _unheard = writeln!(io::stderr().lock(), "tssx-trace: {text}");
}

/// A plain table: no lines, two blanks between columns, nothing wrapped, numbers to the right.
pub(crate) fn table(header: &[&str], numeric: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    let columns = table.column_count();
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
        if numeric.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// A number of bytes or calls as people read it: `950`, `12.3k`, `4.56M`.
pub(crate) fn short(value: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut scaled = value;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let digits = match scaled {
        _ if unit == 0 && scaled.fract() == 0.0 => 0,
        _ if scaled >= 99.95 => 0,
        _ if scaled >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{}", UNITS.get(unit).copied().unwrap_or_default())
}

/// Nanoseconds as people read them.
pub(crate) fn time(nanoseconds: f64) -> String {
    match nanoseconds.abs() {
        size if size < 1e3 => format!("{nanoseconds:.0} ns"),
        size if size < 1e6 => format!("{:.2} µs", nanoseconds / 1e3),
        size if size < 1e9 => format!("{:.2} ms", nanoseconds / 1e6),
        _ => format!("{:.2} s", nanoseconds / 1e9),
    }
}

/// `1 connection`, `2 connections`.
pub(crate) fn plural(count: u64, noun: &str) -> String {
    let ending = match count {
        1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short_and_never_lose_a_unit() {
        let shown: Vec<_> = [0.0, 7.0, 0.5, 999.0, 1000.0, 12_345.0, 999_999.0, 1e9].map(short).into();
        assert_eq!(shown, ["0", "7", "0.50", "999", "1.00k", "12.3k", "1.00M", "1.00G"]);
    }

    #[test]
    fn a_table_has_one_line_for_each_row_however_long() {
        let text = table(&["A", "N"], &[1], vec![vec!["x".repeat(300), "7".into()], vec!["y".into(), "12".into()]]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().all(|line| !line.ends_with(' ')));
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let shown = [12.4, -999.0, 1500.0, 2.5e6, 3e9].map(time);
        assert_eq!(shown, ["12 ns", "-999 ns", "1.50 µs", "2.50 ms", "3.00 s"]);
    }
}
