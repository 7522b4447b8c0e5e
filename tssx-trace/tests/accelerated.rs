//! `discover` of connections that are in rings, where the kernel sees next to nothing: success must not look like silence.
//!
//! The library is named by `TSSX_PRELOAD` (absolute path); `cargo xtask test` sets it. Needs root and BPF.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{DEADLINE, assert_own_traffic_counted, client, exchange, server, stop, tracer};
use serde_json::Value;

/// Requests before the window: enough for a connection to be upgraded.
const WARM_UP: u64 = 2000;
/// Requests in the window, bytes of each, and what both ends send in all.
const COUNT: u64 = 3000;
const SIZE: usize = 64;
const TOTAL: u64 = 2 * COUNT * SIZE as u64;

#[test]
fn peer_process() {
    common::run_peer();
}

fn library() -> String {
    let library =
        std::env::var("TSSX_PRELOAD").expect("TSSX_PRELOAD must name libtssx_preload.so: run these tests by `cargo xtask test`");
    assert!(Path::new(&library).is_absolute(), "TSSX_PRELOAD must be absolute");
    library
}

fn service(recording: &Path, display: &str) -> Value {
    let recording: Value = serde_json::from_slice(&std::fs::read(recording).expect("a recording")).expect("JSON");
    let services = recording["services"].as_array().expect("a list");
    services.iter().find(|service| service["display"] == display).unwrap_or_else(|| panic!("no {display} in {recording}")).clone()
}

#[test]
fn ring_traffic_is_counted_exactly_and_shown_beside_a_plain_connection() {
    let library = library();
    let directory = tempfile::tempdir().expect("a directory");
    let name = |file: &str| directory.path().join(file).to_str().expect("UTF-8").to_owned();
    let (fast, plain) = (name("fast.sock"), name("plain.sock"));
    let environment = [("LD_PRELOAD", library.as_str()), ("USE_TSSX", fast.as_str())];
    let servers = [server(&fast, &environment), server(&plain, &[])];
    let mut fast_client = client(&fast, &environment);
    let mut plain_client = client(&plain, &[]);
    exchange(&mut fast_client, WARM_UP, SIZE);
    servers[0].await_rest();
    let (recording, output) = (directory.path().join("recording.json"), directory.path().join("table"));
    let tracer = tracer(&["discover", "--sort", "ring", "--record", recording.to_str().expect("UTF-8")], &output);
    exchange(&mut fast_client, COUNT, SIZE);
    exchange(&mut plain_client, COUNT, SIZE);
    servers[0].await_rest();
    let (code, errors) = stop(tracer);
    assert_own_traffic_counted(code, &errors);

    let service_of = |socket: &str| service(&recording, socket);
    let one = service_of(&fast);
    let counts =
        ["connections", "selected", "accelerated", "calls", "bytes", "ring_calls", "ring_bytes"].map(|field| one[field].as_u64());
    assert_eq!(counts, [1, 1, 1, 2 * COUNT, TOTAL, 2 * COUNT, TOTAL].map(Some), "{one}");
    let other = service_of(&plain);
    assert_eq!(
        (other["bytes"].as_u64(), &other["ring_bytes"], &other["ring_calls"]),
        (Some(TOTAL), &Value::Null, &Value::Null),
        "{other}"
    );

    let table = std::fs::read_to_string(&output).expect("a table");
    let row =
        |socket: &str| table.lines().position(|line| line.starts_with(socket)).unwrap_or_else(|| panic!("no {socket}:\n{table}"));
    assert!(row(&fast) < row(&plain), "--sort ring:\n{table}");
    let ends = |socket: &str, end: &str| table.lines().nth(row(socket)).is_some_and(|line| line.ends_with(end));
    assert!(ends(&fast, "yes, 384k ring bytes") && ends(&plain, "  no"), "{table}");
    assert!(table.contains("own CPU time ") && !table.contains("own CPU time 0.00 s"), "{table}");
}

#[test]
fn a_followed_ring_has_rates_in_each_interval_in_which_it_moved() {
    let library = library();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("fast.sock").to_str().expect("UTF-8").to_owned();
    let environment = [("LD_PRELOAD", library.as_str()), ("USE_TSSX", socket.as_str())];
    let server = server(&socket, &environment);
    let mut client = client(&socket, &environment);
    exchange(&mut client, WARM_UP, SIZE);
    server.await_rest();
    let (recording, output) = (directory.path().join("recording.json"), directory.path().join("lines"));
    let options = ["discover", "--follow", "--interval", "100ms", "--format", "jsonl", "--socket", &socket, "--record"];
    let arguments: Vec<&str> = options.into_iter().chain([recording.to_str().expect("UTF-8")]).collect();
    let tracer = tracer(&arguments, &output);
    let rates = || -> Vec<Value> {
        let text = std::fs::read_to_string(&output).expect("there");
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole); // the last line may be half written
        let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.filter(|line| line["record"] == "rate").collect()
    };
    let end = Instant::now() + DEADLINE;
    for round in 1..=3 {
        exchange(&mut client, COUNT, SIZE);
        while rates().last().is_none_or(|rate| rate["ring_bytes"] != round * TOTAL) {
            assert!(Instant::now() < end, "round {round} is never shown: {:#?}", rates().last());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let (code, errors) = stop(tracer);
    assert_own_traffic_counted(code, &errors);
    let all = rates();
    // Null only before the first byte, where others' losses forbid to say zero.
    let moved: u64 = all.iter().filter_map(|rate| rate["interval_bytes"].as_u64()).sum();
    assert_eq!(moved, 3 * TOTAL, "{all:#?}");
    assert_eq!(service(&recording, &socket)["ring_bytes"], 3 * TOTAL);
}
