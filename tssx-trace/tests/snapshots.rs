//! What each command prints, to the last byte: from what is kept in `tests/recordings`, where no privilege and no kernel program is needed.
//!
//! A file of `tests/snapshots` holds standard output, standard error and exit status of one command line; `TSSX_BLESS=1` writes them anew, for
//! a look at the difference. Where this runs as root, the tracer runs as nobody. Reports of `discover`, `suggest` and `explain` are kept beside
//! their recordings (`report.rs`, `advice.rs`, `explain.rs`), screens and metrics beside their modules' tests; [`COVERED`] lists them all.

mod common;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::schema::{Schema, Used};
use common::terminal::Terminal;
use common::{TRACER, tracer_for_others};
use serde_json::Value;

/// A process without any privilege.
const NOBODY: u32 = 65534;

/// Kept file, and the command line, in a directory with the recordings.
const SNAPSHOTS: [(&str, &str); 37] = [
    ("verify", "verify --from verify.json"),
    ("verify-all", "verify --from verify-all.json --expect /run/redis/redis-server.sock"),
    ("verify-lossy", "verify --from verify-lossy.json"),
    ("verify-one", "verify --from verify.json /run/postgresql/.s.PGSQL.5432"),
    ("verify-one-json", "verify --from verify.json --json --min-hit-rate 73% /run/postgresql/.s.PGSQL.5432"),
    ("verify-below", "verify --from verify.json --min-hit-rate 99.99%"),
    ("verify-expect", "verify --from verify.json --expect /run/idle.sock --expect @absent --min-hit-rate 1"),
    ("verify-silent", "verify --from verify.json /run/idle.sock /run/absent.sock"),
    ("verify-missing", "verify --from absent.json"),
    ("verify-other", "verify --from busy.json"),
    ("verify-usage", "verify --from verify.json --duration 1s"),
    ("doctor-all-well", "doctor --from doctor-all-well.json"),
    ("doctor-no-privilege", "doctor --from doctor-no-privilege.json"),
    ("doctor-no-types", "doctor --from doctor-no-types.json"),
    ("doctor-no-library", "doctor --from doctor-no-library.json"),
    ("doctor-other-release", "doctor --from doctor-other-release.json"),
    ("doctor-disabled", "doctor --from doctor-disabled.json"),
    ("doctor-missing", "doctor --from absent.json"),
    ("doctor-other", "doctor --from calibration.json"),
    ("bench", "bench --from calibration.json"),
    ("bench-missing", "bench --from absent.json"),
    ("run-nothing-selected", "run -- true"),
    ("run-no-library", "run --socket /run/x.sock -- true"),
    ("run-not-an-environment", "run --env busy.json -- true"),
    ("run-no-environment", "run --env absent.env -- true"),
    ("run-usage", "run --socket /run/x.sock"),
    ("top-no-terminal", "top"),
    ("top-json", "top --json"),
    ("export-usage", "export --listen localhost"),
    ("discover-missing", "discover --from absent.json"),
    ("suggest-missing", "suggest --from absent.json"),
    ("explain-missing", "explain --from absent.json /run/x.sock"),
    ("man", "man"),
    ("completions", "completions fish"),
    ("help", "--help"),
    ("help-verify", "verify --help"),
    ("help-doctor", "doctor --help"),
];

/// Documents that are printed again as they are. Those of `bench` are in `bench.rs`.
const DOCUMENTS: [(&str, &str); 9] = [
    ("verify", "verify.json"),
    ("verify", "verify-all.json"),
    ("verify", "verify-lossy.json"),
    ("doctor", "doctor-all-well.json"),
    ("doctor", "doctor-no-privilege.json"),
    ("doctor", "doctor-no-types.json"),
    ("doctor", "doctor-no-library.json"),
    ("doctor", "doctor-other-release.json"),
    ("doctor", "doctor-disabled.json"),
];

/// Each command that people type: a file with its text, and one with its JSON where it has any.
const COVERED: [(&str, &str, Option<&str>); 11] = [
    ("discover", "recordings/busy.out", Some("recordings/busy-json.out")),
    ("suggest", "recordings/suggest-shell.out", Some("recordings/suggest-json.out")),
    ("verify", "snapshots/verify.out", Some("recordings/verify.json")),
    ("top", "snapshots/top-80x24.out", None),
    ("explain", "recordings/explain-redis.out", Some("recordings/explain-json.out")),
    ("export", "snapshots/export.out", None),
    ("run", "snapshots/run-no-library.out", None),
    ("doctor", "snapshots/doctor-all-well.out", Some("recordings/doctor-all-well.json")),
    ("bench", "snapshots/bench.out", Some("recordings/calibration.json")),
    ("man", "snapshots/man.out", None),
    ("completions", "snapshots/completions.out", None),
];

/// Files of `tests/snapshots` that are held against what is printed elsewhere: by the tests of the modules, and below.
const ELSEWHERE: [&str; 6] = ["export", "export-no-privilege", "top-80x24", "top-120x40", "verify-80", "verify-60"];

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn snapshot(name: &str) -> PathBuf {
    tests().join("snapshots").join(format!("{name}.out"))
}

/// The tracer, and the recordings beside it, where nobody can reach them.
struct Place {
    directory: tempfile::TempDir,
    tracer: PathBuf,
}

impl Place {
    fn new() -> Self {
        let (directory, tracer) = tracer_for_others(0o755);
        for file in std::fs::read_dir(tests().join("recordings")).expect("readable") {
            let file = file.expect("a file");
            std::fs::copy(file.path(), directory.path().join(file.file_name())).expect("copied");
        }
        Self { directory, tracer }
    }

    fn run(&self, words: &[&str]) -> std::process::Output {
        let mut command = Command::new(&self.tracer);
        command.args(words).current_dir(self.directory.path()).stdin(Stdio::null());
        for variable in ["TSSX_PRELOAD", "USE_TSSX", "LD_PRELOAD", "COLUMNS", "NO_COLOR", "TSSX_DISABLE"] {
            command.env_remove(variable);
        }
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().expect("it starts")
    }

    /// All that a command line leaves, as it is kept; where the tracer lies differs from one run to the next.
    fn shown(&self, line: &str) -> String {
        let output = self.run(&line.split(' ').collect::<Vec<_>>());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let errors = text(&output.stderr).replace(self.directory.path().to_str().expect("UTF-8"), "DIRECTORY");
        let status = output.status.code().expect("no signal");
        format!("{}== standard error\n{errors}== status {status}\n", text(&output.stdout))
    }
}

/// Holds `text` against the kept file, or with `TSSX_BLESS` writes it and fails in the end.
fn hold(name: &str, text: &str, blessed: &mut Vec<String>) {
    let file = snapshot(name);
    if std::env::var_os("TSSX_BLESS").is_some() {
        std::fs::write(&file, text).expect("written");
        blessed.push(name.into());
        return;
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert_eq!(text, expected, "{name}: TSSX_BLESS=1 if this is meant");
}

fn assert_not(blessed: &[String]) {
    assert!(blessed.is_empty(), "written anew: look at them, and run without TSSX_BLESS: {blessed:?}");
}

#[test]
fn each_command_line_leaves_what_is_kept_of_it() {
    let (place, mut blessed) = (Place::new(), Vec::new());
    for (name, line) in SNAPSHOTS {
        hold(name, &place.shown(line), &mut blessed);
    }
    assert_not(&blessed);
}

#[test]
fn a_kept_document_is_printed_again_byte_for_byte_and_is_as_its_schema_says() {
    let place = Place::new();
    for (command, file) in DOCUMENTS {
        let output = place.run(&[command, "--from", file, "--json"]);
        let kept = std::fs::read(tests().join("recordings").join(file)).expect("kept");
        assert_eq!(String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&kept), "{file}");
        let document: Value = serde_json::from_slice(&kept).expect("JSON");
        let schema = if command == "verify" { Schema::of_verify() } else { Schema::of_doctor() };
        schema.check("report", &document, &mut Used::new()).unwrap_or_else(|flaw| panic!("{file}: {flaw}"));
    }
}

#[test]
fn every_command_has_its_text_and_its_json_kept_and_nothing_is_kept_for_nothing() {
    let help = Command::new(TRACER).arg("--help").output().expect("it starts");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let words = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()));
    let commands: BTreeSet<_> = words.filter(|word| *word != "help").collect();
    assert_eq!(commands, COVERED.iter().map(|(command, ..)| *command).collect(), "{help}");
    let read = |file: &str| std::fs::read_to_string(tests().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let is_json = |text: &str| serde_json::from_str::<Value>(text).is_ok();
    for (command, text, json) in COVERED {
        assert!(read(text).lines().count() > 1 && !is_json(&read(text)), "{text}");
        assert!(json.is_none_or(|file| is_json(&read(file))), "{command}");
        let options = Command::new(TRACER).args([command, "--help"]).output().expect("it starts");
        let options = String::from_utf8(options.stdout).expect("UTF-8");
        let has_json = options.split_ascii_whitespace().any(|word| word == "--json") || options.contains("- json:");
        assert_eq!(has_json, json.is_some(), "{command}: {options}");
    }
    let kept = std::fs::read_dir(snapshot("x").parent().expect("a directory")).expect("readable");
    let kept: BTreeSet<_> = kept.map(|file| file.expect("a file").file_name().into_string().expect("UTF-8")).collect();
    let used = SNAPSHOTS.iter().map(|(name, _)| *name).chain(ELSEWHERE).map(|name| format!("{name}.out")).collect();
    assert_eq!(kept, used);
}

/// What `verify` prints of that report in a terminal so wide.
fn in_terminal(file: &str, columns: u16, environment: &[(&str, &str)], last: &str) -> String {
    let path = tests().join("recordings").join(file);
    let terminal = Terminal::start(&["verify", "--from", path.to_str().expect("UTF-8")], (100, columns), environment);
    terminal.wait_for_end();
    let raw = || String::from_utf8_lossy(&terminal.raw()).replace("\r\n", "\n");
    terminal.wait_for("its last line", |_| raw().ends_with(&format!("{last}\n")));
    raw()
}

#[test]
fn a_narrow_terminal_gets_a_table_that_fits_and_colours_only_where_they_may_be() {
    let (mut blessed, last) = (Vec::new(), "/run/idle.sock: achieved: not measured");
    for columns in [80, 60] {
        let plain = in_terminal("verify.json", columns, &[("NO_COLOR", "1")], last);
        hold(&format!("verify-{columns}"), &plain, &mut blessed);
        let table: Vec<_> = plain.lines().take_while(|line| !line.is_empty()).collect();
        assert!(table.len() > 4 && table.iter().all(|line| line.chars().count() <= usize::from(columns)), "{plain}");
        assert!(!plain.contains('\x1b'), "{plain:?}");
        let colored = in_terminal("verify.json", columns, &[], last);
        assert!(colored.starts_with("\x1b[1mSOCKET"), "{colored:?}");
        assert_eq!(colored.replace("\x1b[1m", "").replace("\x1b[0m", ""), plain);
        assert_eq!(in_terminal("verify.json", columns, &[("TERM", "dumb")], last).lines().count(), plain.lines().count() - 1);
    }
    let lossy = in_terminal("verify-lossy.json", 80, &[], "faster than the ledgers were read");
    assert!(lossy.contains("\x1b[1;31mINCOMPLETE: "), "{lossy:?}");
    assert_not(&blessed);
}
