//! The end of every system call (`sys_exit`), for kernels that allow neither the socket tracepoints nor `fexit`.
//!
//! The call's number and arguments are still in the saved registers when it ends. The descriptor leads through the task's table to the
//! socket, at the offsets in `OFFSETS`; no helper gives a cookie for a pointer found so, so the socket is named by its inode, which
//! UNIX_DIAG shows beside the cookie. Nothing is seen of io_uring, splice, sendfile and 32-bit programs, and every thread of the host
//! pays for the tracepoint.

#![allow(unsafe_code, reason = "kernel helpers take raw addresses, which they check")]

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use tssx_ebpf::{Loss, Offset};

use crate::{AF_UNIX, Direction, MSG_PEEK, account, lose, offset};

/// `struct pt_regs` of x86-64, an interface of ptrace(2): bytes to the registers that hold arguments, number and code segment.
const REGISTER_R10: u64 = 7 * 8;
pub(crate) const REGISTER_RDX: u64 = 12 * 8;
pub(crate) const REGISTER_RSI: u64 = 13 * 8;
pub(crate) const REGISTER_RDI: u64 = 14 * 8;
pub(crate) const REGISTER_NUMBER: u64 = 15 * 8;
pub(crate) const REGISTER_CS: u64 = 17 * 8;
/// `__USER_CS`: other numbers mean other calls in other code segments.
pub(crate) const USER_CS: u64 = 0x33;

/// The type bits of a file's mode.
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// `struct mmsghdr`: its size, and bytes to `msg_len`.
const MESSAGE_BYTES: u64 = 64;
const MESSAGE_LENGTH: u64 = 56;
/// Messages of one sendmmsg(2) or recvmmsg(2) whose lengths are read.
const MESSAGES: u64 = 64;

/// What a system call does with a socket.
#[derive(Clone, Copy)]
struct Call {
    direction: Direction,
    /// Where its flags are, 0 for none.
    flags: u64,
    /// It moves several messages and gives back their number.
    several: bool,
}

/// The call with this number on x86-64.
#[inline(always)]
fn call_of(number: u64) -> Option<Call> {
    let (direction, flags, several) = match number {
        0 | 19 | 327 => (Direction::Received, 0, false),       // read, readv, preadv2
        45 => (Direction::Received, REGISTER_R10, false),      // recvfrom
        47 => (Direction::Received, REGISTER_RDX, false),      // recvmsg
        299 => (Direction::Received, REGISTER_R10, true),      // recvmmsg
        1 | 20 | 328 | 44 | 46 => (Direction::Sent, 0, false), // write, writev, pwritev2, sendto, sendmsg
        307 => (Direction::Sent, 0, true),                     // sendmmsg
        _ => return None,
    };
    Some(Call { direction, flags, several })
}

/// The value of type `T` at that kernel address.
#[inline(always)]
pub(crate) fn read<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails where there is nothing to read.
    unsafe { bpf_probe_read_kernel(address as *const T).ok() }
}

#[inline(always)]
fn member<T: Copy>(base: u64, of: Offset) -> Option<T> {
    read(base + offset(of) as u64)
}

/// Inode of a `struct socket`.
#[inline(always)]
fn inode_of(socket: u64) -> Option<u64> {
    read(socket + (offset(Offset::SocketInode) + offset(Offset::InodeNumber)) as u64)
}

/// The `struct sock` of the current task's descriptor and the socket's inode: `Ok(None)` if it is no Unix socket, `Err` if it cannot
/// be told.
#[inline(always)]
pub(crate) fn unix_socket(descriptor: u32) -> Result<Option<(u64, u64)>, ()> {
    // SAFETY: the helper has no condition.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = member(task, Offset::TaskFiles).ok_or(())?;
    let table: u64 = member(files, Offset::FilesTable).ok_or(())?;
    let array: u64 = member(table, Offset::TableFiles).ok_or(())?;
    let file: u64 = read(array + u64::from(descriptor) * 8).ok_or(())?;
    if file == 0 {
        return Err(()); // closed by another thread within the call
    }
    let inode: u64 = member(file, Offset::FileInode).ok_or(())?;
    let mode: u16 = member(inode, Offset::InodeMode).ok_or(())?;
    if mode & S_IFMT != S_IFSOCK {
        return Ok(None);
    }
    let socket: u64 = member(file, Offset::FilePrivate).ok_or(())?;
    let sock: u64 = member(socket, Offset::SocketSk).ok_or(())?;
    if member::<u16>(sock, Offset::SockFamily) != Some(AF_UNIX) {
        return Ok(None);
    }
    let number: u64 = member(inode, Offset::InodeNumber).ok_or(())?;
    Ok(Some((sock, number)))
}

/// Inode of a socket's peer; 0 if it has none, or none that a program holds yet.
#[inline(always)]
fn peer_of(sock: u64) -> u64 {
    let Some(peer) = member::<u64>(sock, Offset::UnixPeer).filter(|peer| *peer != 0) else { return 0 };
    let Some(socket) = member::<u64>(peer, Offset::SockSocket).filter(|socket| *socket != 0) else { return 0 };
    inode_of(socket).unwrap_or(0)
}

/// How many of the first `count` messages at that address of the program moved bytes, and how many.
#[inline(always)]
fn bytes_of(messages: u64, count: u64) -> Option<(u64, u64)> {
    let (mut calls, mut bytes) = (0, 0);
    for index in 0..MESSAGES {
        if index >= count {
            return Some((calls, bytes));
        }
        let length = (messages + index * MESSAGE_BYTES + MESSAGE_LENGTH) as *const u32;
        // SAFETY: the helper checks the address and fails where there is nothing to read.
        let length = u64::from(unsafe { bpf_probe_read_user(length) }.ok()?);
        // One unless it is zero, without a branch: the verifier would walk both ways of each of these.
        calls += core::hint::black_box(length + u64::from(u32::MAX)) >> 32;
        bytes += length;
    }
    (count == MESSAGES).then_some((calls, bytes))
}

/// `sys_exit(regs, ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
fn syscall_ended(ctx: RawTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if result <= 0 {
        return 0;
    }
    let registers: u64 = ctx.arg(0);
    let Some(call) = read(registers + REGISTER_NUMBER).and_then(call_of) else { return 0 };
    if read(registers + REGISTER_CS) != Some(USER_CS) {
        return 0;
    }
    if call.flags != 0 && read::<u64>(registers + call.flags).unwrap_or(0) as i32 & MSG_PEEK != 0 {
        return 0;
    }
    let descriptor = read::<u64>(registers + REGISTER_RDI).unwrap_or(u64::MAX) as u32;
    let (sock, inode) = match unix_socket(descriptor) {
        Ok(Some(found)) => found,
        Ok(None) => return 0,
        Err(()) => {
            lose(Loss::Unreadable, 1, 0);
            return 0;
        }
    };
    let (calls, bytes) = if call.several {
        let messages = read(registers + REGISTER_RSI).and_then(|messages| bytes_of(messages, result as u64));
        let Some(moved) = messages else {
            lose(Loss::Unreadable, result as u64, 0);
            return 0;
        };
        moved
    } else {
        (1, result as u64)
    };
    if bytes == 0 {
        return 0;
    }
    if let Some(record) = account(&ctx, core::ptr::null_mut(), inode, call.direction, calls, bytes) {
        // SAFETY: the verifier proved `record` to be a value of the map; whoever writes the peer writes the same.
        unsafe {
            if (*record).peer == 0 {
                (*record).peer = peer_of(sock);
            }
        }
    }
    0
}
