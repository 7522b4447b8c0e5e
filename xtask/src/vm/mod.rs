//! `cargo xtask vm-test`: the library and the tracer on an older kernel, Debian's 6.1, in an emulated machine.
//!
//! On the host: [`kernel`] fetches the kernel, [`image`] puts our programs into its first file system ([`cpio`]), [`machine`] boots QEMU
//! and listens to its console. In the guest: [`guest`] is the first process, and runs the tests. Between them [`lines`] is what is said.
//! QEMU emulates the processor: it needs no privilege and no virtualisation, and is some twenty times slower than the host.

mod cpio;
mod guest;
mod image;
mod kernel;
mod lines;
mod machine;

use anyhow::{Result, bail};

use crate::build::Artefacts;
use crate::{build, paths, setup};
pub(crate) use guest::init;
pub(crate) use guest::peers::{Options as PeerOptions, play as peer};
pub(crate) use machine::QEMU as EMULATOR;

/// How many of the guest's tests passed, and what failed, each with its own words.
pub(crate) struct Outcome {
    /// How many passed.
    pub passed: usize,
    /// What failed.
    pub failures: Vec<String>,
}

/// Runs the tests in the virtual machine, after installing and building what they need.
///
/// # Errors
/// Something failed.
pub(crate) fn vm_test() -> Result<()> {
    setup::setup()?;
    let outcome = run(&build::build()?)?;
    for failure in &outcome.failures {
        println!("failed: {failure}");
    }
    println!("{} passed, {} failed in the virtual machine", outcome.passed, outcome.failures.len());
    if !outcome.failures.is_empty() {
        bail!("{} tests failed in the virtual machine", outcome.failures.len());
    }
    Ok(())
}

/// Fetches the guest's kernel if it is not there.
///
/// # Errors
/// It cannot be fetched.
pub(crate) fn fetch() -> Result<()> {
    kernel::fetch().map(drop)
}

/// Runs the tests with what was built.
///
/// # Errors
/// The machine cannot be made or started; what fails inside is in the outcome.
pub(crate) fn run(artefacts: &Artefacts) -> Result<Outcome> {
    let kernel = kernel::fetch()?;
    let place = paths::target().join("vm");
    let (image, log) = (place.join("initramfs.cpio"), place.join("console.log"));
    image::write(&image, artefacts, &kernel)?;
    let story = machine::boot(&kernel, &image, &log)?;
    println!("vm: the whole console is in {}", log.display());
    let mut failures: Vec<String> =
        story.failed.into_iter().map(|(name, said)| format!("in the virtual machine: {name}\n{said}")).collect();
    failures.extend(story.broken);
    Ok(Outcome { passed: story.passed.len(), failures })
}
