//! A player: one of the two processes of a pair. Its threads wait for lines on the [`Board`], play them, and answer.
//!
//! A line is a step of a program, or a command of the coordinator's (`!open`, `!warm` …) for setting up and cleaning up.

#![allow(unsafe_code, reason = "opens and closes the connections, and forks for steps that a child plays")]

use std::fs::{File, OpenOptions};
use std::os::fd::IntoRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::board::Board;
use crate::program::{Op, Step};
use crate::slots::{self, End};
use crate::state::SETTLED;
use crate::sys::{self, Memory};
use crate::words::{Handle, Side, Switch, THREADS, Worker};
use crate::{control, data, messages, waiting};

/// The socket under test, in the pair's directory.
pub(crate) const SOCKET: &str = "socket";
/// The board, in the pair's directory.
pub(crate) const BOARD: &str = "board";

/// One thread of a player process.
pub(crate) struct Player {
    pub board: &'static Board,
    pub worker: Worker,
    pub memory: Memory,
    directory: PathBuf,
}

static LISTENER: OnceLock<UnixListener> = OnceLock::new();

/// Runs a player process; returns never.
pub(crate) fn run(directory: &Path, side: Side) {
    sys::install_handlers();
    let file: File = OpenOptions::new().read(true).write(true).open(directory.join(BOARD)).expect("the board is there");
    let board = Board::map(&file);
    drop(file);
    if side == Side::Server {
        LISTENER.get_or_init(|| UnixListener::bind(directory.join(SOCKET)).expect("bind the socket under test"));
    }
    let start = move |worker: Worker, directory: PathBuf| {
        let player = Player { board, worker, memory: Memory::new(), directory };
        board.serve(worker, |line| player.play(line));
    };
    for thread in 0..THREADS {
        let directory = directory.to_path_buf();
        std::thread::spawn(move || start(Worker { side, thread }, directory));
    }
    start(Worker::janitor(side), directory.to_path_buf());
}

/// The places of the connections, by number.
pub(crate) const CONNECTIONS: [Handle; 2] = [Handle::A, Handle::B];

impl Player {
    fn play(&self, line: &str) -> String {
        if let Some(command) = line.strip_prefix('!') {
            return self.command(command);
        }
        match Step::parse(line) {
            Some(Step { child: true, op, .. }) => self.in_child(&op),
            Some(Step { op, .. }) => self.operation(&op),
            None => format!("`{line}` is no step"),
        }
    }

    fn command(&self, command: &str) -> String {
        let (word, number) = command.split_once(' ').unwrap_or((command, "0"));
        let number: usize = number.parse().unwrap_or(0);
        match word {
            "open" => self.open(number),
            "warm" => self.warm(number),
            "hangup" => hang_up(),
            "interrupt" => control::signal(self, Worker { side: self.worker.side, thread: number }, false),
            "reset" => reset(),
            _ => format!("no command {word}"),
        }
    }

    /// Opens this end of so many connections, and a pipe.
    fn open(&self, count: usize) -> String {
        for (connection, handle) in CONNECTIONS.into_iter().enumerate().take(count) {
            let stream = match LISTENER.get() {
                Some(listener) => listener.accept().map(|(stream, _)| stream),
                None => UnixStream::connect(self.directory.join(SOCKET)),
            };
            match stream {
                Ok(stream) => slots::put(handle, stream.into_raw_fd(), Some(End { connection, side: self.worker.side })),
                Err(error) => return format!("cannot open a connection: {error}"),
            }
        }
        let mut pipe = [0; 2];
        // SAFETY: two live ints.
        unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
        slots::put(Handle::PipeOut, pipe[0], None);
        slots::put(Handle::PipeIn, pipe[1], None);
        String::new()
    }

    /// So many ping-pongs on each connection; many more where it shall be in its rings for certain, however busy the machine is.
    fn warm(&self, rounds: usize) -> String {
        const SURE: usize = 6;
        let rounds = if rounds >= SETTLED as usize { rounds * SURE } else { rounds };
        let mut byte = [0_u8];
        let place = byte.as_mut_ptr().cast::<libc::c_void>();
        for fd in CONNECTIONS.map(slots::fd).into_iter().filter(|fd| *fd >= 0) {
            for _ in 0..rounds {
                // SAFETY: one live byte.
                let ping = || unsafe { libc::write(fd, place, 1) };
                // SAFETY: as above.
                let pong = || unsafe { libc::read(fd, place, 1) };
                let moved = match self.worker.side {
                    Side::Server => pong() + ping(),
                    Side::Client => ping() + pong(),
                };
                if moved != 2 {
                    return format!("warm-up broke off: {}", std::io::Error::last_os_error());
                }
            }
        }
        String::new()
    }

    /// Forks; the child plays and exits.
    fn in_child(&self, op: &Op) -> String {
        /// Seconds after which a child that hangs is ended by the kernel.
        const PATIENCE: u32 = 8;
        let mailbox = self.board.mailbox(self.worker);
        mailbox.leave("");
        // SAFETY: the child only makes calls of the C library that glibc keeps usable after fork, and leaves by `_exit`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; SIGALRM has its default action.
            unsafe {
                libc::alarm(PATIENCE);
                mailbox.leave(&self.operation(op));
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: our own child and a live int.
        while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {}
        if status == 0 { format!("child: {}", mailbox.left()) } else { format!("child ended by {status:#x}") }
    }

    fn operation(&self, op: &Op) -> String {
        match *op {
            Op::Receive { on, by, size, flags, at } => data::receive(self, on, by, size.0 as usize, flags, at),
            Op::Readv { on, ref parts } => data::readv(self, on, parts),
            Op::Recvmsg { on, ref parts, flags, room, keep } => messages::recvmsg(self, on, parts, flags, room.0 as usize, keep),
            Op::Recvmmsg { on, count, size, flags } => messages::recvmmsg(self, on, count.0 as usize, size.0 as usize, flags),
            Op::Transmit { on, by, size, flags, at } => data::transmit(self, on, by, size.0 as usize, flags, at),
            Op::Writev { on, ref parts } => data::writev(self, on, parts),
            Op::Sendmsg { on, ref parts, flags } => messages::sendmsg(self, on, parts, flags),
            Op::Sendmmsg { on, count, size, flags } => messages::sendmmsg(self, on, count.0 as usize, size.0 as usize, flags),
            Op::Pass { on, what, copies, size, flags } => messages::pass(self, on, what, copies.0 as usize, size.0 as usize, flags),
            Op::Vouch { on, size, flags } => messages::vouch(self, on, size.0 as usize, flags),
            Op::Sendfile { on, size } => data::sendfile(self, on, size.0 as usize),
            Op::SpliceIn { on, size, dontwait } => data::splice(self, on, size.0 as usize, dontwait == Switch::On, false),
            Op::SpliceOut { on, size, dontwait } => data::splice(self, on, size.0 as usize, dontwait == Switch::On, true),
            Op::Dprintf { on, size } => data::dprintf(self, on, size.0 as usize),
            Op::Fill { on, size } => data::fill(self, on, size.0 as usize),
            Op::Drain { on, size } => data::drain(self, on, size.0 as usize, false),
            Op::Gather { on, size } => data::drain(self, on, size.0 as usize, true),
            Op::Shutdown { on, how } => control::shutdown(on, how),
            Op::Close { on } => control::close(on),
            Op::Copy { on, to, by } => control::copy(on, to, by),
            Op::Nonblock { on, to, by } => control::nonblock(on, to == Switch::On, by),
            Op::ReceiveTimeout { on, time } => control::set_timeout(on, libc::SO_RCVTIMEO, time),
            Op::SendTimeout { on, time } => control::set_timeout(on, libc::SO_SNDTIMEO, time),
            Op::LowMark { on, size } => control::set_number(on, libc::SO_RCVLOWAT, size.0),
            Op::SendBuffer { on, size } => control::set_number(on, libc::SO_SNDBUF, size.0),
            Op::PassCredentials { on, to } => control::set_number(on, libc::SO_PASSCRED, u32::from(to == Switch::On)),
            Op::Ask { on, what } => control::ask(on, what),
            Op::Await { by, ref set, time } => waiting::wait(by, set, time),
            Op::EpollCreate {} => control::epoll_create(),
            Op::EpollChange { what, on, events } => waiting::change(what, on, events),
            Op::EpollWait { time } => waiting::epoll_wait(time),
            Op::Signal { whom, restart } => control::signal(self, whom, restart == Switch::On),
        }
    }
}

/// Shuts everything down that a thread may still wait for.
fn hang_up() -> String {
    for handle in Handle::ALL.iter().copied().filter(|handle| slots::end(*handle).is_some()) {
        // SAFETY: takes no pointer.
        unsafe { libc::shutdown(slots::fd(handle), libc::SHUT_RDWR) };
    }
    String::new()
}

/// Closes everything.
fn reset() -> String {
    for fd in Handle::ALL.iter().map(|handle| slots::take(*handle)).filter(|fd| *fd >= 0) {
        // SAFETY: the descriptor was the table's.
        unsafe { libc::close(fd) };
    }
    String::new()
}
