//! What `doctor` found: JSON that can be kept and read again, and the same for people.

use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::capabilities::{Capability, Finding};
use crate::kept::Kind;
use crate::mode::Mode;
use crate::selftest::{Check, Outcome};

/// What a kept report says it is.
const KIND: Kind = Kind {
    noun: "report of doctor",
    format: "tssx-trace doctor",
    version: 2,
    missing: "keep one with `sudo tssx-trace doctor --json > FILE`",
    unreadable: "keep one with `sudo tssx-trace doctor --json > FILE`",
};

/// The report, as `schema/doctor-2.json` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Diagnosis {
    format: String,
    version: u32,
    kernel: String,
    /// The mode that `--mode auto` takes; `None` if not even sockets can be listed.
    mode: Option<String>,
    mode_limits: Vec<String>,
    capabilities: Vec<Capability>,
    checks: Vec<Check>,
}

impl Diagnosis {
    /// Of what was found of this machine, and of the library.
    pub(crate) fn new(capabilities: Vec<Capability>, checks: Vec<Check>) -> Self {
        let works = |name: &str| capabilities.iter().any(|capability| capability.name == name && capability.works());
        let mode = Mode::ALL.into_iter().filter(|_| works("unix_diag")).find(|mode| works(&format!("mode {}", mode.name())));
        Self {
            format: KIND.format.into(),
            version: KIND.version,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            mode: mode.map(|mode| mode.name().into()),
            mode_limits: mode.map_or(&[][..], Mode::limits).iter().copied().map(String::from).collect(),
            capabilities,
            checks,
        }
    }

    /// Reads what `doctor --json` printed.
    ///
    /// # Errors
    /// As [`Kind::load`].
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        KIND.load(path)
    }

    /// Whether a check of the library failed.
    pub(crate) fn library_fails(&self) -> bool {
        self.checks.iter().any(|check| check.outcome == Outcome::Failed)
    }

    /// Whether the mode counts traffic.
    pub(crate) fn measures_traffic(&self) -> bool {
        self.mode.as_deref().is_some_and(|mode| mode != Mode::Snapshots.name())
    }

    /// The document.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for capability in &self.capabilities {
            // Writing into a String cannot fail.
            let word = if capability.works() { "yes" } else { "NO " };
            let _ = writeln!(text, "{word}  {}: for {}", capability.name, capability.purpose);
            let shown = |finding: &Finding| format!("{}, {}", if finding.works { "yes" } else { "no" }, finding.detail);
            if let Some(predicted) = &capability.predicted {
                let _ = writeln!(text, "       expected: {}", shown(predicted));
            }
            if let Some(tried) = &capability.tried {
                let _ = writeln!(text, "       tried: {}", shown(tried));
            }
            if let Some(remedy) = &capability.remedy {
                let _ = writeln!(text, "       remedy: {remedy}");
            }
        }
        let _ = match &self.mode {
            Some(mode) => writeln!(text, "\nLinux {}: --mode auto takes {mode}.", self.kernel),
            None => writeln!(text, "\nLinux {}: no mode works.", self.kernel),
        };
        for limit in &self.mode_limits {
            let _ = writeln!(text, "Limit: {limit}.");
        }
        text.push('\n');
        for check in &self.checks {
            let _ = writeln!(text, "{}: {}: {}", check.outcome.name(), check.name, check.detail);
            if let Some(remedy) = &check.remedy {
                let _ = writeln!(text, "       remedy: {remedy}");
            }
        }
        text
    }
}
