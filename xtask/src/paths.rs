//! Where things are: the workspace, cargo, the target directory, and programs on PATH.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The program that runs, also once another file is in its place, as after `cargo test` has built this package anew.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// The directory that holds the workspace's `Cargo.toml`, wherever the clone lives.
pub(crate) fn workspace() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// The cargo that started us, or the first on PATH.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"))
}

/// Cargo's target directory: `CARGO_TARGET_DIR` if it is set, else `target` in the workspace.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |directory| workspace().join(directory))
}

/// The directory where `cargo install` puts programs; it need not be on PATH.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_INSTALL_ROOT").or_else(|| env::var_os("CARGO_HOME")).map(PathBuf::from);
    home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"))).map(|root| root.join("bin"))
}

/// The first executable called `name` on PATH, or where `cargo install` puts programs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(cargo_bin()).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}
