//! Recordings for tests: one busy socket between two ordinary programs, to be changed by each test.

use super::{FlowRecord, ProcessRecord, Recording, ServiceRecord};
use crate::facts::{Imports, Linkage, ProgramRecord, Seccomp};
use crate::inventory::Kind;
use crate::losses::Losses;
use crate::names::SocketName;

/// Process numbers of the two ends of [`busy`].
pub(crate) const SERVER: u32 = 10;
pub(crate) const CLIENT: u32 = 11;

/// A process of that user in no container.
pub(crate) fn process(pid: u32, name: &str, uid: u32) -> ProcessRecord {
    ProcessRecord { pid, name: name.into(), uid: Some(uid), cgroup: Some("/".into()), container: None }
}

/// The facts about an ordinary program.
pub(crate) fn program(pid: u32) -> ProgramRecord {
    ProgramRecord {
        program: Some(format!("/usr/bin/program-{pid}")),
        linkage: Some(Linkage::Glibc),
        go: Some(false),
        imports: Some(Imports { connect: true, accept: true, syscall: false }),
        secure: Some(false),
        empty_environment: Some(false),
        seccomp: Some(Seccomp::Off),
        io_uring: Some(false),
        network: Some(1),
        users: Some(1),
        library_loaded: Some(false),
        library_visible: Some(true),
        ..ProgramRecord::unknown(pid)
    }
}

/// One second with 1000 calls of one connection between [`SERVER`] and [`CLIENT`].
pub(crate) fn busy(sun_path: &[u8]) -> ServiceRecord {
    let name = SocketName::from_sun_path(sun_path).expect("a name");
    ServiceRecord {
        display: name.to_string(),
        name: Some(name),
        absolute: None,
        network: None,
        file: None,
        kind: Kind::Stream,
        servers: vec![process(SERVER, "server", 0)],
        clients: vec![process(CLIENT, "client", 0)],
        server_callers: vec![SERVER],
        client_callers: vec![CLIENT],
        connections: 1,
        waiting: None,
        open: Some(1),
        selected: 0,
        accelerated: 0,
        reasons: Vec::new(),
        calls: Some(1000),
        bytes: Some(64_000),
        ring_calls: None,
        ring_bytes: None,
        queued_bytes: None,
        client_to_server: FlowRecord::default(),
        server_to_client: FlowRecord::default(),
        evidence: None,
        pairs: Vec::new(),
    }
}

/// A recording of one second, with the facts about both programs.
pub(crate) fn recording_of(services: Vec<ServiceRecord>) -> Recording {
    let mut recording = Recording::new(1000, Losses::default(), 8);
    recording.head.library = Some("/usr/lib/tssx/libtssx_preload.so".into());
    recording.services = services;
    recording.programs = vec![program(SERVER), program(CLIENT)];
    recording
}
