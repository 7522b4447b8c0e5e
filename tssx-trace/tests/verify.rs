//! `verify` against exchanges of known size: no byte is lost between the two sources, and each miss has its reason.
//!
//! The library is named by `TSSX_PRELOAD` (absolute path); `cargo xtask test` sets it. Needs root and BPF.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::schema::{Schema, Used};
use common::{Guarded, TRACER, client, exchange, server, stop, tracer};
use serde_json::Value;

/// Requests and bytes of each of the measured exchange; every request is answered with as many bytes.
const COUNT: u64 = 5000;
const SIZE: usize = 64;
const TOTAL: u64 = 2 * COUNT * SIZE as u64;
/// Requests before the measurement: enough for the connection to be upgraded.
const WARM_UP: u64 = 2000;

#[test]
fn peer_process() {
    common::run_peer();
}

/// A directory with a socket in it, and the environment that selects it.
struct Place {
    directory: tempfile::TempDir,
    socket: String,
    library: String,
}

impl Place {
    fn new() -> Self {
        let library = std::env::var("TSSX_PRELOAD")
            .expect("TSSX_PRELOAD must name libtssx_preload.so: run these tests by `cargo xtask test`");
        assert!(Path::new(&library).is_absolute(), "TSSX_PRELOAD must be absolute");
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("echo.sock").to_str().expect("UTF-8").to_owned();
        Self { directory, socket, library }
    }

    fn accelerated(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", &self.library), ("USE_TSSX", &self.socket)]
    }

    fn verify(&self) -> Guarded {
        self.verify_by("auto")
    }

    fn verify_by(&self, mode: &str) -> Guarded {
        let arguments = ["verify", "--mode", mode, "--json", "--connections", "--min-hit-rate", "99%", &self.socket];
        tracer(&arguments, &self.directory.path().join("report"))
    }

    /// Builds a program of `tests/programs`.
    fn build(&self, name: &str, flags: &[&str]) -> PathBuf {
        let program = self.directory.path().join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/programs/{name}.c"));
        let built = Command::new("cc").arg("-o").arg(&program).arg(source).args(flags).status();
        assert!(built.expect("cc starts: install a C compiler").success());
        program
    }

    /// Ends the window; gives the exit code, the socket's part of the report and standard error.
    fn end(&self, tracer: Guarded) -> (Option<i32>, Value, String) {
        let (code, errors) = stop(tracer);
        let text = std::fs::read_to_string(self.directory.path().join("report")).expect("a report");
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}; {errors}"));
        Schema::of_verify().check("report", &report, &mut Used::new()).expect("as the schema says");
        let mut replay = Command::new(TRACER);
        let again = replay.args(["verify", "--json", "--from"]).arg(self.directory.path().join("report")).output();
        assert_eq!(String::from_utf8_lossy(&again.expect("it starts").stdout), text, "what was kept is printed again");
        (code, report["sockets"][0].clone(), errors)
    }
}

/// Nothing is lost and nothing counted twice: the two sources add up to what was exchanged, and the kernel's counters
/// agree with the library's own.
fn assert_adds_up(report: &Value, total: u64) {
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}"));
    assert_eq!(number("ring_bytes") + number("kernel_bytes"), total, "{report}");
    assert_eq!(number("kernel_bytes"), number("library_kernel_bytes"), "{report}");
    assert_eq!(number("disagreements"), 0, "{report}");
}

fn reasons(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let list = report["reasons"].as_array().expect("a list");
    list.iter().map(|reason| (text(&reason["end"]), text(&reason["reason"]))).collect()
}

#[test]
fn an_upgraded_connection_has_a_full_hit_rate_in_every_mode() {
    for mode in common::measuring_modes() {
        let place = Place::new();
        let server = server(&place.socket, &place.accelerated());
        let mut client = client(&place.socket, &place.accelerated());
        exchange(&mut client, WARM_UP, SIZE);
        server.await_rest(); // a doorbell at the edge of the window counts as the kernel's
        let tracer = place.verify_by(mode);
        exchange(&mut client, COUNT, SIZE);
        server.await_rest();
        let (code, report, errors) = place.end(tracer);
        assert_adds_up(&report, TOTAL);
        assert_eq!(code, Some(0), "{mode}: {report} {errors}");
        assert_eq!((report["selected"].as_u64(), report["accelerated"].as_u64()), (Some(1), Some(1)), "{mode}: {report}");
        assert!(report["hit_rate"].as_f64().expect("a rate") >= 0.99, "{mode}: {report}");
        assert!(reasons(&report).is_empty(), "{mode}: {report}");
    }
}

#[test]
fn misses_are_counted_to_the_last_byte_in_every_mode() {
    for mode in common::measuring_modes() {
        let place = Place::new();
        let server = server(&place.socket, &place.accelerated());
        let mut client = client(&place.socket, &[]);
        let tracer = place.verify_by(mode);
        exchange(&mut client, COUNT, SIZE);
        server.await_rest(); // the last answer is counted after it was sent
        let (code, report, errors) = place.end(tracer);
        assert_eq!(code, Some(4), "{mode}: {errors}");
        assert_adds_up(&report, TOTAL);
        assert_eq!(report["hit_rate"].as_f64(), Some(0.0), "{mode}: {report}");
    }
}

#[test]
fn a_connection_that_comes_and_goes_within_the_window_is_counted_to_the_last_byte() {
    let place = Place::new();
    let tracer = place.verify();
    let server = server(&place.socket, &place.accelerated());
    let mut client = client(&place.socket, &place.accelerated());
    exchange(&mut client, COUNT, SIZE);
    assert!(client.finish().0.success());
    assert!(server.finish().0.success());
    let (_, report, errors) = place.end(tracer);
    assert_adds_up(&report, TOTAL);
    assert_eq!((report["selected"].as_u64(), report["accelerated"].as_u64()), (Some(1), Some(1)), "{report} {errors}");
}

#[test]
fn with_the_library_at_the_server_only_the_reason_is_given() {
    let place = Place::new();
    let server = server(&place.socket, &place.accelerated());
    let tracer = place.verify();
    let mut client = client(&place.socket, &[]);
    exchange(&mut client, COUNT, SIZE);
    server.await_rest(); // the last answer is counted after it was sent
    let (code, report, errors) = place.end(tracer);
    assert_eq!(code, Some(4), "{errors}");
    assert_adds_up(&report, TOTAL);
    assert_eq!(report["hit_rate"].as_f64(), Some(0.0), "{report}");
    let expected = [("client", "no-library"), ("server", "peer-not-ready")];
    assert_eq!(reasons(&report), expected.map(|(end, reason)| (end.to_owned(), reason.to_owned())), "{report}");
}

#[test]
fn with_the_library_at_the_client_only_the_reason_is_given() {
    let place = Place::new();
    let server = server(&place.socket, &[]);
    let tracer = place.verify();
    let mut client = client(&place.socket, &place.accelerated());
    exchange(&mut client, COUNT, SIZE);
    server.await_rest(); // the last answer is counted after it was sent
    let (code, report, errors) = place.end(tracer);
    assert_eq!(code, Some(4), "{errors}");
    assert_adds_up(&report, TOTAL);
    assert_eq!(report["hit_rate"].as_f64(), Some(0.0), "{report}");
    let expected = [("client", "peer-not-ready"), ("server", "no-library")];
    assert_eq!(reasons(&report), expected.map(|(end, reason)| (end.to_owned(), reason.to_owned())), "{report}");
}

#[test]
fn a_connection_too_short_to_upgrade_is_named_as_such() {
    let place = Place::new();
    let server = server(&place.socket, &place.accelerated());
    let tracer = place.verify();
    let mut client = client(&place.socket, &place.accelerated());
    exchange(&mut client, 1, SIZE);
    server.await_rest(); // the last answer is counted after it was sent
    let (code, report, errors) = place.end(tracer);
    assert_eq!(code, Some(4), "{errors}");
    assert_adds_up(&report, 2 * SIZE as u64);
    assert_eq!(report["accelerated"].as_u64(), Some(0), "{report}");
    assert!(reasons(&report).iter().all(|(_, reason)| reason == "too-few-operations"), "{report}");
}

#[test]
fn without_the_library_there_is_no_hit_rate_and_the_exit_status_says_so() {
    let place = Place::new();
    let server = server(&place.socket, &[]);
    let mut client = client(&place.socket, &[]);
    let tracer = place.verify();
    exchange(&mut client, COUNT, SIZE);
    server.await_rest(); // the last answer is counted after it was sent
    let (code, report, errors) = place.end(tracer);
    assert_eq!(code, Some(5), "{errors}");
    assert!(errors.contains(&place.socket) && errors.contains("no hit rate"), "{errors}");
    assert_eq!((report["selected"].as_u64(), report["not_selected"].as_u64()), (Some(0), Some(1)), "{report}");
    assert_eq!(report["not_selected_bytes"].as_u64(), Some(TOTAL), "{report}");
    assert!(report["hit_rate"].is_null(), "{report}");
}

#[test]
fn a_client_that_writes_past_the_library_is_named() {
    let place = Place::new();
    let program = place.build("bypass", &[]);
    let server = server(&place.socket, &place.accelerated());
    let mut client = Guarded::start(Command::new(&program).arg(&place.socket).envs(place.accelerated()), true);
    let mut task = |line: &str| {
        client.tell(line);
        client.wait_for("done");
    };
    task("go");
    server.await_rest();
    let tracer = place.verify();
    task("go");
    server.await_rest();
    task("past");
    server.await_rest(); // it has met the bytes by then
    let (_, report, errors) = place.end(tracer);
    assert_eq!(report["accelerated"], 1, "{report} {errors}");
    let [bypass] = report["bypassed"].as_array().expect("a list").as_slice() else { panic!("{report:#}") };
    assert_eq!(bypass["end"], "client", "{report:#}");
    assert!(bypass["sent_bytes"].as_u64().is_some_and(|bytes| (64..80).contains(&bytes)), "{report:#}");
    assert_eq!(bypass["processes"][0]["pid"], client.pid(), "{report:#}");
}

#[test]
fn what_was_predicted_stands_beside_what_came_of_it() {
    let place = Place::new();
    let _server = server(&place.socket, &[]);
    let mut client = client(&place.socket, &[]);
    let path = |name: &str| place.directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (before, report) = (path("before.json"), path("report"));
    let mut window = |arguments: &[&str]| {
        let tracer = tracer(arguments, Path::new(&report));
        exchange(&mut client, COUNT, SIZE);
        stop(tracer);
        std::fs::read_to_string(&report).expect("a report")
    };
    window(&["discover", "--closer", "0", "--record", &before]);
    let calibration = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/calibration.json");
    let arguments = ["verify", "--before", &before, "--calibration", calibration, &place.socket];
    let text = window(&arguments);
    for word in ["HIT RATE", "predicted: ", "achieved: "] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    let json = window(&[&arguments[..], &["--json"]].concat());
    let document: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    Schema::of_verify().check("report", &document, &mut Used::new()).expect("as the schema says");
    let [gain] = document["gains"].as_array().expect("a list").as_slice() else { panic!("{json}") };
    assert!(gain["display"] == place.socket.as_str() && gain["predicted"].is_object(), "{json}");
    assert!(gain["achieved_factor"].as_f64().is_some_and(|factor| factor > 0.0), "{json}");
}

#[test]
fn the_schema_has_nothing_that_no_report_has() {
    let place = Place::new();
    let path = |name: &str| place.directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (before, output) = (path("before.json"), path("report"));
    let server = server(&place.socket, &place.accelerated());
    let mut plain = client(&place.socket, &[]);
    let recorder = tracer(&["discover", "--closer", "0", "--record", &before], Path::new(&output));
    exchange(&mut plain, COUNT, SIZE);
    stop(recorder);
    // One that goes past the library, one without it, and one that cannot have it.
    let mut past = Guarded::start(Command::new(place.build("bypass", &[])).arg(&place.socket).envs(place.accelerated()), true);
    let mut fixed = Guarded::start(Command::new(place.build("client", &["-static"])).args(["libc", &place.socket]), true);
    let task = |program: &mut Guarded, line: &str| {
        program.tell(line);
        program.wait_for("done");
    };
    task(&mut past, "go");
    server.await_rest();
    let calibration = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/calibration.json");
    let options = ["verify", "--json", "--connections", "--before", &before, "--calibration", calibration, &place.socket];
    let tracer = tracer(&options, Path::new(&output));
    task(&mut past, "go");
    task(&mut fixed, "go");
    exchange(&mut plain, COUNT, SIZE);
    task(&mut past, "past");
    server.await_rest();
    let (_, errors) = stop(tracer);
    let report: Value = serde_json::from_slice(&std::fs::read(&output).expect("a report")).expect("JSON");
    let (schema, mut used) = (Schema::of_verify(), Used::new());
    schema.check("report", &report, &mut used).expect("as the schema says");
    let unused: Vec<_> = schema.properties().difference(&used).cloned().collect();
    assert!(unused.is_empty(), "the schema has what this report has not: {unused:?} {report:#} {errors}");
}

#[test]
fn an_expected_socket_must_be_accelerated_and_others_stay_in_the_report() {
    let place = Place::new();
    let plain = place.directory.path().join("plain.sock").to_str().expect("UTF-8").to_owned();
    let _servers = [server(&place.socket, &place.accelerated()), server(&plain, &[])];
    let mut clients = [client(&place.socket, &place.accelerated()), client(&plain, &[])];
    for (expected, status) in [(&[&place.socket][..], 0), (&[&place.socket, &plain], 6), (&[&String::from("/nonexistent.sock")], 6)]
    {
        let output = place.directory.path().join("report");
        let mut arguments = vec!["verify", "--json"];
        arguments.extend(expected.iter().flat_map(|socket| ["--expect", socket.as_str()]));
        let tracer = tracer(&arguments, &output);
        clients.iter_mut().for_each(|client| exchange(client, COUNT, SIZE));
        let (code, errors) = stop(tracer);
        // What others lose on this host is a status of its own, and comes after that of --expect.
        assert!(code == Some(status) || (status == 0 && code == Some(3)), "{expected:?}: {code:?} {errors}");
        let report: Value = serde_json::from_slice(&std::fs::read(&output).expect("a report")).expect("JSON");
        Schema::of_verify().check("report", &report, &mut Used::new()).expect("as the schema says");
        assert!(report["sockets"].as_array().expect("a list").iter().any(|socket| socket["display"] == place.socket.as_str()));
        assert_eq!(errors.contains("explain"), status == 6, "{errors}");
    }
}
