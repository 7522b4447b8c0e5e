//! Every command that a developer types: `cargo xtask setup | build | check | test | differential | bench | exchange | kills | hostile | faults | soak | mutants | sanitize | miri | recipes | vm-test | package | demo`.
//!
//! This file only dispatches; each subcommand is one module that opens with what it does and why. Read
//! [`setup`] first (what the machine needs), then [`build`] (how the three artefacts are made), then [`test`].
//! [`workload`] is what [`bench`] and [`demo`] start as separate processes, plain and with the library.

mod archive;
mod bench;
mod build;
mod census;
mod check;
mod comparison;
mod demo;
mod differential;
mod environment;
mod exchange;
#[cfg(target_arch = "x86_64")] // reads and writes registers
mod faults;
mod figures;
mod hostile;
mod kills;
mod measure;
mod miri;
mod mutants;
mod package;
mod paths;
mod recipes;
mod run;
mod sanitize;
mod servers;
mod setup;
mod soak;
mod systemd;
mod test;
mod tidy;
mod toolchain;
mod unpacked;
mod vm;
mod workload;

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
    /// Everything: check, unit tests, behaviour tests with and without the library, real servers, kernel programs
    Test,
    /// Ratios against the plain kernel socket, measured in turn in one run
    Bench(bench::Options),
    /// Random programs of socket operations, plain and with the library: the answers must be the same
    Differential(differential::Options),
    /// The whole chain on an echo workload: discover, suggest, preload, measure, verify
    Demo(demo::Options),
    /// Two processes exchange gigabytes with upgrades and demotions at random moments; fails on a wrong byte or a stall
    Exchange(exchange::Options),
    /// One of those two processes
    #[command(hide = true)]
    ExchangeEnd(exchange::EndOptions),
    /// Ends of connections are killed at random moments, while the others are blocked; fails on a lost byte or a hang
    Kills(kills::Options),
    /// The one of two that lives on
    #[command(hide = true)]
    KillsSurvivor(kills::EndOptions),
    /// The one of two that is killed
    #[command(hide = true)]
    KillsVictim(kills::EndOptions),
    /// A peer that is an enemy, and a victim under AddressSanitizer; fails if the victim crashes, hangs, loops or notices elsewhere
    Hostile(hostile::Options),
    /// The one that is attacked
    #[command(hide = true)]
    HostileVictim(hostile::EndOptions),
    /// One of which a call is to be kept going
    #[command(hide = true)]
    HostileBound(hostile::BoundOptions),
    /// One that the victim has an honest connection with
    #[command(hide = true)]
    HostileHonest(hostile::EndOptions),
    /// One of two processes of one user
    #[command(hide = true)]
    HostileFriend(hostile::EndOptions),
    /// A process of another user, who attacks these two
    #[command(hide = true)]
    HostileStranger(hostile::EndOptions),
    /// Every system call of the library fails in turn, at each call site, with each error it can give; the programs must not notice
    #[cfg(target_arch = "x86_64")]
    Faults(faults::Options),
    /// One of the programs to which that happens
    #[cfg(target_arch = "x86_64")]
    #[command(hide = true)]
    FaultsEnd(faults::EndOptions),
    /// The code that the model checks guard is broken, one place at a time, in a copy; fails if the models do not notice
    Mutants(mutants::Options),
    /// tssx-core's unit tests under ThreadSanitizer and AddressSanitizer
    Sanitize,
    /// tssx-core's unit tests that make no system call, interpreted by Miri
    Miri,
    /// A mixed load for a long time, every byte checked; fails on a wrong byte, a hang, or anything that grows
    Soak(soak::Options),
    /// One of its processes
    #[command(hide = true)]
    SoakEnd(soak::EndOptions),
    /// discover, suggest, verify against redis, PostgreSQL, memcached and nginx with php-fpm: the commands of README's recipes
    Recipes(recipes::Options),
    /// A Debian package with the library, the tracer, man pages, completions and examples
    Package(package::Options),
    /// The library and the tracer on Debian's 6.1 kernel, in an emulated machine
    VmTest,
    /// The first process of that machine
    #[command(hide = true)]
    VmGuest,
    /// A server or client that the tracer watches there
    #[command(hide = true)]
    VmPeer(vm::PeerOptions),
    /// The programs that bench and demo start
    #[command(hide = true)]
    Workload(workload::Options),
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
        Command::Setup => setup::setup().and_then(|()| servers::fetch()).and_then(|_| systemd::fetch()).and_then(|_| vm::fetch()),
        Command::Build => build::build().map(|artefacts| println!("{artefacts}")),
        Command::Check => check::check(),
        Command::Test => test::test(),
        Command::Bench(options) => bench::bench(&options),
        Command::Differential(options) => differential::differential(&options),
        Command::Demo(options) => demo::demo(&options),
        Command::Exchange(options) => exchange::exchange(&options),
        Command::ExchangeEnd(options) => exchange::end(&options),
        Command::Kills(options) => kills::kills(&options),
        Command::KillsSurvivor(options) => kills::survive(&options),
        Command::KillsVictim(options) => kills::die(&options),
        Command::Hostile(options) => hostile::hostile(&options),
        Command::HostileVictim(options) => hostile::suffer(&options),
        Command::HostileBound(options) => hostile::suffer_bound(&options),
        Command::HostileHonest(options) => hostile::honest(&options),
        Command::HostileFriend(options) => hostile::friend(&options),
        Command::HostileStranger(options) => hostile::stranger(&options),
        #[cfg(target_arch = "x86_64")]
        Command::Faults(options) => faults::faults(&options),
        #[cfg(target_arch = "x86_64")]
        Command::FaultsEnd(options) => faults::play(&options),
        Command::Mutants(options) => mutants::mutants(&options),
        Command::Sanitize => sanitize::sanitize(),
        Command::Miri => miri::interpret(),
        Command::Soak(options) => soak::soak(&options),
        Command::SoakEnd(options) => soak::end(&options),
        Command::Recipes(options) => recipes::recipes(&options),
        Command::Package(options) => package::package(&options),
        Command::VmTest => vm::vm_test(),
        Command::VmGuest => vm::init(),
        Command::VmPeer(options) => vm::peer(&options),
        Command::Workload(options) => workload::run(&options),
    }
}
