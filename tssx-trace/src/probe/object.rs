//! The compiled kernel programs, fitted to the running kernel.
//!
//! Records of traffic are made when they are needed. Kernels before 6.1 had no memory ready for that in every context, and warn in
//! their log of tracing programs that ask for it: there, all records are made at load instead.

use std::borrow::Cow;

use anyhow::bail;
use tssx_ebpf::{TRAFFIC_ENTRIES, Traffic, TrafficKey};

use crate::preflight;

/// The object that build.rs put beside us, aligned as an ELF reader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tssx-ebpf.o"));

/// First release of Linux that keeps memory ready for maps.
const READY_SINCE: (u32, u32) = (6, 1);
/// `BPF_MAP_TYPE_HASH` and `BPF_F_NO_PREALLOC` of bpf(2).
const HASH: u32 = 1;
const NO_PREALLOC: u32 = 1;

/// The object to load here.
///
/// # Errors
/// Where the object does not define the map as expected.
pub(super) fn for_running_kernel() -> anyhow::Result<Cow<'static, [u8]>> {
    if preflight::kernel_is_since(READY_SINCE) { Ok(Cow::Borrowed(OBJECT)) } else { preallocated() }
}

/// The object with the flag taken out of the definition of the traffic map: aya has no setting for it.
fn preallocated() -> anyhow::Result<Cow<'static, [u8]>> {
    // As `struct bpf_map_def` lies in the object: type, sizes of key and value, entries, flags.
    let sizes = [size_of::<TrafficKey>() as u32, size_of::<Traffic>() as u32];
    let definition = |flags: u32| [HASH, sizes[0], sizes[1], TRAFFIC_ENTRIES, flags].map(u32::to_ne_bytes).concat();
    let (wanted, instead) = (definition(NO_PREALLOC), definition(0));
    let mut places = OBJECT.windows(wanted.len()).enumerate().filter(|(_, bytes)| *bytes == wanted);
    let (Some((at, _)), None) = (places.next(), places.next()) else {
        bail!(
            "the kernel programs do not define the traffic map once: build them and the tracer together with `cargo xtask build`"
        );
    };
    // A large allocation is as aligned as any type needs.
    let mut object = OBJECT.to_vec();
    if let Some(place) = object.get_mut(at..at + instead.len()) {
        place.copy_from_slice(&instead);
    }
    Ok(Cow::Owned(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flag_of_one_map_differs_for_old_kernels() {
        let object = preallocated().expect("the map is defined once");
        let differences: Vec<_> = object.iter().zip(OBJECT).filter(|(one, other)| one != other).collect();
        assert_eq!((object.len(), differences), (OBJECT.len(), vec![(&0, &1)]));
    }
}
