//! `cargo xtask mutants`: mutation testing of the model checks. A model that passes proves something only if it fails when the code that it
//! guards is wrong.
//!
//! [`table`] reads the changes to make, `tssx-core/src/models/mutants.toml`; [`models`] reads from the models' sources which there are and what
//! each says of its property and its bound; [`bench`] makes the changes one after the other in a copy of the sources and runs there the models
//! that must fail. First all of them are run on the unchanged copy, where they must pass.
//!
//! A model that no change makes fail is an error, and so is a change that no longer fits the source. That much is also a rule of
//! `cargo xtask check`.

mod bench;
mod models;
mod table;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::tidy::Tree;
use bench::{Bench, Verdict};
use models::Model;
pub(crate) use table::TABLE;
use table::{Fault, Mutant, Table};

/// The entries that `cargo xtask test` plays: one of the code, and the one that repairs the flaws.
const SHORT: usize = 2;

/// Options of `mutants`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only the mutants whose description, file or model contains this
    #[arg(long)]
    only: Option<String>,
    /// At most so many of them, the first ones
    #[arg(long)]
    first: Option<usize>,
    /// Runs every model against each mutant, and prints which fail
    #[arg(long)]
    survey: bool,
}

impl Options {
    /// What `cargo xtask test` plays.
    pub(crate) fn short() -> Self {
        Self { only: None, first: Some(SHORT), survey: false }
    }

    fn wants(&self, mutant: &Mutant) -> bool {
        self.only.as_ref().is_none_or(|text| mutant.mentions(text))
    }
}

/// What a model said to one mutant.
struct Trial<'a> {
    mutant: &'a Mutant,
    model: &'a str,
    verdict: Verdict,
}

/// Plays the mutants.
///
/// # Errors
/// The table does not fit the sources, a model fails on the unchanged code, or a mutant is not caught by a model that must.
pub(crate) fn mutants(options: &Options) -> Result<()> {
    let tree = Tree::read()?;
    let (table, models) = (Table::read(tree.root())?, models::read(tree.root())?);
    let faults = table.faults(tree.root(), &models);
    let told: Vec<_> = faults.iter().map(ToString::to_string).collect();
    ensure!(told.is_empty(), "{TABLE}: {}", told.join("\n"));
    let chosen: Vec<_> =
        table.mutants.iter().filter(|mutant| options.wants(mutant)).take(options.first.unwrap_or(usize::MAX)).collect();
    ensure!(!chosen.is_empty(), "no mutant mentions {:?}", options.only.as_deref().unwrap_or_default());
    let whole = chosen.len() == table.mutants.len();
    let concerned = |model: &Model| whole || options.survey || chosen.iter().any(|mutant| mutant.must_fail(&model.name));
    let concerned: Vec<_> = models.iter().filter(|model| concerned(model)).collect();

    let mut bench = Bench::set_up(&tree)?;
    let passed = unchanged(&mut bench, &models, &concerned)?;
    let mut trials = Vec::new();
    for (number, mutant) in chosen.iter().enumerate() {
        println!("mutant {}/{}: {}", number + 1, chosen.len(), mutant.what);
        let names = concerned.iter().map(|model| model.name.as_str());
        let names: Vec<_> = names.filter(|name| options.survey || mutant.must_fail(name)).collect();
        for (model, verdict) in names.iter().zip(bench.mutate(mutant, &names)?) {
            println!("    {model}: {verdict}");
            trials.push(Trial { mutant, model, verdict });
        }
    }
    report(&concerned, &passed, &trials);
    let missed: Vec<_> = trials.iter().filter(|trial| trial.mutant.must_fail(trial.model) && !trial.verdict.is_caught()).collect();
    for trial in &missed {
        println!("NOT CAUGHT: {}, by {}: {}", trial.mutant.what, trial.model, trial.verdict);
    }
    let caught = trials.iter().filter(|trial| trial.verdict.is_caught()).count();
    println!("{} mutants of the code, {} models, {caught} trials caught, {} not", chosen.len(), concerned.len(), missed.len());
    ensure!(missed.is_empty(), "{} mutants were not caught; remedy: make the model stronger, or the entry right", missed.len());
    Ok(())
}

/// All `concerned` models on the unchanged copy: what each says of how much it explored.
fn unchanged(bench: &mut Bench, models: &[Model], concerned: &[&Model]) -> Result<Vec<String>> {
    let listed = bench.build()?.listed()?;
    let known: Vec<_> = models.iter().map(|model| model.name.clone()).collect();
    ensure!(listed == known, "the models that the program lists are not those that the sources have: {listed:?} and {known:?}");
    let mut explored = Vec::new();
    for model in concerned {
        match bench.run(&model.name)? {
            Verdict::Passed(said) => explored.push(said),
            other => bail!("{} fails on the unchanged code: {other}", model.name),
        }
    }
    println!("unchanged: {} models pass", explored.len());
    Ok(explored)
}

/// Property, bound and the first mutant of each model; then the flaws.
fn report(concerned: &[&Model], explored: &[String], trials: &[Trial<'_>]) {
    let of =
        |model: &Model| trials.iter().filter(|trial| trial.model == model.name && trial.mutant.must_fail(trial.model)).collect();
    for (model, explored) in concerned.iter().zip(explored).filter(|(model, _)| !model.flawed) {
        println!("{}\n    property  {}\n    bound     {}; {explored}", model.name, model.property, model.bound);
        let trials: Vec<&Trial<'_>> = of(model);
        for Trial { mutant, verdict, .. } in trials {
            let word = if verdict.is_caught() { "caught   " } else { "NOT CAUGHT" };
            println!("    {word} {} ({}): {verdict}", mutant.what, mutant.files().join(", "));
        }
    }
    println!("models that are run with a flaw and must see it; without the flaw each must fail:");
    for model in concerned.iter().filter(|model| model.flawed) {
        let trials: Vec<&Trial<'_>> = of(model);
        let caught = !trials.is_empty() && trials.iter().all(|trial| trial.verdict.is_caught());
        println!("    {}: {}", model.name, if caught { "caught" } else { "NOT CAUGHT" });
    }
}

/// What of the table does not fit the sources in `root`: each finding names the entry or the model.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn faults(root: &Path) -> Result<Vec<Fault>> {
    let models = models::read(root).context("the models' sources")?;
    Ok(Table::read(root)?.faults(root, &models))
}
