//! The tracer on this kernel, which has no `sock_send_length`: each of its modes does what [`MODES`] says, before traffic whose every call
//! and byte is known.
//!
//! The modes are those that the tracer lists in its help. One of the table that is not there is a failure.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::peers::Peer;
use super::{LIBRARY, TEST_DEADLINE, TRACE, Test};
use crate::measure::Running;
use crate::run;

/// What a mode does here.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// It cannot work: the command fails with 1 and one line that holds all of these words.
    Refused(&'static [&'static str]),
    /// Every call and byte is counted, but for so many receives that had begun before it was attached: those that were blocked then.
    Exact { unseen: u64 },
    /// Sockets, processes and connections are found; calls and bytes are not measured, and `verify` is refused.
    NoTraffic,
}

/// What is missing, and the remedy.
const TOO_OLD: Expected = Expected::Refused(&["kernel 6.1.", "sock_send_length", "Linux 6.3"]);
/// The end of a function is seen only if its beginning was: not that of the receive in which the server waits for its first request.
const FUNCTIONS: Expected = Expected::Exact { unseen: 1 };
/// What every mode does on this kernel, by its name on the command line.
const MODES: [(&str, Expected); 5] = [
    ("tp_btf", TOO_OLD),
    ("auto", FUNCTIONS),
    ("fexit", FUNCTIONS),
    ("syscalls", Expected::Exact { unseen: 0 }),
    ("snapshots", Expected::NoTraffic),
];

/// Requests of the measured exchange, each answered, and their size in bytes.
const COUNT: u64 = 400;
const SIZE: usize = 64;
/// Requests before it: enough for a connection to be upgraded.
const WARM_UP: u64 = 100;
/// Longest that the tracer may take to attach or to end.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn tests() -> Vec<Test> {
    let modes = match modes() {
        Ok(modes) => modes,
        Err(error) => {
            let text = format!("{error:#}");
            return vec![Test::new("tracer::modes", move || bail!("{text}"))];
        }
    };
    let mut tests = vec![Test::new("tracer::doctor", doctor)];
    for (name, expected) in modes {
        let arguments = ["--mode", name];
        tests.push(Test::new(format!("tracer::discover::{name}"), move || discover(arguments, expected)));
        tests.push(Test::new(format!("tracer::verify::{name}"), move || verify(arguments, expected)));
    }
    tests
}

/// The tracer's modes and what each must do.
fn modes() -> Result<[(&'static str, Expected); 5]> {
    let help = run::capture_success(Command::new(TRACE).args(["discover", "--help"]), TEST_DEADLINE)?.stdout;
    // A mode's name is a word of its own in the help.
    let words: Vec<&str> = help.split(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c))).collect();
    let missing: Vec<_> = MODES.iter().filter(|(name, _)| !words.contains(name)).map(|(name, _)| *name).collect();
    ensure!(
        missing.is_empty(),
        "the tracer does not list the modes {}: change MODES in the guest's tests:\n{help}",
        missing.join(", ")
    );
    Ok(MODES)
}

/// `doctor` tries each mode, chooses as `auto` does, and has a remedy for what does not work.
fn doctor() -> Result<()> {
    let output = run::capture(Command::new(TRACE).args(["doctor", "--json"]).env("TSSX_PRELOAD", LIBRARY), PATIENCE)?;
    ensure!(output.status.code() == Some(0), "{} instead of exit code 0: {}", output.status, output.stderr);
    let report: Value = serde_json::from_str(&output.stdout)?;
    ensure!(report["mode"] == "fexit", "the best mode here is fexit: {report}");
    for (name, expected) in MODES.into_iter().filter(|(name, _)| *name != "auto") {
        let wanted = format!("mode {name}");
        let capability = report["capabilities"].as_array().into_iter().flatten().find(|one| one["name"] == wanted.as_str());
        let capability = capability.with_context(|| format!("no {wanted} in {report}"))?;
        let works = !matches!(expected, Expected::Refused(_));
        ensure!(capability["tried"]["works"] == works && capability["predicted"]["works"] == works, "{name}: {capability}");
        ensure!(capability["remedy"].is_null() == works, "{name}: {capability}");
        if let Expected::Refused(words) = expected {
            let detail = capability["tried"]["detail"].as_str().context("the reason")?;
            ensure!(words.iter().all(|word| detail.contains(word)), "{detail}");
        }
    }
    Ok(())
}

/// `discover` beside an exchange on a connection that was there before.
fn discover(mode: [&str; 2], expected: Expected) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("echo.sock").display().to_string();
    let recording = directory.path().join("recording.json");
    let mut command = Command::new(TRACE);
    command.args(["discover", "--duration", "10m", "--record"]).arg(&recording).args(mode);
    if let Expected::Refused(words) = expected {
        return refused(&mut command, words);
    }
    let server = Peer::start("server", &socket, &[])?;
    let mut client = Peer::start("client", &socket, &[])?;
    client.exchange(WARM_UP, SIZE)?;
    let tracer = Tracer::start(&mut command)?;
    client.exchange(COUNT, SIZE)?;
    tracer.end(0)?;
    let report = parse(&recording)?;
    let services = report["services"].as_array().context("a list of services")?;
    let service = services.iter().find(|service| service["display"] == socket.as_str());
    let service = service.with_context(|| format!("no {socket} in {report}"))?;
    for (list, peer) in [("servers", &server), ("clients", &client)] {
        let pids: Vec<_> = service[list].as_array().into_iter().flatten().filter_map(|process| process["pid"].as_i64()).collect();
        ensure!(pids == [i64::from(peer.pid())], "{list} are {pids:?} and not {}: {service}", peer.pid());
    }
    ensure!(service["connections"] == 1, "one connection: {service}");
    for (name, unseen) in [("client_to_server", 1), ("server_to_client", 0)] {
        let flow = &service[name];
        let same = match expected {
            Expected::Exact { unseen: most } => *flow == counted(most.min(unseen)),
            _ => flow.as_object().is_some_and(|flow| !flow.is_empty() && flow.values().all(Value::is_null)),
        };
        ensure!(same, "{name} of {COUNT} requests of {SIZE} bytes, {expected:?}: {service}");
    }
    Ok(())
}

/// What a report says of one direction of the exchange, of whose receives so many were not seen.
fn counted(unseen: u64) -> Value {
    let (sent, received) = (COUNT, COUNT - unseen);
    let bytes = |calls: u64| calls * SIZE as u64;
    json!({ "send_calls": sent, "sent_bytes": bytes(sent), "receive_calls": received, "received_bytes": bytes(received) })
}

/// `verify` beside an exchange of an upgraded connection.
fn verify(mode: [&str; 2], expected: Expected) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("echo.sock").display().to_string();
    let mut command = Command::new(TRACE);
    command.args(["verify", "--duration", "10m", "--json", "--min-hit-rate", "99%"]).args(mode).arg(&socket);
    match expected {
        Expected::Refused(words) => return refused(&mut command, words),
        Expected::NoTraffic => return refused(&mut command, &["no traffic", "--mode"]),
        Expected::Exact { .. } => {}
    }
    let selected = [("LD_PRELOAD", LIBRARY), ("USE_TSSX", socket.as_str())];
    let _server = Peer::start("server", &socket, &selected)?;
    let mut client = Peer::start("client", &socket, &selected)?;
    client.exchange(WARM_UP, SIZE)?;
    let tracer = Tracer::start(&mut command)?;
    client.exchange(COUNT, SIZE)?;
    let report: Value = serde_json::from_str(&tracer.end(0)?)?;
    let of_socket = &report["sockets"][0];
    let number = |name: &str| of_socket[name].as_u64().with_context(|| format!("no {name} in {report}"));
    let total = 2 * COUNT * SIZE as u64;
    ensure!(number("ring_bytes")? + number("kernel_bytes")? == total, "{total} bytes were exchanged: {report}");
    ensure!((number("selected")?, number("accelerated")?, number("disagreements")?) == (1, 1, 0), "{report}");
    Ok(())
}

/// The command must fail with 1 and say in one line what is missing.
fn refused(command: &mut Command, words: &[&str]) -> Result<()> {
    let output = run::capture(command, PATIENCE)?;
    let text = &output.stderr;
    ensure!(output.status.code() == Some(1), "{} instead of exit code 1: {text}{}", output.status, output.stdout);
    ensure!(text.lines().count() == 1 && output.stdout.is_empty(), "not one line:\n{text}{}", output.stdout);
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty(), "its message does not name {missing:?}: {text}");
    Ok(())
}

fn parse(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", file.display()))
}

/// The tracer, watching until it is told to end.
struct Tracer {
    running: Running,
    /// Lines of its standard error.
    messages: mpsc::Receiver<String>,
    /// All of its standard output, once it has ended.
    output: mpsc::Receiver<String>,
}

impl Tracer {
    /// Starts it and waits until it is attached.
    fn start(command: &mut Command) -> Result<Self> {
        let mut running = Running::start_with(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let errors = running.child().stderr.take().context("standard error was asked for")?;
        let mut stdout = running.child().stdout.take().context("standard output was asked for")?;
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || BufReader::new(errors).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            // What could not be read is missing, and noticed.
            let _ = stdout.read_to_string(&mut text);
            sender.send(text)
        });
        let tracer = Self { running, messages, output };
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains("attached")) {
            let line = tracer.messages.recv_timeout(PATIENCE);
            said.push(line.with_context(|| format!("`{}` does not attach: {said:?}", run::shown(command)))?);
        }
        Ok(tracer)
    }

    /// Ends its window; what it printed.
    fn end(mut self, code: i32) -> Result<String> {
        kill(self.running.id(), Signal::SIGINT)?;
        let status = run::wait(self.running.child(), PATIENCE)?;
        let said: Vec<String> = self.messages.iter().collect();
        ensure!(status.code() == Some(code), "the tracer ended with {status}: {}", said.join("\n"));
        self.output.recv_timeout(PATIENCE).context("the tracer's output does not end")
    }
}
