//! Who may depend on whom. Dependencies point one way, so that a crate can be read without those above it.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

use super::{Finding, Tree};

/// For each crate of the workspace, the crates of the workspace that it may build on.
const ALLOWED: [(&str, &[&str]); 5] = [
    ("tssx-core", &[]),
    ("tssx-ebpf", &[]),
    ("tssx-preload", &["tssx-core"]),
    ("tssx-trace", &["tssx-core", "tssx-ebpf"]),
    ("xtask", &["tssx-core"]),
];
/// Crates that end up inside other people's processes.
const GUESTS: [&str; 2] = ["tssx-core", "tssx-preload"];

/// Every dependency inside the workspace is one that [`ALLOWED`] lists.
pub(super) fn directions(tree: &Tree) -> Result<Vec<Finding>> {
    let metadata = metadata(tree)?;
    let members = metadata.workspace_packages();
    let mut findings = Vec::new();
    for package in &members {
        let manifest = relative(tree, package);
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name.as_str()) else {
            findings.push(Finding::new(
                manifest,
                1,
                format!("crate {} has no layer", package.name),
                "add it to ALLOWED in xtask/src/tidy/layers.rs",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let ours = members.iter().any(|member| member.name.as_str() == dependency.name);
            if ours && !allowed.contains(&dependency.name.as_str()) {
                let what = format!("{} must not depend on {}", package.name, dependency.name);
                findings.push(Finding::new(
                    manifest,
                    line_of(tree, manifest, &dependency.name)?,
                    what,
                    format!("it may use only {allowed:?}"),
                ));
            }
        }
    }
    Ok(findings)
}

/// Every dependency of the guest crates stands in CONTRIBUTING.md, in backquotes, with its reason.
pub(super) fn justified(tree: &Tree) -> Result<Vec<Finding>> {
    let document = tree.text(Path::new("CONTRIBUTING.md"))?.unwrap_or_default();
    let metadata = metadata(tree)?;
    let mut findings = Vec::new();
    for package in metadata.workspace_packages().into_iter().filter(|package| GUESTS.contains(&package.name.as_str())) {
        let manifest = relative(tree, package);
        for dependency in package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal) {
            let named = document.lines().any(|line| line.contains(&format!("`{}`", dependency.name)));
            if !named && !dependency.name.starts_with("tssx-") {
                let what = format!("{} is not justified", dependency.name);
                findings.push(Finding::new(
                    manifest,
                    line_of(tree, manifest, &dependency.name)?,
                    what,
                    "say in CONTRIBUTING.md why it is worth being in every process",
                ));
            }
        }
    }
    Ok(findings)
}

fn metadata(tree: &Tree) -> Result<Metadata> {
    MetadataCommand::new().current_dir(&tree.root).no_deps().exec().context("cargo metadata")
}

fn relative<'a>(tree: &Tree, package: &'a Package) -> &'a Path {
    let manifest = package.manifest_path.as_std_path();
    manifest.strip_prefix(&tree.root).unwrap_or(manifest)
}

fn line_of(tree: &Tree, manifest: &Path, dependency: &str) -> Result<usize> {
    let text = tree.text(manifest)?.unwrap_or_default();
    Ok(text.lines().position(|line| line.trim_start().starts_with(dependency)).map_or(1, |index| index + 1))
}
