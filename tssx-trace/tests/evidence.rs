//! What `discover` says of how a socket is used, against programs that do a known thing. Needs root and BPF.

mod common;

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use common::{assert_own_traffic_counted, client, exchange, measuring_modes, server, stop, tracer};
use rustix::net::sockopt::socket_cookie;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, recvmsg, sendmsg};
use serde_json::{Value, json};

/// Connections: several for each slot of a CPU, see `tssx-ebpf/src/cache.rs`.
const CONNECTIONS: usize = 300;
/// Connections that are used half of the time.
const BUSY: u64 = 5;
const STEPS: usize = 6000;

#[test]
fn peer_process() {
    common::run_peer();
}

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
        assert_own_traffic_counted(code, &errors);
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

/// A connection of that name in this process.
fn connection(name: &str) -> (UnixStream, UnixStream) {
    let address = SocketAddr::from_abstract_name(name).expect("a valid name");
    let listener = UnixListener::bind_addr(&address).expect("bound");
    let client = UnixStream::connect_addr(&address).expect("connected");
    (client, listener.accept().expect("accepted").0)
}

/// Sends a byte with something beside it, and receives both; with `sees`, the receiver asks for what is beside it.
fn send_with(pair: &(UnixStream, UnixStream), beside: SendAncillaryMessage<'_, '_>, sees: bool) {
    let mut space = [MaybeUninit::uninit(); 128];
    let mut message = SendAncillaryBuffer::new(&mut space);
    assert!(message.push(beside));
    sendmsg(&pair.0, &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).expect("sent");
    let mut space = [MaybeUninit::uninit(); 128];
    let mut received = if sees { RecvAncillaryBuffer::new(&mut space) } else { RecvAncillaryBuffer::default() };
    let got = recvmsg(&pair.1, &mut [IoSliceMut::new(&mut [0])], &mut received, RecvFlags::CMSG_CLOEXEC).expect("received");
    assert_eq!(got.bytes, 1);
}

#[test]
fn what_a_ring_does_not_carry_is_seen_on_the_ends_where_it_happens() {
    for mode in measuring_modes() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("recording.json");
        let name = |what: &str| format!("tssx closer {} {mode} {what}", std::process::id());
        let [passing, vouching, splicing, plain] = ["passing", "vouching", "splicing", "plain"].map(|what| connection(&name(what)));
        let start = |closer: &str, file: &Path| {
            let arguments = ["discover", "--mode", mode, "--closer", closer, "--record", file.to_str().expect("UTF-8")];
            tracer(&arguments, &directory.path().join("table"))
        };
        let act = || {
            let passed = [directory.path(), directory.path()].map(|path| std::fs::File::open(path).expect("opened"));
            send_with(&passing, SendAncillaryMessage::ScmRights(&passed.each_ref().map(AsFd::as_fd)), true);
            let pid = rustix::process::getpid();
            let own = UCred { pid, uid: rustix::process::getuid(), gid: rustix::process::getgid() };
            send_with(&vouching, SendAncillaryMessage::ScmCredentials(own), false);
            let source = std::fs::File::open("/proc/self/exe").expect("opened");
            assert_eq!(rustix::fs::sendfile(&splicing.0, &source, Some(&mut 0), 100).expect("sent"), 100);
            (&splicing.1).read_exact(&mut [0; 100]).expect("received");
            (&plain.0).write_all(b"x").expect("sent");
            (&plain.1).read_exact(&mut [0]).expect("received");
        };
        let tracer = start("10m", &file);
        act();
        let (code, errors) = stop(tracer);
        assert_own_traffic_counted(code, &errors);
        let recording = parse(&file);
        assert!(recording["closer_ms"].is_number(), "{mode}");
        for (what, [descriptors, credentials, spliced]) in
            [("passing", [2, 0, 0]), ("vouching", [0, 1, 0]), ("splicing", [0, 0, 1]), ("plain", [0, 0, 0])]
        {
            let wanted = json!({ "descriptor_ends": descriptors, "credential_ends": credentials, "splice_ends": spliced });
            assert_eq!(service(&recording, &format!("@{}", name(what)))["evidence"]["signals"], wanted, "{mode}: {what}");
        }
        let table = std::fs::read_to_string(directory.path().join("table")).expect("a table");
        assert!(table.contains(&format!("@{}: 2 ends with passed descriptors", name("passing"))), "{table}");
        let tracer = start("0", &file);
        act();
        let (code, errors) = stop(tracer);
        assert_own_traffic_counted(code, &errors);
        let recording = parse(&file);
        let evidence = &service(&recording, &format!("@{}", name("passing")))["evidence"];
        assert!(evidence["signals"].is_null() && evidence["wakeups"].is_null() && recording["closer_ms"].is_null(), "{evidence}");
    }
}

#[test]
fn each_receive_that_was_waited_for_is_a_wake_up() {
    const EXCHANGES: u64 = 20;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("echo.sock");
    let socket = socket.to_str().expect("UTF-8");
    let server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let file = directory.path().join("recording.json");
    let arguments = ["discover", "--closer", "10m", "--record", file.to_str().expect("UTF-8")];
    let tracer = tracer(&arguments, &directory.path().join("table"));
    for _ in 0..EXCHANGES {
        server.await_rest(); // so that it waits for the request
        exchange(&mut client, 1, 64);
    }
    let (code, errors) = stop(tracer);
    assert_own_traffic_counted(code, &errors);
    let evidence = &service(&parse(&file), socket)["evidence"];
    if !measuring_modes().contains(&"tp_btf") {
        assert!(evidence["wakeups"].is_null(), "{evidence}");
        return;
    }
    let times = evidence["wakeups"].as_array().unwrap_or_else(|| panic!("measured: {evidence}"));
    let count: u64 = times.iter().map(|time| time["count"].as_u64().expect("a number")).sum();
    // Each request, and each answer for which the client was asleep by then.
    assert!((EXCHANGES..=2 * EXCHANGES).contains(&count), "{evidence}");
    assert!(times.iter().all(|time| time["from_ns"].as_u64().is_some_and(u64::is_power_of_two)), "{evidence}");
}
