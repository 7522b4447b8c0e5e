//! The long-lived server: threads that block in their calls, a thread with an epoll set and one with poll(2) ([`super::events`]).

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::thread;

use anyhow::{Result, ensure};

use super::events::{self, Way};
use super::hello::{Hello, Kind};
use super::stage::{Lane, Stage};
use super::talk::{Course, Ended, both_ways};
use super::{BLOCKING, EPOLL, EndOptions, POLL};
use crate::exchange::Dice;

/// Threads that block: more than there are clients at once.
const THREADS: usize = 14;

/// Serves until the parent says that it is over.
///
/// # Errors
/// A socket cannot be made, or the parent is gone.
pub(super) fn serve(options: &EndOptions) -> Result<()> {
    let stage = Arc::new(Stage::new("server", THREADS + 2, false));
    let listener = Arc::new(UnixListener::bind(options.directory.join(BLOCKING))?);
    for index in 0..THREADS {
        let (stage, listener) = (Arc::clone(&stage), Arc::clone(&listener));
        thread::spawn(move || {
            let lane = stage.lane(index);
            loop {
                stage.or_end(accept(&listener, &stage, lane), lane);
            }
        });
    }
    for (offset, name, way) in [(0, EPOLL, Way::Epoll), (1, POLL, Way::Poll)] {
        let (stage, listener) = (Arc::clone(&stage), UnixListener::bind(options.directory.join(name))?);
        thread::spawn(move || {
            let lane = stage.lane(THREADS + offset);
            stage.or_end(events::serve(&listener, way, &stage, lane), lane);
        });
    }
    stage.obey()
}

fn accept(listener: &UnixListener, stage: &Stage, lane: &Lane) -> Result<()> {
    let stream = listener.accept()?.0;
    stage.open.fetch_add(1, Relaxed);
    lane.begin("before its hello".to_owned());
    if let Some(hello) = Hello::hear(&stream)? {
        lane.begin(format!("{hello:?}"));
        let ended = one(&stream, &hello, lane)?;
        ensure!(hello.mortal || ended != Ended::Cut, "the connection was cut");
        if ended == Ended::Cut {
            stage.count("server saw an end die");
        }
    }
    drop(stream);
    lane.end();
    stage.open.fetch_sub(1, AcqRel);
    stage.harvest()
}

fn one(stream: &UnixStream, hello: &Hello, lane: &Lane) -> Result<Ended> {
    let (mut course, mut dice) = (Course::new(stream, hello.seed, lane), Dice::new(hello.seed, 1));
    match hello.kind {
        Kind::Echo => course.echo(u64::MAX),
        Kind::Exchange => both_ways(stream, 1, hello.seed, hello.bytes, lane).map(|()| Ended::Whole),
        Kind::Pour => course.pour(hello.bytes, &mut dice),
        Kind::Drain => course.drain(hello.bytes, &mut dice),
    }
}
