//! Long-lived clients: threads that make one connection after another, each of a kind that the dice choose; and a thread whose connections
//! stay, nearly always idle.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::hello::{Hello, Kind};
use super::stage::{Lane, Stage};
use super::talk::{Course, Ended, Style, both_ways};
use super::{BLOCKING, EPOLL, EndOptions, FORK, Mix, POLL};
use crate::exchange::{Dice, connect};

/// Connections that stay, by where they lead.
pub(super) const IDLE: [&str; 10] = [EPOLL, EPOLL, EPOLL, EPOLL, POLL, POLL, POLL, POLL, BLOCKING, BLOCKING];
/// Messages on each at first: enough for rings.
const IDLE_WARM_UP: u64 = 60;
/// How often each says something.
const IDLE_EACH: Duration = Duration::from_secs(2);
/// Most bytes of a message of a short connection, and of others.
const SHORT_MAX: u64 = 700;
const MESSAGE_MAX: u64 = 32 << 10;
/// Most bytes of a direction of a long one.
const LONG_MAX: u64 = 24 << 20;
/// Bytes of a slow stream: many times what a ring holds.
const SLOW_BYTES: u64 = 2 << 20;
/// Between two connections of a client that is only there to be refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(3);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The one that does everything.
    Client,
    /// Has no library.
    Bare,
    /// Has the library and may use no memory for it.
    Poor,
}

/// Makes connections until the parent says that it is over.
///
/// # Errors
/// The parent is gone.
pub(super) fn make(options: &EndOptions, who: Who) -> Result<()> {
    let (name, threads) = match who {
        Who::Client => ("client", if options.mix == Mix::Many { 2 } else { 3 }),
        Who::Bare => ("bare", 1),
        Who::Poor => ("poor", 1),
    };
    let idle = who == Who::Client;
    let stage = Arc::new(Stage::new(name, threads + usize::from(idle), true));
    for index in 0..threads {
        let maker = Maker {
            directory: options.directory.clone(),
            mix: options.mix,
            who,
            dice: Dice::new(options.seed, index as u64 + 10 * who as u64),
        };
        let stage = Arc::clone(&stage);
        thread::spawn(move || {
            let lane = stage.lane(index);
            stage.or_end(maker.run(&stage, lane), lane);
        });
    }
    if idle {
        let (for_thread, directory, seed) = (Arc::clone(&stage), options.directory.clone(), options.seed);
        thread::spawn(move || {
            let lane = for_thread.lane(threads);
            for_thread.or_end(keep(&directory, seed, &for_thread, lane), lane);
        });
    }
    stage.obey()
}

/// Connections that stay: a message on each after each pause, and from time to time.
fn keep(directory: &Path, seed: u64, stage: &Stage, lane: &Lane) -> Result<()> {
    lane.begin("the connections that stay".to_owned());
    let mut dice = Dice::new(seed, 99);
    let streams: Vec<UnixStream> = IDLE.iter().map(|name| connect(&directory.join(name))).collect::<Result<_>>()?;
    let mut positions = vec![0; streams.len()];
    let mut messages = IDLE_WARM_UP;
    loop {
        for (index, stream) in streams.iter().enumerate() {
            lane.begin(format!("connection {index} of those that stay"));
            let mut course = Course::new(stream, seed + index as u64, lane);
            if messages == IDLE_WARM_UP {
                Hello::echo(seed + index as u64).say(stream)?;
            }
            course.position = positions[index];
            let ended = course.converse(messages, MESSAGE_MAX, Style::blocking(), &mut dice)?;
            ensure!(ended == Ended::Enough, "a connection that stays has ended");
            positions[index] = course.position;
            lane.end();
        }
        messages = 1;
        stage.count("round of the connections that stay");
        let (before, start) = (stage.pauses.load(Relaxed), Instant::now());
        while stage.pauses.load(Relaxed) == before && start.elapsed() < IDLE_EACH {
            thread::sleep(Duration::from_millis(5));
        }
        stage.rest(lane);
    }
}

/// What is chosen by the dice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Short,
    Medium,
    Long,
    Pour,
    Drain,
    /// A server's child is killed in the middle.
    Doomed,
}

/// One thread's connections.
struct Maker {
    directory: PathBuf,
    mix: Mix,
    who: Who,
    dice: Dice,
}

impl Maker {
    fn run(mut self, stage: &Stage, lane: &Lane) -> Result<()> {
        loop {
            stage.rest(lane);
            let choice = self.choose();
            self.one(choice, stage, lane)?;
            stage.count(match choice {
                _ if self.who == Who::Bare => "connection without the library",
                _ if self.who == Who::Poor => "connection without memory for it",
                Choice::Short => "short connection",
                Choice::Medium => "medium connection",
                Choice::Long => "long connection",
                Choice::Pour => "slow reader at the client",
                Choice::Drain => "slow reader at the server",
                Choice::Doomed => "connection whose server is killed",
            });
            stage.harvest()?;
            if self.who != Who::Client && self.mix == Mix::Long {
                thread::sleep(REFUSED_PAUSE);
            }
        }
    }

    fn choose(&mut self) -> Choice {
        use Choice::{Doomed, Drain, Long, Medium, Pour, Short};
        let many = self.mix == Mix::Many || self.who != Who::Client;
        match self.dice.below(if many { 60 } else { 100 }) {
            0..20 => Short,
            20..59 => Medium,
            59 if self.who != Who::Client => Medium,
            59..66 => Doomed,
            66..72 => Pour,
            72..78 => Drain,
            _ => Long,
        }
    }

    fn one(&mut self, choice: Choice, stage: &Stage, lane: &Lane) -> Result<()> {
        let name = match choice {
            Choice::Short | Choice::Medium if self.mix == Mix::Many => self.dice.pick(&[BLOCKING, EPOLL, EPOLL, POLL]),
            Choice::Short | Choice::Medium => self.dice.pick(&[BLOCKING, EPOLL, EPOLL, POLL, FORK]),
            Choice::Doomed => FORK,
            Choice::Long | Choice::Pour | Choice::Drain => BLOCKING,
        };
        let hello = self.hello(choice);
        lane.begin(format!("{choice:?} at {name}: {hello:?}"));
        let stream = connect(&self.directory.join(name))?;
        hello.say(&stream)?;
        let mut course = Course::new(&stream, hello.seed, lane);
        let ended = match choice {
            Choice::Long => both_ways(&stream, 0, hello.seed, hello.bytes, lane).map(|()| Ended::Enough)?,
            Choice::Pour => course.drain(hello.bytes, &mut self.dice)?,
            Choice::Drain => course.pour(hello.bytes, &mut self.dice)?,
            Choice::Short | Choice::Medium | Choice::Doomed => {
                let messages = match choice {
                    Choice::Short => self.dice.size(3),
                    Choice::Doomed => u64::MAX,
                    // A peer without the library is not given up before it was looked for often.
                    _ if self.who == Who::Bare => 3 + self.dice.size(300),
                    _ if self.mix == Mix::Many => 3 + self.dice.size(12),
                    _ => 3 + self.dice.size(300),
                };
                let most = if choice == Choice::Short || self.mix == Mix::Many { SHORT_MAX } else { MESSAGE_MAX };
                let style = Style::of(&mut self.dice);
                course.converse(messages, most, style, &mut self.dice)?
            }
        };
        if choice == Choice::Drain {
            // The server must have read everything before it sees the end.
            stream.shutdown(std::net::Shutdown::Write)?;
        }
        match (choice, ended) {
            (Choice::Doomed, Ended::Whole | Ended::Cut) => {
                stage.count("client saw its server die");
                lane.end();
                return Ok(());
            }
            (_, Ended::Enough) => {}
            _ => bail!("the server has ended the connection"),
        }
        drop(stream);
        lane.end();
        Ok(())
    }

    fn hello(&mut self, choice: Choice) -> Hello {
        let echo = Hello { inherited_after: self.dice.pick(&[0, 0, 1, 7, 30]), ..Hello::echo(self.dice.next()) };
        match choice {
            Choice::Short | Choice::Medium => echo,
            Choice::Doomed => Hello { mortal: true, doom_us: self.dice.size(20_000), ..echo },
            Choice::Long => Hello { kind: Kind::Exchange, bytes: self.dice.size(LONG_MAX), ..echo },
            Choice::Pour => Hello { kind: Kind::Pour, bytes: SLOW_BYTES, ..echo },
            Choice::Drain => Hello { kind: Kind::Drain, bytes: SLOW_BYTES, ..echo },
        }
    }
}
