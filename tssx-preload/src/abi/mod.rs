//! The exported entry points: C names, C types, and nothing else.
//!
//! Each checks that it has libc's signature ([`same_signature`]), asks the table, and calls either the next function in line or
//! the logic elsewhere. One file per family, as in the man pages' SEE ALSO.

/// Exports a function and checks its type against the declaration in the `libc` crate, at compile time.
macro_rules! same_signature {
    ($($ours:ident: $kind:ty;)*) => {
        const _: () = { $( let _: $kind = $ours; let _: $kind = libc::$ours; )* };
    };
}

/// Defines entry points of libc's names that end with a jump to libc's function where the descriptor has no entry, and with one to `ours`
/// otherwise: the first costs a look at the table, and no frame ([`crate::next::Next`]). They stand side by side: behind a long system call
/// little of a library is in the caches and the TLB.
macro_rules! look_first {
    ($($(#[$meta:meta])* $name:ident or $ours:ident($fd:ident: c_int $(, $arg:ident: $kind:ty)*) -> $ret:ty;)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[unsafe(link_section = ".text.hot.tssx_entry")]
        pub(crate) unsafe extern "C" fn $name($fd: c_int $(, $arg: $kind)*) -> $ret {
            // SAFETY: the caller keeps the contract of libc's function, which is that of both.
            unsafe { if fd_table::is_ours($fd) { $ours($fd $(, $arg)*) } else { next::$name($fd $(, $arg)*) } }
        }
    )*};
}

mod aio;
mod close;
mod connection;
mod epoll;
mod exec;
mod fcntl;
mod io;
mod jump;
mod mapping;
mod msg;
mod process;
mod readiness;
pub(crate) mod spawn;
pub(crate) mod stdio;
mod transfer;
