//! Where the preload library is, and of which release.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use object::Endianness;
use object::elf::{ET_DYN, FileHeader64};
use object::read::elf::{ElfFile, FileHeader, ProgramHeader};
use tssx_core::release::{KIND, OWNER, Release};

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
        places.extend(beside(directory));
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

/// Where it is beside a program in `directory`: in the same one, in the `lib` that belongs to a `bin`, and, for cargo's debug builds, where
/// cargo leaves release builds: the library is built in no other way.
fn beside(directory: &Path) -> Vec<PathBuf> {
    let mut places = vec![directory.join(NAME), directory.join("../lib/tssx").join(NAME)];
    if directory.file_name().is_some_and(|name| name == "debug") && directory.join("../CACHEDIR.TAG").is_file() {
        places.push(directory.join("../release").join(NAME));
    }
    places
}

/// The release of a library file, as `version, protocol`: see [`describe`].
///
/// # Errors
/// Where it is no library of TSSX for this machine, or of another release than this program.
pub(crate) fn check_release(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let data = std::fs::read(path).with_context(|| format!("cannot read the library {shown}"))?;
    release_of(&data, &shown.to_string())
}

/// The release that a library file's bytes say they are of.
fn release_of(data: &[u8], shown: &str) -> anyhow::Result<String> {
    let elf = ElfFile::<FileHeader64<Endianness>>::parse(data).map_err(|error| anyhow!("{shown} is broken: {error}"))?;
    let endian = elf.endian();
    if elf.elf_header().e_type(endian) != ET_DYN {
        bail!("{shown} is not a shared library");
    }
    let mut headers = elf.elf_program_headers().iter();
    let said = headers.find_map(|header| {
        let mut notes = header.notes(endian, elf.data()).ok()??;
        while let Ok(Some(note)) = notes.next() {
            if note.name() == OWNER.split(|byte| *byte == 0).next()? && note.n_type(endian) == KIND {
                return Some(note.desc());
            }
        }
        None
    });
    let said = said.with_context(|| format!("{shown} does not say that it is a library of TSSX: it is another, or too old"))?;
    let release = Release::parse(said).with_context(|| format!("{shown} has a note of TSSX that is not understood"))?;
    if release != Release::OWN {
        bail!("the library is {}, and tssx-trace is {}", describe(release), describe(Release::OWN));
    }
    Ok(describe(release))
}

/// A release for people.
fn describe(release: Release<'_>) -> String {
    let Release { version, segment, ledger } = release;
    let version = crate::names::escape(version.as_bytes());
    format!("version {version}, segment version {segment}, ledger version {ledger}")
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
    let read = file.read_exact(&mut magic);
    if let Err(error) = &read
        && error.kind() != std::io::ErrorKind::UnexpectedEof
    {
        read.with_context(|| format!("cannot read the library {shown}"))?;
    }
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
        assert!(check_release(Path::new("/etc/passwd")).is_err());
        let program = std::env::current_exe().expect("this program");
        let error = check_release(&program).expect_err("refused");
        assert!(error.to_string().contains("does not say that it is a library of TSSX"), "{error:#}");
    }

    #[test]
    fn a_debug_build_looks_where_cargo_leaves_release_builds() {
        let target = tempfile::tempdir().expect("a directory");
        let debug = target.path().join("debug");
        let release = debug.join("../release").join(NAME);
        assert!(!beside(&debug).contains(&release), "it need not be cargo's");
        std::fs::write(target.path().join("CACHEDIR.TAG"), "").expect("written");
        std::fs::create_dir(&debug).expect("made");
        assert!(beside(&debug).contains(&release));
        assert!(!beside(target.path()).iter().any(|place| place.ends_with("release/libtssx_preload.so")));
    }

    /// A shared library with nothing in it but a note, as the library has it.
    fn noted() -> Vec<u8> {
        const HEADER: u64 = 64;
        const PROGRAM_HEADER: u64 = 56;
        let own = Release::OWN;
        let mut said = [own.segment.to_ne_bytes(), own.ledger.to_ne_bytes()].concat();
        said.extend_from_slice(own.version.as_bytes());
        said.resize(32, 0);
        let note = [&[5_u32, 32, KIND].map(u32::to_ne_bytes).concat(), &OWNER[..], &said].concat();
        let at = HEADER + PROGRAM_HEADER;
        let ident = [b"\x7fELF", &[2, if cfg!(target_endian = "little") { 1 } else { 2 }, 1, 0][..], &[0; 8]].concat();
        let half = |words: &[u16]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let word = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let long = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let size = note.len() as u64;
        [
            ident,
            half(&[ET_DYN, 62]),
            word(&[1]),
            long(&[0, HEADER, 0]),
            word(&[0]),
            half(&[64, 56, 1, 64, 0, 0]),
            word(&[4, 4]), // PT_NOTE, readable
            long(&[at, at, at, size, size, 4]),
            note,
        ]
        .concat()
    }

    #[test]
    fn a_library_of_any_bytes_has_a_release_or_an_error() {
        let good = noted();
        assert_eq!(release_of(&good, "x").expect("a release"), describe(Release::OWN));
        crate::mutations::each(&good, 50_000, |bytes| {
            if let Ok(said) = release_of(bytes, "x") {
                assert!(said == describe(Release::OWN) && bytes.windows(5).any(|owner| owner == &OWNER[..5]), "{said}");
            }
        });
    }
}
