//! The environment of a program that is not to know the library: used by xtask and by the tests of tssx-preload.

use std::process::Command;

/// Everything that loads the library or steers it.
const VARIABLES: [&str; 8] = [
    "LD_PRELOAD",
    "USE_TSSX",
    "TSSX_DISABLE",
    "TSSX_UPGRADE_AFTER",
    "TSSX_SPIN_US",
    "TSSX_MEMORY_MAX",
    "TSSX_LOG",
    "TSSX_REMAINDER",
];

/// Takes from `command` what it would inherit of them.
pub(crate) fn without_library(command: &mut Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
}
