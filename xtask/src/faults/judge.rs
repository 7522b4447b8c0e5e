//! What a fault may do to the programs.

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;

use super::exceptions;
use super::scenario::{BEGINNING, Report};
use super::tracer::{Fault, Run, When};

/// Errors that say that the other end is gone.
const GONE: [i32; 4] = [Errno::EPIPE as i32, Errno::ECONNRESET as i32, Errno::ENOTCONN as i32, Errno::ECONNREFUSED as i32];

/// Nothing may be noticed.
///
/// # Errors
/// What was.
pub(super) fn without_fault(run: &Run, reports: &[Report]) -> Result<()> {
    ended(run, reports)?;
    for report in reports {
        ensure!(report.failures.is_empty() && !report.gave_up && !report.early, "{report:?}");
    }
    Ok(())
}

/// The library's own call: nothing may be noticed. The program's: it is told that error and no other, and may be refused for ever if that goes on.
///
/// # Errors
/// What should not have been noticed.
pub(super) fn with_fault(run: &Run, reports: &[Report], fault: &Fault) -> Result<()> {
    ended(run, reports)?;
    let told = if fault.when.is_of_memory() {
        run.failed.iter().any(|site| exceptions::is_programs(site) || exceptions::answer(site).is_some())
    } else {
        exceptions::is_programs(&fault.site)
            || fault.when == When::Everywhere && fault.errno != Errno::EINVAL && is_asked(fault.number)
    };
    let answer = exceptions::answer(&fault.site).filter(|_| !fault.when.is_of_memory());
    let of_image = fault.when.is_of_memory() || exceptions::is_needed_to_begin(&fault.site, fault.number);
    let gave_up = reports.iter().any(|report| report.gave_up);
    for report in reports {
        let excused = |errno: i32| answer.is_some_and(|answer| answer.errno as i32 == errno);
        let early = report.early && !report.failures.iter().any(|(_, errno)| excused(*errno));
        ensure!(!early || gave_up, "the connection of {} ended early: {report:?}", report.who);
        for (call, errno) in &report.failures {
            let name = Errno::from_raw(*errno);
            if gave_up && GONE.contains(errno) {
                continue;
            }
            if excused(*errno) {
                continue;
            }
            // Another image that cannot have what is left in a ring does not begin.
            if of_image && *errno == Errno::ENOMEM as i32 && is_of_exec(call) {
                continue;
            }
            ensure!(told, "{}'s {call} failed with {name:?}", report.who);
            ensure!(*errno == fault.errno as i32, "{}'s {call} failed with {name:?} instead", report.who);
        }
    }
    let has_no_image = of_image && failures(reports).any(is_of_exec);
    ensure!(!gave_up || told || answer.is_some() || has_no_image, "a program was refused for ever");
    Ok(())
}

fn failures(reports: &[Report]) -> impl Iterator<Item = &str> {
    reports.iter().flat_map(|report| &report.failures).map(|(call, _)| call.as_str())
}

fn is_of_exec(call: &str) -> bool {
    matches!(call, "execv" | BEGINNING)
}

/// Whether a refusal of this system call everywhere also refuses what the library calls in the program's place.
fn is_asked(number: u64) -> bool {
    [libc::SYS_dup, libc::SYS_dup3, libc::SYS_fcntl, libc::SYS_fstat, libc::SYS_recvmsg, libc::SYS_recvfrom, libc::SYS_ppoll]
        .iter()
        .any(|asked| asked.cast_unsigned() == number)
}

/// No hang, no crash, nothing wrong.
fn ended(run: &Run, reports: &[Report]) -> Result<()> {
    ensure!(!run.hung, "it hung: {}; {}", run.stuck.join("; "), told(reports));
    let gave_up = reports.iter().any(|report| report.gave_up);
    // A program that writes to one that has given up.
    let allowed = |signal: &Signal| gave_up && *signal == Signal::SIGPIPE;
    ensure!(run.killed.iter().all(allowed), "killed by {:?}; {}", run.killed, told(reports));
    for report in reports {
        if let Some(wrong) = &report.wrong {
            bail!("{}: {wrong}; failures {:?}", report.who, report.failures);
        }
    }
    ensure!(run.status == Some(0), "it ended by {:?}", run.status);
    ensure!(reports.iter().any(|report| report.who == "server"), "it has said nothing");
    ensure!(
        gave_up || reports.iter().any(|report| matches!(report.who.as_str(), "client" | "image")),
        "the client has said nothing"
    );
    Ok(())
}

fn told(reports: &[Report]) -> String {
    format!("{reports:?}")
}
