//! Measuring plain against preloaded: in one run, in turn, as ratios. Absolute times of two runs mean nothing on a shared
//! machine; the ratio of medians does, with the spread of the rounds beside it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::environment::without_library;
use crate::run;

/// Longest that one client may take for one round.
pub(crate) const ROUND_DEADLINE: Duration = Duration::from_secs(60);
/// Longest that a server may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// Rates of the rounds, plain and preloaded, in the order they were measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Comparison {
    /// What was measured.
    pub name: String,
    /// What the rates count per second.
    pub unit: &'static str,
    /// Rates without the library.
    pub plain: Vec<f64>,
    /// Rates with it.
    pub preloaded: Vec<f64>,
}

impl Comparison {
    /// Measures `rounds` times plain and preloaded in turn.
    ///
    /// # Errors
    /// The first round that failed.
    pub(crate) fn measure(name: &str, unit: &'static str, rounds: usize, mut one: impl FnMut(bool) -> Result<f64>) -> Result<Self> {
        let mut comparison = Self { name: name.to_owned(), unit, ..Self::default() };
        for _ in 0..rounds {
            comparison.plain.push(one(false).with_context(|| format!("{name}, plain"))?);
            comparison.preloaded.push(one(true).with_context(|| format!("{name}, preloaded"))?);
        }
        Ok(comparison)
    }

    /// Median of the preloaded rates over the median of the plain ones.
    pub(crate) fn ratio(&self) -> f64 {
        median(&self.preloaded) / median(&self.plain)
    }

    /// Least and greatest ratio of any round.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let ratios = self.plain.iter().zip(&self.preloaded).map(|(plain, preloaded)| preloaded / plain);
        ratios.fold((f64::INFINITY, 0.0), |(least, most), ratio| (ratio.min(least), ratio.max(most)))
    }

    /// Nanoseconds that one operation takes longer with the library (negative: shorter), by the medians.
    pub(crate) fn extra_nanoseconds(&self) -> f64 {
        1e9 / median(&self.preloaded) - 1e9 / median(&self.plain)
    }

    /// Median of the plain rates.
    pub(crate) fn plain_median(&self) -> f64 {
        median(&self.plain)
    }

    /// Median of the preloaded rates.
    pub(crate) fn preloaded_median(&self) -> f64 {
        median(&self.preloaded)
    }
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2, middle.checked_sub(1).and_then(|before| sorted.get(before))) {
        (Some(upper), 0, Some(lower)) => f64::midpoint(*upper, *lower),
        (Some(only), ..) => *only,
        (None, ..) => f64::NAN,
    }
}

/// `cargo xtask workload` as a command, without any variable of the library.
pub(crate) fn workload(program: &str, socket: &Path, cpu: Option<usize>) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot name our own program")?);
    command.args(["workload", program, "--socket"]).arg(socket);
    if let Some(cpu) = cpu {
        command.args(["--cpu", &cpu.to_string()]);
    }
    without_library(&mut command);
    Ok(command)
}

/// A server that is killed by its id when it goes out of scope.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts a server and waits until its socket is there.
    ///
    /// # Errors
    /// It cannot be started, ends at once, or does not listen in time.
    pub(crate) fn server(mut command: Command, socket: &Path) -> Result<Self> {
        let text = run::shown(&command);
        let mut running = Self::start(&mut command)?;
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if running.child.try_wait()?.is_some() || start.elapsed() > START_DEADLINE {
                bail!("`{text}` does not listen on {}", socket.display());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(running)
    }

    /// Starts any program in the background, without input and output.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let text = run::shown(command);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self { child: command.spawn().with_context(|| format!("cannot start `{text}`"))? })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client that prints one number.
///
/// # Errors
/// It fails, hangs, or prints something else.
pub(crate) fn client(command: &mut Command) -> Result<f64> {
    let output = run::capture_success(command, ROUND_DEADLINE)?;
    output.stdout.trim().parse().with_context(|| format!("`{}` printed {:?}", run::shown(command), output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_that_of_the_medians() {
        let comparison = Comparison { plain: vec![1.0, 3.0, 2.0], preloaded: vec![8.0, 2.0, 4.0, 100.0], ..Comparison::default() };
        assert!((comparison.ratio() - 3.0).abs() < 1e-9);
        assert!((comparison.spread().0 - 2.0 / 3.0).abs() < 1e-9);
        assert!((comparison.spread().1 - 8.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
