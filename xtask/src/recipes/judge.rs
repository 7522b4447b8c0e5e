//! What the tracer's reports must say of a recipe's socket, and what they predict.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::programs::Kind;

/// What the recording comes to.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) level: String,
    pub(super) codes: Vec<String>,
    /// Word of USE_TSSX, if it is selected.
    pub(super) pattern: Option<String>,
    pub(super) connections: u64,
    pub(super) predicted: Option<Range>,
}

/// How many times the plain rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) least: f64,
    pub(super) likely: f64,
    pub(super) most: f64,
}

impl Range {
    fn of(value: &Value) -> Option<Self> {
        let figure = |name: &str| value.get(name).and_then(Value::as_f64);
        Some(Self { least: figure("least")?, likely: figure("median")?, most: figure("most")? })
    }

    pub(super) fn holds(&self, value: f64) -> bool {
        (self.least..=self.most).contains(&value)
    }
}

fn sockets(report: &Value) -> Result<&Vec<Value>> {
    report.get("sockets").and_then(Value::as_array).with_context(|| format!("a report without sockets: {report}"))
}

fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned)
}

impl Verdict {
    /// What `suggest --format json` says of the socket.
    pub(super) fn of(report: &str, socket: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(report).context("suggest --format json")?;
        let found = sockets(&report)?.iter().find(|entry| text(entry, "display").as_deref() == Some(socket));
        let found = found.with_context(|| format!("the report does not name {socket}: {report}"))?;
        let findings = found.get("findings").and_then(Value::as_array).into_iter().flatten();
        Ok(Self {
            level: text(found, "level").context("a level")?,
            codes: findings.filter_map(|finding| text(finding, "code")).collect(),
            pattern: text(found, "pattern"),
            connections: found.get("connections").and_then(Value::as_u64).context("connections")?,
            predicted: found.pointer("/gain/predicted/rate_factor").and_then(Range::of),
        })
    }

    /// Whether that is what is true of these programs.
    pub(super) fn check(&self, kind: Kind, socket: &str) -> Result<()> {
        if kind == Kind::Short {
            ensure!(self.level == "possible" && self.pattern.is_none(), "not possible and left out: {self:?}");
            ensure!(self.codes.iter().any(|code| code == "short-lived"), "not short-lived: {self:?}");
            ensure!(self.connections > 10, "a connection for each request, yet few connections: {self:?}");
        } else {
            ensure!(self.level == "recommended" && self.pattern.as_deref() == Some(socket), "not recommended: {self:?}");
            ensure!(self.predicted.is_some(), "nothing is predicted: {self:?}");
        }
        Ok(())
    }
}

/// What `verify --json` says of the socket.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) hit_rate: f64,
    pub(super) accelerated: u64,
    /// Rate of calls by that of the recording, as the tracer itself counted.
    pub(super) achieved: f64,
}

impl Proof {
    /// The proof; no byte may have gone past the library.
    pub(super) fn of(report: &str, socket: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(report).context("verify --json")?;
        let found = sockets(&report)?.iter().find(|entry| text(entry, "display").as_deref() == Some(socket));
        let found = found.with_context(|| format!("the report does not name {socket}: {report}"))?;
        let past = found.get("bypassed").and_then(Value::as_array).is_some_and(|past| !past.is_empty());
        ensure!(!past && found.get("disagreements").and_then(Value::as_u64) == Some(0), "not all bytes are accounted for: {found}");
        let gains = report.get("gains").and_then(Value::as_array).into_iter().flatten();
        let gain = gains.into_iter().find(|gain| text(gain, "display").as_deref() == Some(socket));
        let achieved = gain.and_then(|gain| gain.get("achieved_factor")?.as_f64());
        Ok(Self {
            hit_rate: found.get("hit_rate").and_then(Value::as_f64).with_context(|| format!("no hit rate: {found}"))?,
            accelerated: found.get("accelerated").and_then(Value::as_u64).context("accelerated")?,
            achieved: achieved.with_context(|| format!("nothing is said of what was achieved: {report}"))?,
        })
    }
}
