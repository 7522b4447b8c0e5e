//! What the tracer needs from the machine, and one clear sentence for each thing that is missing.

use anyhow::{Context, anyhow, bail};
use aya::programs::ProgramError;

/// Capabilities that the tracer needs, capabilities(7), with their bit in `CapEff`.
const NEEDED: [(&str, u32); 4] = [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21)];

/// The types of the running kernel, which BTF tracepoints are checked against.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Checks privilege and BTF before anything is loaded.
///
/// # Errors
/// The first thing that is missing, with its remedy.
pub(crate) fn check() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status: mount /proc")?;
    let missing = missing_capabilities(&status).context("/proc/self/status has no CapEff line")?;
    if !missing.is_empty() {
        bail!("no privilege to watch the kernel's sockets (missing {}): run it as root, for example with sudo", missing.join(", "));
    }
    if !std::path::Path::new(BTF).exists() {
        bail!(
            "the kernel shows no type information ({BTF} is missing): boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys"
        );
    }
    Ok(())
}

/// Names of the capabilities that the process with this `/proc/PID/status` lacks. CAP_SYS_ADMIN contains the first two.
fn missing_capabilities(status: &str) -> Option<Vec<&'static str>> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(NEEDED.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect())
}

/// What to say when the object does not load.
pub(crate) fn explain_load(error: &anyhow::Error) -> anyhow::Error {
    let text = one_line(&format!("{error:#}"));
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        return anyhow!(
            "the kernel refuses BPF to this process ({text}): look at lockdown (/sys/kernel/security/lockdown), and in a container allow bpf(2) and CAP_BPF"
        );
    }
    anyhow!("the kernel did not take the tracer's maps and programs: {text}")
}

/// What to say when one tracepoint's program does not load or attach.
pub(crate) fn explain_tracepoint(tracepoint: &str, error: &ProgramError) -> anyhow::Error {
    if let ProgramError::Btf(_) = error {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        return anyhow!("kernel {release} has no tracepoint `{tracepoint}`: the tracer needs Linux 6.3 or newer");
    }
    let text = one_line(&chain(error));
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        return anyhow!(
            "the kernel refuses to trace `{tracepoint}` ({text}): look at lockdown (/sys/kernel/security/lockdown), and in a container allow CAP_BPF and CAP_PERFMON"
        );
    }
    anyhow!("cannot trace `{tracepoint}`: {text}")
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The text on one line, without the verifier's pages.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(vec![]));
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n").map(|missing| missing.len()), Some(4));
        assert_eq!(missing_capabilities("CapEff:\t000001bfffffffff\n"), Some(vec!["CAP_PERFMON"]));
        assert_eq!(missing_capabilities("Name:\tx\n"), None);
    }
}
