//! What the programs at the two ends of a service say, one by one and together.

use std::collections::BTreeSet;

use crate::advice::{Code, Finding, Side, Weight};
use crate::facts::{Linkage, ProgramRecord, Seccomp};
use crate::recording::{ProcessRecord, Recording, ServiceRecord};

/// Processes that are named in one sentence.
const NAMED: usize = 4;

/// The processes of one end that decide: those that moved bytes, or all where none is known to have.
pub(crate) fn deciding(service: &ServiceRecord, side: Side) -> Vec<&ProcessRecord> {
    let (all, callers) = match side {
        Side::Server => (&service.servers, &service.server_callers),
        Side::Client => (&service.clients, &service.client_callers),
    };
    let called: Vec<_> = all.iter().filter(|process| callers.contains(&process.pid)).collect();
    if called.is_empty() { all.iter().collect() } else { called }
}

/// Everything about both ends.
pub(super) fn findings(recording: &Recording, service: &ServiceRecord) -> Vec<Finding> {
    let mut findings = of(recording, service, Side::Server);
    findings.extend(of(recording, service, Side::Client));
    findings.extend(between(recording, service));
    findings.extend(acceptor(service));
    findings
}

/// What holds for programs of one end.
pub(super) fn of(recording: &Recording, service: &ServiceRecord, side: Side) -> Vec<Finding> {
    let processes = deciding(service, side);
    let known: Vec<_> =
        processes.iter().filter_map(|process| Some((*process, recording.program(process.pid).filter(|p| is_known(p))?))).collect();
    if known.is_empty() {
        let evidence = match processes.as_slice() {
            [] => String::from("no process was seen there"),
            some => format!("{}: gone before it could be looked at, or closed to the tracer", names(some)),
        };
        return vec![Finding { end: Some(side), ..Finding::new(Code::EndUnknown, evidence) }];
    }
    let codes: BTreeSet<Code> = known.iter().flat_map(|(process, program)| obstacles(process, program, side)).collect();
    codes.into_iter().map(|code| finding(code, side, &known)).collect()
}

/// Whether anything of the program itself could be asked.
fn is_known(program: &ProgramRecord) -> bool {
    program.linkage.is_some()
}

/// One code at one end, over all of its programs that are known.
fn finding(code: Code, side: Side, known: &[(&ProcessRecord, &ProgramRecord)]) -> Finding {
    let those: Vec<_> =
        known.iter().filter(|(process, program)| obstacles(process, program, side).contains(&code)).map(|known| known.0).collect();
    let mut finding = Finding { end: Some(side), ..Finding::new(code, names(&those)) };
    finding.processes = those.iter().map(|process| process.pid).collect();
    if those.len() < known.len() {
        finding.weight = Weight::Note;
        finding.evidence = format!("{} of {} programs: {}", those.len(), known.len(), finding.evidence);
    }
    finding
}

/// Everything that is in the way of one program.
fn obstacles(process: &ProcessRecord, program: &ProgramRecord, side: Side) -> BTreeSet<Code> {
    let mut codes = BTreeSet::new();
    let mut add = |applies: bool, code: Code| {
        if applies {
            codes.insert(code);
        }
    };
    let go = program.go == Some(true);
    add(go, Code::GoProgram);
    add(!go && program.linkage == Some(Linkage::Static), Code::StaticProgram);
    add(program.linkage == Some(Linkage::Musl), Code::MuslProgram);
    add(program.linkage == Some(Linkage::Other), Code::OtherLibc);
    add(program.linkage == Some(Linkage::Foreign), Code::ForeignArchitecture);
    if let Some(imports) = program.imports.filter(|_| program.linkage == Some(Linkage::Glibc) && !go) {
        let begins = match side {
            Side::Server => imports.accept,
            Side::Client => imports.connect,
        };
        add(!begins, Code::NoSocketCallImported);
    }
    add(program.io_uring == Some(true), Code::IoUring);
    // A library that is in the process has come past all of these.
    if program.library_loaded != Some(true) {
        add(program.secure == Some(true), Code::SecureExecution);
        add(program.empty_environment == Some(true), Code::EmptyEnvironment);
        add(program.library_visible == Some(false), Code::LibraryNotVisible);
        add(program.seccomp == Some(Seccomp::Strict), Code::SeccompStrict);
        // Container runtimes answer with an error and allow what the library needs.
        add(program.seccomp == Some(Seccomp::Filter) && process.container.is_none(), Code::SeccompFilter);
    }
    codes
}

/// Programs that run without the library; or with it, where no connection of the socket is selected.
pub(super) fn without_library(recording: &Recording, service: &ServiceRecord) -> Vec<Finding> {
    let mut findings = Vec::new();
    for side in Side::BOTH {
        let processes = deciding(service, side);
        let with = |wanted: bool| -> Vec<&ProcessRecord> {
            let is = |process: &ProcessRecord| recording.program(process.pid).and_then(|program| program.library_loaded);
            processes.iter().copied().filter(|process| is(process) == Some(wanted)).collect()
        };
        let not_selected = if service.selected == 0 && service.connections > 0 { with(true) } else { Vec::new() };
        // Of what keeps the library out, that reason is told instead.
        let kept_out = |process: &ProcessRecord| {
            let obstacles = recording.program(process.pid).map(|program| obstacles(process, program, side)).unwrap_or_default();
            obstacles.iter().any(|code| code.weight() == Weight::Block)
        };
        let without = with(false).into_iter().filter(|process| !kept_out(process)).collect();
        for (code, those) in [(Code::LibraryNotLoaded, without), (Code::NotSelected, not_selected)] {
            if !those.is_empty() {
                let mut finding = Finding { end: Some(side), ..Finding::new(code, names(&those)) };
                finding.processes = those.iter().map(|process| process.pid).collect();
                findings.push(finding);
            }
        }
    }
    findings
}

/// What the two ends say together.
fn between(recording: &Recording, service: &ServiceRecord) -> Vec<Finding> {
    let programs = |side| deciding(service, side).into_iter().filter_map(|process| recording.program(process.pid));
    let [servers, clients] = Side::BOTH.map(|side| programs(side).collect::<Vec<_>>());
    let mut findings = Vec::new();
    for (code, what, of) in [
        (Code::NetworkNamespaces, "network", (|program| program.network) as fn(&&ProgramRecord) -> Option<u64>),
        (Code::UserNamespaces, "user", |program| program.users),
    ] {
        let at = |programs: &[&ProgramRecord]| programs.iter().filter_map(of).collect::<BTreeSet<_>>();
        let (server, client) = (at(&servers), at(&clients));
        let apart = client.difference(&server).count();
        if server.is_empty() || apart == 0 {
            continue;
        }
        let shown = |set: &BTreeSet<u64>| set.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let mut finding =
            Finding::new(code, format!("server in {what} namespace {}, client in {}", shown(&server), shown(&client)));
        if apart < client.len() {
            finding.weight = Weight::Note;
        }
        findings.push(finding);
    }
    let users = |side| deciding(service, side).into_iter().filter_map(|process| process.uid).collect::<BTreeSet<_>>();
    let (server, client) = (users(Side::Server), users(Side::Client));
    if !server.is_empty() && !client.is_empty() && server.is_disjoint(&client) {
        let shown = |set: &BTreeSet<u32>| set.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let evidence = format!("server of user {}, client of {}", shown(&server), shown(&client));
        findings.push(Finding::new(Code::DifferentUsers, evidence));
    }
    findings
}

/// Whether somebody else than those who accept seems to have called listen: who holds the listening socket and moves no byte.
fn acceptor(service: &ServiceRecord) -> Option<Finding> {
    let accepting = deciding(service, Side::Server);
    let users: BTreeSet<u32> = accepting.iter().filter_map(|process| process.uid).collect();
    let quiet: Vec<_> = service
        .servers
        .iter()
        .filter(|process| !accepting.iter().any(|one| one.pid == process.pid))
        .filter(|process| process.uid.is_some_and(|user| !users.contains(&user)))
        .collect();
    if quiet.is_empty() || users.iter().all(|user| *user == 0) {
        return None;
    }
    let evidence = format!("{} holds it too, {} accept", names(&quiet), names(&accepting));
    Some(Finding { end: Some(Side::Server), ..Finding::new(Code::AcceptorUser, evidence) })
}

/// `12 redis-cli, 13 psql`, and how many more.
fn names(processes: &[&ProcessRecord]) -> String {
    let mut text: Vec<_> = processes.iter().take(NAMED).map(|process| format!("{} {}", process.pid, process.name)).collect();
    if processes.len() > NAMED {
        text.push(format!("{} more", processes.len() - NAMED));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::{Level, Verdict, judge};
    use crate::facts::Imports;
    use crate::recording::samples::{CLIENT, SERVER, busy, process, program, recording_of};

    /// The verdict on a busy socket after a change to its recording.
    fn after(change: impl Fn(&mut Recording)) -> Verdict {
        let mut recording = recording_of(vec![busy(b"/run/x")]);
        change(&mut recording);
        judge(&recording, &recording.services[0], 10.0)
    }

    fn client(change: impl Fn(&mut ProgramRecord)) -> Verdict {
        after(|recording| recording.programs.iter_mut().filter(|program| program.pid == CLIENT).for_each(&change))
    }

    #[test]
    fn each_fact_that_is_in_the_way_of_one_end_has_its_code() {
        type Change = fn(&mut ProgramRecord);
        let changes: [(Code, Level, Change); 12] = [
            (Code::StaticProgram, Level::Blocked, |program| program.linkage = Some(Linkage::Static)),
            (Code::GoProgram, Level::Blocked, |program| (program.linkage, program.go) = (Some(Linkage::Static), Some(true))),
            (Code::MuslProgram, Level::Blocked, |program| program.linkage = Some(Linkage::Musl)),
            (Code::OtherLibc, Level::Blocked, |program| program.linkage = Some(Linkage::Other)),
            (Code::ForeignArchitecture, Level::Blocked, |program| program.linkage = Some(Linkage::Foreign)),
            (Code::NoSocketCallImported, Level::Blocked, |program| {
                program.imports = Some(Imports { accept: true, connect: false, syscall: true });
            }),
            (Code::SecureExecution, Level::Blocked, |program| program.secure = Some(true)),
            (Code::EmptyEnvironment, Level::Blocked, |program| program.empty_environment = Some(true)),
            (Code::SeccompStrict, Level::Blocked, |program| program.seccomp = Some(Seccomp::Strict)),
            (Code::SeccompFilter, Level::Possible, |program| program.seccomp = Some(Seccomp::Filter)),
            (Code::IoUring, Level::Blocked, |program| program.io_uring = Some(true)),
            (Code::LibraryNotVisible, Level::Blocked, |program| program.library_visible = Some(false)),
        ];
        for (code, level, change) in changes {
            let verdict = client(change);
            assert_eq!(verdict.level, level, "{code:?}: {verdict:#?}");
            let codes: Vec<_> = verdict.findings.iter().map(|finding| (finding.code, finding.end)).collect();
            assert_eq!(codes, [(code, Some(Side::Client))]);
            assert_eq!(verdict.findings[0].processes, [CLIENT]);
        }
    }

    #[test]
    fn what_could_not_be_asked_is_no_obstacle_but_an_end_of_which_nothing_is_known_is_a_doubt() {
        let unknown = client(|program| {
            *program = ProgramRecord { linkage: Some(Linkage::Glibc), ..ProgramRecord::unknown(CLIENT) };
        });
        assert_eq!(unknown.level, Level::Recommended, "{unknown:#?}");
        let gone = after(|recording| recording.programs.retain(|program| program.pid == SERVER));
        assert_eq!((gone.level, gone.has(Code::EndUnknown)), (Level::Possible, true));
    }

    #[test]
    fn what_holds_for_some_programs_of_an_end_is_a_note() {
        let verdict = after(|recording| {
            recording.services[0].clients.push(process(8, "go-client", 0));
            recording.services[0].client_callers.push(8);
            recording.programs.push(ProgramRecord { go: Some(true), ..program(8) });
        });
        assert_eq!(verdict.level, Level::Recommended);
        let [finding] = verdict.findings.as_slice() else { panic!("{verdict:#?}") };
        assert_eq!((finding.code, finding.weight, finding.processes.as_slice()), (Code::GoProgram, Weight::Note, &[8][..]));
        assert!(finding.evidence.starts_with("1 of 2 programs: 8 go-client"), "{}", finding.evidence);
    }

    #[test]
    fn a_library_that_is_there_has_come_past_what_keeps_it_out() {
        let verdict = client(|program| {
            (program.library_loaded, program.library_visible, program.seccomp) = (Some(true), Some(false), Some(Seccomp::Filter));
        });
        assert_eq!(verdict.level, Level::Recommended, "{verdict:#?}");
    }

    #[test]
    fn ends_in_different_places_and_of_different_users_are_told() {
        let network = client(|program| program.network = Some(99));
        assert_eq!((network.level, network.has(Code::NetworkNamespaces)), (Level::Blocked, true));
        let users = client(|program| program.users = Some(99));
        assert_eq!((users.level, users.has(Code::UserNamespaces)), (Level::Possible, true));
        let owners = after(|recording| recording.services[0].clients[0].uid = Some(33));
        assert_eq!((owners.level, owners.has(Code::DifferentUsers)), (Level::Recommended, true));
        let acceptor = after(|recording| {
            recording.services[0].servers[0].uid = Some(33);
            recording.services[0].clients[0].uid = Some(33);
            recording.services[0].servers.push(process(2, "master", 0));
        });
        assert_eq!((acceptor.level, acceptor.has(Code::AcceptorUser)), (Level::Possible, true), "{acceptor:#?}");
        let by_root = after(|recording| recording.services[0].servers.push(process(2, "other", 33)));
        assert_eq!(by_root.level, Level::Recommended, "root may accept for anybody");
    }

    #[test]
    fn a_container_s_filter_answers_with_errors() {
        let verdict = after(|recording| {
            recording.services[0].clients[0].container = Some("web".into());
            recording.programs.iter_mut().for_each(|program| program.seccomp = Some(Seccomp::Filter));
        });
        let ends: Vec<_> = verdict.findings.iter().map(|finding| (finding.code, finding.end)).collect();
        assert_eq!(ends, [(Code::SeccompFilter, Some(Side::Server))]);
    }
}
