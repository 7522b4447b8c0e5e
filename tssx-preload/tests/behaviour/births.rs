//! The ways in which a process can come to be.
#![allow(unsafe_code, reason = "calls the C functions under test directly, and one system call past all of them")]

use libc::{c_int, c_long, c_void, pid_t};

use crate::sys::ForkedChild;

/// How a child is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Birth {
    /// fork(2).
    Fork,
    /// _Fork(3): no handlers.
    BareFork,
    /// clone(2): the child begins in a function and ends when that returns.
    Clone,
    /// syscall(2) with SYS_clone.
    RawClone,
    /// syscall(2) with SYS_clone3.
    RawClone3,
    /// syscall(2) with SYS_fork.
    RawFork,
    /// The system call itself, which no library sees.
    Unseen,
}

/// All of them.
pub(crate) const BIRTHS: [Birth; 7] =
    [Birth::Fork, Birth::BareFork, Birth::Clone, Birth::RawClone, Birth::RawClone3, Birth::RawFork, Birth::Unseen];

unsafe extern "C" {
    // unistd.h, glibc 2.34; the libc crate does not declare it.
    fn _Fork() -> pid_t;
}

/// clone3(2)'s argument, up to what the first version of the call has.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Runs `child` in a child that was made in this way; it leaves by `_exit`, or for [`Birth::Clone`] by returning.
pub(crate) fn born(birth: Birth, child: impl FnOnce()) -> ForkedChild {
    let signal = c_long::from(libc::SIGCHLD);
    // SAFETY: the role has one thread, or its children do as little as a forked child may; no call is given a stack or memory to share.
    let pid = unsafe {
        match birth {
            Birth::Fork => libc::fork(),
            Birth::BareFork => _Fork(),
            Birth::Clone => return cloned(child),
            Birth::RawClone => libc::syscall(libc::SYS_clone, signal, 0_usize, 0_usize, 0_usize, 0_usize) as pid_t,
            Birth::RawClone3 => {
                let arguments = CloneArguments { exit_signal: signal.cast_unsigned(), ..CloneArguments::default() };
                libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) as pid_t
            }
            Birth::RawFork => libc::syscall(libc::SYS_fork) as pid_t,
            Birth::Unseen => unseen(),
        }
    };
    if pid == 0 {
        child();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    assert!(pid > 0, "{birth:?} failed");
    ForkedChild::of(pid)
}

/// fork(2) as a program that knows no libc makes it.
fn unseen() -> pid_t {
    let result: isize;
    // SAFETY: the x86-64 system call convention; fork takes no argument.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") libc::SYS_fork as isize => result, lateout("rcx") _, lateout("r11") _);
    }
    result as pid_t
}

extern "C" fn begin<F: FnOnce()>(body: *mut c_void) -> c_int {
    // SAFETY: `cloned` passes a live `Option<F>`, of which this process has a copy of its own.
    let body = unsafe { (*body.cast::<Option<F>>()).take() };
    body.expect("called once")();
    0
}

fn cloned<F: FnOnce()>(child: F) -> ForkedChild {
    const STACK: usize = 1 << 20;
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let mut child = Some(child);
    // SAFETY: the child has its own copy of both; a stack grows down from its end.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len());
        libc::clone(begin::<F>, top.cast(), libc::SIGCHLD, (&raw mut child).cast())
    };
    assert!(pid > 0, "clone failed");
    std::mem::forget(child); // what it would drop is the child's affair
    ForkedChild::of(pid)
}

/// daemon(3): the caller goes on in a process of its own.
pub(crate) fn become_daemon() {
    // SAFETY: no pointers; the role has one thread.
    assert_eq!(unsafe { libc::daemon(1, 1) }, 0, "daemon");
}

/// Waits for every child; how many did not end with 0.
pub(crate) fn failures(children: impl IntoIterator<Item = ForkedChild>) -> usize {
    children.into_iter().map(ForkedChild::wait).filter(|ended| ended != "exit 0").count()
}

/// closefrom(3).
pub(crate) fn close_from(first: i32) {
    unsafe extern "C" {
        fn closefrom(first: c_int);
    }
    // SAFETY: the caller owns all descriptors from there on.
    unsafe { closefrom(first) };
}

/// close_range(2).
pub(crate) fn close_range(first: i32, last: u32, flags: u32) -> c_long {
    // SAFETY: the caller owns the range.
    unsafe { c_long::from(libc::close_range(first.cast_unsigned(), last, flags.cast_signed())) }
}

/// pidfd_getfd(2) by syscall(2): a copy of another process's descriptor.
pub(crate) fn descriptor_of(pid: u32, fd: i32) -> i32 {
    // SAFETY: no pointers.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as c_int;
        assert!(pidfd >= 0, "pidfd_open");
        let copy = libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0) as c_int;
        libc::close(pidfd);
        copy
    }
}
