//! The functions that come after ours: libc's, or another preload library's.
//!
//! Each is looked up by `dlsym(RTLD_NEXT)` at its first use and kept, so the library works before its constructor
//! has run and needs no order among constructors. Only this module names libc's functions.

#![allow(unsafe_code, reason = "turns addresses from dlsym into functions of the declared type")]
#![allow(non_snake_case, reason = "libc's names")]
#![allow(clippy::type_complexity, clippy::too_many_arguments, reason = "a signature is as long as libc made it")]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU8};

use libc::{
    epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, off_t, pid_t, pollfd, sigset_t, size_t, sockaddr, socklen_t, ssize_t,
    timespec, timeval,
};

/// The next definition of one symbol, of function type `F`.
///
/// Until it is looked up, the address is that of a function that looks it up: a call needs no test, and an entry point of ours that has nothing
/// to do ends with a jump. It must not be a call: behind a system call that goes deep into the kernel nothing is left of the CPU's
/// return stack, and every frame between libc and the program costs a misprediction (7 to 9 ns, measured with dup). Nor is much left
/// of its caches, so the addresses stand side by side, as the entry points do (`look_first`).
pub(crate) struct Next<F> {
    address: AtomicPtr<c_void>,
    kind: PhantomData<F>,
}

// SAFETY: holds an atomic address; `F` is a function pointer type and never stored.
unsafe impl<F> Sync for Next<F> {}

impl<F: Copy> Next<F> {
    /// `first` is the address of a function that has the signature of the symbol and calls what [`Self::resolve`] finds.
    const fn new(first: *mut c_void) -> Self {
        Self { address: AtomicPtr::new(first), kind: PhantomData }
    }

    /// The function, or the one that looks it up.
    #[inline]
    fn get(&self) -> F {
        let address = self.address.load(Acquire);
        // SAFETY: every `Next` below is declared with the C signature of its symbol, and function pointers are pointer-sized.
        unsafe { core::mem::transmute_copy::<*mut c_void, F>(&address) }
    }

    /// Looks the function up; `None` if no later object defines the symbol (an older libc).
    #[cold]
    fn resolve(&self, name: &CStr) -> Option<F> {
        // SAFETY: a valid C string; RTLD_NEXT searches after the object that contains the caller, which is this library.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        if address.is_null() {
            return None;
        }
        self.address.store(address, Release);
        Some(self.get())
    }
}

/// Whether libc has never started a second thread: its own word for it (sys/single_threaded.h, glibc 2.32), which stays true only as long as that
/// holds for certain.
#[inline]
pub(crate) fn is_single_threaded() -> bool {
    static WORD: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
    /// What stands for it in an older libc.
    static NO: AtomicU8 = AtomicU8::new(0);
    let mut word = WORD.load(Acquire);
    if word.is_null() {
        // SAFETY: a valid C string.
        word = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) }.cast();
        if word.is_null() {
            word = NO.as_ptr();
        }
        WORD.store(word, Release);
    }
    // SAFETY: libc's `char`, or our own byte; only ever written by libc, from the one thread that there is.
    unsafe { word.read_volatile() != 0 }
}

/// Whether the next function of the dup family is libc's, which does nothing but the system call, and not another preload library's.
#[inline]
pub(crate) fn is_dup_libcs() -> bool {
    /// 0: not asked yet; 1: no; 2: yes.
    static ANSWER: AtomicU8 = AtomicU8::new(0);
    match ANSWER.load(Relaxed) {
        0 => ask_whose_dup(&ANSWER),
        answer => answer == 2,
    }
}

#[cold]
fn ask_whose_dup(answer: &AtomicU8) -> bool {
    // SAFETY: both are addresses of functions; dladdr(3) fills the structure in, or leaves it as it is.
    let object = |function: *const c_void| unsafe {
        let mut found: libc::Dl_info = core::mem::zeroed();
        (libc::dladdr(function, &raw mut found) != 0).then_some(found.dli_fbase)
    };
    let libcs = object(libc::__errno_location as *const c_void);
    let is_libcs = libcs.is_some()
        && [c"dup", c"fcntl", c"dup3"].iter().all(|name| {
            // SAFETY: a valid C string.
            object(unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }) == libcs
        });
    answer.store(1 + u8::from(is_libcs), Relaxed);
    is_libcs
}

/// Declares the statics and, for each, a function of the same shape that calls it, answering ENOSYS where it is missing.
macro_rules! next {
    ($($(#[$meta:meta])* $name:ident = $static:ident($($arg:ident: $kind:ty),*) -> $ret:ty, $missing:expr;)*) => {
        $(
            #[unsafe(link_section = ".data.tssx_next")]
            static $static: Next<unsafe extern "C" fn($($kind),*) -> $ret> = {
                unsafe extern "C" fn first($($arg: $kind),*) -> $ret {
                    const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    };
                    match $static.resolve(NAME) {
                        // SAFETY: the caller keeps the libc function's contract.
                        Some(function) => unsafe { function($($arg),*) },
                        None => {
                            crate::errno::set(crate::errno::Errno(libc::ENOSYS));
                            $missing
                        }
                    }
                }
                Next::new(first as *const () as *mut c_void)
            };
            $(#[$meta])*
            /// The next definition of the libc function of this name.
            ///
            /// # Safety
            /// As the libc function.
            #[inline]
            pub(crate) unsafe fn $name($($arg: $kind),*) -> $ret {
                // SAFETY: the caller keeps the libc function's contract.
                unsafe { $static.get()($($arg),*) }
            }
        )*
    };
}

next! {
    read = READ(fd: c_int, buffer: *mut c_void, count: size_t) -> ssize_t, -1;
    write = WRITE(fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t, -1;
    readv = READV(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, -1;
    writev = WRITEV(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, -1;
    preadv2 = PREADV2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, -1;
    pwritev2 = PWRITEV2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, -1;
    recv = RECV(fd: c_int, buffer: *mut c_void, count: size_t, flags: c_int) -> ssize_t, -1;
    send = SEND(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int) -> ssize_t, -1;
    recvfrom = RECVFROM(fd: c_int, buffer: *mut c_void, count: size_t, flags: c_int, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t, -1;
    sendto = SENDTO(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int, address: *const sockaddr, length: socklen_t) -> ssize_t, -1;
    recvmsg = RECVMSG(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t, -1;
    sendmsg = SENDMSG(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t, -1;
    recvmmsg = RECVMMSG(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int, -1;
    sendmmsg = SENDMMSG(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int, -1;
    __read_chk = READ_CHK(fd: c_int, buffer: *mut c_void, count: size_t, size: size_t) -> ssize_t, -1;
    __recv_chk = RECV_CHK(fd: c_int, buffer: *mut c_void, count: size_t, size: size_t, flags: c_int) -> ssize_t, -1;
    __recvfrom_chk = RECVFROM_CHK(fd: c_int, buffer: *mut c_void, count: size_t, size: size_t, flags: c_int, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t, -1;
    sendfile = SENDFILE(out_fd: c_int, in_fd: c_int, offset: *mut off_t, count: size_t) -> ssize_t, -1;
    splice = SPLICE(in_fd: c_int, in_offset: *mut off_t, out_fd: c_int, out_offset: *mut off_t, count: size_t, flags: c_uint) -> ssize_t, -1;

    socket = SOCKET(domain: c_int, kind: c_int, protocol: c_int) -> c_int, -1;
    socketpair = SOCKETPAIR(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int, -1;
    connect = CONNECT(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int, -1;
    accept = ACCEPT(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int, -1;
    accept4 = ACCEPT4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int, -1;
    shutdown = SHUTDOWN(fd: c_int, how: c_int) -> c_int, -1;
    getsockopt = GETSOCKOPT(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int, -1;
    setsockopt = SETSOCKOPT(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: socklen_t) -> c_int, -1;

    poll = POLL(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int, -1;
    ppoll = PPOLL(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int, -1;
    select = SELECT(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int, -1;
    pselect = PSELECT(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int, -1;
    epoll_create = EPOLL_CREATE(size: c_int) -> c_int, -1;
    epoll_create1 = EPOLL_CREATE1(flags: c_int) -> c_int, -1;
    epoll_ctl = EPOLL_CTL(epoll: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int, -1;
    epoll_wait = EPOLL_WAIT(epoll: c_int, events: *mut epoll_event, count: c_int, timeout: c_int) -> c_int, -1;
    epoll_pwait = EPOLL_PWAIT(epoll: c_int, events: *mut epoll_event, count: c_int, timeout: c_int, mask: *const sigset_t) -> c_int, -1;
    epoll_pwait2 = EPOLL_PWAIT2(epoll: c_int, events: *mut epoll_event, count: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int, -1;

    close = CLOSE(fd: c_int) -> c_int, -1;
    close_range = CLOSE_RANGE(first: c_uint, last: c_uint, flags: c_int) -> c_int, -1;
    closefrom = CLOSEFROM(first: c_int) -> (), ();
    dup = DUP(fd: c_int) -> c_int, -1;
    dup2 = DUP2(fd: c_int, target: c_int) -> c_int, -1;
    dup3 = DUP3(fd: c_int, target: c_int, flags: c_int) -> c_int, -1;
    fcntl = FCNTL(fd: c_int, command: c_int, argument: c_ulong) -> c_int, -1;
    ioctl = IOCTL(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int, -1;
    syscall = SYSCALL(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long, -1;

    execve = EXECVE(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, -1;
    execvpe = EXECVPE(file: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, -1;
    fexecve = FEXECVE(fd: c_int, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, -1;
    execveat = EXECVEAT(folder: c_int, path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char, flags: c_int) -> c_int, -1;

    _pthread_cleanup_push = CLEANUP_PUSH(buffer: *mut crate::socket::abandon::CleanupBuffer, routine: unsafe extern "C" fn(*mut c_void), argument: *mut c_void) -> (), ();
    _pthread_cleanup_pop = CLEANUP_POP(buffer: *mut crate::socket::abandon::CleanupBuffer, execute: c_int) -> (), ();
    pthread_testcancel = TESTCANCEL() -> (), ();
    longjmp = LONGJMP(environment: *mut c_void, value: c_int) -> (), ();
    _longjmp = BSD_LONGJMP(environment: *mut c_void, value: c_int) -> (), ();
    siglongjmp = SIGLONGJMP(environment: *mut c_void, value: c_int) -> (), ();
    __longjmp_chk = LONGJMP_CHK(environment: *mut c_void, value: c_int) -> (), ();

    fork = FORK() -> pid_t, -1;
    _Fork = RAW_FORK() -> pid_t, -1;
    daemon = DAEMON(nochdir: c_int, noclose: c_int) -> c_int, -1;
    fopencookie = FOPENCOOKIE(cookie: *mut c_void, mode: *const c_char, functions: crate::abi::stdio::CookieFunctions) -> *mut libc::FILE, core::ptr::null_mut();
    fclose = FCLOSE(stream: *mut libc::FILE) -> c_int, libc::EOF;
    freopen = FREOPEN(path: *const c_char, mode: *const c_char, stream: *mut libc::FILE) -> *mut libc::FILE, core::ptr::null_mut();
    aio_read = AIO_READ(control: *mut c_void) -> c_int, -1;
    aio_write = AIO_WRITE(control: *mut c_void) -> c_int, -1;
    lio_listio = LIO_LISTIO(mode: c_int, list: *const *mut c_void, count: c_int, event: *mut c_void) -> c_int, -1;
    pidfd_getfd = PIDFD_GETFD(pidfd: c_int, fd: c_int, flags: c_uint) -> c_int, -1;
    clone = CLONE(body: Option<crate::abi::spawn::Body>, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent_id: *mut c_void, tls: *mut c_void, child_id: *mut c_void) -> c_int, -1;
    system = SYSTEM(command: *const c_char) -> c_int, -1;
    popen = POPEN(command: *const c_char, mode: *const c_char) -> *mut libc::FILE, core::ptr::null_mut();
    posix_spawn = SPAWN(child: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    posix_spawnp = SPAWNP(child: *mut pid_t, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    pidfd_spawn = PIDFD_SPAWN(child: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    pidfd_spawnp = PIDFD_SPAWNP(child: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    posix_spawn_file_actions_adddup2 = SPAWN_ADDDUP2(actions: *mut c_void, fd: c_int, target: c_int) -> c_int, libc::ENOSYS;
    backtrace_symbols_fd = BACKTRACE(buffer: *const *mut c_void, count: c_int, fd: c_int) -> (), ();
    forkpty = FORKPTY(master: *mut c_int, name: *mut c_char, settings: *const c_void, size: *const c_void) -> pid_t, -1;
    login_tty = LOGIN_TTY(fd: c_int) -> c_int, -1;
    fdopen = FDOPEN(fd: c_int, mode: *const c_char) -> *mut libc::FILE, core::ptr::null_mut();
}

/// Looked up where they are needed: their arguments are not known here.
static PRINTING: [(&CStr, Next<unsafe extern "C" fn()>); 4] =
    [printing(c"dprintf"), printing(c"vdprintf"), printing(c"__dprintf_chk"), printing(c"__vdprintf_chk")];

const fn printing(name: &'static CStr) -> (&'static CStr, Next<unsafe extern "C" fn()>) {
    (name, Next::new(core::ptr::null_mut()))
}

/// The next definition of a printing function of `abi/stdio.rs`, in its order. Never null: a program that calls one has a libc that
/// defines it.
pub(crate) fn print_function(which: usize) -> *mut c_void {
    let find = |(name, next): &(&CStr, Next<unsafe extern "C" fn()>)| match next.address.load(Acquire).is_null() {
        true => next.resolve(name),
        false => Some(next.get()),
    };
    PRINTING.get(which).and_then(find).map_or_else(|| tssx_core::sys::abort(), |function| function as *mut c_void)
}
