//! Where the preload library is.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// File name of the library.
const NAME: &str = "libtssx_preload.so";
/// Names another place, for tests and unusual installations.
const VARIABLE: &str = "TSSX_PRELOAD";
/// Directories that are looked at last.
const SYSTEM: [&str; 4] =
    ["/usr/local/lib/tssx", "/usr/lib/tssx", "/usr/lib/x86_64-linux-gnu/tssx", "/usr/lib/aarch64-linux-gnu/tssx"];

/// The absolute path of the library.
///
/// # Errors
/// One that names the places where it was looked for.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(named);
        check(&path).with_context(|| format!("{VARIABLE} is set to {}", path.display()))?;
        return usable(path);
    }
    let mut places = Vec::new();
    if let Some(directory) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(directory.join(NAME));
        places.push(directory.join("../lib/tssx").join(NAME));
    }
    places.extend(SYSTEM.iter().map(|directory| Path::new(directory).join(NAME)));
    for place in &places {
        if place.exists() {
            check(place)?;
            return usable(place.canonicalize().with_context(|| format!("cannot resolve {}", place.display()))?);
        }
    }
    let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    bail!(
        "the preload library {NAME} is missing (looked at {}): build it with `cargo xtask build`, or name it in {VARIABLE}",
        looked.join(", ")
    )
}

/// Whether the environment names one.
pub(crate) fn is_named() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Whether the file can be what the dynamic linker is told to load.
fn check(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    if !path.is_absolute() {
        bail!("the library's path must be absolute, {shown} is not");
    }
    let mut magic = [0; 4];
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot read the library {shown}"))?;
    file.read_exact(&mut magic).with_context(|| format!("cannot read the library {shown}"))?;
    if magic != *b"\x7fELF" {
        bail!("{shown} is not a shared library");
    }
    Ok(())
}

/// LD_PRELOAD separates its entries by blanks and colons and has no escape for them, ld.so(8).
fn usable(path: PathBuf) -> anyhow::Result<PathBuf> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.iter().any(|byte| byte.is_ascii_whitespace() || *byte == b':') || path.to_str().is_none() {
        bail!("LD_PRELOAD cannot name {}: move the library to a path of UTF-8 without blanks and colons", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_ld_so_can_take_are_given() {
        assert!(usable(PathBuf::from("/lib/tssx/lib.so")).is_ok());
        for wrong in ["/my libs/lib.so", "/a:b/lib.so"] {
            assert!(usable(PathBuf::from(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_by_name() {
        let error = check(Path::new("/etc/passwd")).expect_err("refused");
        assert!(error.to_string().contains("/etc/passwd"));
        assert!(check(Path::new("relative.so")).is_err());
        assert!(check(Path::new("/nonexistent.so")).is_err());
    }
}
