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
