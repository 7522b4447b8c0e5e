//! Plays a program at a pair and writes down what came of each step.

use std::fmt;
use std::time::Duration;

use crate::pair::{Fatal, HANG, Pair};
use crate::program::{Setup, Step};
use crate::state::State;
use crate::words::Worker;

/// What came of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// What the call said; `None`: it waits.
    pub answer: Option<String>,
    /// Calls of earlier steps that ended because of it.
    pub woken: Vec<(Worker, String)>,
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.answer.as_deref().unwrap_or("waits"))?;
        self.woken.iter().try_for_each(|(worker, answer)| write!(out, "; {worker} returns {answer}"))
    }
}

/// What came of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    pub lines: Vec<Line>,
    /// What ended it early.
    pub fatal: Option<Fatal>,
}

/// Where steps come from.
pub(crate) trait Source {
    /// The next step, which has no hazard in this state.
    fn next(&mut self, state: &State) -> Option<Step>;
}

/// Steps of a list; those that have a hazard are passed over.
pub(crate) struct Listed<'a>(pub std::slice::Iter<'a, Step>);

impl Source for Listed<'_> {
    fn next(&mut self, state: &State) -> Option<Step> {
        self.0.find(|step| !state.hazard(step)).cloned()
    }
}

/// How long a call may take that returned when played plain.
#[derive(Clone, Copy)]
pub(crate) struct Patience(pub Duration);

/// Plays steps plain; what was played and what came of it.
pub(crate) fn plain(pair: &mut Pair, setup: Setup, source: &mut impl Source) -> (Vec<Step>, Transcript) {
    let mut steps = Vec::new();
    let mut transcript = Transcript::default();
    let mut state = State::new(setup);
    let mut play = || -> Result<(), Fatal> {
        pair.open(setup)?;
        while let Some(step) = source.next(&state) {
            steps.push(step.clone());
            transcript.lines.push(one(pair, &mut state, &step, None)?);
        }
        let waiting: Vec<_> = state.waiting().map(|(worker, _)| worker).collect();
        pair.close(&waiting)
    };
    transcript.fatal = play().err();
    (steps, transcript)
}

/// Plays the same steps at another pair, as the plain transcript leads one to expect. The pair may be looked at before the first
/// and after the last.
pub(crate) fn again(
    pair: &mut Pair,
    setup: Setup,
    steps: &[Step],
    oracle: &Transcript,
    patience: Patience,
    mut look: impl FnMut(&Pair),
) -> Transcript {
    let mut transcript = Transcript::default();
    let mut state = State::new(setup);
    let mut play = || -> Result<(), Fatal> {
        pair.open(setup)?;
        look(pair);
        for (step, expected) in steps.iter().zip(&oracle.lines) {
            let line = one(pair, &mut state, step, Some((expected, patience)))?;
            let same = line == *expected;
            transcript.lines.push(line);
            if !same {
                break;
            }
        }
        look(pair);
        let waiting: Vec<_> = state.waiting().map(|(worker, _)| worker).collect();
        pair.close(&waiting)
    };
    transcript.fatal = play().err();
    transcript
}

fn one(pair: &mut Pair, state: &mut State, step: &Step, expected: Option<(&Line, Patience)>) -> Result<Line, Fatal> {
    let may_wait = state.wait_of(step).is_some_and(|time| !time.is_short());
    pair.board.give(step.worker, &step.to_string());
    let answer = match (may_wait, expected) {
        (false, _) => Some(pair.answer(step.worker, HANG)?),
        (true, Some((Line { answer: Some(_), .. }, patience))) => pair.board.wait(step.worker, patience.0),
        (true, _) => match pair.board.wait(step.worker, Duration::ZERO) {
            None => pair.answer_or_sleep(step.worker)?,
            answer => answer,
        },
    };
    state.apply(step, answer.as_deref(), pair.board);
    let woken = settle(pair, state, expected)?;
    Ok(Line { answer, woken })
}

/// Waits until every call that waits still does so, or is over.
fn settle(pair: &mut Pair, state: &mut State, expected: Option<(&Line, Patience)>) -> Result<Vec<(Worker, String)>, Fatal> {
    if let Some((line, patience)) = expected {
        for (worker, _) in &line.woken {
            if state.is_pending(*worker) {
                let _ = pair.board.wait(*worker, patience.0);
            }
        }
    }
    let mut woken = Vec::new();
    loop {
        let waiting: Vec<_> = state.waiting().map(|(worker, _)| worker).collect();
        let mut changed = false;
        for worker in waiting {
            if let Some(answer) = pair.answer_or_sleep(worker)? {
                state.woken(worker, &answer, pair.board);
                woken.push((worker, answer));
                changed = true;
            }
        }
        if !changed {
            woken.sort_by_key(|(worker, _)| (worker.side.index(), worker.thread));
            return Ok(woken);
        }
    }
}
