//! fcntl, ioctl and syscall: one name, many calls, and an argument that C declares as "...".
//!
//! On x86-64 and arm64 a variadic integer or pointer argument travels as a fixed one does, so these take the most arguments that
//! any of their calls has and pass them on. No call on a selected stream has floating point arguments.

#![allow(unsafe_code, reason = "C entry points")]

use core::ffi::{c_int, c_long, c_ulong};

use tssx_core::reason::Reason;

use super::{close, connection, io, msg, transfer};
use crate::process::{self, descriptors, images};
use crate::readiness::postponed;
use crate::socket::{establish, options};
use crate::{fd_table, next};

/// fcntl(2).
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.hot.tssx_entry")]
pub(crate) unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    // SAFETY: the caller keeps fcntl(2)'s contract.
    let plain = || unsafe { next::fcntl(fd, command, argument) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => descriptors::duplicate(
            fd,
            || tssx_core::sys::fcntl(fd, command, usize::try_from(argument).unwrap_or(usize::MAX)),
            plain,
        ),
        libc::F_SETFL if fd_table::is_ours(fd) => noted_flags(fd, argument, plain()),
        // All the others tell or change nothing that is kept here.
        _ => plain(),
    }
}

/// After F_SETFL.
#[inline(never)]
fn noted_flags(fd: c_int, flags: c_ulong, result: c_int) -> c_int {
    if result == 0 && fd_table::stream(fd).is_some() {
        let has = |flag: c_int| flags & c_ulong::from(flag.cast_unsigned()) != 0;
        options::note_nonblocking(fd, has(libc::O_NONBLOCK));
        if has(libc::O_ASYNC) {
            options::note_async(fd);
        }
    }
    result
}

/// fcntl(2) as programs with 64-bit file offsets call it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    // SAFETY: the caller's.
    unsafe { fcntl(fd, command, argument) }
}

/// fcntl(2) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    // SAFETY: the caller's.
    unsafe { fcntl(fd, command, argument) }
}

/// sockatmark(3)'s question; the libc crate does not have it.
const SIOCATMARK: c_ulong = 0x8905;

look_first! {
    /// ioctl(2).
    ioctl or ioctl_ours(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int;
}

/// ioctl(2) on a descriptor that has an entry.
#[inline(never)]
unsafe fn ioctl_ours(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int {
    if matches!(request, libc::FIONREAD | SIOCATMARK) && fd_table::stream(fd).is_some() {
        options::settle(fd);
    }
    // SAFETY: the caller keeps ioctl(2)'s contract.
    let result = unsafe { next::ioctl(fd, request, argument) };
    if result != 0 || fd_table::stream(fd).is_none() {
        return result;
    }
    let place = core::ptr::with_exposed_provenance_mut::<c_int>(usize::try_from(argument).unwrap_or(0));
    match request {
        libc::FIONREAD | libc::TIOCOUTQ => {
            if let Some(length) = options::queue_length(fd, request) {
                // SAFETY: the kernel has just written an int there.
                unsafe { place.write_unaligned(length) };
            }
        }
        // SAFETY: the kernel has just written an int there.
        SIOCATMARK if options::is_before_mark(fd) => unsafe {
            place.write_unaligned(0);
        },
        // SAFETY: the kernel has just read an int there.
        libc::FIONBIO => options::note_nonblocking(fd, unsafe { place.read_unaligned() } != 0),
        // SAFETY: the kernel has just read an int there.
        libc::FIOASYNC if unsafe { place.read_unaligned() } != 0 => options::note_async(fd),
        _ => {}
    }
    result
}

/// syscall(2): the calls that our table must know of go to their entry points; others that name a selected stream as their first
/// argument keep it on the kernel socket.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let fd = low(a);
    postponed::settle();
    // SAFETY: the caller keeps the contract of the call that `number` names.
    unsafe {
        match number {
            libc::SYS_close => c_long::from(close::close(fd)),
            libc::SYS_dup3 => c_long::from(close::dup3(fd, low(b), low(c))),
            libc::SYS_close_range => c_long::from(close::close_range(fd.cast_unsigned(), low(b).cast_unsigned(), low(c))),
            libc::SYS_dup => c_long::from(close::dup(fd)),
            libc::SYS_pidfd_getfd => {
                let copy = next::syscall(number, a, b, c, d, e, f);
                descriptors::appeared(low(copy));
                copy
            }
            libc::SYS_read if is_ours(fd) => io::read(fd, pointer(b), length(c)) as c_long,
            libc::SYS_write if is_ours(fd) => io::write(fd, pointer(b), length(c)) as c_long,
            libc::SYS_readv if is_ours(fd) => io::readv(fd, pointer(b).cast(), low(c)) as c_long,
            libc::SYS_writev if is_ours(fd) => io::writev(fd, pointer(b).cast(), low(c)) as c_long,
            libc::SYS_sendmsg if is_ours(fd) => msg::sendmsg(fd, pointer(b).cast(), low(c)) as c_long,
            libc::SYS_recvmsg if is_ours(fd) => msg::recvmsg(fd, pointer(b).cast(), low(c)) as c_long,
            libc::SYS_sendto if is_ours(fd) => {
                msg::sendto(fd, pointer(b), length(c), low(d), pointer(e).cast(), low(f).cast_unsigned()) as c_long
            }
            libc::SYS_recvfrom if is_ours(fd) => {
                msg::recvfrom(fd, pointer(b), length(c), low(d), pointer(e).cast(), pointer(f).cast()) as c_long
            }
            libc::SYS_sendmmsg if is_ours(fd) => c_long::from(msg::sendmmsg(fd, pointer(b).cast(), low(c).cast_unsigned(), low(d))),
            libc::SYS_recvmmsg if is_ours(fd) => {
                c_long::from(msg::recvmmsg(fd, pointer(b).cast(), low(c).cast_unsigned(), low(d), pointer(e).cast()))
            }
            libc::SYS_sendfile if is_ours(fd) => transfer::sendfile(fd, low(b), pointer(c).cast(), length(d)) as c_long,
            libc::SYS_splice if is_ours(fd) || is_ours(low(c)) => {
                transfer::splice(fd, pointer(b).cast(), low(c), pointer(d).cast(), length(e), low(f).cast_unsigned()) as c_long
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => c_long::from(close::dup2(fd, low(b))),
            libc::SYS_shutdown if is_ours(fd) => c_long::from(connection::shutdown(fd, low(b))),
            libc::SYS_fcntl if is_ours(fd) => c_long::from(fcntl(fd, low(b), c.cast_unsigned())),
            libc::SYS_ioctl if is_ours(fd) => c_long::from(ioctl(fd, b.cast_unsigned(), c.cast_unsigned())),
            _ if is_of_processes(number) => of_processes([number, a, b, c, d, e, f]),
            _ => {
                if takes_descriptor(number) && is_ours(fd) {
                    establish::give_up(fd, Reason::RawSystemCall);
                }
                next::syscall(number, a, b, c, d, e, f)
            }
        }
    }
}

/// Calls that make a process, turn it into another program, or end it.
fn is_of_processes(number: c_long) -> bool {
    #[cfg(target_arch = "x86_64")]
    if matches!(number, libc::SYS_fork | libc::SYS_vfork) {
        return true;
    }
    matches!(number, libc::SYS_clone | libc::SYS_clone3 | libc::SYS_execve | libc::SYS_execveat | libc::SYS_exit_group)
}

/// Those calls: `words` are the number and the arguments.
///
/// # Safety
/// The contract of the call.
#[cold]
unsafe fn of_processes(words: [c_long; 7]) -> c_long {
    let [number, a, b, c, d, e, f] = words;
    // SAFETY: the caller's. A child that has memory of its own returns into its copy of this frame.
    let call = || unsafe { next::syscall(number, a, b, c, d, e, f) };
    match number {
        // SAFETY: execve(2): the third argument is the environment.
        libc::SYS_execve => c_long::from(unsafe {
            images::exec(pointer(c).cast(), |strings| {
                low(next::syscall(number, a, b, strings.expose_provenance() as c_long, d, e, f))
            })
        }),
        // SAFETY: execveat(2): the fourth.
        libc::SYS_execveat => c_long::from(unsafe {
            images::exec(pointer(d).cast(), |strings| {
                low(next::syscall(number, a, b, c, strings.expose_provenance() as c_long, e, f))
            })
        }),
        libc::SYS_exit_group => {
            process::leaving();
            call()
        }
        libc::SYS_clone => c_long::from(images::clone(a.cast_unsigned(), || low(call()))),
        // SAFETY: clone3(2): the first word of the structure is the flags.
        libc::SYS_clone3 if a != 0 => unsafe {
            c_long::from(images::clone(pointer(a).cast::<u64>().read_unaligned(), || low(call())))
        },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork | libc::SYS_vfork => {
            // vfork is fork, as under its name.
            // SAFETY: no arguments.
            c_long::from(process::fork(|| low(unsafe { next::syscall(libc::SYS_fork, 0, 0, 0, 0, 0, 0) })))
        }
        _ => call(),
    }
}

/// Calls that move bytes of the descriptor that is their first argument, and that we do not route to an entry point.
fn takes_descriptor(number: c_long) -> bool {
    matches!(number, libc::SYS_preadv2 | libc::SYS_pwritev2)
}

fn is_ours(fd: c_int) -> bool {
    fd_table::stream(fd).is_some()
}

/// The low 32 bits, which is what the kernel reads of an int argument.
fn low(argument: c_long) -> c_int {
    let bytes = argument.to_le_bytes();
    c_int::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn pointer(argument: c_long) -> *mut core::ffi::c_void {
    core::ptr::with_exposed_provenance_mut(length(argument))
}

fn length(argument: c_long) -> usize {
    usize::try_from(argument.cast_unsigned()).unwrap_or(usize::MAX)
}
