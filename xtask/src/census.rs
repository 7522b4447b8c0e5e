//! What must not be left behind when tests have ended, on the whole machine: processes and mappings of ours, names in the
//! abstract socket namespace, kernel programs and links. `cargo xtask test` asks after everything, the behaviour tests
//! (which include this file) after themselves.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel may take to finish what killed processes held.
const SETTLE: Duration = Duration::from_secs(5);

/// What of ours is on the machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    things: BTreeSet<String>,
}

impl Census {
    /// Looks at the whole machine, as far as we may.
    pub(crate) fn take() -> Self {
        let mut things = BTreeSet::new();
        things.extend(abstract_names());
        things.extend(pinned());
        for process in std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
            if process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                things.extend(of_process(&process.path()));
            }
        }
        Self { things }
    }

    /// What is there now and was not then, once the kernel has had time to finish what killed processes held.
    pub(crate) fn left_since(before: &Self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left: Vec<_> = Self::take().things.difference(&before.things).cloned().collect();
            if left.is_empty() || start.elapsed() > SETTLE {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A file of /proc whose names may be any bytes: those of others' sockets and programs.
///
/// # Errors
/// As read(2).
pub(crate) fn text_of(path: &Path) -> std::io::Result<String> {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Abstract names that the library makes for a rendezvous.
fn abstract_names() -> Vec<String> {
    // Without the table it would look as if nothing were left.
    let table = text_of(Path::new("/proc/net/unix")).expect("/proc/net/unix can be read");
    let names = table.lines().filter_map(|line| line.split_whitespace().nth(7));
    names.filter(|name| name.starts_with("@tssx")).map(|name| format!("abstract name {name}")).collect()
}

/// Kernel objects of ours that a name keeps alive.
fn pinned() -> Vec<String> {
    let names = std::fs::read_dir("/sys/fs/bpf").into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    names.filter(|path| path.to_string_lossy().contains("tssx")).map(|path| format!("pinned {}", path.display())).collect()
}

/// Mappings, open memory and descriptors of kernel programs (a link lives as long as a descriptor of it).
fn of_process(directory: &Path) -> Vec<String> {
    let name = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
    let shown = format!("{} ({})", directory.display(), name.trim());
    let mut things = Vec::new();
    let maps = text_of(&directory.join("maps")).unwrap_or_default(); // of a process that has ended: nothing
    if maps.contains("memfd:tssx-") || maps.contains("libtssx_preload") {
        things.push(format!("{shown} runs with the library or maps its memory"));
    }
    for link in std::fs::read_dir(directory.join("fd")).into_iter().flatten().filter_map(Result::ok) {
        let target = std::fs::read_link(link.path()).unwrap_or_default().to_string_lossy().into_owned();
        if target.contains("memfd:tssx-")
            || target.contains("bpf-prog")
            || target.contains("bpf_link")
            || target.contains("bpf-map")
        {
            things.push(format!("{shown} holds {target}"));
        }
    }
    things
}
