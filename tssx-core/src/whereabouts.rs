//! Which CPU an end is on, as a hint for whether the other can run while one spins.

use core::sync::atomic::Ordering::Relaxed;

use crate::segment::Segment;
use crate::sys;

/// Consumer: says where it is.
pub fn tell(segment: &Segment) {
    say(segment, sys::current_cpu().wrapping_add(1));
}

fn say(segment: &Segment, here: u32) {
    let cpu = &segment.rx().cpu;
    if cpu.load(Relaxed) != here {
        cpu.store(here, Relaxed);
    }
}

/// Before a wait: says where we are, and whether the peer was here too when it last said so.
#[must_use]
pub fn peer_is_here(segment: &Segment) -> bool {
    let here = sys::current_cpu().wrapping_add(1);
    say(segment, here);
    here != 0 && segment.tx().cpu.load(Relaxed) == here
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_here_once_it_has_said_so_and_not_elsewhere_or_before() {
        let (ours, fd) = Segment::create(0, 1, 2).expect("create");
        let theirs = Segment::adopt(fd, 2).expect("adopt");
        sys::close(fd);
        assert!(!peer_is_here(&ours), "it has not said");
        let told_and_seen = || {
            tell(&theirs);
            peer_is_here(&ours)
        };
        assert!((0..1000).any(|_| told_and_seen()), "the test is hardly moved between both each time");
        theirs.rx().cpu.store(u32::MAX, Relaxed);
        assert!(!peer_is_here(&ours));
        assert_ne!(ours.rx().cpu.load(Relaxed), 0, "we have said too where we are");
    }
}
