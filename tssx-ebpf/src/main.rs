//! The kernel programs, of which the tracer loads those of one mode.
//!
//! Here: two BTF tracepoints that only socket traffic reaches, `sock_send_length` and `sock_recv_length` (Linux 6.3), with the
//! result of every send and receive; and what every mode shares, the counting.
//!
//! A Unix socket is known by its family and named by its cookie, both read where the kernel keeps them. [`functions`] and [`syscalls`] are
//! for kernels without these tracepoints. Rust emits no CO-RE relocation, so the structure offsets, of which each mode needs some, are
//! read from the running kernel's BTF by the loader (`OFFSETS`). The names of sockets that live a moment only come from such offsets
//! too, see [`told`].
//!
//! Each CPU has records of its own, so that nothing need be added atomically and no cache line goes from one to the other. A record is
//! made in the call that first needs it: since Linux 6.1 the kernel keeps memory ready for that in any context, and what cannot be made
//! is counted as lost. Older kernels make all at load.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "kernel helpers and map values are raw pointers, which the kernel's verifier checks at load")]
#![allow(missing_docs, reason = "the macros of aya-ebpf make undocumented public items")]

mod cache;
mod functions;
mod look;
mod syscalls;
mod told;

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::{
    bpf_get_ns_current_pid_tgid, bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_skc_to_unix_sock,
};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext, Global};
use aya_log_ebpf::debug;
use tssx_ebpf::{ARRIVALS_BYTES, ARRIVED_ENTRIES, Arrival, Loss, LossCount, Offset, SIZES, TRAFFIC_ENTRIES, Traffic, TrafficKey};

/// `MSG_PEEK` of recv(2): the bytes stay queued and will be read again.
const MSG_PEEK: i32 = 2;
/// `AF_UNIX`, and `SOCK_DGRAM` of socket(2).
const AF_UNIX: u16 = 1;
const DATAGRAM: u16 = 2;
/// `BPF_F_NO_PREALLOC` of bpf(2).
const BPF_F_NO_PREALLOC: u32 = 1;
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
static TRAFFIC: HashMap<TrafficKey, Traffic> = HashMap::with_max_entries(TRAFFIC_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static LOSSES: PerCpuArray<LossCount> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

#[map]
static ARRIVALS: RingBuf = RingBuf::with_byte_size(ARRIVALS_BYTES, 0);

/// A record without traffic. Nobody writes to it.
#[map]
static FRESH: Array<Traffic> = Array::with_max_entries(1, 0);

/// Processes that `ARRIVALS` told of.
#[map]
static ARRIVED: LruHashMap<u32, u8> = LruHashMap::with_max_entries(ARRIVED_ENTRIES, 0);

/// Which way the bytes of a call went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Sent,
    Received,
}

/// The cookie of a Unix socket, `None` for any other socket. Mostly without a call in the kernel, which would cost more than the rest.
#[inline(always)]
fn unix_cookie(socket: *mut c_void) -> Option<u64> {
    // SAFETY: `socket` is the tracepoint's trusted `struct sock *`, and the offsets are of members of these types; the verifier checks
    // both, and accepts the helper on nothing else.
    unsafe {
        if socket.byte_add(offset(Offset::SockFamily)).cast::<u16>().read_volatile() != AF_UNIX {
            return None;
        }
        match socket.byte_add(offset(Offset::SockCookie)).cast::<u64>().read_volatile() {
            0 => Some(bpf_get_socket_cookie(socket.cast())), // which gives it one
            cookie => Some(cookie),
        }
    }
}

/// `sock_send_length(sk, ret, flags)`: the end of a send.
#[btf_tracepoint(function = "sock_send_length")]
fn sent(ctx: BtfTracePointContext) -> i32 {
    let result: i32 = ctx.arg(1);
    let socket: *mut c_void = ctx.arg(0);
    if result > 0
        && let Some(cookie) = unix_cookie(socket)
        && let Some(record) = cache::sent(socket, cookie, current_tgid(), result as u64)
    {
        // SAFETY: the verifier proved `record` to be a value of the map, and knows `socket` as above. A connected socket holds its peer
        // until it is released itself, which the call's own reference prevents.
        unsafe {
            if (*record).peer == 0 && socket.byte_add(offset(Offset::SockType)).cast::<u16>().read_volatile() != DATAGRAM {
                let unix = bpf_skc_to_unix_sock(socket.cast());
                if !unix.is_null() {
                    learn_peer(record, unix.cast());
                }
            }
        }
    }
    0
}

/// Notes the peer of a connected socket, which stays the same for life.
///
/// # Safety
/// `record` is a record of the map. `unix` is a `struct unix_sock` that the verifier knows as such, of a stream or of packets, in a
/// call that holds it.
#[inline(always)]
unsafe fn learn_peer(record: *mut Traffic, unix: *mut c_void) {
    // SAFETY: by the caller; the verifier checks it again, and a fault of the kernel's reads as zero.
    unsafe {
        let peer = unix.byte_add(offset(Offset::UnixPeer)).cast::<*mut c_void>().read_volatile();
        if !peer.is_null() {
            (*record).peer = bpf_get_socket_cookie(peer.cast());
        }
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
        cache::received(ctx.arg(0), cookie, current_tgid(), result as u64);
    }
    0
}

/// The current process as the reader's pid namespace numbers it; 0 if it is outside.
#[inline(always)]
fn current_tgid() -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
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
    let key = TrafficKey { cookie, tgid: current_tgid(), cpu: cpu() };
    let record = match record_of(&key, socket) {
        Ok(record) => record,
        Err(loss) => {
            lose(loss, calls, bytes);
            debug!(ctx, "no record for socket {} of process {}", key.cookie, key.tgid);
            return None;
        }
    };
    // SAFETY: the verifier proved `record` to be a value of the map, and it is this CPU's: programs on one CPU do not preempt each
    // other where they write the same fields.
    unsafe {
        if direction == Direction::Received {
            (*record).rx_calls += calls;
            (*record).rx_bytes += bytes;
        } else {
            add_sent(record, (*record).rx_calls, calls, bytes);
        }
    }
    Some(record)
}

/// Adds sends to a record; `received` is how many receives there were before them on this CPU.
///
/// # Safety
/// `record` is this CPU's value of the map.
#[inline(always)]
unsafe fn add_sent(record: *mut Traffic, received: u64, calls: u64, bytes: u64) {
    // SAFETY: by the caller.
    unsafe {
        (*record).tx_calls += calls;
        (*record).tx_bytes += bytes;
        if (*record).answered != received {
            (*record).answered = received;
            (*record).turns += 1;
        }
        note_size((&raw mut (*record).tx_sizes).cast(), calls, bytes);
    }
}

/// Adds calls to the count of their size.
///
/// # Safety
/// `sizes` are [`SIZES`] counts of this CPU's.
#[inline(always)]
unsafe fn note_size(sizes: *mut u32, calls: u64, bytes: u64) {
    // The mask is for the verifier, and the black box keeps it: no result reaches 2^32.
    let size = core::hint::black_box(power_of_two(bytes.checked_div(calls).unwrap_or(bytes))) & (SIZES - 1);
    // SAFETY: by the caller.
    unsafe {
        *sizes.add(size) = (*sizes.add(size)).wrapping_add(calls as u32);
    }
}

/// The CPU that the program runs on to its end.
#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper has no condition.
    unsafe { bpf_get_smp_processor_id() }
}

/// The largest `i` with 2^i at most `value`, which is not zero.
#[inline(always)]
fn power_of_two(value: u64) -> usize {
    63 - value.leading_zeros() as usize
}

/// The record for `key`, of `socket`, made if need be.
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
    if ARRIVED.get_ptr(tgid).is_some() || ARRIVED.insert(tgid, 1, BPF_NOEXIST).is_err() {
        return;
    }
    let arrival = Arrival { tgid, comm: bpf_get_current_comm().unwrap_or_default() };
    // SAFETY: a record of integers without padding.
    let bytes = unsafe { core::mem::transmute::<Arrival, [u8; size_of::<Arrival>()]>(arrival) };
    if ARRIVALS.output::<[u8; size_of::<Arrival>()]>(bytes, 0).is_err() {
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
