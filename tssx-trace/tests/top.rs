//! `top` in a real terminal: what a person would see on it, and that it is as it was before when the view has gone.
//!
//! The library is named by `TSSX_PRELOAD` (absolute path); `cargo xtask test` sets it. Needs root and BPF.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use common::terminal::Terminal;
use common::{Guarded, TRACER, client, exchange, server};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::socket_domain;
use rustix::net::{AddressFamily, connect};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};

#[test]
fn peer_process() {
    common::run_peer();
}

/// Two echo servers, one of them in rings with its client, and traffic on both until this goes.
struct Traffic {
    directory: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
    _servers: [Guarded; 2],
}

impl Traffic {
    fn start() -> Self {
        let library = std::env::var("TSSX_PRELOAD")
            .expect("TSSX_PRELOAD must name libtssx_preload.so: run these tests by `cargo xtask test`");
        assert!(Path::new(&library).is_absolute(), "TSSX_PRELOAD must be absolute");
        let directory = tempfile::tempdir().expect("a directory");
        let name = |file: &str| directory.path().join(file).to_str().expect("UTF-8").to_owned();
        let (fast, plain) = (name("fast.sock"), name("plain.sock"));
        let environment = [("LD_PRELOAD", library.as_str()), ("USE_TSSX", fast.as_str())];
        let servers = [server(&fast, &environment), server(&plain, &[])];
        let stop = Arc::new(AtomicBool::new(false));
        // The plain socket moves more bytes in fewer calls.
        let clients =
            [(client(&fast, &environment), 2000, 16), (client(&plain, &[]), 20, 32_768)].map(|(mut client, count, size)| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        exchange(&mut client, count, size);
                        std::thread::sleep(std::time::Duration::from_millis(20)); // the tracer is to get a CPU
                    }
                })
            });
        Self { directory, stop, clients: clients.into(), _servers: servers }
    }

    fn top(&self, size: (u16, u16), environment: &[(&str, &str)]) -> Terminal {
        let pattern = format!("{}/*", self.directory.path().display());
        Terminal::start(&["top", "--interval", "200ms", "--socket", &pattern], size, environment)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.clients.drain(..).for_each(|client| drop(client.join()));
    }
}

/// The line of the table with the socket of that name.
fn row<'a>(screen: &'a str, end: &str) -> Option<(usize, &'a str)> {
    screen.lines().enumerate().find(|(_, line)| line.split(' ').next().is_some_and(|name| name.ends_with(end)))
}

/// Whether the row of one socket stands above that of another.
fn above(screen: &str, one: &str, other: &str) -> bool {
    row(screen, one).zip(row(screen, other)).is_some_and(|(one, other)| one.0 < other.0)
}

const FAST: &str = "fast.sock";
const PLAIN: &str = "plain.sock";

#[test]
fn sockets_are_shown_as_they_are_used_and_keys_sort_filter_and_quit() {
    let traffic = Traffic::start();
    let terminal = traffic.top((20, 120), &[]);
    let is_accelerated = |line: &str| line.contains(" yes ") && (line.contains("99%") || line.contains("100%"));
    let screen = terminal.wait_for("both sockets, the busier first", |screen| {
        above(screen, PLAIN, FAST) && row(screen, FAST).is_some_and(|(_, line)| is_accelerated(line))
    });
    println!("{screen}");
    let (_, plain) = row(&screen, PLAIN).expect("there");
    assert!(plain.contains(" no: ") && plain.contains(" - "), "{screen}");
    for part in ["2 sockets, ", "own CPU ", "Limits of mode ", "CALLS/S", "BYTES/S▼", "q quit"] {
        assert!(screen.contains(part), "no `{part}`:\n{screen}");
    }
    assert!(screen.contains("Lost: nothing.") || screen.contains("LOST: "), "{screen}");
    terminal.wait_for("a history", |screen| row(screen, PLAIN).is_some_and(|(_, line)| line.contains(['▁', '▂', '▄', '▆', '█'])));

    terminal.press("\x1b[D"); // by calls
    terminal.wait_for("the order by calls", |screen| screen.contains("CALLS/S▼") && above(screen, FAST, PLAIN));
    terminal.press("r");
    terminal.wait_for("the order turned round", |screen| screen.contains("CALLS/S▲") && above(screen, PLAIN, FAST));
    terminal.press("\x1b[B");
    let path = format!("{}/{FAST}", traffic.directory.path().display());
    terminal.wait_for("details of the second row", |screen| {
        screen.contains("1 connection, 1 selected, 1 accelerated.") && screen.lines().any(|line| line.trim_end() == path)
    });
    terminal.press("/PLAIN");
    let screen = terminal.wait_for("the filter", |screen| screen.contains("filter: PLAIN▏") && row(screen, FAST).is_none());
    assert!(row(&screen, PLAIN).is_some() && screen.contains("1 socket of 2, "), "{screen}");
    terminal.press("\rq");
    let status = terminal.wait_for_end();
    let screen = terminal.wait_for("the screen from before", |_| terminal.is_as_before());
    assert!(matches!(status.code(), Some(0 | 3)), "{status}:\n{screen}");
    assert!(screen.contains("attached; watching") && !screen.contains("SOCKET") && !screen.contains("q quit"), "{screen}");
}

#[test]
fn another_size_changes_the_columns_and_no_color_means_none() {
    let traffic = Traffic::start();
    let terminal = traffic.top((20, 120), &[("NO_COLOR", "1")]);
    terminal.wait_for("the wide view", |screen| row(screen, PLAIN).is_some() && screen.contains("SERVER"));
    terminal.resize((16, 60));
    let screen = terminal.wait_for("the narrow view", |screen| {
        row(screen, PLAIN).is_some()
            && !screen.contains("SERVER")
            && screen.lines().last().is_some_and(|line| line.starts_with("q quit"))
    });
    println!("{screen}");
    assert!(["SOCKET", "CALLS/S", "BYTES/S▼", "HIT", "ACCELERATED"].iter().all(|title| screen.contains(title)), "{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 60), "{screen}");
    terminal.press("\x03");
    assert!(matches!(terminal.wait_for_end().code(), Some(0 | 3)));
    terminal.wait_for("the screen from before", |_| terminal.is_as_before());
    assert_eq!(colors(&terminal.raw()), 0);
    let colored = traffic.top((20, 120), &[]);
    colored.wait_for("the view", |screen| row(screen, FAST).is_some());
    assert!(colors(&colored.raw()) > 0, "the test above can fail");
}

/// How many sequences choose a colour other than the terminal's own.
fn colors(raw: &[u8]) -> usize {
    let sequences = raw.split(|byte| *byte == 0x1b).skip(1).filter_map(|rest| {
        let text = std::str::from_utf8(rest.strip_prefix(b"[")?.split(u8::is_ascii_alphabetic).next()?).ok()?;
        (rest.get(1 + text.len()) == Some(&b'm')).then_some(text)
    });
    sequences.filter(|text| text.split(';').any(|number| matches!(number.parse(), Ok(30..=38 | 40..=48)))).count()
}

#[test]
fn a_signal_and_an_error_leave_the_terminal_as_it_was() {
    for signal in [Signal::TERM, Signal::INT] {
        let terminal = Terminal::start(&["top", "--interval", "100ms"], (24, 80), &[]);
        terminal.wait_for("a view", |screen| screen.contains("own CPU"));
        assert!(!terminal.is_as_before(), "the test below can fail");
        terminal.signal(signal);
        let status = terminal.wait_for_end();
        assert!(matches!(status.code(), Some(0 | 3)), "{status}");
        terminal.wait_for("the screen from before", |_| terminal.is_as_before());
    }
    let terminal = Terminal::start(&["top", "--interval", "100ms"], (24, 80), &[]);
    terminal.wait_for("a view", |screen| screen.contains("own CPU"));
    break_socket_lists(terminal.pid());
    assert_eq!(terminal.wait_for_end().code(), Some(1));
    terminal.wait_for("the error on the screen from before", |screen| {
        terminal.is_as_before() && screen.contains("UNIX_DIAG dump failed")
    });
}

/// Connects the sockets by which the tracer asks the kernel for lists of sockets to an address that nobody has: its next request fails.
fn break_socket_lists(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("ours");
    let numbers =
        descriptors.map(|entry| entry.expect("one").file_name().to_str().and_then(|name| name.parse().ok()).expect("a number"));
    let copies = numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok());
    let lists: Vec<_> = copies.filter(|copy| socket_domain(copy) == Ok(AddressFamily::NETLINK)).collect();
    assert!(!lists.is_empty());
    lists.iter().for_each(|list| connect(list, &SocketAddrNetlink::new(u32::MAX / 2, 0)).expect("connected"));
}

#[test]
fn what_is_no_terminal_is_told_what_to_use_instead() {
    for (arguments, word) in [(&["top"][..], "standard output is none"), (&["top", "--json"], "no JSON")] {
        let output = Command::new(TRACER).args(arguments).stdin(Stdio::null()).output().expect("it starts");
        let errors = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), output.stdout.len(), errors.lines().count()), (Some(1), 0, 1), "{errors}");
        assert!([word, "discover --follow", "--json"].iter().all(|part| errors.contains(part)), "{errors}");
    }
    let terminal = Terminal::start(&["top"], (24, 100), &[("TERM", "dumb")]);
    assert_eq!(terminal.wait_for_end().code(), Some(1));
    terminal.wait_for("the remedy", |screen| screen.contains("discover --follow"));
    assert!(!terminal.raw().contains(&0x1b));
}
