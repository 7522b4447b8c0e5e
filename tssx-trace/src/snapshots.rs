//! Texts that tests hold against files of `tests/snapshots`, which `TSSX_BLESS=1` writes anew. `tests/snapshots.rs` lists them all.

use std::path::Path;

/// Holds each text against the file of its name.
pub(crate) fn hold(texts: &[(&str, String)]) {
    let bless = std::env::var_os("TSSX_BLESS").is_some();
    for (name, text) in texts {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.out"));
        if bless {
            std::fs::write(&file, text).expect("written");
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(*text, expected, "{name}: TSSX_BLESS=1 if this is meant");
    }
    assert!(!bless, "written anew: look at them, and run without TSSX_BLESS");
}
