//! Rules about Rust sources, found in the syntax tree and not by matching text.

use std::path::Path;

use anyhow::Result;
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::unsafe_list::UNSAFE_FILES;
use super::{Finding, Tree};

/// Longest file, in lines.
const FILE_LINES: usize = 500;
/// Longest function, in lines from its signature to its closing brace.
const FUNCTION_LINES: usize = 70;

/// A module allows `unsafe_code` only if [`UNSAFE_FILES`] lists it, and the list holds no stale entry.
pub(super) fn unsafe_list(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    for file in tree.rust_files() {
        let mut allowances = Allowances::default();
        allowances.visit_file(&tree.parse(file)?);
        for line in allowances.lines {
            let listed = UNSAFE_FILES.iter().any(|name| Path::new(name) == file);
            seen.push(file.to_path_buf());
            if !listed {
                let remedy = "keep unsafe behind a listed module, or add this one with its reason to UNSAFE_FILES in xtask/src/tidy/unsafe_list.rs";
                findings.push(Finding::new(file, line, "allows unsafe_code but is not on the list", remedy));
            }
        }
    }
    for name in UNSAFE_FILES {
        if !seen.iter().any(|file| file == Path::new(name)) {
            findings.push(Finding::new(
                name,
                1,
                "is listed for unsafe code but has none",
                "remove it from UNSAFE_FILES in xtask/src/tidy/unsafe_list.rs",
            ));
        }
    }
    Ok(findings)
}

/// No file and no function is longer than a reader can hold.
pub(super) fn lengths(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.rust_files() {
        let count = tree.text(file)?.unwrap_or_default().lines().count();
        if count > FILE_LINES {
            findings.push(Finding::new(
                file,
                FILE_LINES + 1,
                format!("file has {count} lines, more than {FILE_LINES}"),
                "split it by responsibility",
            ));
        }
        let mut functions = Functions::default();
        functions.visit_file(&tree.parse(file)?);
        for (name, first, last) in functions.spans {
            let lines = last - first + 1;
            if lines > FUNCTION_LINES {
                let what = format!("function {name} has {lines} lines, more than {FUNCTION_LINES}");
                findings.push(Finding::new(file, first, what, "give its parts names"));
            }
        }
    }
    Ok(findings)
}

/// No `todo!`, `unimplemented!`, `#[ignore]` or `assert!(true)`.
pub(super) fn stubs(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.rust_files() {
        let mut stubs = Stubs::default();
        stubs.visit_file(&tree.parse(file)?);
        for (line, what) in stubs.found {
            findings.push(Finding::new(file, line, what, "write it, or return an error that says what is missing"));
        }
    }
    Ok(findings)
}

/// Each module says in `//!` what it is for.
pub(super) fn headers(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.rust_files() {
        let documented = tree.parse(file)?.attrs.iter().any(|attribute| attribute.path().is_ident("doc"));
        if !documented {
            findings.push(Finding::new(file, 1, "module has no header", "open it with `//!`: what it is for and how to read it"));
        }
    }
    Ok(findings)
}

/// The functions of a file with their first and last lines; used by the walk of `read()` too.
#[derive(Default)]
pub(super) struct Functions {
    /// Name, first line, last line.
    pub(super) spans: Vec<(String, usize, usize)>,
}

impl Functions {
    fn add(&mut self, signature: &syn::Signature, body: Span) {
        self.spans.push((signature.ident.to_string(), signature.span().start().line, body.end().line));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig, item.block.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig, item.block.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.add(&item.sig, item.span());
        visit::visit_trait_item_fn(self, item);
    }
}

#[derive(Default)]
struct Allowances {
    lines: Vec<usize>,
}

impl<'ast> Visit<'ast> for Allowances {
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let lowers = attribute.path().is_ident("allow") || attribute.path().is_ident("expect");
        if lowers && attribute.meta.require_list().is_ok_and(|list| has_word(&list.tokens, "unsafe_code")) {
            self.lines.push(attribute.span().start().line);
        }
    }
}

#[derive(Default)]
struct Stubs {
    found: Vec<(usize, String)>,
}

impl<'ast> Visit<'ast> for Stubs {
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = call.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        let line = call.path.span().start().line;
        if ["todo", "unimplemented"].contains(&name.as_str()) {
            self.found.push((line, format!("{name}! is a stub")));
        }
        if name == "assert" && call.tokens.to_string() == "true" {
            self.found.push((line, "an assertion that cannot fail".to_owned()));
        }
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("ignore") {
            self.found.push((attribute.span().start().line, "an ignored test".to_owned()));
        }
    }
}

fn has_word(tokens: &TokenStream, word: &str) -> bool {
    tokens.clone().into_iter().any(|token| matches!(token, TokenTree::Ident(ident) if ident == word))
}
