//! `cargo xtask setup`: what a fresh Debian machine with only Rust lacks, each thing with the reason why.
//!
//! A requirement is met when its tool runs, not when a package database says so; what is met is left alone, so
//! the command is quick the second time. On Debian the missing packages are installed with one `apt-get install`
//! (through sudo when we are not root); elsewhere the command says what to install and fails. No service is
//! installed: redis comes from `redis-tools`, whose `redis-check-rdb` is the server's own binary, and what else the
//! tests serve with or boot is only unpacked (see [`crate::servers`] and [`crate::vm`]).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::paths;
use crate::run;
use crate::toolchain::{self, Toolchain};
use crate::vm;

/// Longest that `apt-get` may take on a slow link.
const APT_DEADLINE: Duration = Duration::from_secs(900);
/// Longest that building bpf-linker may take on a small machine.
const LINKER_DEADLINE: Duration = Duration::from_secs(1200);
/// Longest that a tool may take to print its version.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);
/// Version of bpf-linker that knows LLVM 22.
const LINKER_VERSION: &str = "0.13.0";
/// Where Debian puts LLVM 22; bpf-linker's build looks elsewhere unless told.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// What the other way of building kernel programs needs, for machines that are not Debian.
const RUSTUP_ROUTE: &str = "rustup toolchain install nightly --component rust-src\n  cargo install bpf-linker";

/// One thing the machine must have.
struct Requirement {
    /// What it is, as a person would say it.
    what: &'static str,
    /// Why we need it.
    why: &'static str,
    /// Debian's packages that bring it.
    packages: &'static [&'static str],
    /// Whether the machine has it, found by running it.
    met: fn() -> bool,
}

/// Everything that Debian's packages bring.
const REQUIREMENTS: [Requirement; 10] = [
    Requirement {
        what: "a Rust compiler with core for the BPF target",
        why: "the kernel programs in tssx-ebpf are Rust",
        packages: &["rustc-web", "libstd-rust-web-dev-bpf"],
        met: || Toolchain::find().is_some(),
    },
    Requirement {
        what: "LLVM 22's development files",
        why: "bpf-linker is built against the LLVM of that compiler",
        packages: &["llvm-22-dev", "g++", "libzstd-dev", "zlib1g-dev"],
        met: || linker_fits() || Path::new(LLVM_PREFIX).join("bin/llvm-config").is_file(),
    },
    Requirement {
        what: "redis-server, redis-cli and redis-benchmark",
        why: "the tests drive a real server over a Unix socket",
        packages: &["redis-tools"],
        met: || runs("redis-benchmark", "--version") && runs("redis-cli", "--version") && redis_server_runs(),
    },
    Requirement {
        what: "musl-gcc",
        why: "the tests prove that the library does not disturb a musl program",
        packages: &["musl-tools"],
        met: || paths::find_program("musl-gcc").is_some_and(|_| Path::new("/lib/ld-musl-x86_64.so.1").exists()),
    },
    Requirement {
        what: "python3",
        why: "Python's socket, selectors and asyncio are among the tested programs",
        packages: &["python3"],
        met: || runs("python3", "--version"),
    },
    Requirement {
        what: "CPython's own tests",
        why: "its tests of sockets, selectors and asyncio must end the same with the library",
        // apt-get takes a regular expression: the version is in the name.
        packages: &["^libpython3[.][0-9]+-testsuite$"],
        met: || ["/usr/bin/python3", "python3"].into_iter().any(carries_its_tests),
    },
    Requirement {
        what: "gcc and binutils",
        why: "the tests compile small C programs and read the library's symbols",
        packages: &["gcc", "libc6-dev", "binutils"],
        met: || runs("gcc", "--version") && runs("readelf", "--version"),
    },
    Requirement {
        what: "QEMU for x86-64",
        why: "the library and the tracer are tested on an older kernel, in an emulated machine",
        packages: &["qemu-system-x86"],
        met: || runs(vm::EMULATOR, "--version"),
    },
    Requirement {
        what: "man",
        why: "the package's man pages are looked up by it",
        packages: &["man-db"],
        met: || runs("man", "--version"),
    },
    Requirement {
        what: "bzip2 and xz",
        why: "the sources with PostgreSQL's own tests are packed by them",
        packages: &["bzip2", "xz-utils"],
        met: || ["bzip2", "xz"].into_iter().all(|program| paths::find_program(program).is_some()),
    },
];

/// Brings the machine up to what `build` and `test` need.
///
/// # Errors
/// Where something is missing that cannot be installed: the message says what, and how a person can.
pub(crate) fn setup() -> Result<()> {
    install_packages()?;
    install_linker()?;
    install_components()?;
    println!("setup: this machine has all that build and test need");
    Ok(())
}

fn install_packages() -> Result<()> {
    let mut missing: Vec<&str> = Vec::new();
    for requirement in &REQUIREMENTS {
        if (requirement.met)() {
            println!("setup: found {}", requirement.what);
        } else {
            println!("setup: missing {} ({}): Debian's {}", requirement.what, requirement.why, requirement.packages.join(" "));
            missing.extend(requirement.packages);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if paths::find_program("apt-get").is_none() {
        bail!(
            "this is no Debian: install what provides {} by hand.\nFor the kernel programs rustup serves as well:\n  {RUSTUP_ROUTE}",
            missing.join(" ")
        );
    }
    println!("setup: installing {} (about 1.2 GB when all are new)", missing.join(" "));
    run::run(&mut apt(&["update"])?, APT_DEADLINE)?;
    let mut install = apt(&["install", "--yes", "--no-install-recommends"])?;
    run::run(install.args(&missing), APT_DEADLINE)
        .with_context(|| format!("install {} by hand, or for the kernel programs:\n  {RUSTUP_ROUTE}", missing.join(" ")))?;
    let unmet: Vec<_> =
        REQUIREMENTS.iter().filter(|requirement| !(requirement.met)()).map(|requirement| requirement.what).collect();
    if !unmet.is_empty() {
        bail!("installed, but still not working: {}", unmet.join("; "));
    }
    Ok(())
}

/// `apt-get` with `arguments`, through sudo unless we are root; it never asks and waits for another apt to finish.
fn apt(arguments: &[&str]) -> Result<Command> {
    let mut command = if geteuid().is_root() {
        Command::new("env")
    } else if paths::find_program("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    } else {
        bail!("installing packages needs root, and there is no sudo: run `cargo xtask setup` as root once");
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    Ok(command)
}

fn install_linker() -> Result<()> {
    if linker_fits() {
        println!("setup: found bpf-linker, and it links what the compiler makes");
        return Ok(());
    }
    println!("setup: building bpf-linker {LINKER_VERSION} (it links the kernel programs; about a minute)");
    let mut install = Command::new(paths::cargo());
    install.args(["install", "--locked", "--force", &format!("bpf-linker@{LINKER_VERSION}")]);
    if Toolchain::find() == Some(Toolchain::Debian) {
        install.args(["--no-default-features", "--features", "llvm-22"]).env("LLVM_PREFIX", LLVM_PREFIX);
    }
    // The tool is a build of its own: our flags and our target directory are not meant for it.
    install
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(std::env::temp_dir());
    run::run(&mut install, LINKER_DEADLINE)?;
    toolchain::complete().map(|_| ())
}

fn linker_fits() -> bool {
    toolchain::complete().is_ok()
}

fn install_components() -> Result<()> {
    for (component, program) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let mut probe = Command::new(paths::cargo());
        if run::capture_success(probe.args([program, "--version"]), PROBE_DEADLINE).is_ok() {
            continue;
        }
        println!("setup: missing cargo {program} (check runs it)");
        if paths::find_program("rustup").is_none() {
            bail!("install `cargo {program}` by hand: there is no rustup to add the component {component}");
        }
        run::run(Command::new("rustup").args(["component", "add", component]), APT_DEADLINE)?;
    }
    Ok(())
}

fn runs(program: &str, argument: &str) -> bool {
    run::capture_success(Command::new(program).arg(argument), PROBE_DEADLINE).is_ok()
}

/// CPython's tests are a package of their own, in pyenv's Pythons a part.
fn carries_its_tests(python: &str) -> bool {
    let mut command = Command::new(python);
    run::capture_success(command.args(["-c", "import test.test_socket, test.test_asyncio"]), PROBE_DEADLINE).is_ok()
}

/// Debian builds one binary that is the server or a checker by the name it is called by.
fn redis_server_runs() -> bool {
    runs("redis-server", "--version") || paths::find_program("redis-check-rdb").is_some()
}
