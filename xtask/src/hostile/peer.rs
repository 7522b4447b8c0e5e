//! The attacker's end of one connection: as honest as it takes to come where it can do harm.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::geteuid;
use tssx_core::diag;
use tssx_core::layout::{ASLEEP, CONSENT_GIVEN, DATA_OFFSET, STATE_KERNEL, STATE_RING};
use tssx_core::rendezvous::{self, Outcome};

use super::fields::{Target, direction, fields, side};
use super::memory::Memory;
use super::plan::{MESSAGE, Plan};
use super::victim::VICTIM;
use super::{descriptor, offers};
use crate::exchange::Dice;

/// Longest that an honest answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end.
pub(super) struct Peer {
    pub stream: UnixStream,
    /// Which side the victim is: 0 if it connected, 1 if it accepted.
    pub victim: usize,
    pub memory: Option<Memory>,
    pub memfd: Option<File>,
    fields: Vec<Target>,
    own_inode: u64,
    switches: bool,
    in_ring: bool,
    sent: u64,
    received: u64,
    mailbox: Option<OwnedFd>,
}

impl Peer {
    /// A new connection with the victim. `bound`: whether it opens its mailbox, if it accepts.
    pub(super) fn meet(plan: &Plan, directory: &Path, listener: &UnixListener, bound: bool) -> Result<Self> {
        let stream = if plan.victim_accepts {
            UnixStream::connect(directory.join(VICTIM))
        } else {
            listener.accept().map(|(stream, _)| stream)
        }
        .context("no connection with the victim")?;
        stream.set_nonblocking(true)?;
        let (victim, own_inode) = (usize::from(plan.victim_accepts), inode(&stream)?);
        let mailbox = (bound && !plan.victim_accepts).then(|| rendezvous::open_mailbox(own_inode));
        let mailbox =
            mailbox.transpose().map_err(|reason| anyhow::anyhow!("no mailbox: {}", reason.name()))?.map(descriptor::owned);
        Ok(Self {
            stream,
            victim,
            memory: None,
            memfd: None,
            fields: fields(victim),
            own_inode,
            switches: plan.switches,
            in_ring: false,
            sent: 0,
            received: 0,
            mailbox,
        })
    }

    pub(super) fn own_inode(&self) -> u64 {
        self.own_inode
    }

    /// Inode of the victim's socket, once it has accepted.
    pub(super) fn victim_inode(&self) -> Result<u64> {
        let start = Instant::now();
        loop {
            match diag::peer(self.own_inode) {
                diag::Peer::Inode(inode) => return Ok(inode),
                other if start.elapsed() > PATIENCE => bail!("the kernel does not say who the peer is: {other:?}"),
                _ => thread::yield_now(),
            }
        }
    }

    /// Place and size of a field.
    pub(super) fn field(&self, name: &str) -> (usize, usize) {
        let found = self.fields.iter().find(|field| field.name == name);
        found.map_or((usize::MAX, 4), |field| (field.offset, field.size))
    }

    pub(super) fn get(&self, name: &str) -> u64 {
        let (offset, size) = self.field(name);
        self.memory.as_ref().map_or(0, |memory| memory.load(offset, size))
    }

    pub(super) fn set(&self, name: &str, value: u64) {
        let (offset, size) = self.field(name);
        self.memory.iter().for_each(|memory| memory.store(offset, size, value));
    }

    pub(super) fn capacity(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| (memory.length() - DATA_OFFSET) as u64 / 2)
    }

    /// Says in `memory` what an honest end says when it joins.
    pub(super) fn say_joined(memory: &Memory, victim: usize, sent: u64) {
        memory.store(direction(1 - victim) + std::mem::offset_of!(tssx_core::layout::Direction, tx_bytes), 8, sent);
        let consent = std::mem::offset_of!(tssx_core::layout::Direction, consent);
        memory.store(direction(victim) + consent, 4, u64::from(CONSENT_GIVEN));
        memory.store(side(1 - victim), 4, 1);
    }

    /// Takes part in an upgrade, if it is time for one.
    pub(super) fn join(&mut self) -> Result<()> {
        if self.memory.is_some() {
            return Ok(());
        }
        let (uid, sent) = (geteuid().as_raw(), self.sent);
        let memfd = match &self.mailbox {
            Some(mailbox) => match rendezvous::take_offer(mailbox.as_raw_fd(), uid) {
                Outcome::Done(memfd) => File::from(descriptor::owned(memfd)),
                _ => return Ok(()),
            },
            None => {
                let (own, to) = (self.own_inode, self.victim_inode()?);
                let file = offers::segment(own, to)?;
                let copy = file.try_clone()?;
                Self::say_joined(&Memory::map(&file, offers::LENGTH)?, self.victim, sent);
                match rendezvous::offer(to, uid, || Ok((copy, descriptor::into_raw(&file))), drop) {
                    Outcome::Done(file) => file,
                    _ => return Ok(()),
                }
            }
        };
        let length = usize::try_from(memfd.metadata()?.len())?;
        let memory = Memory::map(&memfd, length)?;
        Self::say_joined(&memory, self.victim, sent);
        (self.memory, self.memfd) = (Some(memory), Some(memfd));
        Ok(())
    }

    /// One message there and back, which must be the same.
    pub(super) fn exchange(&mut self, dice: &mut Dice) -> Result<()> {
        let mut message = [0; MESSAGE];
        message.iter_mut().for_each(|byte| *byte = dice.next() as u8);
        self.send(&message)?;
        let (start, mut back) = (Instant::now(), Vec::new());
        while back.len() < MESSAGE {
            self.receive(&mut back, MESSAGE)?;
            ensure!(start.elapsed() < PATIENCE, "no answer to an honest message");
        }
        ensure!(back == message, "{message:?} came back as {back:?}");
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.in_ring && self.switches && self.get("in.consent") == u64::from(CONSENT_GIVEN) {
            self.set("in.switch_at", self.sent);
            self.set("in.state", u64::from(STATE_RING));
            self.in_ring = true;
        }
        if self.in_ring {
            self.push(bytes);
            return Ok(());
        }
        self.sent += bytes.len() as u64;
        self.set("in.tx_bytes", self.sent);
        (&self.stream).write_all(bytes).context("cannot send to the victim")
    }

    /// Writes into the ring that the victim reads, if it takes so many.
    pub(super) fn push(&self, bytes: &[u8]) {
        let Some(memory) = &self.memory else { return };
        let (tail, base, capacity) = (self.get("in.tail"), self.get("in.base"), self.capacity());
        if tail.wrapping_sub(self.get("in.head")).wrapping_add(bytes.len() as u64) > capacity {
            return;
        }
        let ring = DATA_OFFSET + (1 - self.victim) * capacity as usize;
        for (position, byte) in (0_u64..).zip(bytes) {
            let at = tail.wrapping_add(position).wrapping_sub(base) & (capacity - 1);
            memory.store_byte(ring + at as usize, *byte);
        }
        self.set("in.tail", tail.wrapping_add(bytes.len() as u64));
        let (offset, _) = self.field("in.asleep");
        let asleep = memory.half(offset).map_or(0, |half| half.fetch_and(!ASLEEP, std::sync::atomic::Ordering::SeqCst));
        if asleep & ASLEEP != 0 {
            self.set("in.doorbells", self.get("in.doorbells").wrapping_add(1));
            self.ring(&[0]);
        }
    }

    /// Sends bytes that nobody counts through the kernel's socket, as far as it takes them.
    pub(super) fn ring(&self, bytes: &[u8]) {
        // A full queue, or a victim that is gone: both are what it is.
        let _ = (&self.stream).write(bytes);
    }

    fn receive(&mut self, into: &mut Vec<u8>, most: usize) -> Result<()> {
        let in_ring = self.get("out.state") != u64::from(STATE_KERNEL) && self.received >= self.get("out.switch_at");
        if in_ring {
            let memory = self.memory.as_ref().context("a ring without memory")?;
            let (head, base, capacity) = (self.get("out.head"), self.get("out.base"), self.capacity());
            let there = self.get("out.tail").wrapping_sub(head).min((most - into.len()) as u64);
            let ring = DATA_OFFSET + self.victim * capacity as usize;
            let at = |position: u64| ring + (head.wrapping_add(position).wrapping_sub(base) & (capacity - 1)) as usize;
            into.extend((0..there).map(|position| memory.load_byte(at(position))));
            self.set("out.head", head.wrapping_add(there));
            return Ok(());
        }
        // Looked at first: what is there before the victim is seen to be in its ring is no doorbell.
        let mut bytes = [0; MESSAGE];
        let most = match recv(self.stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK) {
            Ok(0) => bail!("the victim has closed, before anything bad happened"),
            Ok(count) => count.min(most - into.len()),
            Err(Errno::EAGAIN) => {
                thread::yield_now();
                return Ok(());
            }
            Err(errno) => return Err(errno).context("from the victim"),
        };
        let most = match self.get("out.state") {
            state if state == u64::from(STATE_KERNEL) => most,
            _ => most.min(usize::try_from(self.get("out.switch_at").saturating_sub(self.received))?),
        };
        if most == 0 {
            return Ok(());
        }
        let count = (&self.stream).read(bytes.get_mut(..most).unwrap_or_default()).context("from the victim")?;
        self.received += count as u64;
        into.extend(bytes.iter().take(count));
        Ok(())
    }

    /// Takes what the victim has written, wherever.
    pub(super) fn drain(&self) {
        self.set("out.head", self.get("out.tail"));
        self.set("out.writer_waiting", 0);
        let mut junk = [0; 8192];
        while (&self.stream).read(&mut junk).is_ok_and(|count| count > 0) {}
    }

    /// Whether the victim has closed.
    pub(super) fn is_alone(&self) -> bool {
        let mut entry = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut entry, PollTimeout::ZERO).is_ok_and(|_| entry[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLHUP)))
    }
}

/// Inode of a socket.
fn inode(stream: &UnixStream) -> Result<u64> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?).metadata()?.ino())
}
