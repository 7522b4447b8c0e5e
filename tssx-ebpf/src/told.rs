//! The kernel side of [`tssx_ebpf::birth`]: reading a socket's name and peer, once, when it is first counted.
//!
//! Every read is `bpf_probe_read_kernel`: a pointer that is stale or wrong gives an error, never a fault. The socket
//! itself is held by the call that is being counted, and a stream's peer by the socket until it is released, so what is
//! read of those is theirs. A datagram socket may change its peer at any time: only its own name is read.

#![allow(unsafe_code, reason = "reads the kernel's memory through a helper, and writes a ring buffer's record in place")]

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{PerCpuArray, RingBuf};
use tssx_ebpf::birth::{BIRTHS_BYTES, Birth, NAME_BYTES, OF_PEER, OWN, PLACES, Place};

/// `SOCK_DGRAM` of socket(2).
const DATAGRAM: u16 = 2;
/// `BPF_RB_NO_WAKEUP` of bpf(2): the reader looks by itself, a wake-up for each socket would cost the traced program.
const NO_WAKEUP: u64 = 1;
/// Bytes of `sun_family` before the name in a `sockaddr_un`.
const FAMILY_BYTES: usize = 2;

/// See [`tssx_ebpf::birth::SHAPE`]; the loader sets it.
#[unsafe(no_mangle)]
static SHAPE: Global<[u32; PLACES]> = Global::new([0; PLACES]);

#[map]
static BIRTHS: RingBuf = RingBuf::with_byte_size(BIRTHS_BYTES, 0);

#[map]
static UNTOLD: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Reads a `T` of `place` in the structure at `base`; zero where that cannot be read.
#[inline(always)]
fn read<T: Copy + Default>(base: u64, shape: &[u32; PLACES], place: Place) -> T {
    let mut value = T::default();
    if base == 0 {
        return value;
    }
    let from = base.wrapping_add(u64::from(shape[place as usize]));
    // SAFETY: `value` is writable for the size given; on failure the helper zeroes it, and zero is a `T::default()`.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from as *const c_void) };
    value
}

/// Tells the reader of a socket that is counted for the first time.
#[inline(always)]
pub(crate) fn tell(socket: *mut c_void, cookie: u64) {
    let shape = SHAPE.load();
    if socket.is_null() || shape[Place::Peer as usize] == 0 {
        return; // nothing to look at, or the loader did not find its way through this kernel's structures
    }
    let Some(mut entry) = BIRTHS.reserve::<Birth>(0) else {
        if let Some(count) = UNTOLD.get_ptr_mut(0) {
            // SAFETY: the verifier proved `count` to be this CPU's entry; programs on one CPU do not preempt each other.
            unsafe { *count += 1 };
        }
        return;
    };
    let own = socket as u64;
    let kind: u16 = read(own, &shape, Place::Type);
    let peer = if kind == DATAGRAM { 0 } else { read(own, &shape, Place::Peer) };
    let mut whose = OWN;
    let mut named = own;
    let mut address: u64 = read(own, &shape, Place::Address);
    if address == 0 {
        (whose, named) = (OF_PEER, peer);
        address = read(peer, &shape, Place::Address);
    }
    let birth = entry.as_mut_ptr();
    // SAFETY: `birth` is the reserved record, writable for its size, and every byte of it is written before it is submitted.
    unsafe {
        birth.write_bytes(0, 1);
        (*birth).cookie = cookie;
        (*birth).peer = read(peer, &shape, Place::Cookie);
        (*birth).network = read(read(own, &shape, Place::Net), &shape, Place::NetInode);
        (*birth).kind = kind;
        let length = read::<i32>(address, &shape, Place::AddressLength) as usize;
        if length > FAMILY_BYTES && length <= FAMILY_BYTES + NAME_BYTES {
            let length = length - FAMILY_BYTES;
            let from = address.wrapping_add(u64::from(shape[Place::AddressName as usize])).wrapping_add(FAMILY_BYTES as u64);
            let size = (length as u32) & 0x7f;
            let size = if size as usize > NAME_BYTES { NAME_BYTES as u32 } else { size };
            if bpf_probe_read_kernel((&raw mut (*birth).name).cast(), size, from as *const c_void) == 0 {
                (*birth).whose = whose;
                (*birth).length = size as u8;
            }
            let inode: u64 = read(read(named, &shape, Place::Dentry), &shape, Place::DentryInode);
            (*birth).inode = read(inode, &shape, Place::Inode);
            (*birth).device = read(read(inode, &shape, Place::SuperBlock), &shape, Place::Device);
        }
    }
    entry.submit(NO_WAKEUP);
}
