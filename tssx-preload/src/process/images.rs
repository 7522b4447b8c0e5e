//! Other programs: exec, and what libc starts by itself (posix_spawn, system, popen).
//!
//! A new image has no ring. Connections that it inherits go back to the kernel socket, whether or not it will use them, for nobody can know.
//! A helper that a server starts should not inherit what is not its business (FD_CLOEXEC). What nobody can give back goes along
//! (`remainder.rs`).

#![allow(unsafe_code, reason = "passes environments on")]

use core::ffi::c_int;

use libc::pid_t;
use tssx_core::ledger::layout::Slot;
use tssx_core::sys;

use super::remainder::{Remainders, Strings};
use super::{each_stream, is_borrowed};
use crate::endpoint::{Endpoint, Holder};
use crate::fd_table::{self, Entry};
use crate::readiness::postponed;
use crate::socket::recall;

/// Whether a new image would have the connection at `fd`. The table may be that of a parent whose memory we borrow: the number must still
/// be the connection's. Where a filter (seccomp(2)) forbids the question, it is: bytes that are left in a ring would be lost.
pub(super) fn is_inherited(fd: c_int, endpoint: &Endpoint) -> bool {
    let goes = match sys::fcntl(fd, libc::F_GETFD, 0) {
        Ok(flags) => flags & libc::FD_CLOEXEC == 0,
        Err(errno) => errno != sys::Errno(libc::EBADF),
    };
    goes && is_at(fd, endpoint)
}

/// Whether the number is, for the calling process, the endpoint's connection; believed where the kernel does not say whose it is.
pub(super) fn is_at(fd: c_int, endpoint: &Endpoint) -> bool {
    let cookie = sys::getsockopt::<u64>(fd, libc::SO_COOKIE);
    let known = |slot: &Slot| slot.cookie.load(core::sync::atomic::Ordering::Relaxed);
    endpoint.slot().is_some_and(|slot| match cookie {
        Ok(cookie) => cookie == known(slot) || known(slot) == 0,
        Err(errno) => !matches!(errno.0, libc::EBADF | libc::ENOTSOCK),
    })
}

/// Before another program begins that inherits descriptors.
pub(crate) fn hand_over() {
    postponed::settle();
    recall::leave_all_rings_now(|visit| {
        fd_table::for_each(0, u32::MAX, |fd, entry| {
            if let Entry::Stream(endpoint) = entry
                && is_inherited(fd, endpoint)
            {
                visit(fd);
            }
        });
    });
}

/// exec(3) through `exec`, which is given the environment and returns only if it fails: this image's share of every connection ends with it.
///
/// # Safety
/// As exec(3)'s environment.
pub(crate) unsafe fn exec(environment: Strings, exec: impl Fn(Strings) -> c_int) -> c_int {
    if crate::init::active().is_none() {
        return exec(environment);
    }
    let borrowed = is_borrowed();
    hand_over();
    if borrowed {
        return exec(environment);
    }
    // SAFETY: the caller's.
    let mut remainders = unsafe { Remainders::pack(environment) };
    each_stream(|_, endpoint| endpoint.change_holders(Holder::Own(false)));
    // SAFETY: the caller's, and `remainders` lives on.
    let (result, errno) = match unsafe { remainders.told(environment) } {
        Some(environment) => (exec(environment), crate::errno::get()),
        None => (-1, crate::errno::Errno(libc::ENOMEM)),
    };
    each_stream(|_, endpoint| endpoint.change_holders(Holder::Own(true)));
    remainders.put_back();
    crate::errno::set(errno);
    result
}

/// A call of libc's that starts another program.
pub(crate) fn spawn<R>(spawn: impl FnOnce() -> R) -> R {
    if crate::init::active().is_some() {
        hand_over();
    }
    spawn()
}

/// clone(2) and its relatives through `clone`, which returns in both processes unless the child begins elsewhere.
pub(crate) fn clone(flags: u64, clone: impl Fn() -> pid_t) -> pid_t {
    let has = |flag: c_int| flags & u64::from(flag.cast_unsigned()) != 0;
    if !has(libc::CLONE_VM) {
        super::fork(clone)
    } else if has(libc::CLONE_THREAD) {
        clone()
    } else {
        spawn(clone)
    }
}
