//! `bench`, made short: that what it keeps is complete, is what the schema says, and is refused where nothing was accelerated. How fast
//! anything is does not matter here. The library is named by `TSSX_PRELOAD`; `cargo xtask test` sets it.

mod common;

use std::path::Path;
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
    assert!(used.contains("calibration/points"), "{used:?}");
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
