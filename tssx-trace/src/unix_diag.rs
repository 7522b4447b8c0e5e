//! UNIX_DIAG on the wire (sock_diag(7), `linux/unix_diag.h`): the request for a dump, and what the kernel answers.
//!
//! A name is bytes here, as bind(2) took them: a path need not be UTF-8 and an abstract name may hold NULs. The decoder
//! takes any bytes: it gives an error for what is no answer, and it ends.

use std::io;

/// Bytes of `struct nlmsghdr`, netlink(7), and of `struct unix_diag_msg`.
const HEADER: usize = 16;
const SOCKET_HEADER: usize = 16;
/// Netlink messages and attributes are aligned to four bytes.
const ALIGNMENT: usize = 4;
/// `SOCK_DIAG_BY_FAMILY`: the type of a request and of each answer to it.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `UDIAG_SHOW_NAME`, `_VFS`, `_PEER`, `_ICONS` and `_RQLEN`.
const SHOW: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10;
/// `TCP_LISTEN`: the state of a listening socket, Unix sockets' too.
const LISTENING: u8 = 10;

/// One socket of a dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) cookie: u64,
    /// `SOCK_STREAM` and so on.
    pub(crate) kind: u8,
    pub(crate) listening: bool,
    /// Inode of the socket, 0 if no descriptor stands for it yet.
    pub(crate) inode: u32,
    /// `sun_path` as the kernel keeps it: a NUL first for an abstract name.
    pub(crate) name: Option<Vec<u8>>,
    /// Inode, its low 32 bits, and device of the socket file.
    pub(crate) file: Option<(u32, u32)>,
    /// Inode of the peer.
    pub(crate) peer: Option<u32>,
    /// Of a listening socket: inodes of the clients that it has not accepted. Their peers are in no dump.
    pub(crate) waiting: Vec<u32>,
    /// Of a connected stream socket: bytes that it can read. Of a listening one: connections to accept.
    pub(crate) queued: Option<u32>,
}

/// What one message of a dump is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Socket(Box<Answer>),
    /// The dump is complete.
    Done,
    /// Something that is not about a Unix socket.
    Other,
}

/// Why bytes are no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("the kernel's answer has a message of {0} bytes where {1} are left")]
    Length(usize, usize),
    #[error("the kernel refused it: {0}")]
    Refused(io::Error),
}

/// The request for every Unix socket of the network namespace that the netlink socket was opened in.
pub(crate) fn request() -> Vec<u8> {
    let length: u32 = 40;
    let family = u8::try_from(libc::AF_UNIX).unwrap_or_default();
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port: one request at a time on a socket of our own
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // all states: also datagram sockets without a peer
    bytes.extend(0_u32.to_ne_bytes()); // no single inode
    bytes.extend(SHOW.to_ne_bytes());
    bytes.extend([0xff; 8]); // no single cookie
    bytes
}

/// Takes the first message off `rest`; `None` at its end.
///
/// # Errors
/// [`DecodeError`] where the bytes are no message, or the message is the kernel's refusal.
pub(crate) fn next(rest: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let length = u32_at(rest, 0).map_or(0, |length| length as usize);
    let (Some(message), Some(kind)) = (rest.get(HEADER..length), u16_at(rest, 4)) else {
        return Err(DecodeError::Length(length, rest.len()));
    };
    *rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    match kind {
        DONE => match i32_at(message, 0) {
            Some(code) if code < 0 => Err(refused(code)),
            _ => Ok(Some(Message::Done)),
        },
        ERROR => Err(refused(i32_at(message, 0).unwrap_or_default())),
        SOCK_DIAG_BY_FAMILY if message.first().copied().map(i32::from) == Some(libc::AF_UNIX) => {
            let answer = socket(message).ok_or(DecodeError::Length(length, length))?;
            Ok(Some(Message::Socket(Box::new(answer))))
        }
        _ => Ok(Some(Message::Other)),
    }
}

fn refused(code: i32) -> DecodeError {
    DecodeError::Refused(io::Error::from_raw_os_error(code.saturating_neg()))
}

/// A `unix_diag_msg` and its attributes.
fn socket(message: &[u8]) -> Option<Answer> {
    let [_family, kind, state, ..] = *message else { return None };
    let mut answer = Answer {
        cookie: u64::from(u32_at(message, 8)?) | u64::from(u32_at(message, 12)?) << 32,
        kind,
        listening: state == LISTENING,
        inode: u32_at(message, 4)?,
        ..Answer::default()
    };
    let mut rest = message.get(SOCKET_HEADER..)?;
    // `struct rtattr`: length with its own four bytes, type, value.
    while let (Some(length), Some(attribute)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let value = rest.get(4..usize::from(length))?;
        match attribute {
            0 if !value.is_empty() => answer.name = Some(value.to_vec()),
            1 => answer.file = Some((u32_at(value, 0)?, u32_at(value, 4)?)),
            2 => answer.peer = Some(u32_at(value, 0)?),
            3 => answer.waiting = value.chunks_exact(4).filter_map(|inode| u32_at(inode, 0)).collect(),
            4 => answer.queued = Some(u32_at(value, 0)?),
            _ => {}
        }
        rest = rest.get(usize::from(length).next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Some(answer)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutations;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + body.len()).expect("short").to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    /// A dump of two sockets and its end.
    fn sample() -> Vec<u8> {
        let mut listener = vec![1, 1, LISTENING, 0];
        listener.extend(77_u32.to_ne_bytes());
        listener.extend([5, 0, 0, 0, 1, 0, 0, 0]);
        listener.extend(attribute(0, b"\0a\0b\xff"));
        listener.extend(attribute(3, &[[7, 0, 0, 0], [8, 0, 0, 0]].concat()));
        listener.extend(attribute(4, &[[2, 0, 0, 0], [128, 0, 0, 0]].concat()));
        let mut stream = vec![1, 1, 1, 0];
        stream.extend(78_u32.to_ne_bytes());
        stream.extend([6, 0, 0, 0, 0, 0, 0, 0]);
        stream.extend(attribute(0, b"/x/\xfe\0"));
        stream.extend(attribute(1, &[[9, 0, 0, 0], [2, 0, 0x10, 0]].concat()));
        stream.extend(attribute(2, &77_u32.to_ne_bytes()));
        stream.extend(attribute(4, &[[3, 0, 0, 0], [0; 4]].concat()));
        [message(SOCK_DIAG_BY_FAMILY, &listener), message(SOCK_DIAG_BY_FAMILY, &stream), message(DONE, &[0; 4])].concat()
    }

    #[test]
    fn an_answer_is_read_with_every_attribute_and_names_are_bytes() {
        let bytes = sample();
        let mut rest = bytes.as_slice();
        let Ok(Some(Message::Socket(listener))) = next(&mut rest) else { panic!("no socket") };
        assert_eq!((listener.cookie, listener.inode, listener.listening), (5 | 1 << 32, 77, true));
        assert_eq!((listener.name.as_deref(), listener.queued), (Some(b"\0a\0b\xff".as_slice()), Some(2)));
        assert_eq!(listener.waiting, [7, 8]);
        let Ok(Some(Message::Socket(stream))) = next(&mut rest) else { panic!("no socket") };
        assert_eq!((stream.file, stream.peer, stream.queued), (Some((9, 0x10_0002)), Some(77), Some(3)));
        assert_eq!(stream.name.as_deref(), Some(b"/x/\xfe\0".as_slice()));
        assert_eq!(next(&mut rest).expect("the end"), Some(Message::Done));
        assert_eq!(next(&mut rest).expect("nothing"), None);
        let refusal = message(ERROR, &(-libc::ENOENT).to_ne_bytes());
        assert!(
            matches!(next(&mut refusal.as_slice()), Err(DecodeError::Refused(error)) if error.kind() == io::ErrorKind::NotFound)
        );
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        mutations::each(&sample(), 50_000, |bytes| {
            let mut rest = bytes;
            let mut messages = 0;
            while let Ok(Some(_)) = next(&mut rest) {
                messages += 1;
                assert!(messages <= bytes.len() / HEADER + 1, "more messages than bytes for them");
            }
        });
    }
}
