//! Mounts as `/proc/PID/mountinfo` lists them (proc_pid_mountinfo(5)): where a file of one mount namespace lies in another.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::foreign;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    /// Device of the file system, `major:minor`.
    device: Vec<u8>,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
}

/// The mounts of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mounts(Vec<Mount>);

impl Mounts {
    /// Those that process `pid` has; `None` when it is gone.
    pub(crate) fn of(pid: &str) -> Option<Self> {
        Some(Self::parse(&foreign::read(pid, "mountinfo")?))
    }

    fn parse(text: &[u8]) -> Self {
        Self(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// The paths that `path`, which lies in the mount `id` here, may have in another namespace.
    pub(crate) fn paths_in(&self, id: u64, path: &Path, other: &Self) -> Vec<PathBuf> {
        let Some(mount) = self.0.iter().find(|mount| mount.id == id) else { return Vec::new() };
        let Ok(below) = path.strip_prefix(&mount.point) else { return Vec::new() };
        let inside = mount.root.join(below);
        let same = other.0.iter().filter(|other| other.device == mount.device);
        same.filter_map(|other| Some(other.point.join(inside.strip_prefix(&other.root).ok()?))).collect()
    }
}

/// `ID PARENT MAJOR:MINOR ROOT POINT …`
fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let _parent = words.next()?;
    let device = words.next()?.to_vec();
    Some(Mount { id, device, root: unescape(words.next()?), point: unescape(words.next()?) })
}

/// Blanks, line ends and backslashes are written as `\` and three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutations;

    const HOST: &[u8] =
        b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 0:9 / /run rw - tmpfs none rw\n22 20 8:1 /srv /mnt\\040x rw - ext4 d rw\n";
    const CONTAINER: &[u8] = b"90 1 8:1 /srv/box / rw - ext4 /dev/sda1 rw\n91 90 0:9 /shared /run/s rw - tmpfs none rw\n";

    #[test]
    fn a_file_in_a_container_is_found_on_the_host_wherever_its_file_system_is_mounted() {
        let (host, container) = (Mounts::parse(HOST), Mounts::parse(CONTAINER));
        let paths = |id, path: &str| container.paths_in(id, Path::new(path), &host);
        assert_eq!(paths(91, "/run/s/x"), [PathBuf::from("/run/shared/x")]);
        assert_eq!(paths(90, "/x"), [PathBuf::from("/srv/box/x"), PathBuf::from("/mnt x/box/x")]);
        assert!(paths(7, "/x").is_empty());
        assert!(paths(91, "/elsewhere").is_empty());
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        let container = Mounts::parse(CONTAINER);
        mutations::each(HOST, 20_000, |bytes| {
            let mounts = Mounts::parse(bytes);
            assert!(mounts.0.len() <= bytes.len());
            let _paths = container.paths_in(90, Path::new("/x"), &mounts);
        });
    }
}
