//! What the tracer needs from the machine, and one clear sentence for each thing that is missing.

use anyhow::{Context, anyhow, bail};
use aya::programs::ProgramError;

use crate::kernel_types::KernelTypes;
use crate::mode::Mode;

/// Capabilities that the tracer needs, capabilities(7), with their bit in `CapEff`.
const NEEDED: [(&str, u32); 5] =
    [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_SYS_PTRACE", 19), ("CAP_DAC_READ_SEARCH", 2), ("CAP_CHECKPOINT_RESTORE", 40)];
/// The first that CAP_SYS_ADMIN contains, and all above it.
const CONTAINED: u32 = 38;
/// One without which less is seen, which the report says.
const WANTED: (&str, u32) = ("CAP_SYS_ADMIN", 21);

/// What one of them is for.
pub(crate) fn purpose_of(capability: &str) -> &'static str {
    match capability {
        "CAP_BPF" => "maps and programs",
        "CAP_PERFMON" => "programs that trace",
        "CAP_SYS_PTRACE" | "CAP_DAC_READ_SEARCH" => "descriptors of other users' processes",
        "CAP_CHECKPOINT_RESTORE" => "ledgers, through /proc/PID/map_files",
        _ => "names in other network namespaces, and the kernel's time for each event",
    }
}

/// The capabilities that the tracer wants, and whether this process holds them.
pub(crate) fn privileges() -> Vec<(&'static str, bool)> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = effective(&status).unwrap_or(0);
    NEEDED.iter().chain([&WANTED]).map(|(name, bit)| (*name, holds(held, *bit))).collect()
}

/// Whether the kernel shows its types.
pub(crate) fn kernel_types() -> bool {
    std::path::Path::new(BTF).exists()
}

/// Checks by the kernel's types that everything is there which a mode attaches to.
///
/// # Errors
/// The first thing that is missing.
pub(crate) fn check_hooks(mode: Mode) -> anyhow::Result<()> {
    check_machine(mode)?;
    let types = KernelTypes::of_running_kernel().with_context(|| format!("cannot understand {BTF}"))?;
    for hook in mode.hooks() {
        // The kernel keeps a type of this name for each tracepoint.
        let there = match mode {
            Mode::Fexit => types.has_function(hook.target),
            _ => types.has_type(&format!("btf_trace_{}", hook.target)),
        };
        if !there {
            bail!("kernel {} has no `{}` to trace", rustix::system::uname().release().to_string_lossy(), hook.target);
        }
    }
    mode.offsets(&types).map(drop).map_err(|missing| anyhow!(missing))
}

/// The types of the running kernel, which BTF tracepoints are checked against.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Checks privilege before anything is loaded.
///
/// # Errors
/// What is missing, with its remedy.
pub(crate) fn check_privileges() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status: mount /proc")?;
    let missing = missing_capabilities(&status).context("/proc/self/status has no CapEff line")?;
    if !missing.is_empty() {
        bail!(
            "no privilege to watch the kernel's sockets (missing {}): run it as root, for example with sudo, or give it these",
            missing.join(", ")
        );
    }
    Ok(())
}

/// Checks what a mode with programs needs of kernel and processor before anything is loaded.
///
/// # Errors
/// The first thing that is missing, with its remedy.
pub(crate) fn check_machine(mode: Mode) -> anyhow::Result<()> {
    if !kernel_types() {
        bail!(
            "the kernel shows no type information ({BTF} is missing): boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys"
        );
    }
    if mode == Mode::Syscalls && !cfg!(target_arch = "x86_64") {
        bail!("mode syscalls knows the system calls of x86-64 only, and this is {}", std::env::consts::ARCH);
    }
    Ok(())
}

/// Whether the running kernel is of this release of Linux or a newer one. What is not understood is taken for old.
pub(crate) fn kernel_is_since(wanted: (u32, u32)) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    version(&release).is_some_and(|version| version >= wanted)
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The effective capabilities of the process with this `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether a set holds a capability, on its own or within CAP_SYS_ADMIN.
fn holds(set: u64, bit: u32) -> bool {
    set & (1 << bit) != 0 || (bit >= CONTAINED && set & (1 << WANTED.1) != 0)
}

/// Names of the capabilities that the tracer needs and the process with this `/proc/PID/status` lacks.
fn missing_capabilities(status: &str) -> Option<Vec<&'static str>> {
    let effective = effective(status)?;
    Some(NEEDED.iter().filter(|(_, bit)| !holds(effective, *bit)).map(|(name, _)| *name).collect())
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

/// What to say when the program of one tracepoint or function does not load or attach.
pub(crate) fn explain_hook(target: &str, error: &ProgramError) -> anyhow::Error {
    if let ProgramError::Btf(_) = error {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        return anyhow!("kernel {release} has no `{target}` to trace (Linux 6.3 or newer has all of mode tp_btf)");
    }
    let text = one_line(&chain(error));
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        return anyhow!(
            "the kernel refuses to trace `{target}` ({text}): look at lockdown (/sys/kernel/security/lockdown), and in a container allow CAP_BPF and CAP_PERFMON"
        );
    }
    anyhow!("cannot trace `{target}`: {text}")
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
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-49-cloud-amd64"), Some((6, 1)));
        assert!(version("5.10.0").is_some_and(|version| version < (6, 1)));
        assert!(version("6.18.44-fc").is_some_and(|version| version > (6, 4)));
        assert_eq!((version("six"), version("")), (None, None));
    }

    #[test]
    fn no_text_makes_it_panic() {
        crate::mutations::each(b"6.18.44-fc amd64", 5000, |bytes| {
            let _version = version(&String::from_utf8_lossy(bytes));
        });
        crate::mutations::each(b"Name:\tx\nCapEff:\t000001bfffdfffff\n", 5000, |bytes| {
            let missing = missing_capabilities(&String::from_utf8_lossy(bytes));
            assert!(missing.is_none_or(|missing| missing.len() <= NEEDED.len()));
        });
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(vec![]));
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n").map(|missing| missing.len()), Some(5));
        assert_eq!(missing_capabilities("CapEff:\t000001bfffdfffff\n"), Some(vec!["CAP_PERFMON"]));
        assert_eq!(missing_capabilities("CapEff:\t0000000000280004\n"), Some(vec![]), "CAP_SYS_ADMIN contains three of them");
        assert_eq!(missing_capabilities("Name:\tx\n"), None);
    }
}
