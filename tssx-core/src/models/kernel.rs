//! The kernel as the protocol sees it: one direction of a stream socket, and who is alive.
//!
//! The calls have the names and signatures of [`crate::sys`], so that they take its place; the blocking ones stand for
//! the program's own `recv` and `send`. A call is atomic, as the kernel's lock on the queue makes it; it orders nothing
//! that the kernel's lock would not order. Bytes of the program are never [`JUNK`]. Descriptors mean nothing: there is one socket.

use std::collections::VecDeque;

use loom::sync::{Condvar, Mutex, MutexGuard};

use super::world::World;
use crate::sys::{Errno, Result};

/// What doorbells are made of.
pub(crate) const JUNK: u8 = 0;
/// `SO_SNDBUF` before the switch.
pub(crate) const BUFFER: i32 = 4096;
/// Bytes that the queue takes when the buffer is as small as can be.
const SMALL: usize = 2;

/// One direction of the socket.
pub(crate) struct Socket {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queue {
    bytes: VecDeque<u8>,
    room: usize,
    /// Program bytes that ever entered.
    entered: u64,
    /// `entered` when [`queued_bytes`] was last asked.
    entered_at_look: u64,
}

impl Socket {
    pub(crate) fn new() -> Self {
        let queue = Queue { bytes: VecDeque::new(), room: 64, entered: 0, entered_at_look: 0 };
        Self { queue: Mutex::new(queue), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no model panics with the queue locked")
    }

    /// As after the switch: little junk makes the socket unwritable.
    pub(crate) fn shrink(&self) {
        self.lock().room = SMALL;
    }

    /// Program bytes that had entered the queue when it was last measured.
    pub(crate) fn entered_at_look(&self) -> u64 {
        self.lock().entered_at_look
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, bytes: &[u8]) -> usize {
        let count = bytes.len().min(queue.room.saturating_sub(queue.bytes.len()));
        for byte in bytes.iter().take(count) {
            queue.bytes.push_back(*byte);
            queue.entered += u64::from(*byte != JUNK);
        }
        drop(queue);
        self.changed.notify_all();
        count
    }

    fn pop(&self, mut queue: MutexGuard<'_, Queue>, bytes: &mut [u8], peek: bool) -> usize {
        let count = bytes.len().min(queue.bytes.len());
        for (to, from) in bytes.iter_mut().zip(&queue.bytes) {
            *to = *from;
        }
        if !peek {
            queue.bytes.drain(..count);
            drop(queue);
            self.changed.notify_all();
        }
        count
    }
}

/// The program's blocking `recv` of at most one byte.
pub(crate) fn receive_one(peek: bool) -> u8 {
    let world = World::current();
    let mut queue = world.socket.lock();
    while queue.bytes.is_empty() {
        queue = world.socket.changed.wait(queue).expect("not poisoned");
    }
    let mut byte = [0];
    world.socket.pop(queue, &mut byte, peek);
    byte[0]
}

/// The program's blocking `send` of one junk byte.
pub(crate) fn send_one() {
    let world = World::current();
    let mut queue = world.socket.lock();
    while queue.bytes.len() >= queue.room {
        queue = world.socket.changed.wait(queue).expect("not poisoned");
    }
    world.socket.push(queue, &[JUNK]);
}

pub(crate) fn send(_fd: i32, bytes: &[u8]) -> Result<usize> {
    let world = World::current();
    match world.socket.push(world.socket.lock(), bytes) {
        0 => Err(Errno::AGAIN),
        count => Ok(count),
    }
}

pub(crate) fn receive(_fd: i32, bytes: &mut [u8], flags: i32) -> Result<usize> {
    let world = World::current();
    match world.socket.pop(world.socket.lock(), bytes, flags & libc::MSG_PEEK != 0) {
        0 => Err(Errno::AGAIN),
        count => Ok(count),
    }
}

pub(crate) fn queued_bytes(_fd: i32) -> Result<u64> {
    let world = World::current();
    let mut queue = world.socket.lock();
    queue.entered_at_look = queue.entered;
    Ok(queue.bytes.len() as u64)
}

pub(crate) fn poll_now(_fd: i32, events: i16) -> Result<i16> {
    let world = World::current();
    let queue = world.socket.lock();
    Ok(if queue.bytes.len() < queue.room { events & libc::POLLOUT } else { 0 })
}

pub(crate) fn getsockopt<T: From<i32>>(_fd: i32, _option: i32) -> Result<T> {
    Ok(T::from(BUFFER))
}

/// Only ever `SO_SNDBUF`: the least there is, or what there was.
pub(crate) fn setsockopt(_fd: i32, _option: i32, value: i32) -> Result<()> {
    World::current().socket.lock().room = if value == 1 { SMALL } else { 64 };
    Ok(())
}

/// Everybody is alive but the one who said otherwise. The kernel tells of a death after all that the dead has done.
pub(crate) fn process_lives(pid: u32, _thoroughly: bool) -> bool {
    World::current().dead.load(std::sync::atomic::Ordering::Acquire) != pid
}

pub(crate) fn rest(_us: u32) {
    yield_now();
}

pub(crate) fn yield_now() {
    loom::thread::yield_now();
}
