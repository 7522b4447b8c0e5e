//! Facts about a process that decide whether the library can work in it, as its own mounts and `/proc` show them.
//!
//! They go into the recording, so that `suggest` and `explain --from` judge without privilege. Each fact is `None` where it could not
//! be asked: the process was gone, or belongs to somebody whom the tracer may not look into. Of the environment and the arguments, which
//! may hold secrets, nothing is kept but whether there is an environment at all.

mod elf;
mod image;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use procfs::process::{FDTarget, Process};
use serde::{Deserialize, Serialize};

pub(crate) use elf::{Imports, Linkage};
pub(crate) use image::Seccomp;

use crate::{foreign, places};
use elf::ElfFacts;

/// Part of the file name of the library, under whatever version.
const LIBRARY: &[u8] = b"/libtssx_preload";
/// libc and its dynamic linker: what *they* call by name says nothing of the program.
const LIBC: [&[u8]; 3] = [b"libc.so", b"ld-linux", b"libc-2."];

/// The facts about one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramRecord {
    pub(crate) pid: u32,
    /// Path of its program in its own mount namespace, printable.
    pub(crate) program: Option<String>,
    pub(crate) linkage: Option<Linkage>,
    /// Built by Go's compiler.
    pub(crate) go: Option<bool>,
    /// What the program and the libraries that it has loaded call by name.
    pub(crate) imports: Option<Imports>,
    /// The dynamic linker must not trust the environment (AT_SECURE): set-user-id, or with file capabilities.
    pub(crate) secure: Option<bool>,
    /// Started without a single variable in its environment.
    pub(crate) empty_environment: Option<bool>,
    pub(crate) seccomp: Option<Seccomp>,
    /// Holds an io_uring.
    pub(crate) io_uring: Option<bool>,
    /// Network namespace, by inode.
    pub(crate) network: Option<u64>,
    /// User namespace, by inode.
    pub(crate) users: Option<u64>,
    /// The library is mapped.
    pub(crate) library_loaded: Option<bool>,
    /// The path of the recording's library leads to a file for this process.
    pub(crate) library_visible: Option<bool>,
}

#[cfg(test)]
impl ProgramRecord {
    /// A process that could not be asked for anything.
    pub(crate) fn unknown(pid: u32) -> Self {
        Self {
            pid,
            program: None,
            linkage: None,
            go: None,
            imports: None,
            secure: None,
            empty_environment: None,
            seccomp: None,
            io_uring: None,
            network: None,
            users: None,
            library_loaded: None,
            library_visible: None,
        }
    }
}

/// Asks for facts, and remembers what files said.
#[derive(Debug, Default)]
pub(crate) struct Gatherer {
    /// Libraries by device and inode, as `/proc/PID/maps` shows them, and programs by those of stat(2) with the time of the last change.
    files: HashMap<Vec<u8>, Option<ElfFacts>>,
    /// The library that would be preloaded, if there is one.
    library: Option<PathBuf>,
}

impl Gatherer {
    /// One that looks for this library in each process.
    pub(crate) fn new(library: Option<PathBuf>) -> Self {
        Self { files: HashMap::new(), library }
    }

    /// The library that it looks for.
    pub(crate) fn library(&self) -> Option<&PathBuf> {
        self.library.as_ref()
    }

    /// Asks for the facts about one process; `None` when it is gone.
    pub(crate) fn look(&mut self, pid: u32) -> Option<ProgramRecord> {
        let read = |file: &str| foreign::read(pid, file);
        let namespace = |kind: &str| std::fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().map(|found| found.ino());
        let status = read("status")?;
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| path.into_os_string().into_encoded_bytes());
        let own = File::open(format!("/proc/{pid}/exe")).ok().and_then(|file| self.executable(file));
        let maps = read("maps").filter(|maps| !maps.is_empty());
        let mut loaded = maps.as_deref().map(image::programs);
        let names = |part: &'static [u8]| {
            loaded.as_ref().map(|files| files.values().any(|path| path.windows(part.len()).any(|window| window == part)))
        };
        let (library_loaded, has_libc) = (names(LIBRARY), names(b"/libc.so.6") == Some(true));
        if let Some(files) = &mut loaded {
            files.retain(|_, path| program.as_ref() != Some(path)); // its own file may be deleted by now, and is open already
        }
        // A program that was started by naming the dynamic linker: the linker's file is what runs.
        let linkage = own.map(|own| match own.linkage {
            Linkage::Static if has_libc => Linkage::Glibc,
            linkage => linkage,
        });
        Some(ProgramRecord {
            pid,
            program: program.as_deref().map(crate::names::escape),
            linkage,
            go: own.map(|own| own.go),
            imports: own.zip(loaded.as_ref()).and_then(|(own, files)| self.imports(pid, own, files)),
            secure: read("auxv").and_then(|auxv| image::secure(&auxv)),
            // Of a process without memory, a zombie's or the kernel's, the file is empty too.
            empty_environment: maps.as_ref().and_then(|_| foreign::is_empty(pid, "environ")),
            seccomp: std::fs::read("/proc/self/status").ok().and_then(|own| image::seccomp(&status, &own)),
            io_uring: io_uring(pid),
            network: namespace("net"),
            users: namespace("user"),
            library_loaded,
            library_visible: self.is_visible(pid),
        })
    }

    /// What the program's own file says.
    fn executable(&mut self, file: File) -> Option<ElfFacts> {
        let metadata = file.metadata().ok()?;
        // Another spelling than that of maps: on some file systems the two name different devices.
        let (device, inode, changed) = (metadata.dev(), metadata.ino(), (metadata.mtime(), metadata.mtime_nsec()));
        let id = format!("{device} {inode} {changed:?}").into_bytes();
        *self.files.entry(id).or_insert_with(|| elf::read(file))
    }

    /// What the program and its libraries call by name; `None` where one of them could not be read.
    fn imports(&mut self, pid: u32, own: ElfFacts, files: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<Imports> {
        let mut imports = own.imports;
        for (id, path) in files {
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let is_libc = LIBC.iter().any(|libc| name.starts_with(libc));
            if is_libc || path.windows(LIBRARY.len()).any(|window| window == LIBRARY) {
                continue;
            }
            let facts = *self.files.entry(id.clone()).or_insert_with(|| elf::read(open(pid, path)?));
            imports = imports.or(facts?.imports);
        }
        Some(imports)
    }

    fn is_visible(&self, pid: u32) -> Option<bool> {
        let library = self.library.as_ref()?;
        Some(places::open(pid, library.as_os_str().as_bytes()).ok()?.is_some())
    }
}

/// Opens a file for reading as the process sees it.
fn open(pid: u32, path: &[u8]) -> Option<File> {
    let found = places::open(pid, path).ok()??;
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

/// Whether the process holds an io_uring.
fn io_uring(pid: u32) -> Option<bool> {
    let descriptors = Process::new(pid.cast_signed()).ok()?.fd().ok()?;
    Some(descriptors.flatten().any(|descriptor| is_io_uring(&descriptor.target)))
}

/// Whether a descriptor, as `/proc/PID/fd` shows it, is an io_uring.
pub(crate) fn is_io_uring(target: &FDTarget) -> bool {
    matches!(target, FDTarget::AnonInode(name) if name == "[io_uring]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_about_this_process_are_those_of_this_process() {
        let own = Gatherer::new(Some("/etc/passwd".into())).look(std::process::id()).expect("alive");
        assert_eq!((own.linkage, own.go, own.secure), (Some(Linkage::Glibc), Some(false), Some(false)));
        assert_eq!((own.library_loaded, own.library_visible), (Some(false), Some(true)));
        assert_eq!((own.empty_environment, own.io_uring), (Some(false), Some(false)));
        assert!(own.imports.is_some_and(|imports| imports.connect && imports.accept));
        let elsewhere = Gatherer::new(Some("/nonexistent/library.so".into())).look(std::process::id()).expect("alive");
        assert_eq!(elsewhere.library_visible, Some(false));
        assert_eq!(Gatherer::default().look(u32::MAX), None);
    }
}
