//! What the library must be and must not do in programs that it has no business with: its only dependency, and
//! programs of every kind of linking whose output must not change.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use libtest_mimic::{Failed, Trial};

use crate::environment::without_library;
use crate::harness::DEADLINE;
use crate::library::library;
use crate::process::Process;

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("needs-nothing-but-libc", needed),
        Trial::test("inert-in-true", || unchanged(&["/bin/true"])),
        Trial::test("inert-in-false", || unchanged(&["/bin/false"])),
        Trial::test("inert-in-bash", || unchanged(&["bash", "-c", "echo out; echo err >&2; ls /proc/self/fd | wc -l; (exit 3)"])),
        Trial::test("inert-in-python", || {
            unchanged(&[
                "python3",
                "-c",
                "import os, subprocess; print(sorted(os.listdir('/proc/self/fd')), subprocess.getoutput('echo x'))",
            ])
        }),
        Trial::test("inert-in-gcc-and-what-it-makes", || compiled("gcc", &[])),
        Trial::test("inert-in-a-static-program", || compiled("gcc", &["-static"])),
        Trial::test("inert-in-a-musl-program", || compiled("musl-gcc", &[])),
        Trial::test("inert-in-a-threaded-program", || compiled("gcc", &["-pthread", "-DTHREADS"])),
        Trial::test("inert-in-a-setuid-program", setuid),
        Trial::test("harmless-when-the-selection-is-odd", odd_selections),
    ]
}

/// Prints and exits with 7; with THREADS, a thread prints.
const PROGRAM: &str = r#"
#include <stdio.h>
#ifdef THREADS
#include <pthread.h>
static void *say(void *unused) { puts("from a thread"); return unused; }
#endif
int main(int argc, char **argv) {
    printf("%d arguments, the last is %s\n", argc, argv[argc - 1]);
#ifdef THREADS
    pthread_t thread;
    pthread_create(&thread, NULL, say, NULL);
    pthread_join(thread, NULL);
#endif
    fprintf(stderr, "to standard error\n");
    return 7;
}
"#;

fn readelf(option: &str) -> Result<String, Failed> {
    let output = Command::new("readelf").args(["--wide", option]).arg(library()).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn needed() -> Result<(), Failed> {
    let dynamic = readelf("--dynamic")?;
    let needed: Vec<_> =
        dynamic.lines().filter(|line| line.contains("(NEEDED)")).filter_map(|line| line.split(['[', ']']).nth(1)).collect();
    if needed != ["libc.so.6"] {
        return Err(format!("DT_NEEDED is {needed:?}").into());
    }
    Ok(())
}

/// Runs the command without and with the library, every socket selected, and wants the same output and end.
fn unchanged(command: &[&str]) -> Result<(), Failed> {
    let plain = outcome(command, None)?;
    let preloaded = outcome(command, Some("*"))?;
    if plain != preloaded {
        return Err(format!("{command:?}\n--- plain\n{plain}\n--- with the library\n{preloaded}").into());
    }
    Ok(())
}

fn outcome(command: &[&str], selection: Option<&str>) -> Result<String, Failed> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    without_library(&mut command);
    if let Some(selection) = selection {
        command.env("LD_PRELOAD", library()).env("USE_TSSX", selection);
    }
    let ended = Process::start(&mut command)?.finish(Instant::now() + DEADLINE);
    if ended.late {
        return Err(format!("{program} did not end\n{}", ended.all()).into());
    }
    Ok(ended.all())
}

fn compiled(compiler: &str, options: &[&str]) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let source = directory.path().join("program.c");
    std::fs::write(&source, PROGRAM)?;
    let program = directory.path().join("program");
    let build: Vec<&str> = [&[compiler], options, &["-o", text(&program)?, text(&source)?]].concat();
    unchanged(&build)?;
    let ran = outcome(&[text(&program)?, "last"], None)?;
    if !ran.starts_with("exit code Some(7)") || !ran.contains("2 arguments, the last is last") {
        return Err(format!("the program itself is wrong: {ran}").into());
    }
    unchanged(&[text(&program)?, "last"])
}

/// A program that gains privileges loads no library; it must neither fail nor complain for ours.
fn setuid() -> Result<(), Failed> {
    if !nix::unistd::geteuid().is_root() {
        // Debian's own setuid program does for everybody else.
        return unchanged(&["su", "--version"]);
    }
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("id");
    std::fs::copy("/usr/bin/id", &copy)?;
    let nobody = nix::unistd::User::from_name("nobody")?.ok_or("no user nobody")?;
    nix::unistd::chown(&copy, Some(nobody.uid), None)?;
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o4755))?;
    if !outcome(&[text(&copy)?], None)?.contains("euid=") {
        return Err("the copy does not change its user: is the temporary directory mounted nosuid?".into());
    }
    unchanged(&[text(&copy)?])
}

/// Whatever USE_TSSX holds, a program that opens no Unix socket does its work; only standard error may hold a complaint.
fn odd_selections() -> Result<(), Failed> {
    let long = "x".repeat(100_000);
    for selection in ["", " ", "[", "\\", "@", "a[b", "/a /b  /c", long.as_str()] {
        let mut echo = Command::new("/bin/echo");
        echo.arg("hello").env("LD_PRELOAD", library()).env("USE_TSSX", selection);
        let ended = Process::start(&mut echo)?.finish(Instant::now() + DEADLINE);
        if ended.code != Some(0) || ended.stdout != "hello\n" {
            return Err(format!("USE_TSSX={selection:.40}: {}", ended.all()).into());
        }
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str, Failed> {
    path.to_str().ok_or_else(|| Failed::from("a path that is no text"))
}
