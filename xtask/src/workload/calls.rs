//! Calls on descriptors that the library has no business with: what its presence costs them.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::Result;

use super::{Load, Pinned, WARM_UP, rate};

/// `write`s of one byte to /dev/null per second: the cheapest call that passes the library.
pub(super) fn plain(load: &Load, _: Pinned) -> Result<f64> {
    let mut null = OpenOptions::new().write(true).open("/dev/null")?;
    rate(load.milliseconds, WARM_UP, || Ok(null.write_all(&[0])?))
}
