//! `cargo xtask recipes`: the user's three commands against real servers, as README.md tells them: redis, PostgreSQL, memcached, nginx in
//! front of php-fpm.
//!
//! The commands are lines of `recipes.sh` ([`script`]), run by a shell in a folder of their own ([`stage`]); what each server needs besides,
//! and how its answers are checked, is in [`programs`]. Each recipe: server and load run plain while `discover` watches; the verdict and its
//! reasons must be those that are true ([`judge`]); both run again with the environment that `suggest` wrote, and `verify` must prove it.
//! Then plain and preloaded in turn, for the gain, which is printed beside what was predicted. `cargo xtask test` does all that in short;
//! a full run also fails where the gain of one client of redis or PostgreSQL is outside what was predicted.

mod judge;
mod programs;
mod script;
mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

pub(crate) use script::TEXT;

use crate::build::{self, Artefacts};
use crate::comparison::{Comparison, Row, measure};
use crate::environment::without_library;
use crate::figures::Figures;
use crate::measure::Running;
use crate::unpacked::Unpacked;
use crate::{run, servers, setup};
use judge::{Proof, Range, Verdict};
use programs::{Kind, Programs};
use script::Line;
use stage::Stage;

/// More than any load gets done before it is ended.
const ENDLESS: u64 = 2_000_000_000;
/// Requests before a window in which nearly all bytes must go through rings.
const WARM_UP: u64 = 1000;
/// Longest that a calibration may take.
const CALIBRATION_DEADLINE: Duration = Duration::from_secs(600);
/// Exit status of `suggest` where it selects nothing.
const NOTHING: i32 = 5;

/// Options of `recipes`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only the recipes whose name begins so
    name: Option<String>,
    /// As short as in `cargo xtask test`: the gain is printed and decides nothing
    #[arg(long)]
    quick: bool,
    /// Rounds of the gain, plain and preloaded in turn
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// A calibration that is there, instead of one that is taken first
    #[arg(long)]
    calibration: Option<PathBuf>,
}

/// One recipe.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    name: &'static str,
    kind: Kind,
    clients: u32,
    /// Requests of one round of the gain: of a full run some seconds, of a quick one a tenth of that.
    many: u64,
    /// Whether the gain must be within what was predicted.
    bracketed: bool,
    /// Left out of quick runs.
    full_only: bool,
}

const fn recipe(name: &'static str, kind: Kind, clients: u32, many: u64) -> Recipe {
    Recipe { name, kind, clients, many, bracketed: false, full_only: false }
}

const RECIPES: [Recipe; 7] = [
    Recipe { bracketed: true, ..recipe("redis", Kind::Redis, 1, 100_000) },
    Recipe { full_only: true, ..recipe("redis, 50 clients", Kind::Redis, 50, 200_000) },
    Recipe { bracketed: true, ..recipe("postgresql", Kind::Postgres, 1, 20_000) },
    Recipe { full_only: true, ..recipe("postgresql, 8 clients", Kind::Postgres, 8, 4_000) },
    recipe("memcached", Kind::Memcached, 1, 50_000),
    recipe("php, connections kept", Kind::Kept, 1, 5_000),
    recipe("php, a connection for each request", Kind::Short, 1, 300),
];

/// How a recipe ended.
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) result: Result<()>,
}

/// Runs the command.
///
/// # Errors
/// There is no such recipe, a recipe fails, or it cannot be played here.
pub(crate) fn recipes(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    setup::setup()?;
    let (servers, artefacts) = (servers::fetch()?, build::build()?);
    let outcomes = play(&artefacts, &servers, options)?;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.result.is_err()).map(|outcome| outcome.name).collect();
    ensure!(!outcomes.is_empty(), "no recipe's name begins like that: there are {}", RECIPES.map(|recipe| recipe.name).join("; "));
    ensure!(failed.is_empty(), "{} of {} recipes failed: {}", failed.len(), outcomes.len(), failed.join("; "));
    println!("recipes: all {} hold", outcomes.len());
    Ok(())
}

/// The short run of `cargo xtask test`; `None` where we are not root and cannot count.
///
/// # Errors
/// What all recipes need is missing.
pub(crate) fn short(artefacts: &Artefacts, servers: &Path) -> Result<Option<Vec<Outcome>>> {
    let options = Options { name: None, quick: true, rounds: 1, calibration: None };
    if stage::is_root() { play(artefacts, servers, &options).map(Some) } else { Ok(None) }
}

fn play(artefacts: &Artefacts, servers: &Path, options: &Options) -> Result<Vec<Outcome>> {
    ensure!(stage::is_root(), "tssx-trace counts as root only: run `sudo -E cargo xtask recipes`");
    let servers = Unpacked::new(servers)?;
    let scratch = tempfile::tempdir()?;
    let calibration = options.calibration.clone().unwrap_or_else(|| scratch.path().join("calibration.json"));
    if options.calibration.is_none() {
        calibrate(artefacts, &calibration, options.quick)?;
    }
    let wanted = |recipe: &&Recipe| options.name.as_ref().is_none_or(|name| recipe.name.starts_with(name.as_str()));
    let chosen = RECIPES.iter().filter(wanted).filter(|recipe| !(options.quick && recipe.full_only));
    let outcomes = chosen.map(|recipe| {
        println!("== recipe: {}", recipe.name);
        let result = recipe.play(artefacts, &servers, &calibration, options).with_context(|| format!("recipe {}", recipe.name));
        if let Err(error) = &result {
            println!("{error:#}");
        }
        Outcome { name: recipe.name, result }
    });
    Ok(outcomes.collect())
}

fn calibrate(artefacts: &Artefacts, file: &Path, quick: bool) -> Result<()> {
    let mut bench = Command::new(&artefacts.trace);
    without_library(&mut bench);
    bench.arg("bench").arg("--output").arg(file).env("TSSX_PRELOAD", &artefacts.preload);
    if quick {
        bench.args(["--rounds", "2", "--time", "5ms"]);
    }
    println!("$ {}", run::shown(&bench));
    run::capture_success(&mut bench, CALIBRATION_DEADLINE).map(|_| ())
}

impl Recipe {
    fn play(&self, artefacts: &Artefacts, servers: &Unpacked, calibration: &Path, options: &Options) -> Result<()> {
        let watch = if options.quick { "1s" } else { "3s" };
        let stage = Stage::new(servers, artefacts, self.kind.socket(), self.clients, watch)?;
        stage.copy(calibration, "calibration.json")?;
        let programs = Programs::new(self.kind, stage)?;
        let verdict = programs.discover()?;
        let reasons = if verdict.codes.is_empty() { String::from("no reason against it") } else { verdict.codes.join(", ") };
        println!("{}: {}, {reasons}; {} connections seen", self.name, verdict.level, verdict.connections);
        verdict.check(self.kind, &programs.socket()?)?;
        if verdict.pattern.is_none() {
            return Ok(());
        }
        let proof = programs.verify()?;
        println!(
            "{}: {} connections accelerated, hit rate {:.4}; calls {:.2} times those of the recording",
            self.name, proof.accelerated, proof.hit_rate, proof.achieved
        );
        let many = if options.quick { self.many / 10 } else { self.many };
        let gain = self.gain(&programs, options.rounds, many)?;
        self.tell(&gain, verdict.predicted.context("a prediction")?, options.quick)
    }

    /// Plain and preloaded in turn, everything started anew for each round.
    fn gain(&self, programs: &Programs<'_>, rounds: usize, many: u64) -> Result<Comparison> {
        let row = Row { name: self.name.to_owned(), unit: "requests/s".to_owned(), ..Row::default() };
        let measured = measure(&[row], rounds, |preloaded| {
            let _serving = programs.serve(preloaded)?;
            programs.check(preloaded)?;
            let output = programs.stage.ends(&mut programs.load(preloaded, many), &[0])?;
            Ok(vec![Figures::of(programs.rate(&output.stdout)?)])
        })?;
        measured.into_iter().next().context("one line was measured")
    }

    fn tell(&self, gain: &Comparison, predicted: Range, quick: bool) -> Result<()> {
        let (achieved, (least, most)) = (gain.result(), gain.spread());
        let Range { least: from, likely, most: to } = predicted;
        println!(
            "{}: {:.0} requests/s plain, {:.0} preloaded: {achieved:.2} times (rounds {least:.2} to {most:.2}); predicted {likely:.2} ({from:.2} to {to:.2})",
            self.name,
            gain.plain(),
            gain.preloaded()
        );
        if self.bracketed && !quick && !predicted.holds(achieved) {
            bail!("{achieved:.2} times the plain rate is outside what was predicted, {from:.2} to {to:.2}");
        }
        Ok(())
    }
}

impl Programs<'_> {
    fn socket(&self) -> Result<String> {
        Ok(self.stage.socket().to_str().context("the temporary directory's name is no text")?.to_owned())
    }

    /// The first two commands, while server and load run plain.
    fn discover(&self) -> Result<Verdict> {
        let socket = self.socket()?;
        {
            let _serving = self.serve(false)?;
            self.check(false)?;
            let mut load = self.stage.load(self.load(false, ENDLESS))?;
            self.stage.watch(&self.tracer.discover)?;
            self.still_runs(&mut load)?;
        }
        let selects = self.kind != Kind::Short;
        // Something else on this machine may well be worth it.
        let statuses: &[i32] = if selects { &[0] } else { &[0, NOTHING] };
        self.stage.ends(&mut self.stage.shell(&self.tracer.suggest, None, 0), statuses)?;
        let file = std::fs::read_to_string(self.stage.path("tssx.env"))?;
        let selected = file.lines().any(|line| line.starts_with("USE_TSSX=") && line.contains(&socket));
        ensure!(selected == selects && file.contains("LD_PRELOAD="), "suggest wrote:\n{file}");
        let drop_in = self.stage.ends(&mut self.suggest("systemd"), statuses)?.stdout;
        ensure!(
            drop_in.contains(&format!("{} {socket} (", if selects { "in " } else { "out" })),
            "for systemd it wrote:\n{drop_in}"
        );
        Verdict::of(&self.stage.ends(&mut self.suggest("json"), statuses)?.stdout, &socket)
    }

    /// The same recording in another format, with what is to be gained.
    fn suggest(&self, format: &str) -> Command {
        let line = Line::new(self.tracer.suggest.text.replace(" > tssx.env", ""));
        self.stage.shell(&line.and(&format!("--format {format} --calibration calibration.json")), None, 0)
    }

    /// The third command, while server and load run with what the second wrote.
    fn verify(&self) -> Result<Proof> {
        let _serving = self.serve(true)?;
        self.check(true)?;
        // nginx opens more connections than one in the beginning, and on a slow machine those are the beginning for long.
        self.stage.ends(&mut self.load(true, WARM_UP), &[0])?;
        let mut load = self.stage.load(self.load(true, ENDLESS))?;
        let line = self.tracer.verify.and("--json --before seen.json --calibration calibration.json");
        let report = self.stage.watch(&line)?.stdout;
        self.still_runs(&mut load)?;
        Proof::of(&report, &self.socket()?)
    }

    /// A load that ended was not watched.
    fn still_runs(&self, load: &mut Running) -> Result<()> {
        match load.child().try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the load ended early ({status}):\n{}", self.stage.logs()),
        }
    }
}
