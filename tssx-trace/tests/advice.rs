//! `suggest` and `explain` from recordings that are kept in `tests/recordings`, without privilege: each format byte by byte, and the schemas.
//!
//! `*.out` are the outputs as they must be; `TSSX_BLESS=1` writes them anew, for a look at the difference.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::TRACER;
use common::schema::{Schema, Used};
use serde_json::Value;

/// Kept output, the command with its recording and options, and the exit status.
const OUTPUTS: [(&str, &[&str], i32); 10] = [
    ("suggest-shell", &["suggest", "busy"], 0),
    ("suggest-systemd", &["suggest", "busy", "--format", "systemd", "--possible", "--min-calls", "1000"], 0),
    ("suggest-unit", &["suggest", "busy", "--format", "systemd", "--unit", "redis-server.service"], 0),
    ("suggest-compose", &["suggest", "busy", "--format", "compose"], 0),
    ("suggest-json", &["suggest", "busy", "--format", "json"], 0),
    ("suggest-lossy", &["suggest", "lossy", "--accept-losses", "--min-calls", "10000"], 5),
    ("explain-redis", &["explain", "busy", "/run/redis.sock"], 0),
    ("explain-odd", &["explain", "busy", "@\\xff\\x00"], 0),
    ("explain-json", &["explain", "busy", "26658", "--json"], 0),
    ("explain-lossy", &["explain", "lossy", "26659"], 3),
];

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name)
}

/// Exit status, output and messages of a command on a recording; the machine has none of what it speaks of.
fn run(words: &[&str]) -> (Option<i32>, String, String) {
    let [command, recording, options @ ..] = words else { panic!("no command and recording") };
    let mut tracer = Command::new(TRACER);
    tracer.args([command, "--from"]).arg(kept(&format!("{recording}.json"))).args(options).env_remove("TSSX_PRELOAD");
    let output = tracer.output().expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn suggest(recording: &str, options: &[&str]) -> (Option<i32>, String, String) {
    run(&[&["suggest", recording], options].concat())
}

#[test]
fn a_kept_recording_gives_the_kept_advice_byte_by_byte() {
    let bless = std::env::var_os("TSSX_BLESS").is_some();
    for (name, words, status) in OUTPUTS {
        let (code, text, errors) = run(words);
        assert_eq!(code, Some(status), "{name}: {errors}");
        let file = kept(&format!("{name}.out"));
        if bless {
            std::fs::write(&file, &text).expect("written");
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(text, expected, "{name} ({}): TSSX_BLESS=1 if this is meant", words.join(" "));
    }
    assert!(!bless, "the outputs were written anew: look at them, and run without TSSX_BLESS");
}

#[test]
fn every_proposal_is_as_the_schema_says_and_the_schema_has_nothing_else() {
    let schema = Schema::of_suggest();
    let mut used = Used::new();
    let calibration = kept("calibration.json").to_str().expect("UTF-8").to_owned();
    // The socket in the kept container passes descriptors, so that nothing of it is selected; without that it is.
    let directory = tempfile::tempdir().expect("a directory");
    let busy = std::fs::read_to_string(kept("busy.json")).expect("kept");
    let mut plain: Value = serde_json::from_str(&busy).expect("JSON");
    plain["services"][0]["evidence"]["signals"] = Value::Null;
    std::fs::write(directory.path().join("plain.json"), plain.to_string()).expect("written");
    let plain = directory.path().join("plain").to_str().expect("UTF-8").to_owned();
    for (recording, options) in [
        ("busy", &["--format", "json"][..]),
        ("lossy", &["--format", "json", "--accept-losses"]),
        ("busy", &["--format", "json", "--calibration", &calibration]),
        (&plain, &["--format", "json", "--possible"]),
    ] {
        let (_, json, errors) = suggest(recording, options);
        assert_eq!(suggest(recording, options).1, json, "the same files give the same bytes");
        let document: Value = serde_json::from_str(&json).unwrap_or_else(|_| panic!("JSON: {errors}"));
        schema.check("suggestion", &document, &mut used).expect("as the schema says");
        let sockets = document["sockets"].as_array().expect("a list");
        let predicts = options.contains(&"--calibration");
        assert!(sockets.iter().all(|socket| socket.get("gain").is_some() == predicts), "{json}");
        assert!(sockets.iter().any(|socket| socket["gain"]["predicted"].is_object()) == predicts, "{json}");
    }
    let unused: Vec<_> = schema.properties().difference(&used).cloned().collect();
    assert!(unused.is_empty(), "the schema has what no output has: {unused:?}");
}

#[test]
fn every_explanation_is_as_the_schema_says_and_the_schema_has_nothing_else() {
    let schema = Schema::of_explain();
    let mut used = Used::new();
    for words in [
        ["explain", "busy", "/run/redis.sock", "--json"],
        ["explain", "busy", "31", "--json"],
        ["explain", "lossy", "26658", "--json"],
    ] {
        let (_, json, errors) = run(&words);
        let document: Value = serde_json::from_str(&json).unwrap_or_else(|_| panic!("JSON: {errors}"));
        schema.check("explanation", &document, &mut used).expect("as the schema says");
    }
    let unused: Vec<_> = schema.properties().difference(&used).cloned().collect();
    assert!(unused.is_empty(), "the schema has what no output has: {unused:?}");
}

#[test]
fn what_was_not_seen_is_said_by_name() {
    for subject in ["/run/nonexistent.sock", "4194304"] {
        let (code, text, errors) = run(&["explain", "busy", subject]);
        assert_eq!((code, text.as_str()), (Some(5), ""), "{errors}");
        assert!(errors.contains(subject) && errors.contains("discover --all"), "{errors}");
    }
    let (code, _, errors) = run(&["explain", "busy", "/run/redis.sock", "--duration", "1s"]);
    assert_eq!(code, Some(2), "a recording has its own length: {errors}");
}

#[test]
fn evidence_that_misses_too_much_gives_no_advice_unless_told_to() {
    let (code, text, errors) = suggest("lossy", &[]);
    assert_eq!((code, text.as_str()), (Some(3), ""), "{errors}");
    assert!(errors.contains("misses 2522 calls, 65.6% of all") && errors.contains("--accept-losses"), "{errors}");
    for options in [&["--accept-losses"][..], &["--max-losses", "66%"]] {
        let (code, text, errors) = suggest("lossy", options);
        assert_eq!(code, Some(0), "{errors}");
        assert!(text.contains("could not be counted") && text.contains("USE_TSSX=\"/run/redis.sock\""), "{text}");
    }
    let (code, _, errors) = suggest("uncounted", &[]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("measures no traffic") && errors.contains("doctor"), "{errors}");
}

#[test]
fn a_unit_that_is_no_end_of_anything_selected_is_named() {
    let (code, text, errors) = suggest("busy", &["--format", "systemd", "--unit", "other.service"]);
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(errors.contains("other.service") && errors.contains("without --unit"), "{errors}");
    let (code, text, errors) = suggest("busy", &["--unit", "redis-server.service"]);
    assert_eq!((code, text.as_str()), (Some(1), ""), "another format has no units");
    assert!(errors.contains("--format systemd"), "{errors}");
}

#[test]
fn every_format_says_what_is_gained_and_a_unit_s_own_drop_in_of_its_sockets_alone() {
    let calibration = kept("calibration.json").to_str().expect("UTF-8").to_owned();
    let gains = |options: &[&str]| -> Vec<String> {
        let (_, text, errors) = suggest("busy", &[options, &["--calibration", &calibration]].concat());
        let lines = text.lines().filter_map(|line| line.strip_prefix("# gain ").map(String::from));
        let (assumed, gains): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with("assumes: "));
        assert!(!assumed.is_empty(), "{text}{errors}");
        gains
    };
    let all = gains(&["--format", "shell"]);
    assert!(all.len() > 1 && all.iter().any(|line| line.contains(": predicted: ")), "{all:?}");
    assert_eq!((gains(&["--format", "systemd"]), gains(&["--format", "compose"])), (all.clone(), all));
    let one = gains(&["--format", "systemd", "--unit", "redis-server.service"]);
    assert!(matches!(&one[..], [only] if only.starts_with("/run/redis.sock: ")), "{one:?}");
}
