//! A replay prints what the live run printed, byte by byte, for anybody. Needs root and BPF for the live run.

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;

use common::schema::{Schema, Used};
use common::{client, exchange, server, stop, tracer, tracer_for_others};
use serde_json::Value;

/// A process without any privilege.
const NOBODY: u32 = 65534;

#[test]
fn peer_process() {
    common::run_peer();
}

#[test]
fn a_replay_by_nobody_prints_the_very_bytes_of_the_live_report() {
    let (directory, copy) = tracer_for_others(0o755);
    let socket = directory.path().join("echo.sock");
    let socket = socket.to_str().expect("UTF-8");
    let server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let pid = server.pid().to_string();
    let recording = directory.path().join("recording.json");
    for options in [
        &["--format", "table"][..],
        &["--format", "json", "--all"],
        &["--format", "jsonl", "--sort", "name"],
        &["--format", "table", "--pid", &pid, "--uid", "0", "--all"],
        &["--json", "--socket", socket, "--sort", "calls"],
    ] {
        let live = directory.path().join("live");
        let mut arguments = vec!["discover", "--record", recording.to_str().expect("UTF-8")];
        arguments.extend_from_slice(options);
        let tracer = tracer(&arguments, &live);
        exchange(&mut client, 200, 64);
        let (code, errors) = stop(tracer);
        let printed = std::fs::read(&live).expect("a report");
        assert!(!printed.is_empty(), "{options:?}: {errors}");
        let mut replay = Command::new(&copy);
        replay.args(["discover", "--from"]).arg(&recording).args(options).uid(NOBODY).gid(NOBODY);
        let again = replay.output().expect("it starts");
        assert_eq!(again.status.code(), code, "{options:?}: {errors} {}", String::from_utf8_lossy(&again.stderr));
        assert_eq!(String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&printed), "{options:?}");
        // A filter is for the report: the recording has every socket with an owner, however it was printed.
        let kept: Value = serde_json::from_slice(&std::fs::read(&recording).expect("there")).expect("JSON");
        Schema::read().check("recording", &kept, &mut Used::new()).expect("as the schema says");
        let services = kept["services"].as_array().expect("a list");
        let ours = services.iter().find(|service| service["display"] == socket).expect("the socket");
        assert_eq!(ours["calls"], 400, "{ours}");
        assert_eq!((&ours["servers"][0]["uid"], ours["servers"][0]["cgroup"].is_string()), (&Value::from(0), true), "{ours}");
    }
}

#[test]
fn a_filter_leaves_out_what_it_does_not_admit_and_says_how_much() {
    let directory = tempfile::tempdir().expect("a directory");
    let name = |file: &str| directory.path().join(file).to_str().expect("UTF-8").to_owned();
    let (one, two) = (name("one.sock"), name("two.sock"));
    let servers = [server(&one, &[]), server(&two, &[])];
    let mut clients = [client(&one, &[]), client(&two, &[])];
    let (recording, output) = (name("recording.json"), directory.path().join("live"));
    let pid = clients[1].pid().to_string();
    let tracer = tracer(&["discover", "--record", &recording, "--json", "--pid", &pid], &output);
    for client in &mut clients {
        exchange(client, 50, 64);
    }
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(0), "{errors}");
    let report: Value = serde_json::from_slice(&std::fs::read(&output).expect("there")).expect("JSON");
    let names = |value: &Value| -> Vec<String> {
        value["services"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|service| service["display"].as_str().expect("text").to_owned())
            .collect()
    };
    assert_eq!(names(&report), [two.as_str()], "{report}");
    let kept: Value = serde_json::from_slice(&std::fs::read(&recording).expect("there")).expect("JSON");
    assert!(names(&kept).contains(&one) && names(&kept).contains(&two), "{kept}");
    assert_eq!(report["view"]["sockets_left_out"].as_u64(), Some(names(&kept).len() as u64 - 1), "{report}");
    assert_eq!(report["view"]["filter"]["pid"][0].to_string(), pid);
    drop(servers);
}
