//! Processes and their time: who we are, who lives, waiting a moment, and the end.

#![allow(unsafe_code, reason = "a structure that the kernel fills in")]

use core::ffi::c_int;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use super::{Errno, call, close, flag_arg, poll_now};

/// The process's own limit of a resource, getrlimit(2).
#[must_use]
pub fn limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let asked = [0, resource as usize, 0, core::ptr::from_mut(&mut limit) as usize, 0, 0];
    call(libc::SYS_prlimit64, asked).ok().map(|_| limit.rlim_cur)
}

/// The machine's memory, bytes, as sysinfo(2) says; 0 if it does not.
#[must_use]
pub fn physical_memory() -> u64 {
    // SAFETY: all zero is a valid `sysinfo`.
    let mut info: libc::sysinfo = unsafe { core::mem::zeroed() };
    let asked = [core::ptr::from_mut(&mut info) as usize, 0, 0, 0, 0, 0];
    call(libc::SYS_sysinfo, asked).map_or(0, |_| info.totalram.saturating_mul(u64::from(info.mem_unit)))
}

/// getpid(2).
#[must_use]
pub fn getpid() -> u32 {
    call(libc::SYS_getpid, [0; 6]).map_or(0, |pid| u32::try_from(pid).unwrap_or(0))
}

/// getppid(2): 0 for a process whose parent is in another pid namespace.
#[must_use]
pub fn getppid() -> u32 {
    call(libc::SYS_getppid, [0; 6]).map_or(0, |pid| u32::try_from(pid).unwrap_or(0))
}

static IS_STRANGER: AtomicBool = AtomicBool::new(false);

/// From now on, ids that relatives have left in shared memory say nothing to this process, which is in another pid namespace: it takes
/// none of them for dead.
pub fn become_stranger() {
    IS_STRANGER.store(true, Relaxed);
}

/// Whether [`become_stranger`] was called, here or in the process that this one was forked from.
#[must_use]
pub fn is_stranger() -> bool {
    IS_STRANGER.load(Relaxed)
}

/// Whether a process of our pid namespace can still do something. One that was killed cannot, though kill(2) finds its id until its parent
/// has reaped it, and the parent may be the very process that waits for what the dead one holds. Of a child that can always be seen; of
/// another process only `thoroughly`, with a descriptor that is there for a moment.
#[must_use]
pub fn process_lives(pid: u32, thoroughly: bool) -> bool {
    if is_stranger() {
        return true;
    }
    let pid = pid as usize;
    if call(libc::SYS_kill, [pid, 0, 0, 0, 0, 0]) == Err(Errno(libc::ESRCH)) {
        return false;
    }
    let ended = has_ended_as_child(pid) || (thoroughly && has_ended(pid));
    !ended
}

/// waitid(2) that leaves the child to whoever reaps it: true for a dead child of ours. Others, and children that live, give an error or no id.
fn has_ended_as_child(pid: usize) -> bool {
    // SAFETY: all zero is a valid `siginfo_t`.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    let how = flag_arg(libc::WEXITED | libc::WNOHANG | libc::WNOWAIT);
    let asked = call(libc::SYS_waitid, [libc::P_PID as usize, pid, core::ptr::from_mut(&mut info) as usize, how, 0, 0]);
    asked.is_ok() && info.si_signo == libc::SIGCHLD
}

/// pidfd_open(2), Linux 5.3: readable once the whole process has ended. Where it cannot be asked, the id that exists counts as alive.
fn has_ended(pid: usize) -> bool {
    let Ok(pidfd) = call(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0]) else { return false };
    let Ok(pidfd) = c_int::try_from(pidfd) else { return false };
    let ended = poll_now(pidfd, libc::POLLIN).is_ok_and(|ready| ready & libc::POLLIN != 0);
    close(pidfd);
    ended
}

/// sched_yield(2).
pub fn yield_now() {
    let _ = call(libc::SYS_sched_yield, [0; 6]);
}

/// Sleeps for `us` microseconds, below a million, or until a signal (clock_nanosleep(2)).
pub fn rest(us: u32) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(us) * 1000 };
    let _ = call(libc::SYS_clock_nanosleep, [flag_arg(libc::CLOCK_MONOTONIC), 0, core::ptr::from_ref(&time) as usize, 0, 0, 0]);
}

/// The CPU that the calling thread is on at this moment (sched_getcpu(3): two loads where the kernel has rseq(2)); [`u32::MAX`] when the kernel does not say.
#[must_use]
pub fn current_cpu() -> u32 {
    // SAFETY: takes nothing, and only reads what the kernel keeps for the thread.
    unsafe { libc::sched_getcpu() }.cast_unsigned()
}

/// An address in the calling thread's stack: where its top is, so that the page holds a return address or locals of whoever asks. Not that of a
/// local, which would keep the caller's frame while it jumps into another function.
#[inline(always)]
#[must_use]
pub fn stack_pointer() -> usize {
    let top: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: copies a register.
    unsafe {
        core::arch::asm!("mov {}, rsp", out(reg) top, options(nomem, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("mov {}, sp", out(reg) top, options(nomem, nostack, preserves_flags));
    }
    top
}

/// How many CPUs the calling thread may run on (sched_getaffinity(2)); 1 when the kernel does not say.
#[must_use]
pub fn usable_cpus() -> u32 {
    let mut mask = [0_u64; 128];
    let size = size_of_val(&mask);
    match call(libc::SYS_sched_getaffinity, [0, size, mask.as_mut_ptr() as usize, 0, 0, 0]) {
        Ok(_) => mask.iter().map(|word| word.count_ones()).sum::<u32>().max(1),
        Err(_) => 1,
    }
}

/// Terminates the process with SIGABRT's disposition untouched: the last resort of a `no_std` panic handler.
pub fn abort() -> ! {
    let pid = getpid() as usize;
    let _ = call(libc::SYS_kill, [pid, flag_arg(libc::SIGABRT), 0, 0, 0, 0]);
    loop {
        let _ = call(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]);
    }
}

/// exit_group(2).
pub fn exit_group(status: c_int) {
    let _ = call(libc::SYS_exit_group, [flag_arg(status), 0, 0, 0, 0, 0]);
}
