//! A program: a setup and steps, each of which is one operation of one thread. Its text form has one step a line and can
//! be read back, so that a failing program is kept as a file.
//!
//! Every list of steps is a valid program: an operation on a closed place of the table gets EBADF from the kernel, and a
//! step that could not have one certain answer is passed over when the program is played plain (see [`crate::state`]).

use std::fmt;

use crate::words::{
    By, Call, Change, Copying, Events, Flags, Handle, How, Millis, Parts, Place, Question, Size, Switch, Wait, Watches, Word,
    Worker,
};

macro_rules! operations {
    ($( $(#[$doc:meta])* $name:ident $word:literal { $($field:ident: $kind:ty),* } )*) => {
        /// What a step does.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "a field's kind says what it is")]
        pub(crate) enum Op { $( $(#[$doc])* $name { $($field: $kind),* } ),* }

        impl fmt::Display for Op {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $( Self::$name { $($field),* } => {
                        out.write_str($word)?;
                        $( write!(out, " {}={}", stringify!($field), $field.text())?; )*
                    } )*
                }
                Ok(())
            }
        }

        impl Op {
            fn parse(word: &str, fields: &[(&str, &str)]) -> Option<Self> {
                let field = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
                match word {
                    $( $word => Some(Self::$name { $($field: Word::parse(field(stringify!($field))?)?),* }), )*
                    _ => None,
                }
            }

            /// The same with one field simpler, each in turn.
            pub(crate) fn smaller(&self) -> Vec<Self> {
                let mut all = Vec::new();
                match self {
                    $( Self::$name { $($field),* } => {
                        $( for value in $field.smaller() {
                            let mut other = self.clone();
                            if let Self::$name { $field: place, .. } = &mut other {
                                *place = value;
                            }
                            all.push(other);
                        } )*
                    } )*
                }
                all
            }

            /// Its name in the text.
            pub(crate) fn word(&self) -> &'static str {
                match self { $( Self::$name { .. } => $word ),* }
            }
        }
    };
}

operations! {
    /// Receives into one buffer.
    Receive "receive" { on: Handle, by: Call, size: Size, flags: Flags, at: Place }
    /// readv(2).
    Readv "readv" { on: Handle, parts: Parts }
    /// recvmsg(2) with so many bytes of room for control messages; the first descriptor that comes is put at `keep`.
    Recvmsg "recvmsg" { on: Handle, parts: Parts, flags: Flags, room: Size, keep: Handle }
    /// recvmmsg(2).
    Recvmmsg "recvmmsg" { on: Handle, count: Size, size: Size, flags: Flags }
    /// Sends from one buffer.
    Transmit "transmit" { on: Handle, by: Call, size: Size, flags: Flags, at: Place }
    /// writev(2).
    Writev "writev" { on: Handle, parts: Parts }
    /// sendmsg(2).
    Sendmsg "sendmsg" { on: Handle, parts: Parts, flags: Flags }
    /// sendmmsg(2).
    Sendmmsg "sendmmsg" { on: Handle, count: Size, size: Size, flags: Flags }
    /// sendmsg(2) with `copies` times the descriptor at `what` (SCM_RIGHTS).
    Pass "pass" { on: Handle, what: Handle, copies: Size, size: Size, flags: Flags }
    /// sendmsg(2) with SCM_CREDENTIALS.
    Vouch "vouch" { on: Handle, size: Size, flags: Flags }
    /// sendfile(2) from a file.
    Sendfile "sendfile" { on: Handle, size: Size }
    /// splice(2) from the stream into the pipe.
    SpliceIn "splice-in" { on: Handle, size: Size, dontwait: Switch }
    /// splice(2) from the pipe, into which `size` bytes were written first, to the stream.
    SpliceOut "splice-out" { on: Handle, size: Size, dontwait: Switch }
    /// dprintf(3).
    Dprintf "dprintf" { on: Handle, size: Size }
    /// Sends pieces of `size` without waiting until there is no room.
    Fill "fill" { on: Handle, size: Size }
    /// Receives pieces of `size` without waiting until there is nothing.
    Drain "drain" { on: Handle, size: Size }
    /// Receives pieces of `size`, waiting, until everything that was given to the other end to send has come.
    Gather "gather" { on: Handle, size: Size }
    /// shutdown(2).
    Shutdown "shutdown" { on: Handle, how: How }
    /// close(2).
    Close "close" { on: Handle }
    /// Duplicates the descriptor at `on` to `to`.
    Copy "copy" { on: Handle, to: Handle, by: Copying }
    /// Sets or clears O_NONBLOCK.
    Nonblock "nonblock" { on: Handle, to: Switch, by: By }
    /// SO_RCVTIMEO; 0 is for ever.
    ReceiveTimeout "rcvtimeo" { on: Handle, time: Millis }
    /// SO_SNDTIMEO; 0 is for ever.
    SendTimeout "sndtimeo" { on: Handle, time: Millis }
    /// SO_RCVLOWAT.
    LowMark "rcvlowat" { on: Handle, size: Size }
    /// SO_SNDBUF.
    SendBuffer "sndbuf" { on: Handle, size: Size }
    /// SO_PASSCRED.
    PassCredentials "passcred" { on: Handle, to: Switch }
    /// Asks for an option or the like.
    Ask "ask" { on: Handle, what: Question }
    /// poll, ppoll, select, pselect.
    Await "await" { by: Wait, set: Watches, time: Millis }
    /// epoll_create1(2), at `ep`.
    EpollCreate "epoll-create" { }
    /// epoll_ctl(2).
    EpollChange "epoll-ctl" { what: Change, on: Handle, events: Events }
    /// epoll_wait(2).
    EpollWait "epoll-wait" { time: Millis }
    /// Sends a signal to a thread of the same process; its handler was installed with SA_RESTART or without.
    Signal "signal" { whom: Worker, restart: Switch }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Who.
    pub worker: Worker,
    /// Whether a forked child does it, which then exits.
    pub child: bool,
    /// What.
    pub op: Op,
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{} {}", self.worker, if self.child { " child" } else { "" }, self.op)
    }
}

impl Step {
    /// Reads a line.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let worker = Worker::parse(words.next()?)?;
        let mut word = words.next()?;
        let child = word == "child";
        if child {
            word = words.next()?;
        }
        let fields: Vec<(&str, &str)> = words.map(|word| word.split_once('=')).collect::<Option<_>>()?;
        Some(Self { worker, child, op: Op::parse(word, &fields)? })
    }
}

/// How a program begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Connections: `a`, or `a` and `b`.
    pub connections: usize,
    /// Ping-pongs on each before the first step.
    pub warm: u32,
}

/// A whole program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub setup: Setup,
    pub steps: Vec<Step>,
}

impl fmt::Display for Program {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "setup connections={} warm={}", self.setup.connections, self.setup.warm)?;
        self.steps.iter().try_for_each(|step| writeln!(out, "{step}"))
    }
}

impl Program {
    /// Reads a program's text; lines that begin with `#` and empty lines are remarks.
    ///
    /// # Errors
    /// The first line that is no setup or step.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let first = lines.next().unwrap_or_default();
        let number = |name: &str| {
            let words = first.strip_prefix("setup ")?.split_whitespace();
            words.filter_map(|word| word.split_once('=')).find(|(known, _)| *known == name)?.1.parse::<u32>().ok()
        };
        let (Some(connections @ 1..=2), Some(warm)) = (number("connections"), number("warm")) else {
            return Err(format!("`{first}` is no setup"));
        };
        let steps = lines.map(|line| Step::parse(line).ok_or_else(|| format!("`{line}` is no step"))).collect::<Result<_, _>>()?;
        Ok(Self { setup: Setup { connections: connections as usize, warm }, steps })
    }
}
