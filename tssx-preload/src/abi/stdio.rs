//! stdio on a selected stream: libc's own I/O passes no entry point of ours.
//!
//! `fdopen` on a connection that has no segment keeps it on the kernel socket for good. On one that has, it gives a stream whose
//! reads and writes are our entry points (fopencookie(3)), with the descriptor number filled in, so that `fileno` works.
//! `dprintf` writes by itself: the sending direction leaves the ring first.

#![allow(unsafe_code, reason = "C entry points, and stubs that keep the registers of a variadic call")]

use core::ffi::{c_char, c_int, c_void};

use libc::{FILE, size_t, ssize_t};
use tssx_core::reason::Reason;

use super::{close, io};
use crate::endpoint::{Way, lock_stream};
use crate::socket::{establish, fallback};
use crate::{fd_table, next};

/// Offset of `_fileno` in glibc's `struct _IO_FILE` on 64-bit machines (libio/bits/types/struct_FILE.h).
const FILENO_OFFSET: usize = 112;

/// cookie_io_functions_t of fopencookie(3).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CookieFunctions {
    read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t>,
    write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t>,
    seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
    close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
}

fn descriptor(cookie: *mut c_void) -> c_int {
    c_int::try_from(cookie.addr()).unwrap_or(-1)
}

unsafe extern "C" fn cookie_read(cookie: *mut c_void, buffer: *mut c_char, count: size_t) -> ssize_t {
    // SAFETY: stdio passes its own buffer.
    unsafe { io::read(descriptor(cookie), buffer.cast(), count) }
}

unsafe extern "C" fn cookie_write(cookie: *mut c_void, buffer: *const c_char, count: size_t) -> ssize_t {
    // SAFETY: stdio passes its own buffer. fopencookie(3): an error is 0, not -1.
    unsafe { io::write(descriptor(cookie), buffer.cast(), count).max(0) }
}

unsafe extern "C" fn cookie_close(cookie: *mut c_void) -> c_int {
    // SAFETY: no pointers.
    unsafe { close::close(descriptor(cookie)) }
}

/// fdopen(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    let joined = lock_stream(fd, Way::Rx).is_some_and(|rx| rx.segment.is_some());
    if !joined {
        if fd_table::stream(fd).is_some() {
            establish::give_up(fd, Reason::Stdio);
        }
        // SAFETY: the caller keeps fdopen(3)'s contract.
        return unsafe { next::fdopen(fd, mode) };
    }
    let functions = CookieFunctions { read: Some(cookie_read), write: Some(cookie_write), seek: None, close: Some(cookie_close) };
    let cookie = core::ptr::without_provenance_mut(fd.unsigned_abs() as usize);
    // SAFETY: the caller's mode, and functions that live for ever.
    unsafe {
        let stream = next::fopencookie(cookie, mode, functions);
        if !stream.is_null() {
            stream.byte_add(FILENO_OFFSET).cast::<c_int>().write(fd);
        }
        stream
    }
}

/// fdopen(3) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _IO_fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's.
    unsafe { fdopen(fd, mode) }
}

/// Which of the printing functions a stub stands for.
const DPRINTF: usize = 0;
const VDPRINTF: usize = 1;
const DPRINTF_CHK: usize = 2;
const VDPRINTF_CHK: usize = 3;

/// What the stubs call: makes the kernel socket the one that carries what `fd` sends, and says where to go on.
extern "C" fn before_print(fd: c_int, which: usize) -> *mut c_void {
    if fd_table::stream(fd).is_some() {
        // While another thread sleeps in a send on the same stream this waits for it, or gives up if the stream must not
        // block; libc then writes behind what is in the ring.
        let _ = fallback::before_foreign_write(fd, Reason::Stdio, true);
    }
    next::print_function(which)
}

/// A stub that calls [`before_print`] with the program's registers kept, and jumps to the real function.
#[cfg(target_arch = "x86_64")]
macro_rules! stub {
    ($(#[$meta:meta])* $name:ident, $which:ident) => {
        $(#[$meta])*
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                "sub rsp, 128",
                "movups [rsp], xmm0", "movups [rsp + 16], xmm1", "movups [rsp + 32], xmm2", "movups [rsp + 48], xmm3",
                "movups [rsp + 64], xmm4", "movups [rsp + 80], xmm5", "movups [rsp + 96], xmm6", "movups [rsp + 112], xmm7",
                "mov esi, {which}",
                "call {before}",
                "mov r11, rax",
                "movups xmm0, [rsp]", "movups xmm1, [rsp + 16]", "movups xmm2, [rsp + 32]", "movups xmm3, [rsp + 48]",
                "movups xmm4, [rsp + 64]", "movups xmm5, [rsp + 80]", "movups xmm6, [rsp + 96]", "movups xmm7, [rsp + 112]",
                "add rsp, 128",
                "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                "jmp r11",
                which = const $which,
                before = sym before_print,
            )
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod stubs {
    use super::{DPRINTF, DPRINTF_CHK, VDPRINTF, VDPRINTF_CHK, before_print};

    stub! {
        /// dprintf(3).
        dprintf, DPRINTF
    }
    stub! {
        /// vdprintf(3).
        vdprintf, VDPRINTF
    }
    stub! {
        /// dprintf(3), as glibc's headers call it.
        __dprintf_chk, DPRINTF_CHK
    }
    stub! {
        /// vdprintf(3), as glibc's headers call it.
        __vdprintf_chk, VDPRINTF_CHK
    }
}
