//! Man pages and completions: that real readers of both take them, and that nothing is missing. Also the manners of output.

mod common;

use std::process::{Command, Output, Stdio};

use common::TRACER;

/// The subcommands that people type.
const COMMANDS: [&str; 9] = ["discover", "suggest", "verify", "top", "explain", "export", "run", "doctor", "bench"];

#[test]
fn peer_process() {
    common::run_peer();
}

fn run(arguments: &[&str]) -> Output {
    Command::new(TRACER).args(arguments).output().expect("it starts")
}

fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn every_command_has_a_man_page_with_its_options_and_the_exit_statuses() {
    let directory = tempfile::tempdir().expect("a directory");
    text(&["man", "--directory", directory.path().to_str().expect("UTF-8")]);
    let pages = || std::fs::read_dir(directory.path()).expect("readable").map(|file| file.expect("a file").path());
    assert_eq!(pages().count(), COMMANDS.len() + 3, "the program, man and completions have one too");
    for page in pages() {
        let roff = std::fs::read_to_string(&page).expect("a page");
        assert!(roff.contains(".TH") && roff.contains(".SH \"EXIT STATUS\""), "{}", page.display());
        for status in 0..=6 {
            assert!(roff.contains(&format!("\n\\fB{status}\\fR\n")), "{} does not say what {status} means", page.display());
        }
    }
    for command in COMMANDS {
        let roff = std::fs::read_to_string(directory.path().join(format!("tssx-trace-{command}.1"))).expect("a page");
        let help = text(&[command, "--help"]);
        let options: Vec<_> = help.split_ascii_whitespace().filter(|word| word.starts_with("--") && word.len() > 2).collect();
        let plain = roff.replace('\\', "");
        for option in options.iter().map(|option| option.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())) {
            assert!(plain.contains(option), "{command}: no {option} in its page");
        }
    }
    assert_eq!(text(&["man"]), std::fs::read_to_string(directory.path().join("tssx-trace.1")).expect("a page"));
}

#[test]
fn every_help_has_an_example_and_a_status() {
    for command in COMMANDS.into_iter().chain(["man", "completions"]) {
        let help = text(&[command, "--help"]);
        assert!(help.contains("xample") || help.contains("  tssx-trace "), "{help}");
        assert!(help.contains("xit status"), "{command} does not say what its statuses mean: {help}");
    }
}

#[test]
fn a_shell_takes_its_completions_and_offers_the_commands() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tssx-trace");
    std::fs::write(&file, text(&["completions", "bash"])).expect("written");
    let script = ". \"$1\"; entry=$(complete -p tssx-trace | sed 's/.* -F \\([^ ]*\\) .*/\\1/'); \
        COMP_WORDS=(tssx-trace dis); COMP_CWORD=1; \"$entry\" tssx-trace dis tssx-trace; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", script, "bash"]).arg(&file).output().expect("bash starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "discover", "{}", String::from_utf8_lossy(&output.stderr));
    for shell in ["zsh", "fish"] {
        let text = text(&["completions", shell]);
        assert!(COMMANDS.iter().all(|command| text.contains(command)), "{shell}");
        assert!(!text.contains("bench-end"), "{shell} offers what nobody types");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child =
        Command::new(TRACER).args(["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{:?}", output.status);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
