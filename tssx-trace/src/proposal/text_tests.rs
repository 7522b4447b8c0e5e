//! The formats against the readers that they are for: shells themselves, and systemd's rules as its manual pages and sources give them.

use std::process::Command;

use anyhow::Context;

use super::*;
use crate::proposal::Limits;
use crate::recording::Recording;
use crate::recording::samples::{busy, recording_of};

/// Names that some reader would take otherwise than they are meant.
const AWKWARD: [&[u8]; 10] = [
    b"/run/a b  c",
    b"/run/it's \"quoted\"",
    b"/run/$HOME/${x}/`id`/$(id)",
    b"/run/100%/%h/%%",
    b"/run/#no;comment",
    b"/run/back\\slash\\",
    "/run/ü!*?[x]~{a,b};&|<>".as_bytes(),
    b"\0@name $",
    b"/run/ends in blank ",
    b"/run/\\x41\\n",
];

/// Names that no format can hold.
const UNWRITABLE: [&[u8]; 4] = [b"/run/new\nline", b"/run/\xff\xfe", b"/run/tab\tbed", b"/run/esc\x1b[31m"];

fn recording() -> Recording {
    let mut services: Vec<_> = AWKWARD.iter().chain(&UNWRITABLE).map(|name| busy(name)).collect();
    for service in &mut services {
        service.servers[0].cgroup = Some("/system.slice/web.service".into());
    }
    recording_of(services)
}

fn proposal(recording: &Recording) -> Proposal<'_> {
    Proposal::new(recording, "/usr/lib/tssx/libtssx_preload.so".into(), Limits { min_calls: 1.0, possible: false })
}

/// The words that the library reads out of `USE_TSSX`, by the rules of its policy: a backslash makes the next character an ordinary one.
fn words(value: &str) -> Vec<Vec<u8>> {
    let mut words = vec![Vec::new()];
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => words.last_mut().expect("a word").extend(bytes.next()),
            b' ' => words.push(Vec::new()),
            other => words.last_mut().expect("a word").push(other),
        }
    }
    words
}

/// The awkward names as the library compares them.
fn expected() -> Vec<Vec<u8>> {
    AWKWARD.iter().map(|name| name.strip_prefix(b"\0").map_or_else(|| name.to_vec(), |rest| [b"@", rest].concat())).collect()
}

#[test]
fn shells_read_the_file_to_the_very_names() {
    let recording = recording();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tssx.env");
    std::fs::write(&file, proposal(&recording).shell().expect("printable")).expect("written");
    for shell in ["sh", "bash"] {
        let script = "set -eu; set -a; . \"$1\"; set +a; printf '%s\n%s' \"$USE_TSSX\" \"$LD_PRELOAD\"";
        let output = Command::new(shell).args(["-c", script, "sh"]).arg(&file).output().expect("a shell");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let (selection, library) = text.split_once('\n').expect("two lines");
        assert_eq!((words(selection), library), (expected(), "/usr/lib/tssx/libtssx_preload.so"), "{shell}");
    }
}

/// Where that parser is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    PreKey,
    Key,
    PreValue,
    Value,
    ValueEscape,
    Single,
    Double,
    DoubleEscape,
    Comment,
    CommentEscape,
}

/// `parse_env_file` of systemd (src/basic/env-file.c), state by state.
fn environment_file(text: &str) -> Vec<(String, String)> {
    let (mut state, mut key, mut value, mut found) = (State::PreKey, String::new(), String::new(), Vec::new());
    for c in text.chars().chain(['\n']) {
        let newline = c == '\n' || c == '\r';
        let blank = newline || c == ' ' || c == '\t';
        state = match state {
            State::PreKey if c == '#' || c == ';' => State::Comment,
            State::PreKey if blank => State::PreKey,
            State::PreKey => {
                key = c.to_string();
                State::Key
            }
            State::Key if newline => State::PreKey,
            State::Key if c == '=' => {
                value.clear();
                State::PreValue
            }
            State::Key => {
                key.push(c);
                State::Key
            }
            State::PreValue | State::Value if newline => {
                let kept = if state == State::Value { value.trim_end_matches([' ', '\t']) } else { &value };
                found.push((key.trim_end().to_owned(), kept.to_owned()));
                State::PreKey
            }
            State::PreValue if c == '\'' => State::Single,
            State::PreValue if c == '"' => State::Double,
            State::PreValue if blank => State::PreValue,
            State::PreValue | State::Value if c == '\\' => State::ValueEscape,
            State::PreValue | State::Value => {
                value.push(c);
                State::Value
            }
            State::ValueEscape => {
                value.extend((!newline).then_some(c));
                State::Value
            }
            State::Single if c == '\'' => State::PreValue,
            State::Double if c == '"' => State::PreValue,
            State::Double if c == '\\' => State::DoubleEscape,
            State::Single | State::Double => {
                value.push(c);
                state
            }
            State::DoubleEscape => {
                match c {
                    '"' | '\\' | '`' | '$' => value.push(c),
                    '\n' => {}
                    other => value.extend(['\\', other]),
                }
                State::Double
            }
            State::Comment if c == '\\' => State::CommentEscape,
            State::Comment if newline => State::PreKey,
            State::Comment | State::CommentEscape => State::Comment,
        };
    }
    assert!(state == State::PreKey, "the file ends within something");
    found
}

#[test]
fn systemd_s_environment_file_parser_reads_the_very_names() {
    let recording = recording();
    let variables = environment_file(&proposal(&recording).shell().expect("printable"));
    let [(one, selection), (two, library)] = variables.as_slice() else { panic!("{variables:?}") };
    assert_eq!((one.as_str(), two.as_str(), library.as_str()), ("USE_TSSX", "LD_PRELOAD", "/usr/lib/tssx/libtssx_preload.so"));
    assert_eq!(words(selection), expected());
    // What would have been lost if a value were not quoted, so that the parser above is not blind.
    assert_eq!(
        environment_file("A=b c \nB=\"x\\$\\y\"'z'\n# c\\\nC=hidden\n"),
        [("A".into(), "b c".into()), ("B".into(), "x$\\yz".into())]
    );
}

/// `Environment=`: words with quotes and C-style escapes, systemd.syntax(7), then specifiers, systemd.unit(5).
fn environment(line: &str) -> String {
    let quoted = line.strip_prefix("Environment=\"").and_then(|rest| rest.strip_suffix('"')).expect("one quoted word");
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => panic!("the word ends early: {line}"),
            '\\' => match characters.next().expect("no escape at the end") {
                escaped @ ('\\' | '"') => value.push(escaped),
                other => panic!("\\{other} would become something else: {line}"),
            },
            plain => value.push(plain),
        }
    }
    let mut expanded = String::new();
    let mut characters = value.chars();
    while let Some(c) = characters.next() {
        if c == '%' {
            assert_eq!(characters.next(), Some('%'), "a specifier in {line}");
        }
        expanded.push(c);
    }
    expanded
}

#[test]
fn a_drop_in_holds_the_very_names_and_is_the_unit_s_own() {
    let recording = recording();
    let proposal = proposal(&recording);
    let all = proposal.systemd(None).expect("text");
    assert!(all.contains("# file /etc/systemd/system/web.service.d/tssx.conf\n"), "{all}");
    assert!(all.contains("command /usr/bin/program-11: client of"), "what is in no unit is told: {all}");
    let one = proposal.systemd(Some("web.service")).expect("the unit");
    let lines: Vec<_> = one.lines().filter(|line| !line.starts_with('#')).collect();
    let ["[Service]", selection, library] = lines.as_slice() else { panic!("{one}") };
    assert_eq!(words(environment(selection).strip_prefix("USE_TSSX=").expect("the variable")), expected());
    assert_eq!(environment(library), "LD_PRELOAD=/usr/lib/tssx/libtssx_preload.so");
    assert_eq!(proposal.systemd(Some("other.service")), None);
}

#[test]
fn compose_reads_the_very_names() {
    let recording = recording();
    let text = proposal(&recording).compose();
    let line = text.lines().find_map(|line| line.strip_prefix("    USE_TSSX: ")).expect("the variable");
    // A double-quoted scalar with no other escape than these two is what JSON reads too; then compose expands `$`.
    let scalar: String = serde_json::from_str(line).expect("a scalar");
    assert!(!scalar.replace("$$", "").contains('$'), "{scalar}");
    assert_eq!(words(&scalar.replace("$$", "$")), expected());
}

#[test]
fn names_that_no_format_holds_are_comments_with_the_reason_in_each_of_them() {
    let recording = recording();
    let proposal = proposal(&recording);
    for text in [proposal.shell().expect("printable"), proposal.systemd(None).expect("text"), proposal.compose()] {
        for shown in ["/run/new\\x0aline", "/run/\\xff\\xfe", "/run/tab\\x09bed", "/run/esc\\x1b[31m"] {
            let at = text
                .lines()
                .position(|line| line.starts_with(&format!("# out {shown} (blocked)")))
                .unwrap_or_else(|| panic!("{shown}: {text}"));
            assert!(text.lines().nth(at + 1).is_some_and(|line| line.contains("name-not-writable: the name ")), "{text}");
        }
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
    }
}

#[test]
fn the_same_recording_gives_the_same_bytes() {
    let (one, two) = (recording(), recording());
    let all = |recording: &Recording| {
        let mut recording = recording.clone();
        recording.head.recorded_unix_ms = 0; // differs from one sample to the next
        let proposal = proposal(&recording);
        let texts = [proposal.shell(), proposal.systemd(None).context("text"), Ok(proposal.compose()), proposal.json()];
        texts.map(|text| text.expect("a text"))
    };
    assert_eq!(all(&one), all(&two));
}
