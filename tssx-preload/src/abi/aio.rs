//! Asynchronous I/O of libc's own threads (aio(7)): it passes no entry point of ours, so the kernel's socket has to carry what it moves.

#![allow(unsafe_code, reason = "C entry points, and reads the descriptor in a control block")]

use core::ffi::{c_int, c_void};

use tssx_core::reason::Reason;

use crate::socket::recall;
use crate::user_memory::{self, Access};
use crate::{fd_table, next};

/// `struct aiocb`, and `struct aiocb64`, which begin alike on 64-bit machines: with `aio_fildes`.
type Control = *mut c_void;

/// Most control blocks that one call looks at; libc takes more, but then they are not ours to know.
const LIST_MAX: usize = 4096;

/// Makes the kernel's socket the one that carries what the control block's descriptor moves, now and for good.
///
/// # Safety
/// As aio_read(3).
unsafe fn leave_to_kernel(control: Control) {
    if !control.cast::<c_int>().is_aligned() || !user_memory::is_accessible(control.addr(), size_of::<c_int>(), Access::Read) {
        return;
    }
    // SAFETY: there is memory, aligned.
    let fd = unsafe { control.cast::<c_int>().read() };
    if fd_table::stream(fd).is_some() {
        recall::leave_rings_now(fd, Reason::RawSystemCall);
    }
}

/// aio_read(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_read(control: Control) -> c_int {
    // SAFETY: the caller keeps aio_read(3)'s contract.
    unsafe {
        leave_to_kernel(control);
        next::aio_read(control)
    }
}

/// aio_read(3) as programs with 64-bit file offsets call it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_read64(control: Control) -> c_int {
    // SAFETY: the caller's.
    unsafe { aio_read(control) }
}

/// aio_write(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_write(control: Control) -> c_int {
    // SAFETY: the caller keeps aio_write(3)'s contract.
    unsafe {
        leave_to_kernel(control);
        next::aio_write(control)
    }
}

/// aio_write(3) as programs with 64-bit file offsets call it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aio_write64(control: Control) -> c_int {
    // SAFETY: the caller's.
    unsafe { aio_write(control) }
}

/// lio_listio(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn lio_listio(mode: c_int, list: *const Control, count: c_int, event: *mut c_void) -> c_int {
    let blocks = usize::try_from(count).unwrap_or(0).min(LIST_MAX);
    if list.is_aligned() && user_memory::is_accessible(list.addr(), blocks * size_of::<Control>(), Access::Read) {
        for index in 0..blocks {
            // SAFETY: inside the list, for which there is memory; a null entry is allowed and left alone.
            unsafe { leave_to_kernel(list.add(index).read()) };
        }
    }
    // SAFETY: the caller keeps lio_listio(3)'s contract.
    unsafe { next::lio_listio(mode, list, count, event) }
}

/// lio_listio(3) as programs with 64-bit file offsets call it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn lio_listio64(mode: c_int, list: *const Control, count: c_int, event: *mut c_void) -> c_int {
    // SAFETY: the caller's.
    unsafe { lio_listio(mode, list, count, event) }
}
