//! What a program file says of itself: which dynamic linker starts it, whether it is Go, which of libc's functions it calls by name.
//!
//! Nothing of a file is believed beyond these answers, and only headers, the dynamic symbols and their names are read of it.

use std::fs::File;

use object::elf::{FileHeader32, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{ElfFile, FileHeader, ProgramHeader};
use object::{Architecture, Endianness, FileKind, Object, ObjectSection, ObjectSymbol};
use serde::{Deserialize, Serialize};

/// How a program is started and which libc it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Linkage {
    /// By glibc's dynamic linker: the library can be loaded.
    Glibc,
    /// By musl's dynamic linker.
    Musl,
    /// By another dynamic linker.
    Other,
    /// By the kernel alone.
    Static,
    /// For another processor or word size than the tracer's, which is also the library's.
    Foreign,
}

impl Linkage {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Other => "another libc",
            Self::Static => "nothing: static",
            Self::Foreign => "another architecture",
        }
    }
}

/// Functions of libc that decide what the library can see, each true if it is called by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Imports {
    /// `connect`: how a client's socket is selected.
    pub(crate) connect: bool,
    /// `accept` or `accept4`: how a server's is.
    pub(crate) accept: bool,
    /// `syscall`, by which a program makes system calls past the library.
    pub(crate) syscall: bool,
}

impl Imports {
    /// What either calls.
    pub(crate) fn or(self, other: Self) -> Self {
        Self { connect: self.connect || other.connect, accept: self.accept || other.accept, syscall: self.syscall || other.syscall }
    }
}

/// The answers of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ElfFacts {
    /// Of a shared library, which has no dynamic linker of its own: [`Linkage::Static`].
    pub(crate) linkage: Linkage,
    /// Built by Go's own compiler, whose programs make their system calls themselves.
    pub(crate) go: bool,
    pub(crate) imports: Imports,
}

/// Reads a file; `None` where it is no ELF file, or a broken one.
pub(crate) fn read(file: File) -> Option<ElfFacts> {
    let cache = ReadCache::new(file);
    match FileKind::parse(&cache).ok()? {
        FileKind::Elf64 => facts(&ElfFile::<FileHeader64<Endianness>, _>::parse(&cache).ok()?),
        FileKind::Elf32 => facts(&ElfFile::<FileHeader32<Endianness>, _>::parse(&cache).ok()?),
        _ => None,
    }
}

fn facts<'data, H: FileHeader<Endian = Endianness>>(elf: &ElfFile<'data, H, &'data ReadCache<File>>) -> Option<ElfFacts> {
    let go = elf.section_by_name(".go.buildinfo").or_else(|| elf.section_by_name(".note.go.buildid")).is_some_and(|s| s.size() > 0);
    let mut imports = Imports::default();
    for symbol in elf.dynamic_symbols().filter(ObjectSymbol::is_undefined) {
        match symbol.name_bytes().ok()? {
            b"connect" => imports.connect = true,
            b"accept" | b"accept4" => imports.accept = true,
            b"syscall" => imports.syscall = true,
            _ => {}
        }
    }
    let linkage = if is_own(elf.architecture()) && elf.is_64() == cfg!(target_pointer_width = "64") {
        linkage(interpreter(elf)?)
    } else {
        Linkage::Foreign
    };
    Some(ElfFacts { linkage, go, imports })
}

fn is_own(architecture: Architecture) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => architecture == Architecture::X86_64,
        "aarch64" => architecture == Architecture::Aarch64,
        _ => false,
    }
}

/// The dynamic linker that the file asks for, empty if for none; `None` where the file is broken.
fn interpreter<'data, H: FileHeader<Endian = Endianness>>(elf: &ElfFile<'data, H, &'data ReadCache<File>>) -> Option<&'data [u8]> {
    let endian = elf.endian();
    elf.elf_program_headers()
        .iter()
        .find_map(|header| header.interpreter(endian, elf.data()).transpose())
        .map_or(Some(&b""[..]), Result::ok)
}

fn linkage(interpreter: &[u8]) -> Linkage {
    let name = interpreter.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    match name {
        b"" => Linkage::Static,
        name if name.starts_with(b"ld-musl-") => Linkage::Musl,
        name if name.starts_with(b"ld-linux") || name.starts_with(b"ld-2.") => Linkage::Glibc,
        _ => Linkage::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn the_own_program_is_read_as_what_it_is() {
        let own = read(File::open("/proc/self/exe").expect("there")).expect("an ELF file");
        assert_eq!((own.linkage, own.go), (Linkage::Glibc, false));
        assert!(own.imports.connect && own.imports.accept, "std's sockets: {own:?}");
    }

    #[test]
    fn linkers_are_told_apart_by_name() {
        for (path, expected) in [
            (&b""[..], Linkage::Static),
            (b"/lib64/ld-linux-x86-64.so.2", Linkage::Glibc),
            (b"/nix/store/x/lib/ld-linux-aarch64.so.1", Linkage::Glibc),
            (b"/lib/ld-musl-x86_64.so.1", Linkage::Musl),
            (b"/system/bin/linker64", Linkage::Other),
        ] {
            assert_eq!(linkage(path), expected, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn no_file_makes_it_panic_or_go_on_for_ever() {
        let good = std::fs::read("/bin/true").expect("there");
        assert!(read(File::open("/etc/passwd").expect("there")).is_none());
        let mut file = tempfile::tempfile().expect("a file");
        crate::mutations::each(&good[..good.len().min(4096)], 3000, |bytes| {
            file.set_len(0).expect("emptied");
            file.rewind().expect("rewound");
            file.write_all(bytes).expect("written");
            file.write_all(good.get(4096..).unwrap_or_default()).expect("written");
            let _facts = read(file.try_clone().expect("a descriptor"));
        });
    }
}
