//! Giving up what only attaching needs: from then on a flaw in what reads other processes' data can do less.

use anyhow::Context;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What the tracer needs to the end: `/proc` and the ledgers of other users' processes, network namespaces that appear later, and, for
/// the recording, the right to write wherever whoever started it can.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SYS_ADMIN);

/// Gives up every capability of this thread, for good.
///
/// # Errors
/// As [`drop_all_but_reading`].
pub(crate) fn drop_all() -> anyhow::Result<()> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).context("cannot give up capabilities")
}

/// Gives up every other capability, for good. Maps that are open stay readable.
///
/// # Errors
/// Where the kernel refuses, which it does to nobody.
pub(crate) fn drop_all_but_reading() -> anyhow::Result<()> {
    let mut sets = capabilities(None).context("cannot look at the own capabilities")?;
    sets.effective &= KEPT;
    sets.permitted &= KEPT;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).context("cannot give up capabilities")
}
