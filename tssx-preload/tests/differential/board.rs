//! The board: memory that the coordinator shares with a pair of players. Each thread of theirs has a mailbox on it, through which
//! it is given one line at a time and answers with one line.
//!
//! Taking turns is two futex words a mailbox. Neither side waits without looking a short while first: with both CPUs free
//! that saves the wake-up, which is most of what a step costs.

#![allow(unsafe_code, reason = "maps the board and waits on futex words")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use crate::words::{Side, THREADS, Worker};

/// Longest line.
const LINE: usize = 4000;

/// One thread's mailbox.
#[repr(C)]
pub(crate) struct Mailbox {
    /// Lines given so far. The thread waits on it.
    go: AtomicU32,
    /// Lines answered so far.
    done: AtomicU32,
    /// Whether the thread sleeps on `go`.
    asleep: AtomicU32,
    /// The thread's id, for `/proc`.
    pub tid: AtomicU32,
    length: AtomicU32,
    text: [AtomicU8; LINE],
}

/// One direction of a connection: how far its bytes are.
#[repr(C)]
pub(crate) struct Stream {
    /// Bytes that calls have been told to send, those that still wait included.
    pub intended: AtomicU64,
    /// Bytes that calls said they sent.
    pub sent: AtomicU64,
    /// Bytes that calls said they received.
    pub taken: AtomicU64,
}

/// Everything that is shared with a pair.
#[repr(C)]
pub(crate) struct Board {
    bell: AtomicU32,
    listening: AtomicU32,
    /// What the descriptor is that was sent last by SCM_RIGHTS: see [`crate::slots`].
    pub passed: AtomicU32,
    boxes: [[Mailbox; THREADS + 1]; 2],
    /// By connection and sending side.
    pub streams: [[Stream; 2]; 2],
}

/// Looks before a sleep.
const LOOKS: u32 = 400;

impl Board {
    /// Maps the file, which becomes large enough.
    pub(crate) fn map(file: &File) -> &'static Self {
        file.set_len(size_of::<Self>() as u64).expect("the board's file can be made longer");
        // SAFETY: a new mapping of a file that is long enough and never shortened; all zero is a valid board, everything in it
        // is atomic, and it stays mapped.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let place = libc::mmap(std::ptr::null_mut(), size_of::<Self>(), protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert!(place != libc::MAP_FAILED, "cannot map the board");
            &*place.cast::<Self>()
        }
    }

    pub(crate) fn mailbox(&self, worker: Worker) -> &Mailbox {
        &self.boxes[worker.side.index()][worker.thread]
    }

    /// The direction in which `side` sends on the connection.
    pub(crate) fn stream(&self, connection: usize, sender: Side) -> &Stream {
        &self.streams[connection][sender.index()]
    }

    /// Gives a line to a thread that has answered the last.
    pub(crate) fn give(&self, worker: Worker, line: &str) {
        let mailbox = self.mailbox(worker);
        mailbox.write(line);
        mailbox.go.fetch_add(1, SeqCst);
        if mailbox.asleep.load(SeqCst) != 0 {
            futex_wake(&mailbox.go);
        }
    }

    /// The answer, if it is there.
    pub(crate) fn answer(&self, worker: Worker) -> Option<String> {
        let mailbox = self.mailbox(worker);
        (mailbox.done.load(Acquire) == mailbox.go.load(Relaxed)).then(|| mailbox.read())
    }

    /// Waits for the answer at most so long.
    pub(crate) fn wait(&self, worker: Worker, patience: Duration) -> Option<String> {
        for _ in 0..LOOKS {
            if let Some(answer) = self.answer(worker) {
                return Some(answer);
            }
            std::hint::spin_loop();
        }
        let until = Instant::now() + patience;
        loop {
            let bell = self.bell.load(SeqCst);
            self.listening.store(1, SeqCst);
            if let Some(answer) = self.answer(worker) {
                self.listening.store(0, SeqCst);
                return Some(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.listening.store(0, SeqCst);
                return None;
            }
            futex_wait(&self.bell, bell, left);
        }
    }

    /// A thread's life: lines in, answers out, until the coordinator is gone.
    pub(crate) fn serve(&self, worker: Worker, mut play: impl FnMut(&str) -> String) {
        let mailbox = self.mailbox(worker);
        // SAFETY: takes nothing.
        let (tid, parent) = unsafe { (libc::gettid(), libc::getppid()) };
        let mut served = mailbox.go.load(Acquire);
        mailbox.tid.store(tid.cast_unsigned(), Release);
        loop {
            if !mailbox.await_line(served) {
                // SAFETY: takes nothing.
                if unsafe { libc::getppid() } != parent {
                    std::process::exit(1);
                }
                continue;
            }
            served = served.wrapping_add(1);
            let answer = play(&mailbox.read());
            mailbox.write(&answer);
            mailbox.done.store(served, SeqCst);
            self.bell.fetch_add(1, SeqCst);
            if self.listening.load(SeqCst) != 0 {
                futex_wake(&self.bell);
            }
        }
    }

    /// Positions of all streams start over.
    pub(crate) fn start_over(&self) {
        self.passed.store(0, Relaxed);
        for stream in self.streams.iter().flatten() {
            stream.intended.store(0, Relaxed);
            stream.sent.store(0, Relaxed);
            stream.taken.store(0, Relaxed);
        }
    }
}

impl Mailbox {
    /// True once there is a line after the first `served`; false now and then.
    fn await_line(&self, served: u32) -> bool {
        for _ in 0..LOOKS {
            if self.go.load(Acquire) != served {
                return true;
            }
            std::hint::spin_loop();
        }
        self.asleep.store(1, SeqCst);
        if self.go.load(SeqCst) == served {
            futex_wait(&self.go, served, Duration::from_secs(1));
        }
        self.asleep.store(0, SeqCst);
        self.go.load(Acquire) != served
    }

    fn write(&self, line: &str) {
        for (to, from) in self.text.iter().zip(line.bytes()) {
            to.store(from, Relaxed);
        }
        self.length.store(line.len().min(LINE) as u32, Release);
    }

    fn read(&self) -> String {
        let length = self.length.load(Acquire) as usize;
        let bytes: Vec<u8> = self.text.iter().take(length).map(|byte| byte.load(Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A forked child's answer, for its parent to hand on.
    pub(crate) fn leave(&self, line: &str) {
        self.write(line);
    }

    /// What a child left.
    pub(crate) fn left(&self) -> String {
        self.read()
    }
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: wakes waiters on a live word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

fn futex_wait(word: &AtomicU32, value: u32, patience: Duration) {
    let time = libc::timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: i64::from(patience.subsec_nanos()) };
    // SAFETY: waits on a live word with a live timeout; a signal or a change in between ends it early, and callers look again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const time) };
}
