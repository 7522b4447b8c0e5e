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
