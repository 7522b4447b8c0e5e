//! One round: meets the victim, is honest for a while, does what the plan says, and goes.

use std::cell::Cell;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::fcntl::{FallocateFlags, fallocate};

use tssx_core::layout::STATE_ENDED;

use super::board::Board;
use super::fields::{Coverage, Kind, STORES, Target, fields, scribble, value};
use super::memory::Memory;
use super::offers::{self, Abuse};
use super::peer::Peer;
use super::plan::{Attack, Plan};
use crate::exchange::Dice;

/// Least time that something goes on that changes all the time.
const LEAST: Duration = Duration::from_micros(60);
/// How many stores between two looks at the victim, and how long between two where a thread of its own makes them.
const STORES_EACH: u64 = 32;
const GLANCE: Duration = Duration::from_micros(1);
/// Longest that the victim may be in one call that does not wait, whatever its peer does meanwhile.
const STUCK: Duration = Duration::from_secs(6);
/// How long the attacker looks whether the victim has noticed.
const NOTICE: Duration = Duration::from_micros(20);
/// How long it goes on writing after it has closed.
const AFTER: Duration = Duration::from_micros(150);

/// What an attacker has from round to round.
pub(super) struct Attacker<'a> {
    pub directory: &'a Path,
    pub listener: UnixListener,
    pub board: &'a Board,
    pub coverage: Coverage,
    /// Stores made by what changes all the time, which is one mutation each.
    pub stores: u64,
    /// The longest that the victim was seen in one call that does not wait.
    pub longest: Cell<Duration>,
    /// Rounds in which both had a segment.
    pub joined: u64,
    /// A segment of an earlier connection.
    pub before: Option<File>,
}

/// A connection whose attack is over, and that still has to be left.
pub(super) struct Attacked {
    peer: Peer,
    /// What must stay as it is until then.
    kept: Vec<OwnedFd>,
}

/// The kinds that are no single store.
const LASTING: [Kind; 7] =
    [Kind::Changing, Kind::Racing, Kind::Chasing, Kind::FalseEnd, Kind::Scribble, Kind::Doorbells, Kind::Storm];

/// Every kind that is played in the middle of a connection.
fn all_kinds() -> Vec<Kind> {
    [STORES.as_slice(), &LASTING].concat()
}

/// How many fields there are.
fn all_fields() -> usize {
    fields(0).len()
}

impl Attacker<'_> {
    /// Plays the plan up to, and without, the end.
    ///
    /// # Errors
    /// The victim does not answer, is stuck, or has joined what it should not.
    pub(super) fn attack(&mut self, plan: &Plan) -> Result<Attacked> {
        let mut dice = plan.dice(false);
        let abuse = if let Attack::Offer(abuse) = plan.attack { Some(abuse) } else { None };
        let honest_mailbox = abuse.is_none_or(|abuse| !matches!(abuse, Abuse::Impostor));
        let mut peer = Peer::meet(plan, self.directory, &self.listener, honest_mailbox)?;
        let mut kept = Vec::new();
        // Those that come before the victim has done anything.
        if let Some(early @ (Abuse::Squatter | Abuse::Impostor)) = abuse {
            kept = offers::abuse(early, &peer, None)?;
        }
        for message in 0..plan.messages {
            match abuse {
                None => peer.join()?,
                Some(Abuse::Squatter | Abuse::Impostor | Abuse::Unattended | Abuse::Replayed) => {}
                Some(abuse) if message == 1 => kept = offers::abuse(abuse, &peer, self.before.as_ref())?,
                Some(_) => {}
            }
            peer.exchange(&mut dice)?;
        }
        self.joined += u64::from(peer.memory.is_some());
        match plan.attack {
            Attack::Offer(Abuse::Replayed) => {
                self.coverage.count("offer, Replayed", Kind::Offered);
                self.replay(&mut peer, &mut dice)?;
            }
            Attack::Offer(abuse) => {
                self.coverage.count(&format!("offer, {abuse:?}"), Kind::Offered);
                offers::check(abuse, peer.victim, &kept)?;
            }
            Attack::Still => self.mutate(&peer, 1 + dice.below(3), all_fields(), &STORES, &mut dice)?,
            Attack::Mutate { count, fields } => self.mutate(&peer, count, fields, &all_kinds(), &mut dice)?,
        }
        if let Some(memfd) = &peer.memfd
            && dice.one_in(4)
        {
            self.before = Some(memfd.try_clone()?);
        }
        Ok(Attacked { peer, kept })
    }

    /// Leaves the connection, one way or another, and goes on writing to memory that it still has.
    pub(super) fn leave(&self, plan: &Plan, attacked: Attacked) -> Result<()> {
        let Attacked { peer, kept } = attacked;
        let mut dice = Dice::new(plan.dice, 2);
        self.board.set_leaving(true);
        let Peer { stream, memory, victim, .. } = peer;
        if dice.one_in(3) {
            // Gone already is what it is.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(stream);
        if let (Some(memory), Attack::Mutate { .. }) = (&memory, plan.attack) {
            let (all, start) = (fields(victim), Instant::now());
            while start.elapsed() < AFTER {
                let target = &all[dice.below(all.len() as u64) as usize];
                let kind = dice.pick(&STORES);
                let new = value(kind, memory.load(target.offset, target.size), target.size, &mut dice, memory);
                memory.store(target.offset, target.size, new);
            }
        }
        drop(kept);
        Ok(())
    }

    /// Gives the victim memory that another connection has had, as it was left, and goes on as with any other.
    fn replay(&mut self, peer: &mut Peer, dice: &mut Dice) -> Result<()> {
        const MUTATIONS: u64 = 40;
        let Some(before) = &self.before else { return Ok(()) };
        let memfd = before.try_clone()?;
        offers::abuse(Abuse::Replayed, peer, Some(&memfd))?;
        peer.ring(&[7; 16]); // the victim takes the offer in passing
        let length = usize::try_from(memfd.metadata()?.len())?;
        (peer.memory, peer.memfd) = (Some(Memory::map(&memfd, length)?), Some(memfd));
        self.mutate(peer, MUTATIONS, all_fields(), &all_kinds(), dice)
    }

    fn mutate(&mut self, peer: &Peer, count: u64, most: usize, kinds: &[Kind], dice: &mut Dice) -> Result<()> {
        let all = fields(peer.victim);
        let chosen: Vec<&Target> = (0..most.max(1)).map(|_| &all[dice.below(all.len() as u64) as usize]).collect();
        for _ in 0..count {
            if peer.memory.is_none() || peer.is_alone() {
                return Ok(());
            }
            let (target, mut kind) = (chosen[dice.below(chosen.len() as u64) as usize], dice.pick(kinds));
            if kind == Kind::Scribble && dice.one_in(8) {
                kind = Kind::Hole;
            }
            // Those end a connection for certain.
            if matches!(kind, Kind::Chasing | Kind::FalseEnd) && !dice.one_in(8) {
                kind = Kind::OneMore;
            }
            self.apply(peer, target, kind, dice)?;
            if kinds.len() > STORES.len() {
                self.go_on(peer, dice);
            }
        }
        Ok(())
    }

    /// One mutation.
    fn apply(&mut self, peer: &Peer, target: &Target, kind: Kind, dice: &mut Dice) -> Result<()> {
        let Some(memory) = &peer.memory else { return Ok(()) };
        let (offset, size) = (target.offset, target.size);
        let now = memory.load(offset, size);
        let mut name = target.name.as_str();
        match kind {
            Kind::Changing => {
                let other = value(dice.pick(&STORES), now, size, dice, memory);
                let mut turn = false;
                self.stores += self.go_on_until_seen(STORES_EACH, || {
                    turn = !turn;
                    memory.store(offset, size, if turn { other } else { now });
                })?;
            }
            Kind::Racing => {
                let step = dice.size(2000);
                let mut value = now;
                self.stores += self.go_on_until_seen(STORES_EACH, || {
                    value = value.wrapping_add(step);
                    memory.store(offset, size, value);
                })?;
            }
            Kind::Chasing => {
                let ring = dice.pick(&["in", "out"]);
                name = if ring == "in" { "in.head and tail" } else { "out.head and tail" };
                let (head, tail) = (format!("{ring}.head"), format!("{ring}.tail"));
                let (head, tail, gap) = (peer.field(&head).0, peer.field(&tail).0, dice.size(3000));
                let mut position = memory.load(tail, 8);
                self.stores += self.go_on_beside(|| {
                    position = position.wrapping_add(1);
                    memory.store(head, 8, position);
                    memory.store(tail, 8, position.wrapping_add(gap));
                })?;
            }
            Kind::FalseEnd => {
                name = "in.state and resume_at";
                peer.set("in.end_at", peer.get("in.head"));
                peer.set("in.resume_at", u64::MAX);
                peer.set("in.state", u64::from(STATE_ENDED));
                self.go_on_beside(|| peer.ring(&[0; 60_000]))?;
            }
            Kind::Scribble => {
                name = "anywhere";
                scribble(memory, dice);
            }
            Kind::Hole => {
                name = "anywhere";
                let (start, length) = (dice.below(memory.length() as u64), dice.size(3 * 4096));
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let file = peer.memfd.as_ref();
                file.map(|file| fallocate(file, flags, start.cast_signed(), length.cast_signed())).transpose()?;
            }
            Kind::Doorbells => {
                name = "kernel's socket";
                peer.ring(&vec![dice.pick(&[0, 0, 0, 7]); dice.size(5000) as usize]);
            }
            Kind::Storm => {
                name = "kernel's socket";
                self.go_on_until_seen(1, || peer.ring(&[0; 4000]))?;
            }
            store => memory.store(offset, size, value(store, now, size, dice, memory)),
        }
        self.coverage.count(name, kind);
        Ok(())
    }

    /// Does something over and over, for a while, and for as long as the victim is in one call that does not wait: such a call must end
    /// whatever its peer does meanwhile. How often.
    fn go_on_until_seen(&self, each: u64, mut act: impl FnMut()) -> Result<u64> {
        let (start, call) = (Instant::now(), self.board.calls());
        for times in 1.. {
            for _ in 0..each {
                act();
            }
            let passed = start.elapsed();
            let same = self.board.calls() == call && !self.board.waits();
            if same {
                self.longest.set(self.longest.get().max(passed));
            }
            if passed >= LEAST && !same {
                return Ok(times * each);
            }
            if passed > STUCK {
                bail!("the victim has been in one call that does not wait for {} s", STUCK.as_secs());
            }
        }
        Ok(0)
    }

    /// The same without a gap in which the victim could come through: a thread of its own does it.
    fn go_on_beside(&self, mut act: impl FnMut() + Send) -> Result<u64> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let acts = scope.spawn(|| {
                let mut times = 0;
                while !stop.load(Relaxed) {
                    act();
                    times += 1;
                }
                times
            });
            let seen = self.go_on_until_seen(1, || thread::sleep(GLANCE));
            stop.store(true, Relaxed);
            let times = acts.join().map_err(|_| anyhow!("a thread panicked"))?;
            seen.map(|_| times)
        })
    }

    /// What an attacker does between two mutations, so that the victim comes by.
    fn go_on(&self, peer: &Peer, dice: &mut Dice) {
        match dice.below(8) {
            0 | 1 => peer.push(&vec![dice.next() as u8; dice.size(400) as usize]),
            2 => peer.drain(),
            3 => peer.ring(&[0]),
            4 => thread::yield_now(),
            _ => {
                let (start, calls) = (Instant::now(), self.board.calls());
                while self.board.calls() == calls && start.elapsed() < NOTICE {
                    std::hint::spin_loop();
                }
            }
        }
    }
}
