//! Processes that begin elsewhere: clone, and the programs that libc starts by itself.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_char, c_int, c_void};

use libc::{FILE, pid_t};
use tssx_core::reason::Reason;

use crate::process::{self, images};
use crate::socket::recall;
use crate::{fd_table, next};

type Strings = *const *const c_char;
/// What a cloned child runs.
pub(crate) type Body = unsafe extern "C" fn(*mut c_void) -> c_int;

/// What the child of a clone has to do.
struct Start {
    body: Body,
    argument: *mut c_void,
}

/// The child's first function: it has a copy of our memory, and with it of `start`.
///
/// # Safety
/// `start` leads to a [`Start`] whose body may be called.
unsafe extern "C" fn begin(start: *mut c_void) -> c_int {
    process::in_counted_child();
    // SAFETY: the caller's.
    let status = unsafe {
        let Start { body, argument } = start.cast::<Start>().read();
        body(argument)
    };
    // libc ends the process past our `_exit`.
    process::leaving();
    status
}

/// clone(2). C declares what follows the argument as "...": on x86-64 and arm64 pointers travel there as fixed arguments do, and those
/// that the caller leaves out are passed on unread.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clone(
    body: Option<Body>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_id: *mut c_void,
    tls: *mut c_void,
    child_id: *mut c_void,
) -> c_int {
    let shares_memory = flags & libc::CLONE_VM != 0;
    let start = body.filter(|_| !shares_memory && crate::init::active().is_some()).map(|body| Start { body, argument });
    images::clone(u64::from(flags.cast_unsigned()), || {
        // SAFETY: the caller keeps clone(2)'s contract; a child with memory of its own finds `start` in its copy.
        unsafe {
            match &start {
                Some(start) => {
                    let start = core::ptr::from_ref(start).cast_mut().cast();
                    next::clone(Some(begin), stack, flags, start, parent_id, tls, child_id)
                }
                None => next::clone(body, stack, flags, argument, parent_id, tls, child_id),
            }
        }
    })
}

/// clone(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __clone(
    body: Option<Body>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_id: *mut c_void,
    tls: *mut c_void,
    child_id: *mut c_void,
) -> c_int {
    // SAFETY: the caller's.
    unsafe { clone(body, stack, flags, argument, parent_id, tls, child_id) }
}

/// system(3). Without a command it only says whether there is a shell.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn system(command: *const c_char) -> c_int {
    if command.is_null() {
        // SAFETY: system(3) allows it.
        return unsafe { next::system(command) };
    }
    // SAFETY: the caller keeps system(3)'s contract.
    images::spawn(|| unsafe { next::system(command) })
}

/// popen(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller keeps popen(3)'s contract.
    images::spawn(|| unsafe { next::popen(command, mode) })
}

/// popen(3) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _IO_popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's.
    unsafe { popen(command, mode) }
}

/// Declares the functions that differ in how the program is found, and in what the child is told by.
macro_rules! spawns {
    ($($(#[$meta:meta])* $name:ident($child:ty);)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name(
                child: *mut $child,
                path: *const c_char,
                actions: *const c_void,
                attributes: *const c_void,
                arguments: Strings,
                environment: Strings,
            ) -> c_int {
                // SAFETY: the caller keeps posix_spawn(3)'s contract.
                images::spawn(|| unsafe { next::$name(child, path, actions, attributes, arguments, environment) })
            }
        )*
    };
}

spawns! {
    /// posix_spawn(3).
    posix_spawn(pid_t);
    /// posix_spawnp(3).
    posix_spawnp(pid_t);
    /// pidfd_spawn(3), glibc 2.39.
    pidfd_spawn(c_int);
    /// pidfd_spawnp(3), glibc 2.39.
    pidfd_spawnp(c_int);
}

/// posix_spawn_file_actions_adddup2(3): a connection that becomes the standard input or output of another program is served by that
/// program, and libc's own dup2 in the child tells nobody.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn posix_spawn_file_actions_adddup2(actions: *mut c_void, fd: c_int, target: c_int) -> c_int {
    if fd_table::stream(fd).is_some() {
        recall::leave_rings_now(fd, Reason::DescriptorTravels);
    }
    // SAFETY: the caller keeps the function's contract.
    unsafe { next::posix_spawn_file_actions_adddup2(actions, fd, target) }
}
