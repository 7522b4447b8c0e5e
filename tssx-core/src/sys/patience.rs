//! Calls that are made again: what the kernel refuses for a moment only.

use super::{Result, rest, yield_now};

/// Times that a call is made, of which the first [`AT_ONCE`] follow each other without a rest: a quarter of a second in all.
const TRIES: u32 = 256;
/// Times without a rest in between.
const AT_ONCE: u32 = 16;
/// Between two of the others, microseconds.
const REST_US: u32 = 1000;

/// Makes a call that nobody else would make again. A doorbell that is not sent is a peer that sleeps on, and the program's call that has
/// written has succeeded by then; where memory is short for a moment, the kernel's own `write` would have waited for it as well.
pub(super) fn patiently(mut make: impl FnMut() -> Result<usize>) -> Result<usize> {
    for attempt in 1..TRIES {
        match make() {
            Err(errno) if errno.is_passing() => {}
            result => return result,
        }
        if attempt < AT_ONCE { yield_now() } else { rest(REST_US) }
    }
    make()
}

#[cfg(test)]
mod tests {
    use super::super::Errno;
    use super::*;

    #[test]
    fn what_passes_is_waited_for() {
        for errno in [libc::EINTR, libc::ENOBUFS, libc::ENOMEM] {
            let mut left = 20;
            let made = patiently(|| {
                left -= 1;
                if left > 0 { Err(Errno(errno)) } else { Ok(1) }
            });
            assert_eq!((made, left), (Ok(1), 0));
        }
    }

    #[test]
    fn what_stays_is_told() {
        let mut made = 0;
        let never = |made: &mut u32, errno| {
            *made += 1;
            Err(Errno(errno))
        };
        assert_eq!(patiently(|| never(&mut made, libc::ENOBUFS)), Err(Errno(libc::ENOBUFS)));
        assert_eq!(made, TRIES);
        assert_eq!(patiently(|| never(&mut made, libc::EPIPE)), Err(Errno(libc::EPIPE)));
        assert_eq!(made, TRIES + 1);
    }
}
