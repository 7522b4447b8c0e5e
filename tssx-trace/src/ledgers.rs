//! The preload library's statistics: finding every ledger on the host, keeping it mapped, and following its slots.
//!
//! A ledger belongs to another process, perhaps a hostile one: it is mapped read-only, believed only if it is sealed
//! against shrinking (reading past the end of a shrunken file would kill us), and every number in it is a claim.
//! A mapping outlives the process that made it, so the last counters of a process that exits are still read.

#![allow(unsafe_code, reason = "maps the ledgers of other processes and looks at them as atomics")]

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::Context;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::SealFlags;
use tssx_core::ledger::layout::{LEDGER_SIZE, ROLE_ACCEPTOR, SLOT_CLOSED};
use tssx_core::ledger::view::{LedgerView, SlotSnapshot, ViewError};

use crate::foreign;
use crate::ledger_scan::{Found, Scan};
use crate::names::SocketName;

/// What `/proc/PID/maps` shows as the name of a ledger.
const MAPS_NAME: &[u8] = b"/memfd:tssx-ledger";
/// What it shows of a process that may make one.
const LIBRARY_NAME: &[u8] = b"libtssx_preload";

/// Identity of a ledger: its file. A forked family shares one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LedgerId {
    device: u64,
    inode: u64,
}

/// A ledger kept mapped.
struct Ledger {
    /// Owns the memory that `view` looks at.
    _mapping: MmapRaw,
    view: LedgerView,
    pids: BTreeSet<u32>,
    exhausted_before: u64,
    /// Since when none of `pids` lives.
    ended: Option<Instant>,
}

/// A ledger whose processes are all gone for so long has no other that was not found yet.
const TIME_TO_FORGET: Duration = Duration::from_secs(30);

/// One end of one selected connection over the window.
#[derive(Clone, Debug)]
pub(crate) struct LedgerEnd {
    pub(crate) ledger: LedgerId,
    /// The name that the program gave to `bind` or `connect`.
    pub(crate) name: Option<SocketName>,
    /// The slot when the window began; all zero if it was claimed later.
    before: SlotSnapshot,
    /// The slot when it was last read.
    pub(crate) now: SlotSnapshot,
}

impl LedgerEnd {
    /// How much a counter grew within the window. A counter that went back is a lie and counts as nothing.
    pub(crate) fn grew(&self, counter: impl Fn(&SlotSnapshot) -> u64) -> u64 {
        counter(&self.now).saturating_sub(counter(&self.before))
    }

    /// The slot when the window began; all zero for an end that came later.
    pub(crate) fn before(&self) -> SlotSnapshot {
        self.before
    }

    /// Whether this end was there when the window began.
    pub(crate) fn was_there(&self) -> bool {
        self.before != SlotSnapshot::default()
    }

    /// Whether this end was closed before the window began.
    pub(crate) fn is_old(&self) -> bool {
        self.before.state == SLOT_CLOSED
    }

    /// Whether this end came from `accept`.
    pub(crate) fn is_acceptor(&self) -> bool {
        self.now.role == ROLE_ACCEPTOR
    }

    /// Whether any of the connection's bytes moved through a ring, ever.
    pub(crate) fn is_accelerated(&self) -> bool {
        self.now.ring_tx_calls != 0 || self.now.ring_rx_calls != 0
    }
}

/// Every ledger seen since the window began.
#[derive(Default)]
pub(crate) struct Ledgers {
    scan: Scan,
    mapped: HashMap<LedgerId, Ledger>,
    refused: HashMap<LedgerId, String>,
    /// What each slot holds now; boxed, because growing a large table must not take long.
    current: HashMap<(LedgerId, usize), Box<LedgerEnd>>,
    /// What slots held before they were used again.
    past: Vec<LedgerEnd>,
    overwritten: u64,
    started: bool,
}

impl Ledgers {
    /// Looks for the ledgers that there are, without reading them yet.
    pub(crate) fn find() -> Self {
        let mut ledgers = Self::default();
        ledgers.look_for_more();
        ledgers
    }

    /// Begins the window: what the slots say now is what later growth is measured from.
    pub(crate) fn begin(&mut self) {
        self.read();
        self.started = true;
    }

    /// Looks for new ledgers and reads the slots of all. What is new now counts from zero.
    pub(crate) fn refresh(&mut self) {
        self.look_for_more();
        self.read();
    }

    /// Looks into processes that just began to use Unix sockets, and may be gone soon.
    pub(crate) fn look_into(&mut self, pids: &[u32]) {
        for pid in pids {
            let _later = self.look_at(*pid);
        }
        self.read();
    }

    fn look_for_more(&mut self) {
        let mut scan = std::mem::take(&mut self.scan);
        scan.run(|pid| self.look_at(pid));
        self.scan = scan;
    }

    /// Reads the slots of the known ledgers. Returns how many connections are new since the last reading.
    pub(crate) fn read(&mut self) -> usize {
        let mut new = 0;
        for (id, ledger) in &self.mapped {
            for now in ledger.view.slots() {
                let fresh = || {
                    let name = ledger.view.path(now.path as usize).and_then(|path| SocketName::from_sun_path(path.name()));
                    let before = if self.started { SlotSnapshot::default() } else { now };
                    LedgerEnd { ledger: *id, name, before, now }
                };
                let last = match self.current.entry((*id, now.index)) {
                    Entry::Occupied(mut known) if known.get().now.generation == now.generation => {
                        known.get_mut().now = now;
                        continue;
                    }
                    Entry::Occupied(mut other) => {
                        let last = other.get().now.generation;
                        self.past.push(std::mem::replace(other.get_mut(), fresh()));
                        last
                    }
                    Entry::Vacant(room) => {
                        room.insert(Box::new(fresh()));
                        if self.started { 0 } else { now.generation.wrapping_sub(1) }
                    }
                };
                new += 1;
                self.overwritten += u64::from(now.generation.wrapping_sub(last).wrapping_sub(1));
            }
        }
        new
    }

    /// Whether no ledger was found yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.mapped.is_empty()
    }

    /// The ends that were open for at least a part of the window.
    pub(crate) fn ends(&self) -> impl Iterator<Item = &LedgerEnd> {
        self.current.values().map(Box::as_ref).chain(&self.past).filter(|end| !end.is_old())
    }

    /// How many ledgers are read.
    pub(crate) fn count(&self) -> u64 {
        self.mapped.len() as u64
    }

    /// Processes that had this ledger mapped when it was looked at.
    pub(crate) fn pids(&self, id: LedgerId) -> impl Iterator<Item = u32> + '_ {
        self.mapped.get(&id).into_iter().flat_map(|ledger| ledger.pids.iter().copied())
    }

    /// Every process that had a ledger mapped when it was looked at.
    pub(crate) fn all_pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.mapped.values().flat_map(|ledger| ledger.pids.iter().copied())
    }

    /// Selected connections of the window that no ledger had room for.
    pub(crate) fn uncounted(&self) -> u64 {
        self.mapped.values().map(|ledger| ledger.view.exhausted().saturating_sub(ledger.exhausted_before)).sum()
    }

    /// Connections whose slot was used again before it could be read: they came and went between two looks.
    pub(crate) fn overwritten(&self) -> u64 {
        self.overwritten
    }

    /// Ledgers that were found and not believed, with the reason.
    pub(crate) fn refused(&self) -> impl Iterator<Item = &str> {
        self.refused.values().map(String::as_str)
    }

    /// Forgets what slots held before they were used again, and ledgers whose processes are all gone.
    pub(crate) fn forget(&mut self) {
        self.past.clear();
        let now = Instant::now();
        for ledger in self.mapped.values_mut() {
            let lives = ledger.pids.iter().any(|pid| std::fs::exists(format!("/proc/{pid}")).unwrap_or(true));
            ledger.ended = if lives { None } else { ledger.ended.or(Some(now)) };
        }
        self.mapped.retain(|_, ledger| ledger.ended.is_none_or(|ended| now - ended < TIME_TO_FORGET));
        self.current.retain(|(id, _), _| self.mapped.contains_key(id));
        self.refused.clear(); // the next look finds those again that are still there
    }

    /// Looks into one process; `None` if it is gone.
    fn look_at(&mut self, pid: u32) -> Option<Found> {
        let mut found = Found::Nothing;
        foreign::lines(pid, "maps", |line| {
            if found == Found::Nothing && contains(line, LIBRARY_NAME) {
                found = Found::Library;
            }
            let Some((range, id)) = parse_line(line) else { return };
            if self.is_known(pid, range, id) {
                found = Found::Ledger;
            } else if found == Found::Nothing {
                found = Found::Library; // it has one that is not ready or not believed: look again
            }
        })?;
        Some(found)
    }

    /// Whether the ledger is mapped here, now or already.
    fn is_known(&mut self, pid: u32, range: &str, id: LedgerId) -> bool {
        if !self.mapped.contains_key(&id) {
            match map_ledger(pid, range) {
                Ok(None) => return false,
                Ok(Some((found, mut ledger))) if found == id => {
                    ledger.exhausted_before = if self.started { 0 } else { ledger.view.exhausted() };
                    self.refused.remove(&id);
                    self.mapped.insert(id, ledger);
                }
                Ok(Some(_)) => return false, // another file took the address range meanwhile
                Err(reason) => {
                    self.refused.insert(id, format!("process {pid}: {reason}"));
                    return false;
                }
            }
        }
        if let Some(ledger) = self.mapped.get_mut(&id) {
            ledger.pids.insert(pid);
        }
        true
    }
}

fn contains(line: &[u8], word: &[u8]) -> bool {
    line.windows(word.len()).any(|window| window == word)
}

/// The address range and the file of a line of `/proc/PID/maps` that shows a shared, readable ledger.
fn parse_line(line: &[u8]) -> Option<(&str, LedgerId)> {
    if !contains(line, MAPS_NAME) {
        return None;
    }
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let range = words.next()?;
    let permissions = words.next()?;
    let _offset = words.next()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = rustix::fs::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = words.next()?.parse().ok()?;
    let name = words.next()?;
    let is_ledger = name.as_bytes() == MAPS_NAME && permissions.starts_with('r') && permissions.ends_with('s');
    is_ledger.then_some((range, LedgerId { device, inode }))
}

/// What the library has written of this process's own connections; `None` where it has made no ledger here.
///
/// # Errors
/// Where /proc is not mounted, or the ledger is of another release.
pub(crate) fn own_slots() -> anyhow::Result<Option<Vec<SlotSnapshot>>> {
    let maps = std::fs::read("/proc/self/maps").context("cannot read /proc/self/maps: mount /proc")?;
    let range = maps.split(|byte| *byte == b'\n').find_map(|line| parse_line(line).map(|(range, _)| range));
    let Some((start, end)) = range.and_then(|range| range.split_once('-')) else { return Ok(None) };
    let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16));
    let (start, end) = (start?, end?);
    // SAFETY: the library, which lives in this process, has mapped this range to be read and never takes it away again; it writes atomics
    // only, which is what the view reads.
    let view = unsafe { LedgerView::new(std::ptr::with_exposed_provenance(start), end.saturating_sub(start)) };
    let view = view.map_err(|error| anyhow::anyhow!("the own ledger cannot be read: {error:?}"))?;
    Ok(Some(view.slots().collect()))
}

/// Maps the ledger that process `pid` has at `range`. `Ok(None)` if it is gone.
///
/// A ledger that is just being made gives an error too: the next scan finds it ready and forgets the error.
fn map_ledger(pid: u32, range: &str) -> Result<Option<(LedgerId, Ledger)>, String> {
    let path = format!("/proc/{pid}/map_files/{range}");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(format!("cannot open its ledger: {error}")),
    };
    map_file(&file).map(Some)
}

/// Maps an open ledger file.
fn map_file(file: &File) -> Result<(LedgerId, Ledger), String> {
    let metadata = file.metadata().map_err(|error| format!("cannot look at its ledger: {error}"))?;
    if metadata.len() < LEDGER_SIZE as u64 {
        return Err(format!("its ledger has {} bytes instead of {LEDGER_SIZE}", metadata.len()));
    }
    let seals = rustix::fs::fcntl_get_seals(file).map_err(|error| format!("its ledger is no memfd: {error}"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(String::from("its ledger is not sealed against shrinking, so reading it is not safe"));
    }
    let mapping =
        MmapOptions::new().len(LEDGER_SIZE).map_raw_read_only(file).map_err(|error| format!("cannot map its ledger: {error}"))?;
    // SAFETY: the mapping is readable for LEDGER_SIZE bytes: the file is that long and sealed against shrinking. It
    // lives as long as the view, because `Ledger` owns both, never lends the view out by value, and `MmapRaw` keeps
    // its address when it is moved. Other processes' writes are allowed for by the view, and nothing here writes.
    let view = match unsafe { LedgerView::new(mapping.as_ptr(), LEDGER_SIZE) } {
        Ok(view) => view,
        Err(ViewError::OtherVersion(version)) => {
            return Err(format!("its ledger has layout version {version}: library and tssx-trace are of different releases"));
        }
        Err(error) => return Err(format!("its ledger cannot be read: {error:?}")),
    };
    let id = LedgerId { device: metadata.dev(), inode: metadata.ino() };
    Ok((id, Ledger { _mapping: mapping, view, pids: BTreeSet::new(), exhausted_before: 0, ended: None }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::Relaxed;

    use rustix::fs::MemfdFlags;
    use tssx_core::ledger::layout::{NAME_MAX, PATH_CAPACITY, SLOT_CAPACITY};
    use tssx_core::ledger::{MEMFD_NAME, slots};

    use super::*;

    /// The ends of one name: other tests of this process have ledgers too.
    fn ends_named(ledgers: &Ledgers, name: &[u8]) -> Vec<LedgerEnd> {
        let name = SocketName::from_sun_path(name);
        ledgers.ends().filter(|end| end.name == name).cloned().collect()
    }

    #[test]
    fn growth_is_measured_from_the_first_look_and_new_slots_from_zero() {
        let ledger = slots::create().expect("a ledger");
        let path = slots::path_index(&ledger, b"/growth").expect("room");
        let old = slots::claim(&ledger, path, ROLE_ACCEPTOR, 1).expect("room");
        old.ring_tx_bytes.store(100, Relaxed);
        old.ring_tx_calls.store(10, Relaxed);
        let mut ledgers = Ledgers::find();
        ledgers.begin();
        old.ring_tx_bytes.store(164, Relaxed);
        let new = slots::claim(&ledger, path, ROLE_ACCEPTOR, 1).expect("room");
        new.ring_tx_bytes.store(7, Relaxed);
        ledgers.read();

        let mut grew: Vec<_> = ends_named(&ledgers, b"/growth").iter().map(|end| end.grew(|slot| slot.ring_tx_bytes)).collect();
        grew.sort_unstable();
        assert_eq!(grew, [7, 64]);
        assert!(ledgers.all_pids().any(|pid| pid == std::process::id()));
    }

    #[test]
    fn a_lying_ledger_is_bounded_and_harms_nobody() {
        let ledger = slots::create().expect("a ledger");
        let path = slots::path_index(&ledger, b"/lies").expect("room");
        let slot = slots::claim(&ledger, path, u32::MAX, u32::MAX).expect("room");
        slot.ring_tx_bytes.store(1000, Relaxed);
        let mut ledgers = Ledgers::find();
        ledgers.begin();
        slot.ring_tx_bytes.store(1, Relaxed); // a counter that goes back
        slot.reason.store(u32::MAX, Relaxed);
        ledger.header().slots_used.store(u32::MAX, Relaxed);
        ledger.header().paths_used.store(u32::MAX, Relaxed);
        ledger.header().exhausted.store(0, Relaxed);
        ledger.path_entry(path as usize).expect("there").name_len.store(u32::MAX, Relaxed);
        let wild = slots::claim(&ledger, path, 0, 0).expect("room");
        wild.path.store(u32::MAX, Relaxed);
        ledgers.refresh();

        let ends = ends_named(&ledgers, b"/lies");
        assert_eq!(ends.len(), 1);
        assert_eq!(ends.iter().map(|end| end.grew(|slot| slot.ring_tx_bytes)).sum::<u64>(), 0);
        assert!(ledgers.current.len() <= 4 * SLOT_CAPACITY);
        let long = ledger.path(path as usize).expect("ready");
        assert_eq!(long.name().len(), NAME_MAX);
        assert!(ledger.path(PATH_CAPACITY).is_none());
    }

    #[test]
    fn a_slot_used_twice_between_two_looks_is_noticed() {
        let ledger = slots::create().expect("a ledger");
        let path = slots::path_index(&ledger, b"/twice").expect("room");
        let slot = slots::claim(&ledger, path, 0, 1).expect("room");
        let mut ledgers = Ledgers::find();
        ledgers.begin();
        let before = ledgers.overwritten();
        slot.generation.fetch_add(3, Relaxed);
        ledgers.read();
        assert_eq!(ledgers.overwritten() - before, 2);
    }

    #[test]
    fn a_file_that_could_shrink_or_is_too_short_is_not_mapped() {
        let make = |size: u64, seals: SealFlags| {
            let fd = rustix::fs::memfd_create(MEMFD_NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
            rustix::fs::ftruncate(fd.as_fd(), size).expect("sized");
            rustix::fs::fcntl_add_seals(fd.as_fd(), seals).expect("sealed");
            File::from(fd)
        };
        let refusal = |file: File| map_file(&file).err().expect("refused");
        assert!(refusal(make(LEDGER_SIZE as u64, SealFlags::empty())).contains("not sealed"));
        assert!(refusal(make(4096, SealFlags::SHRINK)).contains("4096 bytes"));
        assert!(refusal(make(LEDGER_SIZE as u64, SealFlags::SHRINK)).contains("NotALedger"));
    }

    #[test]
    fn only_shared_ledgers_are_recognised_in_maps() {
        let line = b"7f0000000000-7f0001000000 rw-s 00000000 00:01 1027 /memfd:tssx-ledger (deleted)";
        let (range, id) = parse_line(line).expect("recognised");
        assert_eq!((range, id.inode), ("7f0000000000-7f0001000000", 1027));
        crate::mutations::each(line, 20_000, |bytes| {
            let _ledger = parse_line(bytes);
        });
        let wrong: [&[u8]; 4] = [
            b"7f0000000000-7f0001000000 rw-p 00000000 00:01 1027 /memfd:tssx-ledger (deleted)",
            b"7f0000000000-7f0001000000 rw-s 00000000 00:01 1027 /memfd:tssx-ledger-of-mine (deleted)",
            b"7f0000000000-7f0001000000 rw-s 00000000 00:01 1027 /tmp/memfd:tssx-ledger",
            b"",
        ];
        for line in wrong {
            assert!(parse_line(line).is_none(), "{}", String::from_utf8_lossy(line));
        }
    }
}
