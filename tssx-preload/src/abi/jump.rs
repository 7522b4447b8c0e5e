//! longjmp and its relatives: a jump out of a signal handler may leave a locked section of ours.

#![allow(unsafe_code, reason = "C entry points, and reads the stack address out of a jump buffer")]

use core::ffi::{c_int, c_void};

use crate::process::held;
use crate::{init, next};

/// The stack address that the jump restores: the seventh word of glibc's x86-64 `__jmp_buf` (JB_RSP), mangled with the pointer guard at
/// fs:0x30 (sysdeps/x86_64/jmpbuf-offsets.h, sysdeps/unix/sysv/linux/x86_64/sysdep.h, PTR_DEMANGLE).
///
/// # Safety
/// `environment` must be a buffer that setjmp(3) filled in.
#[cfg(target_arch = "x86_64")]
unsafe fn target(environment: *const c_void) -> usize {
    const STACK_POINTER: usize = 6;
    // SAFETY: the caller's promise; fs:0x30 is the thread's pointer guard in glibc's `tcbhead_t`.
    unsafe {
        let mangled = environment.cast::<usize>().add(STACK_POINTER).read_unaligned();
        let guard: usize;
        core::arch::asm!("mov {}, fs:0x30", out(reg) guard, options(nostack, readonly, preserves_flags));
        mangled.rotate_right(17) ^ guard
    }
}

unsafe fn before(environment: *const c_void) {
    if init::active().is_some() && !environment.is_null() {
        // SAFETY: the caller's.
        held::leave_frames_below(unsafe { target(environment) });
    }
}

macro_rules! jump {
    ($($(#[$meta:meta])* $name:ident)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name(environment: *mut c_void, value: c_int) -> ! {
                // SAFETY: the caller keeps longjmp(3)'s contract.
                unsafe {
                    before(environment);
                    next::$name(environment, value);
                }
                tssx_core::sys::abort()
            }
        )*
    };
}

#[cfg(target_arch = "x86_64")]
jump! {
    /// longjmp(3).
    longjmp
    /// longjmp(3) as the BSDs name it.
    _longjmp
    /// siglongjmp(3).
    siglongjmp
    /// longjmp(3), as glibc's headers call it with fortification.
    __longjmp_chk
}
