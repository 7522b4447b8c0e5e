//! The changes to make, and whether they fit.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::models::Model;

/// The table, below the root.
pub(crate) const TABLE: &str = "tssx-core/src/models/mutants.toml";
/// Where the files that it names are.
const SOURCES: &str = "tssx-core/src";

/// All of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    #[serde(rename = "mutant")]
    pub(super) mutants: Vec<Mutant>,
}

/// The code with one thing broken.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutant {
    /// What is wrong with it.
    pub(super) what: String,
    /// The models that must fail.
    caught_by: Vec<String>,
    #[serde(rename = "change")]
    changes: Vec<Change>,
}

/// One text in the place of another, which the file has exactly once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    /// Below tssx-core/src.
    file: String,
    from: String,
    to: String,
}

impl Table {
    /// The one in the repository.
    ///
    /// # Errors
    /// It is not there, or is no such table.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(root.join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
        toml::from_str(&text).with_context(|| format!("{TABLE} cannot be read"))
    }

    /// What does not fit: changes whose text is not there exactly once, models that are missing or not documented.
    pub(super) fn faults(&self, root: &Path, models: &[Model]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut names = BTreeSet::new();
        for mutant in &self.mutants {
            let entry = &mutant.what;
            if !names.insert(entry) {
                faults.push(Fault::new(format!("{entry:?} is there twice"), "say what tells them apart"));
            }
            for name in mutant.caught_by.iter().filter(|name| !models.iter().any(|model| model.name == **name)) {
                faults.push(Fault::new(format!("{entry:?}: there is no model {name}"), "name one of tssx-core/src/models"));
            }
            if let Err(error) = mutant.changed(root) {
                faults.push(Fault::new(format!("{entry:?}: {error:#}"), "make the entry fit the code that it broke"));
            }
        }
        for Model { name, property, bound, flawed } in models {
            if !self.mutants.iter().any(|mutant| mutant.must_fail(name)) {
                faults.push(Fault::new(
                    format!("the model {name} has no mutant that it must catch"),
                    "add a change of what it guards",
                ));
            }
            if !flawed && (property.is_empty() || bound.is_empty()) {
                let what = format!("the model {name} does not say its property and its bound");
                faults.push(Fault::new(what, "document the test, with a line `Bound: …`"));
            }
        }
        faults
    }
}

/// Something that does not fit.
pub(crate) struct Fault {
    /// The entry or the model, and what is wrong with it.
    pub(crate) what: String,
    pub(crate) remedy: &'static str,
}

impl Fault {
    fn new(what: String, remedy: &'static str) -> Self {
        Self { what, remedy }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}; remedy: {}", self.what, self.remedy)
    }
}

impl Mutant {
    pub(super) fn must_fail(&self, model: &str) -> bool {
        self.caught_by.iter().any(|name| name == model)
    }

    pub(super) fn mentions(&self, text: &str) -> bool {
        let words = self.caught_by.iter().chain(self.changes.iter().map(|change| &change.file));
        words.chain([&self.what]).any(|word| word.contains(text))
    }

    /// The files that it changes, each once.
    pub(super) fn files(&self) -> Vec<&str> {
        self.changes.iter().map(|change| change.file.as_str()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The files that it changes, as they are afterwards.
    ///
    /// # Errors
    /// A text is not there exactly once.
    pub(super) fn changed(&self, root: &Path) -> Result<Vec<(PathBuf, String)>> {
        ensure!(!self.changes.is_empty() && !self.caught_by.is_empty(), "it changes nothing, or no model must catch it");
        let mut changed = Vec::new();
        for file in self.files() {
            let path = Path::new(SOURCES).join(file);
            let mut text = std::fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {}", path.display()))?;
            for change in self.changes.iter().filter(|change| change.file == file) {
                let count = text.matches(&change.from).count();
                ensure!(count == 1, "{file} has {count} times, not once: {}", change.from.trim());
                ensure!(change.from != change.to, "{file}: the change changes nothing");
                text = text.replacen(&change.from, &change.to, 1);
            }
            changed.push((path, text));
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> Model {
        Model { name: name.to_owned(), property: "p".to_owned(), bound: "b".to_owned(), flawed: false }
    }

    /// A root with one file, and the findings of a table with one change in it.
    fn faults(from: &str, models: &[Model]) -> Vec<String> {
        let root = tempfile::tempdir().expect("temporary folder");
        std::fs::create_dir_all(root.path().join(SOURCES)).expect("folder");
        std::fs::write(root.path().join(SOURCES).join("a.rs"), "one two two").expect("file");
        let change = Change { file: "a.rs".to_owned(), from: from.to_owned(), to: "x".to_owned() };
        let mutant = Mutant { what: "w".to_owned(), caught_by: vec!["m::a".to_owned()], changes: vec![change] };
        Table { mutants: vec![mutant] }.faults(root.path(), models).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_table_that_fits_has_no_faults() {
        assert_eq!(faults("one", &[model("m::a")]), Vec::<String>::new());
    }

    #[test]
    fn a_text_must_be_there_once() {
        assert!(faults("two", &[model("m::a")]).concat().contains("a.rs has 2 times, not once: two"));
        assert!(faults("three", &[model("m::a")]).concat().contains("a.rs has 0 times, not once: three"));
    }

    #[test]
    fn each_model_must_have_a_mutant_and_each_mutant_a_model() {
        assert!(faults("one", &[model("m::a"), model("m::b")]).concat().contains("the model m::b has no mutant"));
        assert!(faults("one", &[model("m::b")]).concat().contains("there is no model m::a"));
    }

    #[test]
    fn a_model_must_say_its_property_and_its_bound() {
        let silent = Model { bound: String::new(), ..model("m::a") };
        assert!(faults("one", &[silent]).concat().contains("does not say its property and its bound"));
    }
}
