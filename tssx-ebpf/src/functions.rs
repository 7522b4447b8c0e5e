//! The end of each of Unix sockets' own functions (`fexit`), for kernels without the socket tracepoints.
//!
//! Every send and receive of a Unix socket ends in one of them, whatever system call or io_uring request it came by. The socket's
//! `sk` and its peer are read through typed pointers at the offsets in `OFFSETS`: the verifier checks each against the kernel's BTF,
//! and the helpers then name them by cookie, as for the tracepoints.

#![allow(unsafe_code, reason = "kernel helpers and typed pointers, which the kernel's verifier checks at load")]

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skc_to_unix_sock};
use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;
use tssx_ebpf::Offset;

use crate::{Direction, MSG_PEEK, account, learn_peer, offset};

/// `SOCK_DGRAM` and `SOCK_SEQPACKET` of socket(2).
const DATAGRAM: i16 = 2;
const SEQPACKET: i16 = 5;

/// The pointer at `base + of`, a typed one if `base` is.
///
/// # Safety
/// `base` is a kernel pointer that the verifier knows the type of, and `of` a member of that type.
#[inline(always)]
unsafe fn follow(base: *mut c_void, of: Offset) -> *mut c_void {
    // SAFETY: by the caller; the verifier checks it again, and a fault of the kernel's reads as zero.
    unsafe { base.byte_add(offset(of)).cast::<*mut c_void>().read_volatile() }
}

/// Counts one call on the `struct socket` that is the function's first argument. `connected`: its peer stays the same for life.
#[inline(always)]
fn count(ctx: &FExitContext, direction: Direction, result: i32, connected: bool) {
    if result <= 0 {
        return;
    }
    // SAFETY: the verifier knows the first argument as a `struct socket *`, and accepts the helpers on what it leads to only.
    unsafe {
        let sock = follow(ctx.arg(0), Offset::SocketSk);
        let unix = bpf_skc_to_unix_sock(sock.cast());
        if unix.is_null() {
            return;
        }
        let cookie = bpf_get_socket_cookie(sock.cast());
        let Some(record) = account(ctx, sock.cast(), cookie, direction, 1, result as u64) else { return };
        if connected && direction == Direction::Sent && (*record).peer == 0 {
            learn_peer(record, unix.cast());
        }
    }
}

/// Whether the function's socket has that type: the functions of one type call those of another, which must not count twice.
#[inline(always)]
fn is_type(ctx: &FExitContext, kind: i16) -> bool {
    let socket: *mut c_void = ctx.arg(0);
    // SAFETY: as in `follow`; `type` is a `short`.
    unsafe { socket.byte_add(offset(Offset::SocketType)).cast::<i16>().read_volatile() == kind }
}

/// `unix_stream_sendmsg(sock, msg, len)`.
#[fexit(function = "unix_stream_sendmsg")]
fn stream_sent(ctx: FExitContext) -> i32 {
    count(&ctx, Direction::Sent, ctx.arg(3), true);
    0
}

/// `unix_stream_recvmsg(sock, msg, size, flags)`.
#[fexit(function = "unix_stream_recvmsg")]
fn stream_received(ctx: FExitContext) -> i32 {
    if ctx.arg::<i32>(3) & MSG_PEEK == 0 {
        count(&ctx, Direction::Received, ctx.arg(4), true);
    }
    0
}

/// `unix_dgram_sendmsg(sock, msg, len)`.
#[fexit(function = "unix_dgram_sendmsg")]
fn datagram_sent(ctx: FExitContext) -> i32 {
    if is_type(&ctx, DATAGRAM) {
        count(&ctx, Direction::Sent, ctx.arg(3), false);
    }
    0
}

/// `unix_dgram_recvmsg(sock, msg, size, flags)`.
#[fexit(function = "unix_dgram_recvmsg")]
fn datagram_received(ctx: FExitContext) -> i32 {
    if is_type(&ctx, DATAGRAM) && ctx.arg::<i32>(3) & MSG_PEEK == 0 {
        count(&ctx, Direction::Received, ctx.arg(4), false);
    }
    0
}

/// `unix_seqpacket_sendmsg(sock, msg, len)`.
#[fexit(function = "unix_seqpacket_sendmsg")]
fn packet_sent(ctx: FExitContext) -> i32 {
    if is_type(&ctx, SEQPACKET) {
        count(&ctx, Direction::Sent, ctx.arg(3), true);
    }
    0
}

/// `unix_seqpacket_recvmsg(sock, msg, size, flags)`.
#[fexit(function = "unix_seqpacket_recvmsg")]
fn packet_received(ctx: FExitContext) -> i32 {
    if is_type(&ctx, SEQPACKET) && ctx.arg::<i32>(3) & MSG_PEEK == 0 {
        count(&ctx, Direction::Received, ctx.arg(4), true);
    }
    0
}
