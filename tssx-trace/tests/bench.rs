//! `bench`, made short: that what it keeps is complete, is what the schema says, and is refused where nothing was accelerated. How fast
//! anything is does not matter here. The library is named by `TSSX_PRELOAD`; `cargo xtask test` sets it.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::TRACER;
use common::schema::{Schema, Used};
use serde_json::Value;

#[test]
fn peer_process() {
    common::run_peer();
}

fn bench(options: &[&str], library: &str) -> Output {
    Command::new(TRACER).arg("bench").args(options).env("TSSX_PRELOAD", library).output().expect("it starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn a_calibration_is_complete_as_its_schema_says_and_is_printed_again() {
    let library =
        std::env::var("TSSX_PRELOAD").expect("TSSX_PRELOAD must name libtssx_preload.so: run these tests by `cargo xtask test`");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("calibration.json");
    let file = file.to_str().expect("UTF-8");
    let first = bench(&["--rounds", "1", "--time", "1ms", "--output", file], &library);
    assert_eq!(first.status.code(), Some(0), "{}", errors(&first));
    assert!(errors(&first).contains(file) && !errors(&first).contains('\r'), "{}", errors(&first));
    let again = bench(&["--from", file], "/nonexistent.so");
    assert_eq!(String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&first.stdout));

    let json = bench(&["--from", file, "--json"], "/nonexistent.so").stdout;
    assert_eq!(json, std::fs::read(file).expect("kept"));
    let calibration: Value = serde_json::from_slice(&json).expect("JSON");
    let (schema, mut used) = (Schema::of_calibration(), Used::new());
    schema.check("calibration", &calibration, &mut used).expect("as the schema says");
    let unused: Vec<_> = schema.properties().difference(&used).cloned().collect();
    assert!(unused.is_empty(), "the schema has what no calibration has: {unused:?}");
    let points = calibration["points"].as_array().expect("a list");
    for (shape, bytes) in [("round_trip", 1), ("events", 64), ("stream", 1 << 20)] {
        let found = points.iter().any(|point| point["shape"] == shape && point["bytes"] == bytes && point["one_cpu"] == false);
        assert!(found, "no {shape} of {bytes} bytes");
    }
    assert!(points.iter().all(|point| point["plain"]["time_ns"]["least"].as_f64().is_some_and(f64::is_finite)));
}

#[test]
fn a_library_that_accelerates_nothing_gives_no_figures() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("calibration.json");
    // Any library that can be loaded, and is not ours.
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our own");
    let other = maps.lines().filter_map(|line| line.split_ascii_whitespace().last()).find(|path| path.ends_with("/libc.so.6"));
    let output = bench(&["--rounds", "1", "--time", "1ms", "--output", file.to_str().expect("UTF-8")], other.expect("libc"));
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(errors(&output).contains("not loaded"), "{}", errors(&output));
    assert!(!Path::new(&file).exists());
    assert!(output.stdout.is_empty());
}

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name)
}

#[test]
fn suggest_tells_the_gain_by_a_calibration_and_says_what_is_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    // Of a host on which everything takes 10 µs plain and 1 µs through rings, whatever the size.
    let (file, recording) = (kept("calibration.json"), kept("busy.json"));
    let calibration = std::fs::read_to_string(&file).expect("kept");
    let calibration: Value = serde_json::from_str(&calibration).expect("JSON");
    Schema::of_calibration().check("calibration", &calibration, &mut Used::new()).expect("as the schema says");
    let suggest = |options: &[&str]| {
        let mut command = Command::new(TRACER);
        command.args(["suggest", "--from"]).arg(&recording).args(options);
        // Any ELF file: it is named, not loaded.
        command.env("TSSX_PRELOAD", TRACER).env("XDG_CACHE_HOME", directory.path()).output().expect("it starts")
    };
    let path = file.to_str().expect("UTF-8");
    let (one, two) = (suggest(&["--calibration", path]), suggest(&["--calibration", path]));
    let text = String::from_utf8_lossy(&one.stdout).into_owned();
    assert_eq!(text, String::from_utf8_lossy(&two.stdout), "the same files give the same bytes");
    let gains: Vec<_> = text.lines().filter(|line| line.starts_with("# gain ")).collect();
    assert!(gains.iter().any(|line| line.contains("/run/") && line.contains("s saved each second")), "{text} {}", errors(&one));
    assert!(gains.iter().any(|line| line.contains("assumes")), "{text}");
    for format in ["systemd", "compose"] {
        let other = suggest(&["--calibration", path, "--format", format]);
        let other = String::from_utf8_lossy(&other.stdout).into_owned();
        assert_eq!(other.lines().filter(|line| line.starts_with("# gain ")).collect::<Vec<_>>(), gains, "{format}");
    }
    let kept = directory.path().join("tssx");
    std::fs::create_dir(&kept).expect("made");
    std::fs::copy(&file, kept.join("calibration.json")).expect("copied");
    assert_eq!(String::from_utf8_lossy(&suggest(&["--predict"]).stdout), text);
    assert!(!String::from_utf8_lossy(&suggest(&[]).stdout).contains("# gain "));
    let missing = suggest(&["--calibration", "/nonexistent"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(errors(&missing).contains("/nonexistent") && errors(&missing).contains("tssx-trace bench"), "{}", errors(&missing));
}

#[test]
fn verify_wants_recording_and_calibration_together() {
    let (file, recording) = (kept("calibration.json"), kept("busy.json"));
    let verify = |options: &[&str]| Command::new(TRACER).arg("verify").args(options).output().expect("it starts");
    let without = verify(&["--calibration", file.to_str().expect("UTF-8")]);
    assert!(without.status.code() == Some(1) && errors(&without).contains("--before FILE"), "{}", errors(&without));
    let without = verify(&["--before", recording.to_str().expect("UTF-8")]);
    assert!(without.status.code() == Some(1) && errors(&without).contains("--predict"), "{}", errors(&without));
}
