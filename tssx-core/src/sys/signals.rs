//! Steps that no signal handler of the same thread may see half done: those that take bytes out of the kernel and count them.

use super::call;

/// rt_sigprocmask(2): the kernel's signal set is 64 bits.
const SET_BYTES: usize = size_of::<u64>();

/// All signals wait, for this thread, until it is dropped. A handler that used the same stream in between would find bytes that nobody has counted
/// gone, and take others in their place.
#[derive(Debug)]
pub struct Undisturbed {
    before: u64,
}

impl Undisturbed {
    /// From here on. Where the kernel refuses, which it does not document, nothing is different from before.
    #[must_use]
    pub fn begin() -> Self {
        let mut before = 0_u64;
        set(u64::MAX, Some(&mut before));
        Self { before }
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        set(self.before, None);
    }
}

fn set(mask: u64, before: Option<&mut u64>) {
    let how = super::flag_arg(libc::SIG_SETMASK);
    let old = before.map_or(0, |before| core::ptr::from_mut(before) as usize);
    let _ = call(libc::SYS_rt_sigprocmask, [how, core::ptr::from_ref(&mask) as usize, old, SET_BYTES, 0, 0]);
}
