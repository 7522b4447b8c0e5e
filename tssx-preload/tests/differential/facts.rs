//! What operations have in common: which way they move bytes, how many, and whether they may wait.

use crate::program::Op;
use crate::words::{Call, Flags, Handle, Place, Switch};

/// A blocking send of so much surely waits.
pub(crate) const OVERFLOW: u64 = 600_000;

/// At least what the kernel accounts for a message.
pub(crate) fn accounted(size: u64) -> u32 {
    u32::try_from(2 * (size + 320) + 256).unwrap_or(u32::MAX / 64).min(u32::MAX / 64)
}

/// The handle an operation moves bytes at, and whether they come in.
pub(crate) fn direction_of(op: &Op) -> Option<(Handle, bool)> {
    match op {
        Op::Receive { on, .. }
        | Op::Readv { on, .. }
        | Op::Recvmsg { on, .. }
        | Op::Recvmmsg { on, .. }
        | Op::SpliceIn { on, .. }
        | Op::Drain { on, .. }
        | Op::Gather { on, .. } => Some((*on, true)),
        Op::Transmit { on, .. }
        | Op::Writev { on, .. }
        | Op::Sendmsg { on, .. }
        | Op::Sendmmsg { on, .. }
        | Op::Pass { on, .. }
        | Op::Vouch { on, .. }
        | Op::Sendfile { on, .. }
        | Op::SpliceOut { on, .. }
        | Op::Dprintf { on, .. }
        | Op::Fill { on, .. } => Some((*on, false)),
        _ => None,
    }
}

pub(crate) fn never_waits(op: &Op) -> bool {
    let dontwait = |flags: &Flags| flags.has(libc::MSG_DONTWAIT);
    match op {
        Op::Receive { by, flags, .. } | Op::Transmit { by, flags, .. } => {
            !matches!(by, Call::Read | Call::Write) && dontwait(flags)
        }
        Op::Recvmsg { flags, .. }
        | Op::Recvmmsg { flags, .. }
        | Op::Sendmsg { flags, .. }
        | Op::Sendmmsg { flags, .. }
        | Op::Pass { flags, .. }
        | Op::Vouch { flags, .. } => dontwait(flags),
        // For a splice into the stream it is about the pipe only.
        Op::SpliceIn { dontwait, .. } => *dontwait == Switch::On,
        Op::Fill { .. } | Op::Drain { .. } => true,
        _ => false,
    }
}

/// Whether a send that waits for room may find in the end that its memory cannot be read.
pub(crate) fn may_fail(op: &Op) -> bool {
    match op {
        Op::Transmit { at, .. } => *at != Place::Good,
        Op::Writev { parts, .. } | Op::Sendmsg { parts, .. } => parts.0.iter().any(|(_, bad)| *bad),
        _ => false,
    }
}

/// Bytes a receive asks for.
pub(crate) fn asked(op: &Op) -> u64 {
    match op {
        Op::Receive { size, .. } | Op::SpliceIn { size, .. } => u64::from(size.0),
        Op::Recvmmsg { size, count, .. } => u64::from(size.0) * u64::from(count.0),
        Op::Readv { parts, .. } | Op::Recvmsg { parts, .. } => u64::from(parts.total()),
        _ => 0,
    }
}

/// Bytes a send is given, in how many messages.
pub(crate) fn given(op: &Op) -> (u64, u64) {
    match op {
        Op::Transmit { size, .. }
        | Op::Pass { size, .. }
        | Op::Vouch { size, .. }
        | Op::Sendfile { size, .. }
        | Op::SpliceOut { size, .. }
        | Op::Dprintf { size, .. } => (u64::from(size.0), 1),
        Op::Sendmmsg { size, count, .. } => (u64::from(size.0) * u64::from(count.0), u64::from(count.0)),
        Op::Writev { parts, .. } | Op::Sendmsg { parts, .. } => (u64::from(parts.total()), 1),
        Op::Fill { .. } => (OVERFLOW, 2),
        _ => (0, 1),
    }
}

/// What a forked child may do: nothing that changes only its own table.
pub(crate) fn fit_for_child(op: &Op) -> bool {
    !matches!(
        op,
        Op::Close { .. }
            | Op::Copy { .. }
            | Op::Recvmsg { .. }
            | Op::EpollCreate {}
            | Op::EpollChange { .. }
            | Op::Signal { .. }
            | Op::Fill { .. }
    )
}

/// Whether a send is one that the library gives back to the kernel's socket, which then has room of its own.
pub(crate) fn leaves_ring(op: &Op) -> bool {
    match op {
        Op::Transmit { flags, .. } => flags.has(libc::MSG_OOB),
        Op::Pass { .. } | Op::Vouch { .. } | Op::Sendfile { .. } | Op::SpliceOut { .. } | Op::Dprintf { .. } => true,
        _ => false,
    }
}
