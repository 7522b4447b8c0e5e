//! Which Unix sockets exist, by UNIX_DIAG (sock_diag(7)): name, type, inode and peer of each, joined by cookie.
//!
//! Dumps are merged: a socket that was born and died within a window stays known from the dump that saw it.
//! One dump covers one network namespace, so there is one netlink socket for each namespace that a process lives in.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use serde::{Deserialize, Serialize};

use tssx_ebpf::birth::{Birth, OF_PEER, OWN};

use crate::names::SocketName;
use crate::unix_diag::{self, Answer, Message};

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

    /// As in recordings.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Datagram => "datagram",
            Self::Seqpacket => "seqpacket",
            Self::Unknown => "unknown",
        }
    }
}

/// A socket file by device and inode, as stat(2) gives them, the inode's low 32 bits only: UNIX_DIAG has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    device: u64,
    inode: u32,
}

impl FileId {
    /// From the kernel's own number of a device, whose low 20 bits are the minor number.
    fn new(device: u32, inode: u64) -> Self {
        Self::from_parts(rustix::fs::makedev(device >> 20, device & 0xf_ffff), inode)
    }

    /// From what stat(2) gives.
    pub(crate) fn from_parts(device: u64, inode: u64) -> Self {
        Self { device, inode: (inode & u64::from(u32::MAX)) as u32 }
    }

    /// Whether a file with this device and inode is the one.
    pub(crate) fn is(self, device: u64, inode: u64) -> bool {
        self == Self::from_parts(device, inode)
    }

    /// Device and inode.
    pub(crate) fn parts(self) -> (u64, u32) {
        (self.device, self.inode)
    }
}

/// A name and the file that bears it, if it is a path.
pub(crate) type Named = (SocketName, Option<FileId>);

/// One socket as the dumps showed it.
#[derive(Clone, Debug)]
pub(crate) struct SocketInfo {
    /// Inode of the socket, as `/proc/PID/fd` shows it; 0 for one that no dump saw.
    pub(crate) inode: u64,
    pub(crate) kind: Kind,
    pub(crate) listening: bool,
    /// Its own name; an accepted socket has its listener's.
    pub(crate) name: Option<SocketName>,
    /// The file of that name.
    pub(crate) file: Option<FileId>,
    /// Cookie of its peer, once both were seen in one dump or the kernel programs told.
    pub(crate) peer: Option<u64>,
    /// Name of its peer, where the kernel programs told, or where the listener of that name has not accepted it yet.
    pub(crate) peer_name: Option<Named>,
    /// Inode of its network namespace.
    pub(crate) network: u64,
    /// Bytes that it could read when the window began; 0 for one that came later.
    pub(crate) queued_before: u64,
    /// Bytes that it can read, at the latest dump that saw it.
    queued: Option<u64>,
    /// Number of that dump; of a socket that no dump saw, of the one before it was told.
    seen: u64,
}

impl SocketInfo {
    fn new(inode: u64, kind: Kind, network: u64) -> Self {
        Self {
            inode,
            kind,
            listening: false,
            name: None,
            file: None,
            peer: None,
            peer_name: None,
            network,
            queued_before: 0,
            queued: None,
            seen: 0,
        }
    }
}

/// A socket that was in none of so many dumps is gone: one may have been told after the first had begun.
const DUMPS_TO_FORGET: u64 = 2;

/// The merged dumps.
pub(crate) struct Inventory {
    namespaces: Vec<(u64, Socket)>,
    sockets: HashMap<u64, SocketInfo>,
    by_inode: HashMap<u64, u64>,
    /// Namespaces that could not be entered: their sockets have no names.
    closed_namespaces: Vec<u64>,
    /// Processes whose namespace is known.
    placed: HashSet<i32>,
    /// How many dumps there were.
    dumps: u64,
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
            dumps: 0,
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
        self.dumps += 1;
        for index in 0..self.namespaces.len() {
            let Some((network, socket)) = self.namespaces.get(index) else { break };
            let answers = dump(socket).context("UNIX_DIAG dump failed")?;
            self.merge(*network, answers);
        }
        Ok(())
    }

    /// Begins the window: what lies in the queues now was sent before it.
    pub(crate) fn begin(&mut self) {
        for info in self.sockets.values_mut() {
            info.queued_before = info.queued.unwrap_or(0);
        }
    }

    fn merge(&mut self, network: u64, answers: Vec<Answer>) {
        let now: HashMap<u32, u64> = answers.iter().map(|answer| (answer.inode, answer.cookie)).collect();
        let mut waiting = Vec::new();
        for answer in answers {
            let inode = u64::from(answer.inode);
            let fresh = || SocketInfo::new(inode, Kind::from_raw(answer.kind), network);
            let known = self.sockets.entry(answer.cookie).or_insert_with(fresh);
            known.inode = inode;
            known.kind = Kind::from_raw(answer.kind);
            known.listening |= answer.listening;
            known.name = answer.name.as_deref().and_then(convert_name).or_else(|| known.name.take());
            known.file = answer.file.map(|(inode, device)| FileId::new(device, u64::from(inode))).or(known.file);
            known.peer = answer.peer.and_then(|inode| now.get(&inode).copied()).or(known.peer);
            known.queued = answer.queued.map(u64::from);
            known.seen = self.dumps;
            if let Some(name) = &known.name {
                let clients = answer.waiting.iter().filter_map(|inode| now.get(inode));
                waiting.extend(clients.map(|client| (*client, (name.clone(), known.file))));
            }
        }
        for (client, name) in waiting {
            if let Some(client) = self.sockets.get_mut(&client) {
                client.peer_name.get_or_insert(name);
            }
        }
        self.by_inode.extend(now.iter().map(|(inode, cookie)| (u64::from(*inode), *cookie)));
    }

    /// Merges what the kernel programs told of a socket.
    pub(crate) fn add_birth(&mut self, birth: &Birth) {
        let kind = Kind::from_raw(u8::try_from(birth.kind).unwrap_or(0));
        let fresh = || SocketInfo { seen: self.dumps, ..SocketInfo::new(0, kind, u64::from(birth.network)) };
        let known = self.sockets.entry(birth.cookie).or_insert_with(fresh);
        known.peer = known.peer.or((birth.peer != 0).then_some(birth.peer));
        let Some(name) = birth.name.get(..usize::from(birth.length)).and_then(convert_name) else { return };
        let file = (birth.inode != 0).then(|| FileId::new(birth.device, birth.inode));
        match birth.whose {
            OWN if known.name.is_none() => (known.name, known.file) = (Some(name), file),
            OF_PEER => known.peer_name = Some((name, file)),
            _ => {}
        }
    }

    /// Bytes that the socket could read when the latest dump saw it; `None` if it is gone.
    pub(crate) fn queued(&self, cookie: u64) -> Option<u64> {
        self.sockets.get(&cookie).filter(|info| info.seen == self.dumps).and_then(|info| info.queued)
    }

    /// Whether the latest dump saw this socket, or it was told of since.
    pub(crate) fn is_there(&self, cookie: u64) -> bool {
        self.sockets.get(&cookie).is_some_and(|info| info.seen == self.dumps)
    }

    /// The cookies of sockets that are gone, and so are their peers: those that were in none of the last dumps, as far as these show
    /// their namespace.
    pub(crate) fn gone(&self) -> HashSet<u64> {
        let sees_all = self.closed_namespaces.is_empty();
        let is_gone = |info: &SocketInfo| info.seen + DUMPS_TO_FORGET <= self.dumps && (info.inode != 0 || sees_all);
        let has_gone = |cookie: u64| self.sockets.get(&cookie).is_none_or(is_gone);
        let gone = self.sockets.iter().filter(|(_, info)| is_gone(info) && info.peer.is_none_or(has_gone));
        gone.map(|(cookie, _)| *cookie).collect()
    }

    /// Forgets these sockets.
    pub(crate) fn forget(&mut self, cookies: &HashSet<u64>) {
        self.sockets.retain(|cookie, _| !cookies.contains(cookie));
        self.by_inode.retain(|_, cookie| !cookies.contains(cookie));
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

/// A name as the kernel keeps it: behind a path is a NUL, in an abstract name every byte counts.
fn convert_name(sun_path: &[u8]) -> Option<SocketName> {
    match sun_path.first()? {
        0 => SocketName::from_sun_path(sun_path),
        _ => SocketName::from_sun_path(sun_path.split(|byte| *byte == 0).next()?),
    }
}

fn open_netlink() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// One UNIX_DIAG dump of the namespace that `socket` was opened in.
fn dump(socket: &Socket) -> anyhow::Result<Vec<Answer>> {
    socket.send(&unix_diag::request(), 0)?;
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(DUMP_BUFFER);
    loop {
        buffer.clear();
        let size = socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.get(..size).unwrap_or_default();
        while let Some(message) = unix_diag::next(&mut rest)? {
            match message {
                Message::Done => return Ok(found),
                Message::Socket(answer) => found.push(*answer),
                Message::Other => {}
            }
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
        let accepted = *accepted_cookie(&inventory, &text);
        assert!(!inventory.gone().contains(&accepted), "it may be in the next dump");
        inventory.refresh().expect("dump");
        let gone = inventory.gone();
        assert!(gone.contains(&accepted) && inventory.socket(accepted).is_some(), "a closed socket stays known");
        inventory.forget(&gone);
        assert!(inventory.socket(accepted).is_none(), "until it is to be forgotten");
        let listener = |(_, info): &(u64, &SocketInfo)| info.name == Some(SocketName::Abstract(text.clone().into_bytes()));
        assert!(inventory.sockets().any(|socket| listener(&socket)), "what is open stays");
    }

    #[test]
    fn a_client_that_waits_to_be_accepted_is_known_by_its_listener() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("waiting.sock");
        let _listener = UnixListener::bind(&path).expect("bound");
        let client = UnixStream::connect(&path).expect("connected");
        let metadata = std::fs::metadata(&path).expect("there");
        let cookie = rustix::net::sockopt::socket_cookie(&client).expect("a cookie");

        let mut inventory = Inventory::open().expect("netlink");
        inventory.refresh().expect("dump");
        let name = SocketName::Path(path.into_os_string().into_encoded_bytes());
        let file = FileId::from_parts(metadata.dev(), metadata.ino());
        assert_eq!(inventory.socket(cookie).and_then(|info| info.peer_name.clone()), Some((name.clone(), Some(file))));
        let listener = inventory.sockets().find(|(_, info)| info.listening && info.name.as_ref() == Some(&name));
        assert_eq!(listener.and_then(|(cookie, _)| inventory.queued(cookie)), Some(1));
    }

    #[test]
    fn no_name_makes_it_panic_and_a_path_ends_before_its_nul() {
        assert_eq!(convert_name(b"/run/x\0y"), Some(SocketName::Path(b"/run/x".to_vec())));
        for good in [&b"/run/a b\xff\0\0"[..], b"\0a\0b\xff"] {
            crate::mutations::each(good, 10_000, |bytes| match convert_name(bytes) {
                Some(SocketName::Path(path)) => assert!(bytes.starts_with(&path) && !path.is_empty() && !path.contains(&0)),
                Some(SocketName::Abstract(name)) => assert_eq!(bytes, [b"\0", name.as_slice()].concat()),
                None => assert!(bytes.is_empty()),
            });
        }
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
