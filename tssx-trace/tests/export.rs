//! `export` beside traffic of known size: what it prints is Prometheus' format, exact, never goes back, and is served whatever comes over HTTP.
//!
//! The library is named by `TSSX_PRELOAD` (absolute path); `cargo xtask test` sets it. Needs root and BPF.

mod common;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::exposition::Exposition;
use common::{DEADLINE, Guarded, TRACER, client, exchange, server, tracer_for_others};
use rustix::process::Signal;

const COUNT: u64 = 2000;
const SIZE: usize = 64;
/// What both ends of an echo send of so many requests.
const TOTAL: f64 = 2.0 * COUNT as f64 * SIZE as f64;

#[test]
fn peer_process() {
    common::run_peer();
}

fn library() -> String {
    std::env::var("TSSX_PRELOAD").expect("TSSX_PRELOAD must name libtssx_preload.so: run these tests by `cargo xtask test`")
}

/// A running exporter.
struct Exporter {
    process: Guarded,
    address: SocketAddr,
}

impl Exporter {
    fn start(arguments: &[&str]) -> Self {
        Self::of(Command::new(TRACER).args(["export", "--listen", "127.0.0.1:0"]).args(arguments))
    }

    fn of(command: &mut Command) -> Self {
        let mut process = Guarded::start(command, false);
        let line = process.wait_for("serving http://");
        let (_, place) = line.split_once("http://").expect("a place");
        let address = place.split_once('/').expect("a path").0.parse().expect("an address");
        process.wait_for("attached");
        Self { process, address }
    }

    fn scrape(&self) -> Exposition {
        let answer = ask(self.address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4; charset=utf-8"), "{head}");
        Exposition::parse(body)
    }

    /// Scrapes until it holds.
    fn scrape_until(&self, holds: impl Fn(&Exposition) -> bool) -> Exposition {
        let end = Instant::now() + DEADLINE;
        loop {
            let scrape = self.scrape();
            if holds(&scrape) {
                return scrape;
            }
            assert!(Instant::now() < end, "{scrape:#?}");
        }
    }

    fn stop(self, signal: Signal) {
        self.process.signal(signal);
        let (status, lines) = self.process.finish();
        assert_eq!(status.code(), Some(0), "{lines:#?}");
    }
}

/// What the server answers to these bytes until it closes.
fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("set");
    stream.write_all(request).expect("sent");
    let mut answer = String::new();
    // A server that closes without having read all resets.
    let _reset = stream.read_to_string(&mut answer);
    answer
}

/// All bytes of the program on a selected socket: through rings, and through the kernel without doorbells.
fn selected_bytes(scrape: &Exposition, socket: &str) -> Option<f64> {
    let kernel = scrape.sum("tssx_kernel_sent_bytes_total", &[("socket", socket), ("selected", "true"), ("kind", "stream")])?;
    let ring = scrape.sum("tssx_ring_sent_bytes_total", &[("socket", socket)])?;
    Some(ring + kernel - scrape.sum("tssx_doorbell_sent_bytes_total", &[("socket", socket)])?)
}

#[test]
fn counters_are_exact_and_stay_when_connections_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let name = |file: &str| directory.path().join(file).to_str().expect("UTF-8").to_owned();
    let (fast, plain) = (name("fast.sock"), name("plain.sock"));
    let library = library();
    let environment = [("LD_PRELOAD", library.as_str()), ("USE_TSSX", fast.as_str())];
    let exporter = Exporter::start(&[]);
    let servers = [server(&fast, &environment), server(&plain, &[])];
    let mut clients = [client(&fast, &environment), client(&plain, &[])];
    clients.iter_mut().for_each(|client| exchange(client, COUNT, SIZE));
    servers.iter().for_each(Guarded::await_rest);
    let first = exporter.scrape_until(|scrape| selected_bytes(scrape, &fast) == Some(TOTAL));
    let of_plain = [("socket", plain.as_str()), ("selected", "false")];
    let sum =
        |scrape: &Exposition, name: &str, labels: &[(&str, &str)]| scrape.sum(name, labels).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(sum(&first, "tssx_kernel_sent_bytes_total", &of_plain), TOTAL);
    assert_eq!(sum(&first, "tssx_kernel_sent_calls_total", &of_plain), 2.0 * COUNT as f64);
    assert_eq!(first.sum("tssx_ring_sent_bytes_total", &[("socket", &plain)]), None, "no library, no statistics");
    assert!(sum(&first, "tssx_ring_sent_bytes_total", &[("socket", &fast)]) > 0.9 * TOTAL, "{first:#?}");
    for end in ["server", "client"] {
        let labels = [("socket", fast.as_str()), ("end", end)];
        assert_eq!(sum(&first, "tssx_connections_selected_total", &labels), 1.0);
        assert_eq!(sum(&first, "tssx_connections_accelerated_total", &labels), 1.0);
    }
    for socket in [&fast, &plain] {
        assert_eq!(sum(&first, "tssx_connections_open", &[("socket", socket)]), 1.0);
    }
    assert_eq!(sum(&first, "tssx_trace_mode_info", &[]), 1.0);
    assert!(sum(&first, "tssx_trace_cpu_seconds_total", &[]) > 0.0 && sum(&first, "tssx_trace_map_bytes", &[]) > 0.0);
    assert!(first.values("tssx_trace_lost_calls_total", "cause").contains("map_full"), "what is lost is told, also if nothing is");

    clients.iter_mut().for_each(|client| exchange(client, COUNT, SIZE));
    servers.iter().for_each(Guarded::await_rest);
    clients.into_iter().for_each(|client| assert!(client.finish().0.success()));
    let second = exporter.scrape_until(|scrape| selected_bytes(scrape, &fast) == Some(2.0 * TOTAL));
    second.assert_later_than(&first);
    // Scrapes by which what has ended is forgotten, and a new connection of the same name.
    let ended = exporter.scrape_until(|scrape| scrape.sum("tssx_connections_open", &[("socket", &fast)]).is_none());
    let mut new = client(&fast, &environment);
    exchange(&mut new, COUNT, SIZE);
    servers[0].await_rest();
    let third = exporter.scrape_until(|scrape| selected_bytes(scrape, &fast) == Some(3.0 * TOTAL));
    third.assert_later_than(&ended);
    ended.assert_later_than(&second);
    assert_eq!(sum(&third, "tssx_kernel_sent_bytes_total", &of_plain), 2.0 * TOTAL);
    assert_eq!(sum(&third, "tssx_connections_selected_total", &[("socket", &fast), ("end", "client")]), 2.0);
    exporter.stop(Signal::TERM);
}

#[test]
fn connections_that_come_and_go_between_scrapes_count_and_are_forgotten() {
    const CONNECTIONS: u64 = 300;
    const ROUNDS: u64 = 6;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("short.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    // Records for far fewer than come, two for each connection: what is gone must make room.
    let cpus = aya::util::nr_cpus().expect("a number of CPUs").min(4);
    let exporter = Exporter::start(&["--max-sockets", &(ROUNDS * CONNECTIONS / cpus as u64).to_string()]);
    let path = path.to_str().expect("UTF-8");
    let mut before = exporter.scrape();
    for round in 1..=ROUNDS {
        for _ in 0..CONNECTIONS {
            let mut near = UnixStream::connect(path).expect("connected");
            let (mut far, _) = listener.accept().expect("accepted");
            near.write_all(&[7; 100]).expect("sent");
            far.read_exact(&mut [0; 100]).expect("received");
            far.write_all(&[7; 50]).expect("sent");
            near.read_exact(&mut [0; 50]).expect("received");
        }
        let expected = (round * CONNECTIONS * 150) as f64;
        let labels = [("socket", path), ("kind", "stream")];
        let now = exporter.scrape_until(|scrape| scrape.sum("tssx_kernel_sent_bytes_total", &labels) == Some(expected));
        now.assert_later_than(&before);
        // Others on this host may have found no room. What is gone in two lists of sockets is forgotten.
        (0..3).for_each(|_| before = exporter.scrape());
    }
    exporter.stop(Signal::INT);
}

#[test]
fn names_are_escaped_as_everywhere_and_bounded() {
    let directory = tempfile::tempdir().expect("a directory");
    let odd = directory.path().join(OsStr::from_bytes(b"a \"b\"\\\n\xff"));
    let listener = UnixListener::bind(&odd).expect("bound");
    let exporter = Exporter::start(&[]);
    let bounded = Exporter::start(&["--max-names", "1"]);
    let mut near = UnixStream::connect(&odd).expect("connected");
    let _far = listener.accept().expect("accepted");
    near.write_all(&[0; 777]).expect("sent");
    let shown = format!("{}/a \"b\"\\\\\\x0a\\xff", directory.path().display());
    let labels = [("socket", shown.as_str())];
    exporter.scrape_until(|scrape| scrape.sum("tssx_kernel_sent_bytes_total", &labels) == Some(777.0));
    let other = UnixListener::bind(directory.path().join("other")).expect("bound");
    let mut second = UnixStream::connect(directory.path().join("other")).expect("connected");
    let _second = other.accept().expect("accepted");
    second.write_all(&[0; 999]).expect("sent");
    let other = [("socket", "(other)")];
    let scrape =
        bounded.scrape_until(|scrape| scrape.sum("tssx_kernel_sent_bytes_total", &other).is_some_and(|bytes| bytes >= 777.0));
    let mut names = scrape.values("tssx_kernel_sent_bytes_total", "socket");
    names.retain(|name| !name.starts_with('('));
    assert!(names.len() <= 1, "{names:?}");
    exporter.stop(Signal::TERM);
    bounded.stop(Signal::TERM);
}

#[test]
fn rubbish_over_http_is_answered_or_dropped_and_scrapes_go_on() {
    let exporter = Exporter::start(&[]);
    let idle: Vec<_> = (0..8).map(|_| TcpStream::connect(exporter.address).expect("connected")).collect();
    for (request, status) in [
        (&b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"[..], "405"),
        (b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "400"),
        (b"GET /metrics\r\n\r\n", "400"),
    ] {
        let answer = ask(exporter.address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{} got {answer}", String::from_utf8_lossy(request));
    }
    let long = [b"GET /metrics HTTP/1.1\r\n".as_slice(), &b"X: y\r\n".repeat(100_000)].concat();
    let mut stream = TcpStream::connect(exporter.address).expect("connected");
    let _reset = stream.write_all(&long); // it need not take all of that
    drop(stream);
    let mut half = TcpStream::connect(exporter.address).expect("connected");
    half.write_all(b"GET /met").expect("sent");
    exporter.scrape();
    drop((half, idle));
    exporter.scrape();
    exporter.stop(Signal::TERM);
}

#[test]
fn a_place_that_is_taken_is_named_and_a_unix_socket_serves_too() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("an address").to_string();
    let output = Command::new(TRACER).args(["export", "--listen", &address]).output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.lines().count() == 1 && errors.contains(&address) && errors.contains("--listen"), "{errors}");

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("metrics.sock");
    let mut process = Guarded::start(Command::new(TRACER).args(["export", "--listen"]).arg(&path), false);
    process.wait_for("attached");
    let mut stream = UnixStream::connect(&path).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(Exposition::parse(answer.split_once("\r\n\r\n").expect("a body").1).sum("tssx_build_info", &[]).is_some(), "{answer}");
    process.signal(Signal::TERM);
    assert_eq!(process.finish().0.code(), Some(0));
    assert!(!path.exists(), "the socket's file is taken away");
}

#[test]
fn once_prints_the_same_format() {
    let output = Command::new(TRACER).args(["export", "--once", "--duration", "300ms"]).output().expect("it starts");
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    let scrape = Exposition::parse(&String::from_utf8(output.stdout).expect("UTF-8"));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(scrape.sum("tssx_build_info", &version), Some(1.0), "{scrape:?}");
}

#[test]
fn with_less_privilege_there_is_less_and_a_message_says_what_is_missing() {
    let (directory, copy) = tracer_for_others(0o777);
    let socket = directory.path().join("echo.sock").to_str().expect("UTF-8").to_owned();
    let library = library();
    let environment = [("LD_PRELOAD", library.as_str()), ("USE_TSSX", socket.as_str())];
    let server = server(&socket, &environment);
    let mut client = client(&socket, &environment);
    let start = |capabilities: Option<&str>| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        if let Some(list) = capabilities {
            command.args(["--inh-caps", list, "--ambient-caps", list]);
        }
        command.arg(&copy).args(["export", "--listen", "127.0.0.1:0"]).env_remove("TSSX_PRELOAD");
        let mut process = Guarded::start(&mut command, false);
        process.wait_for("missing CAP_BPF");
        let line = process.wait_for("serving http://");
        process.wait_for("attached");
        let address = line.split_once("http://").and_then(|(_, place)| place.split_once('/')).expect("a place").0.parse();
        Exporter { process, address: address.expect("an address") }
    };
    let reading = start(Some("+sys_ptrace,+dac_read_search,+checkpoint_restore"));
    let nothing = start(None);
    exchange(&mut client, COUNT, SIZE);
    server.await_rest();
    let labels = [("socket", socket.as_str())];
    let scrape = reading.scrape_until(|scrape| {
        let sum = |name: &str| scrape.sum(name, &labels);
        sum("tssx_ring_sent_bytes_total").zip(sum("tssx_library_kernel_sent_bytes_total")).map(|(ring, kernel)| ring + kernel)
            == Some(TOTAL)
    });
    let poor = nothing.scrape();
    for scrape in [&scrape, &poor] {
        assert_eq!(scrape.sum("tssx_trace_mode_info", &[("mode", "snapshots")]), Some(1.0));
        assert_eq!(scrape.sum("tssx_kernel_sent_bytes_total", &[]), None, "what is not measured is absent");
        assert_eq!(scrape.sum("tssx_trace_lost_calls_total", &[]), None);
        assert_eq!(scrape.sum("tssx_connections_open", &labels), Some(1.0));
    }
    let selected = |selected: &'static str| [labels[0], ("selected", selected)];
    assert_eq!(scrape.sum("tssx_connections_open", &selected("true")), Some(1.0));
    assert_eq!(poor.sum("tssx_connections_open", &selected("unknown")), Some(1.0), "not known is not false: {poor:?}");
    for (scrape, capability, held) in [(&scrape, "CAP_SYS_PTRACE", 1.0), (&scrape, "CAP_BPF", 0.0), (&poor, "CAP_SYS_PTRACE", 0.0)]
    {
        assert_eq!(scrape.sum("tssx_trace_privilege_held", &[("capability", capability)]), Some(held));
        assert!(scrape.sum("tssx_trace_limit_info", &[]).is_some_and(|limits| limits > 0.0));
    }
    assert_eq!(poor.sum("tssx_trace_lost_connections_total", &[]), None);
    assert_eq!(poor.sum("tssx_ring_sent_bytes_total", &[]), None);
    assert!(poor.sum("tssx_trace_ledgers", &[("state", "read")]) == Some(0.0), "{poor:?}");
    reading.stop(Signal::TERM);
    nothing.stop(Signal::TERM);
    assert!(Path::new(&copy).exists());
}
