//! Which errors each system call can give, by its man page and by what a filter or an older kernel says.
//!
//! Left out is what the library's own descriptors and memory cannot bring about (EBADF, EFAULT, EINVAL for arguments that are constant,
//! ENOTSOCK), and what would be a lie about the connection, which the kernel never tells: ECONNRESET, EPIPE and ENOTCONN of a stream whose
//! peer lives (`kills` brings them about truly), EAGAIN of a queue that is not empty or not full, EINTR of a receive that does not wait,
//! ESRCH of a process that lives. FIONREAD and TIOCOUTQ of an open stream do not fail; a filter (seccomp(2)) refuses a system call
//! at all sites, which is [`Call::refused`].

use nix::errno::Errno::{
    self, E2BIG, EACCES, EADDRINUSE, EAFNOSUPPORT, EAGAIN, EBUSY, ECHILD, ECONNABORTED, ECONNREFUSED, EFBIG, EINTR, EINVAL, EIO,
    ELOOP, EMFILE, ENFILE, ENOBUFS, ENODEV, ENOENT, ENOMEM, ENOPROTOOPT, ENOSPC, ENOSYS, ENXIO, EOVERFLOW, EPERM, EPROTONOSUPPORT,
    ERANGE, EROFS, ETIMEDOUT, ETOOMANYREFS,
};
use nix::libc;

use super::heap;

/// One system call.
pub(super) struct Call {
    number: i64,
    /// As in its man page.
    pub name: &'static str,
    /// Made by the library on its own account.
    own: &'static [Errno],
    /// Made for the program, by libc's function: what it gives, the program is told.
    programs: &'static [Errno],
    /// What a filter or an older kernel says to it, wherever the library makes it.
    refused: &'static [Errno],
    /// An error passes: it is given for a while, not for ever.
    passes: bool,
}

const fn call(number: i64, name: &'static str, own: &'static [Errno], programs: &'static [Errno]) -> Call {
    Call { number, name, own, programs, refused: &[EPERM, ENOSYS], passes: false }
}

/// One that says nothing of use to a program that is not let: no filter forbids it to what still uses sockets.
const fn needed(number: i64, name: &'static str, own: &'static [Errno], programs: &'static [Errno]) -> Call {
    Call { number, name, own, programs, refused: &[], passes: false }
}

/// One of which an error of the library's own call is over soon.
const fn passing(number: i64, name: &'static str, own: &'static [Errno], programs: &'static [Errno]) -> Call {
    Call { number, name, own, programs, refused: &[EPERM, ENOSYS], passes: true }
}

/// One that always succeeds, by its man page; or fails for bad arguments only, which are constant here.
const fn never(number: i64, name: &'static str) -> Call {
    Call { number, name, own: &[], programs: &[], refused: &[], passes: false }
}

const CALLS: &[Call] = &[
    call(libc::SYS_memfd_create, "memfd_create", &[EMFILE, ENFILE, ENOMEM, EPERM, ENOSYS], &[]),
    call(libc::SYS_ftruncate, "ftruncate", &[EINTR, EIO, EPERM, EFBIG, ENOMEM], &[]),
    call(libc::SYS_fcntl, "fcntl", &[EMFILE, EPERM, EBUSY, ENOMEM], &[EMFILE, EPERM, ENOMEM]),
    needed(libc::SYS_close, "close", &[EINTR, EIO], &[EINTR, EIO]),
    call(libc::SYS_openat, "openat", &[EACCES, EINTR, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC, ENXIO, EROFS], &[]),
    call(libc::SYS_read, "read", &[EINTR, EIO, EAGAIN, ENOMEM], &[EINTR, ENOMEM]),
    call(libc::SYS_readv, "readv", &[], &[EINTR, ENOMEM]),
    Call { refused: &[], ..passing(libc::SYS_write, "write", &[EAGAIN, EINTR, EIO, ENOSPC], &[EINTR, ENOBUFS, ENOMEM]) },
    call(libc::SYS_writev, "writev", &[], &[EINTR, ENOBUFS, ENOMEM]),
    call(libc::SYS_getcwd, "getcwd", &[ENOENT, ERANGE, ENOMEM], &[]),
    call(libc::SYS_fstat, "fstat", &[ENOMEM, EOVERFLOW, EPERM], &[]),
    call(libc::SYS_newfstatat, "fstatat", &[EACCES, ELOOP, ENOENT, ENOMEM, EOVERFLOW], &[]),
    call(
        libc::SYS_socket,
        "socket",
        &[EACCES, EAFNOSUPPORT, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTONOSUPPORT, EPERM],
        &[EMFILE, ENFILE, ENOBUFS],
    ),
    call(libc::SYS_socketpair, "socketpair", &[], &[EMFILE, ENFILE]),
    call(libc::SYS_bind, "bind", &[EACCES, EADDRINUSE, ENOMEM, EPERM], &[]),
    call(
        libc::SYS_connect,
        "connect",
        &[ECONNREFUSED, EAGAIN, EACCES, EPERM, ETIMEDOUT, EINTR, ENOMEM],
        &[ECONNREFUSED, EAGAIN, EACCES, ENOMEM, EINTR],
    ),
    call(libc::SYS_listen, "listen", &[EADDRINUSE, ENOMEM], &[]),
    call(libc::SYS_accept, "accept", &[], &[ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM]),
    call(
        libc::SYS_accept4,
        "accept4",
        &[EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM],
        &[ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM],
    ),
    call(libc::SYS_getsockname, "getsockname", &[ENOBUFS, ENOMEM], &[]),
    call(libc::SYS_getpeername, "getpeername", &[ENOBUFS, ENOMEM], &[]),
    call(libc::SYS_getsockopt, "getsockopt", &[ENOPROTOOPT, EPERM, ENOMEM], &[ENOPROTOOPT, ENOMEM]),
    call(libc::SYS_setsockopt, "setsockopt", &[ENOPROTOOPT, EPERM, ENOMEM], &[ENOPROTOOPT, ENOMEM]),
    call(libc::SYS_shutdown, "shutdown", &[], &[ENOMEM]),
    passing(libc::SYS_sendto, "sendto", &[EINTR, ENOBUFS, ENOMEM], &[EINTR, ENOBUFS, ENOMEM]),
    call(libc::SYS_sendmsg, "sendmsg", &[EINTR, ENOBUFS, ENOMEM, ETOOMANYREFS, EPERM], &[EINTR, ENOBUFS, ENOMEM, ETOOMANYREFS]),
    passing(libc::SYS_recvfrom, "recvfrom", &[ENOMEM], &[EINTR, ENOMEM]),
    call(libc::SYS_recvmsg, "recvmsg", &[ENOMEM], &[EINTR, ENOMEM]),
    call(libc::SYS_sendfile, "sendfile", &[], &[EAGAIN, EIO, ENOMEM]),
    call(libc::SYS_splice, "splice", &[], &[EAGAIN, ENOMEM]),
    call(libc::SYS_ioctl, "ioctl", &[], &[ENOMEM]),
    call(libc::SYS_poll, "poll", &[EINTR, ENOMEM], &[EINTR, ENOMEM]),
    passing(libc::SYS_ppoll, "ppoll", &[EINTR, ENOMEM], &[EINTR, ENOMEM]),
    call(libc::SYS_select, "select", &[], &[EINTR, ENOMEM]),
    call(libc::SYS_pselect6, "pselect", &[], &[EINTR, ENOMEM]),
    call(libc::SYS_epoll_create1, "epoll_create1", &[], &[EMFILE, ENFILE, ENOMEM]),
    call(libc::SYS_epoll_ctl, "epoll_ctl", &[], &[ENOMEM, ENOSPC]),
    call(libc::SYS_epoll_wait, "epoll_wait", &[], &[EINTR]),
    call(libc::SYS_epoll_pwait, "epoll_pwait", &[], &[EINTR]),
    call(libc::SYS_dup, "dup", &[], &[EMFILE]),
    call(libc::SYS_dup2, "dup2", &[], &[EBUSY, EINTR, EMFILE]),
    call(libc::SYS_dup3, "dup3", &[], &[EBUSY, EINTR, EMFILE]),
    call(libc::SYS_execve, "execve", &[], &[E2BIG, EACCES, EAGAIN, EIO, ENOMEM, ENOENT]),
    needed(libc::SYS_mmap, "mmap", &[ENOMEM, EAGAIN, ENFILE, EPERM], &[ENOMEM]),
    needed(heap::NUMBER.cast_signed(), "malloc", &[], &[ENOMEM]),
    needed(libc::SYS_munmap, "munmap", &[ENOMEM], &[ENOMEM]),
    needed(libc::SYS_mprotect, "mprotect", &[ENOMEM, EACCES], &[ENOMEM]),
    needed(libc::SYS_mremap, "mremap", &[ENOMEM, EAGAIN], &[ENOMEM]),
    Call { refused: &[EINVAL, EPERM, ENOSYS], ..call(libc::SYS_madvise, "madvise", &[EAGAIN], &[]) },
    call(libc::SYS_process_vm_readv, "process_vm_readv", &[EPERM, ENOMEM, ENOSYS], &[]),
    call(libc::SYS_prlimit64, "prlimit", &[EPERM, ENOSYS], &[]),
    call(libc::SYS_sysinfo, "sysinfo", &[EPERM, ENOSYS], &[]),
    call(libc::SYS_sched_getaffinity, "sched_getaffinity", &[EPERM, ENOSYS], &[]),
    call(libc::SYS_kill, "kill", &[EPERM], &[]),
    call(libc::SYS_waitid, "waitid", &[ECHILD, EINTR, EPERM], &[]),
    call(libc::SYS_pidfd_open, "pidfd_open", &[EMFILE, ENFILE, ENODEV, ENOMEM, ENOSYS, EPERM], &[]),
    call(libc::SYS_clock_nanosleep, "clock_nanosleep", &[EINTR, EPERM], &[]),
    call(libc::SYS_clock_gettime, "clock_gettime", &[EPERM, ENOSYS], &[]),
    call(libc::SYS_sigaltstack, "sigaltstack", &[EPERM, ENOSYS], &[]),
    never(libc::SYS_getpid, "getpid"),
    never(libc::SYS_getppid, "getppid"),
    never(libc::SYS_sched_yield, "sched_yield"),
    never(libc::SYS_exit_group, "exit_group"),
    never(libc::SYS_rt_sigprocmask, "rt_sigprocmask"),
];

/// The system call of this number, if it is in the table.
pub(super) fn of(number: u64) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.number.cast_unsigned() == number)
}

impl Call {
    /// What it can give.
    pub(super) fn errnos(&self, own: bool) -> &'static [Errno] {
        if own { self.own } else { self.programs }
    }

    /// What it says at all sites where it is not known or not allowed.
    pub(super) fn refused(&self) -> &'static [Errno] {
        self.refused
    }

    /// Whether an error of the library's own call is over soon.
    pub(super) fn passes(&self) -> bool {
        self.passes
    }
}
