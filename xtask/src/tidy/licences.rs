//! What deny.toml says of the crates that we build on, as far as it can be known without a network: their licences and where they
//! come from.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{MetadataCommand, Package};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use super::{Finding, Tree};

const DENY: &str = "deny.toml";
/// What cargo-deny looks at is narrowed to where the project runs; so are we, or crates of other systems would be fetched.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The part of deny.toml that is read here.
#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

/// Each crate has a licence that deny.toml allows, and comes from the registry or from the work tree.
pub(super) fn allowed(tree: &Tree) -> Result<Vec<Finding>> {
    let text = tree.text(Path::new(DENY))?.with_context(|| format!("there is no {DENY}"))?;
    let deny: Deny = toml::from_str(&text).with_context(|| format!("{DENY} cannot be read"))?;
    let licences = deny.licenses.allow.iter().map(|name| Licensee::parse(name)).collect::<Result<Vec<_>, _>>()?;
    let options = ["--locked", "--filter-platform", PLATFORM].map(String::from).to_vec();
    let metadata = MetadataCommand::new().current_dir(&tree.root).other_options(options).exec().context("cargo metadata")?;
    let used = metadata.resolve.as_ref().context("cargo metadata tells no graph")?.nodes.iter().map(|node| &metadata[&node.id]);
    Ok(used.flat_map(|package| [licence(package, &licences), source(package)]).flatten().collect())
}

fn licence(package: &Package, allowed: &[Licensee]) -> Option<Finding> {
    let wanted = package.license.as_deref()?;
    // As cargo does: "MIT/Apache-2.0" is a choice.
    let parsed = Expression::parse_mode(wanted, ParseMode::LAX);
    let fits = parsed.is_ok_and(|parsed| parsed.evaluate(|asked| allowed.iter().any(|licence| licence.satisfies(asked))));
    let what = || format!("{} {} is licensed as {wanted}", package.name, package.version);
    (!fits).then(|| Finding::new("Cargo.lock", 1, what(), format!("do without it, or allow the licence in {DENY} and say why")))
}

fn source(package: &Package) -> Option<Finding> {
    let known = package.source.as_ref().is_none_or(cargo_metadata::Source::is_crates_io);
    let what = || format!("{} {} comes from elsewhere than the registry", package.name, package.version);
    (!known).then(|| Finding::new("Cargo.lock", 1, what(), "use a published version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(licence_of_it: &str) -> Option<String> {
        let package = serde_json::json!({
            "name": "one", "version": "1.0.0", "id": "one", "dependencies": [], "targets": [], "features": {},
            "manifest_path": "/nowhere/Cargo.toml", "license": licence_of_it, "edition": "2024",
        });
        let package: Package = serde_json::from_value(package).unwrap();
        let allowed = ["MIT", "Apache-2.0"].map(|name| Licensee::parse(name).unwrap());
        licence(&package, &allowed).map(|finding| finding.to_string())
    }

    #[test]
    fn a_choice_is_fine_if_one_is() {
        for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "Apache-2.0 AND MIT"] {
            assert_eq!(verdict(fine), None, "{fine}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        for bad in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "whatever the author likes"] {
            assert!(verdict(bad).is_some_and(|said| said.contains("one 1.0.0") && said.contains(bad)), "{bad}");
        }
    }
}
