//! The manners of every command: a reader that goes away, narrow terminals, colours, and a word on how far it is. Needs root and BPF.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::terminal::Terminal;
use common::{TRACER, client, exchange, server};

#[test]
fn peer_process() {
    common::run_peer();
}

fn kept(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name).to_str().expect("UTF-8").to_owned()
}

/// Each command that prints a result, on a kept recording where it takes one.
fn commands(record: &str) -> Vec<Vec<String>> {
    let (busy, calibration) = (kept("busy.json"), kept("calibration.json"));
    let lines = [
        "--help".to_owned(),
        "--version".to_owned(),
        "man".to_owned(),
        "completions bash".to_owned(),
        format!("discover --from {busy}"),
        format!("discover --from {busy} --json"),
        format!("discover --from {busy} --format jsonl"),
        format!("suggest --from {busy}"),
        format!("suggest --from {busy} --format json"),
        format!("explain --from {busy} /run/redis.sock"),
        format!("explain --from {busy} /run/redis.sock --json"),
        format!("bench --from {calibration}"),
        format!("bench --from {calibration} --json"),
        "doctor".to_owned(),
        "doctor --json".to_owned(),
        format!("discover --closer 0 --duration 50ms --record {record}"),
        "verify --duration 50ms".to_owned(),
        "verify --duration 50ms --json".to_owned(),
    ];
    lines.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

#[test]
fn a_reader_that_goes_away_changes_no_status_and_makes_no_noise() {
    let directory = tempfile::tempdir().expect("a directory");
    let record = directory.path().join("recording.json").to_str().expect("UTF-8").to_owned();
    for arguments in commands(&record) {
        let run = |stdout: Stdio| {
            Command::new(TRACER).args(&arguments).stdout(stdout).stderr(Stdio::piped()).output().expect("it starts")
        };
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (read, unread) = (run(Stdio::piped()), run(writer.into()));
        let errors = String::from_utf8_lossy(&unread.stderr);
        // What others lose on this host may differ from one window to the next.
        let lost = [&read, &unread].iter().any(|output| output.status.code() == Some(3));
        assert!(unread.status.code() == read.status.code() || lost, "{arguments:?}: {} {errors}", unread.status);
        assert!(unread.status.code().is_some(), "{arguments:?}: ended by a signal: {}", unread.status);
        assert!(["panic", "Broken pipe"].iter().all(|word| !errors.contains(word)), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_closed_standard_error_is_nobody_to_tell_and_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(TRACER);
    command.args(["doctor", "--json"]).stderr(writer);
    let output = command.output().expect("it starts");
    assert!(matches!(output.status.code(), Some(0 | 5)) && output.stdout.starts_with(b"{"), "{}", output.status);
}

/// What the tracer leaves in a terminal of that size, when it has ended, without the blanks at the ends of lines.
fn shown(arguments: &[&str], size: (u16, u16), environment: &[(&str, &str)], last: &str) -> (Vec<String>, Vec<u8>) {
    let terminal = Terminal::start(arguments, size, environment);
    terminal.wait_for_end();
    let screen = terminal.wait_for("its last line", |screen| screen.contains(last));
    (screen.lines().map(|line| line.trim_end().to_owned()).collect(), terminal.raw())
}

/// The lines of the table: from its header to the next empty line.
fn table(lines: &[String]) -> Vec<&str> {
    let from = lines.iter().position(|line| line.starts_with("SOCKET") || line.starts_with("SHAPE")).expect("a table");
    lines[from..].iter().map(String::as_str).take_while(|line| !line.is_empty()).collect()
}

#[test]
fn tables_fit_a_narrow_terminal_and_are_whole_in_a_pipe() {
    let (busy, calibration) = (kept("busy.json"), kept("calibration.json"));
    let discover = ["discover", "--from", &busy];
    let whole = Command::new(TRACER).args(discover).env("COLUMNS", "60").output().expect("it starts");
    let whole = String::from_utf8(whole.stdout).expect("UTF-8");
    assert!(!whole.contains('…') && !whole.contains("no room for"), "{whole}");
    let rows = table(&whole.lines().map(str::to_owned).collect::<Vec<_>>()).len();
    for (columns, environment) in [(60, None), (80, None), (150, Some(("COLUMNS", "80")))] {
        let environment: Vec<_> = environment.into_iter().collect();
        let (lines, _) = shown(&discover, (50, columns), &environment, "Lost: nothing.");
        let table = table(&lines);
        // As many lines as rows, and one that says what is left out: none is broken in two.
        assert_eq!(table.len(), rows + 1, "{lines:#?}");
        assert!(table.iter().all(|line| line.chars().count() <= usize::from(columns.min(80))), "{lines:#?}");
        assert!(table[rows].starts_with("(no room for MEAN"), "{lines:#?}");
        assert!(table.iter().any(|line| line.contains('…')) && table[0].contains("ACCELERATED"), "{lines:#?}");
    }
    let (lines, _) = shown(&["bench", "--from", &calibration], (60, 80), &[], "library ");
    assert!(table(&lines).last().is_some_and(|line| line.starts_with("(no room for ")), "{lines:#?}");
}

#[test]
fn verify_fits_a_narrow_terminal_and_says_how_far_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("a-name-that-is-rather-long-for-a-narrow-terminal.sock").to_str().expect("UTF-8").to_owned();
    let _server = server(&socket, &[]);
    let mut client = client(&socket, &[]);
    for (environment, color) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let arguments = ["verify", "--duration", "10m", &socket];
        let terminal = Terminal::start(&arguments, (24, 70), environment);
        let screen = terminal.wait_for("how far it is", |screen| screen.contains(" s left; "));
        assert!(screen.lines().all(|line| line.chars().count() < 70), "{screen}");
        exchange(&mut client, 100, 64);
        terminal.press("\x03");
        terminal.wait_for_end();
        let screen = terminal.wait_for("the report", |screen| screen.contains("so there is no hit rate"));
        assert!(!screen.contains(" s left"), "{screen}");
        let lines: Vec<_> = screen.lines().map(|line| line.trim_end().to_owned()).collect();
        assert_eq!(table(&lines).len(), 3, "{lines:#?}");
        assert!(table(&lines)[1].contains('…') && table(&lines)[2].starts_with("(no room for DOORBELLS"), "{lines:#?}");
        assert_eq!(terminal.raw().windows(4).any(|bytes| bytes == b"\x1b[1m"), color);
    }
}

#[test]
fn how_far_it_is_goes_to_a_terminal_on_standard_error_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let record = directory.path().join("recording.json").to_str().expect("UTF-8").to_owned();
    let discover = ["discover", "--closer", "0", "--duration", "2100ms", "--record", &record];
    let output = Command::new(TRACER).args(discover).output().expect("it starts");
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!errors.contains(" s left") && !errors.contains('\x1b') && errors.contains("attached"), "{errors}");
    // A terminal that can do nothing with it.
    let (_, raw) = shown(&discover, (24, 100), &[("TERM", "dumb")], "recorded in");
    assert!(!raw.contains(&0x1b) && !String::from_utf8_lossy(&raw).contains(" s left"));
    // Standard output in a file, as of somebody who keeps the report.
    let mut command = Command::new("setsid");
    command.args(["--ctty", "sh", "-c", "exec \"$0\" \"$@\" > /dev/null", TRACER]).env("TERM", "xterm");
    command.args(["discover", "--closer", "0", "--duration", "10m", "--record", &record]);
    let terminal = Terminal::run(command, (24, 100));
    terminal.wait_for("how far it is", |screen| screen.contains(" s left; ") && screen.contains("Unix socket"));
    terminal.press("\x03");
    terminal.wait_for_end();
    let screen = terminal.wait_for("the end", |screen| screen.contains("recorded in"));
    assert!(!screen.contains(" s left"), "it is taken away: {screen}");
}

#[test]
fn a_calibration_says_how_far_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("calibration.json").to_str().expect("UTF-8").to_owned();
    let sockets = tempfile::tempdir().expect("a directory");
    let environment = [("TMPDIR", sockets.path().to_str().expect("UTF-8"))];
    let terminal = Terminal::start(&["bench", "--rounds", "1", "--time", "20ms", "--output", &output], (24, 100), &environment);
    terminal.wait_for("how far it is", |screen| screen.contains("measuring, ") && screen.contains(", about "));
    terminal.press("\x03");
    terminal.wait_for_end();
    terminal.wait_for("why it ends", |screen| screen.contains("interrupted: no calibration was kept"));
    let left: Vec<_> = sockets.path().read_dir().expect("readable").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
