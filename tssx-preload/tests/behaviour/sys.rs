//! The C library's calls as the cases make them: through the dynamic symbols that a preload interposes, with the
//! result or the errno's name, so that a transcript reads `send: EPIPE` on every machine.
#![allow(unsafe_code, reason = "calls the C functions under test directly; every pointer comes from a live slice or local")]

use std::mem::{size_of, zeroed};
use std::time::Duration;

use libc::{c_int, c_void};

/// A call's result: what it returned, or the name of its errno.
pub(crate) type Answer = Result<usize, &'static str>;

/// The errno names that the cases meet.
const NAMES: &[(c_int, &str)] = &[
    (libc::EAGAIN, "EAGAIN"),
    (libc::EPIPE, "EPIPE"),
    (libc::ECONNRESET, "ECONNRESET"),
    (libc::EINTR, "EINTR"),
    (libc::EBADF, "EBADF"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENOTCONN, "ENOTCONN"),
    (libc::ESPIPE, "ESPIPE"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::ENOTSOCK, "ENOTSOCK"),
    (libc::EFAULT, "EFAULT"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::ENOENT, "ENOENT"),
    (libc::EEXIST, "EEXIST"),
    (libc::EISCONN, "EISCONN"),
    (libc::EMSGSIZE, "EMSGSIZE"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ENOPROTOOPT, "ENOPROTOOPT"),
    (libc::EADDRINUSE, "EADDRINUSE"),
    (libc::EPROTOTYPE, "EPROTOTYPE"),
    (libc::EXDEV, "EXDEV"),
    (libc::EDOM, "EDOM"),
    (libc::EPERM, "EPERM"),
    (libc::EACCES, "EACCES"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::EINPROGRESS, "EINPROGRESS"),
    (libc::EDESTADDRREQ, "EDESTADDRREQ"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENXIO, "ENXIO"),
    (libc::ETOOMANYREFS, "ETOOMANYREFS"),
];

/// What a call returned, or the name of the errno that it left.
pub(crate) fn answer(returned: isize) -> Answer {
    usize::try_from(returned).map_err(|_| name(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)))
}

/// The errno's name.
pub(crate) fn name(errno: c_int) -> &'static str {
    NAMES.iter().find(|(number, _)| *number == errno).map_or("another errno", |(_, name)| name)
}

/// [`answer`] for calls that return an int.
pub(crate) fn narrow(returned: c_int) -> Answer {
    answer(returned as isize)
}

pub(crate) fn read(fd: i32, into: &mut [u8]) -> Answer {
    // SAFETY: the pointer and length are those of a live mutable slice.
    answer(unsafe { libc::read(fd, into.as_mut_ptr().cast(), into.len()) })
}

pub(crate) fn write(fd: i32, from: &[u8]) -> Answer {
    // SAFETY: the pointer and length are those of a live slice.
    answer(unsafe { libc::write(fd, from.as_ptr().cast(), from.len()) })
}

pub(crate) fn recv(fd: i32, into: &mut [u8], flags: c_int) -> Answer {
    // SAFETY: the pointer and length are those of a live mutable slice.
    answer(unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), flags) })
}

pub(crate) fn send(fd: i32, from: &[u8], flags: c_int) -> Answer {
    // SAFETY: the pointer and length are those of a live slice.
    answer(unsafe { libc::send(fd, from.as_ptr().cast(), from.len(), flags) })
}

pub(crate) fn recvfrom(fd: i32, into: &mut [u8], flags: c_int) -> Answer {
    // SAFETY: a live mutable slice; a null address is allowed, see recv(2).
    answer(unsafe { libc::recvfrom(fd, into.as_mut_ptr().cast(), into.len(), flags, std::ptr::null_mut(), std::ptr::null_mut()) })
}

pub(crate) fn sendto(fd: i32, from: &[u8], flags: c_int) -> Answer {
    // SAFETY: a live slice; a null address of length 0 is allowed on a connected socket, see send(2).
    answer(unsafe { libc::sendto(fd, from.as_ptr().cast(), from.len(), flags, std::ptr::null(), 0) })
}

/// The `iovec` of a slice.
pub(crate) fn vector(part: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }
}

pub(crate) fn readv(fd: i32, parts: &mut [&mut [u8]]) -> Answer {
    let vectors: Vec<_> = parts.iter().map(|part| vector(part)).collect();
    // SAFETY: every vector is a live mutable slice of `parts`, which outlives the call.
    answer(unsafe { libc::readv(fd, vectors.as_ptr(), vectors.len() as c_int) })
}

pub(crate) fn writev(fd: i32, parts: &[&[u8]]) -> Answer {
    let vectors: Vec<_> = parts.iter().map(|part| vector(part)).collect();
    // SAFETY: every vector is a live slice of `parts`, which outlives the call.
    answer(unsafe { libc::writev(fd, vectors.as_ptr(), vectors.len() as c_int) })
}

pub(crate) fn sendmsg(fd: i32, parts: &[&[u8]], flags: c_int) -> Answer {
    let mut vectors: Vec<_> = parts.iter().map(|part| vector(part)).collect();
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    // SAFETY: the message points to live vectors of live slices.
    answer(unsafe { libc::sendmsg(fd, &raw const message, flags) })
}

/// Receives into `parts`; also returns the message's flags.
pub(crate) fn recvmsg(fd: i32, parts: &mut [&mut [u8]], flags: c_int) -> (Answer, c_int) {
    let mut vectors: Vec<_> = parts.iter().map(|part| vector(part)).collect();
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    // SAFETY: the message points to live vectors of live mutable slices.
    let received = answer(unsafe { libc::recvmsg(fd, &raw mut message, flags) });
    (received, message.msg_flags & !libc::MSG_CMSG_CLOEXEC)
}

/// Sends one byte with a descriptor beside it (SCM_RIGHTS).
pub(crate) fn send_descriptor(fd: i32, passed: i32) -> Answer {
    let byte = [b'+'];
    let mut data = vector(&byte);
    let mut control = [0u64; 4];
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute; the control buffer of 32 bytes holds one header and one int (24).
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(passed);
        answer(libc::sendmsg(fd, &raw const message, 0))
    }
}

/// Receives up to `into.len()` bytes and at most one descriptor.
pub(crate) fn recv_descriptor(fd: i32, into: &mut [u8]) -> (Answer, Option<i32>) {
    let mut data = vector(into);
    let mut control = [0u64; 4];
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all pointers are to live locals; a control header is only read where CMSG_FIRSTHDR says there is one.
    unsafe {
        let received = answer(libc::recvmsg(fd, &raw mut message, 0));
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let passed = (received.is_ok() && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS)
            .then(|| libc::CMSG_DATA(header).cast::<c_int>().read_unaligned());
        (received, passed)
    }
}

/// The events that `poll` reports for one descriptor, in its own words; 0 after the timeout.
pub(crate) fn poll(fd: i32, events: i16, timeout: Duration) -> Result<i16, &'static str> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one live entry.
    narrow(unsafe { libc::poll(&raw mut entry, 1, milliseconds(timeout)) }).map(|_| entry.revents)
}

/// Whether `select` says readable and writable.
pub(crate) fn select(fd: i32, timeout: Duration) -> Result<(bool, bool), &'static str> {
    // SAFETY: fd_set is plain data for which zero is the empty set; fd is below FD_SETSIZE in these small programs.
    unsafe {
        let (mut readable, mut writable): (libc::fd_set, libc::fd_set) = (zeroed(), zeroed());
        libc::FD_SET(fd, &raw mut readable);
        libc::FD_SET(fd, &raw mut writable);
        let mut limit = libc::timeval { tv_sec: 0, tv_usec: i64::try_from(timeout.as_micros()).unwrap_or(999_999) };
        narrow(libc::select(fd + 1, &raw mut readable, &raw mut writable, std::ptr::null_mut(), &raw mut limit))?;
        Ok((libc::FD_ISSET(fd, &raw const readable), libc::FD_ISSET(fd, &raw const writable)))
    }
}

pub(crate) fn epoll_create() -> i32 {
    // SAFETY: takes no pointer.
    unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }
}

pub(crate) fn epoll_ctl(epoll: i32, operation: c_int, fd: i32, events: c_int) -> Answer {
    let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: u64::from(fd.cast_unsigned()) };
    // SAFETY: one live event.
    narrow(unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut event) })
}

/// The (descriptor, events) pairs that are ready.
pub(crate) fn epoll_wait(epoll: i32, most: usize, timeout: Duration) -> Vec<(i32, u32)> {
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; most];
    // SAFETY: the pointer and count are those of a live vector.
    let count = narrow(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), most as c_int, milliseconds(timeout)) });
    events.truncate(count.unwrap_or(0));
    events.iter().map(|event| (i32::try_from(event.u64).unwrap_or(-1), event.events)).collect()
}

/// A timeout as `poll` and `epoll_wait` take it.
pub(crate) fn milliseconds(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}

/// A socket of the family under test that is not connected.
pub(crate) fn socket(kind: c_int) -> i32 {
    // SAFETY: takes no pointer.
    unsafe { libc::socket(libc::AF_UNIX, kind, 0) }
}

/// The address of `path`, with its length; a path that starts with NUL is abstract.
pub(crate) fn address_of(path: &str) -> (libc::sockaddr_un, libc::socklen_t) {
    // SAFETY: sockaddr_un is plain data for which zero is valid.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = i8::from_ne_bytes([from]);
    }
    let end = usize::from(!path.starts_with('\0'));
    (address, (2 + path.len() + end) as libc::socklen_t)
}

pub(crate) fn connect(fd: i32, path: &str) -> Answer {
    let (address, length) = address_of(path);
    // SAFETY: a live address and its length.
    narrow(unsafe { libc::connect(fd, (&raw const address).cast(), length) })
}

pub(crate) fn send_to(fd: i32, from: &[u8], path: &str) -> Answer {
    let (address, length) = address_of(path);
    // SAFETY: a live slice, a live address and their lengths.
    answer(unsafe { libc::sendto(fd, from.as_ptr().cast(), from.len(), libc::MSG_NOSIGNAL, (&raw const address).cast(), length) })
}

pub(crate) fn bind(fd: i32, path: &str) -> Answer {
    let (address, length) = address_of(path);
    // SAFETY: a live address and its length.
    narrow(unsafe { libc::bind(fd, (&raw const address).cast(), length) })
}

pub(crate) fn listen(fd: i32) -> Answer {
    // SAFETY: takes no pointer.
    narrow(unsafe { libc::listen(fd, 8) })
}

pub(crate) fn shutdown(fd: i32, how: c_int) -> Answer {
    // SAFETY: takes no pointer.
    narrow(unsafe { libc::shutdown(fd, how) })
}

pub(crate) fn close(fd: i32) -> Answer {
    // SAFETY: the cases own the descriptors that they close.
    narrow(unsafe { libc::close(fd) })
}

pub(crate) fn dup(fd: i32) -> i32 {
    // SAFETY: takes no pointer.
    unsafe { libc::dup(fd) }
}

pub(crate) fn dup2(fd: i32, onto: i32) -> Answer {
    // SAFETY: takes no pointer; the cases own `onto`.
    narrow(unsafe { libc::dup2(fd, onto) })
}

pub(crate) fn fcntl(fd: i32, command: c_int, argument: c_int) -> Answer {
    // SAFETY: the cases only use commands whose argument is an integer.
    narrow(unsafe { libc::fcntl(fd, command, argument) })
}

/// Sets or clears O_NONBLOCK by `fcntl`.
pub(crate) fn set_nonblocking(fd: i32, on: bool) {
    let flags = fcntl(fd, libc::F_GETFL, 0).expect("F_GETFL") as c_int;
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    fcntl(fd, libc::F_SETFL, flags).expect("F_SETFL");
}

/// Bytes that can be read, by FIONREAD.
pub(crate) fn readable_bytes(fd: i32) -> Answer {
    let mut bytes: c_int = 0;
    // SAFETY: FIONREAD writes one int.
    narrow(unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut bytes) }).map(|_| bytes as usize)
}

/// An integer socket option.
pub(crate) fn option(fd: i32, level: c_int, option: c_int) -> Result<c_int, &'static str> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: a live int and its length.
    narrow(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut length) }).map(|_| value)
}

/// Sets an option of any plain type.
pub(crate) fn set_option<T>(fd: i32, option: c_int, value: &T) -> Answer {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: a live value and its size.
    narrow(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const *value).cast::<c_void>(), length) })
}

/// The peer's process, user and group by SO_PEERCRED.
pub(crate) fn peer(fd: i32) -> libc::ucred {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: a live ucred and its length.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut credentials).cast(), &raw mut length) };
    credentials
}

pub(crate) fn sendfile(to: i32, from: i32, count: usize) -> Answer {
    // SAFETY: a null offset is allowed, see sendfile(2).
    answer(unsafe { libc::sendfile(to, from, std::ptr::null_mut(), count) })
}

pub(crate) fn lseek(fd: i32) -> Answer {
    // SAFETY: takes no pointer.
    answer(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) } as isize)
}

/// Runs `child` in a forked process and returns its wait status. The child leaves by `_exit`.
pub(crate) fn in_child(child: impl FnOnce()) -> ForkedChild {
    // SAFETY: the role processes have one thread when they fork, so the child may do all that its parent could.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    assert!(pid > 0, "fork failed");
    ForkedChild { pid }
}

/// A child that must be waited for.
pub(crate) struct ForkedChild {
    pid: i32,
}

impl ForkedChild {
    /// The child of this id.
    pub(crate) fn of(pid: i32) -> Self {
        Self { pid }
    }

    /// Kills the child by SIGKILL.
    pub(crate) fn kill(&self) {
        // SAFETY: our own child, not yet waited for, so the id is still its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// How it ended: `exit N` or `signal N`.
    pub(crate) fn wait(self) -> String {
        let mut status = 0;
        // SAFETY: a live int; EINTR is not expected since no handler interrupts this wait.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        if libc::WIFSIGNALED(status) {
            format!("signal {}", libc::WTERMSIG(status))
        } else {
            format!("exit {}", libc::WEXITSTATUS(status))
        }
    }
}

/// Restores SIGPIPE's default, which Rust's start-up code set to "ignore".
pub(crate) fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

extern "C" fn on_alarm(_: c_int) {}

/// Delivers SIGALRM once after `delay`; with `restart` the handler is installed with SA_RESTART.
pub(crate) fn alarm(delay: Duration, restart: bool) {
    // SAFETY: sigaction and itimerval are plain data for which zero is valid; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_alarm as *const () as usize;
        action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let mut timer: libc::itimerval = zeroed();
        timer.it_value.tv_usec = i64::try_from(delay.as_micros()).unwrap_or(999_999);
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
}

/// `write` from the null page: EFAULT.
pub(crate) fn write_nowhere(fd: i32, length: usize) -> Answer {
    // SAFETY: the kernel answers EFAULT for an address that is not mapped; that is what is tested.
    answer(unsafe { libc::write(fd, std::ptr::without_provenance(8), length) })
}

/// `read` into the null page: EFAULT.
pub(crate) fn read_nowhere(fd: i32, length: usize) -> Answer {
    // SAFETY: the kernel answers EFAULT for an address that is not mapped; that is what is tested.
    answer(unsafe { libc::read(fd, std::ptr::without_provenance_mut(8), length) })
}

/// Whether `select` says readable before the timeout.
pub(crate) fn select_read(fd: i32, timeout: Duration) -> Result<bool, &'static str> {
    // SAFETY: fd_set is plain data for which zero is the empty set; fd is below FD_SETSIZE in these small programs.
    unsafe {
        let mut readable: libc::fd_set = zeroed();
        libc::FD_SET(fd, &raw mut readable);
        let mut limit = libc::timeval { tv_sec: 0, tv_usec: i64::try_from(timeout.as_micros()).unwrap_or(999_999) };
        narrow(libc::select(fd + 1, &raw mut readable, std::ptr::null_mut(), std::ptr::null_mut(), &raw mut limit))?;
        Ok(libc::FD_ISSET(fd, &raw const readable))
    }
}

/// The descriptors of `all` that `poll` says are readable.
pub(crate) fn poll_read(all: &[i32], timeout: Duration) -> Vec<i32> {
    let mut entries: Vec<_> = all.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the pointer and count are those of a live vector.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, milliseconds(timeout)) };
    entries.iter().filter(|entry| entry.revents != 0).map(|entry| entry.fd).collect()
}

/// Sets TCP_NODELAY, as servers do without looking at the kind of socket.
pub(crate) fn set_tcp_nodelay(fd: i32) -> Answer {
    let on: c_int = 1;
    // SAFETY: a live int and its size.
    narrow(unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), 4) })
}

/// Whether `fstat` calls it a socket.
pub(crate) fn is_socket(fd: i32) -> bool {
    // SAFETY: stat is plain data for which zero is valid; fstat fills it.
    unsafe {
        let mut status: libc::stat = zeroed();
        libc::fstat(fd, &raw mut status) == 0 && status.st_mode & libc::S_IFMT == libc::S_IFSOCK
    }
}

/// Accepts a connection with flags.
pub(crate) fn accept4(listener: i32, flags: c_int) -> i32 {
    // SAFETY: null addresses are allowed, see accept(2).
    unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) }
}

/// A time limit as seconds and microseconds.
pub(crate) fn time_option(fd: i32, option: c_int) -> Result<(i64, i64), &'static str> {
    let mut value = libc::timeval { tv_sec: -1, tv_usec: -1 };
    let mut length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: a live timeval and its length.
    narrow(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut length) })
        .map(|_| (value.tv_sec, value.tv_usec))
}

/// The socket's own or its peer's name into `room` bytes: the length it says, and the path as far as it was written.
pub(crate) fn name_into(fd: i32, of_peer: bool, room: usize) -> (Answer, String) {
    // SAFETY: a live address, of whose size `room` is at most.
    unsafe {
        let mut address: libc::sockaddr_un = zeroed();
        let mut length = room.min(size_of::<libc::sockaddr_un>()) as libc::socklen_t;
        let (at, length_at) = ((&raw mut address).cast(), &raw mut length);
        let returned = if of_peer { libc::getpeername(fd, at, length_at) } else { libc::getsockname(fd, at, length_at) };
        let path = address.sun_path.iter().take_while(|letter| **letter != 0).map(|letter| char::from(letter.cast_unsigned()));
        (narrow(returned).map(|_| length as usize), path.collect())
    }
}

/// The length of the socket's own or its peer's address.
pub(crate) fn name_length(fd: i32, of_peer: bool) -> Answer {
    // SAFETY: a live address and its length.
    unsafe {
        let mut address: libc::sockaddr_un = zeroed();
        let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        let (address, length_at) = ((&raw mut address).cast(), &raw mut length);
        let returned = if of_peer { libc::getpeername(fd, address, length_at) } else { libc::getsockname(fd, address, length_at) };
        narrow(returned).map(|_| length as usize)
    }
}
