//! Where the running kernel keeps the name and the peer of a socket: what [`tssx_ebpf::birth`] needs.

use anyhow::Context;
use tssx_ebpf::birth::{PLACES, Place};

use crate::kernel_types::KernelTypes;

/// Each place with its structure and the members on the way.
const WANTED: [(Place, &str, &[&str]); PLACES] = [
    (Place::Address, "unix_sock", &["addr"]),
    (Place::Peer, "unix_sock", &["peer"]),
    (Place::Dentry, "unix_sock", &["path", "dentry"]),
    (Place::AddressLength, "unix_address", &["len"]),
    (Place::AddressName, "unix_address", &["name"]),
    (Place::Cookie, "sock", &["__sk_common", "skc_cookie"]),
    (Place::Net, "sock", &["__sk_common", "skc_net"]),
    (Place::Type, "sock", &["sk_type"]),
    (Place::NetInode, "net", &["ns", "inum"]),
    (Place::DentryInode, "dentry", &["d_inode"]),
    (Place::Inode, "inode", &["i_ino"]),
    (Place::SuperBlock, "inode", &["i_sb"]),
    (Place::Device, "super_block", &["s_dev"]),
];

/// The places in the running kernel, for the global [`tssx_ebpf::birth::SHAPE`].
///
/// # Errors
/// One that names the structure or member that this kernel does not have.
pub(crate) fn shape() -> anyhow::Result<[u32; PLACES]> {
    let types = KernelTypes::of_running_kernel().context("the kernel's type information cannot be read")?;
    let mut shape = [0; PLACES];
    for (place, structure, members) in WANTED {
        let offset = types.offset(structure, members).and_then(|offset| u32::try_from(offset).ok());
        let missing = || format!("this kernel's `struct {structure}` has no member `{}`", members.join("."));
        if let Some(slot) = shape.get_mut(place as usize) {
            *slot = offset.with_context(missing)?;
        }
    }
    Ok(shape)
}
