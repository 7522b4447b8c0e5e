//! exec and its relatives: the image goes, and with it its share of every connection.
//!
//! libc's variants call each other by internal names, so each is an entry point of its own. The variadic ones collect their
//! arguments into a list first; the list lies on the stack, as libc's does.

#![allow(unsafe_code, reason = "C entry points, and stubs that collect the arguments of a variadic call")]

use core::ffi::{c_char, c_int};

use crate::errno::{self, Errno};
use crate::next;
use crate::process::images;
use crate::process::remainder::Strings;

/// environ(7), which the functions that take no environment pass on.
fn own_environment() -> Strings {
    unsafe extern "C" {
        static mut environ: Strings;
    }
    // SAFETY: libc's variable, read as libc's own exec reads it.
    unsafe { environ }
}

/// execve(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the caller keeps execve(2)'s contract.
    unsafe { images::exec(environment, |environment| next::execve(path, arguments, environment)) }
}

/// execv(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the caller keeps execv(3)'s contract.
    unsafe { images::exec(own_environment(), |environment| next::execve(path, arguments, environment)) }
}

/// execvp(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the caller keeps execvp(3)'s contract.
    unsafe { images::exec(own_environment(), |environment| next::execvpe(file, arguments, environment)) }
}

/// execvpe(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the caller keeps execvpe(3)'s contract.
    unsafe { images::exec(environment, |environment| next::execvpe(file, arguments, environment)) }
}

/// fexecve(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn fexecve(fd: c_int, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the caller keeps fexecve(3)'s contract.
    unsafe { images::exec(environment, |environment| next::fexecve(fd, arguments, environment)) }
}

/// execveat(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn execveat(
    folder: c_int,
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller keeps execveat(2)'s contract.
    unsafe { images::exec(environment, |environment| next::execveat(folder, path, arguments, environment, flags)) }
}

/// Arguments that a variadic call may have here; more are E2BIG.
const ARGUMENTS_MAX: usize = 4096;
/// Which of the variadic functions a stub stands for.
const EXECL: usize = 0;
const EXECLP: usize = 1;
const EXECLE: usize = 2;

/// What the stubs call. `registers` are the six argument registers, `stack` the arguments behind them.
///
/// # Safety
/// As execl(3): a NULL ends the arguments.
unsafe extern "C" fn exec_list(registers: *const *const c_char, stack: Strings, which: usize) -> c_int {
    let mut list = [core::ptr::null::<c_char>(); ARGUMENTS_MAX];
    // The path is argument 0; the list begins behind it.
    let argument = |index: usize| {
        // SAFETY: the caller's arguments go on at least up to the NULL that ends them.
        unsafe { if index < 6 { *registers.add(index) } else { *stack.add(index - 6) } }
    };
    let mut count = 0;
    loop {
        let text = argument(count + 1);
        let Some(place) = list.get_mut(count) else {
            return errno::int(Err(Errno(libc::E2BIG)));
        };
        *place = text;
        if text.is_null() {
            break;
        }
        count += 1;
    }
    let (path, list) = (argument(0), list.as_ptr());
    // SAFETY: a list that ends in NULL, and the caller's path; execle's environment follows the NULL.
    unsafe {
        match which {
            EXECL => execv(path, list),
            EXECLP => execvp(path, list),
            _ => execve(path, list, argument(count + 2).cast()),
        }
    }
}

/// A stub that puts the argument registers into memory and calls [`exec_list`].
#[cfg(target_arch = "x86_64")]
macro_rules! stub {
    ($(#[$meta:meta])* $name:ident, $which:ident) => {
        $(#[$meta])*
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "push r9", "push r8", "push rcx", "push rdx", "push rsi", "push rdi",
                "mov rdi, rsp",
                "lea rsi, [rsp + 56]", // six registers and the return address
                "mov edx, {which}",
                "sub rsp, 8", // the call needs a stack aligned to 16
                "call {list}",
                "add rsp, 56",
                "ret",
                which = const $which,
                list = sym exec_list,
            )
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod stubs {
    use super::{EXECL, EXECLE, EXECLP, exec_list};

    stub! {
        /// execl(3).
        execl, EXECL
    }
    stub! {
        /// execlp(3).
        execlp, EXECLP
    }
    stub! {
        /// execle(3).
        execle, EXECLE
    }
}
