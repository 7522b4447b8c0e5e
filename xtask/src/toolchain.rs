//! The compiler and linker that make the kernel programs: which of two kinds this machine has, and how to call them.
//!
//! - *Debian's* `rustc-web` brings `core` for `bpfel-unknown-none` ready-made; it lives beside a rustup toolchain and
//!   needs no network once installed. `RUSTC_BOOTSTRAP=1` opens the unstable features that aya-ebpf wants.
//! - *rustup's nightly* with the `rust-src` component builds `core` itself (`-Z build-std=core`).
//!
//! Both link with `bpf-linker`, whose LLVM must be at least as new as the compiler's: [`Toolchain::links`] proves it
//! by linking a small program, since no version number tells for sure.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::run;

/// The target triple of the kernel programs.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";
/// Debian's compiler. Fixed: the first `rustc` on PATH is usually rustup's.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Enough for any single compiler call of this module, on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A kernel program that does nothing, to see whether compiler and linker understand each other.
const TRIAL: &str = r#"#![no_std]
#![no_main]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub extern "C" fn trial() -> u32 { 0 }
"#;

/// A compiler that can make kernel programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// Debian's `rustc-web` with `libstd-rust-web-dev-bpf`.
    Debian,
    /// rustup's nightly with `rust-src`.
    Nightly,
}

impl Toolchain {
    /// The toolchain of this machine, Debian's first; `None` where neither is complete.
    pub(crate) fn find() -> Option<Self> {
        [Self::Debian, Self::Nightly].into_iter().find(Self::is_complete)
    }

    fn is_complete(&self) -> bool {
        match self {
            Self::Debian => target_libdir().is_ok_and(|directory| holds_core(&directory)),
            Self::Nightly => {
                let mut rustc = Command::new("rustc");
                rustc.args(["+nightly", "--print", "sysroot"]);
                let sysroot = run::capture_success(&mut rustc, DEADLINE).map(|output| PathBuf::from(output.stdout.trim()));
                sysroot.is_ok_and(|root| root.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
            }
        }
    }

    /// A `cargo` command that builds for [`BPF_TARGET`] with this toolchain and `linker`.
    pub(crate) fn cargo(&self, linker: &Path, subcommand: &str) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut command = Command::new(paths::cargo());
                command.arg(subcommand).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly => {
                // rustup's proxy picks the toolchain from `+nightly`; our own cargo is no proxy.
                let mut command = Command::new("cargo");
                command.args(["+nightly", subcommand, "-Zbuild-std=core"]).env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
                command
            }
        };
        // Flags of the host (CARGO_ENCODED_RUSTFLAGS wins over RUSTFLAGS) must not reach the BPF target.
        let flags = [
            format!("-Clinker={}", linker.display()),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        ];
        command.args(["--target", BPF_TARGET]).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        command.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER").current_dir(paths::workspace());
        command
    }

    /// Whether `linker` runs and links what this compiler emits.
    ///
    /// # Errors
    /// The words of the tool that failed.
    pub(crate) fn links(&self, linker: &Path) -> Result<()> {
        run::capture_success(Command::new(linker).arg("--version"), DEADLINE)?;
        if *self == Self::Nightly {
            return Ok(()); // its core is only built with the real programs
        }
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let source = directory.path().join("trial.rs");
        std::fs::write(&source, TRIAL)?;
        let mut rustc = Command::new(DEBIAN_RUSTC);
        rustc.args(["--edition=2024", "--crate-type=bin", "-Copt-level=3", "-Cdebuginfo=2", "-Cpanic=abort", "-Clink-arg=--btf"]);
        rustc
            .args(["--target", BPF_TARGET])
            .arg(format!("-Clinker={}", linker.display()))
            .arg("-o")
            .arg(directory.path().join("trial"));
        run::capture_success(rustc.arg(&source).env("RUSTC_BOOTSTRAP", "1"), DEADLINE)?;
        Ok(())
    }
}

/// The `bpf-linker` of this machine, if it has one.
pub(crate) fn find_linker() -> Option<PathBuf> {
    paths::find_program("bpf-linker")
}

/// Compiler and linker, both present and fitting.
///
/// # Errors
/// Says what is missing; `cargo xtask setup` is the remedy.
pub(crate) fn complete() -> Result<(Toolchain, PathBuf)> {
    let Some(toolchain) = Toolchain::find() else {
        bail!("no Rust compiler for {BPF_TARGET}: run `cargo xtask setup`");
    };
    let linker = find_linker().context("no bpf-linker on PATH: run `cargo xtask setup`")?;
    toolchain.links(&linker).context("bpf-linker does not fit the compiler: run `cargo xtask setup`")?;
    Ok((toolchain, linker))
}

fn target_libdir() -> Result<PathBuf> {
    let mut rustc = Command::new(DEBIAN_RUSTC);
    let output = run::capture_success(rustc.args(["--print", "target-libdir", "--target", BPF_TARGET]), DEADLINE)?;
    Ok(PathBuf::from(output.stdout.trim()))
}

fn holds_core(directory: &Path) -> bool {
    let names = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    names.map(|entry| entry.file_name()).any(|name| {
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}
