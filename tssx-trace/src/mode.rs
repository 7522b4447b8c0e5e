//! How traffic is measured: four ways, best first, and what each cannot see.

use clap::ValueEnum;
use tssx_ebpf::Offset;

use crate::kernel_types::KernelTypes;

/// A way of measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// BTF tracepoints of the socket layer, Linux 6.3 and newer: exact, and nobody else pays
    #[value(name = "tp_btf")]
    TpBtf,
    /// The end of Unix sockets' own kernel functions (fexit), Linux 5.12 and newer: exact for what begins after it, and nobody else pays
    #[value(name = "fexit", alias = "kprobe")]
    Fexit,
    /// The end of every system call, Linux 5.8 and newer on x86-64: misses io_uring, splice and sendfile; every thread pays
    #[value(name = "syscalls")]
    Syscalls,
    /// Lists of sockets only: who is connected and what is queued, no traffic
    #[value(name = "snapshots")]
    Snapshots,
}

/// What the command line asks for: the best that works, or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted(pub(crate) Option<Mode>);

/// A kernel program and what it is attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// Name of the program in the object.
    pub(crate) program: &'static str,
    /// The tracepoint or function.
    pub(crate) target: &'static str,
}

const fn hook(program: &'static str, target: &'static str) -> Hook {
    Hook { program, target }
}

const TRACEPOINTS: [Hook; 2] = [hook("sent", "sock_send_length"), hook("received", "sock_recv_length")];
const FUNCTIONS: [Hook; 6] = [
    hook("stream_sent", "unix_stream_sendmsg"),
    hook("stream_received", "unix_stream_recvmsg"),
    hook("datagram_sent", "unix_dgram_sendmsg"),
    hook("datagram_received", "unix_dgram_recvmsg"),
    hook("packet_sent", "unix_seqpacket_sendmsg"),
    hook("packet_received", "unix_seqpacket_recvmsg"),
];
const SYSCALLS: [Hook; 1] = [hook("syscall_ended", "sys_exit")];

/// The end of every system call, for what keeps a connection on the kernel socket.
const SIGNALS: [Hook; 1] = [hook("signals", "sys_exit")];
/// Bytes that come, and receives that end.
const WAKEUPS: [Hook; 2] = [hook("ready", "sk_data_ready"), hook("woken", "sock_recv_length")];

/// What looks closer for a part of the window, in any mode with programs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CloserHooks {
    /// Empty where the processor or the kernel's types do not allow it.
    pub(crate) signals: &'static [Hook],
    /// Likewise.
    pub(crate) wakeups: &'static [Hook],
}

impl CloserHooks {
    /// What this kernel has.
    pub(crate) fn of(types: &KernelTypes) -> Self {
        let has = |offset: Offset| {
            let (structure, path) = member(offset);
            types.offset(structure, path).is_some()
        };
        let tracepoints = WAKEUPS.iter().all(|hook| types.has_type(&format!("btf_trace_{}", hook.target)));
        let waiters = [Offset::SockFamily, Offset::SockCookie, Offset::SockWaiters, Offset::WaitersHead];
        Self {
            signals: if cfg!(target_arch = "x86_64") && Mode::Syscalls.offsets(types).is_ok() { &SIGNALS } else { &[] },
            wakeups: if tracepoints && waiters.into_iter().all(has) { &WAKEUPS } else { &[] },
        }
    }
}

impl Mode {
    /// Every mode, best first.
    pub(crate) const ALL: [Self; 4] = [Self::TpBtf, Self::Fexit, Self::Syscalls, Self::Snapshots];

    /// Name on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fexit => "fexit",
            Self::Syscalls => "syscalls",
            Self::Snapshots => "snapshots",
        }
    }

    /// Whether calls and bytes are counted at all.
    pub(crate) fn measures_traffic(self) -> bool {
        self != Self::Snapshots
    }

    /// Whether the programs name a socket by inode instead of cookie.
    pub(crate) fn names_by_inode(self) -> bool {
        self == Self::Syscalls
    }

    /// The kernel programs of the mode.
    pub(crate) fn hooks(self) -> &'static [Hook] {
        match self {
            Self::TpBtf => &TRACEPOINTS,
            Self::Fexit => &FUNCTIONS,
            Self::Syscalls => &SYSCALLS,
            Self::Snapshots => &[],
        }
    }

    /// What the mode cannot see, one sentence each.
    pub(crate) fn limits(self) -> &'static [&'static str] {
        match self {
            Self::TpBtf => &["bytes read by splice(2) are not counted"],
            Self::Fexit => {
                &["bytes read by splice(2), and before Linux 6.5 those sent by splice(2) and sendfile(2), are not counted"]
            }
            Self::Syscalls => &[
                "bytes moved by io_uring, splice(2), sendfile(2), aio and 32-bit programs are not counted",
                "sockets that closed within 250 ms may have no name",
                "every system call of the host is slower while it is watched",
            ],
            Self::Snapshots => &[
                "traffic is not measured: only who is connected, and how much is queued at the end",
                "connections that lived less than 250 ms may be missing",
            ],
        }
    }

    /// The offsets that the mode's programs need, in the order of [`Offset::ALL`].
    ///
    /// # Errors
    /// Names the first structure member that the kernel's types do not show.
    pub(crate) fn offsets(self, types: &KernelTypes) -> Result<[u64; Offset::ALL.len()], String> {
        let mut offsets = [0; Offset::ALL.len()];
        for (place, offset) in offsets.iter_mut().zip(Offset::ALL) {
            let needed = match self {
                Self::Snapshots => false,
                Self::TpBtf => {
                    matches!(offset, Offset::UnixPeer | Offset::SockType | Offset::SockFamily | Offset::SockCookie)
                }
                Self::Fexit => matches!(offset, Offset::SocketSk | Offset::SocketType | Offset::UnixPeer),
                Self::Syscalls => !matches!(
                    offset,
                    Offset::SocketType | Offset::SockType | Offset::SockCookie | Offset::SockWaiters | Offset::WaitersHead
                ),
            };
            let (structure, path) = member(offset);
            *place = match types.offset(structure, path) {
                Some(offset) => offset,
                None if !needed => 0, // what looks closer may need it, and is refused then: `closer_hooks`
                None => return Err(format!("the kernel's types show no member `{}` of `struct {structure}`", path.join("."))),
            };
        }
        Ok(offsets)
    }
}

/// The structure and the member that an offset is of.
fn member(offset: Offset) -> (&'static str, &'static [&'static str]) {
    match offset {
        Offset::SocketSk => ("socket", &["sk"]),
        Offset::SocketType => ("socket", &["type"]),
        Offset::UnixPeer => ("unix_sock", &["peer"]),
        Offset::TaskFiles => ("task_struct", &["files"]),
        Offset::FilesTable => ("files_struct", &["fdt"]),
        Offset::TableFiles => ("fdtable", &["fd"]),
        Offset::FileInode => ("file", &["f_inode"]),
        Offset::FilePrivate => ("file", &["private_data"]),
        Offset::InodeMode => ("inode", &["i_mode"]),
        Offset::InodeNumber => ("inode", &["i_ino"]),
        Offset::SockFamily => ("sock", &["__sk_common", "skc_family"]),
        Offset::SockCookie => ("sock", &["__sk_common", "skc_cookie"]),
        Offset::SockType => ("sock", &["sk_type"]),
        Offset::SockSocket => ("sock", &["sk_socket"]),
        Offset::SocketInode => ("socket_alloc", &["vfs_inode"]),
        Offset::SockWaiters => ("sock", &["sk_wq"]),
        Offset::WaitersHead => ("socket_wq", &["wait", "head"]),
    }
}

/// `auto` or a mode's name.
pub(crate) fn parse_wanted(text: &str) -> Result<Wanted, String> {
    if text == "auto" {
        return Ok(Wanted(None));
    }
    Mode::from_str(text, false).map(|mode| Wanted(Some(mode))).map_err(|_| {
        let names: Vec<_> = Mode::ALL.iter().map(|mode| mode.name()).collect();
        format!("`{text}` is no mode: write auto, {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_known_by_its_name() {
        for mode in Mode::ALL {
            assert_eq!(parse_wanted(mode.name()), Ok(Wanted(Some(mode))));
        }
        assert_eq!(parse_wanted("auto"), Ok(Wanted(None)));
        assert_eq!(parse_wanted("kprobe"), Ok(Wanted(Some(Mode::Fexit))));
        assert!(parse_wanted("best").is_err_and(|error| error.contains("snapshots")));
    }

    #[test]
    fn this_kernel_has_every_member() {
        let types = KernelTypes::of_running_kernel().expect("this kernel shows its types");
        for mode in Mode::ALL {
            assert!(mode.offsets(&types).is_ok(), "{}", mode.name());
        }
        for offset in Offset::ALL {
            let (structure, path) = member(offset);
            assert!(types.offset(structure, path).is_some(), "{offset:?}");
        }
    }
}
