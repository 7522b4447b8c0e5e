//! Signals: handlers that count, handlers that use a stream, and a thread that interrupts a call until it returns.
#![allow(
    unsafe_code,
    reason = "installs handlers and sends signals; the handlers only use atomics and calls that are safe in them"
)]

use std::mem::zeroed;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use libc::c_int;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static STREAM: AtomicI32 = AtomicI32::new(-1);
static MOVED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: c_int) {
    COUNT.fetch_add(1, SeqCst);
}

/// Writes one byte of 255 to the stream, if it can be done at once.
extern "C" fn write_one(_: c_int) {
    let byte = [255_u8];
    // SAFETY: send is safe in a handler; one live byte.
    let sent = unsafe { libc::send(STREAM.load(SeqCst), byte.as_ptr().cast(), 1, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    COUNT.fetch_add(1, SeqCst);
    MOVED.fetch_add(usize::from(sent == 1), SeqCst);
}

/// Reads up to one byte from the stream, if one is there.
extern "C" fn read_one(_: c_int) {
    let mut byte = [0_u8];
    // SAFETY: recv is safe in a handler; one live byte.
    let got = unsafe { libc::recv(STREAM.load(SeqCst), byte.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT) };
    COUNT.fetch_add(1, SeqCst);
    MOVED.fetch_add(if got == 1 { usize::from(byte[0]) + 1 } else { 0 }, SeqCst);
}

/// Closes the stream.
extern "C" fn close_it(_: c_int) {
    // SAFETY: close is safe in a handler; the case owns the descriptor.
    let closed = unsafe { libc::close(STREAM.load(SeqCst)) };
    COUNT.fetch_add(usize::from(closed == 0), SeqCst);
}

fn install(signal: c_int, handler: extern "C" fn(c_int), flags: c_int) {
    // SAFETY: sigaction is plain data for which zero is valid; the handlers above are safe in signals.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Counts `signal` from now on, starting at 0.
pub(crate) fn count_all(signal: c_int, restart: bool) {
    COUNT.store(0, SeqCst);
    install(signal, count, if restart { libc::SA_RESTART } else { 0 });
}

/// How often a handler ran since the last call.
pub(crate) fn counted() -> usize {
    COUNT.swap(0, SeqCst)
}

/// SIGALRM every `period`, whose handler (with SA_RESTART) writes a byte of 255 to `fd`, or reads one.
pub(crate) fn use_in_handler(fd: i32, writes: bool, period: Duration) {
    STREAM.store(fd, SeqCst);
    MOVED.store(0, SeqCst);
    install(libc::SIGALRM, if writes { write_one } else { read_one }, libc::SA_RESTART);
    tick(period);
}

/// SIGALRM once after `delay`, whose handler closes `fd`.
pub(crate) fn close_in_handler(fd: i32, delay: Duration) {
    STREAM.store(fd, SeqCst);
    install(libc::SIGALRM, close_it, libc::SA_RESTART);
    set_timer(delay, Duration::ZERO);
}

/// Stops the timer. What the handler moved: bytes that it wrote, or the sum of (byte + 1) that it read.
pub(crate) fn moved_in_handler() -> usize {
    tick(Duration::ZERO);
    MOVED.load(SeqCst)
}

fn tick(period: Duration) {
    set_timer(period, period);
}

fn set_timer(first: Duration, period: Duration) {
    let time = |period: Duration| libc::timeval { tv_sec: 0, tv_usec: period.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: time(period), it_value: time(first) };
    // SAFETY: a live itimerval; the old one is not asked for.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

/// Blocks or unblocks a signal for this thread.
pub(crate) fn block(signal: c_int, on: bool) {
    // SAFETY: a live set.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(if on { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK }, &raw const set, std::ptr::null_mut());
    }
}

/// Sends a signal to this thread.
pub(crate) fn raise(signal: c_int) {
    // SAFETY: takes no pointer.
    unsafe { libc::raise(signal) };
}

/// Makes `call` while another thread sends SIGUSR1 to this one every millisecond, until the call returns; after `most` signals
/// it calls `give_up`, which must make the call return.
pub(crate) fn interrupting<T>(most: usize, give_up: impl FnOnce() + Send, call: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    // SAFETY: takes no pointer. The thread outlives the scope in which it is signalled.
    let target = unsafe { libc::pthread_self() };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..most {
                std::thread::sleep(Duration::from_millis(1));
                if done.load(SeqCst) {
                    return;
                }
                // SAFETY: the target waits for this thread at the end of the scope.
                unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
            }
            give_up();
        });
        let answer = call();
        done.store(true, SeqCst);
        answer
    })
}
