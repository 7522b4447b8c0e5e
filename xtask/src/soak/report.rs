//! What a soak has done and seen, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tssx_core::reason::Reason;

use super::harvest::Sums;
use super::member::Member;
use super::outside::Outside;
use super::sample::Sample;
use super::stage::WRONG;
use super::{Mix, verdict};

const GIB: f64 = (1_u64 << 30) as f64;

/// Events that must happen in any soak.
const ALWAYS: [&str; 17] = [
    "short connection",
    "medium connection",
    "connection whose server is killed",
    "client saw its server die",
    "server saw an end die",
    "connection without the library",
    "connection without memory for it",
    "round of the connections that stay",
    "fork at the start",
    "fork in mid-stream",
    "forked child of a server killed",
    "forked child of a client killed",
    "connection that a client's child went on with",
    "client killed half-way",
    "client stopped half-way",
    "process stopped and continued",
    "process killed in mid-stream",
];
/// And those of a long one.
const LONG: [&str; 4] = ["long connection", "slow reader at the client", "slow reader at the server", "exec in mid-stream"];
/// Reasons that must be counted in any soak, and in a long one.
const REASONS: [Reason; 3] = [Reason::TooFewOperations, Reason::PeerNotReady, Reason::NoMemory];
const REASONS_LONG: [Reason; 3] = [Reason::Stdio, Reason::SocketOption, Reason::DescriptorTravels];

/// See the module's text.
#[derive(Default, Serialize)]
pub(super) struct Report {
    minutes: f64,
    seed: u64,
    connections: u64,
    /// Bytes that the long-lived processes sent and received, through rings and through the kernel, by their ledgers.
    sent_through_rings: u64,
    sent_through_kernel: u64,
    received_through_rings: u64,
    received_through_kernel: u64,
    /// Ends that were upgraded, and how often a writer found its ring full.
    upgraded: u64,
    full_rings: u64,
    events: BTreeMap<String, u64>,
    /// Ends by why they were not, or no longer, in rings.
    reasons: BTreeMap<String, u64>,
    /// Wrong bytes: the first ends the run.
    mismatches: usize,
    samples: Vec<Sample>,
    findings: Vec<String>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    pub(super) fn findings(&self) -> &[String] {
        &self.findings
    }

    /// What the processes have said so far.
    pub(super) fn update(&mut self, members: &[Member], outside: &Outside, elapsed: Duration) {
        self.minutes = elapsed.as_secs_f64() / 60.0;
        self.connections = members.iter().map(|member| member.state.connections).sum();
        let mut sums = Sums::default();
        self.events = outside.events().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        for member in members {
            sums.add(&member.state.sums);
            for (name, count) in &member.state.events {
                *self.events.entry(name.clone()).or_default() += count;
            }
        }
        let counts = &sums.counts;
        (self.sent_through_rings, self.sent_through_kernel) = (counts.ring_bytes, counts.kernel_bytes);
        (self.received_through_rings, self.received_through_kernel) = (counts.ring_received, counts.kernel_received);
        (self.upgraded, self.full_rings) = (counts.upgraded, sums.full);
        let counted = (0_u32..).zip(&counts.reasons).filter(|(_, count)| **count > 0);
        self.reasons = counted.filter_map(|(code, count)| Some((Reason::from_code(code)?.name().to_owned(), *count))).collect();
    }

    /// What must have happened and has not yet.
    pub(super) fn missing(&self, mix: Mix, preloaded: bool) -> Vec<String> {
        let long = mix == Mix::Long;
        let events = ALWAYS.iter().chain(LONG.iter().filter(|_| long)).map(|name| (*name).to_owned());
        let mut missing: Vec<String> = events.filter(|name| !self.events.contains_key(name)).collect();
        if preloaded {
            let reasons = REASONS.iter().chain(REASONS_LONG.iter().filter(|_| long)).map(|reason| reason.name());
            missing.extend(reasons.filter(|name| !self.reasons.contains_key(*name)).map(|name| format!("reason {name}")));
            let sums = [
                ("a connection that is upgraded", self.upgraded),
                ("a byte sent through a ring", self.sent_through_rings),
                ("a byte received through a ring", self.received_through_rings),
                ("a full ring", self.full_rings + u64::from(!long)),
            ];
            missing.extend(sums.into_iter().filter(|(_, sum)| *sum == 0).map(|(name, _)| name.to_owned()));
        }
        missing
    }

    /// The verdict.
    pub(super) fn finish(&mut self, samples: Vec<Sample>, result: Result<()>, preloaded: bool, mix: Mix) {
        if let Err(error) = result {
            self.findings.push(format!("{error:#}"));
        } else {
            self.findings = verdict::findings(&samples);
            self.findings.extend(self.missing(mix, preloaded).into_iter().map(|what| format!("this never happened: {what}")));
        }
        self.mismatches = self.findings.iter().filter(|finding| finding.contains(WRONG)).count();
        self.samples = samples;
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(out, "{:.1} minutes, --seed {}: {} connections", self.minutes, self.seed, self.connections)?;
        writeln!(
            out,
            "bytes of the long-lived processes: sent {:.2} GiB through rings and {:.2} through the kernel, received {:.2} and {:.2}",
            self.sent_through_rings as f64 / GIB,
            self.sent_through_kernel as f64 / GIB,
            self.received_through_rings as f64 / GIB,
            self.received_through_kernel as f64 / GIB
        )?;
        for (name, count) in &self.events {
            writeln!(out, "{count:>10} {name}")?;
        }
        writeln!(out, "{:>10} ends upgraded; {} times a ring was full", self.upgraded, self.full_rings)?;
        let reasons: Vec<_> = self.reasons.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(out, "reasons of ends: {}", reasons.join(", "))?;
        if let ([first, ..], Some(last)) = (self.samples.as_slice(), self.samples.last()) {
            writeln!(out, "first  {}\nlast   {}", line(first), line(last))?;
        }
        match self.findings.as_slice() {
            [] => writeln!(out, "not a byte wrong, nothing hung, nothing has grown"),
            findings => findings.iter().try_for_each(|finding| writeln!(out, "FINDING: {finding}")),
        }
    }
}

/// A sample in a line: of each process descriptors, segments, open connections in the ledger, held locks, mappings, RSS and PSS.
pub(super) fn line(sample: &Sample) -> String {
    let processes = sample.processes.iter().map(|(name, process)| {
        format!(
            "{name} fd {} seg {} live {} locks {} maps {} rss {} pss {} KiB",
            process.descriptors, process.segments, process.live, process.locks, process.mappings, process.rss_kib, process.pss_kib
        )
    });
    format!(
        "[{:.0} s, {} connections] names {} netlink {} processes {} files {}; {}",
        sample.at_s,
        sample.connections,
        sample.names,
        sample.netlink,
        sample.family,
        sample.files,
        processes.collect::<Vec<_>>().join("; ")
    )
}
