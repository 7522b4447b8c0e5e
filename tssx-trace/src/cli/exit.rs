//! Exit statuses, as documented in the help texts and the man pages.

/// The command could not do its work.
pub(crate) const FAILED: u8 = 1;
/// Something was seen but could not be counted: the figures are lower bounds.
pub(crate) const LOST: u8 = 3;
/// A hit rate is below the minimum asked for.
pub(crate) const BELOW_MINIMUM: u8 = 4;
/// There was nothing to judge, to explain or to suggest.
pub(crate) const NOTHING: u8 = 5;
/// A socket that was expected to be accelerated is not.
pub(crate) const UNEXPECTED: u8 = 6;

/// What they and clap's own mean: the only list of them, for the man pages.
pub(crate) const MEANINGS: [(u8, &str); 7] = [
    (
        0,
        "Done: with a minimum asked for, every hit rate is at least that, and each socket of --expect is accelerated. A reader of the output that goes away changes no status.",
    ),
    (FAILED, "Could not do it; the message says what is missing and the remedy."),
    (2, "Wrong usage."),
    (LOST, "Some traffic could not be counted: the figures are lower bounds, or (suggest) miss too much to advise from."),
    (BELOW_MINIMUM, "A hit rate is below --min-hit-rate."),
    (NOTHING, "There was nothing to judge, to explain or to suggest, or (doctor) traffic cannot be measured here."),
    (
        UNEXPECTED,
        "A socket of --expect has no accelerated connection, or (doctor) the library is missing, does not fit or does not accelerate.",
    ),
];
