//! A pair of players as the coordinator has it: two processes, started plain or with the library, that live as long as
//! nothing goes wrong with them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::board::Board;
use crate::mode::{End, Mode};
use crate::player::{BOARD, SOCKET};
use crate::program::Setup;
use crate::words::{Side, THREADS, Worker};

/// Longest that a call may take that must return by itself.
pub(crate) const HANG: Duration = Duration::from_secs(5);

/// Times that a thread must be seen asleep in a row.
const LOOKS: u32 = 3;

/// What went so wrong that the pair cannot be used any more.
pub(crate) type Fatal = String;

pub(crate) struct Pair {
    pub board: &'static Board,
    children: [Child; 2],
    states: [[Option<File>; THREADS]; 2],
    _directory: TempDir,
}

impl Pair {
    /// Starts both processes.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn start(mode: Mode) -> Result<Self, Fatal> {
        let failed = |what: &str, error: std::io::Error| format!("cannot start a pair of players: {what}: {error}");
        let directory = tempfile::tempdir().map_err(|error| failed("temporary directory", error))?;
        let path = directory.path().join(BOARD);
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path);
        let board = Board::map(&file.map_err(|error| failed("board", error))?);
        let start = |side| command(mode, side, directory.path()).spawn().map_err(|error| failed("player", error));
        let children = [start(Side::Server)?, start(Side::Client)?];
        let mut pair = Self { board, children, states: Default::default(), _directory: directory };
        pair.await_players()?;
        Ok(pair)
    }

    fn await_players(&mut self) -> Result<(), Fatal> {
        let start = Instant::now();
        let here = |worker| self.board.mailbox(worker).tid.load(Acquire) != 0;
        while !Worker::all().chain(Side::BOTH.map(Worker::janitor)).all(here) {
            if start.elapsed() > HANG {
                return Err("the players do not come up".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for side in Side::BOTH {
            for thread in 0..THREADS {
                let tid = self.board.mailbox(Worker { side, thread }).tid.load(Acquire);
                let path = format!("/proc/{}/task/{tid}/stat", self.children[side.index()].id());
                self.states[side.index()][thread] = File::open(path).ok();
            }
        }
        Ok(())
    }

    /// The process' id.
    pub(crate) fn id(&self, side: Side) -> u32 {
        self.children[side.index()].id()
    }

    /// Whether a thread sleeps in the kernel.
    fn sleeps(&self, worker: Worker) -> bool {
        let mut text = [0; 96];
        let file = self.states[worker.side.index()][worker.thread].as_ref();
        let length = file.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        let text = &text[..length];
        let state = text.iter().rposition(|byte| *byte == b')').and_then(|at| text.get(at + 2));
        state == Some(&b'S')
    }

    /// Waits until the thread has answered (its answer) or surely waits in the kernel (`None`).
    ///
    /// # Errors
    /// It does neither.
    pub(crate) fn answer_or_sleep(&mut self, worker: Worker) -> Result<Option<String>, Fatal> {
        let start = Instant::now();
        let mut asleep = 0;
        loop {
            let sleeps = self.sleeps(worker);
            if let Some(answer) = self.board.answer(worker) {
                return Ok(Some(answer));
            }
            asleep = if sleeps { asleep + 1 } else { 0 };
            // A thread that was woken looks asleep again for an instant, while it looks whether to go on.
            if asleep >= LOOKS {
                return Ok(None);
            }
            if start.elapsed() > HANG {
                return Err(self.autopsy(&format!("{worker} neither returns nor sleeps")));
            }
            std::thread::yield_now();
        }
    }

    /// Waits for an answer that must come.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn answer(&mut self, worker: Worker, patience: Duration) -> Result<String, Fatal> {
        self.board.wait(worker, patience).ok_or_else(|| self.autopsy(&format!("{worker} does not return")))
    }

    /// How the players are, added to what is wrong.
    fn autopsy(&mut self, what: &str) -> Fatal {
        let mut text = what.to_owned();
        for side in Side::BOTH {
            if let Ok(Some(status)) = self.children[side.index()].try_wait() {
                text += &format!("; the {side:?} ended: {status}");
            }
        }
        text
    }

    /// Makes fresh connections.
    ///
    /// # Errors
    /// As [`Pair::answer`], or a player could not.
    pub(crate) fn open(&mut self, setup: Setup) -> Result<(), Fatal> {
        self.board.start_over();
        for side in [Side::Client, Side::Server] {
            self.command(Worker::janitor(side), &format!("!open {}", setup.connections))?;
        }
        if setup.warm > 0 {
            let both = Side::BOTH.map(|side| Worker { side, thread: 0 });
            both.into_iter().for_each(|worker| self.board.give(worker, &format!("!warm {}", setup.warm)));
            for worker in both {
                let said = self.answer(worker, HANG)?;
                if !said.is_empty() {
                    return Err(format!("{worker}: {said}"));
                }
            }
        }
        Ok(())
    }

    fn command(&mut self, worker: Worker, line: &str) -> Result<(), Fatal> {
        self.board.give(worker, line);
        let said = self.answer(worker, HANG)?;
        if said.is_empty() || line.starts_with("!interrupt") { Ok(()) } else { Err(format!("{worker}: {said}")) }
    }

    /// Ends what still waits, and closes everything.
    ///
    /// # Errors
    /// A call that does not return after its connections were shut down and it was interrupted.
    pub(crate) fn close(&mut self, waiting: &[Worker]) -> Result<(), Fatal> {
        if !waiting.is_empty() {
            for side in Side::BOTH {
                self.command(Worker::janitor(side), "!hangup")?;
            }
            waiting.iter().try_for_each(|worker| self.release(*worker))?;
        }
        for side in Side::BOTH {
            self.command(Worker::janitor(side), "!reset")?;
        }
        Ok(())
    }

    fn release(&mut self, worker: Worker) -> Result<(), Fatal> {
        let start = Instant::now();
        while self.answer_or_sleep(worker)?.is_none() {
            if start.elapsed() > HANG {
                return Err(self.autopsy(&format!("{worker} does not return after shutdown and a signal")));
            }
            self.command(Worker::janitor(worker.side), &format!("!interrupt {}", worker.thread))?;
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn command(mode: Mode, side: Side, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.arg("--play").arg(directory).arg(format!("{side:?}"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let end = if side == Side::Server { End::Server } else { End::Client };
    mode.apply(&mut command, end, &directory.join(SOCKET));
    command
}
