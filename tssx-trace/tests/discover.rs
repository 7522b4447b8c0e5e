//! `discover` against exchanges of known size: exact, by name, with both processes. Needs root and BPF.

mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::{TRACER, client, copy_program, exchange, server, stop, tracer, tracer_for_others};
use serde_json::Value;

/// A process without any privilege.
const NOBODY: u32 = 65534;

#[test]
fn peer_process() {
    common::run_peer();
}

/// The named service in a recording.
fn service(recording: &Path, display: &str) -> Value {
    let text = std::fs::read_to_string(recording).expect("a recording");
    let recording: Value = serde_json::from_str(&text).expect("JSON");
    let services = recording["services"].as_array().expect("a list").clone();
    services.into_iter().find(|service| service["display"] == display).unwrap_or_else(|| panic!("no {display} in {text}"))
}

fn pids(list: &Value) -> Vec<u64> {
    list.as_array().expect("a list").iter().map(|process| process["pid"].as_u64().expect("a number")).collect()
}

/// The exchange that every figure is compared with.
fn check_exact(socket: &str, directory: &Path) {
    const COUNT: u64 = 3000;
    const SIZE: usize = 64;
    let server = server(socket, &[]);
    let mut client = client(socket, &[]);
    exchange(&mut client, 500, 32); // before the tracer starts: must not be counted
    let recording = directory.join("recording.json");
    let recording_text = recording.to_str().expect("UTF-8");
    let tracer = tracer(&["discover", "--record", recording_text], &directory.join("table"));
    exchange(&mut client, COUNT, SIZE);
    let own = tracer.pid();
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(0), "{errors}");

    let all: Value = serde_json::from_slice(&std::fs::read(&recording).expect("a recording")).expect("JSON");
    let unnamed = all["unnamed"].as_array().expect("a list").iter();
    let holders = unnamed.flat_map(|service| [pids(&service["servers"]), pids(&service["clients"])].concat());
    assert!(holders.into_iter().all(|pid| pid != u64::from(own)), "the pairs by which the tracer wakes itself: {all}");
    let service = service(&recording, socket);
    let bytes = COUNT * SIZE as u64;
    let direction = serde_json::json!({
        "send_calls": COUNT, "sent_bytes": bytes, "receive_calls": COUNT, "received_bytes": bytes,
    });
    assert_eq!(service["client_to_server"], direction);
    assert_eq!(service["server_to_client"], direction);
    assert_eq!((service["calls"].as_u64(), service["bytes"].as_u64()), (Some(2 * COUNT), Some(2 * bytes)));
    assert_eq!((service["connections"].as_u64(), service["kind"].as_str()), (Some(1), Some("stream")));
    assert_eq!(service["open"].as_u64(), Some(1));
    assert_eq!(pids(&service["servers"]), [u64::from(server.pid())]);
    assert_eq!(pids(&service["clients"]), [u64::from(client.pid())]);
    let table = std::fs::read_to_string(directory.join("table")).expect("a table");
    assert!(table.lines().any(|line| line.starts_with(socket) && line.contains(&(2 * bytes).to_string())), "{table}");
}

#[test]
fn a_connection_made_before_on_a_path_is_counted_exactly() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("echo.sock");
    check_exact(socket.to_str().expect("UTF-8"), directory.path());
}

#[test]
fn a_connection_made_before_on_an_abstract_name_is_counted_exactly() {
    let directory = tempfile::tempdir().expect("a directory");
    check_exact(&format!("@tssx discover test {}", std::process::id()), directory.path());
}

#[test]
fn peeks_and_the_end_of_file_do_not_count() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("peek.sock");
    let socket = socket.to_str().expect("UTF-8");
    let _server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let recording = directory.path().join("recording.json");
    let tracer = tracer(&["discover", "--record", recording.to_str().expect("UTF-8")], &directory.path().join("table"));
    common::exchange_with_peeks(&mut client, 100, 48);
    let (status, lines) = client.finish(); // closes: the server reads the end of file
    assert!(status.success(), "{lines:#?}");
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(0), "{errors}");
    let service = service(&recording, socket);
    for direction in ["client_to_server", "server_to_client"] {
        assert_eq!(service[direction]["receive_calls"].as_u64(), Some(100), "{service}");
        assert_eq!(service[direction]["received_bytes"].as_u64(), Some(4800), "{service}");
    }
}

#[test]
fn a_silent_connection_is_shown_with_both_processes_and_no_traffic() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("silent.sock");
    let socket = socket.to_str().expect("UTF-8");
    let server = server(socket, &[]);
    let client = client(socket, &[]);
    let recording = directory.path().join("recording.json");
    let (code, errors) =
        stop(tracer(&["discover", "--record", recording.to_str().expect("UTF-8")], &directory.path().join("table")));
    assert_eq!(code, Some(0), "{errors}");
    let service = service(&recording, socket);
    assert_eq!((service["connections"].as_u64(), service["calls"].as_u64()), (Some(1), Some(0)));
    assert_eq!(pids(&service["servers"]), [u64::from(server.pid())]);
    assert_eq!(pids(&service["clients"]), [u64::from(client.pid())]);
}

#[test]
fn a_connection_that_has_ended_is_one_of_the_window_and_is_not_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let name = |file: &str| directory.path().join(file).to_str().expect("UTF-8").to_owned();
    let (socket, recording) = (name("echo.sock"), name("recording.json"));
    let server = server(&socket, &[]);
    let (mut one, mut two) = (client(&socket, &[]), client(&socket, &[]));
    let tracer = tracer(&["discover", "--record", &recording], &directory.path().join("table"));
    exchange(&mut one, 100, 64);
    exchange(&mut two, 100, 64);
    assert!(one.finish().0.success());
    server.await_rest(); // it has closed its end by then
    stop(tracer);
    let service = service(Path::new(&recording), &socket);
    assert_eq!((service["connections"].as_u64(), service["open"].as_u64()), (Some(2), Some(1)), "{service}");
}

#[test]
fn what_finds_no_room_is_counted_as_lost_and_the_exit_status_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("echo.sock");
    let socket = socket.to_str().expect("UTF-8");
    let _server = server(socket, &[]);
    let mut clients: [_; 4] = std::array::from_fn(|_| client(socket, &[]));
    let recording = directory.path().join("recording.json");
    let arguments = ["discover", "--max-sockets", "1", "--record", recording.to_str().expect("UTF-8")];
    let tracer = tracer(&arguments, &directory.path().join("table"));
    clients.iter_mut().for_each(|client| exchange(client, 100, 64));
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(3), "{errors}");
    assert!(errors.contains("LOST") && errors.contains("--max-sockets"), "{errors}");
    let table = std::fs::read_to_string(directory.path().join("table")).expect("a table");
    assert!(table.contains("INCOMPLETE"), "{table}");
    let text = std::fs::read_to_string(&recording).expect("a recording");
    let recording: Value = serde_json::from_str(&text).expect("JSON");
    // There is room for one end on each of up to four CPUs: of eight ends the calls of four, 100 sends and 100 receives each, are lost.
    let lost = recording["losses"]["map_full_calls"].as_u64().expect("a number");
    assert!(lost >= 800, "{text}");
    let nothing_false = |service: &Value| service["calls"] != 0 && service["client_to_server"]["receive_calls"] != 0;
    assert!(recording["services"].as_array().expect("a list").iter().all(nothing_false), "{text}");
}

#[test]
fn without_privilege_there_is_one_line_that_says_what_to_do() {
    let (_directory, copy) = tracer_for_others(0o755);
    for command in ["discover", "verify"] {
        let output = Command::new(&copy).arg(command).uid(NOBODY).gid(NOBODY).output().expect("it starts");
        let errors = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains("CAP_BPF") && errors.contains("root"), "{errors}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn without_type_information_only_snapshots_are_left_and_the_reason_is_told() {
    // A mount namespace of its own, in which an empty file system hides the kernel's BTF.
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    let run = |arguments: &[&str]| {
        let output = Command::new("unshare").args(["--mount", "sh", "-c", script, TRACER]).args(arguments).output();
        let output = output.expect("unshare starts");
        (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("recording.json");
    let (code, errors) = run(&["discover", "--duration", "1ms", "--record", recording.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("/sys/kernel/btf/vmlinux") && errors.contains("CONFIG_DEBUG_INFO_BTF"), "{errors}");
    let text = std::fs::read_to_string(&recording).expect("a recording");
    let recording: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(recording["mode"], "snapshots");
    assert_eq!(recording["refused_modes"].as_array().map(Vec::len), Some(3), "{text}");
    // What needs traffic has one line that says what to do.
    for arguments in [["verify", "--duration", "1ms"].as_slice(), &["discover", "--duration", "1ms", "--mode", "tp_btf"]] {
        let (code, errors) = run(arguments);
        assert_eq!((code, errors.lines().count()), (Some(1), 1), "{errors}");
        assert!(errors.contains("CONFIG_DEBUG_INFO_BTF"), "{errors}");
    }
}

#[test]
fn anybody_may_turn_a_recording_into_an_environment_that_a_shell_reads_back() {
    let (directory, copy) = tracer_for_others(0o755);
    let socket = directory.path().join("a b$HOME\"'`#%*.sock");
    let socket = socket.to_str().expect("UTF-8");
    let _server = server(socket, &[]);
    let mut client = client(socket, &[]);
    let recording = directory.path().join("recording.json");
    let tracer = tracer(&["discover", "--record", recording.to_str().expect("UTF-8")], &directory.path().join("table"));
    exchange(&mut client, 20_000, 64);
    let (code, errors) = stop(tracer);
    assert_eq!(code, Some(0), "{errors}");

    let library = directory.path().join("libtssx_preload.so"); // never loaded here: any ELF file serves
    copy_program(TRACER, &library);
    let mut suggest = Command::new(&copy);
    suggest.args(["suggest", "--min-calls", "0.001", "--from"]).arg(&recording).uid(NOBODY).gid(NOBODY).env_remove("TSSX_PRELOAD");
    let output = suggest.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(suggest.output().expect("it starts").stdout, output.stdout, "the same recording gives the same file");

    let file = directory.path().join("tssx.env");
    std::fs::write(&file, &output.stdout).expect("written");
    // LD_PRELOAD is kept from the second shell: the stand-in is no library.
    let script = "set -a; . \"$1\"; printf '%s\\n%s' \"$LD_PRELOAD\" \"$USE_TSSX\"";
    let shell = Command::new("sh").args(["-c", script, "sh"]).arg(&file).output().expect("a shell");
    let text = String::from_utf8(shell.stdout).expect("UTF-8");
    let (preload, selection) = text.split_once('\n').expect("two values");
    // The library that was looked for while recording; where there was none, what lies beside the tracer now.
    let recorded: Value = serde_json::from_slice(&std::fs::read(&recording).expect("there")).expect("JSON");
    let beside = library.canonicalize().expect("there");
    assert_eq!(Path::new(preload), recorded["library"].as_str().map_or(beside.as_path(), Path::new));
    let word = socket.replace(' ', "\\ ").replace('*', "\\*");
    assert!(selection.contains(&word), "{selection}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut command = Command::new(TRACER);
    command.args(["discover", "--duration", "1ms", "--json", "--record", "/dev/null/none"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command.stdout(writer).output().expect("it starts");
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!errors.contains("panic"), "{errors}");
    assert!(errors.contains("/dev/null/none"), "it went on past the closed pipe: {errors}");
    assert_eq!(output.status.code(), Some(1));
}
