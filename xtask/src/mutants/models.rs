//! Which models there are, and what each says of itself.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use syn::{Attribute, Item, ItemFn};

/// Where they are, below the root.
const FOLDER: &str = "tssx-core/src/models";
/// What begins the part of a model's document that says its bound.
const BOUND: &str = "Bound: ";

/// One test of tssx-core's models.
pub(super) struct Model {
    /// As the test harness names it, without `models::`.
    pub(super) name: String,
    /// What holds in every interleaving, by the model's document.
    pub(super) property: String,
    /// What bounds them, by its document: threads and operations.
    pub(super) bound: String,
    /// Whether it is run with a flaw that it must see.
    pub(super) flawed: bool,
}

/// Every model, by name.
///
/// # Errors
/// A file cannot be read, or is no Rust.
pub(super) fn read(root: &Path) -> Result<Vec<Model>> {
    let mut models = Vec::new();
    for entry in std::fs::read_dir(root.join(FOLDER))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let module = path.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = syn::parse_file(&text).with_context(|| format!("{} does not parse", path.display()))?;
        models.extend(file.items.iter().filter_map(|item| match item {
            Item::Fn(function) if has(function, "test") => Some(model(&module, function)),
            _ => None,
        }));
    }
    ensure!(!models.is_empty(), "{FOLDER} has no models");
    models.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(models)
}

fn has(function: &ItemFn, name: &str) -> bool {
    function.attrs.iter().any(|attribute| attribute.path().is_ident(name))
}

fn model(module: &str, function: &ItemFn) -> Model {
    let document: Vec<_> = function.attrs.iter().filter_map(line).collect();
    let document = document.join(" ");
    let (property, bound) = document.split_once(BOUND).unwrap_or((&document, ""));
    Model {
        name: format!("{module}::{}", function.sig.ident),
        property: property.trim().to_owned(),
        bound: bound.trim().trim_end_matches('.').to_owned(),
        flawed: has(function, "should_panic"),
    }
}

/// A line of a document.
fn line(attribute: &Attribute) -> Option<String> {
    let syn::Meta::NameValue(meta) = &attribute.meta else { return None };
    let syn::Expr::Lit(literal) = &meta.value else { return None };
    match &literal.lit {
        syn::Lit::Str(text) if meta.path.is_ident("doc") => Some(text.value().trim().to_owned()),
        _ => None,
    }
}
