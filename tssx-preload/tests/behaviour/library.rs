//! The library under test.

use std::path::PathBuf;

/// Its path, from `TSSX_PRELOAD`.
pub(crate) fn library() -> PathBuf {
    let path = std::env::var_os("TSSX_PRELOAD").map(PathBuf::from);
    let path = path.expect("TSSX_PRELOAD must name libtssx_preload.so: run these tests by `cargo xtask test`");
    assert!(path.is_absolute() && path.is_file(), "TSSX_PRELOAD={} is no absolute path of a file", path.display());
    path
}
