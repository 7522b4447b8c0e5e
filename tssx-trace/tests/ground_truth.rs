//! `discover` against a workload of which every call and byte is known, see `workload`. Needs root and BPF.
//!
//! Demanded: calls and bytes of every end exact; the right name and the right processes for at least 99 of 100
//! connections and for the rest no name or no peer, never a wrong one; what was sent is what was received and is queued.

mod common;
mod workload;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::{Guarded, stop, tracer};
use serde_json::Value;
use workload::{End, actor, connections, dismiss, of_path, start};

/// `SOCK_STREAM`, `SOCK_DGRAM` and `SOCK_SEQPACKET`.
const STREAM: u64 = 1;
const DATAGRAM: u64 = 2;
const SEQPACKET: u64 = 5;
/// Short connections, at 2 000 a second.
const SHORT: u64 = 4000;

#[test]
fn workload_actor() {
    workload::act();
}

/// One kind of connection: its actors, and what the report must call it.
struct Scene {
    what: &'static str,
    /// The name in the report, `None` for a socket pair.
    name: Option<String>,
    servers: Vec<Guarded>,
    clients: Vec<Guarded>,
    /// What is to be said of the socket file, and where it lies on the host.
    file: Option<(&'static str, Option<PathBuf>)>,
}

/// A name as reports show it; the names here are ASCII but for 0 and 0xff.
fn shown(name: &[u8]) -> String {
    let (mark, rest) = if let Some((0, rest)) = name.split_first() { ("@", rest) } else { ("", name) };
    let escaped = rest.iter().map(|byte| match byte {
        0 | 0xff => format!("\\x{byte:02x}"),
        printable => char::from(*printable).to_string(),
    });
    mark.to_owned() + &escaped.collect::<String>()
}

/// A stage on which scenes are set: a directory, and numbers for connections.
struct Stage {
    directory: tempfile::TempDir,
    connection: u64,
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().expect("there").join(name)
    }

    fn next(&mut self) -> u64 {
        self.connection += 1_000_000;
        self.connection
    }

    /// A server and a client of its own, each started through other commands.
    fn scene(&mut self, what: &'static str, name: &[u8], kind: u64) -> Scene {
        let server = start(actor(&[], "serve", name, &[kind]));
        let client = start(actor(&[], "call", name, &[kind, self.next()]));
        Scene { what, name: Some(shown(name)), servers: vec![server], clients: vec![client], file: None }
    }

    /// A path whose whole length is `length` bytes.
    fn long(&self, length: usize) -> Vec<u8> {
        let mut name = of_path(&self.path("long-"));
        name.resize(length, b'l');
        name
    }

    fn relative(&mut self) -> Scene {
        let mut server = actor(&[], "serve", b"relative.sock", &[STREAM]);
        server.current_dir(self.path(""));
        let server = start(server);
        let client = start(actor(&[], "call", &of_path(&self.path("relative.sock")), &[STREAM, self.next()]));
        let (servers, clients) = (vec![server], vec![client]);
        Scene {
            what: "relative",
            name: Some(String::from("relative.sock")),
            servers,
            clients,
            file: Some(("present", Some(self.path("relative.sock")))),
        }
    }

    /// A server in a mount namespace of its own, in which `script` ran; the client joins it and connects to `other`.
    fn apart(&mut self, what: &'static str, script: &str, [name, other]: [&Path; 2], host: Option<PathBuf>) -> Scene {
        let script = format!("{script} && exec \"$0\" \"$@\"");
        let server = start(actor(&["unshare", "--mount", "sh", "-c", &script], "serve", &of_path(name), &[STREAM]));
        let namespace = format!("--mount=/proc/{}/ns/mnt", server.pid());
        let client = start(actor(&["nsenter", &namespace], "call", &of_path(other), &[STREAM, self.next()]));
        let name = Some(shown(&of_path(name)));
        Scene { what, name, servers: vec![server], clients: vec![client], file: Some(("present", host)) }
    }

    fn other_network(&mut self, name: &[u8]) -> Scene {
        let server = start(actor(&["unshare", "--net"], "serve", name, &[STREAM]));
        let namespace = format!("--net=/proc/{}/ns/net", server.pid());
        let client = start(actor(&["nsenter", &namespace], "call", name, &[STREAM, self.next()]));
        Scene {
            what: "another network namespace",
            name: Some(shown(name)),
            servers: vec![server],
            clients: vec![client],
            file: None,
        }
    }

    fn forked(&mut self) -> Scene {
        let name = of_path(&self.path("forked.sock"));
        let server = start(actor(&[], "fork", &name, &[2]));
        let clients = (0..2).map(|_| start(actor(&[], "call", &name, &[STREAM, self.next()]))).collect();
        Scene { what: "prefork workers", name: Some(shown(&name)), servers: vec![server], clients, file: None }
    }

    fn passed(&mut self) -> Scene {
        let (name, hand) = (of_path(&self.path("passed.sock")), of_path(&self.path("hand.sock")));
        let server = start(actor(&[], "take", &hand, &[]));
        let mut giver = start(actor(&[], "give", &name, &[]));
        let client = start(actor(&[], "call", &name, &[STREAM, self.next()]));
        giver.tell(std::str::from_utf8(&hand).expect("UTF-8"));
        giver.wait_for("given");
        Scene {
            what: "a passed descriptor",
            name: Some(shown(&name)),
            servers: vec![server, giver],
            clients: vec![client],
            file: None,
        }
    }

    fn queued(&mut self) -> Scene {
        let pair = start(actor(&[], "hold", b"\0", &[self.next()]));
        Scene { what: "a socket pair with queued bytes", name: None, servers: Vec::new(), clients: vec![pair], file: None }
    }
}

/// Everything that is connected before the tracer begins.
fn before(stage: &mut Stage) -> Vec<Scene> {
    let plain = of_path(&stage.path("before.sock"));
    let gone = of_path(&stage.path("gone.sock"));
    let replaced = of_path(&stage.path("replaced.sock"));
    let unlinked = Scene { file: Some(("deleted", None)), ..stage.scene("unlinked", &gone, STREAM) };
    let old = Scene { file: Some(("replaced", None)), ..stage.scene("replaced", &replaced, STREAM) };
    std::fs::remove_file(stage.path("gone.sock")).expect("removed");
    std::fs::remove_file(stage.path("replaced.sock")).expect("removed");
    let present = Some(("present", Some(stage.path("before.sock"))));
    vec![Scene { file: present, ..stage.scene("made before", &plain, STREAM) }, unlinked, old, stage.queued()]
}

/// Everything that is connected while it watches.
fn within(stage: &mut Stage) -> Vec<Scene> {
    let id = std::process::id();
    let name = |end: &[u8]| [format!("\0tssx truth {id} ").as_bytes(), end].concat();
    let (with_nul, shared) = (name(b"nul\0\0x\0"), name(b"both"));
    let not_utf8 = of_path(&stage.path("x")).into_iter().chain([0xff]).collect::<Vec<u8>>();
    let replaced = of_path(&stage.path("replaced.sock"));
    let (real, bound, alone) = (stage.path("real"), stage.path("bound"), stage.path("alone"));
    for directory in [&real, &bound, &alone] {
        std::fs::create_dir(directory).expect("made");
    }
    let bind = format!("mount --bind {} {}", real.display(), bound.display());
    let tmpfs = format!("mount -t tmpfs none {}", alone.display());
    let (long, longest) = (stage.long(107), stage.long(108));
    vec![
        Scene { file: Some(("present", Some(stage.path("replaced.sock")))), ..stage.scene("the new one", &replaced, STREAM) },
        stage.scene("an abstract name with NULs", &with_nul, STREAM),
        stage.scene("an abstract name that is not UTF-8", &name(b"\xff\xff"), STREAM),
        stage.scene("a path that is not UTF-8", &not_utf8, STREAM),
        stage.scene("107 bytes", &long, STREAM),
        stage.scene("108 bytes", &longest, STREAM),
        stage.scene("packets", &of_path(&stage.path("packets.sock")), SEQPACKET),
        stage.scene("the same abstract name here", &shared, STREAM),
        stage.other_network(&shared),
        stage.relative(),
        stage.apart("bind-mounted", &bind, [&bound.join("x.sock"), &real.join("x.sock")], Some(real.join("x.sock"))),
        stage.apart("another mount namespace", &tmpfs, [&alone.join("x.sock"), &alone.join("x.sock")], None),
        stage.forked(),
        stage.passed(),
    ]
}

/// One end in the report.
struct Seen {
    name: Option<String>,
    kind: String,
    file: Value,
    is_server: bool,
    peer: u64,
    callers: Vec<u64>,
    counts: [u64; 4],
    balanced: bool,
}

/// Every end of the report by cookie.
fn ends(report: &Value) -> HashMap<u64, Seen> {
    let list = |field: &str| report[field].as_array().expect("a list").clone();
    let mut found = HashMap::new();
    for service in list("services").into_iter().chain(list("unnamed")) {
        let Some(pairs) = service["pairs"].as_array() else { continue };
        let name = service["name"].is_object().then(|| service["display"].as_str().expect("text").to_owned());
        for pair in pairs {
            for (own, other, out, back) in [
                ("server", "client", "server_to_client", "client_to_server"),
                ("client", "server", "client_to_server", "server_to_client"),
            ] {
                let number = |value: &Value| value.as_u64().expect("a number");
                let cookie = number(&pair[own]["cookie"]);
                let seen = Seen {
                    name: name.clone(),
                    kind: service["kind"].as_str().expect("text").to_owned(),
                    file: service["file"].clone(),
                    is_server: own == "server",
                    peer: number(&pair[other]["cookie"]),
                    callers: pair[own]["callers"].as_array().expect("a list").iter().map(number).collect(),
                    counts: [
                        number(&pair[own]["send_calls"]),
                        number(&pair[out]["sent"]),
                        number(&pair[own]["receive_calls"]),
                        number(&pair[back]["received"]),
                    ],
                    balanced: pair[out]["state"] == "balanced" && pair[back]["state"] == "balanced",
                };
                assert!(cookie == 0 || found.insert(cookie, seen).is_none(), "cookie {cookie} is in two pairs");
            }
        }
    }
    found
}

fn counts(end: &End) -> [u64; 4] {
    [end.tx_calls, end.tx_bytes, end.rx_calls, end.rx_bytes]
}

/// Whether the report has the connection right; panics if it says anything wrong.
fn is_right(seen: &HashMap<u64, Seen>, what: &str, name: Option<&str>, server: &End, client: &End) -> bool {
    let of = |end: &End| seen.get(&end.cookie).unwrap_or_else(|| panic!("{what}: no {end:?} in the report"));
    for end in [server, client] {
        assert_eq!(of(end).counts, counts(end), "{what}: calls and bytes of {end:?}");
        let callers: &[u64] = if counts(end) == [0; 4] { &[] } else { &[u64::from(end.pid)] };
        assert_eq!(of(end).callers, callers, "{what}: who called at {end:?}");
    }
    let (at_server, at_client) = (of(server), of(client));
    for (named, peer) in [(at_server, client), (at_client, server)] {
        assert!(named.peer == 0 || named.peer == peer.cookie, "{what}: {} is not the peer but {}", named.peer, peer.cookie);
        assert!(named.name.is_none() || named.name.as_deref() == name, "{what}: called {:?}, not {name:?}", named.name);
    }
    let known = at_server.peer != 0 && at_client.peer != 0 && at_server.name.as_deref() == name;
    assert!(!known || name.is_none() || (at_server.is_server && !at_client.is_server), "{what}: the ends are the wrong way round");
    assert!(!known || at_server.balanced, "{what}: bytes are missing between {server:?} and {client:?}");
    known
}

#[test]
fn every_call_and_byte_and_at_least_99_of_100_pairs_are_as_they_were() {
    let mut stage = Stage { directory: tempfile::tempdir().expect("a directory"), connection: 0 };
    let recording = stage.path("recording.json");
    let mut scenes = before(&mut stage);
    let short = of_path(&stage.path("short.sock"));
    let short_server = start(actor(&[], "serve", &short, &[STREAM]));
    let datagrams = of_path(&stage.path("datagrams.sock"));
    let receiver = start(actor(&[], "receive", &datagrams, &[1]));

    let arguments = ["discover", "--json", "--pairs", "--record", recording.to_str().expect("UTF-8")];
    let tracer = tracer(&arguments, &stage.path("report.json"));
    scenes.extend(within(&mut stage));
    let mut churn = start(actor(&[], "churn", &short, &[stage.next(), SHORT]));
    churn.tell("go");
    let mut sender = start(actor(&[], "send", &datagrams, &[DATAGRAM, 1, 50]));
    let waited_for = of_path(&stage.path("waiting.sock"));
    let ignorant = start(actor(&[], "ignore", &waited_for, &[]));
    let mut waiting = start(actor(&[], "send", &waited_for, &[STREAM, 1, 50]));
    for sender in [&mut sender, &mut waiting] {
        sender.tell("go");
        sender.wait_for("exchanged");
    }
    for client in scenes.iter_mut().flat_map(|scene| &mut scene.clients) {
        client.tell("25");
        client.wait_for("exchanged");
    }
    let rate = churn.wait_for("churned");
    for actor in scenes.iter().flat_map(|scene| scene.clients.iter().chain(&scene.servers)).chain([&short_server, &receiver]) {
        actor.await_rest();
    }
    let (code, errors) = stop(tracer);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(stage.path("report.json")).expect("a report")).expect("JSON");
    // Ledgers of other tests that run on this host may come and go too fast: those are other losses.
    for loss in ["map_full_calls", "no_memory_calls", "refused_calls", "missed_events", "untold_sockets"] {
        assert_eq!(report["losses"][loss], 0, "{loss}: {errors}");
    }
    assert!(code == Some(0) || code == Some(3), "{code:?}: {errors}");
    let seen = ends(&report);
    for scene in scenes {
        check(&seen, scene);
    }
    let short = shown(&short);
    let clients = dismiss(churn);
    let pairs = connections(dismiss(short_server), clients);
    assert_eq!(pairs.len() as u64, SHORT);
    let right = pairs.iter().filter(|(server, client)| is_right(&seen, "short", Some(&short), server, client)).count() as u64;
    println!("{rate}; {right} of {SHORT} short connections have the right path and the right processes");
    assert!(right * 100 >= SHORT * 99, "only {right} of {SHORT}");
    check_waiting(&report, &seen, &shown(&waited_for), &dismiss(waiting));
    assert!(dismiss(ignorant).is_empty());
    for end in dismiss(sender).into_iter().chain(dismiss(receiver)) {
        let seen = seen.get(&end.cookie).expect("in the report");
        assert_eq!((seen.counts, seen.kind.as_str()), (counts(&end), "datagram"), "{end:?}");
    }
}

/// Holds one scene against the report.
fn check(seen: &HashMap<u64, Seen>, scene: Scene) {
    let Scene { what, name, servers, clients, file } = scene;
    // The clients first: the servers' last word is about connections that ended.
    let mut clients: Vec<End> = clients.into_iter().flat_map(dismiss).collect();
    let mut servers: Vec<End> = servers.into_iter().flat_map(dismiss).collect();
    if servers.is_empty() {
        servers = clients.split_off(1);
    }
    let pairs = connections(servers, clients);
    assert!(!pairs.is_empty(), "{what}: no connection");
    for (server, client) in pairs {
        assert!(is_right(seen, what, name.as_deref(), &server, &client), "{what}: not known");
        let Some((state, host)) = &file else { continue };
        let seen = &seen[&server.cookie].file;
        assert_eq!(seen["state"], *state, "{what}: {seen}");
        assert_eq!(seen["host"]["name"].as_str(), host.as_ref().and_then(|host| host.to_str()), "{what}: {seen}");
    }
}

/// A connection that nobody accepted has a name, a client, no server's process, and nobody can say what is in its queue.
fn check_waiting(report: &Value, seen: &HashMap<u64, Seen>, name: &str, clients: &[End]) {
    let [client] = clients else { panic!("{clients:?}") };
    let at_client = &seen[&client.cookie];
    assert_eq!((at_client.name.as_deref(), at_client.counts), (Some(name), counts(client)));
    assert!(!at_client.is_server && !at_client.balanced, "what is in that queue cannot be known");
    let services = report["services"].as_array().expect("a list");
    let service = services.iter().find(|service| service["display"] == name).expect("the service");
    assert_eq!((&service["waiting"], &service["connections"]), (&Value::from(1), &Value::from(1)), "{service}");
    let pair = &service["pairs"][0];
    assert_eq!(pair["server"]["callers"].as_array().map(Vec::len), Some(0), "{pair}");
    assert_eq!(pair["server"]["holders"].as_array().map(Vec::len), Some(0), "{pair}");
    assert_eq!(pair["client_to_server"]["state"], "not_measured", "{pair}");
}
