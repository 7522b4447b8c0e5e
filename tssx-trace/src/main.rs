//! `tssx-trace`: finds the Unix sockets worth accelerating and proves afterwards that they are.
//!
//! One `discover`, from the command line to the table: [`cli`] reads the arguments, [`commands`] picks the file of the
//! subcommand, [`watch`] runs one window and shows its [`progress`]. In it [`probe`] loads and attaches the kernel programs of the best [`mode`] that works
//! (after [`preflight`] has looked for what is missing, at offsets from [`kernel_types`], those of names by [`shape`]),
//! [`inventory`] lists the host's sockets with [`unix_diag`], [`ledgers`] reads the preload library's statistics and [`processes`] looks at who holds what,
//! by [`identity`] and [`container`] whose it is and where it runs, and by [`facts`] what its program can do. [`join`] puts the four together by socket cookie, [`pairs`] says whether a connection's
//! bytes balance and [`places`], with [`mounts`], where a socket file lies; the subcommand turns that into a [`recording`], and the recording into a
//! [`report`] of what its [`filter`] admits, for the [`screen`] or for programs; [`top`] shows recordings of a window that goes on. `suggest`, and `discover --from`, start from
//! the recording alone: [`advice`] judges each socket, and a [`proposal`] is what is selected of them, in each format;
//! an [`explanation`] shows one socket's two ends side by side. [`calibration`] is what
//! `bench` measures, and [`gain`] what a recording comes to by it; [`export`] keeps what a window without end sees as metrics; the [`selftest`] is `doctor`'s proof that the library works here.
//! What `verify` and `doctor` found is a document too ([`verification`], [`diagnosis`]), which can be [`kept`] and printed again.
//!
//! Architecture invariant: only `probe`, `preflight` and `capabilities` know aya, only `ledgers` maps foreign memory, only
//! `commands` prints results.

mod advice;
mod bypass;
mod calibration;
mod capabilities;
mod cli;
mod commands;
mod container;
mod cost;
mod diagnosis;
mod env_file;
mod evidence;
mod explanation;
mod export;
mod facts;
mod filter;
mod foreign;
mod gain;
mod hit_rate;
mod identity;
mod inventory;
mod join;
mod kept;
mod kernel_types;
mod ledger_scan;
mod ledgers;
mod library;
mod losses;
mod mode;
mod mounts;
#[cfg(test)]
#[path = "../../tssx-core/src/mutations.rs"]
mod mutations;
mod names;
mod output;
mod pairs;
mod places;
mod preflight;
mod privileges;
mod probe;
mod processes;
mod progress;
mod proposal;
mod recording;
mod report;
mod screen;
mod selftest;
mod shape;
#[cfg(test)]
mod snapshots;
mod top;
mod unix_diag;
mod verification;
mod watch;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match &cli.command {
        cli::Command::Discover(args) => commands::discover::run(args),
        cli::Command::Suggest(args) => commands::suggest::run(args),
        cli::Command::Export(args) => commands::export::run(args),
        cli::Command::Run(args) => commands::run::run(args),
        cli::Command::Verify(args) => commands::verify::run(args),
        cli::Command::Top(args) => commands::top::run(args),
        cli::Command::Explain(args) => commands::explain::run(args),
        cli::Command::Doctor(args) => commands::doctor::run(args),
        cli::Command::Bench(args) => commands::bench::run(args),
        cli::Command::Man(args) => commands::manual::man(args),
        cli::Command::Completions(args) => commands::manual::completions(args),
        cli::Command::BenchEnd(args) => commands::bench::end(args),
        cli::Command::SelfTestEnd(args) => commands::doctor::end(args),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::from(cli::exit::FAILED)
        }
    }
}
