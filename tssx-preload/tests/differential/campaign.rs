//! Many programs: each is made while it is played plain, then played at a preloaded pair and compared; a difference is
//! confirmed, shrunk, and written to a file.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::generate::Generator;
use crate::ledger;
use crate::mode::{Mode, PRELOADED};
use crate::pair::{Fatal, Pair};
use crate::play::{self, Listed, Patience, Transcript};
use crate::program::{Program, Setup, Step};
use crate::shrink;
use crate::words::Side;

/// How long a call may take with the library that returned without it.
const PATIENCE: Patience = Patience(Duration::from_secs(3));
/// Plays of a program that differed, at each pair.
const REPLAYS: usize = 3;
/// Plays, at each pair, of a program that does not differ again at once.
const SELDOM: usize = 40;
/// Every so manieth program's bytes are looked up in the ledgers.
const SAMPLE: u64 = 16;

/// A program that the library plays differently.
pub(crate) struct Difference {
    pub mode: Mode,
    pub program: Program,
    pub plain: Transcript,
    pub preloaded: Transcript,
    /// Of so many plays after the first, so many differed.
    pub rate: (usize, usize),
}

impl Difference {
    /// What differs, without numbers: differences with the same sign mostly have the same cause.
    pub(crate) fn sign(&self) -> String {
        let first = self.plain.lines.iter().zip(&self.preloaded.lines).position(|(plain, preloaded)| plain != preloaded);
        let Some(index) = first else {
            return format!("{:?}", self.preloaded.fatal).chars().filter(|letter| !letter.is_ascii_digit()).collect();
        };
        let letters = |text: String| text.chars().filter(|letter| !letter.is_ascii_digit()).collect::<String>();
        let (plain, preloaded) = (self.plain.lines[index].to_string(), self.preloaded.lines[index].to_string());
        let word = self.program.steps.get(index).map_or("", |step| step.op.word());
        format!("{word}: {} / {}", letters(plain), letters(preloaded))
    }

    /// Program and both transcripts, side by side.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("# {:?}; differed in {} of {} plays\n", self.mode, self.rate.0, self.rate.1);
        let _ = writeln!(text, "setup connections={} warm={}", self.program.setup.connections, self.program.setup.warm);
        for (index, step) in self.program.steps.iter().enumerate() {
            let _ = writeln!(text, "{step}");
            let line = |transcript: &Transcript| transcript.lines.get(index).map_or_else(|| "-".to_owned(), ToString::to_string);
            let (plain, preloaded) = (line(&self.plain), line(&self.preloaded));
            if plain == preloaded {
                let _ = writeln!(text, "#   {plain}");
            } else {
                let _ = writeln!(text, "#   plain:     {plain}\n#   preloaded: {preloaded}");
                break;
            }
        }
        if let Some(fatal) = &self.preloaded.fatal {
            let _ = writeln!(text, "#   preloaded: {fatal}");
        }
        text
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub programs: u64,
    pub steps: u64,
    /// Programs that are not the same twice when played plain.
    pub unclear: u64,
    pub differences: u64,
    /// Bytes of the sampled programs, without the warm-up.
    pub ring_bytes: u64,
    pub kernel_bytes: u64,
    /// Of the sampled programs, those of which bytes went through a ring.
    pub sampled: u64,
    pub accelerated: u64,
}

/// The pairs that are alive.
#[derive(Default)]
pub(crate) struct Pairs(HashMap<Mode, Pair>);

impl Pairs {
    fn get(&mut self, mode: Mode) -> Result<&mut Pair, Fatal> {
        Ok(match self.0.entry(mode) {
            Entry::Occupied(pair) => pair.into_mut(),
            Entry::Vacant(place) => place.insert(Pair::start(mode)?),
        })
    }

    /// Plays a list plain; what was not passed over, and what came of it.
    pub(crate) fn plain(&mut self, setup: Setup, steps: &[Step]) -> (Vec<Step>, Transcript) {
        self.source(setup, &mut Listed(steps.iter()))
    }

    fn source(&mut self, setup: Setup, source: &mut impl play::Source) -> (Vec<Step>, Transcript) {
        match self.get(Mode::Plain) {
            Ok(pair) => {
                let (steps, transcript) = play::plain(pair, setup, source);
                self.mind(Mode::Plain, &transcript);
                (steps, transcript)
            }
            Err(fatal) => (Vec::new(), Transcript { fatal: Some(fatal), ..Transcript::default() }),
        }
    }

    /// Plays the same steps with the library.
    pub(crate) fn again(
        &mut self,
        mode: Mode,
        program: &Program,
        oracle: &Transcript,
        patience: Patience,
        look: impl FnMut(&Pair),
    ) -> Transcript {
        match self.get(mode) {
            Ok(pair) => {
                let transcript = play::again(pair, program.setup, &program.steps, oracle, patience, look);
                self.mind(mode, &transcript);
                transcript
            }
            Err(fatal) => Transcript { fatal: Some(fatal), ..Transcript::default() },
        }
    }

    /// A pair with which something went wrong is replaced.
    fn mind(&mut self, mode: Mode, transcript: &Transcript) {
        if transcript.fatal.is_some() {
            self.0.remove(&mode);
        }
    }

    /// Whether the program, played plain, is the same again.
    pub(crate) fn is_clear(&mut self, program: &Program, oracle: &Transcript, times: usize) -> bool {
        (0..times).all(|_| {
            let again = self.plain(program.setup, &program.steps);
            let clear = again == (program.steps.clone(), oracle.clone());
            if !clear && std::env::var_os("TSSX_UNCLEAR").is_some() {
                let program = Program { setup: program.setup, steps: again.0 };
                let unclear = Difference { mode: Mode::Plain, program, plain: oracle.clone(), preloaded: again.1, rate: (0, 0) };
                println!("not the same twice: {}", unclear.text());
            }
            clear
        })
    }
}

pub(crate) struct Campaign {
    pub pairs: Pairs,
    pub counts: Counts,
    /// By kind of operation, how often it was played.
    pub played: HashMap<&'static str, u64>,
    /// Failures of the harness: plain runs that did not end.
    pub faults: Vec<String>,
}

impl Campaign {
    pub(crate) fn new() -> Self {
        Self { pairs: Pairs::default(), counts: Counts::default(), played: HashMap::new(), faults: Vec::new() }
    }

    /// Ends every player.
    pub(crate) fn end(&mut self) {
        self.pairs.0.clear();
    }

    /// Plays a kept program in a mode.
    ///
    /// # Errors
    /// It does not end when played plain, or is not the same twice.
    pub(crate) fn replay(&mut self, program: &Program, mode: Mode) -> Result<Option<Difference>, String> {
        let (steps, plain) = self.pairs.plain(program.setup, &program.steps);
        if let Some(fatal) = plain.fatal {
            return Err(format!("played plain: {fatal}"));
        }
        if steps != program.steps {
            return Err("a step of it was passed over: it has no one certain answer".to_owned());
        }
        for _ in 0..REPLAYS {
            let preloaded = self.pairs.again(mode, program, &plain, PATIENCE, |_| {});
            if preloaded != plain {
                if !self.pairs.is_clear(program, &plain, REPLAYS) {
                    return Err("not the same twice when played plain".to_owned());
                }
                return Ok(Some(Difference { mode, program: program.clone(), plain, preloaded, rate: (1, 1) }));
            }
        }
        Ok(None)
    }

    /// The mode in which the program with this number is played.
    pub(crate) fn mode_of(number: u64) -> Mode {
        let mut at = number % PRELOADED.into_iter().map(share).sum::<u64>();
        let here = |mode: &&Mode| {
            let here = at < share(**mode);
            at = at.saturating_sub(share(**mode));
            here
        };
        PRELOADED.iter().find(here).copied().unwrap_or(Mode::Both)
    }

    /// Makes, plays and compares one program.
    pub(crate) fn one(&mut self, seed: u64, number: u64, mode: Mode) -> Option<Difference> {
        let (setup, mut generator) = Generator::new(mixed(seed, number));
        let (steps, plain) = self.pairs.source(setup, &mut generator);
        let program = Program { setup, steps };
        self.counts.programs += 1;
        self.counts.steps += program.steps.len() as u64;
        for step in &program.steps {
            *self.played.entry(step.op.word()).or_default() += 1;
        }
        if let Some(fatal) = &plain.fatal {
            // Not the library's doing, whatever it is; too many of them are a failure.
            self.counts.unclear += 1;
            self.faults.push(format!("program {number} of seed {seed}, played plain: {fatal}\n{program}"));
            return None;
        }
        let sampled = number.is_multiple_of(SAMPLE) && mode.may_accelerate();
        let mut looks = Vec::new();
        let look = |pair: &Pair| {
            if sampled {
                looks.push(ledger_bytes(pair));
            }
        };
        let preloaded = self.pairs.again(mode, &program, &plain, PATIENCE, look);
        // Slots of earlier connections keep their counts until they are used again: only what was added is the program's.
        if let [before, after] = looks.as_slice() {
            let (ring, kernel) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
            self.counts.sampled += 1;
            self.counts.accelerated += u64::from(ring > 0);
            self.counts.ring_bytes += ring;
            self.counts.kernel_bytes += kernel;
        }
        (preloaded != plain).then(|| self.confirm(mode, program, plain, preloaded)).flatten()
    }

    /// A first difference: is it the program's, or the kernel's own moods?
    fn confirm(&mut self, mode: Mode, program: Program, plain: Transcript, preloaded: Transcript) -> Option<Difference> {
        if !self.pairs.is_clear(&program, &plain, REPLAYS) {
            self.counts.unclear += 1;
            return None;
        }
        let (mut last, mut different, mut plays) = (preloaded, 0, 0);
        while plays < REPLAYS || (different == 0 && plays < SELDOM) {
            plays += 1;
            let again = self.pairs.again(mode, &program, &plain, PATIENCE, |_| {});
            if again != plain {
                different += 1;
                last = again;
            }
        }
        // What shows seldom may be as seldom without the library.
        if plays > REPLAYS && !self.pairs.is_clear(&program, &plain, SELDOM) {
            self.counts.unclear += 1;
            return None;
        }
        self.counts.differences += 1;
        Some(Difference { mode, program, plain, preloaded: last, rate: (different, plays) })
    }

    /// A difference that always shows, made as short as it gets, and written to a file.
    pub(crate) fn shrink_and_keep(&mut self, difference: Difference) -> (Difference, PathBuf) {
        let difference =
            if difference.rate == (REPLAYS, REPLAYS) { shrink::shrink(&mut self.pairs, difference) } else { difference };
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("differential");
        let path = directory.join(format!("{:016x}.program", hash(&difference.program.to_string())));
        if let Err(error) = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, difference.text())) {
            eprintln!("cannot write {}: {error}", path.display());
        }
        (difference, path)
    }
}

/// A mode's share of generated programs, of ten.
fn share(mode: Mode) -> u64 {
    match mode {
        Mode::Plain | Mode::Disabled => 0,
        Mode::Both => 3,
        Mode::BothAtOnce | Mode::BothAsleep => 2,
        Mode::BothSpinning | Mode::ServerOnly | Mode::ClientOnly => 1,
    }
}

/// Bytes that went through rings and through the kernel's socket, of both ends.
fn ledger_bytes(pair: &Pair) -> (u64, u64) {
    let both = Side::BOTH.map(|side| ledger::of_process(pair.id(side)).unwrap_or_default());
    (both.iter().map(|one| one.ring_bytes).sum(), both.iter().map(|one| one.kernel_bytes).sum())
}

/// A seed of its own for each program.
fn mixed(seed: u64, number: u64) -> u64 {
    let mut value = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Steps a second, for the report.
pub(crate) fn rate(counts: &Counts, since: Instant) -> f64 {
    counts.programs as f64 / since.elapsed().as_secs_f64().max(0.001)
}
