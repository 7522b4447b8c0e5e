//! Frames as they must be: of a model made from recordings, in terminals of several sizes.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;

use super::{Column, Model, Theme, draw, press};
use crate::advice::Side;
use crate::filter::Filter;
use crate::hit_rate::ReasonCount;
use crate::probe::Refusal;
use crate::recording::samples::{busy, process, program, recording_of};
use crate::recording::{Recording, ServiceRecord};

/// Three sockets: one in rings, one that waits for its client's library, one that is plain; `factor` scales the traffic since the start.
fn recording(window_ms: u64, factor: u64) -> Recording {
    let times = |count: u64| Some(count * factor);
    let reason = ReasonCount {
        end: Side::Client,
        reason: String::from("no-library"),
        explanation: String::from("no ledger of this end was seen"),
        connections: 2,
    };
    let services = vec![
        ServiceRecord {
            servers: vec![process(410, "redis-server", 0)],
            clients: vec![process(20, "redis-benchmark", 0)],
            connections: 50,
            open: Some(50),
            selected: 50,
            accelerated: 50,
            calls: times(200_000),
            bytes: times(9_000_000),
            ring_bytes: times(8_999_000),
            ..busy(b"/run/redis/redis-server-with-a-long-name.sock")
        },
        ServiceRecord {
            servers: vec![process(30, "postgres", 0), process(31, "postgres", 0)],
            clients: vec![process(40, "pgbench", 0)],
            connections: 3,
            open: Some(2),
            selected: 3,
            accelerated: 1,
            reasons: vec![reason],
            calls: times(9000),
            bytes: times(700_000),
            ring_bytes: times(350_000),
            ..busy(b"/run/postgresql/.s.PGSQL.5432")
        },
        ServiceRecord { open: Some(0), calls: times(12), bytes: times(480), ..busy(b"@\0abstract"[1..].as_ref()) },
    ];
    let mut recording = recording_of(services);
    recording.programs.extend([410, 20, 30, 31, 40].map(program));
    recording.head.window_ms = window_ms;
    recording.head.mode_limits = vec![String::from("bytes read by splice(2) are not counted")];
    recording.head.cost.own_cpu_ms = Some(window_ms as f64 / 50.0);
    recording.head.cost.event_ns = Some(180.0);
    recording
}

/// After three intervals of one second, the second of which was quiet.
fn model() -> Model {
    let mut model = Model::new(Filter::default(), Column::Bytes);
    for (window_ms, factor) in [(1000, 1), (2000, 1), (3000, 3)] {
        model.update(&recording(window_ms, factor));
    }
    model
}

fn buffer(model: &Model, size: (u16, u16), color: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("a terminal");
    terminal.draw(|frame| draw(frame, model, Theme { color })).expect("drawn");
    terminal.backend().buffer().clone()
}

/// The lines, without the blanks at their ends.
fn screen(model: &Model, size: (u16, u16)) -> Vec<String> {
    let buffer = buffer(model, size, false);
    let rows = buffer.area.rows();
    let line = |row: ratatui::layout::Rect| -> String { row.columns().map(|cell| buffer[(cell.x, cell.y)].symbol()).collect() };
    rows.map(|row| line(row).trim_end().to_owned()).collect()
}

fn typed(model: &mut Model, codes: &[KeyCode]) {
    for code in codes {
        assert!(press(model, KeyEvent::new(*code, KeyModifiers::NONE)));
    }
}

#[test]
fn a_wide_terminal_shows_everything() {
    let lines = screen(&model(), (140, 14));
    let expected = [
        "tssx-trace top: 3 sockets, 418k calls/s, 19.4M bytes/s, 96% of them through shared memory",
        "3 s, mode tp_btf; own CPU 2.0% of one CPU, kernel time for each event 180 ns",
        "Lost: nothing.",
        "Limits of mode tp_btf: bytes read by splice(2) are not counted.",
        "SOCKET                                   SERVER           CLIENTS             CONNS  CALLS/S BYTES/S▼   HIT ACCELERATED            RECENT",
        "/run/redis/redis-se…ith-a-long-name.sock 410 redis-server 20 redis-benchmark     50     400k    18.0M   99% yes                          ▄ █",
        "/run/postgresql/.s.PGSQL.5432            30 postgres +1   40 pgbench              2    18.0k    1.40M   50% 1 of 3: no-library           ▄ █",
        "@abstract                                10 server        11 client               0       24      960     - no: library-not-loaded       ▄ █",
        "",
        "",
        "/run/redis/redis-server-with-a-long-name.sock",
        "410 redis-server ⇄ 20 redis-benchmark; 50 connections, 50 selected, 50 accelerated.",
        "",
        "q quit  / filter  ←→ sort by  r reverse  ↑↓ scroll",
    ];
    assert_eq!(lines, expected, "{lines:#?}");
}

#[test]
fn eighty_columns_shorten_names_in_the_middle() {
    let lines = screen(&model(), (80, 16));
    let expected = [
        "tssx-trace top: 3 sockets, 418k calls/s, 19.4M bytes/s, 96% of them through",
        "shared memory",
        "3 s, mode tp_btf; own CPU 2.0% of one CPU, kernel time for each event 180 ns",
        "Lost: nothing.",
        "Limits of mode tp_btf: bytes read by splice(2) are not counted.",
        "SOCKET       SERVER     CLIENTS     CALLS/S BYTES/S▼   HIT ACCELERATED    RECENT",
        "/run/…e.sock 410 …erver 20 r…hmark     400k    18.0M   99% yes               ▄ █",
        "/run/…L.5432 30 p…es +1 40 pgbench    18.0k    1.40M   50% 1 of 3: no-li…    ▄ █",
        "@abstract    10 server  11 client        24      960     - no: library-n…    ▄ █",
        "",
        "",
        "",
        "/run/redis/redis-server-with-a-long-name.sock",
        "410 redis-server ⇄ 20 redis-benchmark; 50 connections, 50 selected, 50",
        "accelerated.",
        "q quit  / filter  ←→ sort by  r reverse  ↑↓ scroll",
    ];
    assert_eq!(lines, expected, "{lines:#?}");
}

#[test]
fn sixty_columns_lose_the_processes_and_keep_the_figures() {
    let lines = screen(&model(), (60, 10));
    let expected = [
        "tssx-trace top: 3 sockets, 418k calls/s, 19.4M bytes/s, 96%",
        "of them through shared memory",
        "3 s, mode tp_btf; own CPU 2.0% of one CPU, kernel time for",
        "each event 180 ns",
        "Lost: nothing.",
        "SOCKET          CALLS/S BYTES/S▼   HIT ACCELERATED    RECENT",
        "/run/r…me.sock     400k    18.0M   99% yes               ▄ █",
        "/run/p…QL.5432    18.0k    1.40M   50% 1 of 3: no-li…    ▄ █",
        "@abstract            24      960     - no: library-n…    ▄ █",
        "q quit  / filter  ←→ sort by  r reverse  ↑↓ scroll",
    ];
    assert_eq!(lines, expected, "{lines:#?}");
}

#[test]
fn no_size_makes_it_panic_and_the_keys_are_always_told() {
    for size in [(1, 1), (3, 2), (20, 4), (200, 3), (21, 60), (300, 100)] {
        let lines = screen(&model(), size);
        assert!(size.0 < 20 || lines.iter().any(|line| line.contains("q quit")), "{size:?}: {lines:#?}");
    }
    let empty = screen(&Model::new(Filter::default(), Column::Bytes), (60, 5));
    assert!(empty[0].contains("has not ended yet") && empty[4].contains("q quit"), "{empty:#?}");
}

fn order(lines: &[String]) -> Vec<usize> {
    let at = |name: &str| lines.iter().position(|line| line.starts_with(name)).unwrap_or(usize::MAX);
    [at("/run/redis"), at("/run/post"), at("@abstract")].into()
}

#[test]
fn keys_sort_and_reverse_and_the_heading_says_so() {
    let mut model = model();
    assert_eq!(order(&screen(&model, (140, 12))), [5, 6, 7]);
    typed(&mut model, &[KeyCode::Char('r')]);
    let lines = screen(&model, (140, 12));
    assert_eq!(order(&lines), [7, 6, 5], "{lines:#?}");
    assert!(lines[4].contains("BYTES/S▲"), "{lines:#?}");
    typed(&mut model, &[KeyCode::Right, KeyCode::Right]);
    let lines = screen(&model, (140, 12));
    assert_eq!(order(&lines), [5, 6, 7], "{lines:#?}");
    assert!(lines[4].contains("ACCELERATED▼") && !lines[4].contains("BYTES/S▲"), "{lines:#?}");
    typed(&mut model, &[KeyCode::Right]);
    let lines = screen(&model, (140, 12));
    assert_eq!(order(&lines), [6, 5, 7], "by name:\n{lines:#?}");
}

#[test]
fn a_typed_filter_leaves_rows_out_and_says_how_many() {
    let mut model = model();
    typed(&mut model, &[KeyCode::Char('/'), KeyCode::Char('P'), KeyCode::Char('g'), KeyCode::Char('b')]);
    let lines = screen(&model, (140, 12));
    assert_eq!(order(&lines), [usize::MAX, 5, usize::MAX], "{lines:#?}");
    assert!(lines[0].contains("1 socket of 3, 18.0k calls/s"), "{lines:#?}");
    assert!(lines[11].starts_with("filter: Pgb▏"), "{lines:#?}");
    typed(&mut model, &[KeyCode::Char('x'), KeyCode::Enter]);
    let lines = screen(&model, (140, 12));
    assert!(lines.iter().any(|line| line == "No socket has that text.") && lines[11].contains("filter: Pgbx (Esc"), "{lines:#?}");
    typed(&mut model, &[KeyCode::Esc]);
    assert_eq!(order(&screen(&model, (140, 12))), [5, 6, 7]);
}

#[test]
fn a_low_terminal_scrolls_to_the_selected_row_and_tells_of_it() {
    let mut model = model();
    typed(&mut model, &[KeyCode::End]);
    let lines = screen(&model, (140, 8));
    assert_eq!(order(&lines), [usize::MAX, 5, 6], "{lines:#?}");
    let lines = screen(&model, (140, 16));
    assert_eq!(lines[12], "@abstract", "{lines:#?}");
    assert!(
        lines[13].contains("10 server ⇄ 11 client; 1 connection (0 open), 0 selected, 0 accelerated. library-not-loaded"),
        "{lines:#?}"
    );
    assert!(buffer(&model, (140, 16), false)[(0, 7)].modifier.contains(ratatui::style::Modifier::REVERSED));
}

#[test]
fn losses_and_refused_modes_stand_in_the_head() {
    let mut recording = recording(1000, 1);
    recording.head.losses.missed_events = 7;
    recording.head.losses.untold_processes = 2;
    recording.head.refused_modes = vec![Refusal { mode: String::from("tp_btf"), reason: String::from("no BTF") }];
    recording.head.mode = String::from("syscalls");
    recording.head.cost.own_cpu_ms = None;
    let mut model = Model::new(Filter::default(), Column::Bytes);
    model.update(&recording);
    let text = screen(&model, (100, 24)).join(" ");
    for part in [
        "LOST: 2 processes not told of in time",
        "(and 1 loss more)",
        "lower bounds",
        "own CPU not measured",
        "do not work here: tp_btf",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
}

#[test]
fn colours_are_where_they_may_be_and_nowhere_else() {
    let colors = |color: bool| {
        let buffer = buffer(&model(), (140, 14), color);
        buffer.content.iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert_eq!(colors(false), 0);
    assert!(colors(true) > 0);
    let dim = |line: u16| buffer(&model(), (140, 14), false)[(0, line)].modifier.contains(ratatui::style::Modifier::DIM);
    assert_eq!([5, 6, 7].map(dim), [false, false, true], "what has ended");
}

#[test]
fn screens_of_the_usual_sizes_are_as_they_are_kept() {
    let shown = |size| screen(&model(), size).join("\n") + "\n";
    crate::snapshots::hold(&[("top-80x24", shown((80, 24))), ("top-120x40", shown((120, 40)))]);
}
