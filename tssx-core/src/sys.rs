//! The system calls that the transport makes for itself, straight to the kernel.
//!
//! They do not go through libc on purpose: libc's `read`, `close` and the rest are interposed by the very library this
//! crate is built into, they set `errno`, and they are cancellation points. None of the calls here blocks: whoever has
//! to wait does it in libc's own function, so that signals, time-outs and thread cancellation stay the kernel's.

#![allow(unsafe_code, reason = "this module is the only door to the kernel")]

use core::ffi::{CStr, c_int};
use core::mem::{MaybeUninit, size_of};

mod descriptors;
mod mapping;
mod patience;
mod poll;
mod process;
mod signals;

pub use descriptors::{dup, dup3};
pub use mapping::{map, unmap};
pub use poll::poll_now;
pub use process::{
    abort, become_stranger, current_cpu, exit_group, getpid, getppid, is_stranger, limit, physical_memory, process_lives, rest,
    stack_pointer, usable_cpus, yield_now,
};
pub use signals::Undisturbed;

/// An error number as the kernel returned it: positive, see errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

impl Errno {
    /// EAGAIN: would block, or a time-out of the socket passed.
    pub const AGAIN: Self = Self(libc::EAGAIN);

    /// Whether the kernel refuses for the moment only, and says nothing of the descriptor: a signal came, or memory is short.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self.0, libc::EINTR | libc::ENOBUFS | libc::ENOMEM)
    }
}

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// `syscall(2)` without libc: arguments in registers, negative results turned into [`Errno`].
#[cfg(target_arch = "x86_64")]
fn call(number: libc::c_long, args: [usize; 6]) -> Result<usize> {
    let result: isize;
    // SAFETY: the Linux x86-64 system call convention (syscall(2), "Architecture calling conventions"): rcx and r11 are
    // clobbered, memory may be read and written through the pointers that each caller in this module passes and vouches for.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    decode(result)
}

/// `syscall(2)` without libc: arguments in registers, negative results turned into [`Errno`].
#[cfg(target_arch = "aarch64")]
fn call(number: libc::c_long, args: [usize; 6]) -> Result<usize> {
    let result: isize;
    // SAFETY: the Linux arm64 system call convention (syscall(2)); memory is accessed only through the pointers that each
    // caller in this module passes and vouches for.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number, inlateout("x0") args[0] => result,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5],
            options(nostack)
        );
    }
    decode(result)
}

/// The kernel answers -4095..=-1 for errors (`MAX_ERRNO` in include/linux/err.h).
fn decode(result: isize) -> Result<usize> {
    if (-4095..0).contains(&result) {
        return Err(Errno(c_int::try_from(-result).unwrap_or(libc::EIO)));
    }
    Ok(result.cast_unsigned())
}

/// A small non-negative result that is a descriptor.
fn descriptor(result: Result<usize>) -> Result<c_int> {
    result.map(|value| c_int::try_from(value).unwrap_or(-1))
}

/// A descriptor as a system call argument; a negative one stays negative in the low 32 bits, which is all the kernel reads.
fn fd_arg(fd: c_int) -> usize {
    fd.cast_unsigned() as usize
}

fn flag_arg(flags: c_int) -> usize {
    flags.cast_unsigned() as usize
}

/// memfd_create(2).
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM, or EPERM/ENOSYS under a seccomp filter.
pub fn memfd_create(name: &CStr, flags: u32) -> Result<c_int> {
    descriptor(call(libc::SYS_memfd_create, [name.as_ptr() as usize, flags as usize, 0, 0, 0, 0]))
}

/// ftruncate(2) of a descriptor of ours. Never beyond RLIMIT_FSIZE (setrlimit(2)): the kernel would kill the program by SIGXFSZ.
///
/// # Errors
/// As the man page; EFBIG beyond the limit.
pub fn ftruncate(fd: c_int, length: usize) -> Result<()> {
    if limit(libc::RLIMIT_FSIZE).is_some_and(|limit| limit < length as u64) {
        return Err(Errno(libc::EFBIG));
    }
    call(libc::SYS_ftruncate, [fd_arg(fd), length, 0, 0, 0, 0]).map(drop)
}

/// fcntl(2) with an integer argument.
///
/// # Errors
/// As the man page.
pub fn fcntl(fd: c_int, command: c_int, argument: usize) -> Result<c_int> {
    descriptor(call(libc::SYS_fcntl, [fd_arg(fd), flag_arg(command), argument, 0, 0, 0]))
}

/// close(2).
pub fn close(fd: c_int) {
    let _ = call(libc::SYS_close, [fd_arg(fd), 0, 0, 0, 0, 0]);
}

/// open(2) of a log: to append, made if it is new, never waiting, closed by exec.
///
/// # Errors
/// As the man page; ENXIO for a FIFO that nobody reads.
pub fn open_to_append(path: &CStr) -> Result<c_int> {
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    let args = [flag_arg(libc::AT_FDCWD), path.as_ptr() as usize, flag_arg(flags), 0o644, 0, 0];
    descriptor(call(libc::SYS_openat, args))
}

/// The beginning of a file of the kernel's, as far as there is room.
///
/// # Errors
/// As open(2) and read(2).
pub fn read_file<'a>(path: &CStr, room: &'a mut [u8]) -> Result<&'a [u8]> {
    let flags = flag_arg(libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK);
    let fd = descriptor(call(libc::SYS_openat, [flag_arg(libc::AT_FDCWD), path.as_ptr() as usize, flags, 0, 0, 0]))?;
    let length = call(libc::SYS_read, [fd_arg(fd), room.as_mut_ptr() as usize, room.len(), 0, 0, 0]);
    close(fd);
    length.map(|length| room.get(..length).unwrap_or(&[]))
}

/// getcwd(2): the length of the path that is put into `room`, without its NUL.
///
/// # Errors
/// As the man page; ERANGE where the room is too small.
pub fn current_directory(room: &mut [u8]) -> Result<usize> {
    call(libc::SYS_getcwd, [room.as_mut_ptr() as usize, room.len(), 0, 0, 0, 0]).map(|length| length.saturating_sub(1))
}

/// What of `struct stat` the transport uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStatus {
    /// Device number.
    pub device: u64,
    /// Inode number; for a socket, the number that UNIX_DIAG shows too.
    pub inode: u64,
    /// `st_mode`.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
}

/// fstat(2).
///
/// # Errors
/// EBADF.
pub fn fstat(fd: c_int) -> Result<FileStatus> {
    let mut buffer = MaybeUninit::<libc::stat>::zeroed();
    call(libc::SYS_fstat, [fd_arg(fd), buffer.as_mut_ptr() as usize, 0, 0, 0, 0])?;
    // SAFETY: zeroed is a valid `stat`, and the kernel has filled it in.
    Ok(status_of(&unsafe { buffer.assume_init() }))
}

/// stat(2) of a path that ends in NUL, following symbolic links.
///
/// # Errors
/// As the man page.
pub fn stat(path: &CStr) -> Result<FileStatus> {
    let mut buffer = MaybeUninit::<libc::stat>::zeroed();
    let args = [flag_arg(libc::AT_FDCWD), path.as_ptr() as usize, buffer.as_mut_ptr() as usize, 0, 0, 0];
    call(libc::SYS_newfstatat, args)?;
    // SAFETY: zeroed is a valid `stat`, and the kernel has filled it in.
    Ok(status_of(&unsafe { buffer.assume_init() }))
}

fn status_of(stat: &libc::stat) -> FileStatus {
    FileStatus { device: stat.st_dev, inode: stat.st_ino, mode: stat.st_mode, size: stat.st_size.cast_unsigned() }
}

/// socket(2).
///
/// # Errors
/// As the man page.
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> Result<c_int> {
    descriptor(call(libc::SYS_socket, [flag_arg(domain), flag_arg(kind), flag_arg(protocol), 0, 0, 0]))
}

/// bind(2) to an address of `length` bytes.
///
/// # Errors
/// As the man page; EADDRINUSE for a name that is taken.
pub fn bind(fd: c_int, address: &libc::sockaddr_un, length: usize) -> Result<()> {
    call(libc::SYS_bind, [fd_arg(fd), core::ptr::from_ref(address) as usize, length, 0, 0, 0]).map(drop)
}

/// connect(2) to an address of `length` bytes.
///
/// # Errors
/// As the man page; ECONNREFUSED where nobody listens.
pub fn connect(fd: c_int, address: &libc::sockaddr_un, length: usize) -> Result<()> {
    call(libc::SYS_connect, [fd_arg(fd), core::ptr::from_ref(address) as usize, length, 0, 0, 0]).map(drop)
}

/// listen(2).
///
/// # Errors
/// As the man page.
pub fn listen(fd: c_int, backlog: c_int) -> Result<()> {
    call(libc::SYS_listen, [fd_arg(fd), flag_arg(backlog), 0, 0, 0, 0]).map(drop)
}

/// accept4(2) without the peer's address.
///
/// # Errors
/// EAGAIN on a non-blocking listener with nobody waiting, and the rest of the man page.
pub fn accept(fd: c_int) -> Result<c_int> {
    descriptor(call(libc::SYS_accept4, [fd_arg(fd), 0, 0, flag_arg(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK), 0, 0]))
}

/// getsockname(2): the name and its length in bytes, family included.
///
/// # Errors
/// As the man page.
pub fn getsockname(fd: c_int) -> Result<(libc::sockaddr_un, usize)> {
    name_by(libc::SYS_getsockname, fd)
}

/// getpeername(2), likewise.
///
/// # Errors
/// As the man page.
pub fn getpeername(fd: c_int) -> Result<(libc::sockaddr_un, usize)> {
    name_by(libc::SYS_getpeername, fd)
}

fn name_by(number: libc::c_long, fd: c_int) -> Result<(libc::sockaddr_un, usize)> {
    let mut address = MaybeUninit::<libc::sockaddr_un>::zeroed();
    let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    let args = [fd_arg(fd), address.as_mut_ptr() as usize, core::ptr::from_mut(&mut length) as usize, 0, 0, 0];
    call(number, args)?;
    // SAFETY: zeroed is a valid `sockaddr_un`, and the kernel wrote no more than its size.
    Ok((unsafe { address.assume_init() }, (length as usize).min(size_of::<libc::sockaddr_un>())))
}

/// getsockopt(2) at SOL_SOCKET for an option whose value is a plain `T`.
///
/// # Errors
/// As the man page; EINVAL if the kernel's value has another size.
pub fn getsockopt<T: Plain>(fd: c_int, option: c_int) -> Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    let address = value.as_mut_ptr() as usize;
    let args = [fd_arg(fd), flag_arg(libc::SOL_SOCKET), flag_arg(option), address, core::ptr::from_mut(&mut length) as usize, 0];
    call(libc::SYS_getsockopt, args)?;
    if length as usize != size_of::<T>() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: `Plain` types are valid for every bit pattern, and the value was zeroed before the kernel filled it in.
    Ok(unsafe { value.assume_init() })
}

/// setsockopt(2) at SOL_SOCKET with an `int`.
///
/// # Errors
/// As the man page.
pub fn setsockopt(fd: c_int, option: c_int, value: c_int) -> Result<()> {
    let pointer = core::ptr::from_ref(&value) as usize;
    let args = [fd_arg(fd), flag_arg(libc::SOL_SOCKET), flag_arg(option), pointer, size_of::<c_int>(), 0];
    call(libc::SYS_setsockopt, args).map(drop)
}

/// setsockopt(2) of SO_RCVTIMEO or SO_SNDTIMEO.
///
/// # Errors
/// As the man page.
pub fn set_time_out(fd: c_int, option: c_int, limit: &libc::timeval) -> Result<()> {
    let pointer = core::ptr::from_ref(limit) as usize;
    let args = [fd_arg(fd), flag_arg(libc::SOL_SOCKET), flag_arg(option), pointer, size_of::<libc::timeval>(), 0];
    call(libc::SYS_setsockopt, args).map(drop)
}

/// Types for which any bytes are a value.
///
/// # Safety
/// Implement it only for such types.
pub unsafe trait Plain: Copy {}
// SAFETY: integers.
unsafe impl Plain for c_int {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: three integers.
unsafe impl Plain for libc::ucred {}
// SAFETY: two integers.
unsafe impl Plain for libc::timeval {}

/// sendto(2) without an address, never blocking and never raising SIGPIPE; patient while the kernel is short of memory.
///
/// # Errors
/// EAGAIN when the peer's queue is full, EPIPE, ECONNRESET and the rest of the man page.
pub fn send(fd: c_int, bytes: &[u8]) -> Result<usize> {
    // SAFETY: a live slice.
    unsafe { send_from(fd, bytes.as_ptr(), bytes.len()) }
}

/// sendto(2) as [`send`], from memory that may be shared: the kernel does the copying.
///
/// # Errors
/// As [`send`].
///
/// # Safety
/// `bytes` must be readable for `length` bytes.
pub unsafe fn send_from(fd: c_int, bytes: *const u8, length: usize) -> Result<usize> {
    let flags = flag_arg(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    patience::patiently(|| call(libc::SYS_sendto, [fd_arg(fd), bytes as usize, length, flags, 0, 0]))
}

/// recvfrom(2) without an address, never blocking; `flags` are added to MSG_DONTWAIT. Patient while the kernel is short of memory.
///
/// # Errors
/// EAGAIN when nothing is queued, ECONNRESET and the rest of the man page.
pub fn receive(fd: c_int, bytes: &mut [u8], flags: c_int) -> Result<usize> {
    let flags = flag_arg(libc::MSG_DONTWAIT | flags);
    let args = [fd_arg(fd), bytes.as_mut_ptr() as usize, bytes.len(), flags, 0, 0];
    patience::patiently(|| call(libc::SYS_recvfrom, args))
}

/// sendmsg(2) with MSG_DONTWAIT and MSG_NOSIGNAL.
///
/// # Errors
/// As the man page.
///
/// # Safety
/// Every pointer in `message` must be readable for its length.
pub unsafe fn sendmsg(fd: c_int, message: &libc::msghdr) -> Result<usize> {
    let flags = flag_arg(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    call(libc::SYS_sendmsg, [fd_arg(fd), core::ptr::from_ref(message) as usize, flags, 0, 0, 0])
}

/// recvmsg(2) with MSG_DONTWAIT added to `flags`.
///
/// # Errors
/// As the man page.
///
/// # Safety
/// Every pointer in `message` must be writable for its length.
pub unsafe fn recvmsg(fd: c_int, message: &mut libc::msghdr, flags: c_int) -> Result<usize> {
    let flags = flag_arg(libc::MSG_DONTWAIT | flags);
    call(libc::SYS_recvmsg, [fd_arg(fd), core::ptr::from_mut(message) as usize, flags, 0, 0, 0])
}

/// SIOCINQ (FIONREAD): bytes that wait in the socket's receive queue, see unix(7).
///
/// # Errors
/// As ioctl(2).
pub fn queued_bytes(fd: c_int) -> Result<u64> {
    ask(fd, libc::FIONREAD as usize).map(|count| u64::from(count.max(0).cast_unsigned()))
}

/// SIOCOUTQ: memory that holds what was sent and is unread, bytes, see unix(7).
///
/// # Errors
/// As ioctl(2).
pub fn unsent_bytes(fd: c_int) -> Result<u64> {
    ask(fd, libc::TIOCOUTQ as usize).map(|count| u64::from(count.max(0).cast_unsigned()))
}

/// An ioctl(2) that answers with an `int`.
fn ask(fd: c_int, request: usize) -> Result<c_int> {
    let mut answer: c_int = 0;
    call(libc::SYS_ioctl, [fd_arg(fd), request, core::ptr::from_mut(&mut answer) as usize, 0, 0, 0])?;
    Ok(answer)
}

/// SIOCATMARK: whether the next byte in the receive queue was sent as out-of-band, see sockatmark(3).
#[must_use]
pub fn at_mark(fd: c_int) -> bool {
    const SIOCATMARK: usize = 0x8905;
    ask(fd, SIOCATMARK).is_ok_and(|mark| mark != 0)
}

/// write(2) of `length` bytes from memory that may be shared: the kernel does the copying.
///
/// # Errors
/// As the man page.
///
/// # Safety
/// `bytes` must be readable for `length` bytes.
pub unsafe fn write(fd: c_int, bytes: *const u8, length: usize) -> Result<usize> {
    call(libc::SYS_write, [fd_arg(fd), bytes as usize, length, 0, 0, 0])
}

/// Whether the calling thread runs on its alternative signal stack (sigaltstack(2), SS_ONSTACK).
#[must_use]
pub fn on_signal_stack() -> bool {
    let mut stack = libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    let asked = call(libc::SYS_sigaltstack, [0, core::ptr::from_mut(&mut stack) as usize, 0, 0, 0, 0]);
    asked.is_ok() && stack.ss_flags & libc::SS_ONSTACK != 0
}

/// Asks the kernel for the pages of a range of user memory, as an access would (madvise(2), MADV_POPULATE_READ and _WRITE,
/// Linux 5.14). The pages stay as they are.
///
/// # Errors
/// EINVAL on older kernels; any other error: not all of it can be accessed.
pub fn populate(address: usize, length: usize, write: bool) -> Result<()> {
    /// linux/mman.h
    const POPULATE_READ: usize = 22;
    const POPULATE_WRITE: usize = 23;
    let advice = if write { POPULATE_WRITE } else { POPULATE_READ };
    call(libc::SYS_madvise, [address, length, advice, 0, 0, 0]).map(drop)
}

/// Has the kernel empty private memory of ours in every child that a fork makes (madvise(2), MADV_WIPEONFORK, Linux 4.14).
///
/// # Errors
/// EINVAL on older kernels.
pub fn wipe_on_fork(address: usize, length: usize) -> Result<()> {
    call(libc::SYS_madvise, [address, length, flag_arg(libc::MADV_WIPEONFORK), 0, 0, 0]).map(drop)
}

/// Whether one byte of our own memory can be read: process_vm_readv(2) on ourselves, which answers EFAULT instead of a signal.
#[must_use]
pub fn is_readable(address: usize) -> bool {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: core::ptr::with_exposed_provenance_mut(address), iov_len: 1 };
    let (local, remote) = (core::ptr::from_ref(&local) as usize, core::ptr::from_ref(&remote) as usize);
    // A filter may forbid the call: then nobody can say, and the caller is believed.
    call(libc::SYS_process_vm_readv, [getpid() as usize, local, 1, remote, 1, 0]) != Err(Errno(libc::EFAULT))
}

/// munmap(2), mprotect(2) and mremap(2) as the program calls them; `number` says which.
///
/// # Errors
/// As the man page.
///
/// # Safety
/// As the man page.
pub unsafe fn change_mapping(number: libc::c_long, arguments: [usize; 5]) -> Result<usize> {
    let [a, b, c, d, e] = arguments;
    call(number, [a, b, c, d, e, 0])
}

/// clock_gettime(2) with CLOCK_MONOTONIC, in nanoseconds. A filter (seccomp(2)) that forbids the system call must not stop our clock: then it
/// is libc's, whose vdso(7) asks no kernel. Not libc's first, which another preloaded library may have replaced by a time of its own.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [flag_arg(libc::CLOCK_MONOTONIC), core::ptr::from_mut(&mut time) as usize, 0, 0, 0, 0];
    if call(libc::SYS_clock_gettime, args).is_err() {
        // SAFETY: the clock exists, so that libc writes the time, and nothing else, errno included.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    }
    time.tv_sec.cast_unsigned().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.cast_unsigned())
}

/// Writes a diagnostic to standard error; used only where the user asked for output.
pub fn write_stderr(text: &[u8]) {
    // SAFETY: `text` is a valid slice.
    let _ = unsafe { write(2, text.as_ptr(), text.len()) };
}
