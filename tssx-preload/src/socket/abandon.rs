//! Calls that may never come back: the thread is cancelled in them, or a signal handler leaves them by siglongjmp(3).
//!
//! Both run glibc's cleanup handlers of the frames they leave (`_pthread_cleanup_push`, nptl/cleanup_compat.c; for jumps
//! `__pthread_cleanup_upto`, nptl/jmp-unwind.c). So whatever is counted up around a wait, and must be counted down again, is
//! put into such a handler while the wait lasts.

#![allow(unsafe_code, reason = "hands a closure on its own stack to glibc")]

use core::ffi::{c_int, c_void};

use crate::next;

/// `struct _pthread_cleanup_buffer` of pthread.h.
#[repr(C)]
pub(crate) struct CleanupBuffer {
    routine: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
    cancel_type: c_int,
    previous: *mut CleanupBuffer,
}

unsafe extern "C" fn run(argument: *mut c_void) {
    // SAFETY: `guarded` passed a reference that lives in the frame that is being left, which still exists while its handlers
    // run.
    let undo = unsafe { *argument.cast::<&dyn Fn()>() };
    undo();
}

/// Makes `call`; if it never returns, `undo` runs instead of what follows it.
pub(crate) fn guarded<R>(undo: &dyn Fn(), call: impl FnOnce() -> R) -> R {
    let argument = (&raw const undo).cast_mut().cast::<c_void>();
    let mut buffer = CleanupBuffer { routine: Some(run), argument, cancel_type: 0, previous: core::ptr::null_mut() };
    // SAFETY: the buffer lives until it is popped or its frame is left, and the frame is this one.
    unsafe { next::_pthread_cleanup_push(&raw mut buffer, run, argument) };
    let result = call();
    // SAFETY: pops what was pushed above; 0: without running it.
    unsafe { next::_pthread_cleanup_pop(&raw mut buffer, 0) };
    result
}

/// What libc's own read and write do first: a thread that was cancelled ends here, although a ring needs no system call.
#[inline]
pub(crate) fn test_cancel() {
    // SAFETY: no arguments. The frames left are ours without anything held, and the program's.
    unsafe { next::pthread_testcancel() };
}
