//! Which packages of Debian the programs need, by what their files say: the shared libraries and the versions of their symbols.
//!
//! It is computed here and not by dpkg-shlibdeps so that the package is the same with and without the tools for Debian's own developers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::TOOL_DEADLINE;
use crate::run;

/// Shared libraries, the package that has each, and the prefix of its symbols' versions.
const LIBRARIES: [(&str, &str, &str); 4] = [
    ("libc.so.6", "libc6", "GLIBC_"),
    ("libm.so.6", "libc6", "GLIBC_"),
    ("ld-linux-x86-64.so.2", "libc6", "GLIBC_"),
    ("libgcc_s.so.1", "libgcc-s1", "GCC_"),
];

/// A version as it is compared, and as it is written.
type Version = Vec<u32>;

/// The field `Depends` for these programs.
///
/// # Errors
/// A program needs a library that is in none of the packages known here.
pub(super) fn of(programs: &[&Path]) -> Result<String> {
    let mut packages: BTreeMap<&str, Version> = BTreeMap::new();
    for program in programs {
        let mut readelf = Command::new("readelf");
        readelf.args(["--wide", "--dynamic", "--version-info"]).arg(program).env("LC_ALL", "C");
        add(&run::capture_success(&mut readelf, TOOL_DEADLINE)?.stdout, &mut packages)?;
    }
    ensure!(packages.contains_key("libc6"), "readelf names no shared library that the programs need");
    let written = |version: &Version| version.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    let fields = packages.iter().map(|(package, version)| format!("{package} (>= {})", written(version)));
    Ok(fields.collect::<Vec<_>>().join(", "))
}

/// Adds what readelf says of one program.
fn add(text: &str, packages: &mut BTreeMap<&'static str, Version>) -> Result<()> {
    for line in text.lines().filter(|line| line.contains("(NEEDED)")) {
        let name = line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(name, _)| name);
        let Some((_, package, _)) = LIBRARIES.iter().find(|(library, ..)| *library == name) else {
            bail!("nobody knows Debian's package of {name}: add it to LIBRARIES in xtask/src/package/depends.rs");
        };
        packages.entry(package).or_default();
    }
    // Only what is needed has `Name:` with `Flags:`; what the file itself defines comes in other lines.
    for line in text.lines().filter(|line| line.contains("Flags:") && line.contains("Name: ")) {
        let name = line.split_once("Name: ").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or_default();
        let known = LIBRARIES.iter().find_map(|(_, package, prefix)| Some((package, name.strip_prefix(prefix)?)));
        let Some((package, version)) = known else { continue };
        let version: Option<Version> = version.split('.').map(|number| number.parse().ok()).collect();
        if let Some(version) = version {
            let known = packages.entry(package).or_default();
            *known = std::cmp::max(std::mem::take(known), version);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number_and_unknown_libraries_named() -> Result<()> {
        let mut packages = BTreeMap::new();
        let text = " 0x1 (NEEDED)  Shared library: [libc.so.6]\n 0x1 (NEEDED)  Shared library: [libgcc_s.so.1]\n\
            0x0010: Version: 1  File: libc.so.6  Cnt: 2\n 0x0020:   Name: GLIBC_2.9  Flags: none  Version: 3\n\
            0x0030:   Name: GLIBC_2.34  Flags: WEAK  Version: 4\n 0x0040:   Name: GCC_4.2.0  Flags: none  Version: 5\n\
            0x0050:   Name: GLIBC_PRIVATE  Flags: none  Version: 6\n";
        add(text, &mut packages)?;
        assert_eq!(packages.into_iter().collect::<Vec<_>>(), [("libc6", vec![2, 34]), ("libgcc-s1", vec![4, 2, 0])]);
        let unknown = add(" 0x1 (NEEDED)  Shared library: [libx.so.1]\n", &mut BTreeMap::new());
        assert!(unknown.is_err_and(|error| error.to_string().contains("libx.so.1")));
        Ok(())
    }
}
