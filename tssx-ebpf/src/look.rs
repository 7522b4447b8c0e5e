//! What is looked at for a part of the window only, because every thread of the host pays for it or every message does.
//!
//! - What a program does that keeps a connection on the kernel socket, by the end of its system calls: descriptors or credentials that
//!   travel with a message (the first of several), splice(2) and sendfile(2).
//! - How long it takes from the arrival of bytes for which somebody waits, in a call or in an epoll set, to the end of the receive that
//!   takes the first of them.

#![allow(unsafe_code, reason = "kernel helpers take raw addresses, which they check")]

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use tssx_ebpf::closer::{CREDENTIALS, DESCRIPTORS, SIGNALS_ENTRIES, SPLICED, WAKEUPS_ENTRIES, Wakeups};
use tssx_ebpf::{Loss, Offset, SIZES};

use crate::syscalls::{REGISTER_CS, REGISTER_NUMBER, REGISTER_RDI, REGISTER_RDX, REGISTER_RSI, USER_CS, read, unix_socket};
use crate::{BPF_F_NO_PREALLOC, BPF_NOEXIST, MSG_PEEK, lose, offset, power_of_two, unix_cookie};

/// `struct user_msghdr` of sendmsg(2): bytes to `msg_control` and to `msg_controllen`.
const CONTROL: u64 = 32;
const CONTROL_BYTES: u64 = 40;
/// `struct cmsghdr`: a length, then level and type in 4 bytes each; those that a message may have are looked at up to this number.
const HEADER_BYTES: u64 = 16;
const HEADERS: u64 = 4;
/// `SOL_SOCKET`, and `SCM_RIGHTS` and `SCM_CREDENTIALS` of unix(7).
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
const SCM_CREDENTIALS: u32 = 2;

/// What was seen of a socket, by its inode: bits of [`tssx_ebpf::closer`].
#[map]
static SIGNALS: HashMap<u64, u32> = HashMap::with_max_entries(SIGNALS_ENTRIES, BPF_F_NO_PREALLOC);

/// When bytes came for which somebody waited, by the cookie of the socket, in nanoseconds of the kernel's clock.
#[map]
static READY: HashMap<u64, u64> = HashMap::with_max_entries(WAKEUPS_ENTRIES, BPF_F_NO_PREALLOC);

/// How long the receives took, by cookie.
#[map]
static WAKEUPS: HashMap<u64, Wakeups> = HashMap::with_max_entries(WAKEUPS_ENTRIES, BPF_F_NO_PREALLOC);

/// No wake-ups. Nobody writes to it.
#[map]
static ASLEEP: Array<Wakeups> = Array::with_max_entries(1, 0);

/// Notes what was seen of a descriptor, if it is a Unix socket.
#[inline(always)]
fn note(descriptor: u32, seen: u32) {
    let Ok(Some((_, inode))) = unix_socket(descriptor) else { return };
    if let Some(known) = SIGNALS.get_ptr_mut(inode) {
        // SAFETY: the verifier proved `known` to be a value of the map. Of two CPUs that meet here one may win: the other bit is seen again.
        unsafe { *known |= seen };
    } else if SIGNALS.insert(inode, seen, 0).is_err() {
        lose(Loss::Unsampled, 1, 0);
    }
}

#[inline(always)]
fn read_user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails where there is nothing to read.
    unsafe { bpf_probe_read_user(address as *const T).ok() }
}

/// What travels with the message at that address of the program.
#[inline(always)]
fn ancillary(message: u64) -> Option<u32> {
    let control: u64 = read_user(message + CONTROL)?;
    let bytes: u64 = read_user(message + CONTROL_BYTES)?;
    let (mut seen, mut at) = (0, 0);
    for _ in 0..HEADERS {
        if control == 0 || at + HEADER_BYTES > bytes {
            break;
        }
        let length: u64 = read_user(control + at)?;
        let level: u32 = read_user(control + at + 8)?;
        let kind: u32 = read_user(control + at + 12)?;
        seen |= match (level, kind) {
            (SOL_SOCKET, SCM_RIGHTS) => DESCRIPTORS,
            (SOL_SOCKET, SCM_CREDENTIALS) => CREDENTIALS,
            _ => 0,
        };
        if length < HEADER_BYTES || length > bytes {
            break;
        }
        at += (length + 7) & !7;
    }
    Some(seen)
}

/// `sys_exit(regs, ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
fn signals(ctx: RawTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if result <= 0 {
        return 0;
    }
    let registers: u64 = ctx.arg(0);
    let number: u64 = read(registers + REGISTER_NUMBER).unwrap_or(u64::MAX);
    // sendmsg, recvmsg, recvmmsg, sendmmsg; splice; sendfile
    let (is_message, is_splice) = (matches!(number, 46 | 47 | 299 | 307), number == 275);
    if !(is_message || is_splice || number == 40) || read(registers + REGISTER_CS) != Some(USER_CS) {
        return 0;
    }
    let first = read::<u64>(registers + REGISTER_RDI).unwrap_or(u64::MAX) as u32;
    if is_message {
        let message = read(registers + REGISTER_RSI).unwrap_or(0);
        if let Some(seen) = ancillary(message).filter(|seen| *seen != 0) {
            note(first, seen);
        }
        return 0;
    }
    note(first, SPLICED);
    if is_splice {
        note(read::<u64>(registers + REGISTER_RDX).unwrap_or(u64::MAX) as u32, SPLICED);
    }
    0
}

/// Whether somebody waits for the socket's bytes: in a call, or in an epoll set.
#[inline(always)]
fn is_waited_for(socket: u64) -> bool {
    let Some(queue) = read::<u64>(socket + offset(Offset::SockWaiters) as u64).filter(|queue| *queue != 0) else { return false };
    let head = queue + offset(Offset::WaitersHead) as u64;
    // An empty list is one whose head is its own next.
    read::<u64>(head).is_some_and(|next| next != head)
}

/// `sk_data_ready(sk)`: bytes have come, and whoever waits for them is woken next.
#[btf_tracepoint(function = "sk_data_ready")]
fn ready(ctx: BtfTracePointContext) -> i32 {
    let socket: *mut c_void = ctx.arg(0);
    if let Some(cookie) = unix_cookie(socket)
        && is_waited_for(socket as u64)
    {
        // SAFETY: the helper has no condition.
        let now = unsafe { bpf_ktime_get_ns() };
        // The first bytes count: what comes before they were taken finds them there. Without room, this one is no sample.
        let _ = READY.insert(cookie, now, BPF_NOEXIST);
    }
    0
}

/// `sock_recv_length(sk, ret, flags)`: a receive is over.
#[btf_tracepoint(function = "sock_recv_length")]
fn woken(ctx: BtfTracePointContext) -> i32 {
    let (result, flags): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if result > 0
        && flags & MSG_PEEK == 0
        && let Some(cookie) = unix_cookie(ctx.arg(0))
        && let Some(since) = READY.get_ptr(cookie)
    {
        // SAFETY: the verifier proved `since` to be a value of the map; the helper has no condition.
        let took = unsafe { bpf_ktime_get_ns().wrapping_sub(*since) };
        let _ = READY.remove(cookie);
        sample(cookie, took);
    }
    0
}

/// Counts a receive that took so many nanoseconds.
#[inline(always)]
fn sample(cookie: u64, took: u64) {
    if WAKEUPS.get_ptr(cookie).is_none() {
        let Some(asleep) = ASLEEP.get(0) else { return };
        // Without room, this one is no sample.
        let _ = WAKEUPS.insert(cookie, asleep, BPF_NOEXIST);
    }
    if let Some(wakeups) = WAKEUPS.get_ptr_mut(cookie) {
        let power = power_of_two(took | 1);
        let power = if power < SIZES { power } else { SIZES - 1 };
        let power = core::hint::black_box(power) & (SIZES - 1);
        // SAFETY: the verifier proved `wakeups` to be a value of the map, of as many counts. One receive of a socket ends at a time, but for
        // those of several threads, of which one sample may be lost.
        unsafe {
            *(&raw mut (*wakeups).counts).cast::<u32>().add(power) += 1;
        }
    }
}
