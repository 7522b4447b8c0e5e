//! The commands that need no privilege: `run` and `suggest`, and what they say when something is missing.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{TRACER, copy_program};

/// A directory with a copy of the tracer and, beside it, a stand-in for the library: any ELF file, never used as one.
struct Installed {
    directory: tempfile::TempDir,
}

impl Installed {
    fn new(with_library: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        copy_program(TRACER, &directory.path().join("tssx-trace"));
        if with_library {
            copy_program(TRACER, &directory.path().join("libtssx_preload.so"));
        }
        Self { directory }
    }

    fn library(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("there").join("libtssx_preload.so")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.directory.path().join("tssx-trace"));
        command.args(arguments);
        for variable in ["TSSX_PRELOAD", "LD_PRELOAD", "USE_TSSX"] {
            command.env_remove(variable);
        }
        command
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// One clear line, and not the exit status of success.
fn assert_one_error(output: &Output, words: &[&str]) {
    let errors = errors(output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(words.iter().all(|word| errors.contains(word)), "{errors}");
}

#[test]
fn run_becomes_the_command_with_the_selection_and_the_library_before_others() {
    let installed = Installed::new(true);
    // A builtin prints: the stand-in cannot be preloaded into another program.
    let script = "printf '%s\\n' \"$$\" \"$USE_TSSX\" \"$LD_PRELOAD\"; exit 7";
    let mut command = installed.command(&["run", "--socket", "/a b.sock", "--socket", "@x", "--", "sh", "-c", script]);
    command.env("LD_PRELOAD", "/nonexistent/other.so");
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().expect("it starts");
    let pid = child.id();
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let library = installed.library();
    let expected = format!("{pid}\n/a\\ b.sock @x\n{}:/nonexistent/other.so\n", library.display());
    assert_eq!(text, expected);
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn run_takes_what_suggest_printed() {
    let installed = Installed::new(true);
    let file = installed.directory.path().join("tssx.env");
    std::fs::write(&file, "# why\nUSE_TSSX=\"/a\\\\ b\"\nTSSX_SPIN_US=\"5\"\n").expect("written");
    let script = "printf '%s %s' \"$USE_TSSX\" \"$TSSX_SPIN_US\"";
    let output =
        installed.command(&["run", "--env", file.to_str().expect("UTF-8"), "--", "sh", "-c", script]).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/a\\ b 5");
    std::fs::write(&file, "PATH=\"/tmp\"\nUSE_TSSX=\"/x\"\n").expect("written");
    let output = installed.command(&["run", "--env", file.to_str().expect("UTF-8"), "--", "true"]).output().expect("it starts");
    assert_one_error(&output, &["PATH"]);
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let without = Installed::new(false);
    let output = without.command(&["run", "--socket", "/x", "--", "true"]).output().expect("it starts");
    assert_one_error(&output, &["libtssx_preload.so", "cargo xtask build", "TSSX_PRELOAD"]);
    let output = without
        .command(&["run", "--socket", "/x", "--", "true"])
        .env("TSSX_PRELOAD", "/nonexistent.so")
        .output()
        .expect("it starts");
    assert_one_error(&output, &["TSSX_PRELOAD", "/nonexistent.so"]);

    let with = Installed::new(true);
    let output = with.command(&["run", "--", "true"]).output().expect("it starts");
    assert_one_error(&output, &["--socket", "--env", "USE_TSSX"]);
    let output = with.command(&["run", "--socket", "/x", "--", "/nonexistent/command"]).output().expect("it starts");
    assert_one_error(&output, &["/nonexistent/command"]);
    let output = with.command(&["suggest", "--from", "/nonexistent/recording"]).output().expect("it starts");
    assert_one_error(&output, &["/nonexistent/recording", "sudo tssx-trace discover"]);
    let output = with.command(&["suggest", "--from", "/etc/hostname"]).output().expect("it starts");
    assert_one_error(&output, &["/etc/hostname", "record again"]);
}

#[test]
fn a_recording_in_a_directory_that_others_can_write_to_is_replaced_not_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o1777)).expect("opened");
    let victim = directory.path().join("victim");
    std::fs::write(&victim, "precious").expect("written");
    let link: PathBuf = directory.path().join("recording.json");
    std::os::unix::fs::symlink(&victim, &link).expect("linked");
    let output = Command::new(TRACER).args(["discover", "--duration", "50ms", "--record"]).arg(&link).output().expect("it starts");
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(std::fs::read_to_string(&victim).expect("there"), "precious");
    assert!(std::fs::symlink_metadata(Path::new(&link)).expect("there").is_file());
}
