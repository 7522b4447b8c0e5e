//! Which Unix sockets exist, by UNIX_DIAG (sock_diag(7)): name, type, inode and peer of each, joined by cookie.
//!
//! Dumps are merged: a socket that was born and died within a window stays known from the dump that saw it.
//! One dump covers one network namespace, so there is one netlink socket for each namespace that a process lives in.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, bail};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::TCP_LISTEN;
use netlink_packet_sock_diag::unix::nlas::UnixDiagName;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponse};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use serde::{Deserialize, Serialize};

use crate::names::SocketName;

/// Bytes offered for one datagram of a dump; the kernel sends at most 32 KiB at once.
const DUMP_BUFFER: usize = 64 * 1024;

/// A socket's type, socket(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// `SOCK_STREAM`: the only kind that can be accelerated.
    Stream,
    /// `SOCK_DGRAM`.
    Datagram,
    /// `SOCK_SEQPACKET`.
    Seqpacket,
    /// Gone before a dump could see it.
    Unknown,
}

impl Kind {
    fn from_raw(raw: u8) -> Self {
        match i32::from(raw) {
            libc::SOCK_STREAM => Self::Stream,
            libc::SOCK_DGRAM => Self::Datagram,
            libc::SOCK_SEQPACKET => Self::Seqpacket,
            _ => Self::Unknown,
        }
    }
}

/// One socket as the dumps showed it.
#[derive(Clone, Debug)]
pub(crate) struct SocketInfo {
    /// Inode of the socket, as `/proc/PID/fd` shows it.
    pub(crate) inode: u64,
    pub(crate) kind: Kind,
    pub(crate) listening: bool,
    /// Its own name; an accepted socket has its listener's.
    pub(crate) name: Option<SocketName>,
    /// Cookie of its peer, once both were seen in one dump.
    pub(crate) peer: Option<u64>,
    /// Bytes that it has not read yet, by the latest dump; `None` for a listening one.
    pub(crate) queued: Option<u32>,
}

/// The merged dumps.
pub(crate) struct Inventory {
    namespaces: Vec<(u64, Socket)>,
    sockets: HashMap<u64, SocketInfo>,
    by_inode: HashMap<u64, u64>,
    /// Namespaces that could not be entered: their sockets have no names.
    closed_namespaces: Vec<u64>,
    /// Processes whose namespace is known.
    placed: HashSet<i32>,
}

impl Inventory {
    /// Opens a netlink socket in this process's network namespace.
    ///
    /// # Errors
    /// Where the kernel has no NETLINK_SOCK_DIAG.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let own = std::fs::metadata("/proc/self/ns/net").context("cannot read /proc/self/ns/net: is /proc mounted?")?;
        let socket = open_netlink().context(
            "cannot open NETLINK_SOCK_DIAG: the kernel needs CONFIG_UNIX_DIAG (try `modprobe unix_diag`) and no seccomp filter in the way",
        )?;
        Ok(Self {
            namespaces: vec![(own.ino(), socket)],
            sockets: HashMap::new(),
            by_inode: HashMap::new(),
            closed_namespaces: Vec::new(),
            placed: HashSet::new(),
        })
    }

    /// Makes sure that the network namespaces of the processes `pids` are dumped too.
    pub(crate) fn add_namespaces_of(&mut self, pids: &[i32]) {
        for pid in pids {
            if !self.placed.contains(pid) {
                self.add_namespace_of(*pid);
            }
        }
        self.placed = pids.iter().copied().collect();
    }

    fn add_namespace_of(&mut self, pid: i32) {
        let path = format!("/proc/{pid}/ns/net");
        let Ok(file) = std::fs::File::open(&path) else { return }; // gone, or a kernel thread
        let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { return };
        if self.closed_namespaces.contains(&inode) || self.namespaces.iter().any(|(known, _)| *known == inode) {
            return;
        }
        // A thread of its own enters the namespace, opens the socket, which stays bound to it, and ends.
        let opened = std::thread::spawn(move || -> io::Result<Socket> {
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))?;
            open_netlink()
        });
        match opened.join() {
            Ok(Ok(socket)) => self.namespaces.push((inode, socket)),
            _ => self.closed_namespaces.push(inode),
        }
    }

    /// Network namespaces whose sockets stay nameless because they could not be entered.
    pub(crate) fn closed_namespaces(&self) -> usize {
        self.closed_namespaces.len()
    }

    /// Dumps every namespace once and merges what it finds.
    ///
    /// # Errors
    /// Where the kernel refuses or garbles a dump.
    pub(crate) fn refresh(&mut self) -> anyhow::Result<()> {
        for index in 0..self.namespaces.len() {
            let Some((_, socket)) = self.namespaces.get(index) else { break };
            let responses = dump(socket).context("UNIX_DIAG dump failed")?;
            self.merge(&responses);
        }
        Ok(())
    }

    fn merge(&mut self, responses: &[UnixResponse]) {
        let cookie_of = |response: &UnixResponse| u64::from_ne_bytes(response.header.cookie);
        let now: HashMap<u64, u64> =
            responses.iter().map(|response| (u64::from(response.header.inode), cookie_of(response))).collect();
        for response in responses {
            let cookie = cookie_of(response);
            let peer = response.peer().and_then(|inode| now.get(&u64::from(inode)).copied());
            let name = response.name().and_then(convert_name);
            let known = self.sockets.entry(cookie).or_insert_with(|| SocketInfo {
                inode: u64::from(response.header.inode),
                kind: Kind::from_raw(response.header.kind),
                listening: false,
                name: None,
                peer: None,
                queued: None,
            });
            known.queued = response.receive_queue_size();
            known.listening |= response.header.state == TCP_LISTEN;
            known.name = name.or_else(|| known.name.take());
            known.peer = peer.or(known.peer);
        }
        self.by_inode.extend(now.iter().filter(|(inode, _)| **inode != 0));
    }

    /// What is known of the socket with this cookie.
    pub(crate) fn socket(&self, cookie: u64) -> Option<&SocketInfo> {
        self.sockets.get(&cookie)
    }

    /// Cookie of the socket that had this inode last.
    pub(crate) fn cookie_of_inode(&self, inode: u64) -> Option<u64> {
        self.by_inode.get(&inode).copied()
    }

    /// Every socket ever seen, by cookie.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (u64, &SocketInfo)> {
        self.sockets.iter().map(|(cookie, info)| (*cookie, info))
    }
}

fn convert_name(name: &UnixDiagName) -> Option<SocketName> {
    match name {
        UnixDiagName::Pathname(path) if path.is_empty() => None,
        UnixDiagName::Pathname(path) => Some(SocketName::Path(path.as_bytes().to_vec())),
        // The crate hands an abstract name over with its leading NUL or without it, depending on its release.
        UnixDiagName::Abstract(name) => Some(SocketName::Abstract(name.strip_prefix(&[0]).unwrap_or(name).to_vec())),
    }
}

fn open_netlink() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// One UNIX_DIAG dump of the namespace that `socket` was opened in.
fn dump(socket: &Socket) -> anyhow::Result<Vec<UnixResponse>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(u32::MAX), // also unconnected datagram sockets
        inode: 0,
        show_flags: ShowFlags::NAME | ShowFlags::PEER | ShowFlags::RQLEN,
        cookie: [0xff; 8],
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::UnixRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(DUMP_BUFFER);
    loop {
        buffer.clear();
        let size = socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.get(..size).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).context("cannot decode the kernel's answer")?;
            let length = message.header.length as usize;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => bail!("the kernel refused it: {}", error.to_io()),
                NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(response)) => found.push(*response),
                _ => {}
            }
            // Messages are aligned to four bytes, netlink(7).
            rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn both_ends_of_an_abstract_connection_are_found_and_paired() {
        let text = format!("tssx-inventory-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&text).expect("valid name");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        let client = UnixStream::connect_addr(&address).expect("connect");
        let (server, _) = listener.accept().expect("accept");

        let mut inventory = Inventory::open().expect("netlink");
        inventory.refresh().expect("dump");
        let named: Vec<_> =
            inventory.sockets().filter(|(_, info)| info.name == Some(SocketName::Abstract(text.clone().into_bytes()))).collect();
        assert_eq!(named.len(), 2, "the listener and the accepted socket carry the name");
        assert_eq!(named.iter().filter(|(_, info)| info.listening).count(), 1);
        let (accepted, info) = named.iter().find(|(_, info)| !info.listening).expect("the accepted socket");
        assert_eq!(info.kind, Kind::Stream);
        let peer = info.peer.expect("paired");
        assert_eq!(inventory.socket(peer).and_then(|info| info.peer), Some(*accepted));
        drop((client, server));

        inventory.refresh().expect("dump");
        assert!(inventory.socket(*accepted_cookie(&inventory, &text)).is_some(), "a closed socket stays known");
    }

    fn accepted_cookie<'a>(inventory: &'a Inventory, text: &str) -> &'a u64 {
        inventory
            .sockets
            .iter()
            .find(|(_, info)| !info.listening && info.name == Some(SocketName::Abstract(text.as_bytes().to_vec())))
            .map(|(cookie, _)| cookie)
            .expect("still known")
    }
}
