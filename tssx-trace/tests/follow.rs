//! `discover --follow`, in a terminal and elsewhere. The terminal is a real one, opened here; what a person would see on it is
//! read from the screen of a terminal emulator. Needs root and BPF.

mod common;

use std::io::Read;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use common::schema::{Schema, Used};
use common::terminal::Terminal;
use common::{DEADLINE, TRACER, client, exchange, server, stop, tracer};
use serde_json::Value;

#[test]
fn peer_process() {
    common::run_peer();
}

/// Ctrl-C, and what stands on the screen when the report has come: the exit status, the screen, every byte.
fn finish(terminal: &Terminal) -> (ExitStatus, String, Vec<u8>) {
    terminal.press("\x03");
    let status = terminal.wait_for_end();
    let screen = terminal.wait_for("the end of the report", |screen| screen.contains("recorded in"));
    (status, screen, terminal.raw())
}

/// The numbers of the row of a socket, by the end of its name.
fn row(screen: &str, end: &str) -> Option<Vec<String>> {
    let line = screen.lines().find(|line| line.split_ascii_whitespace().next().is_some_and(|name| name.ends_with(end)))?;
    Some(line.split_ascii_whitespace().map(str::to_owned).collect())
}

#[test]
fn a_terminal_is_redrawn_with_what_is_new_shortened_to_its_width_and_ctrl_c_leaves_the_report() {
    let directory = tempfile::tempdir().expect("a directory");
    let long = directory.path().join("a-directory-with-a-name-that-is-long/and-another-one-below");
    std::fs::create_dir_all(&long).expect("made");
    let socket = long.join("unique.sock").to_str().expect("UTF-8").to_owned();
    assert!(socket.len() < 108, "{socket}");
    let _server = server(&socket, &[]);
    let mut client = client(&socket, &[]);
    let recording = directory.path().join("recording.json");
    let arguments = ["discover", "--follow", "--interval", "200ms", "--sort", "name", "--socket", "*/unique.sock", "--record"];
    let arguments: Vec<&str> = arguments.into_iter().chain([recording.to_str().expect("UTF-8")]).collect();
    let terminal = Terminal::start(&arguments, (20, 130), &[]);
    terminal.wait_for("a first view", |screen| row(screen, "e.sock").is_some());
    exchange(&mut client, 100, 64);
    let calls = |screen: &str, calls: &str| row(screen, "e.sock").is_some_and(|row| row.iter().any(|word| word == calls));
    let screen = terminal.wait_for("200 calls", |screen| calls(screen, "200"));
    assert_eq!(screen.matches("e.sock").count(), 1, "one view, not one below the other:\n{screen}");
    assert!(row(&screen, "e.sock").expect("there")[0].contains('…'), "{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 130), "{screen}");

    // Rates are of the last interval: at rest they fall to zero while the totals stay.
    terminal.wait_for("rest", |screen| row(screen, "e.sock").is_some_and(|row| row.windows(2).any(|two| two == ["200", "0"])));
    exchange(&mut client, 50, 64);
    terminal.wait_for("300 calls", |screen| calls(screen, "300"));

    terminal.resize((20, 90));
    let screen = terminal.wait_for("the narrow view", |screen| {
        row(screen, "e.sock").is_some()
            && screen.matches("e.sock").count() == 1
            && screen.lines().all(|line| line.chars().count() <= 90)
    });
    assert!(screen.contains("SOCKET"), "{screen}");

    let (status, screen, raw) = finish(&terminal);
    common::assert_own_traffic_counted(status.code(), &screen);
    assert_eq!(screen.matches("SOCKET ").count(), 1, "the last view made room for the report:\n{screen}");
    assert!(screen.contains("ended early") && (screen.contains("Lost: nothing.") || screen.contains("LOST")), "{screen}");
    let has = |bytes: &[u8]| raw.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"\x1b[1m") && !has(b"\x1b[?1049h") && !has(b"\x1b[?25l"), "bold, and a terminal that needs no repair");
    let kept: Value = serde_json::from_slice(&std::fs::read(&recording).expect("there")).expect("JSON");
    let services = kept["services"].as_array().expect("a list");
    assert_eq!(services.iter().find(|service| service["display"] == socket.as_str()).expect("there")["calls"], 300);
}

#[test]
fn no_color_is_obeyed_and_a_dumb_terminal_gets_no_control_sequence_at_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("recording.json");
    for (environment, any_sequence) in [([("NO_COLOR", "1")], true), ([("TERM", "dumb")], false)] {
        let arguments = ["discover", "--follow", "--interval", "100ms", "--record", recording.to_str().expect("UTF-8")];
        let terminal = Terminal::start(&arguments, (24, 100), &environment);
        terminal.wait_for("a view", |screen| screen.contains("CALLS: sends"));
        let (status, screen, raw) = finish(&terminal);
        assert!(matches!(status.code(), Some(0 | 3)), "{status}:\n{screen}");
        let escapes = raw.iter().filter(|byte| **byte == 0x1b).count();
        assert_eq!(escapes > 0, any_sequence, "{environment:?}: {screen}");
        let colors = raw.split(|byte| *byte == 0x1b).skip(1).filter(|rest| {
            let parameters = rest.iter().skip(1).take_while(|byte| byte.is_ascii_digit() || **byte == b';').count();
            rest.get(1 + parameters) == Some(&b'm')
        });
        assert_eq!(colors.count(), 0, "{environment:?}");
    }
}

#[test]
fn a_pipe_gets_one_view_after_the_other_in_full_and_then_the_report() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("a-long-name-that-no-pipe-shortens").join("x".repeat(30) + ".sock");
    std::fs::create_dir_all(socket.parent().expect("a parent")).expect("made");
    let socket = socket.to_str().expect("UTF-8");
    let _server = server(socket, &[]);
    let _client = client(socket, &[]);
    let (recording, output) = (directory.path().join("recording.json"), directory.path().join("views"));
    let arguments =
        ["discover", "--follow", "--interval", "100ms", "--socket", socket, "--record", recording.to_str().expect("UTF-8")];
    let tracer = tracer(&arguments, &output);
    let end = Instant::now() + DEADLINE;
    while std::fs::read_to_string(&output).expect("there").matches(socket).count() < 3 {
        assert!(Instant::now() < end, "no three views");
        std::thread::sleep(Duration::from_millis(10));
    }
    let (code, errors) = stop(tracer);
    assert!(matches!(code, Some(0 | 3)), "{errors}");
    let text = std::fs::read_to_string(&output).expect("there");
    assert!(!text.contains('\x1b') && !text.contains('…') && text.contains("ended early"), "{text}");
}

#[test]
fn lines_of_each_interval_are_as_the_schema_says_and_add_up_to_the_total() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("echo.sock");
    let socket = socket.to_str().expect("UTF-8");
    let _server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let (recording, output) = (directory.path().join("recording.json"), directory.path().join("lines"));
    let options = ["discover", "--follow", "--format", "jsonl", "--interval", "100ms", "--socket", socket, "--pairs", "--record"];
    let arguments: Vec<&str> = options.into_iter().chain([recording.to_str().expect("UTF-8")]).collect();
    let tracer = tracer(&arguments, &output);
    let read = || std::fs::read_to_string(&output).expect("there");
    let end = Instant::now() + DEADLINE;
    for _ in 0..5 {
        exchange(&mut client, 100, 64);
        std::thread::sleep(Duration::from_millis(60));
    }
    while !read().lines().any(|line| line.contains("\"record\":\"rate\"") && line.contains("\"calls\":1000")) {
        assert!(Instant::now() < end, "the traffic is never shown:\n{}", read());
        std::thread::sleep(Duration::from_millis(10));
    }
    let (code, errors) = stop(tracer);
    common::assert_own_traffic_counted(code, &errors);
    let (schema, mut used) = (Schema::read(), Used::new());
    let lines: Vec<Value> = read().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for line in &lines {
        schema.check("line", line, &mut used).expect("as the schema says");
    }
    let unused: Vec<_> =
        schema.properties().into_iter().filter(|place| place.starts_with("line:")).filter(|place| !used.contains(place)).collect();
    assert!(unused.iter().all(|place| place.starts_with("line:unnamed/")), "the schema has what no line has: {unused:?}");
    let of = |record: &'static str| lines.iter().filter(move |line| line["record"] == record);
    let sum: u64 = of("rate").filter_map(|line| line["interval_calls"].as_u64()).sum();
    assert_eq!(sum, 1000);
    let numbers: Vec<u64> = of("interval").map(|line| line["number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(of("service").map(|line| &line["calls"]).collect::<Vec<_>>(), [1000]);
    assert_eq!((of("window").count(), lines.iter().position(|line| line["record"] == "window")), (1, Some(lines.len() - 2)));
}

#[test]
fn a_reader_that_goes_away_ends_the_view_and_the_recording_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("recording.json");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(TRACER);
    command.args(["discover", "--follow", "--interval", "50ms", "--duration", "10m", "--record"]).arg(&recording).stdout(writer);
    let tracer = common::Guarded::start(&mut command, false);
    drop(command); // our copy of the pipe
    reader.read_exact(&mut [0; 10]).expect("a view");
    drop(reader);
    let (status, lines) = tracer.finish(); // within its deadline, which is shorter than the window
    assert!(matches!(status.code(), Some(0 | 3)), "{status} {lines:#?}");
    assert!(recording.exists() && !lines.join("\n").contains("panic"), "{lines:#?}");
}

#[test]
fn a_single_document_cannot_be_followed() {
    let output = Command::new(TRACER).args(["discover", "--follow", "--format", "json"]).output().expect("it starts");
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("--format jsonl"), "{errors}");
}
