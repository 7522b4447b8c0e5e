//! A workload of which every call and byte is known: its actors count what their own system calls returned.
//!
//! An actor is this test binary started again for its one test `workload_actor`, which does what `TSSX_TRUTH` says. Each
//! connection begins with a number that the client chose, and both ends tell theirs at the end (standard input closes):
//! process, cookie, calls and bytes. So the truth needs nothing of what the tracer sees.

use std::collections::HashMap;
use std::io::{BufRead, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_cookie;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketType,
};

use crate::common::{DEADLINE, Guarded};

/// Bytes of a request: the connection's number first.
pub(crate) const REQUEST: usize = 48;
/// Bytes of an answer.
pub(crate) const ANSWER: usize = 80;
/// New connections of the churning client within one of its steps, and the step: 2 000 a second.
const BURST: u64 = 20;
const STEP: Duration = Duration::from_millis(10);

/// One end of a connection as its own process counted it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) connection: u64,
    pub(crate) cookie: u64,
    pub(crate) pid: u32,
    pub(crate) tx_calls: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_calls: u64,
    pub(crate) rx_bytes: u64,
}

impl End {
    fn new(socket: &OwnedFd) -> Self {
        let cookie = socket_cookie(socket).expect("a cookie");
        Self { cookie, pid: std::process::id(), ..Self::default() }
    }

    fn to_line(&self) -> String {
        let Self { connection, cookie, pid, tx_calls, tx_bytes, rx_calls, rx_bytes } = self;
        format!("end {connection} {cookie} {pid} {tx_calls} {tx_bytes} {rx_calls} {rx_bytes}")
    }

    /// From a line of an actor; `None` for its other lines.
    fn from_line(line: &str) -> Option<Self> {
        // The test harness begins the line.
        let (_, numbers) = line.split_once("end ")?;
        let numbers: Vec<u64> = numbers.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        let &[connection, cookie, pid, tx_calls, tx_bytes, rx_calls, rx_bytes] = numbers.as_slice() else { return None };
        Some(Self { connection, cookie, pid: u32::try_from(pid).ok()?, tx_calls, tx_bytes, rx_calls, rx_bytes })
    }
}

/// What an actor tells when it is dismissed.
pub(crate) fn dismiss(actor: Guarded) -> Vec<End> {
    let (status, lines) = actor.finish();
    assert!(status.success(), "{lines:#?}");
    lines.iter().filter_map(|line| End::from_line(line)).collect()
}

/// A socket's name as the actors take it: a NUL first for an abstract one.
pub(crate) fn of_path(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// The command that starts an actor: `before` is what it is started through.
pub(crate) fn actor(before: &[&str], task: &str, name: &[u8], numbers: &[u64]) -> Command {
    let own = std::env::current_exe().expect("this binary");
    let mut command = match before {
        [] => Command::new(own),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(own);
            command
        }
    };
    command.args(["workload_actor", "--exact", "--nocapture"]);
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers: String = numbers.iter().map(|number| format!(" {number}")).collect();
    command.env("TSSX_TRUTH", format!("{task} {name}{numbers}"));
    command
}

/// Starts it and waits until it is ready.
pub(crate) fn start(mut command: Command) -> Guarded {
    let mut actor = Guarded::start(&mut command, true);
    actor.wait_for("ready");
    actor
}

/// The body of `workload_actor`.
pub(crate) fn act() {
    let Ok(task) = std::env::var("TSSX_TRUTH") else {
        let end = End { connection: 1, cookie: 2, pid: 3, tx_calls: 4, tx_bytes: 5, rx_calls: 6, rx_bytes: 7 };
        assert_eq!(End::from_line(&format!("test actor ... {}", end.to_line())), Some(end));
        return;
    };
    let words: Vec<&str> = task.split(' ').collect();
    let [task, name, numbers @ ..] = words.as_slice() else { panic!("no task and name in `{task}`") };
    let digits = name.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    let name: Vec<u8> = digits.map(|digits| u8::from_str_radix(digits, 16).expect("hexadecimal")).collect();
    let numbers: Vec<u64> = numbers.iter().map(|number| number.parse().expect("a number")).collect();
    match (*task, numbers.as_slice()) {
        ("serve", [kind]) => serve(&listen(&name, kind_of(*kind))),
        ("fork", [workers]) => fork(&listen(&name, SocketType::STREAM), *workers),
        ("work", [listener]) => serve(&inherited(*listener)),
        ("call", [kind, first]) => call(&name, kind_of(*kind), *first),
        ("churn", [first, count]) => churn(&name, *first, *count),
        ("give", []) => give(&listen(&name, SocketType::STREAM)),
        ("take", []) => take(&name),
        ("hold", [connection]) => hold(*connection),
        ("ignore", []) => ignore(&listen(&name, SocketType::STREAM)),
        ("send", [kind, connection, count]) => send_only(&name, kind_of(*kind), *connection, *count),
        ("receive", [connection]) => receive_datagrams(&name, *connection),
        other => panic!("no task {other:?}"),
    }
}

fn kind_of(kind: u64) -> SocketType {
    SocketType::from_raw(u32::try_from(kind).expect("a socket type"))
}

fn address(name: &[u8]) -> SocketAddrUnix {
    match name.split_first() {
        Some((0, name)) => SocketAddrUnix::new_abstract_name(name).expect("a valid name"),
        _ => SocketAddrUnix::new(std::ffi::OsStr::from_bytes(name)).expect("a valid path"),
    }
}

fn socket(kind: SocketType) -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, kind, rustix::net::SocketFlags::CLOEXEC, None).expect("a socket")
}

fn listen(name: &[u8], kind: SocketType) -> OwnedFd {
    let listener = socket(kind);
    rustix::net::bind(&listener, &address(name)).expect("bound");
    rustix::net::listen(&listener, 1024).expect("listening");
    listener
}

/// Connections that this process is answering.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// Ends that this process is done with.
static DONE: Mutex<Vec<End>> = Mutex::new(Vec::new());

fn done(end: End) {
    DONE.lock().unwrap_or_else(PoisonError::into_inner).push(end);
}

/// Says that it is ready; once standard input closes, what was counted.
fn tell_at_the_end() -> ! {
    println!("ready");
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
    // The clients are gone by now, which is yet to be seen here.
    let end = Instant::now() + DEADLINE;
    while OPEN.load(Ordering::SeqCst) != 0 {
        assert!(Instant::now() < end, "a client does not go");
        std::thread::yield_now();
    }
    tell();
}

fn tell() -> ! {
    let lines: String = DONE.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|end| end.to_line() + "\n").collect();
    print!("\n{lines}");
    std::process::exit(0);
}

/// Sends all of `bytes` in one call.
fn send(socket: &OwnedFd, bytes: &[u8], end: &mut End) {
    let sent = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL).expect("sent");
    assert_eq!(sent, bytes.len());
    end.tx_calls += 1;
    end.tx_bytes += sent as u64;
}

/// Receives exactly `buffer.len()` bytes; false at the end of the stream.
fn receive(socket: &OwnedFd, buffer: &mut [u8], end: &mut End) -> bool {
    let mut filled = 0;
    while filled < buffer.len() {
        let (_, received) = rustix::net::recv(socket, &mut buffer[filled..], RecvFlags::empty()).expect("received");
        if received == 0 {
            return false;
        }
        end.rx_calls += 1;
        end.rx_bytes += received as u64;
        filled += received;
    }
    true
}

/// Answers one connection to its end.
fn answer(socket: &OwnedFd) {
    OPEN.fetch_add(1, Ordering::SeqCst);
    let mut end = End { pid: std::process::id(), ..End::default() };
    let mut request = [0; REQUEST];
    while receive(socket, &mut request, &mut end) {
        end.connection = u64::from_ne_bytes(*request.first_chunk().expect("long enough"));
        send(socket, &[7; ANSWER], &mut end);
    }
    // Asked for at the end: who asks makes the kernel give the socket a cookie.
    end.cookie = socket_cookie(socket).expect("a cookie");
    done(end);
    OPEN.fetch_sub(1, Ordering::SeqCst);
}

/// Serves one connection after the other.
fn serve(listener: &OwnedFd) {
    let listener = listener.try_clone().expect("a descriptor");
    std::thread::spawn(move || {
        loop {
            answer(&rustix::net::accept(&listener).expect("accepted"));
        }
    });
    tell_at_the_end();
}

/// Starts workers that inherit the listener, and does nothing but hold it; a connection for each is to be made.
fn fork(listener: &OwnedFd, workers: u64) {
    rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty()).expect("inheritable");
    let number = u64::try_from(listener.as_raw_fd()).expect("a descriptor");
    let mut children: Vec<Child> = (0..workers)
        .map(|_| {
            let mut child = actor(&[], "work", b"\0", &[number]);
            child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a worker")
        })
        .collect();
    let readers: Vec<_> = children
        .iter_mut()
        .map(|child| {
            let mut lines = std::io::BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.contains("ready")), "the worker is ready");
            lines
        })
        .collect();
    println!("ready");
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
    for (mut child, lines) in children.into_iter().zip(readers) {
        drop(child.stdin.take());
        for end in lines.filter_map(|line| End::from_line(&line)) {
            done(end);
        }
        assert!(child.wait().expect("our child").success());
    }
    tell();
}

/// The descriptor that this process got from its parent under this number.
fn inherited(number: u64) -> OwnedFd {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).expect("a pidfd");
    let number = i32::try_from(number).expect("a descriptor");
    rustix::process::pidfd_getfd(own.as_fd(), number, rustix::process::PidfdGetfdFlags::empty()).expect("inherited")
}

fn connect(name: &[u8], kind: SocketType) -> OwnedFd {
    let socket = socket(kind);
    rustix::net::connect(&socket, &address(name)).expect("connected");
    socket
}

fn exchange(socket: &OwnedFd, end: &mut End) {
    let mut request = [9; REQUEST];
    request[..8].copy_from_slice(&end.connection.to_ne_bytes());
    send(socket, &request, end);
    assert!(receive(socket, &mut [0; ANSWER], end), "answered");
}

/// One connection, made at once; each line of standard input is a number of requests.
fn call(name: &[u8], kind: SocketType, connection: u64) {
    let socket = connect(name, kind);
    println!("ready");
    let mut end = End { connection, pid: std::process::id(), ..End::default() };
    for line in std::io::stdin().lines().map_while(Result::ok) {
        for _ in 0..line.parse().expect("a number of requests") {
            exchange(&socket, &mut end);
        }
        println!("exchanged");
    }
    end.cookie = socket_cookie(&socket).expect("a cookie");
    done(end);
    tell();
}

/// After a line of standard input: `count` connections of one request each.
fn churn(name: &[u8], first: u64, count: u64) {
    println!("ready");
    let _go = std::io::stdin().read_line(&mut String::new()).expect("a line");
    let started = Instant::now();
    for number in 0..count {
        let due = STEP * u32::try_from(number / BURST).expect("short");
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        let socket = connect(name, SocketType::STREAM);
        let mut end = End { connection: first + number, pid: std::process::id(), ..End::default() };
        exchange(&socket, &mut end);
        end.cookie = socket_cookie(&socket).expect("a cookie");
        done(end);
    }
    println!("churned {:.0} a second", count as f64 / started.elapsed().as_secs_f64());
    tell_at_the_end();
}

/// Accepts one connection and hands it to the process that waits behind the name with `.hand` added.
fn give(listener: &OwnedFd) {
    println!("ready");
    let hand = {
        let mut line = String::new();
        let _read = std::io::stdin().read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    };
    let accepted = rustix::net::accept(listener).expect("accepted");
    let control = connect(hand.as_bytes(), SocketType::STREAM);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let passed = [accepted.as_fd()];
    assert!(message.push(SendAncillaryMessage::ScmRights(&passed)));
    rustix::net::sendmsg(&control, &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).expect("handed over");
    drop(accepted);
    println!("given");
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Takes a connection from another process and answers it.
fn take(name: &[u8]) {
    let listener = listen(name, SocketType::STREAM);
    std::thread::spawn(move || {
        let control = rustix::net::accept(&listener).expect("accepted");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        rustix::net::recvmsg(&control, &mut [IoSliceMut::new(&mut byte)], &mut message, RecvFlags::CMSG_CLOEXEC)
            .expect("a message");
        for part in message.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = part {
                sockets.for_each(|socket| answer(&socket));
            }
        }
    });
    tell_at_the_end();
}

/// A socket pair with bytes in its queue before and after: 1 000 before; 600 read and 500 sent at a line of standard input.
fn hold(connection: u64) {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a pair");
    assert_eq!(rustix::net::send(&one, &[1; 1000], SendFlags::empty()).expect("sent"), 1000);
    println!("ready");
    let _go = std::io::stdin().read_line(&mut String::new()).expect("a line");
    let (mut sender, mut receiver) = (End::new(&one), End::new(&other));
    (sender.connection, receiver.connection) = (connection, connection);
    assert!(receive(&other, &mut [0; 600], &mut receiver));
    send(&one, &[1; 200], &mut sender);
    send(&one, &[1; 300], &mut sender);
    println!("exchanged");
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
    done(sender);
    done(receiver);
    tell();
}

/// Listens and never accepts.
fn ignore(_listener: &OwnedFd) {
    tell_at_the_end();
}

/// At a line of standard input: `count` messages, each one byte longer than the last, to which nobody answers.
fn send_only(name: &[u8], kind: SocketType, connection: u64, count: u64) {
    let socket = connect(name, kind);
    println!("ready");
    let _go = std::io::stdin().read_line(&mut String::new()).expect("a line");
    let mut end = End { connection, pid: std::process::id(), ..End::default() };
    for number in 0..count {
        send(&socket, &vec![3; 1 + usize::try_from(number).expect("small")], &mut end);
    }
    end.cookie = socket_cookie(&socket).expect("a cookie");
    println!("exchanged");
    done(end);
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
    tell();
}

fn receive_datagrams(name: &[u8], connection: u64) {
    let socket = socket(SocketType::DGRAM);
    rustix::net::bind(&socket, &address(name)).expect("bound");
    let ends = Mutex::new(End { connection, ..End::new(&socket) });
    let ends: &'static Mutex<End> = Box::leak(Box::new(ends));
    std::thread::spawn(move || {
        loop {
            let (_, received) = rustix::net::recv(&socket, &mut [0; 4096][..], RecvFlags::empty()).expect("received");
            let mut end = ends.lock().unwrap_or_else(PoisonError::into_inner);
            end.rx_calls += 1;
            end.rx_bytes += received as u64;
        }
    });
    println!("ready");
    let _end = std::io::stdin().read_to_end(&mut Vec::new());
    done(ends.lock().unwrap_or_else(PoisonError::into_inner).clone());
    tell();
}

/// The ends of each connection by its number: (the one of `servers`, the one of `clients`).
pub(crate) fn connections(servers: Vec<End>, clients: Vec<End>) -> Vec<(End, End)> {
    let mut servers: HashMap<u64, End> = servers.into_iter().map(|end| (end.connection, end)).collect();
    let paired: Vec<_> = clients
        .into_iter()
        .map(|client| (servers.remove(&client.connection).unwrap_or_else(|| panic!("nobody served {client:?}")), client))
        .collect();
    assert!(servers.is_empty(), "nobody called {servers:?}");
    paired
}
