//! Inside the virtual machine: what the kernel starts as its first process.
//!
//! It mounts what the programs expect, loads the one module that they need, runs the tests of [`transport`] and [`tracing`] one after the
//! other, each with a deadline, says on the console how each ended ([`super::lines`]), and switches the machine off. It never returns: a
//! first process that ends is a kernel panic, which the host would notice too.

pub(super) mod peers;
mod tracing;
mod transport;

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::sync;

use super::lines::Line;

/// Ourselves, in the guest.
pub(super) const INIT: &str = "/init";
/// The tracer, in the guest.
pub(super) const TRACE: &str = "/bin/tssx-trace";
/// The behaviour tests, in the guest.
pub(super) const BEHAVIOUR: &str = "/bin/behaviour";
/// The library, in the guest.
pub(super) const LIBRARY: &str = "/lib/libtssx_preload.so";
/// The kernel's module, in the guest.
pub(super) const MODULE: &str = "/lib/modules/unix_diag.ko";
/// Where which file system is mounted.
pub(super) const MOUNTS: [(&str, &str); 8] = [
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/sys/kernel/tracing", "tracefs"),
    ("/sys/fs/bpf", "bpf"),
    ("/dev", "devtmpfs"),
    ("/dev/shm", "tmpfs"),
    ("/tmp", "tmpfs"),
    ("/run", "tmpfs"),
];
/// Longest that one test may take.
const TEST_DEADLINE: Duration = Duration::from_secs(60);

/// A test: its name, and what it does.
struct Test {
    name: String,
    body: Box<dyn Fn() -> Result<()>>,
}

impl Test {
    fn new(name: impl Into<String>, body: impl Fn() -> Result<()> + 'static) -> Self {
        Self { name: name.into(), body: Box::new(body) }
    }

    /// Runs it and tells how it ended.
    fn run(&self) {
        say(&Line::Begin(self.name.clone()));
        let start = Instant::now();
        let result = (self.body)();
        if let Err(error) = &result {
            println!("{error:#}");
        }
        reap();
        say(&Line::End(self.name.clone(), result.is_ok(), start.elapsed()));
    }
}

/// Runs the tests as the first process of the virtual machine, and switches it off.
///
/// # Errors
/// We are no first process, and there is nothing to switch off.
pub(crate) fn init() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "vm-guest is what `cargo xtask vm-test` starts in its virtual machine, and does nothing elsewhere"
    );
    let setup = Test::new("guest::is-set-up", set_up);
    setup.run();
    let mut count = 1;
    for test in transport::tests().into_iter().chain(tracing::tests()) {
        test.run();
        count += 1;
    }
    say(&Line::All(count));
    sync();
    reboot(RebootMode::RB_POWER_OFF).context("cannot switch off")?;
    Ok(())
}

/// Writes a line at once: the console is the only way out.
fn say(line: &Line) {
    let mut out = std::io::stdout().lock();
    // Without a console there is nobody to tell; the host misses the line.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn set_up() -> Result<()> {
    for (place, kind) in MOUNTS {
        std::fs::create_dir_all(place).with_context(|| format!("making {place}"))?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {kind} on {place}"))?;
    }
    let module = File::open(MODULE).with_context(|| format!("opening {MODULE}"))?;
    finit_module(&module, c"", ModuleInitFlags::empty()).with_context(|| format!("loading {MODULE}"))
}

/// Takes the exit codes of processes whose parents are gone: they are ours now.
fn reap() {
    while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
}
