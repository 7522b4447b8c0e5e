//! An explanation on one screen: both ends side by side, then each reason with its remedy.

use std::fmt::Write;

use super::{EndView, Explained, Explanation, State, Subject};
use crate::advice::{Level, Weight};
use crate::facts::{ProgramRecord, Seccomp};
use crate::output::plural;
use crate::proposal::{figures, place_of};
use crate::recording::{ProcessRecord, Recording};
use crate::screen::{Columns, Screen};

/// Columns that are shortened where a terminal is narrow, and to what.
const COLUMNS: Columns = Columns { header: &["", "SERVER", "CLIENT"], numeric: &[], long: &[(1, 16), (2, 16)], expendable: &[] };

impl Explanation<'_> {
    /// The text; of a process's sockets without a connection only the number, unless it has no others.
    pub(crate) fn text(&self, screen: Screen) -> String {
        let is_idle = |socket: &&Explained<'_>| socket.state == State::Unconnected;
        let idle = self.sockets.iter().filter(is_idle).count();
        let hides = matches!(self.subject, Subject::Process(_)) && idle < self.sockets.len();
        let mut text = String::new();
        for socket in self.sockets.iter().filter(|socket| !hides || !is_idle(socket)) {
            if !text.is_empty() {
                text.push('\n');
            }
            self.socket(&mut text, socket, screen);
        }
        // Writing into a String cannot fail.
        if hides && idle > 0 {
            let _ = writeln!(text, "\nNot shown: {} without a connection.", plural(idle as u64, "socket"));
        }
        let head = &self.recording.head;
        let _ = writeln!(text, "\nEvidence: {:.1} s on Linux {}, mode {}.", head.window_ms as f64 / 1000.0, head.kernel, head.mode);
        if head.losses.any() {
            let _ = writeln!(text, "{}", screen.alarm(head.losses.warning().trim_end()));
        }
        text
    }

    fn socket(&self, text: &mut String, socket: &Explained<'_>, screen: Screen) {
        let Explained { service, state, verdict, ends } = socket;
        let _ = writeln!(
            text,
            "{}",
            screen.bold(&format!("{}: {}", service.display, state_line(*state, service.accelerated, service.connections)))
        );
        let _ = writeln!(text, "{}\n", figures(self.recording, service));
        let columns = ends.each_ref().map(|end| column(self.recording, end));
        let [server, client] = columns;
        let rows: Vec<_> = LABELS
            .iter()
            .zip(server.into_iter().zip(client))
            .map(|(label, (server, client))| vec![(*label).into(), server, client])
            .collect();
        text.push_str(&screen.table(&COLUMNS, &rows));
        let _ = writeln!(text, "\nVerdict: {}", verdict.level.name());
        for finding in &verdict.findings {
            let mark = match finding.weight {
                Weight::Block => "blocks",
                Weight::Doubt => "doubt ",
                Weight::Note => "note  ",
            };
            let _ = writeln!(text, "  {mark} {}\n         remedy: {}", finding.sentence(), finding.remedy);
        }
        if verdict.level == Level::Recommended && !matches!(state, State::Accelerated) {
            text.push_str("Next: start both ends with what `tssx-trace suggest` prints, then look with `tssx-trace verify`.\n");
        }
    }
}

fn state_line(state: State, accelerated: u64, connections: u64) -> String {
    let all = plural(connections, "connection");
    match state {
        State::Accelerated => format!("accelerated, {all}"),
        State::Partly => format!("partly accelerated, {accelerated} of {all}"),
        State::Selected => format!("selected by a library, but not accelerated, {all}"),
        State::Plain => format!("not accelerated, {all}"),
        State::Unconnected => String::from("no connection"),
    }
}

/// What [`column`] tells, in its order.
const LABELS: [&str; 13] = [
    "process",
    "user",
    "started by",
    "program",
    "linked with",
    "calls in libc",
    "AT_SECURE",
    "environment",
    "seccomp",
    "io_uring",
    "library",
    "network",
    "users",
];

/// One end: of several processes the first whose facts are known.
fn column(recording: &Recording, end: &EndView<'_>) -> [String; 13] {
    let known = end.processes.iter().find(|process| end.programs.iter().any(|program| program.pid == process.pid));
    let Some(process) = known.or(end.processes.first()) else {
        return std::array::from_fn(|index| if index == 0 { String::from("none seen") } else { dash() });
    };
    let program = end.programs.iter().find(|program| program.pid == process.pid);
    let fact = |tell: &dyn Fn(&ProgramRecord) -> Option<String>| program.and_then(|program| tell(program)).unwrap_or_else(dash);
    [
        name(process, end.processes.len()),
        process.uid.map_or_else(dash, |user| user.to_string()),
        place_of(recording, process),
        fact(&|program| program.program.clone()),
        fact(&linked),
        fact(&calls),
        fact(&|program| program.secure.map(|secure| word(secure, "yes: ignores LD_PRELOAD", "no"))),
        fact(&|program| program.empty_environment.map(|empty| word(empty, "empty", "there"))),
        fact(&|program| program.seccomp.map(seccomp)),
        fact(&|program| program.io_uring.map(|ring| word(ring, "in use", "no"))),
        fact(&library),
        fact(&|program| program.network.map(|network| network.to_string())),
        fact(&|program| program.users.map(|users| users.to_string())),
    ]
}

fn name(process: &ProcessRecord, count: usize) -> String {
    let more = if count > 1 { format!(" +{}", count - 1) } else { String::new() };
    format!("{} {}{more}", process.pid, process.name)
}

fn linked(program: &ProgramRecord) -> Option<String> {
    let go = if program.go == Some(true) { ", Go" } else { "" };
    Some(format!("{}{go}", program.linkage?.name()))
}

fn calls(program: &ProgramRecord) -> Option<String> {
    let imports = program.imports?;
    let named = [(imports.connect, "connect"), (imports.accept, "accept"), (imports.syscall, "syscall")];
    let names: Vec<_> = named.iter().filter(|(called, _)| *called).map(|(_, name)| *name).collect();
    Some(if names.is_empty() { String::from("none of connect, accept") } else { names.join(", ") })
}

fn seccomp(seccomp: Seccomp) -> String {
    String::from(match seccomp {
        Seccomp::Off => "off",
        Seccomp::Strict => "strict",
        Seccomp::Inherited => "as the tracer's",
        Seccomp::Filter => "a filter of its own",
    })
}

fn library(program: &ProgramRecord) -> Option<String> {
    Some(String::from(match (program.library_loaded?, program.library_visible) {
        (true, _) => "loaded",
        (false, Some(false)) => "not loaded, not visible there",
        (false, Some(true)) => "not loaded, visible",
        (false, None) => "not loaded",
    }))
}

fn word(is: bool, yes: &str, no: &str) -> String {
    String::from(if is { yes } else { no })
}

fn dash() -> String {
    String::from("-")
}
