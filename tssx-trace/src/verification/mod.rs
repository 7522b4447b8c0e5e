//! What `verify` found in a window: JSON that can be kept and read again, and the same for people ([`text`]).

mod text;

pub(crate) use text::percent;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cost::Cost;
use crate::gain::Comparison;
use crate::hit_rate::SocketReport;
use crate::kept::Kind;
use crate::losses::Losses;
use crate::watch::Observation;

/// What a kept report says it is.
const KIND: Kind = Kind {
    noun: "report of verify",
    format: "tssx-trace verify",
    version: 1,
    missing: "keep one with `sudo tssx-trace verify --json > FILE`",
    unreadable: "keep one with `sudo tssx-trace verify --json > FILE`",
};

/// The report, as `schema/verify-1.json` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verification {
    format: String,
    version: u32,
    /// Length of the window in milliseconds.
    window_ms: u64,
    /// Ended by a signal before its time.
    interrupted: bool,
    /// How the kernel bytes were measured, and what that cannot see.
    mode: String,
    mode_limits: Vec<String>,
    pub(crate) losses: Losses,
    /// Pairs of one socket and one process that the kernel had room for.
    pub(crate) max_sockets: u32,
    cost: Cost,
    /// The minimum that was asked for.
    pub(crate) min_hit_rate: Option<f64>,
    pub(crate) sockets: Vec<SocketReport>,
    /// Only with `--before`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gains: Vec<Comparison>,
}

impl Verification {
    /// Of a window, with no socket yet.
    pub(crate) fn new(seen: &Observation, max_sockets: u32) -> Self {
        Self {
            format: KIND.format.into(),
            version: KIND.version,
            window_ms: u64::try_from(seen.elapsed.as_millis()).unwrap_or(u64::MAX),
            interrupted: seen.interrupted,
            mode: seen.mode.name().into(),
            mode_limits: seen.mode.limits().iter().copied().map(String::from).collect(),
            losses: seen.losses,
            max_sockets,
            cost: seen.cost,
            min_hit_rate: None,
            sockets: Vec::new(),
            gains: Vec::new(),
        }
    }

    /// Reads what `verify --json` printed.
    ///
    /// # Errors
    /// As [`Kind::load`].
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        KIND.load(path)
    }

    /// The document.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}
