//! Putting the sources together: kernel counters, socket lists, ledgers and /proc become connections and services.
//!
//! The socket's cookie is the key everywhere. A connection is two sockets; a service is every connection of one name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::inventory::{FileId, Inventory, Kind};
use crate::ledgers::{LedgerEnd, Ledgers};
use crate::names::SocketName;
use crate::places::absolute_path;
use crate::recording::ProcessRecord;
use crate::watch::Observation;

/// Calls and bytes, as the kernel counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) tx_calls: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_calls: u64,
    pub(crate) rx_bytes: u64,
}

/// One socket of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    pub(crate) cookie: u64,
    /// Everything that went through the kernel, doorbells included.
    pub(crate) kernel: Totals,
    /// Processes that called, and those that only hold the descriptor.
    pub(crate) pids: BTreeSet<u32>,
    /// Those of them that called.
    pub(crate) callers: BTreeSet<u32>,
    /// What the end's own ledger says, if the end runs with the library and selected the connection.
    pub(crate) ledger: Option<LedgerEnd>,
}

impl End {
    /// Calls and bytes of the library itself that this end sent; `None` if it has no ledger.
    pub(crate) fn doorbell_tx(&self) -> Option<(u64, u64)> {
        self.ledger.as_ref().map(|_| self.grew(|slot| slot.doorbell_tx_calls, |slot| slot.doorbell_tx_bytes))
    }

    /// The same for what this end received.
    pub(crate) fn doorbell_rx(&self) -> Option<(u64, u64)> {
        self.ledger.as_ref().map(|_| self.grew(|slot| slot.doorbell_rx_calls, |slot| slot.doorbell_rx_bytes))
    }

    /// Calls and bytes of the program that this end sent through the kernel socket, as the library counted them; `None` if it
    /// has no ledger.
    pub(crate) fn library_tx(&self) -> Option<(u64, u64)> {
        self.ledger.as_ref().map(|_| self.grew(|slot| slot.kernel_tx_calls, |slot| slot.kernel_tx_bytes))
    }

    /// The same for what this end received.
    pub(crate) fn library_rx(&self) -> Option<(u64, u64)> {
        self.ledger.as_ref().map(|_| self.grew(|slot| slot.kernel_rx_calls, |slot| slot.kernel_rx_bytes))
    }

    /// Times that this end's program went to sleep because a ring was empty or full.
    pub(crate) fn sleeps(&self) -> u64 {
        self.ledger.as_ref().map_or(0, |end| end.grew(|slot| slot.sleeps))
    }

    /// Times that it found bytes or room while it spun instead.
    pub(crate) fn spin_hits(&self) -> u64 {
        self.ledger.as_ref().map_or(0, |end| end.grew(|slot| slot.spin_hits))
    }

    /// Times that it found its ring full.
    pub(crate) fn ring_full(&self) -> u64 {
        self.ledger.as_ref().map_or(0, |end| end.grew(|slot| slot.ring_full))
    }

    /// Calls and bytes that this end put into a ring; `None` if it has no ledger.
    pub(crate) fn ring_tx(&self) -> Option<(u64, u64)> {
        self.ledger.as_ref().map(|_| self.grew(|slot| slot.ring_tx_calls, |slot| slot.ring_tx_bytes))
    }

    /// Calls and bytes that this end took out of a ring; `None` if it has no ledger.
    pub(crate) fn ring_rx(&self) -> Option<(u64, u64)> {
        self.ledger.as_ref().map(|_| self.grew(|slot| slot.ring_rx_calls, |slot| slot.ring_rx_bytes))
    }

    fn grew(&self, calls: fn(&Slot) -> u64, bytes: fn(&Slot) -> u64) -> (u64, u64) {
        self.ledger.as_ref().map_or((0, 0), |end| (end.grew(calls), end.grew(bytes)))
    }
}

type Slot = tssx_core::ledger::view::SlotSnapshot;

/// What makes two sockets of one name different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The file of a path: another file may get the same path later, or elsewhere.
    File(FileId),
    /// The network namespace of an abstract name, by inode.
    Network(u64),
}

impl Place {
    fn new(name: &SocketName, file: Option<FileId>, network: u64) -> Option<Self> {
        match name {
            SocketName::Path(_) => file.map(Self::File),
            SocketName::Abstract(_) => Some(Self::Network(network)),
        }
    }
}

/// Two ends; the second is missing when its socket was never seen.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) name: Option<SocketName>,
    /// Where that name is.
    pub(crate) place: Option<Place>,
    pub(crate) kind: Kind,
    /// The end that carries the name, that is, the accepting one. Of a nameless pair: either.
    pub(crate) server: End,
    pub(crate) client: End,
}

/// Calls and bytes of the program, without the library's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Through the kernel socket.
    pub(crate) kernel_calls: u64,
    pub(crate) kernel_bytes: u64,
    /// Through a ring.
    pub(crate) ring_calls: u64,
    pub(crate) ring_bytes: u64,
}

impl Flow {
    pub(crate) fn calls(&self) -> u64 {
        self.kernel_calls.saturating_add(self.ring_calls)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.kernel_bytes.saturating_add(self.ring_bytes)
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.kernel_calls = self.kernel_calls.saturating_add(other.kernel_calls);
        self.kernel_bytes = self.kernel_bytes.saturating_add(other.kernel_bytes);
        self.ring_calls = self.ring_calls.saturating_add(other.ring_calls);
        self.ring_bytes = self.ring_bytes.saturating_add(other.ring_bytes);
    }
}

/// What `from` sent to `to`. The sender's own ledger is believed first; without one, the receiver's tells.
pub(crate) fn sent(from: &End, to: &End) -> Flow {
    let (ring_calls, ring_bytes) = from.ring_tx().or_else(|| to.ring_rx()).unwrap_or_default();
    let (own_calls, own_bytes) = from.doorbell_tx().or_else(|| to.doorbell_rx()).unwrap_or_default();
    let kernel_calls = from.kernel.tx_calls.saturating_sub(own_calls);
    let kernel_bytes = from.kernel.tx_bytes.saturating_sub(own_bytes);
    Flow { kernel_calls, kernel_bytes, ring_calls, ring_bytes }
}

/// What `to` received of it.
pub(crate) fn received(from: &End, to: &End) -> Flow {
    let (ring_calls, ring_bytes) = to.ring_rx().or_else(|| from.ring_tx()).unwrap_or_default();
    let (own_calls, own_bytes) = to.doorbell_rx().or_else(|| from.doorbell_tx()).unwrap_or_default();
    let kernel_calls = to.kernel.rx_calls.saturating_sub(own_calls);
    let kernel_bytes = to.kernel.rx_bytes.saturating_sub(own_bytes);
    Flow { kernel_calls, kernel_bytes, ring_calls, ring_bytes }
}

impl Connection {
    /// Both directions together.
    pub(crate) fn total(&self) -> Flow {
        let mut total = sent(&self.client, &self.server);
        total.add(sent(&self.server, &self.client));
        total
    }

    /// The ends in a fixed order.
    pub(crate) fn ends(&self) -> [&End; 2] {
        [&self.server, &self.client]
    }

    /// Whether a library at either end selected it.
    pub(crate) fn is_selected(&self) -> bool {
        self.ends().iter().any(|end| end.ledger.is_some())
    }

    /// Whether any of its bytes moved through a ring, ever.
    pub(crate) fn is_accelerated(&self) -> bool {
        self.ends().iter().any(|end| end.ledger.as_ref().is_some_and(LedgerEnd::is_accelerated))
    }
}

/// A listening socket and who holds it.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    pub(crate) name: SocketName,
    pub(crate) place: Option<Place>,
    pub(crate) kind: Kind,
    pub(crate) pids: BTreeSet<u32>,
    /// Connections that waited to be accepted when the window ended; `None` if the socket was gone.
    pub(crate) waiting: Option<u64>,
}

/// Every connection that existed within the window, but the tracer's own pairs.
pub(crate) fn connections(seen: &Observation) -> Vec<Connection> {
    let mut ends = ends(seen);
    let peers = peers(seen);
    let listening: HashSet<SocketName> = listeners(seen).into_iter().map(|listener| listener.name).collect();
    let mut cookies: Vec<u64> = ends.keys().copied().collect();
    cookies.sort_unstable();
    let mut found = Vec::new();
    for cookie in cookies {
        let Some(one) = ends.remove(&cookie) else { continue }; // taken as its peer's peer
        // A peer that made no call and that no list showed is known by its cookie only.
        let nameless = |peer: &u64| End { cookie: *peer, ..End::default() };
        let other = peers.get(&cookie).map(|peer| ends.remove(peer).unwrap_or_else(|| nameless(peer)));
        let connection = pair(seen, &listening, one, other.unwrap_or_default());
        if !is_own(&connection) {
            found.push(connection);
        }
    }
    found
}

/// Whether it is a pair by which the tracer wakes itself: no program that is watched has it.
fn is_own(connection: &Connection) -> bool {
    let mut pids = connection.ends().into_iter().flat_map(|end| &end.pids).peekable();
    connection.name.is_none() && pids.peek().is_some() && pids.all(|pid| *pid == std::process::id())
}

/// Every listening socket.
pub(crate) fn listeners(seen: &Observation) -> Vec<Listener> {
    let named = seen.inventory.sockets().filter(|(_, info)| info.listening);
    named
        .filter_map(|(cookie, info)| {
            let pids = seen.processes.holders(info.inode).collect();
            let name = info.name.clone()?;
            let (place, waiting) = (Place::new(&name, info.file, info.network), seen.inventory.queued(cookie));
            Some(Listener { name, place, kind: info.kind, pids, waiting })
        })
        .collect()
}

/// Every socket that can be one end of a connection, with what each source says about it.
fn ends(seen: &Observation) -> HashMap<u64, End> {
    let mut ends: HashMap<u64, End> = HashMap::new();
    let end = |ends: &mut HashMap<u64, End>, cookie: u64| -> Option<u64> {
        let listening = seen.inventory.socket(cookie).is_some_and(|info| info.listening);
        if cookie == 0 || listening {
            return None;
        }
        ends.entry(cookie).or_insert_with(|| End { cookie, ..End::default() });
        Some(cookie)
    };
    for (cookie, info) in seen.inventory.sockets() {
        let connected = info.peer.is_some() || info.peer_name.is_some() || info.kind == Kind::Datagram;
        if connected && end(&mut ends, cookie).is_some() {
            let pids = seen.processes.holders(info.inode);
            ends.entry(cookie).or_default().pids.extend(pids);
        }
    }
    for record in &seen.traffic {
        if end(&mut ends, record.cookie).is_some() {
            let end = ends.entry(record.cookie).or_default();
            end.kernel.tx_calls += record.tx_calls;
            end.kernel.tx_bytes += record.tx_bytes;
            end.kernel.rx_calls += record.rx_calls;
            end.kernel.rx_bytes += record.rx_bytes;
            end.pids.insert(record.pid);
            end.callers.insert(record.pid);
        }
    }
    for ledger_end in seen.ledgers.ends() {
        let cookie = cookie_of(&seen.inventory, ledger_end);
        if end(&mut ends, cookie).is_some() {
            let end = ends.entry(cookie).or_default();
            // A family over exec may leave two ledgers that knew the socket: the one with more traffic is in use.
            let traffic = |end: &LedgerEnd| end.now.ring_tx_bytes.max(end.now.ring_rx_bytes).max(end.now.kernel_tx_bytes);
            if end.ledger.as_ref().is_none_or(|known| traffic(known) < traffic(ledger_end)) {
                end.ledger = Some(ledger_end.clone());
            }
        }
    }
    for end in ends.values_mut().filter(|end| end.pids.is_empty()) {
        // Came and went between two looks at /proc, and made no call that the kernel saw: one of the ledger's family.
        end.pids.extend(end.ledger.iter().flat_map(|ledger_end| seen.ledgers.pids(ledger_end.ledger)));
    }
    ends
}

/// Cookie of the socket that a ledger's slot is about, 0 if it cannot be told.
fn cookie_of(inventory: &Inventory, end: &LedgerEnd) -> u64 {
    if end.now.cookie == 0 { inventory.cookie_of_inode(end.now.inode).unwrap_or(0) } else { end.now.cookie }
}

/// How many ends of ledgers belong to no socket.
pub(crate) fn unplaced(inventory: &Inventory, ledgers: &Ledgers) -> u64 {
    ledgers.ends().filter(|end| cookie_of(inventory, end) == 0).count() as u64
}

/// Who is whose peer: as the kernel's list says, else as the kernel programs saw bytes arrive.
fn peers(seen: &Observation) -> HashMap<u64, u64> {
    let mut peers = HashMap::new();
    for record in &seen.traffic {
        if let Some(peer) = record.peer
            && seen.inventory.socket(peer).is_none_or(|info| !info.listening && info.kind != Kind::Datagram)
        {
            peers.insert(record.cookie, peer);
            peers.entry(peer).or_insert(record.cookie);
        }
    }
    for ledger_end in seen.ledgers.ends() {
        let slot = &ledger_end.now;
        if let Some(peer) = seen.inventory.cookie_of_inode(slot.peer_inode)
            && slot.cookie != 0
        {
            peers.entry(slot.cookie).or_insert(peer);
            peers.entry(peer).or_insert(slot.cookie);
        }
    }
    for (cookie, info) in seen.inventory.sockets() {
        if let Some(peer) = info.peer {
            peers.insert(cookie, peer);
            peers.entry(peer).or_insert(cookie);
        }
    }
    peers
}

/// Decides which end is the server and what the connection is called.
fn pair(seen: &Observation, listening: &HashSet<SocketName>, one: End, other: End) -> Connection {
    let info = |end: &End| seen.inventory.socket(end.cookie);
    let named_by = |end: &End, peer: &End| {
        let own = info(end).and_then(|info| Some((info.name.clone()?, info.file, info.network)));
        own.or_else(|| info(peer).and_then(|info| info.peer_name.clone().map(|(name, file)| (name, file, info.network))))
    };
    let rank = |end: &End, peer: &End| -> u32 {
        let name = named_by(end, peer).map(|(name, ..)| name);
        let accepted = end.ledger.as_ref().is_some_and(LedgerEnd::is_acceptor);
        let listened = name.as_ref().is_some_and(|name| listening.contains(name));
        u32::from(accepted) * 4 + u32::from(listened) * 2 + u32::from(name.is_some())
    };
    let ranks = (rank(&one, &other), rank(&other, &one));
    let (server, client) = if ranks.1 > ranks.0 { (other, one) } else { (one, other) };
    let ledger_name = |end: &End| end.ledger.as_ref().and_then(|ledger| ledger.name.clone());
    let named = named_by(&server, &client);
    let place = named.as_ref().and_then(|(name, file, network)| Place::new(name, *file, *network));
    let name = named.map(|(name, ..)| name).or_else(|| ledger_name(&server)).or_else(|| ledger_name(&client));
    let kinds = [info(&server), info(&client)];
    let kind = kinds.iter().flatten().map(|info| info.kind).find(|kind| *kind != Kind::Unknown);
    // The library selects streams only.
    let selected = server.ledger.is_some() || client.ledger.is_some();
    let kind = kind.unwrap_or(if selected { Kind::Stream } else { Kind::Unknown });
    // Both ends are bound and neither is known to have listened: which name is the service's cannot be told.
    let undecided = ranks.0 == ranks.1 && ranks.0 > 0 && kind != Kind::Datagram;
    let (name, place) = if undecided { (None, None) } else { (name, place) };
    Connection { name, place, kind, server, client }
}

/// Every connection of one name and kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Service {
    pub(crate) connections: Vec<Connection>,
    /// Holders of the listening socket of that name.
    pub(crate) listener_pids: BTreeSet<u32>,
    /// Connections that waited to be accepted when the window ended; `None` if nobody listened then.
    pub(crate) waiting: Option<u64>,
}

/// What the connections of a service have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceKey {
    pub(crate) name: Option<SocketName>,
    pub(crate) kind: Kind,
    pub(crate) place: Option<Place>,
}

/// Groups connections by name, kind and place; a listening socket without a connection is a service too.
pub(crate) fn services(seen: &Observation) -> BTreeMap<ServiceKey, Service> {
    let mut services: BTreeMap<_, Service> = BTreeMap::new();
    for connection in connections(seen) {
        let key = ServiceKey { name: connection.name.clone(), kind: connection.kind, place: connection.place };
        services.entry(key).or_default().connections.push(connection);
    }
    for listener in listeners(seen) {
        let key = ServiceKey { name: Some(listener.name), kind: listener.kind, place: listener.place };
        let service = services.entry(key).or_default();
        service.listener_pids.extend(listener.pids);
        service.waiting = service.waiting.max(listener.waiting);
    }
    settle(services)
}

/// Gives connections whose name is known from a ledger only to the one service of that name, if there is only one.
fn settle(mut services: BTreeMap<ServiceKey, Service>) -> BTreeMap<ServiceKey, Service> {
    let homeless: Vec<ServiceKey> = services.keys().filter(|key| key.name.is_some() && key.place.is_none()).cloned().collect();
    for key in homeless {
        let mut same = services.keys().filter(|other| other.name == key.name && other.kind == key.kind && other.place.is_some());
        if let (Some(home), None) = (same.next().cloned(), same.next())
            && let Some(service) = services.remove(&key)
        {
            let home = services.entry(home).or_default();
            home.connections.extend(service.connections);
            home.listener_pids.extend(service.listener_pids);
        }
    }
    services
}

/// A relative path below the working directory of a process that serves it.
pub(crate) fn make_absolute(name: &SocketName, servers: &BTreeSet<u32>) -> Option<SocketName> {
    let SocketName::Path(path) = name else { return None };
    if path.first() == Some(&b'/') {
        return None;
    }
    servers.iter().find_map(|pid| absolute_path(*pid, path)).map(SocketName::Path)
}

/// Numbers, names and owners of processes; of one that is gone, the name that the kernel programs saw.
pub(crate) fn describe(seen: &Observation, pids: &BTreeSet<u32>) -> Vec<ProcessRecord> {
    pids.iter()
        .map(|pid| {
            let name = seen.processes.name(*pid).unwrap_or("?");
            let identity = seen.processes.identity(*pid);
            ProcessRecord {
                pid: *pid,
                name: name.to_owned(),
                uid: identity.and_then(|identity| identity.uid),
                container: identity.and_then(|identity| identity.container.clone()),
                cgroup: identity.and_then(|identity| identity.cgroup.clone()),
            }
        })
        .collect()
}
