//! `tssx-trace`: finds the Unix sockets worth accelerating and proves afterwards that they are.
//!
//! One `discover`, from the command line to the table: [`cli`] reads the arguments, [`commands`] picks the file of the
//! subcommand, [`watch`] runs one window. In it [`probe`] loads and attaches the kernel programs (after [`preflight`]
//! has looked for what is missing), [`inventory`] lists the host's sockets, [`ledgers`] reads the preload library's
//! statistics and [`processes`] looks at who holds what. [`join`] puts the four together by socket cookie; the
//! subcommand turns that into a [`recording`], and the recording into a [`report`] of what its [`filter`] admits, for the
//! [`screen`] or for programs. `suggest`, and `discover --from`, start from the recording alone.
//!
//! Architecture invariant: only `probe` and `preflight` know aya, only `ledgers` maps foreign memory, only
//! `commands` prints results.

mod cli;
mod commands;
mod env_file;
mod filter;
mod hit_rate;
mod identity;
mod inventory;
mod join;
mod ledger_scan;
mod ledgers;
mod library;
mod losses;
mod names;
mod output;
mod preflight;
mod probe;
mod processes;
mod recording;
mod report;
mod screen;
mod watch;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match &cli.command {
        cli::Command::Discover(args) => commands::discover::run(args),
        cli::Command::Suggest(args) => commands::suggest::run(args),
        cli::Command::Run(args) => commands::run::run(args),
        cli::Command::Verify(args) => commands::verify::run(args),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::from(cli::exit::FAILED)
        }
    }
}
