//! Who is at the other end: UNIX_DIAG, sock_diag(7).
//!
//! An unprivileged question to the kernel, 4–5 µs, asked once per connection that is about to upgrade. The request and
//! the answer are `struct unix_diag_req`, `struct unix_diag_msg` and the attributes of include/uapi/linux/unix_diag.h.

use crate::sys;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const UDIAG_SHOW_VFS: u32 = 0x2;
const UDIAG_SHOW_PEER: u32 = 0x4;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_PEER: u16 = 2;
/// Bytes of a reply about one socket with one attribute, with room to spare.
const REPLY_MAX: usize = 512;
/// Bytes of `struct nlmsghdr`, and of the request: header and `unix_diag_req`.
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 24;
/// `struct unix_diag_msg`.
const MESSAGE: usize = 16;

/// What the kernel says of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Its socket's inode.
    Inode(u64),
    /// There is none yet (`accept` has not been called) or no longer.
    None,
    /// The kernel does not say: netlink is forbidden, or the socket is not of this network namespace.
    Unknown,
}

/// The peer of the Unix socket with inode `inode`, in the network namespace of the caller.
#[must_use]
pub fn peer(inode: u64) -> Peer {
    let mut reply = [0_u8; REPLY_MAX];
    match ask(inode, UDIAG_SHOW_PEER, &mut reply).and_then(|reply| attributes(reply, inode)) {
        None => Peer::Unknown,
        Some(rest) => match attribute(rest, UNIX_DIAG_PEER).and_then(|value| u32_at(value, 0)) {
            None | Some(0) => Peer::None,
            Some(inode) => Peer::Inode(u64::from(inode)),
        },
    }
}

/// Whether the Unix socket with inode `inode` and cookie `cookie` (0: not known) is no more, in the network namespace of the caller; false
/// where the kernel does not say.
#[must_use]
pub fn is_gone(inode: u64, cookie: u64) -> bool {
    let mut reply = [0_u8; REPLY_MAX];
    let Some(reply) = ask(inode, UDIAG_SHOW_PEER, &mut reply) else { return false };
    if attributes(reply, inode).is_some() {
        // struct unix_diag_msg: family, type, state, pad, inode, cookie. Another socket may have the inode by now.
        let now = [HEADER + 8, HEADER + 12].map(|offset| u32_at(reply, offset).map_or(0, u64::from));
        return cookie != 0 && now[0] | now[1] << 32 != cookie;
    }
    // struct nlmsgerr: the error, negative.
    let refused = u16_at(reply, 4) == Some(NLMSG_ERROR);
    refused && u32_at(reply, HEADER) == Some(libc::ENOENT.wrapping_neg().cast_unsigned())
}

/// Device (as `st_dev`) and inode of the file that the bound Unix socket with inode `inode` made, however it is called by now.
#[must_use]
pub fn bound_file(inode: u64) -> Option<(u64, u64)> {
    let mut reply = [0_u8; REPLY_MAX];
    let reply = ask(inode, UDIAG_SHOW_VFS, &mut reply)?;
    let value = attribute(attributes(reply, inode)?, UNIX_DIAG_VFS)?;
    // struct unix_diag_vfs: inode, then the kernel's dev_t, whose minor number has 20 bits.
    let (file, device) = (u32_at(value, 0)?, u32_at(value, 4)?);
    Some((libc::makedev(device >> 20, device & 0xf_ffff), u64::from(file)))
}

/// Asks about one socket; the reply is left in `reply`.
fn ask(inode: u64, show: u32, reply: &mut [u8; REPLY_MAX]) -> Option<&[u8]> {
    let request = request(u32::try_from(inode).ok()?, show);
    let fd =
        sys::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, libc::NETLINK_SOCK_DIAG).ok()?;
    let length = sys::send(fd, &request).and_then(|_| sys::receive(fd, reply, 0));
    sys::close(fd);
    reply.get(..length.ok()?)
}

/// nlmsghdr, then: family, protocol, pad, states, inode, show, cookie (-1: any).
fn request(inode: u32, show: u32) -> [u8; REQUEST] {
    let mut bytes = [0_u8; REQUEST];
    let mut writer = bytes.iter_mut();
    let mut put = |value: &[u8]| {
        // `value` first: zip must not take a byte of the request that it then has nothing for.
        for (from, to) in value.iter().zip(writer.by_ref()) {
            *to = *from;
        }
    };
    put(&40_u32.to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&1_u16.to_ne_bytes()); // NLM_F_REQUEST
    put(&[0; 8]); // sequence, port
    put(&[1, 0, 0, 0]); // AF_UNIX
    put(&u32::MAX.to_ne_bytes());
    put(&inode.to_ne_bytes());
    put(&show.to_ne_bytes());
    put(&u64::MAX.to_ne_bytes());
    bytes
}

/// The attributes of a reply about `inode`; anything unexpected is no answer.
fn attributes(reply: &[u8], inode: u64) -> Option<&[u8]> {
    let length = u32_at(reply, 0)? as usize;
    let kind = u16_at(reply, 4)?;
    if kind != SOCK_DIAG_BY_FAMILY || u64::from(u32_at(reply, HEADER + 4)?) != inode {
        return None;
    }
    reply.get(HEADER + MESSAGE..length.min(reply.len()))
}

/// The value of the attribute of type `wanted`.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let (Some(size), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        if kind == wanted {
            return rest.get(4..);
        }
        let aligned = (usize::from(size).max(4) + 3) & !3;
        rest = rest.get(aligned..)?;
    }
    None
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(socket: &impl AsRawFd) -> u64 {
        sys::fstat(socket.as_raw_fd()).expect("fstat").inode
    }

    #[test]
    fn the_two_ends_of_a_pair_name_each_other() {
        let (left, right) = UnixStream::pair().expect("pair");
        assert_eq!(peer(inode(&left)), Peer::Inode(inode(&right)));
        assert_eq!(peer(inode(&right)), Peer::Inode(inode(&left)));
    }

    #[test]
    fn a_socket_without_a_peer_or_that_does_not_exist_has_no_answer() {
        let (left, right) = UnixStream::pair().expect("pair");
        let number = inode(&left);
        drop(right);
        assert_eq!(peer(number), Peer::None);
        drop(left);
        assert_eq!(peer(number), Peer::Unknown);
        assert_eq!(peer(u64::MAX), Peer::Unknown);
        assert!(!is_gone(u64::MAX, 0));
    }

    #[test]
    fn a_socket_is_gone_when_it_is_closed_and_not_before() {
        let (left, _right) = UnixStream::pair().expect("pair");
        let cookie = sys::getsockopt::<u64>(left.as_raw_fd(), libc::SO_COOKIE).expect("cookie");
        let number = inode(&left);
        assert!(!is_gone(number, cookie) && !is_gone(number, 0));
        assert!(is_gone(number, cookie + 1), "another socket has the inode");
        drop(left);
        assert!(is_gone(number, cookie) && is_gone(number, 0));
    }

    #[test]
    fn a_bound_socket_is_known_by_its_file_even_under_another_name() {
        let folder = std::env::temp_dir().join(format!("tssx-diag-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let listener = UnixListener::bind(folder.join("old")).expect("bind");
        std::fs::rename(folder.join("old"), folder.join("new")).expect("rename");
        let file = std::fs::metadata(folder.join("new")).expect("stat");
        assert_eq!(bound_file(inode(&listener)), Some((file.dev(), file.ino())));
        std::fs::remove_dir_all(&folder).expect("clean up");
    }

    /// A reply about socket 77, whose peer is 78 and whose file has inode 79.
    #[cfg(not(loom))]
    fn reply() -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(4 + value.len()).expect("short");
            [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
        };
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let attributes =
            [attribute(0, b"/a\0\0"), attribute(UNIX_DIAG_VFS, &words(&[79, 8 << 20])), attribute(UNIX_DIAG_PEER, &words(&[78]))];
        let socket = [&[1, 1, 1, 0][..], &words(&[77, 5, 6]), &attributes.concat()].concat();
        let length = u32::try_from(HEADER + socket.len()).expect("short");
        let kind = u32::from(SOCK_DIAG_BY_FAMILY);
        [words(&[length, kind, 0, 0]), socket].concat()
    }

    #[cfg(not(loom))]
    #[test]
    fn a_reply_of_any_bytes_is_survived() {
        let found = |reply: &[u8], wanted| {
            attributes(reply, 77).and_then(|rest| attribute(rest, wanted)).and_then(|value| u32_at(value, 0))
        };
        assert_eq!((found(&reply(), UNIX_DIAG_PEER), found(&reply(), UNIX_DIAG_VFS)), (Some(78), Some(79)));
        crate::mutations::each(&reply(), 50_000, |bytes| {
            let _any = (found(bytes, UNIX_DIAG_PEER), found(bytes, UNIX_DIAG_VFS), found(bytes, u16::MAX));
        });
    }
}
