//! What the tests of the tracer share: a server and a client in processes of their own, and the tracer beside them.
//!
//! The peers are this test binary started again for its one test `peer_process`, which does what `TSSX_TEST_PEER` says. Every process is killed and reaped when its guard goes, every wait has a deadline, and a peer
//! whose test dies sees its standard input close and exits.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod exposition;
pub(crate) mod schema;
pub(crate) mod terminal;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for anything; only a failing test waits that long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The tracer under test.
pub(crate) const TRACER: &str = env!("CARGO_BIN_EXE_tssx-trace");

/// A process that is killed and reaped when its guard goes.
pub(crate) struct Guarded {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Guarded {
    /// Starts `command`; its `stdout` or, if false, its standard error is read line by line.
    pub(crate) fn start(command: &mut Command, stdout: bool) -> Self {
        command.stdin(Stdio::piped());
        let mut child = if stdout { command.stdout(Stdio::piped()).spawn() } else { command.stderr(Stdio::piped()).spawn() }
            .expect("the command starts");
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        let reader: Box<dyn Read + Send> =
            if stdout { Box::new(child.stdout.take().expect("piped")) } else { Box::new(child.stderr.take().expect("piped")) };
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, stdin, lines, seen: Vec::new() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until all its threads are asleep: nothing that they have begun, as a doorbell for bytes that were read long ago, is on its way.
    pub(crate) fn await_rest(&self) {
        let end = Instant::now() + DEADLINE;
        let process = procfs::process::Process::new(self.pid().cast_signed()).expect("a living process");
        let asleep =
            |task: procfs::ProcResult<procfs::process::Task>| task.and_then(|task| task.stat()).is_ok_and(|stat| stat.state == 'S');
        while !process.tasks().expect("its threads").all(asleep) {
            assert!(Instant::now() < end, "{} is never at rest", self.pid());
            std::thread::yield_now();
        }
    }

    /// Waits for a line that contains `text`, and gives it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.contains(text);
                    self.seen.push(line.clone());
                    if found {
                        return line;
                    }
                }
                Err(error) => panic!("no line with `{text}` ({error}); lines: {:#?}", self.seen),
            }
        }
    }

    /// Sends a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().expect("open"), "{line}").expect("the process listens");
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the process lives");
    }

    /// Waits for its end; gives its status and every line it wrote.
    pub(crate) fn finish(mut self) -> (ExitStatus, Vec<String>) {
        drop(self.stdin.take());
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                let mut lines = std::mem::take(&mut self.seen);
                lines.extend(self.lines.iter()); // ends with the pipe
                return (status, lines);
            }
            assert!(Instant::now() < end, "the process does not end; lines: {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Copies a program. By another process: a descriptor that is open for writing here could be inherited by a child that
/// another thread starts at this moment, and executing the copy would fail with ETXTBSY.
pub(crate) fn copy_program(from: &str, to: &std::path::Path) {
    let status = Command::new("cp").arg("--").arg(from).arg(to).status().expect("cp starts");
    assert!(status.success());
}

/// A directory that all may do with as `mode` says, and in it the tracer: the build directory may be closed to others.
pub(crate) fn tracer_for_others(mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("opened");
    let copy = directory.path().join("tssx-trace");
    copy_program(TRACER, &copy);
    (directory, copy)
}

/// Starts this test binary again as a peer.
pub(crate) fn peer(role: &str, socket: &str, environment: &[(&str, &str)]) -> Guarded {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["peer_process", "--exact", "--nocapture"]);
    command.env("TSSX_TEST_PEER", format!("{role} {socket}")).envs(environment.iter().copied());
    Guarded::start(&mut command, true)
}

/// Starts an echo server on `socket` and waits until it listens.
pub(crate) fn server(socket: &str, environment: &[(&str, &str)]) -> Guarded {
    let mut server = peer("server", socket, environment);
    server.wait_for("ready");
    server
}

/// Starts a client of it and waits until it is connected.
pub(crate) fn client(socket: &str, environment: &[(&str, &str)]) -> Guarded {
    let mut client = peer("client", socket, environment);
    client.wait_for("ready");
    client
}

/// Lets the client send `count` requests of `size` bytes, each answered with the same bytes.
pub(crate) fn exchange(client: &mut Guarded, count: u64, size: usize) {
    client.tell(&format!("{count} {size}"));
    client.wait_for("done");
}

/// The same, with each answer looked at with `MSG_PEEK` before it is read.
pub(crate) fn exchange_with_peeks(client: &mut Guarded, count: u64, size: usize) {
    client.tell(&format!("{count} {size} peek"));
    client.wait_for("done");
}

/// What `doctor` says of this machine.
pub(crate) fn doctor() -> Value {
    let output = Command::new(TRACER).args(["doctor", "--json"]).output().expect("it starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(if report["mode"] == "snapshots" { 5 } else { 0 }), "{report}");
    report
}

/// Whether it says that this mode works, with what is right for either answer.
pub(crate) fn works(report: &Value, mode: &str) -> bool {
    let capabilities = report["capabilities"].as_array().expect("a list");
    let name = format!("mode {mode}");
    let capability = capabilities.iter().find(|capability| capability["name"] == name.as_str()).expect("every mode is listed");
    let works = capability["tried"]["works"].as_bool().expect("tried");
    assert_eq!(capability["remedy"].is_null(), works, "{capability}");
    works
}

/// The modes with kernel programs that work here: two at least on every kernel that these tests are for.
pub(crate) fn measuring_modes() -> Vec<&'static str> {
    let report = doctor();
    let modes: Vec<_> = ["tp_btf", "fexit", "syscalls"].into_iter().filter(|mode| works(&report, mode)).collect();
    assert!(modes.len() >= 2 && modes.contains(&"syscalls"), "{report}");
    modes
}

/// Starts the tracer with a window that only a signal ends, and waits until it is attached.
pub(crate) fn tracer(arguments: &[&str], output: &std::path::Path) -> Guarded {
    let file = std::fs::File::create(output).expect("a file for the result");
    let mut command = Command::new(TRACER);
    command.args(arguments).args(["--duration", "10m"]).stdout(file);
    let mut tracer = Guarded::start(&mut command, false);
    tracer.wait_for("attached");
    tracer
}

/// Ends the tracer's window; gives its exit code and what it wrote to standard error.
pub(crate) fn stop(tracer: Guarded) -> (Option<i32>, String) {
    tracer.signal(rustix::process::Signal::INT);
    let (status, lines) = tracer.finish();
    (status.code(), lines.join("\n"))
}

/// Asserts that nothing of our own was lost: no event of the kernel's. Programs that others run with the library on this host may
/// come and go faster than their ledgers are read, which every report on the host has to say.
pub(crate) fn assert_own_traffic_counted(code: Option<i32>, errors: &str) {
    let lost: Vec<_> = errors.lines().filter(|line| line.contains("LOST")).collect();
    assert_eq!(code, Some(if lost.is_empty() { 0 } else { 3 }), "{errors}");
    assert!(lost.iter().all(|line| line.contains("selected connection") || line.contains("ledger")), "{errors}");
}

/// The body of `peer_process`: what another test asked for; asked by nobody, a try of the peers without the tracer.
pub(crate) fn run_peer() {
    let Ok(task) = std::env::var("TSSX_TEST_PEER") else {
        let socket = format!("@tssx peers alone {}", std::process::id());
        let server = server(&socket, &[]);
        let mut client = client(&socket, &[]);
        exchange(&mut client, 10, 64);
        assert!(client.finish().0.success());
        assert!(server.finish().0.success());
        return;
    };
    let (role, socket) = task.split_once(' ').expect("a role and a socket");
    match role {
        "server" => serve(socket),
        "client" => converse(socket),
        other => panic!("no role `{other}`"),
    }
}

fn address(socket: &str) -> SocketAddr {
    match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).expect("a valid name"),
        None => SocketAddr::from_pathname(socket).expect("a valid path"),
    }
}

/// Echoes whatever comes, one thread for each connection, until standard input closes.
fn serve(socket: &str) {
    let listener = UnixListener::bind_addr(&address(socket)).expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(size @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..size]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    println!("ready");
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0);
}

/// Does the exchanges it is told, until standard input closes.
fn converse(socket: &str) {
    let mut stream = UnixStream::connect_addr(&address(socket)).expect("connected");
    println!("ready");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let [count, size, rest @ ..] = words.as_slice() else { panic!("no count and size in `{line}`") };
        let (count, size): (u64, usize) = (count.parse().expect("a count"), size.parse().expect("a size"));
        let request: Vec<u8> = (0..size).map(|index| u8::try_from(index % 251).expect("small")).collect();
        let mut answer = vec![0; size];
        for _ in 0..count {
            stream.write_all(&request).expect("sent");
            if rest == ["peek"] {
                rustix::net::recv(&stream, &mut answer[..], rustix::net::RecvFlags::PEEK).expect("peeked");
            }
            stream.read_exact(&mut answer).expect("answered");
            assert_eq!(answer, request);
        }
        println!("done");
    }
}
