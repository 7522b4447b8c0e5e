//! What there is of ours at a moment at which only the connections that stay are open: of each long-lived process its descriptors, segments
//! and memory; and on the machine names, netlink sockets and processes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::stage::State;
use crate::census::text_of;

/// A process at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Process {
    pub descriptors: usize,
    /// What its descriptors are, for a report on those that are too many.
    #[serde(skip)]
    pub targets: Vec<String>,
    /// Mappings of segments, of a ledger, and all.
    pub segments: usize,
    pub ledgers: usize,
    pub mappings: usize,
    pub rss_kib: u64,
    pub pss_kib: u64,
    /// Connections that its ledger says are open, and locks that are held.
    pub live: u64,
    pub locks: u64,
}

/// All of them, and what is of no process.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sample {
    /// Seconds since the start, and connections so far.
    pub at_s: f64,
    pub connections: u64,
    pub processes: BTreeMap<String, Process>,
    /// Abstract names of sockets that these processes hold, netlink sockets of theirs, children and grandchildren, files of the directory.
    pub names: usize,
    pub netlink: usize,
    pub family: usize,
    pub files: usize,
}

impl Sample {
    /// Looks at the processes `(name, id, state)`.
    ///
    /// # Errors
    /// One of them cannot be looked at.
    pub(super) fn take(members: &[(&str, u32, &State)], directory: &Path) -> Result<Self> {
        let mut sample = Self::default();
        let mut sockets = BTreeSet::new();
        for (name, id, state) in members {
            let process = Process::look(*id, state).with_context(|| format!("cannot look at {name}"))?;
            sockets.extend(process.targets.iter().filter_map(|target| inode(target)));
            sample.processes.insert((*name).to_owned(), process);
        }
        // Lines of /proc/net/unix: the inode is word 6, the name word 7; of /proc/net/netlink the inode is the last.
        let lines = |path: &str| text_of(Path::new(path)).with_context(|| format!("cannot read {path}"));
        let ours = |word: Option<&str>| word.and_then(|word| word.parse().ok()).is_some_and(|inode: u64| sockets.contains(&inode));
        sample.names = lines("/proc/net/unix")?
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| words.get(7).is_some_and(|name| name.starts_with('@')) && ours(words.get(6).copied()))
            .count();
        sample.netlink = lines("/proc/net/netlink")?.lines().filter(|line| ours(line.split_whitespace().last())).count();
        sample.family = family(std::process::id())?;
        sample.files = std::fs::read_dir(directory)?.count();
        Ok(sample)
    }
}

impl Process {
    fn look(id: u32, state: &State) -> Result<Self> {
        let mut targets = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{id}/fd"))? {
            let path = entry?.path();
            // One may be closed by now.
            if let Ok(target) = std::fs::read_link(&path) {
                targets.push(target.to_string_lossy().into_owned());
            }
        }
        let maps = std::fs::read_to_string(format!("/proc/{id}/maps"))?;
        let count = |what: &str| maps.lines().filter(|line| line.contains(what)).count();
        let rollup = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
        let kib = |what: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(what));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {what} in smaps_rollup"))
        };
        Ok(Self {
            descriptors: targets.len(),
            targets,
            segments: count("/memfd:tssx-segment"),
            ledgers: count("/memfd:tssx-ledger"),
            mappings: maps.lines().count(),
            rss_kib: kib("Rss:")?,
            pss_kib: kib("Pss:")?,
            live: state.sums.live,
            locks: state.sums.locks,
        })
    }
}

/// Of `socket:[123]`.
fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Processes below this one, those that nobody has reaped included.
fn family(root: u32) -> Result<usize> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One may have ended by now. The command, in parentheses, may hold anything; state and parent follow the last.
        let Ok(stat) = text_of(Path::new(&format!("/proc/{id}/stat"))) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (id, parent)));
    }
    let mut found = BTreeSet::from([root]);
    loop {
        let more: Vec<u32> =
            parents.iter().filter(|(id, parent)| found.contains(parent) && !found.contains(id)).map(|(id, _)| *id).collect();
        if more.is_empty() {
            return Ok(found.len() - 1);
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let directory = tempfile::tempdir().expect("directory");
        let (_left, _right) = std::os::unix::net::UnixStream::pair().expect("pair");
        let state = State::default();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let sample = Sample::take(&[("own", std::process::id(), &state)], directory.path()).expect("a sample");
        child.kill().and_then(|()| child.wait()).expect("it was there");
        let own = &sample.processes["own"];
        assert!(own.descriptors >= 5 && own.rss_kib > 100 && own.pss_kib > 100 && own.mappings > 5);
        assert!(own.targets.iter().filter_map(|target| inode(target)).count() >= 2);
        assert!(sample.family >= 1);
        assert_eq!((sample.files, own.segments), (0, 0));
    }
}
