//! `doctor`'s checks of the library, on good libraries and bad ones. The library is named by `TSSX_PRELOAD` (absolute path); `cargo xtask test`
//! sets it. Needs root and BPF.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::schema::{Schema, Used};
use common::{TRACER, copy_program, tracer_for_others};
use serde_json::Value;

const CHECKS: [&str; 5] =
    ["library found", "library fits", "library loads", "self-test accelerated", "self-test leaves the kernel idle"];

#[test]
fn peer_process() {
    common::run_peer();
}

fn library() -> PathBuf {
    let library =
        std::env::var_os("TSSX_PRELOAD").expect("TSSX_PRELOAD must name libtssx_preload.so: run these tests by `cargo xtask test`");
    PathBuf::from(library)
}

/// A directory with a copy of the tracer, and beside it a library of these bytes.
struct Installed {
    directory: tempfile::TempDir,
}

impl Installed {
    fn new(library: Option<&[u8]>) -> Self {
        let (directory, _) = tracer_for_others(0o755);
        if let Some(bytes) = library {
            std::fs::write(directory.path().join("libtssx_preload.so"), bytes).expect("written");
        }
        Self { directory }
    }

    fn doctor(&self) -> Command {
        let mut command = Command::new(self.directory.path().join("tssx-trace"));
        command.args(["doctor", "--json"]);
        for variable in ["TSSX_PRELOAD", "LD_PRELOAD", "USE_TSSX", "TSSX_DISABLE", "TSSX_MEMORY_MAX"] {
            command.env_remove(variable);
        }
        command
    }
}

/// Runs it, holds its report against the schema, and gives each check's outcome, detail and remedy.
fn checks(command: &mut Command, status: i32, used: &mut Used) -> Vec<[String; 3]> {
    let output = command.output().expect("it starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(status), "{report:#} {}", String::from_utf8_lossy(&output.stderr));
    Schema::of_doctor().check("report", &report, used).expect("as the schema says");
    let all = report["checks"].as_array().expect("a list").iter();
    let names: Vec<_> = all.clone().map(|check| check["name"].as_str().expect("a name")).collect();
    assert_eq!(names, CHECKS);
    all.map(|check| {
        assert_eq!(check["remedy"].is_null(), check["outcome"] == "ok", "{check}");
        ["outcome", "detail", "remedy"].map(|field| check[field].as_str().unwrap_or_default().to_owned())
    })
    .collect()
}

fn outcomes(checks: &[[String; 3]]) -> Vec<&str> {
    checks.iter().map(|[outcome, ..]| outcome.as_str()).collect()
}

#[test]
fn a_good_library_accelerates_the_self_test_by_two_sources() {
    let mut used = Used::new();
    let mut command = Command::new(TRACER);
    command.args(["doctor", "--json"]);
    let found = checks(&mut command, 0, &mut used);
    assert_eq!(outcomes(&found), ["ok"; 5], "{found:?}");
    assert!(found[1][1].contains(env!("CARGO_PKG_VERSION")), "{found:?}");
    assert!(found[3][1].contains("2048000 bytes each way"), "{found:?}");
    assert!(found[4][1].contains("meanwhile"), "{found:?}");
    let unused: Vec<_> = Schema::of_doctor().properties().difference(&used).cloned().collect();
    assert!(unused.is_empty(), "never printed: {unused:?}");
    let text = Command::new(TRACER).arg("doctor").output().expect("it starts");
    let text = String::from_utf8(text.stdout).expect("UTF-8");
    assert!(CHECKS.iter().all(|name| text.contains(&format!("ok: {name}: "))), "{text}");
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("report.json");
    std::fs::write(&kept, Command::new(TRACER).args(["doctor", "--json"]).output().expect("it starts").stdout).expect("written");
    let again = Command::new(TRACER).args(["doctor", "--json", "--from"]).arg(&kept).output().expect("it starts");
    assert_eq!(again.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&again.stdout), std::fs::read_to_string(&kept).expect("kept"));
}

#[test]
fn what_is_missing_or_broken_is_told_with_its_remedy() {
    let good = std::fs::read(library()).expect("the library");
    let program = std::fs::read("/bin/true").expect("a program");
    let libc = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").expect("another library");
    let none = "not_possible";
    let cut = &good[..good.len() / 8];
    for (what, bytes, expected, place, words) in [
        ("missing", None::<&[u8]>, ["failed", none, none, none, none], 0, "is missing"),
        ("empty", Some(b""), ["failed", none, none, none, none], 0, "not a shared library"),
        ("cut off", Some(cut), ["ok", "failed", "failed", none, none], 1, "is broken"),
        ("a program", Some(&program), ["ok", "failed", "failed", none, none], 1, "does not say that it is a library of TSSX"),
        ("another library", Some(&libc), ["ok", "failed", "ok", "failed", none], 3, "selected no connection"),
    ] {
        let found = checks(&mut Installed::new(bytes).doctor(), 6, &mut Used::new());
        assert_eq!(outcomes(&found), expected, "{what}: {found:?}");
        assert!(found[place][1].contains(words), "{what}: {found:?}");
    }
}

#[test]
fn a_library_of_another_release_is_named_with_both_versions() {
    let mut other = std::fs::read(library()).expect("the library");
    let version = [env!("CARGO_PKG_VERSION").as_bytes(), &[0; 8]].concat();
    let places: Vec<_> = (0..other.len() - version.len()).filter(|place| other[*place..].starts_with(&version)).collect();
    // In the note: behind two numbers of four bytes, of which the second is the ledger's.
    let place = *places.iter().find(|place| other[**place - 16..].starts_with(b"TSSX")).unwrap_or_else(|| panic!("{places:?}"));
    other[place..place + 5].copy_from_slice(b"9.8.7");
    let found = checks(&mut Installed::new(Some(&other)).doctor(), 6, &mut Used::new());
    assert_eq!(outcomes(&found), ["ok", "failed", "ok", "ok", "ok"], "{found:?}");
    assert!(found[1][1].contains("9.8.7") && found[1][1].contains(env!("CARGO_PKG_VERSION")), "{found:?}");
}

#[test]
fn what_keeps_the_connection_on_the_kernel_socket_is_named() {
    let installed = Installed::new(Some(&std::fs::read(library()).expect("the library")));
    for (name, value, words) in [
        ("TSSX_DISABLE", "1", "TSSX_DISABLE is set"),
        ("TSSX_MEMORY_MAX", "0", "client end: no-memory"),
        ("TSSX_UPGRADE_AFTER", "1000000", "client end: too-few-operations"),
    ] {
        let found = checks(installed.doctor().env(name, value), 6, &mut Used::new());
        assert_eq!(outcomes(&found), ["ok", "ok", "ok", "failed", "not_possible"], "{name}: {found:?}");
        assert!(found[3][1].contains("not accelerated") && found[3][1].contains(words), "{name}: {found:?}");
    }
}

#[test]
fn without_privilege_the_statistics_alone_prove_it() {
    let installed = Installed::new(None);
    copy_program(library().to_str().expect("UTF-8"), &installed.directory.path().join("libtssx_preload.so"));
    let program = installed.directory.path().join("tssx-trace");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(["doctor", "--json"]);
    command.env_remove("TSSX_PRELOAD").env("TMPDIR", "/tmp");
    let found = checks(&mut command, 5, &mut Used::new());
    assert_eq!(outcomes(&found), ["ok", "ok", "ok", "ok", "not_possible"], "{found:?}");
    assert!(found[4][1].contains("no privilege"), "{found:?}");
    assert!(Path::new(&found[0][1]).starts_with(installed.directory.path().canonicalize().expect("there")), "{found:?}");
}
