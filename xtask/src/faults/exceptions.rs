//! Call sites that are judged otherwise than the rest, each with its reason.

use std::collections::BTreeSet;

use nix::errno::Errno::{self, ECONNRESET, EINTR, EIO, ENOMEM, ENOSPC};

use super::heap;
use super::site::Site;

/// A function of the library (any, if empty), a function of its door, errors (all, if none), and the reason.
type Exception = (&'static str, &'static str, &'static [Errno], &'static str);

/// What the library calls by itself, but in the place of the program's call: an error is the program's to know.
const PROGRAMS: &[Exception] = &[
    ("look", "receive", &[], "the program's receive between consent and switch, when nothing is safe to take"),
    ("receive_now", "recvmsg", &[], "the program's receive between consent and switch"),
    ("check", "fcntl", &[], "what splice(2) checks before it moves anything"),
    ("check", "fstat", &[], "what splice(2) checks before it moves anything"),
    ("has_room", "poll_now", &[], "what splice(2) checks before it moves anything"),
    ("dup", "dup", &[], "the program's call, made without libc's function"),
    ("dup2", "dup3", &[], "the program's call, made without libc's function"),
    ("dup3", "dup3", &[], "the program's call, made without libc's function"),
    ("fcntl", "fcntl", &[], "the program's call, made without libc's function"),
    ("drain", "receive", &[], "asks for the end of file and the error that the program's receive is to tell"),
];

/// What is not given an error at that site alone.
const LEFT_OUT: &[Exception] = &[
    (
        "",
        "change_mapping",
        &[],
        "the program's own munmap, mprotect or mremap, whose answer is passed on; libc and the Rust runtime call them too, and give up",
    ),
    ("put", "write", &[EIO, ENOSPC], "a pipe has no device"),
];

/// Where a fault leads to what the kernel would not do: a site, a program, and the reason.
const KNOWN: &[(&str, &str, &str, &str)] =
    &[("end_ring", "setsockopt", "exec", SMALL_BUFFER), ("end_ring", "setsockopt", "exec-fails", SMALL_BUFFER)];

const SMALL_BUFFER: &str = "where a filter forbids setsockopt(2) in the middle of a connection, the send buffer stays small: what has to go back to a peer \
    that becomes another program goes as far as that takes it, and on only at the next call";

/// What a program itself does not survive: a system call of the program's, an error, the program, and the reason.
const UNFIT: &[(&str, Errno, &str, &str)] = &[(
    "ppoll",
    EINTR,
    "exec-as-input",
    "the Rust runtime asks for its three standard descriptors at its start, again and again as long as a signal ends that",
)];

/// Why this program cannot be told the error for ever.
pub(super) fn unfit(site: &Site, errno: Errno, scenario: &str) -> Option<&'static str> {
    let is = |(door, which, program, _): &&(&str, Errno, &str, &str)| {
        !site.own && *door == site.place.door && *which == errno && *program == scenario
    };
    UNFIT.iter().find(is).map(|(.., why)| *why)
}

/// Another error that the program is told instead.
pub(super) struct Answer {
    function: &'static str,
    door: &'static str,
    /// What it is told.
    pub errno: Errno,
    /// The kernel would not say so.
    pub is_fault: bool,
    /// When.
    pub why: &'static str,
}

const ANSWERS: &[Answer] = &[
    Answer {
        function: "keep_socket",
        door: "fcntl",
        errno: ECONNRESET,
        is_fault: true,
        why: "the peer of a blocked read may be told of a reset instead of the end, when another thread has closed the read's number and the process can have no more descriptors",
    },
    Answer {
        function: "new",
        door: "fcntl",
        errno: ENOMEM,
        is_fault: false,
        why: "exec fails where what is left in a ring cannot go along",
    },
    Answer {
        function: "told",
        door: "map",
        errno: ENOMEM,
        is_fault: false,
        why: "exec fails where what is left in a ring cannot go along",
    },
];

/// What the program may be told instead of this site's error.
pub(super) fn answer(site: &Site) -> Option<&'static Answer> {
    ANSWERS.iter().find(|answer| site.own && answer.function == site.place.function && answer.door == site.place.door)
}

fn is(site: &Site, errno: Option<Errno>, exception: &Exception) -> bool {
    let (function, door, errnos, _) = exception;
    let known = errnos.is_empty() || errno.is_some_and(|errno| errnos.contains(&errno));
    site.own && known && (function.is_empty() || *function == site.place.function) && *door == site.place.door
}

/// Whether an error of this site is told to the program.
pub(super) fn is_programs(site: &Site) -> bool {
    !site.own || PROGRAMS.iter().any(|exception| is(site, None, exception))
}

/// Whether another image cannot have what is left to it without this call, and then does not begin.
pub(super) fn is_needed_to_begin(site: &Site, number: u64) -> bool {
    site.own && (heap::takes_memory(site, number) || ["adopt_if", "inherited"].contains(&site.place.function.as_str()))
}

/// Why the site is not given the error at that site alone.
pub(super) fn left_out(site: &Site, errno: Errno) -> Option<&'static str> {
    LEFT_OUT.iter().find(|exception| is(site, Some(errno), exception)).map(|(.., why)| *why)
}

/// Why this program would not end right with an error of the site.
pub(super) fn known(site: &Site, scenario: &str) -> Option<&'static str> {
    let is = |(function, door, program, _): &&(&str, &str, &str, &str)| {
        site.own && *function == site.place.function && *door == site.place.door && *program == scenario
    };
    KNOWN.iter().find(is).map(|(.., why)| *why)
}

/// All that is known to be otherwise than the kernel's.
pub(super) fn all_known() -> BTreeSet<&'static str> {
    let answers = ANSWERS.iter().filter(|answer| answer.is_fault).map(|answer| answer.why);
    answers.chain(KNOWN.iter().map(|(.., why)| *why)).collect()
}
