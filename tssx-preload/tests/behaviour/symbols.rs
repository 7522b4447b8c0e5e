//! Which functions of libc the library interposes, and why not the others: lists that are held against this machine's libc and
//! against the library, so that a new libc's new function is noticed before a program finds it.
//!
//! - `symbols/interposed.txt`: what the library exports, no more and no less;
//! - `symbols/families.txt`: functions that take or make a descriptor, or could seem to, and the reason why not;
//! - `symbols/reviewed.txt`: all others that were looked at.
//!
//! Versions of GLIBC_PRIVATE are left out: they are for libc's own parts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Failed, Trial};

use crate::library::library;

const INTERPOSED: &str = include_str!("symbols/interposed.txt");
const FAMILIES: &str = include_str!("symbols/families.txt");
const REVIEWED: &str = include_str!("symbols/reviewed.txt");

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test("only-interposed-symbols-are-exported", exported), Trial::test("every-symbol-of-libc-has-a-verdict", verdicts)]
}

/// A function in a table of dynamic symbols.
struct Function {
    name: String,
    version: String,
    address: String,
}

/// The functions that a shared object defines.
fn functions(object: &Path) -> Result<Vec<Function>, Failed> {
    let output = Command::new("readelf").args(["--wide", "--dyn-syms"]).arg(object).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Columns: number, value, size, type, binding, visibility, section, name.
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let functions = rows.filter_map(|row| match row.as_slice() {
        [_, address, _, kind, "GLOBAL" | "WEAK" | "UNIQUE", _, section, name, ..] if *section != "UND" => {
            let (name, version) = name.split_once('@').unwrap_or((name, ""));
            let function = Function {
                name: name.to_owned(),
                version: version.trim_start_matches('@').to_owned(),
                address: (*address).to_owned(),
            };
            // What is neither function nor chosen at load time is data; a version's own name is listed as an absolute object.
            matches!(*kind, "FUNC" | "IFUNC" | "NOTYPE").then_some(function)
        }
        _ => None,
    });
    Ok(functions.collect())
}

fn interposed() -> BTreeSet<&'static str> {
    lines(INTERPOSED).flat_map(str::split_whitespace).collect()
}

/// Lines that are no comments.
fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty())
}

/// Whatever else appears has leaked; whatever is missing can be bound past the library.
fn exported() -> Result<(), Failed> {
    let functions = functions(&library())?;
    let exported: BTreeSet<&str> = functions.iter().map(|function| function.name.as_str()).collect();
    let interposed = interposed();
    let leaked: Vec<_> = exported.difference(&interposed).collect();
    let missing: Vec<_> = interposed.difference(&exported).collect();
    if !leaked.is_empty() || !missing.is_empty() {
        return Err(format!(
            "exported, but not in symbols/interposed.txt: {leaked:?}; there, but not exported: {missing:?}; \
             remedy: export it in src/abi, or move it to symbols/families.txt with the reason why not"
        )
        .into());
    }
    Ok(())
}

/// The libc that this process runs with: the library is for no other.
fn libc() -> Result<PathBuf, Failed> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mapped = maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| PathBuf::from(format!("/{path}")));
    let mut libc = mapped.filter(|path| path.file_name().is_some_and(|name| name == "libc.so.6"));
    libc.next().ok_or_else(|| "these tests are not linked with a libc.so.6".into())
}

fn verdicts() -> Result<(), Failed> {
    let interposed = interposed();
    let reviewed: BTreeSet<&str> = lines(REVIEWED).flat_map(str::split_whitespace).collect();
    let mut patterns = Vec::new();
    for line in lines(FAMILIES) {
        let (names, reason) = line.split_once(": ").ok_or_else(|| format!("families.txt: `{line}` gives no reason"))?;
        patterns.extend(names.split_whitespace().map(|pattern| (pattern, reason)));
    }
    let mut problems = twice(&interposed, &reviewed, &patterns);
    let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut count = 0;
    for function in functions(&libc()?)?.into_iter().filter(|function| function.version != "GLIBC_PRIVATE") {
        count += 1;
        let name = function.name.as_str();
        let known = interposed.contains(name) || reviewed.contains(name) || patterns.iter().any(|(pattern, _)| fits(pattern, name));
        if !known {
            problems.push(format!(
                "{name}@{} has no verdict; remedy: read its manual page. If it can read, write, wait on, change, copy or hand on a \
                 descriptor, interpose it in src/abi and add it to symbols/interposed.txt, or give the reason why not in \
                 symbols/families.txt; else add it to symbols/reviewed.txt",
                function.version
            ));
        }
        aliases.entry(function.address).or_default().push(function.name);
    }
    for names in aliases.values().filter(|names| names.iter().any(|name| interposed.contains(name.as_str()))) {
        let others = names.iter().filter(|name| !interposed.contains(name.as_str()));
        problems.extend(others.map(|name| format!("{name} is another name of the interposed {names:?}; remedy: interpose it too")));
    }
    if count < 2000 {
        problems.push(format!("only {count} functions found in {}: is it stripped of its symbols?", libc()?.display()));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

/// Names with more than one verdict.
fn twice(interposed: &BTreeSet<&str>, reviewed: &BTreeSet<&str>, patterns: &[(&str, &str)]) -> Vec<String> {
    let mut problems = Vec::new();
    for name in interposed.union(reviewed) {
        let mut verdicts: Vec<&str> = Vec::new();
        verdicts.extend(interposed.contains(name).then_some("interposed"));
        verdicts.extend(reviewed.contains(name).then_some("reviewed"));
        verdicts.extend(patterns.iter().filter(|(pattern, _)| fits(pattern, name)).map(|(_, reason)| *reason));
        if verdicts.len() > 1 {
            problems.push(format!("{name} has more than one verdict: {verdicts:?}"));
        }
    }
    problems
}

/// Whether `name` is the pattern, or begins with it where it ends with a star.
fn fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}
