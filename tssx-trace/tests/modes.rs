//! Every way of measuring, on whatever kernel this is: a mode that `doctor` says works counts exactly, one that it says does not is
//! refused with the reason, and each says in its reports which it is and what it cannot see. Needs root and BPF.

mod common;

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use common::{TRACER, client, doctor, exchange, exchange_with_peeks, server, stop, tracer, works};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType};
use serde_json::Value;

const MODES: [&str; 4] = ["tp_btf", "fexit", "syscalls", "snapshots"];

#[test]
fn peer_process() {
    common::run_peer();
}

fn recording(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a recording")).expect("JSON")
}

fn service<'a>(recording: &'a Value, display: &str, kind: &str) -> &'a Value {
    let services = recording["services"].as_array().expect("a list");
    let found = services.iter().find(|service| service["display"] == display && service["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} {display} in {recording}"))
}

/// Sockets of every type in this process, of known traffic.
struct Own {
    name: String,
    stream: (UnixStream, UnixStream),
    packet: (OwnedFd, OwnedFd),
    datagram: (OwnedFd, OwnedFd),
}

impl Own {
    /// Bytes that stay in the stream's queue.
    const QUEUED: u64 = 77;
    const MESSAGES: u64 = 50;

    fn new(name: String) -> Self {
        let address = SocketAddr::from_abstract_name(&name).expect("a valid name");
        let listener = UnixListener::bind_addr(&address).expect("bound");
        let near = UnixStream::connect_addr(&address).expect("connected");
        let (far, _) = listener.accept().expect("accepted");
        let named = |suffix: &str| SocketAddrUnix::new_abstract_name(format!("{name} {suffix}").as_bytes()).expect("a name");
        let socket = |kind| rustix::net::socket(AddressFamily::UNIX, kind, None).expect("a socket");
        let (listener, client) = (socket(SocketType::SEQPACKET), socket(SocketType::SEQPACKET));
        rustix::net::bind(&listener, &named("packet")).expect("bound");
        rustix::net::listen(&listener, 1).expect("listening");
        rustix::net::connect(&client, &named("packet")).expect("connected");
        let packet = (client, rustix::net::accept(&listener).expect("accepted"));
        let datagram = (socket(SocketType::DGRAM), socket(SocketType::DGRAM));
        rustix::net::bind(&datagram.1, &named("datagram")).expect("bound");
        rustix::net::connect(&datagram.0, &named("datagram")).expect("connected");
        Self { name, stream: (near, far), packet, datagram }
    }

    fn talk(&self) {
        let mut buffer = [0; 256];
        for (from, to) in [(&self.packet.0, &self.packet.1), (&self.datagram.0, &self.datagram.1)] {
            for _ in 0..Self::MESSAGES {
                assert_eq!(rustix::net::send(from, &[1; 40], SendFlags::empty()), Ok(40));
                assert_eq!(rustix::net::recv(to, &mut buffer, RecvFlags::PEEK).map(|(size, _)| size), Ok(40));
                assert_eq!(rustix::net::recv(to, &mut buffer, RecvFlags::empty()).map(|(size, _)| size), Ok(40));
            }
        }
        let queued = [1; Self::QUEUED as usize];
        assert_eq!(rustix::net::send(&self.stream.0, &queued, SendFlags::empty()), Ok(queued.len()));
    }

    fn check(&self, recording: &Value, measured: bool) {
        let figure = |value: u64| if measured { Value::from(value) } else { Value::Null };
        let stream = service(recording, &format!("@{}", self.name), "stream");
        assert_eq!(stream["queued_bytes"], Self::QUEUED, "{stream}");
        assert_eq!(stream["client_to_server"]["sent_bytes"], figure(Self::QUEUED), "{stream}");
        assert_eq!(stream["client_to_server"]["received_bytes"], figure(0), "{stream}");
        let packet = service(recording, &format!("@{} packet", self.name), "seqpacket");
        let direction = serde_json::json!({
            "send_calls": figure(Self::MESSAGES), "sent_bytes": figure(Self::MESSAGES * 40),
            "receive_calls": figure(Self::MESSAGES), "received_bytes": figure(Self::MESSAGES * 40),
        });
        assert_eq!(packet["client_to_server"], direction, "{packet}");
        let datagram = service(recording, &format!("@{} datagram", self.name), "datagram");
        let received = &datagram["client_to_server"]["received_bytes"];
        assert_eq!(*received, figure(Self::MESSAGES * 40), "{datagram}");
    }
}

/// One window in one mode; the same exchange in each.
fn check_mode(mode: &str, measured: bool) {
    const COUNT: u64 = 400;
    const SIZE: u64 = 64;
    const PEEKS: u64 = 30;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("echo.sock");
    let socket = path.to_str().expect("UTF-8");
    let server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let own = Own::new(format!("tssx modes test {} {mode}", std::process::id()));
    exchange(&mut client, 10, 32); // before the tracer starts: must not be counted
    server.await_rest();
    let file = directory.path().join("recording.json");
    let arguments = ["discover", "--mode", mode, "--record", file.to_str().expect("UTF-8")];
    let tracer = tracer(&arguments, &directory.path().join("table"));
    exchange(&mut client, COUNT, SIZE as usize);
    exchange_with_peeks(&mut client, PEEKS, SIZE as usize);
    own.talk();
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(0), "{mode}: {errors}");

    let recording = recording(&file);
    assert_eq!(recording["mode"], mode);
    assert!(recording["mode_limits"].as_array().is_some_and(|limits| !limits.is_empty()), "{recording}");
    let echo = service(&recording, socket, "stream");
    let figure = |value: u64| if measured { Value::from(value) } else { Value::Null };
    let (calls, bytes) = (COUNT + PEEKS, (COUNT + PEEKS) * SIZE);
    // The limit of that mode: the server was waiting for its next request when the watch began.
    let waiting = u64::from(mode == "fexit");
    for (direction, missing) in [("client_to_server", waiting), ("server_to_client", 0)] {
        let expected = serde_json::json!({
            "send_calls": figure(calls), "sent_bytes": figure(bytes),
            "receive_calls": figure(calls - missing), "received_bytes": figure(bytes - missing * SIZE),
        });
        assert_eq!(echo[direction], expected, "{mode} {direction}");
    }
    assert_eq!((&echo["connections"], &echo["queued_bytes"]), (&Value::from(1), &Value::from(0)), "{mode}: {echo}");
    for (end, pid) in [("servers", server.pid()), ("clients", client.pid())] {
        assert_eq!(echo[end].as_array().map(Vec::len), Some(1), "{mode}: {echo}");
        assert_eq!(echo[end][0]["pid"], pid, "{mode}: {echo}");
    }
    let evidence = if measured {
        // Turns depend on where the scheduler puts the threads: `evidence.rs` holds them to their CPU.
        let mut evidence = echo["evidence"].clone();
        evidence["kernel_sizes"] = serde_json::json!([{ "from_bytes": SIZE, "calls": 2 * calls }]);
        evidence["most_processes_on_one_end"] = 1.into();
        evidence["io_uring_processes"] = 0.into();
        evidence
    } else {
        Value::Null
    };
    assert_eq!(echo["evidence"], evidence, "{mode}");
    own.check(&recording, measured);
    let table = std::fs::read_to_string(directory.path().join("table")).expect("a table");
    assert!(table.contains(&format!("mode {mode}")) && table.contains("Limit of mode"), "{table}");
    let line = table.lines().find(|line| line.starts_with(socket)).unwrap_or_else(|| panic!("no {socket} in {table}"));
    // Calls, bytes, the rates of both and the mean size.
    let dashes = line.split_ascii_whitespace().filter(|word| *word == "-").count();
    assert_eq!(dashes, if measured { 0 } else { 5 }, "{table}");
    assert_eq!(line.contains(&(2 * bytes).to_string()), measured, "{table}");
}

/// One mode that does not work here.
fn check_refused(mode: &str) {
    let output = Command::new(TRACER).args(["discover", "--mode", mode, "--duration", "1s"]).output().expect("it starts");
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!((output.status.code(), errors.lines().count()), (Some(1), 1), "{mode}: {errors}");
    assert!(output.stdout.is_empty(), "{mode}");
}

#[test]
fn each_mode_counts_exactly_or_is_refused() {
    let report = doctor();
    let mut best = None;
    for mode in MODES {
        if works(&report, mode) {
            check_mode(mode, mode != "snapshots");
            best = best.or(Some(mode));
        } else {
            check_refused(mode);
        }
    }
    assert!(works(&report, "snapshots") && works(&report, "syscalls"), "no kernel that this test is for lacks these: {report}");
    assert_eq!(report["mode"].as_str(), best, "auto takes the best");
}

#[test]
fn a_mode_without_traffic_proposes_nothing_and_verifies_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("recording.json");
    let arguments = ["discover", "--mode", "snapshots", "--duration", "10ms", "--record", file.to_str().expect("UTF-8")];
    assert!(Command::new(TRACER).args(arguments).output().expect("it starts").status.success());
    let suggest = ["suggest", "--from", file.to_str().expect("UTF-8")];
    for arguments in [suggest.as_slice(), &["verify", "--mode", "snapshots", "--duration", "10ms"]] {
        let output = Command::new(TRACER).args(arguments).output().expect("it starts");
        let errors = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("measures no traffic") && errors.contains("mode"), "{errors}");
    }
}
