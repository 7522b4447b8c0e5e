//! What the tracer can do on this machine: each capability predicted from what the machine says of itself, tried for real, and with
//! the remedy where it is missing.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::inventory::Inventory;
use crate::mode::{Mode, Wanted};
use crate::preflight;
use crate::probe::{Probe, ProbeOptions};

/// One thing that the tracer wants of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capability {
    pub(crate) name: String,
    /// What it is for.
    pub(crate) purpose: Cow<'static, str>,
    /// What version, BTF, configuration or privileges let expect, and why; `None` where nothing tells beforehand.
    pub(crate) predicted: Option<Finding>,
    /// What came of trying; `None` where there is nothing to try but to look, as for the prediction.
    pub(crate) tried: Option<Finding>,
    /// What to do if it is missing; `None` if it is not.
    pub(crate) remedy: Option<String>,
}

/// Yes or no, and the words for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) works: bool,
    pub(crate) detail: String,
}

impl Finding {
    fn new(works: bool, detail: impl Into<String>) -> Self {
        Self { works, detail: detail.into() }
    }

    fn of<T>(outcome: anyhow::Result<T>, detail: impl Into<String>) -> Self {
        match outcome {
            Ok(_) => Self::new(true, detail),
            Err(error) => Self::new(false, format!("{error:#}")),
        }
    }
}

impl Capability {
    /// Whether it is there: by trying if it was tried.
    pub(crate) fn works(&self) -> bool {
        self.tried.as_ref().or(self.predicted.as_ref()).is_some_and(|finding| finding.works)
    }

    fn new(name: &str, purpose: &'static str, predicted: Option<Finding>, tried: Option<Finding>, remedy: &str) -> Self {
        let mut capability = Self { name: name.to_owned(), purpose: purpose.into(), predicted, tried, remedy: None };
        if !capability.works() {
            capability.remedy = Some(remedy.to_owned());
        }
        capability
    }
}

/// Looks and tries. Loads and attaches the programs of every mode in turn, and takes them away again.
pub(crate) fn find() -> Vec<Capability> {
    let mut found = Vec::new();
    for (name, held) in preflight::privileges() {
        let purpose = preflight::purpose_of(name);
        let predicted = Finding::new(held, if held { "held" } else { "not held" });
        let remedy = format!("run it as root, or give it {name}, for example with `setpriv --ambient-caps`");
        found.push(Capability::new(name, purpose, Some(predicted), None, &remedy));
    }
    let types = preflight::kernel_types();
    let detail = if types { "/sys/kernel/btf/vmlinux is there" } else { "/sys/kernel/btf/vmlinux is missing" };
    found.push(Capability::new(
        "kernel types",
        "every mode but snapshots",
        Some(Finding::new(types, detail)),
        None,
        "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys",
    ));
    let listed = Inventory::open().and_then(|mut inventory| inventory.refresh().map(|()| inventory.sockets().count()));
    let detail = listed.as_ref().map(|count| format!("{count} sockets listed")).unwrap_or_default();
    found.push(Capability::new(
        "unix_diag",
        "names and pairs of sockets",
        None,
        Some(Finding::of(listed, detail)),
        "`modprobe unix_diag`, or a kernel with CONFIG_UNIX_DIAG, and no seccomp filter in the way",
    ));
    found.extend(Mode::ALL.map(mode));
    found
}

fn mode(mode: Mode) -> Capability {
    let purpose = match mode {
        Mode::TpBtf => "traffic by the socket layer's tracepoints",
        Mode::Fexit => "traffic by Unix sockets' own functions",
        Mode::Syscalls => "traffic by the end of every system call",
        Mode::Snapshots => "who is connected, without traffic",
    };
    let options = ProbeOptions {
        mode: Wanted(Some(mode)),
        needs_traffic: false,
        max_sockets: 64,
        ring_bytes: tssx_ebpf::ARRIVALS_BYTES,
        log: false,
        closer: false,
    };
    let tried =
        Finding::of(Probe::attach(options), if mode.hooks().is_empty() { "needs no program" } else { "attached and detached" });
    let remedy = match mode {
        Mode::TpBtf => "boot Linux 6.3 or newer, as root and without lockdown=confidentiality; else mode fexit serves",
        Mode::Fexit => {
            "boot Linux 5.12 or newer with CONFIG_FUNCTION_TRACER, where no security policy forbids fexit programs; else mode syscalls serves"
        }
        Mode::Syscalls => "boot Linux 5.8 or newer on x86-64, as root and without lockdown=confidentiality",
        Mode::Snapshots => "see unix_diag",
    };
    Capability::new(&format!("mode {}", mode.name()), purpose, Some(predict(mode)), Some(tried), remedy)
}

/// What the machine says of itself about a mode.
fn predict(mode: Mode) -> Finding {
    match preflight::check_privileges().and_then(|()| preflight::check_hooks(mode)) {
        _ if mode.hooks().is_empty() => Finding::new(true, "needs unix_diag only"),
        Ok(()) => Finding::new(true, "privileges, kernel types and what to attach to are there"),
        Err(error) => Finding::new(false, format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_has_a_remedy_and_trying_beats_predicting() {
        let (yes, no) = (Finding::new(true, "a"), Finding::new(false, "b"));
        let both = Capability::new("x", "y", Some(yes.clone()), Some(no), "do this");
        assert!(!both.works() && both.remedy.as_deref() == Some("do this"));
        let only = Capability::new("x", "y", Some(yes), None, "do this");
        assert!(only.works() && only.remedy.is_none());
    }
}
