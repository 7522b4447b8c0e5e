//! The preload library: one cdylib for both ends of a connection.
//!
//! A `read(2)` on an accelerated socket walks through it like this (ARCHITECTURE.md follows it line by line):
//!
//! 1. `abi/io.rs::read` is what the program's `read` binds to. It asks [`fd_table`] whether the descriptor is a selected stream.
//! 2. If it is not, it calls the next `read` in line ([`next`]), and that is all: one load, one branch.
//! 3. If it is, the caller's memory is wrapped once ([`user_buf`]) and `socket/receive.rs` does every POSIX rule.
//! 4. It takes the direction's lock, asks tssx-core's ring consumer, copies, publishes, and wakes a waiting producer.
//! 5. Empty and blocking: `socket/wait.rs` spins a little, announces that it sleeps, and blocks in libc's own `recv`.
//! 6. `errno.rs` turns the result into C's return value.
//!
//! `write` mirrors it in `socket/send.rs`. The library is `no_std`: Rust's std would bring thread-locals (ld-linux) and an
//! unwinder (libgcc_s) into every program of the environment, and its I/O would call our own entry points.
#![no_std]

mod abi;
mod endpoint;
mod errno;
mod fd_table;
mod init;
mod memory;
mod next;
mod policy;
mod process;
mod readiness;
mod socket;
mod user_buf;
mod user_memory;

/// There is nothing to unwind to in somebody else's process; every indexing in this library goes through `get`.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    tssx_core::sys::abort()
}

#[allow(unsafe_code, reason = "defines a symbol in assembly")]
mod personality {
    // The prebuilt `core` names the unwinder's personality routine in unoptimised builds. Nothing ever unwinds through it; the
    // definition is hidden, so that the library exports nothing but libc's names.
    core::arch::global_asm!(".globl rust_eh_personality", ".hidden rust_eh_personality", "rust_eh_personality:", "hlt");
}

#[allow(unsafe_code, reason = "names a section of the library")]
mod release {
    use tssx_core::release::Note;

    // What `tssx-trace doctor` reads without loading the library.
    #[used]
    #[unsafe(link_section = ".note.tssx")]
    static NOTE: Note = Note::own();
}
