//! Who is at the other end: UNIX_DIAG, sock_diag(7).
//!
//! An unprivileged question to the kernel, 4–5 µs, asked once per connection that is about to upgrade. The request and
//! the answer are `struct unix_diag_req`, `struct unix_diag_msg` and the attributes of include/uapi/linux/unix_diag.h.

use crate::sys;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_PEER: u32 = 0x4;
const UNIX_DIAG_PEER: u16 = 2;
/// Bytes of `struct nlmsghdr`, and of the request: header and `unix_diag_req`.
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 24;
/// `struct unix_diag_msg`.
const MESSAGE: usize = 16;

/// Inode of the peer of the Unix socket with inode `inode`, in the network namespace of the caller. `None` when the kernel does
/// not say: no such socket here, netlink forbidden, or not accepted yet (the peer's inode is then 0).
#[must_use]
pub fn peer_inode(inode: u64) -> Option<u64> {
    let fd =
        sys::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, libc::NETLINK_SOCK_DIAG).ok()?;
    let answer = ask(fd, inode);
    sys::close(fd);
    answer
}

fn ask(fd: i32, inode: u64) -> Option<u64> {
    sys::send(fd, &request(u32::try_from(inode).ok()?)).ok()?;
    let mut reply = [0_u8; 512];
    let length = sys::receive(fd, &mut reply, 0).ok()?;
    parse(reply.get(..length)?, inode)
}

/// nlmsghdr, then: family, protocol, pad, states, inode, show, cookie (-1: any).
fn request(inode: u32) -> [u8; REQUEST] {
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
    put(&UDIAG_SHOW_PEER.to_ne_bytes());
    put(&u64::MAX.to_ne_bytes());
    bytes
}

/// The peer attribute of a reply about `inode`; anything unexpected is no answer.
fn parse(reply: &[u8], inode: u64) -> Option<u64> {
    let length = u32_at(reply, 0)? as usize;
    let kind = u16_at(reply, 4)?;
    if kind != SOCK_DIAG_BY_FAMILY || u64::from(u32_at(reply, HEADER + 4)?) != inode {
        return None;
    }
    let mut rest = reply.get(HEADER + MESSAGE..length.min(reply.len()))?;
    while let (Some(size), Some(attribute)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        if attribute == UNIX_DIAG_PEER {
            return u32_at(rest, 4).filter(|peer| *peer != 0).map(u64::from);
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
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_two_ends_of_a_pair_name_each_other() {
        let (left, right) = UnixStream::pair().expect("pair");
        let left = sys::fstat(left.as_raw_fd()).expect("fstat").inode;
        let right = sys::fstat(right.as_raw_fd()).expect("fstat").inode;
        assert_eq!(peer_inode(left), Some(right));
        assert_eq!(peer_inode(right), Some(left));
    }

    #[test]
    fn a_socket_without_a_peer_or_that_does_not_exist_has_no_answer() {
        let (left, right) = UnixStream::pair().expect("pair");
        let inode = sys::fstat(left.as_raw_fd()).expect("fstat").inode;
        drop(right);
        assert_eq!(peer_inode(inode), None);
        drop(left);
        assert_eq!(peer_inode(inode), None);
        assert_eq!(peer_inode(u64::MAX), None);
    }

    #[test]
    fn a_reply_of_any_bytes_is_survived() {
        let mut seed = 1_u64;
        for round in 0..20_000_usize {
            let mut reply = vec![0_u8; round % 80];
            for byte in &mut reply {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 60) as u8 * u8::from(seed & 3 == 0);
            }
            if let Some(first) = reply.get_mut(4..6) {
                first.copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            }
            let _ = parse(&reply, 0);
        }
    }
}
