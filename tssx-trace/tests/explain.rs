//! Programs that cannot be accelerated, each built, run and watched: `explain` gives the reason, and `suggest` leaves them out. Needs root,
//! BPF and a C compiler.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::schema::{Schema, Used};
use common::{Guarded, TRACER, server, stop, tracer};
use serde_json::Value;

/// A user without any privilege, whose the set-user-id program is.
const NOBODY: u32 = 65534;

#[test]
fn peer_process() {
    common::run_peer();
}

/// One way to be a client.
struct Way {
    name: &'static str,
    /// How the client is told to send.
    how: &'static str,
    flags: &'static [&'static str],
    /// Code and end that `explain` must give; `None`: nothing is in the way.
    expected: Option<(&'static str, Option<&'static str>)>,
}

const WAYS: [Way; 7] = [
    Way { name: "plain", how: "libc", flags: &[], expected: None },
    Way { name: "static", how: "libc", flags: &["-static"], expected: Some(("static-program", Some("client"))) },
    Way { name: "raw", how: "raw", flags: &["-DRAW"], expected: Some(("no-socket-call-imported", Some("client"))) },
    Way { name: "setuid", how: "libc", flags: &[], expected: Some(("secure-execution", Some("client"))) },
    Way { name: "uring", how: "uring", flags: &[], expected: Some(("io-uring", Some("client"))) },
    Way { name: "datagram", how: "datagram", flags: &[], expected: Some(("not-a-stream", None)) },
    Way { name: "cleared", how: "libc", flags: &[], expected: Some(("empty-environment", Some("client"))) },
];

/// A directory with everything, which lets everybody in: the set-user-id program runs as somebody else.
struct Stage {
    directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("opened");
        Self { directory }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        self.path(file).into_os_string().into_string().expect("UTF-8")
    }

    fn build(&self, way: &Way) -> PathBuf {
        let program = self.path(way.name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/client.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source).args(way.flags);
        let output = cc.output().expect("cc starts: install a C compiler");
        assert!(output.status.success(), "{}: {}", way.name, String::from_utf8_lossy(&output.stderr));
        if way.name == "setuid" {
            std::os::unix::fs::chown(&program, Some(NOBODY), None).expect("given away");
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).expect("marked");
        }
        program
    }

    /// Starts the client and waits until it is connected.
    fn client(&self, way: &Way) -> Guarded {
        let mut command = Command::new(self.build(way));
        command.args([way.how, &self.text(&format!("{}.sock", way.name))]);
        if way.name == "cleared" {
            command.env_clear();
        }
        let mut client = Guarded::start(&mut command, true);
        client.wait_for("ready");
        client
    }

    /// `explain` or `suggest` of the recording, as JSON.
    fn ask(&self, arguments: &[&str], definition: &str, schema: &Schema) -> Value {
        let mut command = Command::new(TRACER);
        command.args(arguments).args(["--from", &self.text("recording.json")]);
        command.env("TSSX_PRELOAD", TRACER); // a stand-in for the library: `suggest` names it and never loads it
        let output = command.output().expect("it starts");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{arguments:?}: {errors}");
        let document = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"));
        schema.check(definition, &document, &mut Used::new()).expect("as the schema says");
        document
    }
}

/// The codes of one weight, with their ends.
fn codes<'a>(findings: &'a Value, weight: &str) -> Vec<(&'a str, Option<&'a str>)> {
    let findings = findings.as_array().expect("a list").iter();
    findings.filter(|one| one["weight"] == weight).map(|one| (one["code"].as_str().expect("text"), one["end"].as_str())).collect()
}

#[test]
fn each_program_that_cannot_be_accelerated_is_told_why_and_not_suggested() {
    let stage = Stage::new();
    let mut servers = Vec::new();
    let mut mailbox = None;
    for way in &WAYS {
        let path = stage.text(&format!("{}.sock", way.name));
        if way.how == "datagram" {
            let bound = UnixDatagram::bind(&path).expect("bound");
            let reader = bound.try_clone().expect("a descriptor");
            std::thread::spawn(move || while reader.recv(&mut [0; 256]).is_ok_and(|size| size > 1) {});
            mailbox = Some(bound);
        } else {
            servers.push(server(&path, &[]));
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).expect("opened");
    }
    let mut clients: Vec<_> = WAYS.iter().map(|way| stage.client(way)).collect();
    let tracer = tracer(&["discover", "--record", &stage.text("recording.json")], &stage.path("table"));
    for client in &mut clients {
        client.tell("go");
        client.wait_for("done");
    }
    // One of them live, by its number, while it runs.
    let pid = clients[1].pid().to_string();
    let live = Command::new(TRACER).args(["explain", &pid, "--duration", "100ms"]).output().expect("it starts");
    let (code, errors) = stop(tracer);
    assert!(matches!(code, Some(0 | 3)), "{errors}");

    let schema = Schema::of_explain();
    let suggestion = stage.ask(&["suggest", "--format", "json", "--accept-losses"], "suggestion", &Schema::of_suggest());
    let selection = suggestion["environment"]["USE_TSSX"].as_str().expect("text");
    for (way, client) in WAYS.iter().zip(&clients) {
        let path = stage.text(&format!("{}.sock", way.name));
        for subject in [&path, &client.pid().to_string()] {
            let document = stage.ask(&["explain", "--json", subject], "explanation", &schema);
            let sockets = document["sockets"].as_array().expect("a list");
            let socket = sockets.iter().find(|socket| socket["display"] == path.as_str()).unwrap_or_else(|| panic!("{document:#}"));
            let level = if way.expected.is_some() { "blocked" } else { "recommended" };
            assert_eq!(socket["level"], level, "{}: {socket:#}", way.name);
            let expected: Vec<_> = way.expected.into_iter().collect();
            assert_eq!(codes(&socket["findings"], "block"), expected, "{}: {socket:#}", way.name);
            if way.name != "datagram" {
                assert_eq!(socket["client"]["processes"][0]["pid"], client.pid(), "{socket:#}");
            }
        }
        assert_eq!(selection.contains(&path), way.expected.is_none(), "{}: {selection}", way.name);
    }
    let text = String::from_utf8(live.stdout).expect("UTF-8");
    for part in ["static.sock: not accelerated, 1 connection", "nothing: static", "blocks static-program (client end)", "remedy: "]
    {
        assert!(text.contains(part), "no `{part}` in {text}{}", String::from_utf8_lossy(&live.stderr));
    }
    drop((servers, mailbox));
}
