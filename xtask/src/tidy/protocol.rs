//! PROTOCOL.md and the shared layouts say the same.
//!
//! For each public `repr(C)` structure there is a heading that names it in backquotes, and under it a table whose
//! rows read `` | offset | size | `field` | meaning | ``, both numbers decimal and in bytes.

use std::path::Path;

use anyhow::{Context, Result};
use syn::Item;

use super::layout::Layouts;
use super::{Finding, Tree};

const DOCUMENT: &str = "PROTOCOL.md";
/// Files whose public structures lie in shared memory.
const LAYOUTS: [&str; 2] = ["tssx-core/src/ledger/layout.rs", "tssx-core/src/layout.rs"];
/// Files that define constants which those use.
const CONSTANTS: [&str; 1] = ["tssx-core/src/reason.rs"];

/// Every field of every shared structure stands in PROTOCOL.md with its offset and size.
pub(super) fn fields(tree: &Tree) -> Result<Vec<Finding>> {
    let Some(document) = tree.files().find(|file| *file == Path::new(DOCUMENT)) else {
        return Ok(vec![Finding::new(
            DOCUMENT,
            1,
            "there is no protocol document",
            "write it: every byte that two processes share",
        )]);
    };
    let document = tree.text(document)?.unwrap_or_default();
    let mut layouts = Layouts::default();
    for file in LAYOUTS.iter().chain(&CONSTANTS) {
        layouts.add(
            &tree
                .parse(Path::new(file))
                .context("a file of shared layouts is missing: correct LAYOUTS in xtask/src/tidy/protocol.rs")?,
        );
    }
    let mut findings = Vec::new();
    for file in LAYOUTS {
        for item in tree.parse(Path::new(file))?.items {
            let Item::Struct(structure) = item else { continue };
            let name = structure.ident.to_string();
            let Ok(fields) = layouts.fields(&name) else {
                let line = structure.ident.span().start().line;
                findings.push(Finding::new(
                    file,
                    line,
                    format!("the offsets of {name} cannot be computed"),
                    "use repr(C), atomics, integers and arrays, or teach xtask/src/tidy/layout.rs",
                ));
                continue;
            };
            let Some((heading, section)) = section(&document, &name) else {
                findings.push(Finding::new(
                    DOCUMENT,
                    1,
                    format!("no section on {name}"),
                    format!("add a heading that names `{name}`, and a table of its fields"),
                ));
                continue;
            };
            for field in fields {
                let expected = [field.offset.to_string(), field.size.to_string(), format!("`{}`", field.name)];
                if !section.iter().any(|line| cells(line).starts_with(&expected)) {
                    let what = format!("{name}::{} ({file}:{}) is not listed at its place", field.name, field.line);
                    findings.push(Finding::new(DOCUMENT, heading, what, format!("its row starts `| {} |`", expected.join(" | "))));
                }
            }
        }
    }
    Ok(findings)
}

/// The line number of the heading that names `structure`, and the lines up to the next heading.
fn section<'a>(document: &'a str, structure: &str) -> Option<(usize, Vec<&'a str>)> {
    let quoted = format!("`{structure}`");
    let start = document.lines().position(|line| line.starts_with('#') && line.contains(&quoted))?;
    let lines = document.lines().skip(start + 1).take_while(|line| !line.starts_with('#')).collect();
    Some((start + 1, lines))
}

fn cells(row: &str) -> Vec<String> {
    let Some(inner) = row.trim().strip_prefix('|') else { return Vec::new() };
    inner.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}
