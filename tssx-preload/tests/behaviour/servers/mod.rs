//! Real servers: each serves plain, which is the oracle, and preloaded, and every answer is checked for what the request asked.
//!
//! Read [`place`] first: where the unpacked programs are, as whom they run and how they end. [`postgres`] forks a process
//! for each connection, and [`regress`] plays its own tests; [`php`] is nginx in front of php-fpm, two families of forked
//! processes; [`gunicorn`] serves HTTP from Python, asked by Python. `cargo xtask setup` fetches them all, and `TSSX_SERVERS`
//! names their folder.
//!
//! The runs are short. `TSSX_SERVER_SECONDS` (of each pgbench run) and `TSSX_SERVER_REQUESTS` (to each web server) make them longer.

mod gunicorn;
mod http;
mod php;
mod place;
mod postgres;
mod regress;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use crate::harness::DEADLINE;
use crate::ledger::Counted;
use crate::mode::Mode;
use crate::process::Process;
use place::Software;

/// Share of the bytes that must have gone through rings, where connections live long enough to pay for them.
const MIN_HIT_RATE: f64 = 0.99;

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    let software = Arc::new(Software::default());
    let kinds = [postgres::trials, regress::trials, php::trials, gunicorn::trials];
    kinds.into_iter().flat_map(|trials| trials(&software)).collect()
}

/// A number that a person may set by an environment variable.
fn asked_for(variable: &str, otherwise: u64) -> Result<u64, Failed> {
    match std::env::var(variable) {
        Ok(text) => text.parse().map_err(|error| format!("{variable}={text}: {error}: it must be a whole number").into()),
        Err(_) => Ok(otherwise),
    }
}

/// Bytes through rings divided by all bytes.
fn hit_rate(counted: &Counted) -> f64 {
    counted.ring_bytes as f64 / (counted.ring_bytes + counted.kernel_bytes).max(1) as f64
}

/// With the library at both ends bytes must have gone through rings, else none may.
fn accelerated_or_not(mode: Mode, counted: &Counted) -> Result<(), Failed> {
    match (mode.may_accelerate(), counted.ring_bytes) {
        (true, 0) => Err(format!("{mode:?}: not accelerated: {counted:?}").into()),
        (false, 1..) => Err(format!("{mode:?}: bytes in rings without a peer: {counted:?}").into()),
        _ => Ok(()),
    }
}

/// The tracer watches `socket` while the load runs: it must find the hit rate that is asked for. Returns its table.
fn verified(socket: &Path, watch: Duration) -> Result<String, Failed> {
    let trace = std::env::var_os("TSSX_TRACE").ok_or("TSSX_TRACE must name tssx-trace: run these tests by `cargo xtask test`")?;
    let mut verify = Command::new(trace);
    let (duration, rate) = (format!("{}ms", watch.as_millis()), MIN_HIT_RATE.to_string());
    verify.args(["verify", "--duration", &duration, "--min-hit-rate", &rate]).arg(socket);
    let ended = Process::start(&mut verify)?.finish(Instant::now() + watch + DEADLINE);
    if ended.code != Some(0) {
        return Err(format!("verify: {}", ended.all()).into());
    }
    Ok(ended.stdout)
}
