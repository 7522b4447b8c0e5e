//! Memory that the library takes: from the kernel by itself, and from the program's allocator where a function of libc's that it calls does.
//!
//! An allocator makes no system call most of the time. So a small shared object in its place makes one, of a number that no kernel has, and
//! everything that looks at system calls sees allocations as well.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;

use super::site::Site;
use crate::{paths, run};

/// The number of that system call.
pub(super) const NUMBER: u64 = 21_331;

/// The shared object.
#[derive(Clone, Debug)]
pub(super) struct Heap {
    /// As the kernel names it in a process's mappings.
    pub path: PathBuf,
}

impl Heap {
    /// Compiles it.
    ///
    /// # Errors
    /// There is no C compiler, or it has something to say.
    pub(super) fn build() -> Result<Self> {
        let directory = paths::target().join("faults");
        std::fs::create_dir_all(&directory)?;
        let (source, path) = (directory.join("heap.c"), directory.join("heap.so"));
        std::fs::write(&source, include_str!("heap.c"))?;
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-shared", "-fPIC", "-Wall", "-Werror"])
            .arg(format!("-DNUMBER={NUMBER}"))
            .arg("-o")
            .arg(&path)
            .arg(&source);
        run::capture_success(&mut cc, Duration::from_secs(60)).context("the allocator that fails, by the C compiler")?;
        Ok(Self { path: path.canonicalize()? })
    }
}

/// Whether the library takes memory by this call.
pub(super) fn takes_memory(site: &Site, number: u64) -> bool {
    let own = [libc::SYS_mmap, libc::SYS_memfd_create, libc::SYS_ftruncate];
    number == NUMBER || site.own && own.iter().any(|taking| taking.cast_unsigned() == number)
}

/// Whether a call of the library's goes through this file: libc; and where memory is taken, the allocator and the dynamic linker.
pub(super) fn is_between(heap: Option<&Heap>, file: &Path, number: u64) -> bool {
    let is = |start: &str| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
    is("libc.so") || number == NUMBER && (is("ld-linux") || heap.is_some_and(|heap| heap.path == file))
}
