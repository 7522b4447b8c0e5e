//! stdio on a selected stream: libc's own I/O passes no entry point of ours.
//!
//! `fdopen` on a connection that has no segment keeps it on the kernel socket for good. On one that has, it gives a stream whose
//! reads and writes are our entry points (fopencookie(3)), with the descriptor number filled in, so that `fileno` works.
//! `dprintf` writes by itself: the sending direction leaves the ring first.

#![allow(unsafe_code, reason = "C entry points, and stubs that keep the registers of a variadic call")]

use core::ffi::{c_char, c_int, c_ulong, c_void};

use libc::{FILE, size_t, ssize_t};
use tssx_core::reason::Reason;

use super::{close, io};
use crate::endpoint::{Way, lock_stream};
use crate::process::{descriptors, remainder};
use crate::socket::{establish, fallback};
use crate::{errno, fd_table, next, process};

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

/// A socket has no position, but what `freopen` puts in its place may have one.
unsafe extern "C" fn cookie_seek(cookie: *mut c_void, position: *mut i64, whence: c_int) -> c_int {
    // SAFETY: stdio passes a live position.
    unsafe {
        let moved = libc::lseek(descriptor(cookie), *position, whence);
        if moved < 0 {
            return -1;
        }
        *position = moved;
        0
    }
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
    let functions =
        CookieFunctions { read: Some(cookie_read), write: Some(cookie_write), seek: Some(cookie_seek), close: Some(cookie_close) };
    let cookie = core::ptr::without_provenance_mut(fd.unsigned_abs() as usize);
    // SAFETY: the caller's mode, and functions that live for ever.
    unsafe {
        let stream = next::fopencookie(cookie, mode, functions);
        if !stream.is_null() {
            stream.byte_add(FILENO_OFFSET).cast::<c_int>().write(fd);
            // As libc does for "a" (libio/iofdopen.c).
            if mode.read().cast_unsigned() == b'a' {
                let flags = next::fcntl(fd, libc::F_GETFL, 0);
                next::fcntl(fd, libc::F_SETFL, c_ulong::from((flags | libc::O_APPEND).cast_unsigned()));
            }
        }
        stream
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = inherit;

/// What the last image has left, and stdin if it is a connection with something left: libc reads from descriptor 0 by itself.
extern "C" fn inherit() {
    unsafe extern "C" {
        static mut stdin: *mut FILE;
    }
    if remainder::adopt() && fd_table::stream(0).is_some() {
        // SAFETY: nothing has been read yet, and the program finds libc's variable as we leave it.
        unsafe {
            let stream = fdopen(0, c"r".as_ptr());
            if stream.is_null() {
                remainder::cannot_begin();
            }
            stdin = stream;
        }
    }
}

/// fdopen(3) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _IO_fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's.
    unsafe { fdopen(fd, mode) }
}

/// Makes `call`, in which libc closes the descriptor of `stream` by itself, and forgets the descriptor if it is ours.
///
/// # Safety
/// `stream` must be a stream of libc's.
unsafe fn closing_inside<R>(stream: *mut FILE, call: impl FnOnce() -> R) -> R {
    if crate::init::active().is_none() || stream.is_null() {
        return call();
    }
    let kept = errno::get();
    // SAFETY: the caller's promise.
    let fd = unsafe { libc::fileno(stream) };
    errno::set(kept);
    // A stream whose connection has a segment is one of `fdopen` above, and closes by our own function.
    let ours = fd_table::stream(fd).is_some_and(|endpoint| endpoint.slot().is_some_and(|slot| endpoint.segment(slot).is_none()));
    if !ours {
        return call();
    }
    let _gate = process::enter_gate();
    let closing = descriptors::closing(fd);
    let result = call();
    closing.finish();
    result
}

/// fclose(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn fclose(stream: *mut FILE) -> c_int {
    // SAFETY: the caller keeps fclose(3)'s contract.
    unsafe { closing_inside(stream, || next::fclose(stream)) }
}

/// fclose(3) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _IO_fclose(stream: *mut FILE) -> c_int {
    // SAFETY: the caller's.
    unsafe { fclose(stream) }
}

/// freopen(3). libc cannot do it to a stream of `fdopen` above: there the file is opened beside it and takes the descriptor's place,
/// which our functions serve as well.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
    // SAFETY: the caller keeps freopen(3)'s contract.
    unsafe {
        let fd = if stream.is_null() || crate::init::active().is_none() { -1 } else { libc::fileno(stream) };
        if path.is_null() || lock_stream(fd, Way::Rx).is_none_or(|rx| rx.segment.is_none()) {
            return closing_inside(stream, || next::freopen(path, mode, stream));
        }
        libc::fflush(stream);
        let file = libc::fopen(path, mode);
        if file.is_null() {
            let kept = errno::get();
            libc::fclose(stream);
            errno::set(kept);
            return core::ptr::null_mut();
        }
        let flags = file.cast::<c_int>().read() & MODE_FLAGS;
        let kept = stream.cast::<c_int>();
        kept.write(kept.read() & !MODE_FLAGS & !STATE_FLAGS | flags);
        let cloexec = next::fcntl(libc::fileno(file), libc::F_GETFD, 0) & libc::FD_CLOEXEC != 0;
        close::dup3(libc::fileno(file), fd, if cloexec { libc::O_CLOEXEC } else { 0 });
        libc::fclose(file);
        stream
    }
}

/// `_IO_NO_READS`, `_IO_NO_WRITES` and `_IO_IS_APPENDING` of glibc's `struct _IO_FILE`, whose first member is `_flags` (libio/libio.h).
const MODE_FLAGS: c_int = 0x4 | 0x8 | 0x1000;
/// `_IO_EOF_SEEN` and `_IO_ERR_SEEN`.
const STATE_FLAGS: c_int = 0x10 | 0x20;

/// freopen(3) as programs with 64-bit file offsets call it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn freopen64(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
    // SAFETY: the caller's.
    unsafe { freopen(path, mode, stream) }
}

/// Which of the printing functions a stub stands for.
const DPRINTF: usize = 0;
const VDPRINTF: usize = 1;
const DPRINTF_CHK: usize = 2;
const VDPRINTF_CHK: usize = 3;

/// What the stubs call: makes the kernel socket the one that carries what `fd` sends, and says where to go on.
extern "C" fn before_print(fd: c_int, which: usize) -> *mut c_void {
    if may_write_inside(fd) { next::print_function(which) } else { print_nothing as *mut c_void }
}

/// In the printing function's place where it cannot write: errno says why.
extern "C" fn print_nothing() -> c_int {
    -1
}

/// Before libc writes to `fd` by itself. False, with errno set, if it must not, because the kernel's socket would have to wait first for what
/// was taken back from the ring, or for another thread's send.
fn may_write_inside(fd: c_int) -> bool {
    let ready = || errno::int(fallback::before_libc_writes(fd).map(|()| 0)) == 0;
    fd_table::stream(fd).is_none() || ready()
}

/// backtrace_symbols_fd(3), which writes from inside libc too.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn backtrace_symbols_fd(buffer: *const *mut c_void, count: c_int, fd: c_int) {
    if may_write_inside(fd) {
        // SAFETY: the caller keeps backtrace_symbols_fd(3)'s contract.
        unsafe { next::backtrace_symbols_fd(buffer, count, fd) };
    }
}

/// backtrace_symbols_fd(3) under its internal name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __backtrace_symbols_fd(buffer: *const *mut c_void, count: c_int, fd: c_int) {
    // SAFETY: the caller's.
    unsafe { backtrace_symbols_fd(buffer, count, fd) };
}

/// eventfd_write(3): libc's writes eight bytes, whatever the descriptor is.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn eventfd_write(fd: c_int, value: u64) -> c_int {
    // SAFETY: eight live bytes.
    if unsafe { io::write(fd, (&raw const value).cast(), size_of::<u64>()) } == 8 { 0 } else { -1 }
}

/// eventfd_read(3), likewise.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn eventfd_read(fd: c_int, value: *mut u64) -> c_int {
    // SAFETY: the caller's eight bytes.
    if unsafe { io::read(fd, value.cast(), size_of::<u64>()) } == 8 { 0 } else { -1 }
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
