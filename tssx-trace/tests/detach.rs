//! A tracer that is killed leaves nothing in the kernel. Alone in its file: other tests attach programs too.

mod common;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use aya::programs::loaded_programs;

/// Numbers of the tracer's programs that are in the kernel now.
fn programs() -> BTreeSet<u32> {
    let ours = [
        ["sent", "received"].as_slice(), // tp_btf
        &["stream_sent", "stream_received", "datagram_sent", "datagram_receiv", "packet_sent", "packet_received"], // fexit, cut to 15
        &["syscall_ended"],
        &["signals", "ready", "woken"], // looking closer
    ]
    .concat();
    let loaded = loaded_programs().filter_map(Result::ok);
    loaded.filter(|program| program.name_as_str().is_some_and(|name| ours.contains(&name))).map(|program| program.id()).collect()
}

#[test]
fn nothing_stays_attached_after_the_tracer_is_killed_or_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    for mode in common::measuring_modes() {
        let before = programs();
        let tracer = common::tracer(&["discover", "--mode", mode], &directory.path().join("table"));
        let attached: BTreeSet<u32> = programs().difference(&before).copied().collect();
        assert!(!attached.is_empty(), "{mode}: the tracer's programs are found while it runs");
        tracer.signal(rustix::process::Signal::KILL);
        let (status, _) = tracer.finish();
        assert!(!status.success());
        await_end_of(&attached, mode);
    }
    let before = programs();
    let mut exporter = Command::new(common::TRACER);
    let mut exporter = common::Guarded::start(exporter.args(["export", "--listen", "127.0.0.1:0"]), false);
    exporter.wait_for("attached");
    let attached: BTreeSet<u32> = programs().difference(&before).copied().collect();
    assert!(!attached.is_empty(), "the exporter's programs are found while it runs");
    exporter.signal(rustix::process::Signal::TERM);
    assert_eq!(exporter.finish().0.code(), Some(0));
    await_end_of(&attached, "export");
}

fn await_end_of(attached: &BTreeSet<u32>, what: &str) {
    let end = Instant::now() + common::DEADLINE;
    while !programs().is_disjoint(attached) {
        assert!(Instant::now() < end, "{what}: programs {:?} are still there", programs().intersection(attached));
        std::thread::sleep(Duration::from_millis(5)); // the kernel frees them after a grace period
    }
}
