//! The words of a program's text: what an operation's fields are, how each is written, read back, and made smaller.

use std::fmt;

/// A field of an operation.
pub(crate) trait Word: Sized {
    /// As it stands in a program's text: no blank.
    fn text(&self) -> String;
    /// Reads the text back.
    fn parse(text: &str) -> Option<Self>;
    /// Simpler values to try when a failing program is shrunk, simplest first.
    fn smaller(&self) -> Vec<Self> {
        Vec::new()
    }
}

/// Which end of a connection, and which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// Accepts.
    Server,
    /// Connects.
    Client,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Server, Self::Client];

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn other(self) -> Self {
        if self == Self::Server { Self::Client } else { Self::Server }
    }
}

/// Threads of a process that play steps. One more, the janitor, sets up and cleans up.
pub(crate) const THREADS: usize = 3;

/// A thread of one of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    pub side: Side,
    pub thread: usize,
}

impl Worker {
    /// The thread that plays no steps.
    pub(crate) const fn janitor(side: Side) -> Self {
        Self { side, thread: THREADS }
    }

    /// Every worker that plays steps.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Side::BOTH.into_iter().flat_map(|side| (0..THREADS).map(move |thread| Self { side, thread }))
    }
}

impl fmt::Display for Worker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}", if self.side == Side::Server { 's' } else { 'c' }, self.thread)
    }
}

impl Word for Worker {
    fn text(&self) -> String {
        self.to_string()
    }

    fn parse(text: &str) -> Option<Self> {
        let side = match text.get(..1)? {
            "s" => Side::Server,
            "c" => Side::Client,
            _ => return None,
        };
        let thread = text.get(1..)?.parse().ok().filter(|thread| *thread < THREADS)?;
        Some(Self { side, thread })
    }
}

macro_rules! named {
    ($(#[$doc:meta])* $kind:ident { $($variant:ident $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the words say it")]
        pub(crate) enum $kind { $($variant),* }

        impl $kind {
            #[allow(dead_code, reason = "not every kind is chosen from as a whole")]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];
        }

        impl Word for $kind {
            fn text(&self) -> String {
                match self { $(Self::$variant => $text),* }.to_owned()
            }

            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

named! {
    /// A place of a process' table: a descriptor or nothing. `a` and `b` are the connections; `x`, `y`, `z` take duplicates and
    /// descriptors received.
    Handle { A "a", B "b", X "x", Y "y", Z "z", PipeOut "pr", PipeIn "pw", Epoll "ep" }
}

impl Handle {
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

named! {
    /// shutdown(2)'s second argument.
    How { Rd "RD", Wr "WR", Both "RDWR", Wrong "WRONG" }
}

named! {
    /// epoll_ctl(2)'s second argument.
    Change { Add "ADD", Mod "MOD", Del "DEL" }
}

named! {
    /// Which call sets or clears O_NONBLOCK.
    By { Fcntl "fcntl", Ioctl "ioctl" }
}

named! {
    /// Which call waits for a set.
    Wait { Poll "poll", Ppoll "ppoll", Select "select", Pselect "pselect" }
}

named! {
    /// Yes or no.
    Switch { Off "off", On "on" }
}

named! {
    /// Which call duplicates a descriptor.
    Copying { Dup "dup", Dup2 "dup2", Dup3 "dup3", Fcntl "F_DUPFD", Cloexec "F_DUPFD_CLOEXEC" }
}

named! {
    /// Which call moves bytes from or to one buffer. For receiving, then for sending.
    Call {
        Read "read", Recv "recv", Recvfrom "recvfrom", Write "write", Send "send", Sendto "sendto",
    }
}

named! {
    /// What is asked of a stream.
    Question {
        Unread "FIONREAD", Unsent "SIOCOUTQ", Error "SO_ERROR", SendBuffer "SO_SNDBUF", ReceiveBuffer "SO_RCVBUF", LowMark "SO_RCVLOWAT",
        Type "SO_TYPE", Flags "F_GETFL", Own "getsockname", Peer "getpeername", Credentials "SO_PEERCRED", Mark "SIOCATMARK",
        Kind "fstat", Position "lseek", ReceiveTimeout "SO_RCVTIMEO", SendTimeout "SO_SNDTIMEO", Listening "SO_ACCEPTCONN",
    }
}

/// A count of bytes or of anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub u32);

impl Word for Size {
    fn text(&self) -> String {
        self.0.to_string()
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    fn smaller(&self) -> Vec<Self> {
        let mut all: Vec<u32> =
            [1, 2, 10, self.0 / 2, self.0.saturating_sub(1)].into_iter().filter(|size| *size < self.0).collect();
        all.dedup();
        all.into_iter().map(Self).collect()
    }
}

/// Milliseconds; -1 is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Millis(pub i32);

impl Millis {
    /// Whether a wait of this length ends by itself, soon.
    pub(crate) fn is_short(self) -> bool {
        (0..1000).contains(&self.0)
    }

    /// The same for SO_RCVTIMEO, of which 0 is for ever.
    pub(crate) fn is_short_limit(self) -> bool {
        self.0 != 0 && self.is_short()
    }
}

impl Word for Millis {
    fn text(&self) -> String {
        self.0.to_string()
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

/// Where in memory the caller's buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// All of it in good memory.
    Good,
    /// In the null page.
    Null,
    /// In a page without access.
    Guard,
    /// So many bytes before such a page.
    Tail(u32),
}

impl Word for Place {
    fn text(&self) -> String {
        match self {
            Self::Good => "good".to_owned(),
            Self::Null => "null".to_owned(),
            Self::Guard => "guard".to_owned(),
            Self::Tail(bytes) => format!("tail:{bytes}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "good" => Some(Self::Good),
            "null" => Some(Self::Null),
            "guard" => Some(Self::Guard),
            _ => text.strip_prefix("tail:")?.parse().ok().map(Self::Tail),
        }
    }

    fn smaller(&self) -> Vec<Self> {
        match self {
            Self::Good => vec![],
            Self::Tail(bytes) if *bytes > 1 => vec![Self::Good, Self::Null, Self::Tail(1), Self::Tail(bytes / 2)],
            _ => vec![Self::Good],
        }
    }
}

/// A buffer in parts; those marked `!` are in the null page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts(pub Vec<(u32, bool)>);

impl Parts {
    pub(crate) fn total(&self) -> u32 {
        self.0.iter().map(|(length, _)| length).sum()
    }
}

impl Word for Parts {
    fn text(&self) -> String {
        let parts: Vec<_> = self.0.iter().map(|(length, bad)| format!("{}{length}", if *bad { "!" } else { "" })).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join("+") }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self(Vec::new()));
        }
        let part = |part: &str| Some((part.trim_start_matches('!').parse().ok()?, part.starts_with('!')));
        text.split('+').map(part).collect::<Option<_>>().map(Self)
    }

    fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.0.len() > 1 {
            let without = |index| self.0.iter().enumerate().filter(move |(at, _)| *at != index).map(|(_, part)| *part);
            all.extend((0..self.0.len()).map(|index| Self(without(index).collect())));
        }
        for (index, (length, bad)) in self.0.iter().enumerate() {
            for shorter in Size(*length).smaller() {
                let mut other = self.clone();
                other.0[index] = (shorter.0, *bad);
                all.push(other);
            }
            if *bad {
                let mut other = self.clone();
                other.0[index].1 = false;
                all.push(other);
            }
        }
        all
    }
}

fn bits_text(bits: u32, names: &[(&str, u32)]) -> String {
    let mut words: Vec<String> = names.iter().filter(|(_, bit)| bits & bit != 0).map(|(name, _)| (*name).to_owned()).collect();
    let known: u32 = names.iter().map(|(_, bit)| bit).sum();
    if bits & !known != 0 {
        words.push(format!("{:#x}", bits & !known));
    }
    if words.is_empty() { "-".to_owned() } else { words.join("|") }
}

fn bits_parse(text: &str, names: &[(&str, u32)]) -> Option<u32> {
    let one = |word: &str| match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => names.iter().find(|(name, _)| *name == word).map(|(_, bit)| *bit),
    };
    if text == "-" { Some(0) } else { text.split('|').map(one).try_fold(0, |all, bit| Some(all | bit?)) }
}

/// Without one of the bits, each in turn.
fn fewer_bits(bits: u32) -> Vec<u32> {
    (0..u32::BITS).map(|index| 1 << index).filter(|bit| bits & bit != 0).map(|bit| bits & !bit).collect()
}

/// Flags of send(2) and recv(2), and of what recvmsg(2) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags(pub i32);

const FLAG_NAMES: [(&str, u32); 13] = [
    ("PEEK", libc::MSG_PEEK as u32),
    ("WAITALL", libc::MSG_WAITALL as u32),
    ("DONTWAIT", libc::MSG_DONTWAIT as u32),
    ("TRUNC", libc::MSG_TRUNC as u32),
    ("CTRUNC", libc::MSG_CTRUNC as u32),
    ("CMSG_CLOEXEC", libc::MSG_CMSG_CLOEXEC as u32),
    ("OOB", libc::MSG_OOB as u32),
    ("ERRQUEUE", libc::MSG_ERRQUEUE as u32),
    ("NOSIGNAL", libc::MSG_NOSIGNAL as u32),
    ("MORE", libc::MSG_MORE as u32),
    ("EOR", libc::MSG_EOR as u32),
    ("WAITFORONE", libc::MSG_WAITFORONE as u32),
    ("CONFIRM", libc::MSG_CONFIRM as u32),
];

impl Flags {
    pub(crate) fn has(self, flag: i32) -> bool {
        self.0 & flag != 0
    }
}

impl Word for Flags {
    fn text(&self) -> String {
        bits_text(self.0.cast_unsigned(), &FLAG_NAMES)
    }

    fn parse(text: &str) -> Option<Self> {
        bits_parse(text, &FLAG_NAMES).map(|bits| Self(bits.cast_signed()))
    }

    fn smaller(&self) -> Vec<Self> {
        fewer_bits(self.0.cast_unsigned()).into_iter().map(|bits| Self(bits.cast_signed())).collect()
    }
}

/// Events of poll(2) and epoll(7): the numbers are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Events(pub u32);

const EVENT_NAMES: [(&str, u32); 15] = [
    ("IN", libc::EPOLLIN as u32),
    ("OUT", libc::EPOLLOUT as u32),
    ("PRI", libc::EPOLLPRI as u32),
    ("ERR", libc::EPOLLERR as u32),
    ("HUP", libc::EPOLLHUP as u32),
    ("NVAL", 0x20),
    ("RDNORM", libc::EPOLLRDNORM as u32),
    ("RDBAND", libc::EPOLLRDBAND as u32),
    ("WRNORM", libc::EPOLLWRNORM as u32),
    ("WRBAND", libc::EPOLLWRBAND as u32),
    ("MSG", libc::EPOLLMSG as u32),
    ("RDHUP", libc::EPOLLRDHUP as u32),
    ("EXCLUSIVE", libc::EPOLLEXCLUSIVE as u32),
    ("ONESHOT", libc::EPOLLONESHOT as u32),
    ("ET", libc::EPOLLET as u32),
];

impl Events {
    pub(crate) fn reads(self) -> bool {
        self.0 & (libc::EPOLLIN | libc::EPOLLRDNORM | libc::EPOLLRDHUP | libc::EPOLLPRI) as u32 != 0
    }

    pub(crate) fn by_edge(self) -> bool {
        self.0 & libc::EPOLLET as u32 != 0
    }

    pub(crate) fn writes(self) -> bool {
        self.0 & (libc::EPOLLOUT | libc::EPOLLWRNORM) as u32 != 0
    }
}

impl Word for Events {
    fn text(&self) -> String {
        bits_text(self.0, &EVENT_NAMES)
    }

    fn parse(text: &str) -> Option<Self> {
        bits_parse(text, &EVENT_NAMES).map(Self)
    }

    fn smaller(&self) -> Vec<Self> {
        fewer_bits(self.0).into_iter().map(Self).collect()
    }
}

/// The set of a poll or select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watches(pub Vec<(Handle, Events)>);

impl Word for Watches {
    fn text(&self) -> String {
        let all: Vec<_> = self.0.iter().map(|(handle, events)| format!("{}:{}", handle.text(), events.text())).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(",") }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self(Vec::new()));
        }
        let one = |word: &str| {
            let (handle, events) = word.split_once(':')?;
            Some((Handle::parse(handle)?, Events::parse(events)?))
        };
        text.split(',').map(one).collect::<Option<_>>().map(Self)
    }

    fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for index in 0..self.0.len() {
            let mut other = self.clone();
            other.0.remove(index);
            all.push(other);
            for events in self.0[index].1.smaller() {
                let mut other = self.clone();
                other.0[index].1 = events;
                all.push(other);
            }
        }
        all
    }
}
