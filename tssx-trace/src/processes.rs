//! Who holds which socket, by /proc: the silent holders that the kernel programs never see calling.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use procfs::process::{FDTarget, Process};

use crate::facts::{Gatherer, ProgramRecord, is_io_uring};
use crate::foreign;
use crate::identity::Identity;

/// Every process that could be looked at, and the sockets it holds.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    names: HashMap<u32, String>,
    /// Names that the kernel programs told, for processes that were gone too soon.
    told: HashMap<u32, String>,
    identities: HashMap<u32, Identity>,
    /// Whether a process that was looked at had an io_uring.
    io_uring: HashMap<u32, bool>,
    holders: HashMap<u64, BTreeSet<u32>>,
    programs: HashMap<u32, ProgramRecord>,
    /// Those whose facts are still to be asked.
    wanted: Vec<u32>,
    gatherer: Gatherer,
}

impl Processes {
    /// None yet; of each it will be asked whether it can see this library.
    pub(crate) fn new(library: Option<PathBuf>) -> Self {
        Self { gatherer: Gatherer::new(library), ..Self::default() }
    }

    /// The library that is looked for in each process.
    pub(crate) fn library(&self) -> Option<&PathBuf> {
        self.gatherer.library()
    }

    /// Adds what /proc shows now to what earlier scans showed. Processes that vanish while being looked at are passed over.
    pub(crate) fn refresh(&mut self) {
        for pid in pids() {
            let Ok(process) = Process::new(pid) else { continue };
            let Ok(descriptors) = process.fd() else { continue };
            let pid = pid.unsigned_abs();
            let (mut holds, mut io_uring) = (false, false);
            for descriptor in descriptors.flatten() {
                io_uring |= is_io_uring(&descriptor.target);
                if let FDTarget::Socket(inode) = descriptor.target {
                    self.holders.entry(inode).or_default().insert(pid);
                    holds = true;
                }
            }
            *self.io_uring.entry(pid).or_default() |= io_uring;
            if holds {
                self.remember(pid);
            }
        }
    }

    /// Processes that hold the socket with this inode, or held it at an earlier scan.
    pub(crate) fn holders(&self, inode: u64) -> impl Iterator<Item = u32> + '_ {
        self.holders.get(&inode).into_iter().flatten().copied()
    }

    /// The facts about the process's program, if it was seen alive.
    pub(crate) fn program(&self, pid: u32) -> Option<&ProgramRecord> {
        self.programs.get(&pid)
    }

    /// Keeps name and owner of a process, and soon the facts about it, for the time when it is gone.
    pub(crate) fn remember(&mut self, pid: u32) {
        if let Some(name) = command_name(pid) {
            self.names.insert(pid, name);
            self.identities.insert(pid, Identity::of(pid));
        }
        if !self.programs.contains_key(&pid) {
            self.wanted.push(pid);
        }
    }

    /// Asks for the facts about programs that are new, the newest first because it may end first; no longer than `most`, if that is given: what
    /// is counted meanwhile does not wait. The rest is asked next time.
    pub(crate) fn gather(&mut self, most: Option<Duration>) {
        let started = Instant::now();
        while most.is_none_or(|most| started.elapsed() < most)
            && let Some(pid) = self.wanted.pop()
        {
            self.look(pid);
        }
    }

    /// Asks for all facts again, at the end: programs change what they are by exec, and what they hold.
    pub(crate) fn gather_again(&mut self) {
        let mut all = std::mem::take(&mut self.wanted);
        all.extend(self.programs.keys());
        all.sort_unstable();
        all.dedup();
        for pid in all {
            self.look(pid);
        }
    }

    fn look(&mut self, pid: u32) {
        // What is about to end, and has no memory any more, tells nothing new.
        if let Some(facts) = self.gatherer.look(pid)
            && (facts.program.is_some() || !self.programs.contains_key(&pid))
        {
            self.programs.insert(pid, facts);
        }
    }

    /// The same for several, of which only the new ones cost anything.
    pub(crate) fn remember_new(&mut self, pids: impl Iterator<Item = u32>) {
        for pid in pids {
            if !self.names.contains_key(&pid) {
                self.remember(pid);
            }
        }
    }

    /// Keeps the name that the kernel programs told of a process.
    pub(crate) fn told(&mut self, pid: u32, name: String) {
        self.told.entry(pid).or_insert(name);
    }

    /// Forgets processes that are gone, and the holders of sockets that `is_known` denies.
    pub(crate) fn forget(&mut self, is_known: impl Fn(u64) -> bool) {
        let alive: BTreeSet<u32> = pids().into_iter().map(i32::unsigned_abs).collect();
        self.holders.retain(|inode, pids| {
            pids.retain(|pid| alive.contains(pid));
            is_known(*inode) && !pids.is_empty()
        });
        self.names.retain(|pid, _| alive.contains(pid));
        self.told.retain(|pid, _| alive.contains(pid));
        self.identities.retain(|pid, _| alive.contains(pid));
        self.io_uring.retain(|pid, _| alive.contains(pid));
        self.programs.retain(|pid, _| alive.contains(pid));
    }

    /// The process's name: as it was seen alive, else as the kernel programs told.
    pub(crate) fn name(&self, pid: u32) -> Option<&str> {
        self.names.get(&pid).or_else(|| self.told.get(&pid)).map(String::as_str)
    }

    /// How many of these processes had an io_uring at any look; `None` if none of those that were looked at, and not all were.
    pub(crate) fn with_io_uring(&self, pids: &BTreeSet<u32>) -> Option<u64> {
        let looks = || pids.iter().map(|pid| self.io_uring.get(pid));
        let count = looks().filter(|had| *had == Some(&true)).count() as u64;
        (count > 0 || looks().all(|had| had.is_some())).then_some(count)
    }

    /// Whose the process is and where it runs, if it was seen alive.
    pub(crate) fn identity(&self, pid: u32) -> Option<&Identity> {
        self.identities.get(&pid)
    }
}

/// The numbers of all processes there are now.
pub(crate) fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Name of a process as ps(1) shows it, printable; `None` when it is gone.
fn command_name(pid: u32) -> Option<String> {
    let bytes = foreign::read(pid, "comm")?;
    Some(crate::names::escape(bytes.strip_suffix(b"\n").unwrap_or(&bytes)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_silent_holder_is_found_and_named() {
        let (one, _other) = UnixStream::pair().expect("socketpair");
        let link = std::fs::read_link(format!("/proc/self/fd/{}", one.as_raw_fd())).expect("own descriptor");
        let text = link.to_string_lossy().into_owned();
        let inode = text.trim_start_matches("socket:[").trim_end_matches(']').parse().expect("an inode");
        let mut processes = Processes::default();
        processes.refresh();
        let own = std::process::id();
        assert_eq!(processes.holders(inode).collect::<Vec<_>>(), [own]);
        assert!(processes.name(own).is_some_and(|name| !name.is_empty()));
        assert_eq!(processes.with_io_uring(&BTreeSet::from([own])), Some(0));
        assert_eq!(processes.with_io_uring(&BTreeSet::from([own, u32::MAX])), None, "no such process");
    }
}
