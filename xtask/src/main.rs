//! Every command that a developer types: `cargo xtask setup | build | check | test`.
//!
//! This file only dispatches; each subcommand is one module that opens with what it does and why. Read
//! [`setup`] first (what the machine needs), then [`build`] (how the three artefacts are made), then [`test`].

mod build;
mod check;
mod paths;
mod run;
mod setup;
mod test;
mod tidy;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, build, test and measure TSSX.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this machine lacks for building and testing; says what it does and why
    Setup,
    /// Build the kernel programs, libtssx_preload.so and tssx-trace
    Build,
    /// Formatting, clippy, and the rules of this repository (layers, sizes, unsafe list, documents in step)
    Check,
    /// Everything: check, unit tests, behaviour tests with and without the library, redis, kernel programs
    Test,
}

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Setup => setup::setup(),
        Command::Build => build::build().map(|artefacts| println!("{artefacts}")),
        Command::Check => check::check(),
        Command::Test => test::test(),
    }
}
