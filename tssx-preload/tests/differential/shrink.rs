//! Makes a program that differs shorter, as long as it is the same twice when played plain and still differs.

use std::time::{Duration, Instant};

use crate::campaign::{Difference, Pairs};
use crate::play::{Patience, Transcript};
use crate::program::Program;

/// Longest that a program is worked on.
const TIME: Duration = Duration::from_secs(40);
/// While shrinking a call that hangs is given up sooner.
const PATIENCE: Patience = Patience(Duration::from_millis(400));
/// Plain plays that must be the same.
const CLEAR: usize = 2;

/// Shrinks as far as it gets.
pub(crate) fn shrink(pairs: &mut Pairs, difference: Difference) -> Difference {
    let mut best = difference;
    let until = Instant::now() + TIME;
    loop {
        let before = best.program.clone();
        best = chunks(pairs, best, until);
        best = simpler(pairs, best, until);
        if best.program == before || Instant::now() > until {
            return best;
        }
    }
}

/// The candidate as a difference, if it still is one.
fn still(pairs: &mut Pairs, best: &Difference, candidate: &Program) -> Option<Difference> {
    let (steps, plain) = pairs.plain(candidate.setup, &candidate.steps);
    let program = Program { setup: candidate.setup, steps };
    if plain.fatal.is_some() || program == best.program {
        return None;
    }
    let preloaded = pairs.again(best.mode, &program, &plain, PATIENCE, |_| {});
    let differs = |transcript: &Transcript| *transcript != plain;
    if !differs(&preloaded) || !pairs.is_clear(&program, &plain, CLEAR) {
        return None;
    }
    let again = pairs.again(best.mode, &program, &plain, PATIENCE, |_| {});
    differs(&again).then_some(Difference { mode: best.mode, program, plain, preloaded, rate: best.rate })
}

/// Leaves out ever smaller chunks of steps.
fn chunks(pairs: &mut Pairs, mut best: Difference, until: Instant) -> Difference {
    // Nothing after the first difference matters.
    let mut short = best.program.clone();
    short.steps.truncate(best.preloaded.lines.len().max(1));
    if let Some(found) = still(pairs, &best, &short) {
        best = found;
    }
    let mut length = best.program.steps.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        while from < best.program.steps.len() && Instant::now() < until {
            let mut candidate = best.program.clone();
            candidate.steps.drain(from..(from + length).min(candidate.steps.len()));
            match still(pairs, &best, &candidate) {
                Some(found) => best = found,
                None => from += length,
            }
        }
        if length == 1 || Instant::now() > until {
            return best;
        }
        length = length.div_ceil(2);
    }
}

/// Makes the setup and each step's fields simpler.
fn simpler(pairs: &mut Pairs, mut best: Difference, until: Instant) -> Difference {
    for candidate in setups(&best.program) {
        if let Some(found) = still(pairs, &best, &candidate) {
            best = found;
            break;
        }
    }
    let mut index = 0;
    while index < best.program.steps.len() {
        let mut found = false;
        for candidate in steps(&best.program, index) {
            if Instant::now() > until {
                return best;
            }
            if let Some(simpler) = still(pairs, &best, &candidate) {
                best = simpler;
                found = true;
                break;
            }
        }
        index += usize::from(!found);
    }
    best
}

fn setups(program: &Program) -> Vec<Program> {
    let warm = [0, 1, 4, 8, 12].into_iter().filter(|warm| *warm < program.setup.warm);
    let mut all: Vec<_> = warm
        .map(|warm| {
            let mut other = program.clone();
            other.setup.warm = warm;
            other
        })
        .collect();
    if program.setup.connections > 1 {
        let mut other = program.clone();
        other.setup.connections = 1;
        all.insert(0, other);
    }
    all
}

fn steps(program: &Program, index: usize) -> Vec<Program> {
    let step = &program.steps[index];
    let mut all = Vec::new();
    if step.child {
        let mut other = step.clone();
        other.child = false;
        all.push(other);
    }
    if step.worker.thread > 0 {
        let mut other = step.clone();
        other.worker.thread = 0;
        all.push(other);
    }
    all.extend(step.op.smaller().into_iter().map(|op| crate::program::Step { op, ..step.clone() }));
    let program_with = |step| {
        let mut other = program.clone();
        other.steps[index] = step;
        other
    };
    all.into_iter().map(program_with).collect()
}
