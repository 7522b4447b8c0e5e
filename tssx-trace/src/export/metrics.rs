//! The metrics, in Prometheus' text format. What was not measured is absent.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::tally::{Ends, Sent, Tally};

/// One value with its labels.
type Sample = (Vec<(&'static str, String)>, f64);

/// Metrics of one name.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    counter: bool,
    samples: Vec<Sample>,
}

/// Everything of one scrape.
#[derive(Debug)]
struct Scrape(Vec<Family>);

/// The tally as text.
///
/// # Errors
/// Where the encoder finds fault, which it does with nothing that is written here.
pub(super) fn text(tally: &Tally) -> anyhow::Result<String> {
    let mut families = kernel(tally);
    families.extend(ends(tally));
    families.extend(losses(tally));
    families.extend(own(tally));
    families.retain(|family| !family.samples.is_empty());
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::new(Scrape(families))));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = if family.counter { MetricType::Counter } else { MetricType::Gauge };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (labels, value) in &family.samples {
                let mut one = metric.encode_family(labels)?;
                if family.counter {
                    one.encode_counter::<NoLabelSet, f64, u64>(value, None)?;
                } else {
                    one.encode_gauge(value)?;
                }
            }
        }
        Ok(())
    }
}

fn counter(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, help, counter: true, samples }
}

fn gauge(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, help, counter: false, samples }
}

/// A count; beyond 2^53 a float of Prometheus has no room for the last digits.
fn count(value: u64) -> f64 {
    value as f64
}

fn kernel(tally: &Tally) -> Vec<Family> {
    let label = |key: &super::tally::KernelKey| {
        vec![("socket", key.socket.clone()), ("kind", key.kind.into()), ("selected", key.selected.into())]
    };
    let open = tally.open.iter().map(|(key, number)| (label(key), count(*number))).collect();
    let open = gauge("tssx_connections_open", "Connections that are open now.", open);
    if !tally.mode.is_some_and(crate::mode::Mode::measures_traffic) {
        return vec![open];
    }
    let each = |of: fn(&Sent) -> u64| tally.kernel.iter().map(|(key, sent)| (label(key), count(of(sent)))).collect();
    vec![
        counter(
            "tssx_kernel_sent_bytes",
            "Bytes sent through the kernel's sockets, doorbells included, by the kernel programs.",
            each(|sent| sent.bytes),
        ),
        counter(
            "tssx_kernel_sent_calls",
            "Calls that sent them, doorbells included, by the kernel programs.",
            each(|sent| sent.calls),
        ),
        open,
    ]
}

fn ends(tally: &Tally) -> Vec<Family> {
    let each = |of: fn(&Ends) -> u64| {
        let sample = |(key, ends): (&super::tally::EndKey, &Ends)| {
            (vec![("socket", key.socket.clone()), ("end", key.end.into())], count(of(ends)))
        };
        tally.ends.iter().map(sample).collect()
    };
    let reasons = tally.ends.iter().flat_map(|(key, ends)| {
        ends.reasons.iter().map(|(reason, number)| {
            (vec![("socket", key.socket.clone()), ("end", key.end.into()), ("reason", reason.clone())], count(*number))
        })
    });
    vec![
        counter("tssx_ring_sent_bytes", "Bytes sent through rings, by the library's statistics.", each(|ends| ends.ring.bytes)),
        counter("tssx_ring_sent_calls", "Calls that sent them.", each(|ends| ends.ring.calls)),
        counter(
            "tssx_library_kernel_sent_bytes",
            "The program's bytes that selected ends sent through the kernel's sockets, by the library's statistics.",
            each(|ends| ends.kernel.bytes),
        ),
        counter("tssx_library_kernel_sent_calls", "Calls that sent them.", each(|ends| ends.kernel.calls)),
        counter(
            "tssx_doorbell_sent_bytes",
            "Bytes of the library itself, which the kernel's sockets carried, by its statistics.",
            each(|ends| ends.doorbells.bytes),
        ),
        counter("tssx_doorbell_sent_calls", "Calls that sent them.", each(|ends| ends.doorbells.calls)),
        counter("tssx_sleeps", "Times that an end slept because a ring was empty or full.", each(|ends| ends.sleeps)),
        counter("tssx_spin_hits", "Times that an end spun and found what it waited for.", each(|ends| ends.spin_hits)),
        counter("tssx_ring_full", "Times that an end found its ring full.", each(|ends| ends.ring_full)),
        counter("tssx_connections_selected", "Connections that this end's library selected.", each(|ends| ends.selected)),
        counter(
            "tssx_connections_accelerated",
            "Connections of which bytes of this end moved through a ring.",
            each(|ends| ends.accelerated),
        ),
        counter(
            "tssx_connections_not_accelerated",
            "Connections that this end kept on the kernel's socket, or put back there, by reason.",
            reasons.collect(),
        ),
    ]
}

fn losses(tally: &Tally) -> Vec<Family> {
    let losses = &tally.losses;
    let by_cause = |counts: &[(&str, u64)]| {
        counts.iter().map(|(cause, number)| (vec![("cause", String::from(*cause))], count(*number))).collect()
    };
    let mut families = Vec::new();
    let measures = tally.mode.is_some_and(crate::mode::Mode::measures_traffic);
    if measures {
        let calls = [
            ("map_full", losses.map_full_calls),
            ("no_memory", losses.no_memory_calls),
            ("refused", losses.refused_calls),
            ("unreadable", losses.unreadable_calls),
            ("missed", losses.missed_events),
        ];
        let bytes = [("map_full", losses.map_full_bytes), ("no_memory", losses.no_memory_bytes), ("refused", losses.refused_bytes)];
        families.push(counter("tssx_trace_lost_calls", "Calls that the kernel programs could not count.", by_cause(&calls)));
        families.push(counter("tssx_trace_lost_bytes", "Bytes of those calls, as far as they are known.", by_cause(&bytes)));
    }
    let of_ledgers = [
        ("ledger_full", losses.uncounted_connections),
        ("overwritten", losses.overwritten_connections),
        ("unplaced", losses.unplaced_connections),
    ];
    let mut connections = if tally.reads_all() || tally.ledgers.0 > 0 { of_ledgers.to_vec() } else { Vec::new() };
    connections.extend(measures.then_some(("untold", losses.untold_sockets)));
    let ledgers = [("read", tally.ledgers.0), ("refused", tally.ledgers.1)];
    let states = ledgers.map(|(state, number)| (vec![("state", String::from(state))], count(number)));
    families.push(counter(
        "tssx_trace_lost_connections",
        "Connections whose statistics or names could not be read, of the processes that may be looked into.",
        by_cause(&connections),
    ));
    families.push(gauge(
        "tssx_trace_ledgers",
        "Ledgers of processes with the library, by what came of reading them, of the processes that may be looked into.",
        states.into(),
    ));
    families
}

fn own(tally: &Tally) -> Vec<Family> {
    let cpu = tally.cost.own_cpu_ms.map(|time| (Vec::new(), time / 1e3));
    let maps = tally.cost.map_bytes.map(|bytes| (Vec::new(), count(bytes)));
    let mode = tally.mode.map(|mode| (vec![("mode", mode.name().to_owned())], 1.0));
    let build = (vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0);
    let limits = tally.mode.map_or(&[][..], crate::mode::Mode::limits);
    let limits = limits.iter().map(|limit| (vec![("limit", String::from(*limit))], 1.0)).collect();
    let privileges = tally.privileges.iter().map(|(name, held)| {
        let purpose = crate::preflight::purpose_of(name);
        (vec![("capability", String::from(*name)), ("purpose", String::from(purpose))], count(u64::from(*held)))
    });
    vec![
        gauge(
            "tssx_trace_privilege_held",
            "Whether the tracer began with a privilege: without it, what it is for is absent, or labelled unknown.",
            privileges.collect(),
        ),
        gauge("tssx_trace_limit_info", "What this way of measuring cannot see.", limits),
        counter("tssx_trace_cpu_seconds", "Processor time of the tracer since it began to watch.", cpu.into_iter().collect()),
        gauge("tssx_trace_map_bytes", "Memory of the kernel programs' maps.", maps.into_iter().collect()),
        gauge("tssx_trace_mode_info", "How traffic is measured.", mode.into_iter().collect()),
        gauge("tssx_build_info", "Version of the tracer.", vec![build]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Cost;
    use crate::export::tally::{EndKey, KernelKey};
    use crate::losses::Losses;
    use crate::mode::Mode;

    /// A redis in rings, its other client without the library, a socket without a name, and everything lost once.
    fn tally() -> Tally {
        let held = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_CHECKPOINT_RESTORE", "CAP_BPF"].map(|name| (name, true));
        let mut tally = Tally::new(1, held.to_vec());
        let kernel = |socket: &str, kind, selected| KernelKey { socket: socket.into(), kind, selected };
        for (key, calls, bytes, open) in [
            (kernel("/run/redis \"a\".sock", "stream", "true"), 812, 812, 2),
            (kernel("/run/redis \"a\".sock", "stream", "false"), 5000, 320_000, 1),
            (kernel("(unnamed)", "datagram", "false"), 3, 90, 0),
        ] {
            tally.kernel.insert(key.clone(), Sent { calls, bytes });
            tally.open.insert(key, open);
        }
        let sent = |calls, bytes| Sent { calls, bytes };
        let reasons = [(String::from("peer-not-ready"), 1)].into_iter().collect();
        let (ring, none) = (sent(90_000, 5_760_000), Sent::default());
        let counts = Ends { sleeps: 7, spin_hits: 89_000, ring_full: 2, selected: 3, accelerated: 2, ..Ends::default() };
        let server = Ends { ring, kernel: sent(8, 512), doorbells: sent(400, 400), reasons, ..counts.clone() };
        let client = Ends { ring, kernel: none, doorbells: sent(412, 412), ..counts };
        for (end, ends) in [("server", server), ("client", client)] {
            tally.ends.insert(EndKey { socket: "/run/redis \"a\".sock".into(), end }, ends);
        }
        let calls = Losses { map_full_calls: 1, map_full_bytes: 2, no_memory_calls: 3, no_memory_bytes: 4, ..Losses::default() };
        tally.losses = Losses { unreadable_calls: 5, missed_events: 6, uncounted_connections: 7, untold_sockets: 8, ..calls };
        tally.ledgers = (2, 1);
        tally.cost = Cost { own_cpu_ms: Some(1234.5), map_bytes: Some(6_181_880), ..Cost::default() };
        tally.mode = Some(Mode::TpBtf);
        tally
    }

    /// The same of a tracer without any privilege: names alone.
    fn poor() -> Tally {
        let mut tally = Tally::new(1, vec![("CAP_BPF", false), ("CAP_SYS_PTRACE", false)]);
        tally.open.insert(KernelKey { socket: "/run/redis.sock".into(), kind: "stream", selected: "unknown" }, 1);
        tally.mode = Some(Mode::Snapshots);
        tally
    }

    #[test]
    fn the_metrics_are_as_they_are_kept() {
        let texts = [("export", tally()), ("export-no-privilege", poor())];
        crate::snapshots::hold(&texts.map(|(name, tally)| (name, text(&tally).expect("text"))));
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let text = text(&Tally::new(1, Vec::new())).expect("text");
        assert!(!text.contains("tssx_kernel_sent") && !text.contains("tssx_trace_map_bytes"), "{text}");
        assert!(!text.contains("tssx_trace_cpu_seconds") && !text.contains("tssx_trace_lost_connections"), "{text}");
        assert!(text.contains(&format!("tssx_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))), "{text}");
    }
}
