//! The cases, by topic. Each was written against the kernel's socket first.

mod close_all;
mod closing;
mod crowds;
mod data;
mod descriptors;
mod ends;
mod epolling;
mod faults;
mod forks;
mod gluing;
mod images;
mod interrupts;
mod limits;
mod many;
mod moving;
mod news;
mod nonblocking;
mod options;
mod pending;
mod places;
mod polling;
mod processes;
mod put_back;
mod readiness;
mod refusals;
mod remainders;
mod rights;
mod selection;
mod sets;
mod state;
mod stdio;
mod stopped;
mod threads;
mod travelling;
mod unserved;
mod vectors;
mod waiting;

use std::ffi::OsString;
use std::path::Path;

use crate::harness::Case;
pub(crate) use images::carry_on;

const TOPICS: &[&[Case]] = &[
    close_all::CASES,
    closing::CASES,
    crowds::CASES,
    data::CASES,
    descriptors::CASES,
    ends::CASES,
    epolling::CASES,
    faults::CASES,
    forks::CASES,
    gluing::CASES,
    images::CASES,
    interrupts::CASES,
    limits::CASES,
    many::CASES,
    moving::CASES,
    news::CASES,
    nonblocking::CASES,
    options::CASES,
    pending::CASES,
    places::CASES,
    polling::CASES,
    processes::CASES,
    put_back::CASES,
    readiness::CASES,
    refusals::CASES,
    remainders::CASES,
    rights::CASES,
    selection::CASES,
    sets::CASES,
    state::CASES,
    stdio::CASES,
    stopped::CASES,
    threads::CASES,
    travelling::CASES,
    unserved::CASES,
    vectors::CASES,
    waiting::CASES,
];

/// Every case.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    TOPICS.iter().copied().flatten()
}

/// The USE_TSSX of a case that is about it.
pub(crate) fn selection(case: &str, directory: &Path) -> Option<OsString> {
    selection::selection(case, directory).or_else(|| places::selection(case, directory))
}
