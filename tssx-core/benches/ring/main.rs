//! Why the ring is as it is: each choice against what it was chosen instead of, alternating, on two CPUs of this machine.
//!
//! ```text
//! cargo bench -p tssx-core                    all
//! cargo bench -p tssx-core -- rest copy       those whose name contains a word
//! ```
//!
//! Figures are medians of the rounds, nanoseconds for each message, with the ratio to the first line of their group, which is what the ring does.
//! Absolute figures vary from run to run with where the host puts the two CPUs (raw ping-pong says how far apart they are); ratios of
//! one run do not.

mod copies;
mod limits;
mod rings;
mod support;

use support::Group;

/// What is measured, and how.
type Measurement = (&'static str, fn() -> Group);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let groups: [Measurement; 5] = [
        ("limits of the machine", limits::limits),
        ("round trip: what was seen of the other's position is believed", rings::round_trips),
        ("one way: what was seen of the other's position is believed", rings::streams),
        ("rest of the reader of a one-way stream", rings::rests),
        ("copy of large messages", copies::copies),
    ];
    for (name, measure) in groups {
        if wanted(name) {
            println!("{name}\n{}", measure());
        }
    }
}
