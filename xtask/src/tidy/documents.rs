//! Rules about documents and the tree as a whole.

use std::path::{Component, Path};

use anyhow::Result;
use syn::visit::Visit;

use super::source::Functions;
use super::{Finding, Tree};

/// Everything that may stand at the top level.
const TOP_LEVEL: [&str; 22] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "PROTOCOL.md",
    "SECURITY.md",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tssx-core",
    "tssx-ebpf",
    "tssx-preload",
    "tssx-trace",
    "xtask",
];
const README: &str = "README.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
/// The walk is of use only if it reaches from the exported symbol to the ring.
const FEWEST_STEPS: usize = 5;
/// Beginnings of paths that exist on one machine only. In halves, so that this file does not breach its own rule.
const MACHINE_PATHS: [(&str, &str); 4] = [("/wo", "rk/"), ("/ro", "ot/"), (".lib", "rary/"), ("/fa", "rm/")];

/// Nothing at the top level but what was laid down, and all of that.
pub(super) fn top_level(tree: &Tree) -> Result<Vec<Finding>> {
    let first = |file: &Path| file.components().next().map(|component| component.as_os_str().to_string_lossy().into_owned());
    let mut present: Vec<_> = tree.files().filter_map(first).collect();
    present.dedup();
    let mut findings = Vec::new();
    for name in present.iter().filter(|name| !TOP_LEVEL.contains(&name.as_str())) {
        findings.push(Finding::new(name, 1, "does not belong at the top level", "put it into one of the five crates"));
    }
    for name in TOP_LEVEL.iter().filter(|name| !present.iter().any(|other| other == *name)) {
        findings.push(Finding::new(name, 1, "is missing at the top level", "write it"));
    }
    Ok(findings)
}

/// README.md shows the commands that `cargo xtask recipes` runs.
pub(super) fn recipes(tree: &Tree) -> Result<Vec<Finding>> {
    let text = tree.text(Path::new(README))?.unwrap_or_default();
    if text.contains(&format!("```sh\n{}```\n", crate::recipes::TEXT)) {
        return Ok(Vec::new());
    }
    let heading = text.lines().position(|line| line == "## Recipes").map_or(1, |index| index + 1);
    let what = "the commands shown are not those that are run and proven";
    Ok(vec![Finding::new(README, heading, what, "copy xtask/src/recipes/recipes.sh as it is into a block that begins with ```sh")])
}

/// Each `` `path::function` `` in ARCHITECTURE.md's section on `read()` names a file and a function in it.
pub(super) fn walk(tree: &Tree) -> Result<Vec<Finding>> {
    let text = tree.files().find(|file| *file == Path::new(ARCHITECTURE)).map(|file| tree.text(file)).transpose()?.flatten();
    let text = text.unwrap_or_default();
    let Some(start) = text.lines().position(|line| line.starts_with('#') && line.contains("read()")) else {
        return Ok(vec![Finding::new(
            ARCHITECTURE,
            1,
            "no section walks `read()`",
            "add a heading with `read()` and name each step as `path::function`",
        )]);
    };
    let mut steps = 0;
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate().skip(start + 1).take_while(|(_, line)| !line.starts_with('#')) {
        for (file, function) in line.split('`').skip(1).step_by(2).filter_map(step) {
            steps += 1;
            let matching: Vec<_> = tree.rust_files().filter(|candidate| ends_with(candidate, file)).collect();
            let [found] = matching.as_slice() else {
                let what = format!("`{file}` names {} files", matching.len());
                findings.push(Finding::new(ARCHITECTURE, index + 1, what, "give the path of one file that exists"));
                continue;
            };
            let mut functions = Functions::default();
            functions.visit_file(&tree.parse(found)?);
            if !functions.spans.iter().any(|(name, ..)| name == function) {
                let what = format!("{} has no function {function}", found.display());
                findings.push(Finding::new(ARCHITECTURE, index + 1, what, "follow the code"));
            }
        }
    }
    if steps < FEWEST_STEPS {
        findings.push(Finding::new(
            ARCHITECTURE,
            start + 1,
            format!("the walk has {steps} steps"),
            "name each file and function from the exported symbol to the ring",
        ));
    }
    Ok(findings)
}

/// Splits `abi/io.rs::read` or `ring/consumer.rs::Consumer::read` into the file and the function.
fn step(quoted: &str) -> Option<(&str, &str)> {
    let (file, path) = quoted.split_once(".rs::")?;
    let file = quoted.get(..file.len() + 3)?;
    let function = path.rsplit("::").next()?;
    Some((file, function.trim_end_matches("()")))
}

fn ends_with(candidate: &Path, file: &str) -> bool {
    let wanted: Vec<Component<'_>> = Path::new(file).components().collect();
    let have: Vec<Component<'_>> = candidate.components().collect();
    have.ends_with(&wanted)
}

/// No file names a path that only its author has.
pub(super) fn machine_paths(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.files() {
        let text = tree.text(file)?.unwrap_or_default();
        for (index, line) in text.lines().enumerate() {
            for (start, end) in MACHINE_PATHS {
                if line.contains(&format!("{start}{end}")) {
                    findings.push(Finding::new(
                        file,
                        index + 1,
                        format!("a path of one machine ({start}{end})"),
                        "derive it from the environment or the workspace",
                    ));
                }
            }
        }
    }
    Ok(findings)
}
