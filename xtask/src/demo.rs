//! `cargo xtask demo`: the whole chain on an echo workload, every step as a person would type it.
//!
//! Echo server and client run plain; `tssx-trace discover` finds their socket; `tssx-trace suggest` proposes the
//! environment; both are started again with that environment, sourced by a shell; the speed-up against plain is measured in
//! the same run, in turn; `tssx-trace verify` proves that the bytes went through shared memory. A step that does not
//! hold what it promises ends the demo with an error.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::unistd::geteuid;
use serde_json::Value;

use crate::build::{self, Artefacts};
use crate::comparison::{Comparison, Row, measure};
use crate::measure::{Running, client, workload};
use crate::{paths, run, setup};

/// Longest that one command of the tracer may take.
const TRACE_DEADLINE: Duration = Duration::from_secs(60);
/// Longest that a background client runs; it is killed when its step is over.
const BACKGROUND_MILLISECONDS: &str = "60000";
/// Least hit rate that counts as accelerated.
const MIN_HIT_RATE: &str = "0.99";

/// Options of `demo`.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds of the measurement, plain and preloaded
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What the steps share.
struct Stage {
    artefacts: Artefacts,
    socket: PathBuf,
    recording: PathBuf,
    environment: PathBuf,
}

/// Runs the demo.
///
/// # Errors
/// The first step that failed.
pub(crate) fn demo(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    setup::setup()?;
    let artefacts = build::build()?;
    let directory = tempfile::tempdir()?;
    let place = |name: &str| directory.path().join(name);
    let stage = Stage { artefacts, socket: place("echo.sock"), recording: place("recording.json"), environment: place("tssx.env") };

    heading("1. An echo server and a client on a Unix socket, plain; the tracer comes later and finds them");
    let discovered = stage.discover()?;
    heading("2. What the recording suggests");
    let suggested = stage.suggest()?;
    heading("3. The same programs, started with that environment, against plain, in turn");
    let speed = stage.measure(options.rounds)?;
    heading("4. Are the bytes really going through shared memory?");
    let hit_rate = stage.verify()?;

    heading("Summary");
    println!("discovered   {discovered}");
    println!("suggested    {suggested}");
    let (least, most) = speed.spread();
    println!("speed-up     {:.2} times plain (rounds {least:.2} to {most:.2}), 64-byte round trips", speed.result());
    println!("verified     {:.2} % of the bytes went through shared memory", hit_rate * 100.0);
    ensure!(speed.result() > 1.0, "preloaded is not faster than plain");
    Ok(())
}

impl Stage {
    /// Starts the pair plain and lets the tracer find it. Returns the row of the table.
    fn discover(&self) -> Result<String> {
        let _pair = self.pair(false)?;
        let output = self.trace(true, |trace| trace.args(["discover", "--duration", "3s", "--record"]).arg(&self.recording))?;
        let socket = self.socket_text()?;
        let row = output.lines().find(|line| line.contains(&socket)).context("discover did not find the echo socket")?;
        Ok(row.split_whitespace().collect::<Vec<_>>().join("  "))
    }

    /// Writes the proposed environment to a file. Returns its line about sockets.
    fn suggest(&self) -> Result<String> {
        let output = self.trace(false, |trace| trace.arg("suggest").arg("--from").arg(&self.recording))?;
        std::fs::write(&self.environment, &output)?;
        let line = output.lines().find(|line| line.starts_with("USE_TSSX=")).context("suggest proposes no USE_TSSX")?;
        ensure!(line.contains(&self.socket_text()?), "suggest proposes {line}, without the echo socket");
        ensure!(output.lines().any(|line| line.starts_with("LD_PRELOAD=")), "suggest proposes no LD_PRELOAD");
        Ok(line.to_owned())
    }

    /// Plain and accelerated rounds in turn, both ends new for each.
    fn measure(&self, rounds: usize) -> Result<Comparison> {
        println!("$ {}", run::shown(&self.sourced(&self.program("echo-client", 0)?)));
        let row = Row { name: "echo".to_owned(), unit: "round trips/s".to_owned(), ..Row::default() };
        let measured = measure(&[row], rounds, |preloaded| {
            let _server = self.server(preloaded)?;
            let result = client(&mut self.with(preloaded, self.program("echo-client", 0)?));
            // The path must be free for the next server.
            std::fs::remove_file(&self.socket)?;
            result
        })?;
        let comparison = measured.into_iter().next().context("one line was measured")?;
        for round in &comparison.rounds {
            let (plain, preloaded) = (round.plain.value, round.preloaded.value);
            println!("plain {plain:>12.0} round trips/s    preloaded {preloaded:>12.0} round trips/s    {:.2}×", preloaded / plain);
        }
        Ok(comparison)
    }

    /// Starts the pair accelerated and lets the tracer judge it. Returns the hit rate.
    fn verify(&self) -> Result<f64> {
        let _pair = self.pair(true)?;
        std::thread::sleep(Duration::from_millis(300)); // past the operations before an upgrade
        self.trace(true, |trace| trace.args(["verify", "--duration", "2s", "--min-hit-rate", MIN_HIT_RATE]).arg(&self.socket))?;
        let mut again = self.tracer(true);
        again.args(["verify", "--duration", "1s", "--json", "--min-hit-rate", MIN_HIT_RATE]).arg(&self.socket);
        let report: Value = serde_json::from_str(&run::capture_success(&mut again, TRACE_DEADLINE)?.stdout)?;
        let rate = report.pointer("/sockets/0/hit_rate").and_then(Value::as_f64);
        rate.with_context(|| format!("verify's report has no hit rate: {report}"))
    }

    /// Server and client in the background, until dropped.
    fn pair(&self, preloaded: bool) -> Result<(Running, Running, Unlink)> {
        let server = self.server(preloaded)?;
        let mut client = self.with(preloaded, self.program("echo-client", 0)?);
        println!("$ {} &", run::shown(&client));
        let client = Running::start(client.args(["--milliseconds", BACKGROUND_MILLISECONDS]))?;
        Ok((client, server, Unlink(self.socket.clone())))
    }

    fn server(&self, preloaded: bool) -> Result<Running> {
        Running::server(self.with(preloaded, self.program("echo-server", 1)?), &self.socket)
    }

    fn program(&self, name: &str, cpu: usize) -> Result<Command> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        workload(name, &self.socket, [cpu].get(..usize::from(cpu < cpus)).unwrap_or_default())
    }

    fn with(&self, preloaded: bool, command: Command) -> Command {
        if preloaded { self.sourced(&command) } else { command }
    }

    /// The command, started by a shell that has sourced the proposal.
    fn sourced(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", "set -a; . \"$0\"; set +a; exec \"$@\""]).arg(&self.environment);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    }

    /// Shows a command of the tracer, runs it, shows what it printed and returns that.
    fn trace(&self, privileged: bool, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<String> {
        let mut command = self.tracer(privileged);
        arguments(&mut command);
        println!("$ {}", run::shown(&command));
        let output = run::capture(&mut command, TRACE_DEADLINE)?;
        print!("{}{}", output.stdout, output.stderr);
        if !output.status.success() {
            bail!("`{}` failed ({})", run::shown(&command), output.status);
        }
        Ok(output.stdout)
    }

    fn tracer(&self, privileged: bool) -> Command {
        if !privileged || geteuid().is_root() || paths::find_program("sudo").is_none() {
            return Command::new(&self.artefacts.trace);
        }
        let mut sudo = Command::new("sudo");
        sudo.arg(&self.artefacts.trace);
        sudo
    }

    fn socket_text(&self) -> Result<String> {
        Ok(self.socket.to_str().context("the temporary directory's name is no text")?.to_owned())
    }
}

/// Removes a socket's name when its server is gone.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        // The whole directory goes at the end; this only frees the name for the next server.
        let _ = std::fs::remove_file(Path::new(&self.0));
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}
