//! Calls that move messages: several at once, at an offset, through glibc's checked names, and with control data beside
//! the bytes (descriptors and credentials).
#![allow(unsafe_code, reason = "calls the C functions under test directly; every pointer comes from a live slice or local")]

use std::mem::{size_of, zeroed};
use std::time::Duration;

use libc::{c_char, c_int, c_void};

use crate::sys::{self, Answer, answer, narrow, vector};

unsafe extern "C" {
    // What -D_FORTIFY_SOURCE makes of read, recv, recvfrom and poll.
    fn __read_chk(fd: c_int, buffer: *mut c_void, count: usize, room: usize) -> isize;
    fn __recv_chk(fd: c_int, buffer: *mut c_void, count: usize, room: usize, flags: c_int) -> isize;
    fn __recvfrom_chk(
        fd: c_int,
        buffer: *mut c_void,
        count: usize,
        room: usize,
        flags: c_int,
        address: *mut libc::sockaddr,
        length: *mut libc::socklen_t,
    ) -> isize;
    fn __poll_chk(entries: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int, room: usize) -> c_int;
}

/// What a `recvmmsg` gave: its answer, and each message's bytes.
pub(crate) fn receive_batch(fd: i32, sizes: &[usize], flags: c_int, limit: Option<Duration>) -> (Answer, Vec<String>) {
    let mut buffers: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
    let mut vectors: Vec<_> = buffers.iter_mut().map(|buffer| vector(buffer)).collect();
    let mut headers: Vec<libc::mmsghdr> = vectors.iter_mut().map(header_of).collect();
    let mut left = limit.map(|limit| libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
    let timeout = left.as_mut().map_or(std::ptr::null_mut(), |left| &raw mut *left);
    // SAFETY: every header points to a live vector of a live mutable buffer; the timeout is null or live.
    let got = narrow(unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, flags, timeout) });
    let texts = headers.iter().zip(&buffers).take(got.unwrap_or(0));
    let texts = texts.map(|(header, buffer)| String::from_utf8_lossy(&buffer[..header.msg_len as usize]).into_owned());
    (got, texts.collect())
}

/// Sends each message by one `sendmmsg`; `None` is one whose bytes lie nowhere. Returns also each message's length.
pub(crate) fn send_batch(fd: i32, messages: &[Option<&[u8]>], flags: c_int) -> (Answer, Vec<u32>) {
    let nowhere = libc::iovec { iov_base: std::ptr::without_provenance_mut(8), iov_len: 4 };
    let mut vectors: Vec<_> = messages.iter().map(|message| message.map_or(nowhere, vector)).collect();
    let mut headers: Vec<libc::mmsghdr> = vectors.iter_mut().map(header_of).collect();
    // SAFETY: every header points to a live vector of a live slice, or of an address for which the kernel answers EFAULT.
    let sent = narrow(unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, flags) });
    (sent, headers.iter().map(|header| header.msg_len).collect())
}

fn header_of(vector: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain data for which zero is valid.
    let mut header: libc::mmsghdr = unsafe { zeroed() };
    header.msg_hdr.msg_iov = &raw mut *vector;
    header.msg_hdr.msg_iovlen = 1;
    header
}

/// `preadv2` of one part.
pub(crate) fn preadv2(fd: i32, into: &mut [u8], offset: i64, flags: c_int) -> Answer {
    let part = vector(into);
    // SAFETY: one live vector of a live mutable slice.
    answer(unsafe { libc::preadv2(fd, &raw const part, 1, offset, flags) })
}

/// `pwritev2` of one part.
pub(crate) fn pwritev2(fd: i32, from: &[u8], offset: i64, flags: c_int) -> Answer {
    let part = vector(from);
    // SAFETY: one live vector of a live slice.
    answer(unsafe { libc::pwritev2(fd, &raw const part, 1, offset, flags) })
}

/// What each positioned call says: pread, pwrite, preadv, pwritev, and lseek from the start, here and the end.
pub(crate) fn positioned(fd: i32) -> [Answer; 7] {
    let mut byte = [b'p'];
    let part = vector(&byte);
    // SAFETY: one live byte, through one live vector.
    unsafe {
        [
            answer(libc::pread(fd, byte.as_mut_ptr().cast(), 1, 0)),
            answer(libc::pwrite(fd, byte.as_ptr().cast(), 1, 0)),
            answer(libc::preadv(fd, &raw const part, 1, 0)),
            answer(libc::pwritev(fd, &raw const part, 1, 0)),
            answer(libc::lseek(fd, 3, libc::SEEK_SET) as isize),
            answer(libc::lseek(fd, 0, libc::SEEK_CUR) as isize),
            answer(libc::lseek(fd, 0, libc::SEEK_END) as isize),
        ]
    }
}

/// `__read_chk`.
pub(crate) fn read_checked(fd: i32, into: &mut [u8]) -> Answer {
    // SAFETY: the pointer and both lengths are those of a live mutable slice.
    answer(unsafe { __read_chk(fd, into.as_mut_ptr().cast(), into.len(), into.len()) })
}

/// `__recv_chk`.
pub(crate) fn recv_checked(fd: i32, into: &mut [u8], flags: c_int) -> Answer {
    // SAFETY: the pointer and both lengths are those of a live mutable slice.
    answer(unsafe { __recv_chk(fd, into.as_mut_ptr().cast(), into.len(), into.len(), flags) })
}

/// `__recvfrom_chk` without an address.
pub(crate) fn recvfrom_checked(fd: i32, into: &mut [u8], flags: c_int) -> Answer {
    let none = std::ptr::null_mut();
    // SAFETY: the pointer and both lengths are those of a live mutable slice; a null address is allowed.
    answer(unsafe { __recvfrom_chk(fd, into.as_mut_ptr().cast(), into.len(), into.len(), flags, none, std::ptr::null_mut()) })
}

/// `__poll_chk` of one descriptor.
pub(crate) fn poll_checked(fd: i32, events: i16, timeout: Duration) -> (Answer, i16) {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one live entry and its size.
    let returned = unsafe { __poll_chk(&raw mut entry, 1, sys::milliseconds(timeout), size_of::<libc::pollfd>()) };
    (narrow(returned), entry.revents)
}

/// The peer's name as `recvfrom` gives it: the answer, the length it says, and the path.
pub(crate) fn recvfrom_named(fd: i32, into: &mut [u8], room: usize) -> (Answer, u32, String) {
    // SAFETY: sockaddr_un is plain data for which zero is valid; the pointers are those of live locals.
    unsafe {
        let mut address: libc::sockaddr_un = zeroed();
        let mut length = room.min(size_of::<libc::sockaddr_un>()) as libc::socklen_t;
        let at = (&raw mut address).cast();
        let got = answer(libc::recvfrom(fd, into.as_mut_ptr().cast(), into.len(), 0, at, &raw mut length));
        (got, length, text_of(&address.sun_path))
    }
}

fn text_of(path: &[c_char]) -> String {
    path.iter().take_while(|letter| **letter != 0).map(|letter| char::from(letter.to_ne_bytes()[0])).collect()
}

/// More control data than any case sends.
pub(crate) const ROOM: usize = 400;

/// What goes beside the bytes of one message.
pub(crate) enum Beside<'a> {
    /// SCM_RIGHTS with these descriptors.
    Rights(&'a [i32]),
    /// SCM_CREDENTIALS: process, user and group.
    Credentials(i32, u32, u32),
    /// A control message of no kind that exists.
    Unknown,
}

impl Beside<'_> {
    fn kind_and_bytes(&self) -> (c_int, Vec<u8>) {
        match self {
            Self::Rights(all) => (libc::SCM_RIGHTS, all.iter().flat_map(|fd| fd.to_ne_bytes()).collect()),
            Self::Credentials(pid, uid, gid) => {
                (libc::SCM_CREDENTIALS, [pid.to_ne_bytes(), uid.to_ne_bytes(), gid.to_ne_bytes()].concat())
            }
            Self::Unknown => (77, vec![0; 4]),
        }
    }
}

/// `sendmsg` with control messages.
pub(crate) fn send_beside(fd: i32, from: &[u8], beside: &[Beside<'_>], flags: c_int) -> Answer {
    let mut control: Vec<u64> = Vec::new();
    for one in beside {
        let (kind, bytes) = one.kind_and_bytes();
        let header = size_of::<libc::cmsghdr>();
        let mut message = vec![0_u8; header];
        message[..8].copy_from_slice(&(header + bytes.len()).to_ne_bytes());
        message[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        message[12..16].copy_from_slice(&kind.to_ne_bytes());
        message.extend(bytes);
        message.resize(message.len().next_multiple_of(8), 0);
        control.extend(message.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))));
    }
    let mut part = vector(from);
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = usize::from(!from.is_empty());
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control.as_slice());
    // SAFETY: the message points to a live vector of a live slice, and to a live control buffer of that length.
    answer(unsafe { libc::sendmsg(fd, &raw const message, flags) })
}

/// What a `recvmsg` with room for control messages gave.
pub(crate) struct Received {
    /// Its answer.
    pub answer: Answer,
    /// The bytes.
    pub text: String,
    /// The message's flags, without MSG_CMSG_CLOEXEC, which is only the call's own.
    pub flags: c_int,
    /// Length of the control data.
    pub control: usize,
    /// The descriptors of all SCM_RIGHTS.
    pub rights: Vec<i32>,
    /// The credentials of all SCM_CREDENTIALS: process, user, group.
    pub credentials: Vec<[i32; 3]>,
}

impl Received {
    /// What a transcript may show: numbers of descriptors and processes may differ.
    pub(crate) fn shown(&self) -> impl std::fmt::Debug + use<> {
        (self.answer, self.text.clone(), self.flags, self.control, self.rights.len(), self.credentials.len())
    }
}

/// `recvmsg` of up to `size` bytes and `room` bytes of control data.
pub(crate) fn receive_beside(fd: i32, size: usize, room: usize, flags: c_int) -> Received {
    let (mut into, mut control) = (vec![0; size], vec![0_u64; room.div_ceil(8)]);
    let mut part = vector(&into);
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = if room == 0 { std::ptr::null_mut() } else { control.as_mut_ptr().cast() };
    message.msg_controllen = room;
    // SAFETY: the message points to a live vector of a live mutable slice, and to a control buffer of at least `room` bytes.
    let got = answer(unsafe { libc::recvmsg(fd, &raw mut message, flags) });
    into.truncate(got.unwrap_or(0));
    let mut received = Received {
        answer: got,
        text: String::from_utf8_lossy(&into).into_owned(),
        flags: message.msg_flags & !libc::MSG_CMSG_CLOEXEC,
        control: message.msg_controllen,
        rights: Vec::new(),
        credentials: Vec::new(),
    };
    if got.is_ok() {
        let words: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).take(message.msg_controllen).collect();
        sort_out(&words, &mut received);
    }
    received
}

/// Splits control data into what [`Received`] tells apart.
fn sort_out(mut control: &[u8], received: &mut Received) {
    let int = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    while let Some((header, rest)) = control.split_at_checked(size_of::<libc::cmsghdr>()) {
        let length = usize::from_ne_bytes(header[..8].try_into().expect("eight bytes")) - header.len();
        let ints: Vec<i32> = rest[..length.min(rest.len())].chunks_exact(4).map(int).collect();
        match (int(&header[8..12]), int(&header[12..])) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => received.rights.extend(ints),
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => received.credentials.push(ints.try_into().expect("three ints")),
            _ => {}
        }
        control = rest.get(length.next_multiple_of(8)..).unwrap_or(&[]);
    }
}
