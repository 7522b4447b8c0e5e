//! Puts the compiled kernel programs where `probe.rs` can embed them.
//!
//! `cargo xtask build` compiles them first and names the object in `TSSX_EBPF_OBJECT`; without that variable the
//! place where xtask puts it is looked at.

use std::env;
use std::path::{Path, PathBuf};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=TSSX_EBPF_OBJECT");
    let object = object_path()?;
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo set no OUT_DIR")?).join("tssx-ebpf.o");
    let bytes = std::fs::read(&object).map_err(|error| {
        format!("the compiled kernel programs are not at {} ({error}): run `cargo xtask build`", object.display())
    })?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(format!("{} is not an ELF object: run `cargo xtask build`", object.display()));
    }
    std::fs::write(&out, bytes).map_err(|error| format!("cannot write {}: {error}", out.display()))
}

/// Where the object is: named by xtask, or xtask's usual place.
fn object_path() -> Result<PathBuf, String> {
    if let Some(named) = env::var_os("TSSX_EBPF_OBJECT") {
        return Ok(PathBuf::from(named));
    }
    let manifest = env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo set no CARGO_MANIFEST_DIR")?;
    let workspace = Path::new(&manifest).parent().ok_or("the package has no parent directory")?.to_path_buf();
    Ok(workspace.join("target/bpf/tssx-ebpf"))
}
