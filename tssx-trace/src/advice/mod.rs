//! The verdict on a socket, from a recording alone: *recommended*, *possible* or *blocked*, and each reason with its evidence.
//!
//! [`judge`] looks at a service's traffic, [`ends`] at the programs of its two ends, by the facts that the recording holds of them. A reason
//! that holds for every known program of an end has its code's weight; one that holds for some of them is a note: the others can gain.

mod code;
mod ends;
mod judge;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub(crate) use code::{Code, Weight};
pub(crate) use ends::deciding;
pub(crate) use judge::{explain, judge};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// The accepting one.
    Server,
    /// The connecting one.
    Client,
}

impl Side {
    /// Both, in the order of reports.
    pub(crate) const BOTH: [Self; 2] = [Self::Server, Self::Client];

    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// What to do with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Busy, and nothing known is in the way.
    Recommended,
    /// Nothing known forbids it, but whether it gains or works was not seen.
    Possible,
    /// It cannot be accelerated as it is used now.
    Blocked,
}

impl Level {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Recommended => "recommended",
            Self::Possible => "possible",
            Self::Blocked => "blocked",
        }
    }
}

/// One reason as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) code: Code,
    pub(crate) weight: Weight,
    /// The end that it is about; `None`: the socket as a whole.
    pub(crate) end: Option<Side>,
    /// The processes that it holds for; empty: the end or the socket as a whole.
    pub(crate) processes: Vec<u32>,
    /// What was seen.
    pub(crate) evidence: String,
    pub(crate) explanation: Cow<'static, str>,
    pub(crate) remedy: Cow<'static, str>,
}

impl Finding {
    /// About the socket as a whole.
    pub(crate) fn new(code: Code, evidence: impl Into<String>) -> Self {
        Self {
            code,
            weight: code.weight(),
            end: None,
            processes: Vec::new(),
            evidence: evidence.into(),
            explanation: code.explanation().into(),
            remedy: code.remedy().into(),
        }
    }

    /// `code: evidence: explanation`, with the end where it is about one.
    pub(crate) fn sentence(&self) -> String {
        let end = self.end.map(|end| format!(" ({} end)", end.name())).unwrap_or_default();
        format!("{}{end}: {}: {}", self.code.name(), self.evidence, self.explanation)
    }
}

/// The verdict on one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) level: Level,
    /// The heaviest first.
    pub(crate) findings: Vec<Finding>,
}

impl Verdict {
    fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by(|a, b| b.weight.cmp(&a.weight).then(a.code.cmp(&b.code)).then(a.end.cmp(&b.end)));
        let level = match findings.first().map(|finding| finding.weight) {
            Some(Weight::Block) => Level::Blocked,
            Some(Weight::Doubt) => Level::Possible,
            Some(Weight::Note) | None => Level::Recommended,
        };
        Self { level, findings }
    }

    /// Whether a finding has this code.
    pub(crate) fn has(&self, code: Code) -> bool {
        self.findings.iter().any(|finding| finding.code == code)
    }
}
