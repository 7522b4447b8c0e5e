//! What `discover` says of how a socket is used, against programs that do a known thing. Needs root and BPF.

mod common;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use common::{measuring_modes, stop, tracer};
use rustix::net::sockopt::socket_cookie;
use serde_json::Value;

/// Connections: several for each slot of a CPU, see `tssx-ebpf/src/cache.rs`.
const CONNECTIONS: usize = 300;
/// Connections that are used half of the time.
const BUSY: u64 = 5;
const STEPS: usize = 6000;

/// One end, and what it did.
struct End {
    stream: UnixStream,
    /// Sends, bytes sent, receives, bytes received.
    counts: [u64; 4],
    /// Receives when it sent last.
    answered: u64,
    turns: u64,
}

impl End {
    fn new(stream: UnixStream) -> Self {
        Self { stream, counts: [0; 4], answered: 0, turns: 0 }
    }

    fn send(&mut self, bytes: usize) {
        self.stream.write_all(&vec![7; bytes]).expect("sent");
        self.counts[0] += 1;
        self.counts[1] += bytes as u64;
        self.turns += u64::from(self.answered != self.counts[2]);
        self.answered = self.counts[2];
    }

    fn receive(&mut self, bytes: usize) {
        self.stream.read_exact(&mut vec![0; bytes]).expect("received");
        self.counts[2] += 1;
        self.counts[3] += bytes as u64;
    }
}

/// Numbers that look random, the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit).expect("small")
    }
}

fn connect(name: &str) -> Vec<(End, End)> {
    let address = SocketAddr::from_abstract_name(name).expect("a valid name");
    let listener = UnixListener::bind_addr(&address).expect("bound");
    let pair = |_| {
        let client = UnixStream::connect_addr(&address).expect("connected");
        (End::new(client), End::new(listener.accept().expect("accepted").0))
    };
    (0..CONNECTIONS).map(pair).collect()
}

/// Requests of several messages, of which some are answered, on connections that take turns.
fn converse(pairs: &mut [(End, End)], numbers: &mut Numbers) {
    for _ in 0..STEPS {
        let among = if numbers.below(2) == 0 { BUSY } else { CONNECTIONS as u64 };
        let (client, server) = &mut pairs[numbers.below(among)];
        for _ in 0..=numbers.below(3) {
            let bytes = 1 + numbers.below(3000);
            client.send(bytes);
            server.receive(bytes);
        }
        if numbers.below(3) > 0 {
            let bytes = 1 + numbers.below(300);
            server.send(bytes);
            client.receive(bytes);
        }
    }
}

fn parse(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).expect("a recording")).expect("JSON")
}

fn service(recording: &Value, display: &str) -> Value {
    let services = recording["services"].as_array().expect("a list");
    services.iter().find(|service| service["display"] == display).unwrap_or_else(|| panic!("no {display}")).clone()
}

/// Calls and bytes of each end in the report, by cookie.
fn counts(service: &Value) -> HashMap<u64, [u64; 4]> {
    let number = |value: &Value| value.as_u64().expect("a number");
    let mut all = HashMap::new();
    for pair in service["pairs"].as_array().expect("each connection") {
        let (there, back) = (&pair["client_to_server"], &pair["server_to_client"]);
        for (end, out, into) in [(&pair["client"], there, back), (&pair["server"], back, there)] {
            let counts =
                [number(&end["send_calls"]), number(&out["sent"]), number(&end["receive_calls"]), number(&into["received"])];
            assert!(all.insert(number(&end["cookie"]), counts).is_none());
        }
    }
    all
}

#[test]
fn many_connections_in_turn_are_counted_exactly_with_every_turn() {
    // A record belongs to a CPU: a thread that moves in the middle of a conversation may hide a turn.
    let mut first = rustix::thread::CpuSet::new();
    first.set(0);
    rustix::thread::sched_setaffinity(None, &first).expect("CPU 0 is there");
    for mode in measuring_modes() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("recording.json");
        let name = format!("tssx evidence {} {mode}", std::process::id());
        let mut pairs = connect(&name);
        let arguments = ["discover", "--mode", mode, "--pairs", "--record", file.to_str().expect("UTF-8")];
        let tracer = tracer(&arguments, &directory.path().join("table"));
        converse(&mut pairs, &mut Numbers(88_172_645_463_325_252));
        let (code, errors) = stop(tracer);
        assert_eq!(code, Some(0), "{mode}: {errors}");
        let service = service(&parse(&file), &format!("@{name}"));
        let counted = counts(&service);
        let ends = || pairs.iter().flat_map(|(client, server)| [client, server]);
        for end in ends() {
            let cookie = socket_cookie(&end.stream).expect("a cookie");
            assert_eq!(counted.get(&cookie), Some(&end.counts), "{mode}: {cookie}");
        }
        let turns: u64 = ends().map(|end| end.turns).sum();
        assert_eq!(service["evidence"]["turns"], turns, "{mode}: {}", service["evidence"]);
    }
}
