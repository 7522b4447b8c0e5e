//! Operations with message headers: sendmsg, recvmsg, their multiples, descriptors and credentials.

#![allow(unsafe_code, reason = "makes the calls under test and reads what control messages they left")]

use std::ffi::{c_int, c_void};
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::SeqCst;

use crate::player::Player;
use crate::slots::{self, End};
use crate::sys::{self, Sending, answer, narrow, told};
use crate::words::{Flags, Handle, Parts, Place, Word};

/// Room for the longest control message.
type Control = [u64; 64];

fn header(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

/// sendmsg without control messages.
pub(crate) fn sendmsg(player: &Player, on: Handle, parts: &Parts, flags: Flags) -> String {
    let mut vectors = player.memory.parts(&parts.0);
    let sending = Sending::begin_parts(player.board, on, &vectors);
    let message = header(&mut vectors);
    // SAFETY: the message points to live vectors.
    sending.end(answer(unsafe { libc::sendmsg(slots::fd(on), &raw const message, flags.0) }))
}

/// sendmsg with one control message.
fn send_control(player: &Player, on: Handle, size: usize, flags: Flags, kind: c_int, content: &[u8]) -> String {
    let (base, reachable) = player.memory.place(Place::Good, size);
    let sending = Sending::begin(player.board, on, size, std::iter::once((base, reachable)));
    let mut vectors = [libc::iovec { iov_base: base.cast(), iov_len: size }];
    let mut message = header(&mut vectors);
    let mut control: Control = [0; 64];
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the CMSG functions only compute; the control buffer holds the header and the content (at most 256 bytes).
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(content.len() as u32) as usize;
        let entry = libc::CMSG_FIRSTHDR(&raw const message);
        (*entry).cmsg_level = libc::SOL_SOCKET;
        (*entry).cmsg_type = kind;
        (*entry).cmsg_len = libc::CMSG_LEN(content.len() as u32) as usize;
        std::ptr::copy_nonoverlapping(content.as_ptr(), libc::CMSG_DATA(entry), content.len());
        sending.end(answer(libc::sendmsg(slots::fd(on), &raw const message, flags.0)))
    }
}

/// Descriptors by SCM_RIGHTS.
pub(crate) fn pass(player: &Player, on: Handle, what: Handle, copies: usize, size: usize, flags: Flags) -> String {
    player.board.passed.store(End::code(slots::end(what)), SeqCst);
    let content: Vec<u8> = (0..copies.min(16)).flat_map(|_| slots::fd(what).to_ne_bytes()).collect();
    send_control(player, on, size, flags, libc::SCM_RIGHTS, &content)
}

/// Our credentials by SCM_CREDENTIALS.
pub(crate) fn vouch(player: &Player, on: Handle, size: usize, flags: Flags) -> String {
    // SAFETY: take nothing.
    let (pid, user, group) = unsafe { (libc::getpid(), libc::getuid(), libc::getgid()) };
    let mut content = Vec::new();
    content.extend_from_slice(&pid.to_ne_bytes());
    content.extend_from_slice(&user.to_ne_bytes());
    content.extend_from_slice(&group.to_ne_bytes());
    send_control(player, on, size, flags, libc::SCM_CREDENTIALS, &content)
}

/// recvmsg: bytes, flags, control messages, the sender's name.
pub(crate) fn recvmsg(player: &Player, on: Handle, parts: &Parts, flags: Flags, room: usize, keep: Handle) -> String {
    let mut vectors = player.memory.parts(&parts.0);
    let end = slots::end(on);
    sys::clear_parts(&vectors);
    let mut message = header(&mut vectors);
    let mut control: Control = [0; 64];
    // SAFETY: sockaddr_un is plain data for which zero is valid.
    let mut name: libc::sockaddr_un = unsafe { zeroed() };
    message.msg_name = (&raw mut name).cast::<c_void>();
    message.msg_namelen = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    if room > 0 {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = room.min(size_of::<Control>());
    }
    // SAFETY: the message points to live memory, or to addresses that the kernel refuses.
    let got = answer(unsafe { libc::recvmsg(slots::fd(on), &raw mut message, flags.0) });
    let failed = got.is_err();
    let text = sys::received_parts(player.board, end, got, flags.has(libc::MSG_PEEK), &vectors);
    if failed {
        return text;
    }
    let said = Flags(message.msg_flags).text();
    let controls = controls(player, &message, keep);
    format!("{text} flags {said} name {} control {}{controls}", message.msg_namelen, message.msg_controllen)
}

/// What the control messages are; descriptors are kept or closed.
fn controls(player: &Player, message: &libc::msghdr, keep: Handle) -> String {
    let mut text = String::new();
    // SAFETY: the kernel (or the library, which is tested here) filled the control buffer, of which msg_controllen bytes are good.
    unsafe {
        let mut entry = if message.msg_control.is_null() { null_mut() } else { libc::CMSG_FIRSTHDR(message) };
        while let Some(control) = entry.as_ref() {
            let bytes = control.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            match control.cmsg_type {
                libc::SCM_RIGHTS => {
                    let count = bytes / size_of::<c_int>();
                    let first = libc::CMSG_DATA(entry).cast::<c_int>();
                    for index in 0..count {
                        received_descriptor(player, first.add(index).read_unaligned(), keep);
                    }
                    text += &format!(" {count} descriptors");
                }
                libc::SCM_CREDENTIALS => {
                    let sender = libc::CMSG_DATA(entry).cast::<libc::ucred>().read_unaligned();
                    text += if sender.pid > 0 { " credentials" } else { " credentials of nobody" };
                }
                other => text += &format!(" control message {other}"),
            }
            entry = libc::CMSG_NXTHDR(message, entry);
        }
    }
    text
}

fn received_descriptor(player: &Player, fd: c_int, keep: Handle) {
    if slots::fd(keep) < 0 {
        slots::put(keep, fd, End::from_code(player.board.passed.load(SeqCst)));
    } else {
        // SAFETY: the descriptor was just received and is ours.
        unsafe { libc::close(fd) };
    }
}

/// `count` messages of `size` each.
fn headers(player: &Player, count: usize, size: usize) -> (Vec<libc::iovec>, Vec<libc::mmsghdr>) {
    let parts = vec![(size as u32, false); count];
    let mut vectors = player.memory.parts(&parts);
    let message = |vector: &mut libc::iovec| libc::mmsghdr { msg_hdr: header(std::slice::from_mut(vector)), msg_len: 0 };
    let messages = vectors.iter_mut().map(message).collect();
    (vectors, messages)
}

/// sendmmsg.
pub(crate) fn sendmmsg(player: &Player, on: Handle, count: usize, size: usize, flags: Flags) -> String {
    let (vectors, mut messages) = headers(player, count, size);
    let sending = Sending::begin_parts(player.board, on, &vectors);
    // SAFETY: the messages point to live vectors.
    let sent = narrow(unsafe { libc::sendmmsg(slots::fd(on), messages.as_mut_ptr(), count as u32, flags.0) });
    let lengths: Vec<_> = messages.iter().take(*sent.as_ref().unwrap_or(&0)).map(|message| message.msg_len as usize).collect();
    let pipe = sending.end(Ok(lengths.iter().sum()));
    format!("{} messages {pipe} {lengths:?}", told(sent)).replace(", ", ",")
}

/// recvmmsg.
pub(crate) fn recvmmsg(player: &Player, on: Handle, count: usize, size: usize, flags: Flags) -> String {
    let (vectors, mut messages) = headers(player, count, size);
    let end = slots::end(on);
    sys::clear_parts(&vectors);
    // SAFETY: the messages point to live vectors; no time-out is allowed.
    let got = narrow(unsafe { libc::recvmmsg(slots::fd(on), messages.as_mut_ptr(), count as u32, flags.0, null_mut()) });
    let Ok(got) = got else { return told(got) };
    let mut text = format!("{got} messages");
    for (message, vector) in messages.iter().zip(&vectors).take(got) {
        let one = sys::received_parts(player.board, end, Ok(message.msg_len as usize), flags.has(libc::MSG_PEEK), &[*vector]);
        text += &format!(" [{one} flags {}]", Flags(message.msg_hdr.msg_flags).text());
    }
    text
}
