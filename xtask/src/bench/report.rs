//! A run's results: the Markdown table for a person, and the file of every round for a later run.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use crate::comparison::{Comparison, Judged};

/// Changes when an older file can no longer be understood.
const FORMAT: u32 = 1;

/// Everything that a run found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// How to understand the rest.
    pub format: u32,
    /// Where it was measured.
    pub machine: Machine,
    /// What that can do at best.
    pub limits: Limits,
    /// Rounds of most measurements.
    pub rounds: usize,
    /// How long each took.
    pub milliseconds: u64,
    /// What was measured.
    pub rows: Vec<Comparison>,
}

/// The machine, as far as it matters to the figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs that the run could use.
    pub cpus: usize,
    /// Version of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub(super) fn look() -> Result<Self> {
        let info = std::fs::read_to_string("/proc/cpuinfo")?;
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cpu = name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
        let cpus = std::thread::available_parallelism()?.get();
        let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
        Ok(Self { cpu, cpus, kernel })
    }
}

impl Report {
    /// The results of a run.
    pub(super) fn new(machine: Machine, limits: Limits, rounds: usize, milliseconds: u64, rows: Vec<Comparison>) -> Self {
        Self { format: FORMAT, machine, limits, rounds, milliseconds, rows }
    }

    /// Reads the file of an earlier run.
    ///
    /// # Errors
    /// It is not there, or is none: says which file and what to do.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let remedy = || format!("{} is no earlier run: make one with `cargo xtask bench --json FILE`", file.display());
        let text = std::fs::read_to_string(file).with_context(remedy)?;
        let report: Self = serde_json::from_str(&text).with_context(remedy)?;
        ensure!(
            report.format == FORMAT,
            "{} has format {}, and this bench knows {FORMAT} only: measure again with `cargo xtask bench --json FILE`",
            file.display(),
            report.format
        );
        Ok(report)
    }

    /// Writes the file for a later run.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?).with_context(|| format!("cannot write {}", file.display()))
    }

    /// The table, in Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let Machine { cpu, cpus, kernel } = &self.machine;
        let limits = self.limits.shown();
        let (rounds, milliseconds) = (self.rounds, self.milliseconds);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{cpu}, {cpus} CPUs, Linux {kernel}; {rounds} × {milliseconds} ms, plain and preloaded in turn.\n\
             Limits: {limits}.\n\n\
             | measurement | must | aim | result | spread | plain | preloaded | unit | p50 µs | p99 µs | p99.9 µs | CPU µs/message |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |\n"
        );
        for row in &self.rows {
            let _ = writeln!(text, "{}", line(row));
        }
        text
    }
}

fn line(one: &Comparison) -> String {
    let row = &one.row;
    let judged = |value: f64| shown_result(value, row.judged, &row.unit);
    let (must, aim) =
        row.bar.map_or_else(Default::default, |bar| (bound(&judged(bar.must), row.judged), bound(&judged(bar.aim), row.judged)));
    let (least, most) = one.spread();
    let fastest = one.extra_of_the_fastest().map_or_else(String::new, |extra| format!(" (fastest {})", judged(extra)));
    let latencies = one.latencies();
    let percentile = |of: fn(&crate::figures::Latency) -> Option<f64>| {
        let pair = latencies.as_ref().and_then(|(plain, preloaded)| Some((of(plain)?, of(preloaded)?)));
        pair.map_or_else(String::new, |(plain, preloaded)| arrow(plain / 1e3, preloaded / 1e3))
    };
    let cpu = one.cpu().map_or_else(String::new, |(plain, preloaded)| {
        format!("{} ({:.2}×)", arrow(plain * 1e6, preloaded * 1e6), preloaded / plain)
    });
    let cells = [
        row.name.clone(),
        must,
        aim,
        format!("{}{}", judged(one.result()), verdict(one)),
        format!("{}…{}{fastest}", judged(least), judged(most)),
        short(one.plain()),
        short(one.preloaded()),
        row.unit.clone(),
        percentile(|latency| Some(latency.p50)),
        percentile(|latency| latency.p99),
        percentile(|latency| latency.p999),
        cpu,
    ];
    format!("| {} |", cells.join(" | "))
}

/// How a result is written: ratios as factors, else with as many digits as the unit deserves.
pub(super) fn shown_result(value: f64, judged: Judged, unit: &str) -> String {
    match judged {
        _ if judged.is_ratio() => format!("{value:.2}×"),
        Judged::Extra => format!("{value:+.1} {unit}"),
        _ => format!("{value:.2} {unit}"),
    }
}

fn bound(value: &str, judged: Judged) -> String {
    format!("{} {value}", if judged.more_is_better() { "≥" } else { "≤" })
}

/// Whether the result reaches its bar.
fn verdict(one: &Comparison) -> &'static str {
    let Some(bar) = one.row.bar else { return "" };
    let reaches = |bound: f64| if one.row.judged.more_is_better() { one.result() >= bound } else { one.result() <= bound };
    match (reaches(bar.aim), reaches(bar.must)) {
        (true, _) => " ✓✓",
        (false, true) => " ✓",
        (false, false) => " ✗",
    }
}

fn arrow(plain: f64, preloaded: f64) -> String {
    format!("{} → {}", short(plain), short(preloaded))
}

/// Three digits and a unit's prefix.
fn short(value: f64) -> String {
    let (scaled, prefix) = match value.abs() {
        1e9.. => (value / 1e9, " G"),
        1e6.. => (value / 1e6, " M"),
        1e4.. => (value / 1e3, " k"),
        _ => (value, ""),
    };
    match scaled.abs() {
        100.0.. => format!("{scaled:.0}{prefix}"),
        10.0.. => format!("{scaled:.1}{prefix}"),
        _ => format!("{scaled:.2}{prefix}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::Bar;
    use crate::comparison::tests::comparison;
    use crate::figures::{Cpu, Latency};

    fn report(rows: Vec<Comparison>) -> Report {
        let machine = Machine { cpu: "model".to_owned(), cpus: 2, kernel: "6.18".to_owned() };
        Report::new(machine, Limits { ping_pong: Some(100.0), copy_cached: 2e10, copy_large: 1e10 }, 1, 400, rows)
    }

    #[test]
    fn a_line_tells_bar_verdict_and_latencies() {
        let mut one = comparison("echo", Judged::Rate, &[(200_000.0, 2_600_000.0)]);
        one.row.bar = Some(Bar { must: 12.0, aim: 20.0 });
        for (figures, p50, seconds) in
            one.rounds.iter_mut().flat_map(|round| [(&mut round.plain, 5000.0, 10.0), (&mut round.preloaded, 400.0, 1.0)])
        {
            figures.latency = Some(Latency { p50, p99: Some(p50 * 2.0), p999: None });
            figures.cpu = Some(Cpu { messages: 1e6, client: seconds, server: 0.0 });
        }
        let wanted = "| echo | ≥ 12.00× | ≥ 20.00× | 13.00× ✓ | 13.00×…13.00× | 200 k | 2.60 M | calls/s | 5.00 → 0.40 | \
            10.0 → 0.80 |  | 10.0 → 1.00 (0.10×) |";
        assert_eq!(line(&one), wanted);
        let table = report(vec![one]).table();
        let columns = |line: &str| line.matches('|').count();
        let lines: Vec<_> = table.lines().filter(|line| line.starts_with('|')).collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| columns(line) == 13), "{table}");
    }

    #[test]
    fn an_extra_cost_is_held_against_its_bound_from_above() {
        let mut one = comparison("call", Judged::Extra, &[(100.0, 104.0)]);
        one.row.unit = "ns".to_owned();
        one.row.bar = Some(Bar { must: 3.0, aim: 1.0 });
        assert!(line(&one).starts_with("| call | ≤ +3.0 ns | ≤ +1.0 ns | +4.0 ns ✗ |"), "{}", line(&one));
    }

    #[test]
    fn a_file_is_read_back_and_a_wrong_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run.json");
        let mut written = report(vec![comparison("echo", Judged::Rate, &[(1.0, 2.0)])]);
        written.write(&file).unwrap();
        assert_eq!(Report::read(&file).unwrap(), written);
        written.format = FORMAT + 1;
        written.write(&file).unwrap();
        for text in [None, Some("{"), Some("{}")] {
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            let error = format!("{:#}", Report::read(&file).unwrap_err());
            assert!(error.contains("run.json") && error.contains("cargo xtask bench --json"), "{error}");
        }
    }
}
