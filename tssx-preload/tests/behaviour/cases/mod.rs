//! The cases, by topic. Each was written against the kernel's socket first.

mod closing;
mod data;
mod descriptors;
mod many;
mod nonblocking;
mod options;
mod processes;
mod readiness;
mod unserved;
mod waiting;

use crate::harness::Case;

/// Every case.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [data::CASES, nonblocking::CASES, readiness::CASES, closing::CASES, waiting::CASES, options::CASES, descriptors::CASES]
        .into_iter()
        .chain([processes::CASES, many::CASES, unserved::CASES])
        .flatten()
}
