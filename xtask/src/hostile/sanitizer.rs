//! The library under AddressSanitizer, with inaccessible pages around everything that it maps.
//!
//! The compiler's instrumentation needs a run-time library in the same process. That of the C compiler is a shared object, which can be
//! preloaded in front of ours into a program that knows nothing of it, so that the program's own memory is watched too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::sanitize::TARGET;
use crate::{build, paths, run};

/// A finding ends the victim. What leaks is not of interest: a library that is never unloaded keeps what it has.
pub(super) const OPTIONS: &str = "detect_leaks=0:abort_on_error=1:handle_abort=1:detect_stack_use_after_return=1";

/// What is preloaded, in this order.
pub(super) struct Sanitized {
    runtime: PathBuf,
    library: PathBuf,
}

impl Sanitized {
    /// For `LD_PRELOAD`.
    pub(super) fn preload(&self) -> String {
        format!("{}:{}", self.runtime.display(), self.library.display())
    }

    /// Builds it.
    ///
    /// # Errors
    /// The compiler's words; or there is no run-time library.
    pub(super) fn build() -> Result<Self> {
        let mut cargo = Command::new(paths::cargo());
        let directory = paths::target().join("hostile");
        cargo.args(["build", "--release", "--package", "tssx-preload", "--target", TARGET, "--target-dir"]).arg(&directory);
        // The instrumentation is unstable only in how it is asked for: it is the same in every release, and its run-time library comes with
        // the C compiler. With --target, build scripts are left alone.
        let flags = ["-Zsanitizer=address", "-Cforce-frame-pointers=yes", "--cfg=guarded"];
        cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).current_dir(paths::workspace());
        run::run(&mut cargo, build::BUILD_DEADLINE)?;
        let library = directory.join(TARGET).join("release/libtssx_preload.so");
        ensure!(library.is_file(), "the build succeeded but {} is not there", library.display());
        Ok(Self { runtime: runtime()?, library })
    }
}

fn runtime() -> Result<PathBuf> {
    let mut cc = Command::new("cc");
    let output = run::capture_success(cc.arg("-print-file-name=libasan.so"), Duration::from_secs(60))?;
    let named = Path::new(output.stdout.trim());
    named.canonicalize().context("the C compiler has no libasan.so: install that of gcc (Debian: libgcc-N-dev), or use --library")
}
