//! The kernel programs, of which the tracer loads those of one mode.
//!
//! Here: three BTF tracepoints that only socket traffic reaches, and what every mode shares, the counting.
//!
//! - `sk_data_ready`: fires in the sender's call, for the socket that got the bytes;
//! - `sock_send_length`, `sock_recv_length` (Linux 6.3): the result of every send and receive.
//!
//! These use no structure offset: `bpf_skc_to_unix_sock` tells Unix sockets from others and `bpf_get_socket_cookie`
//! names them. [`functions`] and [`syscalls`] are for kernels without them; Rust emits no CO-RE relocation, so the offsets that they
//! need are read from the running kernel's BTF by the loader (`OFFSETS`).
//! The names of sockets that live a moment only come from such offsets too, see [`told`].

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "kernel helpers and map values are raw pointers, which the kernel's verifier checks at load")]
#![allow(missing_docs, reason = "the macros of aya-ebpf make undocumented public items")]

mod functions;
mod syscalls;
mod told;

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::{bpf_get_ns_current_pid_tgid, bpf_get_socket_cookie, bpf_skc_to_unix_sock};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext, Global};
use aya_log_ebpf::debug;
use tssx_ebpf::{ARRIVALS_BYTES, ARRIVED_ENTRIES, Loss, LossCount, Offset, SIZES, TRAFFIC_ENTRIES, Traffic, TrafficKey};

/// `MSG_PEEK` of recv(2): the bytes stay queued and will be read again.
const MSG_PEEK: i32 = 2;
/// `BPF_NOEXIST` of bpf(2): two CPUs that meet at a new key must not reset each other's sums.
const BPF_NOEXIST: u64 = 1;
/// Errors of a map update, errno(3).
const EEXIST: i32 = -17;
const E2BIG: i32 = -7;
const ENOMEM: i32 = -12;

/// See [`tssx_ebpf::PID_NAMESPACE_DEVICE`]; the loader sets it.
#[unsafe(no_mangle)]
static PID_NAMESPACE_DEVICE: Global<u64> = Global::new(0);

/// See [`tssx_ebpf::PID_NAMESPACE_INODE`]; the loader sets it.
#[unsafe(no_mangle)]
static PID_NAMESPACE_INODE: Global<u64> = Global::new(0);

/// See [`tssx_ebpf::OFFSETS`]; the loader sets it.
#[unsafe(no_mangle)]
static OFFSETS: [Global<u64>; Offset::ALL.len()] = [const { Global::new(0) }; Offset::ALL.len()];

#[map]
static TRAFFIC: PerCpuHashMap<TrafficKey, Traffic> = PerCpuHashMap::with_max_entries(TRAFFIC_ENTRIES, 0);

#[map]
static LOSSES: PerCpuArray<LossCount> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

#[map]
static ARRIVALS: RingBuf = RingBuf::with_byte_size(ARRIVALS_BYTES, 0);

/// A record without traffic, which is too large for a program's stack. Nobody writes to it.
#[map]
static FRESH: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(1, 0);

/// Processes that `ARRIVALS` told of.
#[map]
static ARRIVED: LruHashMap<u32, u8> = LruHashMap::with_max_entries(ARRIVED_ENTRIES, 0);

/// The socket that was last told about new bytes on this CPU, and by which thread.
///
/// The peer need be learned once for each record, and asking for its cookie costs a cache line that the other CPU owns. So a
/// thread whose last send here was on a record that knows its peer is not looked at: `settled` names it. If its next send is
/// on a new socket after all, the peer is learned one send later.
#[repr(C)]
#[derive(Clone, Copy)]
struct Told {
    pid_tgid: u64,
    cookie: u64,
    settled: u64,
}

#[map]
static TOLD: PerCpuArray<Told> = PerCpuArray::with_max_entries(1, 0);

/// Which way the bytes of a call went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Sent,
    Received,
}

/// The cookie of a Unix socket, `None` for any other socket.
#[inline(always)]
fn unix_cookie(socket: *mut c_void) -> Option<u64> {
    // SAFETY: `socket` is the tracepoint's trusted `struct sock *`; the verifier accepts these helpers on nothing else.
    unsafe {
        if bpf_skc_to_unix_sock(socket.cast()).is_null() {
            return None;
        }
        Some(bpf_get_socket_cookie(socket.cast()))
    }
}

/// `sk_data_ready(sk)`: `sk` has something to read, put there by the current thread.
#[btf_tracepoint(function = "sk_data_ready")]
fn data_ready(ctx: BtfTracePointContext) -> i32 {
    let Some(told) = TOLD.get_ptr_mut(0) else { return 0 };
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: the verifier proved `told` to be this CPU's entry; programs on one CPU do not preempt each other.
    unsafe {
        if (*told).settled == pid_tgid {
            return 0;
        }
        if let Some(cookie) = unix_cookie(ctx.arg(0)) {
            (*told).pid_tgid = pid_tgid;
            (*told).cookie = cookie;
        }
    }
    0
}

/// `sock_send_length(sk, ret, flags)`: the end of a send.
#[btf_tracepoint(function = "sock_send_length")]
fn sent(ctx: BtfTracePointContext) -> i32 {
    let result: i32 = ctx.arg(1);
    if result > 0
        && let Some(cookie) = unix_cookie(ctx.arg(0))
    {
        count_sent(&ctx, ctx.arg(0), cookie, result as u64);
    }
    0
}

/// Counts a send, and learns the peer from what `data_ready` noted in the same call.
#[inline(always)]
fn count_sent(ctx: &BtfTracePointContext, socket: *mut c_void, cookie: u64, bytes: u64) {
    let Some(record) = account(ctx, socket, cookie, Direction::Sent, 1, bytes) else { return };
    let Some(told) = TOLD.get_ptr_mut(0) else { return };
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: the verifier proved both to be this CPU's values; programs on one CPU do not preempt each other.
    unsafe {
        if (*told).pid_tgid == pid_tgid {
            // Used once: a thread that moves to another CPU within a call must not leave its peer for a later one.
            (*record).peer = (*told).cookie;
            (*told).pid_tgid = 0;
        }
        (*told).settled = if (*record).peer == 0 { 0 } else { pid_tgid };
    }
}

/// `sock_recv_length(sk, ret, flags)`: the end of a receive.
#[btf_tracepoint(function = "sock_recv_length")]
fn received(ctx: BtfTracePointContext) -> i32 {
    let result: i32 = ctx.arg(1);
    let flags: i32 = ctx.arg(2);
    if result > 0
        && flags & MSG_PEEK == 0
        && let Some(cookie) = unix_cookie(ctx.arg(0))
    {
        account(&ctx, ctx.arg(0), cookie, Direction::Received, 1, result as u64);
    }
    0
}

/// The current process as the reader's pid namespace numbers it; 0 if it is outside.
#[inline(always)]
fn reader_tgid(pid_tgid: u64) -> u32 {
    let inode = PID_NAMESPACE_INODE.load();
    if inode == 0 {
        return (pid_tgid >> 32) as u32;
    }
    let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: `info` is writable for the size given; on failure the helper zeroes it.
    unsafe { bpf_get_ns_current_pid_tgid(PID_NAMESPACE_DEVICE.load(), inode, &raw mut info, size_of::<bpf_pidns_info>() as u32) };
    info.tgid
}

/// The offset that the loader found; a constant to the kernel's verifier.
#[inline(always)]
fn offset(of: Offset) -> usize {
    OFFSETS[of as usize].load() as usize
}

/// Adds calls to their record, which it gives back, or to the losses. A `socket` of null is one that cannot be looked at.
#[inline(always)]
fn account<C: EbpfContext>(
    ctx: &C,
    socket: *mut c_void,
    cookie: u64,
    direction: Direction,
    calls: u64,
    bytes: u64,
) -> Option<*mut Traffic> {
    let key = TrafficKey { cookie, tgid: reader_tgid(bpf_get_current_pid_tgid()), reserved: 0 };
    let record = match record_of(&key, socket) {
        Ok(record) => record,
        Err(loss) => {
            lose(loss, calls, bytes);
            debug!(ctx, "no record for socket {} of process {}", key.cookie, key.tgid);
            return None;
        }
    };
    // SAFETY: the verifier proved `record` to be this CPU's value; programs on one CPU do not preempt each other.
    unsafe {
        if (*record).comm[0] == 0
            && let Ok(comm) = bpf_get_current_comm()
        {
            (*record).comm = comm;
        }
        if direction == Direction::Received {
            (*record).rx_calls += calls;
            (*record).rx_bytes += bytes;
        } else {
            (*record).tx_calls += calls;
            (*record).tx_bytes += bytes;
            // The mask is for the verifier, and the black box keeps it: no result reaches 2^32.
            let size = core::hint::black_box(power_of_two(bytes.checked_div(calls).unwrap_or(bytes))) & (SIZES - 1);
            *(&raw mut (*record).tx_sizes).cast::<u64>().add(size) += calls;
        }
    }
    Some(record)
}

/// The largest `i` with 2^i at most `value`, which is not zero.
#[inline(always)]
fn power_of_two(value: u64) -> usize {
    63 - value.leading_zeros() as usize
}

/// This CPU's value for `key`, the record of `socket`, made if need be.
#[inline(always)]
fn record_of(key: &TrafficKey, socket: *mut c_void) -> Result<*mut Traffic, Loss> {
    if let Some(record) = TRAFFIC.get_ptr_mut(key) {
        return Ok(record);
    }
    tell_of(key.tgid);
    let fresh = FRESH.get(0).ok_or(Loss::Refused)?;
    match TRAFFIC.insert(key, fresh, BPF_NOEXIST) {
        Ok(()) => {
            told::tell(socket, key.cookie);
            TRAFFIC.get_ptr_mut(key).ok_or(Loss::Refused)
        }
        Err(EEXIST) => TRAFFIC.get_ptr_mut(key).ok_or(Loss::Refused),
        Err(E2BIG) => Err(Loss::MapFull),
        Err(ENOMEM) => Err(Loss::NoMemory),
        Err(_) => Err(Loss::Refused),
    }
}

/// Tells the reader of a process that it was not told of: one that lives a moment only can then be looked at in time.
#[inline(always)]
fn tell_of(tgid: u32) {
    if ARRIVED.get_ptr(tgid).is_none()
        && ARRIVED.insert(tgid, 1, BPF_NOEXIST).is_ok()
        && ARRIVALS.output::<[u8; 4]>(tgid.to_ne_bytes(), 0).is_err()
    {
        lose(Loss::Untold, 1, 0);
    }
}

/// Counts calls that have no record.
#[inline(always)]
fn lose(loss: Loss, calls: u64, bytes: u64) {
    if let Some(count) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: the verifier proved `count` to be this CPU's entry; programs on one CPU do not preempt each other.
        unsafe {
            (*count).calls += calls;
            (*count).bytes += bytes;
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only for programs under a licence that the kernel calls compatible with the GPL; "Dual MIT/GPL" is one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
