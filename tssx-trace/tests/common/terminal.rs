//! A real terminal, opened here, with the tracer in it: what is typed, and what a person would see, read from the screen of a terminal
//! emulator.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::{DEADLINE, TRACER};

/// The tracer in a terminal of its own, which is its controlling one: Ctrl-C is a byte that is typed.
pub(crate) struct Terminal {
    child: Mutex<Child>,
    /// What the terminal is asked with, and this side of it.
    master: File,
    /// Kept open, so that the terminal can be looked at when the tracer has gone.
    _other_side: File,
    parser: Arc<Mutex<vt100::Parser>>,
    raw: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts the tracer with these arguments in a terminal of so many rows and columns.
    pub(crate) fn start(arguments: &[&str], size: (u16, u16), environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("setsid");
        command.args(["--ctty", TRACER]).args(arguments).env("TERM", "xterm").env_remove("NO_COLOR").env_remove("COLUMNS");
        command.envs(environment.iter().copied());
        Self::run(command, size)
    }

    /// The same with a command that is to run in the terminal.
    pub(crate) fn run(mut command: Command, (rows, columns): (u16, u16)) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("ours");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name").into_string().expect("UTF-8");
        set_size(&master, (rows, columns));
        let other_side = || File::options().read(true).write(true).open(&name).expect("the other side");
        command.stdin(Stdio::from(other_side())).stdout(Stdio::from(other_side())).stderr(Stdio::from(other_side()));
        let child = command.spawn().expect("setsid starts");
        drop(command);
        let master = File::from(master);
        let parser = Arc::new(Mutex::new(vt100::Parser::new(lines(rows), lines(columns), 0)));
        let raw = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, shown, kept) = (master.try_clone().expect("a copy"), Arc::clone(&parser), Arc::clone(&raw));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(size @ 1..) = screen.read(&mut buffer) {
                shown.lock().expect("sound").process(&buffer[..size]);
                kept.lock().expect("sound").extend_from_slice(&buffer[..size]);
            }
        });
        Self { child: Mutex::new(child), master, _other_side: other_side(), parser, raw }
    }

    /// Types.
    pub(crate) fn press(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).expect("typed");
    }

    /// Gives the terminal another size.
    pub(crate) fn resize(&self, (rows, columns): (u16, u16)) {
        self.parser.lock().expect("sound").screen_mut().set_size(lines(rows), lines(columns));
        set_size(&self.master, (rows, columns));
    }

    /// Sends the tracer a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.lock().expect("sound")), signal).expect("it lives");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.lock().expect("sound").id()
    }

    /// What stands on the screen.
    pub(crate) fn screen(&self) -> String {
        self.parser.lock().expect("sound").screen().contents()
    }

    /// Every byte that was written to it.
    pub(crate) fn raw(&self) -> Vec<u8> {
        self.raw.lock().expect("sound").clone()
    }

    /// Whether the terminal is as a shell wants it: the first screen, a cursor, lines with echo, and Ctrl-C a signal.
    pub(crate) fn is_as_before(&self) -> bool {
        let modes = tcgetattr(&self.master).expect("a terminal").local_modes;
        let parser = self.parser.lock().expect("sound");
        let screen = parser.screen();
        !screen.alternate_screen()
            && !screen.hide_cursor()
            && modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until the screen is as `test` wants it.
    pub(crate) fn wait_for(&self, what: &str, test: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let screen = self.screen();
            if test(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "never {what}:\n{screen}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the tracer has ended.
    pub(crate) fn wait_for_end(&self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.lock().expect("sound").try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _gone = child.kill();
        let _reaped = child.wait();
    }
}

/// A size as the emulator takes it.
fn lines(count: u16) -> NonZero<u16> {
    NonZero::new(count).expect("a terminal has a size")
}

fn set_size(terminal: impl AsFd, (rows, columns): (u16, u16)) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
}
