//! `cargo xtask differential`: random programs of socket operations, plain and with the library, for as long as one likes.
//!
//! `cargo xtask test` plays the same programs with fewer of them and one seed. The report names the seed, how many were played, and how many bytes went through rings; a
//! program that differs is shrunk and written to a file whose name is printed, ready for `tssx-preload/tests/differential/kept`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::{build, paths, run};

/// Longest that a long run may take.
const DEADLINE: Duration = Duration::from_secs(12 * 3600);

/// Options of `differential`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many programs
    #[arg(long, default_value_t = 200_000)]
    programs: u64,
    /// Which programs: the same number gives the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first program, to play one of a report again
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Kinds of difference after which to stop
    #[arg(long, default_value_t = 40)]
    differences: u64,
    /// A library that is built already
    #[arg(long)]
    library: Option<PathBuf>,
}

/// Builds the library unless one is named, and plays.
///
/// # Errors
/// A program differs, or the build fails.
pub(crate) fn differential(options: &Options) -> Result<()> {
    let library = match &options.library {
        Some(library) => std::path::absolute(library)?,
        None => build::preload()?,
    };
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["test", "--package", "xtask", "--test", "differential", "--", "--nocapture"]).current_dir(paths::workspace());
    cargo.env("TSSX_PRELOAD", library);
    for (name, value) in [
        ("TSSX_PROGRAMS", options.programs),
        ("TSSX_SEED", options.seed),
        ("TSSX_FIRST", options.first),
        ("TSSX_DIFFERENCES", options.differences),
    ] {
        cargo.env(name, value.to_string());
    }
    run::run(&mut cargo, DEADLINE)
}
