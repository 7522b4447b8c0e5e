//! The tracer without root, what it gives up, several at once, and buffers that are too small. Needs root and BPF.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Guarded, assert_own_traffic_counted, client, exchange, server, stop, tracer, tracer_for_others};
use serde_json::Value;

#[test]
fn peer_process() {
    common::run_peer();
}

fn service(recording: &Path, display: &str) -> (Value, Value) {
    let text = std::fs::read_to_string(recording).expect("a recording");
    let recording: Value = serde_json::from_str(&text).expect("JSON");
    let services = recording["services"].as_array().expect("a list");
    let found = services.iter().find(|service| service["display"] == display).cloned();
    (found.unwrap_or_else(|| panic!("no {display} in {text}")), recording)
}

/// The effective capabilities of a process.
fn effective(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(line.trim(), 16).expect("a number")
}

const BPF: u64 = 1 << 39;
const PERFMON: u64 = 1 << 38;
const READING: u64 = 1 << 40 | 1 << 19 | 1 << 2;

#[test]
fn five_capabilities_suffice_and_two_are_given_up_after_attaching() {
    let (directory, copy) = tracer_for_others(0o777);
    let socket = directory.path().join("echo.sock");
    let socket = socket.to_str().expect("UTF-8");
    let server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let recording = directory.path().join("recording.json");
    let capabilities = "+bpf,+perfmon,+sys_ptrace,+dac_read_search,+checkpoint_restore";
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps", capabilities, "--ambient-caps", capabilities]);
    command.arg(&copy).args(["discover", "--duration", "10m", "--record"]).arg(&recording).stdout(std::process::Stdio::null());
    let mut tracer = Guarded::start(&mut command, false);
    tracer.wait_for("attached");
    assert_eq!(effective(tracer.pid()), READING);
    exchange(&mut client, 300, 64);
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(0), "{errors}");
    let (service, _) = service(&recording, socket);
    assert_eq!((service["calls"].as_u64(), service["bytes"].as_u64()), (Some(600), Some(600 * 64)));
    // Of another user's processes, which only CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH show.
    assert_eq!(service["servers"][0]["pid"], server.pid());
    assert_eq!(service["clients"][0]["pid"], client.pid());
}

#[test]
fn root_gives_up_what_only_attaching_needs() {
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("recording.json");
    let tracer = tracer(&["discover", "--record", recording.to_str().expect("UTF-8")], &directory.path().join("table"));
    assert_eq!(effective(tracer.pid()) & (BPF | PERFMON), 0);
    assert_eq!(stop(tracer).0, Some(0));
}

#[test]
fn two_tracers_at_once_do_not_disturb_each_other() {
    for mode in common::measuring_modes() {
        two_at_once([mode, mode]);
    }
    two_at_once(["tp_btf", "syscalls"]);
}

/// Two tracers in these modes, the second of which goes on when the first has ended.
fn two_at_once(modes: [&str; 2]) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("echo.sock");
    let socket = socket.to_str().expect("UTF-8");
    let _server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let files = ["first", "second"].map(|name| directory.path().join(name));
    let start = |(file, mode): (&std::path::PathBuf, &str)| {
        let arguments = ["discover", "--mode", mode, "--record", file.to_str().expect("UTF-8")];
        tracer(&arguments, &file.with_extension("table"))
    };
    let [first, second] = [(&files[0], modes[0]), (&files[1], modes[1])].map(start);
    exchange(&mut client, 200, 64);
    let (code, errors) = stop(first);
    assert_own_traffic_counted(code, &errors);
    exchange(&mut client, 100, 64);
    let (code, errors) = stop(second);
    assert_own_traffic_counted(code, &errors);
    for (file, calls) in files.iter().zip([400, 600]) {
        let (service, recording) = service(file, socket);
        assert_eq!((service["calls"].as_u64(), service["bytes"].as_u64()), (Some(calls), Some(calls * 64)), "{modes:?}");
        let cost = &recording["cost"];
        assert!(cost["own_cpu_ms"].as_f64().is_some_and(|value| value > 0.0), "{cost}");
        // Records are made when they are needed: all that there could be together would take more.
        assert!(cost["map_bytes"].as_u64().is_some_and(|value| (4096..16 << 20).contains(&value)), "{cost}");
    }
}

#[test]
fn processes_that_a_ring_of_one_page_had_no_room_for_are_counted_as_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("recording.json");
    let arguments = ["discover", "--ring-bytes", "4096", "--record", recording.to_str().expect("UTF-8")];
    let tracer = tracer(&arguments, &directory.path().join("table"));
    // Stopped, it does not empty the ring, which holds 128 processes of 32 bytes each.
    tracer.signal(rustix::process::Signal::STOP);
    const PROCESSES: u64 = 180;
    let program = std::env::current_exe().expect("this program");
    for _ in 0..PROCESSES {
        let mut once = Command::new(&program);
        once.args(["--exact", "talks_to_itself", "--quiet"]).stdout(std::process::Stdio::null());
        assert!(once.status().expect("it starts").success());
    }
    tracer.signal(rustix::process::Signal::CONT);
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(3), "{errors}");
    assert!(errors.contains("LOST") && errors.contains("--ring-bytes"), "{errors}");
    let text = std::fs::read_to_string(&recording).expect("a recording");
    let recording: Value = serde_json::from_str(&text).expect("JSON");
    let untold = recording["losses"]["untold_processes"].as_u64().expect("a number");
    assert!(untold >= PROCESSES - 128, "{untold}");
    // The calls count all the same.
    let calls: u64 = recording["unnamed"].as_array().expect("a list").iter().filter_map(|unnamed| unnamed["calls"].as_u64()).sum();
    assert!(calls >= PROCESSES, "{calls}");
    assert_eq!(recording["losses"]["map_full_calls"], 0);
}

/// What the processes of the test above do; on its own, a try of a socket pair.
#[test]
fn talks_to_itself() {
    use std::io::{Read, Write};
    let (mut one, mut other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    one.write_all(b"x").expect("sent");
    assert_eq!(other.read(&mut [0; 8]).expect("received"), 1);
}
