//! Reports from recordings that are kept in `tests/recordings`, without privilege: the text, the JSON and its schema.
//!
//! The recordings are real ones with names, owners and numbers replaced, and services added that are seen seldom. `*.out` are
//! the reports as they must be, byte by byte; `TSSX_BLESS=1` writes them anew, for a look at the difference.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::TRACER;
use common::schema::{Schema, Used};
use serde_json::Value;

/// Kept report, recording, options, and the exit status.
const REPORTS: [(&str, &str, &[&str], i32); 10] = [
    ("busy", "busy", &[], 0),
    ("busy-all-by-name", "busy", &["--all", "--sort", "name"], 0),
    ("busy-json", "busy", &["--json"], 0),
    ("busy-jsonl", "busy", &["--format", "jsonl", "--sort", "connections"], 0),
    ("filter-socket", "busy", &["--socket", "/run/r*", "--socket", "@/tmp*"], 0),
    ("filter-process", "busy", &["--uid", "1000", "--comm", "redis-*", "--format", "json"], 0),
    ("filter-container", "busy", &["--container", "4f1d2c3b4a59"], 0),
    ("filter-nothing", "busy", &["--pid", "4194304"], 0),
    ("lossy", "lossy", &[], 3),
    ("uncounted", "uncounted", &[], 0),
];

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name)
}

fn replay(recording: &Path, options: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(TRACER).args(["discover", "--from"]).arg(recording).args(options).output().expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_kept_recording_gives_the_kept_reports_byte_by_byte() {
    let bless = std::env::var_os("TSSX_BLESS").is_some();
    for (name, recording, options, status) in REPORTS {
        let (code, text, errors) = replay(&kept(&format!("{recording}.json")), options);
        assert_eq!(code, Some(status), "{name}: {errors}");
        let file = kept(&format!("{name}.out"));
        if bless {
            std::fs::write(&file, &text).expect("written");
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(text, expected, "{name} ({}): TSSX_BLESS=1 if this is meant", options.join(" "));
    }
    assert!(!bless, "the reports were written anew: look at them, and run without TSSX_BLESS");
}

#[test]
fn a_replay_warns_of_losses_as_the_live_run_did() {
    let (code, text, errors) = replay(&kept("lossy.json"), &["--format", "jsonl"]);
    assert_eq!(code, Some(3), "{errors}");
    assert!(errors.contains("LOST: 2522 calls") && errors.contains("more than 3 sockets"), "{errors}");
    assert!(errors.contains("1 network namespaces could not be entered"), "{errors}");
    assert!(text.contains("\"map_full_calls\":2522"), "{text}");
}

#[test]
fn what_was_not_measured_is_neither_zero_in_text_nor_in_json() {
    let (_, text, _) = replay(&kept("uncounted.json"), &[]);
    let row = text.lines().find(|line| line.starts_with("@/tmp/.X11-unix/X0")).expect("a row");
    let after: Vec<_> = row.split_ascii_whitespace().rev().take(6).collect();
    assert_eq!(after, ["no", "-", "-", "-", "-", "-"], "{row}");
    let (_, json, _) = replay(&kept("uncounted.json"), &["--json"]);
    let report: Value = serde_json::from_str(&json).expect("JSON");
    for service in report["services"].as_array().expect("a list") {
        assert!(service["calls"].is_null() && service["client_to_server"]["sent_bytes"].is_null(), "{service}");
    }
}

#[test]
fn every_recording_and_report_is_as_the_schema_says_and_the_schema_has_nothing_else() {
    let schema = Schema::read();
    let mut used = Used::new();
    for name in ["busy", "lossy", "uncounted"] {
        let file = kept(&format!("{name}.json"));
        let recording = serde_json::from_slice(&std::fs::read(&file).expect("there")).expect("JSON");
        schema.check("recording", &recording, &mut used).expect("as the schema says");
        let (_, json, _) = replay(&file, &["--json", "--comm", "r*", "--uid", "999"]);
        schema.check("report", &serde_json::from_str(&json).expect("JSON"), &mut used).expect("as the schema says");
        let (_, lines, _) = replay(&file, &["--format", "jsonl"]);
        for line in lines.lines() {
            schema.check("line", &serde_json::from_str(line).expect("JSON"), &mut used).expect("as the schema says");
        }
    }
    let unused: Vec<_> = schema.properties().difference(&used).cloned().collect();
    // The lines of an interval are written by a live run only: `follow.rs` checks them.
    let live = |place: &String| place.starts_with("line:interval/") || place.starts_with("line:rate/");
    assert!(unused.iter().all(live), "the schema has what no output has: {unused:?}");
}

#[test]
fn what_is_not_as_the_schema_says_is_found() {
    let schema = Schema::read();
    let good: Value = serde_json::from_slice(&std::fs::read(kept("busy.json")).expect("there")).expect("JSON");
    let flaws: [fn(&mut Value); 6] = [
        |value| value["version"] = 1.into(),
        |value| value["services"][0]["calls"] = "many".into(),
        |value| value["services"][0]["kind"] = "pipe".into(),
        |value| value["losses"]["new_field"] = 0.into(),
        |value| value["services"][0]["servers"][0]["pid"] = (-1).into(),
        |value| drop(value.as_object_mut().expect("an object").remove("tracer")),
    ];
    for flaw in flaws {
        let mut bad = good.clone();
        flaw(&mut bad);
        assert_ne!(bad, good);
        schema.check("recording", &bad, &mut Used::new()).expect_err("found");
    }
}

#[test]
fn options_that_have_no_meaning_together_are_refused() {
    let file = kept("busy.json");
    for options in [
        &["--duration", "1s"][..],
        &["--record", "/dev/null"],
        &["--follow"],
        &["--interval", "1s"],
        &["--json", "--format", "table"],
        &["--sort", "colour"],
        &["--pid", "x"],
    ] {
        let (code, text, errors) = replay(&file, options);
        assert_eq!((code, text.as_str()), (Some(2), ""), "{options:?}: {errors}");
    }
    let report = kept("busy-json.out");
    let (code, _, errors) = replay(&report, &[]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("its format is `tssx-trace discover report`") && errors.contains("record again"), "{errors}");
}
