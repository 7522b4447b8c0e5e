//! Why a socket is worth accelerating or not: stable codes that scripts may compare, each with a sentence and a remedy.
//!
//! The names are part of every JSON that the tracer writes: they are only ever added.

use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Code {
    NotAStream,
    NoName,
    NameNotWritable,
    StaticProgram,
    GoProgram,
    MuslProgram,
    OtherLibc,
    ForeignArchitecture,
    NoSocketCallImported,
    SecureExecution,
    EmptyEnvironment,
    SeccompStrict,
    IoUring,
    LibraryNotVisible,
    NetworkNamespaces,
    DescriptorPassing,
    TypeUnknown,
    NoConnection,
    TrafficNotCounted,
    NoTraffic,
    TooLittleTraffic,
    ShortLived,
    EndUnknown,
    SharedEnd,
    AcceptorUser,
    UserNamespaces,
    SeccompFilter,
    LibraryReason,
    DifferentUsers,
    AlreadyAccelerated,
    LibraryNotLoaded,
    NotSelected,
    IncompleteEvidence,
}

/// What a reason does to the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Weight {
    /// Nothing; it is good to know.
    Note,
    /// The socket can be accelerated, but whether that gains or works was not seen.
    Doubt,
    /// The socket cannot be accelerated as it is used now.
    Block,
}

struct Row(Code, &'static str, Weight, &'static str, &'static str);

use Weight::{Block, Doubt, Note};

const NONE: &str = "none: it stays on the kernel socket";
const LINK: &str = "run a build of it that is linked dynamically with glibc";
const WATCH: &str = "record again while the programs work, with a longer --duration";

/// Every code in order: name, weight, what it means, what to do.
const TABLE: [Row; 33] = [
    Row(Code::NotAStream, "not-a-stream", Block, "only stream sockets can be accelerated", NONE),
    Row(
        Code::NoName,
        "no-name",
        Block,
        "USE_TSSX selects by name, and it has none",
        "bind the socket to a path or an abstract name",
    ),
    Row(
        Code::NameNotWritable,
        "name-not-writable",
        Block,
        "the name cannot stand in an environment",
        "bind the socket to an absolute path of printable UTF-8",
    ),
    Row(
        Code::StaticProgram,
        "static-program",
        Block,
        "no dynamic linker starts the program, so nothing preloads the library",
        LINK,
    ),
    Row(
        Code::GoProgram,
        "go-program",
        Block,
        "a Go program makes its system calls itself, past libc and the library",
        "none for this end: the other clients of the socket can still gain",
    ),
    Row(Code::MuslProgram, "musl-program", Block, "the library is inert with musl", LINK),
    Row(Code::OtherLibc, "other-libc", Block, "the library works with glibc alone", LINK),
    Row(
        Code::ForeignArchitecture,
        "foreign-architecture",
        Block,
        "the program is for another processor or word size than the library",
        "run a build of it for this machine",
    ),
    Row(
        Code::NoSocketCallImported,
        "no-socket-call-imported",
        Block,
        "neither the program nor a library of it calls libc's function that begins a connection: raw system calls, or an inherited descriptor",
        "let it begin connections through libc",
    ),
    Row(
        Code::SecureExecution,
        "secure-execution",
        Block,
        "set-user-id or with file capabilities (AT_SECURE): the dynamic linker ignores LD_PRELOAD there",
        "start it as its user, with ambient capabilities, instead of by the file's mode",
    ),
    Row(
        Code::EmptyEnvironment,
        "empty-environment",
        Block,
        "it was started with no environment at all, so LD_PRELOAD and USE_TSSX would not reach it",
        "set both where it is started, behind whatever clears the environment",
    ),
    Row(Code::SeccompStrict, "seccomp-strict", Block, "strict seccomp allows none of the calls that sharing memory takes", NONE),
    Row(
        Code::IoUring,
        "io-uring",
        Block,
        "it holds an io_uring, whose operations go past the library: a connection that uses both may be reset",
        "turn io_uring off in the program",
    ),
    Row(
        Code::LibraryNotVisible,
        "library-not-visible",
        Block,
        "the library's path leads to no file there: another mount namespace, a container or a chroot",
        "mount the library there under the same path",
    ),
    Row(
        Code::NetworkNamespaces,
        "network-namespaces",
        Block,
        "the ends are in different network namespaces, where they cannot find each other (peer-unknown)",
        "run both ends in one network namespace",
    ),
    Row(
        Code::DescriptorPassing,
        "descriptor-passing",
        Block,
        "descriptors or credentials are passed, which puts a direction back on the kernel socket for good",
        NONE,
    ),
    Row(Code::TypeUnknown, "type-unknown", Doubt, "closed before its type could be seen", WATCH),
    Row(Code::NoConnection, "no-connection", Doubt, "no connection while it was watched", WATCH),
    Row(
        Code::TrafficNotCounted,
        "traffic-not-counted",
        Doubt,
        "its traffic was not counted",
        "record again as the messages of discover say, in a mode that counts (`tssx-trace doctor` tells which works)",
    ),
    Row(Code::NoTraffic, "no-traffic", Doubt, "no traffic while it was watched", WATCH),
    Row(
        Code::TooLittleTraffic,
        "too-little-traffic",
        Doubt,
        "too little traffic to gain",
        "if it is busier at other times, record then; --min-calls sets the limit",
    ),
    Row(
        Code::ShortLived,
        "short-lived",
        Doubt,
        "its connections are too short to gain: they close before they would be upgraded",
        "let the clients keep their connections",
    ),
    Row(Code::EndUnknown, "end-unknown", Doubt, "nothing is known of the programs at this end", WATCH),
    Row(
        Code::SharedEnd,
        "shared-end",
        Doubt,
        "several processes move bytes at one end of one connection",
        "try it, and look at the reasons of `tssx-trace verify`",
    ),
    Row(
        Code::AcceptorUser,
        "acceptor-user",
        Doubt,
        "who accepts runs as another user than who seems to have called listen: unless that is root, it stays plain (peer-credentials)",
        "let the user who accepts call listen too",
    ),
    Row(
        Code::UserNamespaces,
        "user-namespaces",
        Doubt,
        "the ends are in different user namespaces: users without a number there are not told apart and stay plain",
        "run both ends in one user namespace",
    ),
    Row(
        Code::SeccompFilter,
        "seccomp-filter",
        Doubt,
        "a system-call filter that cannot be read from outside: where it refuses memfd_create, fcntl, mmap or netlink the connection stays plain, and one that kills ends the program",
        "allow these calls (systemd: SystemCallErrorNumber=EPERM first), try, then --possible",
    ),
    Row(
        Code::LibraryReason,
        "library-reason",
        Doubt,
        "the library is there and keeps or put its connections on the kernel socket",
        "see the reason that it gives",
    ),
    Row(
        Code::DifferentUsers,
        "different-users",
        Note,
        "the ends belong to different users: each must be started with the environment by its own",
        "give both the same file",
    ),
    Row(Code::AlreadyAccelerated, "already-accelerated", Note, "it is accelerated already", "keep it in USE_TSSX"),
    Row(
        Code::LibraryNotLoaded,
        "library-not-loaded",
        Note,
        "it was started without the library",
        "start it with LD_PRELOAD and USE_TSSX, as `tssx-trace suggest` prints them",
    ),
    Row(
        Code::NotSelected,
        "not-selected",
        Note,
        "the library is there, but its USE_TSSX does not name this socket, or the connection is older than the library",
        "add the socket to USE_TSSX, and start it again",
    ),
    Row(
        Code::IncompleteEvidence,
        "incomplete-evidence",
        Note,
        "some traffic could not be counted: the figures are lower bounds",
        "record again as the messages of discover say",
    ),
];

impl Code {
    /// The stable name.
    pub(crate) fn name(self) -> &'static str {
        TABLE.get(self as usize).map_or("", |row| row.1)
    }

    /// What it does to the verdict where it holds for a whole end.
    pub(crate) fn weight(self) -> Weight {
        TABLE.get(self as usize).map_or(Note, |row| row.2)
    }

    /// One sentence without its dot.
    pub(crate) fn explanation(self) -> &'static str {
        TABLE.get(self as usize).map_or("", |row| row.3)
    }

    /// What to do about it.
    pub(crate) fn remedy(self) -> &'static str {
        TABLE.get(self as usize).map_or("", |row| row.4)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let row = TABLE.iter().find(|row| row.1 == name);
        row.map(|row| row.0).ok_or_else(|| D::Error::custom(format!("`{}` is no reason of this release", name.escape_default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_row_and_name_and_the_heavy_ones_come_first() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
            assert_eq!(TABLE.iter().filter(|other| other.1 == row.1).count(), 1, "{}", row.1);
            assert!(row.1.bytes().all(|byte| byte == b'-' || byte.is_ascii_lowercase()), "{}", row.1);
            assert!(!row.3.is_empty() && !row.4.is_empty() && !row.3.ends_with('.'), "{}", row.1);
        }
        assert!(TABLE.is_sorted_by(|one, next| one.2 >= next.2));
    }
}
