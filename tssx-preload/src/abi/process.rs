//! fork and the ends of a process.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_char, c_int, c_void};

use libc::pid_t;

use crate::{next, process};

/// fork(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn fork() -> pid_t {
    // SAFETY: no arguments.
    process::fork(|| unsafe { next::fork() })
}

/// fork(2) under its internal names.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __fork() -> pid_t {
    // SAFETY: no arguments.
    unsafe { fork() }
}

/// fork(2) under its internal names.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __libc_fork() -> pid_t {
    // SAFETY: no arguments.
    unsafe { fork() }
}

/// _Fork(3): fork without handlers.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _Fork() -> pid_t {
    // SAFETY: no arguments.
    process::fork(|| unsafe { next::_Fork() })
}

/// vfork(2), answered by fork: a child that shares our memory would change the parent's table with every close. POSIX lets
/// vfork be fork, and the child may do nothing that tells them apart.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vfork() -> pid_t {
    // SAFETY: no arguments.
    unsafe { fork() }
}

/// vfork(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __vfork() -> pid_t {
    // SAFETY: no arguments.
    unsafe { fork() }
}

/// daemon(3): libc forks inside, past our entry points, and the parent ends there; the child takes its place as holder.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn daemon(nochdir: c_int, noclose: c_int) -> c_int {
    // SAFETY: no pointers.
    let result = unsafe { next::daemon(nochdir, noclose) };
    process::became_child();
    result
}

/// forkpty(3): libc forks inside.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn forkpty(
    master: *mut c_int,
    name: *mut c_char,
    settings: *const c_void,
    size: *const c_void,
) -> pid_t {
    // SAFETY: the caller keeps forkpty(3)'s contract.
    process::fork(|| unsafe { next::forkpty(master, name, settings, size) })
}

/// _exit(2): the kernel closes everything; the family's ledger is told first.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _exit(status: c_int) -> ! {
    process::leaving();
    loop {
        tssx_core::sys::exit_group(status);
    }
}

/// _Exit(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _Exit(status: c_int) -> ! {
    // SAFETY: no pointers.
    unsafe { _exit(status) }
}
