//! What the samples come to: nothing may have grown.
//!
//! Descriptors, segments, ledgers, names, netlink sockets, processes, files, open connections and held locks are the same in each sample: they are
//! taken at moments at which the same connections are open, so there is no reason for one more. Memory is not so exact. The C library keeps
//! stacks of threads and freed blocks, the kernel a page here and there, and a slot of the ledger (256 bytes, up to a thousand while
//! few connections are open at once) is touched when it is first used. So the median of the last third of the samples may be [`MEMORY_KIB`]
//! above that of the first third, and no more, however long the run was: a leak of one byte for each connection would be a mebibyte in a
//! million connections. In the first minutes these stores fill, so a run that is no longer than that may show [`FIRST_KIB`] more.
//!
//! What a killed process held of its family's ledger is found and closed later, when there is much of it (`tssx-core/src/ledger/slots.rs`): so in
//! the ledgers of families of which processes are killed there may be [`LEFT_BY_KILLED`] open connections more: a quarter of the two or four thousand
//! slots that claims then go round in, and what they begin to look at.

use super::sample::{Process, Sample};

/// What the memory of a process may grow by, KiB.
pub(super) const MEMORY_KIB: u64 = 1024;
/// What it may in a run of less than [`FIRST_S`] seconds.
const FIRST_KIB: u64 = 4096;
const FIRST_S: f64 = 300.0;
/// What the count of its mappings may, for stacks of threads that the C library keeps.
const MAPPINGS: usize = 24;

/// See above.
const FAMILIES: [&str; 2] = ["forker", "brood"];
const LEFT_BY_KILLED: u64 = 1500;

/// What has grown or changed; empty if nothing has.
pub(super) fn findings(samples: &[Sample]) -> Vec<String> {
    let mut findings = Vec::new();
    let [first, later @ ..] = samples else { return vec!["no sample was taken".to_owned()] };
    if later.is_empty() {
        findings.push("one sample alone says nothing".to_owned());
    }
    for sample in later {
        let at = format!("{:.0} s, {} connections", sample.at_s, sample.connections);
        let machine = |sample: &Sample| [sample.names, sample.netlink, sample.family, sample.files];
        let names = ["abstract names", "netlink sockets", "processes", "files"];
        for (what, (before, now)) in names.iter().zip(machine(first).into_iter().zip(machine(sample))) {
            if before != now {
                findings.push(format!("{what}: {before} at first, {now} after {at}"));
            }
        }
        for (name, now) in &sample.processes {
            let Some(before) = first.processes.get(name) else { continue };
            let more = if FAMILIES.contains(&name.as_str()) { LEFT_BY_KILLED } else { 0 };
            if now.live > before.live + more || (more == 0 && now.live != before.live) {
                findings.push(format!("{name}: open connections in the ledger: {} at first, {} after {at}", before.live, now.live));
            }
            findings.extend(exact(before, now).into_iter().map(|finding| format!("{name}: {finding} after {at}")));
        }
    }
    for name in first.processes.keys() {
        let of = |part: &[Sample], field: fn(&Process) -> u64| {
            let mut values: Vec<u64> = part.iter().filter_map(|sample| sample.processes.get(name)).map(field).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or(0)
        };
        let is_short = samples.last().is_none_or(|last| last.at_s < FIRST_S);
        let allowed = if is_short { FIRST_KIB } else { MEMORY_KIB };
        let third = samples.len().div_ceil(3);
        let (early, late) = (&samples[..third], &samples[samples.len() - third..]);
        for (what, field) in [("RSS", rss as fn(&Process) -> u64), ("PSS", pss)] {
            let (before, now) = (of(early, field), of(late, field));
            if now > before + allowed {
                findings
                    .push(format!("{name}: {what} {before} KiB at first, {now} KiB at last, and {allowed} KiB more are allowed"));
            }
        }
        let mappings = |process: &Process| process.mappings as u64;
        if of(late, mappings) > of(early, mappings) + MAPPINGS as u64 {
            findings.push(format!("{name}: {} mappings at first, {} at last", of(early, mappings), of(late, mappings)));
        }
    }
    findings
}

fn rss(process: &Process) -> u64 {
    process.rss_kib
}

fn pss(process: &Process) -> u64 {
    process.pss_kib
}

/// What must be the same and is not.
fn exact(before: &Process, now: &Process) -> Vec<String> {
    let counts = |process: &Process| {
        [
            ("descriptors", process.descriptors as u64),
            ("segments", process.segments as u64),
            ("ledgers", process.ledgers as u64),
            ("held locks", process.locks),
        ]
    };
    let pairs = counts(before).into_iter().zip(counts(now)).filter(|(before, now)| before.1 != now.1);
    pairs
        .map(|((what, before), (_, now_is))| {
            let shown = if what == "descriptors" { format!(" ({})", now.targets.join(" ")) } else { String::new() };
            format!("{what}: {before} at first, {now_is}{shown}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(descriptors: usize, rss_kib: u64) -> Sample {
        let process = Process { descriptors, rss_kib, pss_kib: rss_kib, ..Process::default() };
        Sample { processes: [("server".to_owned(), process)].into(), ..Sample::default() }
    }

    #[test]
    fn what_stays_is_no_finding_and_what_grows_is() {
        let flat: Vec<Sample> = (0..6).map(|index| sample(9, 5000 + index * 100)).collect();
        assert_eq!(findings(&flat), Vec::<String>::new());
        let leaks: Vec<Sample> = (0..6).map(|index| Sample { at_s: 600.0, ..sample(9, 5000 + index * 400) }).collect();
        assert_eq!(findings(&leaks).len(), 2);
        assert_eq!(findings(&[sample(9, 1), sample(9, 1), sample(10, 1)]).len(), 1);
        let mut name = sample(9, 1);
        name.names = 1;
        assert_eq!(findings(&[sample(9, 1), name]).len(), 1);
        assert!(!findings(&[]).is_empty() && !findings(&[sample(9, 1)]).is_empty());
    }
}
