//! Where a socket file lies: whether it is still the one that the server bound, and its path on the host.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::inventory::FileId;
use crate::mounts::Mounts;
use crate::names::SocketName;

/// What the path leads to, as the servers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FileState {
    /// No process could be asked.
    Unknown,
    /// Nothing: new clients cannot connect.
    Deleted,
    /// Another file: new clients reach another socket.
    Replaced,
    /// The socket that was bound.
    Present,
}

/// A socket file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) state: FileState,
    /// As stat(2) gives it.
    pub(crate) device: u64,
    /// The low 32 bits of what stat(2) gives.
    pub(crate) inode: u32,
    /// Its path in the tracer's own mount namespace, if it has one there.
    pub(crate) host: Option<SocketName>,
}

/// Looks for `file`, bound as `path`, as the processes `pids` see it.
pub(crate) fn locate(path: &[u8], file: FileId, pids: impl Iterator<Item = u32>) -> FileRecord {
    let (device, inode) = file.parts();
    let mut record = FileRecord { state: FileState::Unknown, device, inode, host: None };
    for pid in pids {
        let state = match open(pid, path) {
            Ok(Some(opened)) if is(&opened, file) => {
                record.host = host_path(pid, &opened, file).map(SocketName::Path);
                FileState::Present
            }
            Ok(Some(_)) => FileState::Replaced,
            Ok(None) => FileState::Deleted,
            Err(_) => FileState::Unknown,
        };
        record.state = record.state.max(state);
        if state == FileState::Present {
            break;
        }
    }
    record
}

/// Opens what `path` is for a process, without opening the file itself; `None` if there is nothing.
///
/// # Errors
/// Where the process is gone or cannot be looked into.
pub(crate) fn open(pid: u32, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let (start, resolve) = match path.first() {
        // Links within a container lead within the container.
        Some(b'/') => ("root", ResolveFlags::IN_ROOT),
        _ => ("cwd", ResolveFlags::empty()),
    };
    let start = rustix::fs::open(format!("/proc/{pid}/{start}"), flags | OFlags::DIRECTORY, Mode::empty())?;
    match rustix::fs::openat2(&start, path, flags, Mode::empty(), resolve) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is(opened: &OwnedFd, file: FileId) -> bool {
    rustix::fs::fstat(opened).is_ok_and(|status| file.is(status.st_dev, status.st_ino))
}

/// The path in our mount namespace of what is open.
fn host_path(pid: u32, opened: &OwnedFd, file: FileId) -> Option<Vec<u8>> {
    let own = format!("/proc/self/fd/{}", opened.as_raw_fd());
    // Of a file in another namespace this is the path there.
    let there = std::fs::read_link(&own).ok()?;
    let leads = |path: &Path| std::fs::metadata(path).is_ok_and(|found| file.is(found.dev(), found.ino()));
    let namespace = |of: &str| std::fs::metadata(format!("/proc/{of}/ns/mnt")).ok().map(|metadata| metadata.ino());
    let candidates = if namespace("self") == namespace(&pid.to_string()) {
        vec![there]
    } else {
        let text = std::fs::read(format!("/proc/self/fdinfo/{}", opened.as_raw_fd())).ok()?;
        Mounts::of(&pid.to_string())?.paths_in(mount_id(&text)?, &there, &Mounts::of("self")?)
    };
    candidates.into_iter().find(|path| leads(path)).map(|path| path.into_os_string().into_vec())
}

/// The `mnt_id` line of `/proc/PID/fdinfo/FD`.
fn mount_id(text: &[u8]) -> Option<u64> {
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"mnt_id:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// The path below the working directory of process `pid`, plain, if it is a file there.
pub(crate) fn absolute_path(pid: u32, path: &[u8]) -> Option<Vec<u8>> {
    open(pid, path).ok()??;
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let joined: PathBuf = directory.join(OsStr::from_bytes(path));
    let plain: PathBuf = joined.components().filter(|part| *part != std::path::Component::CurDir).collect();
    Some(plain.into_os_string().into_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn id(path: &Path) -> FileId {
        let metadata = std::fs::metadata(path).expect("there");
        FileId::from_parts(metadata.dev(), metadata.ino())
    }

    #[test]
    fn a_socket_file_is_present_then_deleted_then_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().canonicalize().expect("there").join("x");
        let bytes = path.as_os_str().as_bytes();
        let _one = UnixListener::bind(&path).expect("bound");
        let file = id(&path);
        // Held, so that the inode's number is not given to the next file.
        let held = open(std::process::id(), bytes).expect("opened");
        assert!(held.is_some());
        let look = || locate(bytes, file, std::iter::once(std::process::id()));
        assert_eq!((look().state, look().host), (FileState::Present, Some(SocketName::Path(bytes.to_vec()))));
        std::fs::remove_file(&path).expect("removed");
        assert_eq!((look().state, look().host), (FileState::Deleted, None));
        let _other = UnixListener::bind(&path).expect("bound again");
        assert_eq!(look().state, FileState::Replaced);
        assert_eq!(locate(bytes, file, std::iter::empty()).state, FileState::Unknown);
    }

    #[test]
    fn relative_paths_become_absolute_below_the_working_directory() {
        let own = std::process::id();
        let directory = std::env::current_dir().expect("a working directory");
        let expected = directory.join("Cargo.toml").into_os_string().into_encoded_bytes();
        assert_eq!(absolute_path(own, b"./Cargo.toml"), Some(expected));
        assert_eq!(absolute_path(own, b"no-such-file-here"), None);
    }

    #[test]
    fn the_mount_is_read_from_fdinfo_and_no_bytes_make_it_panic() {
        let text = b"pos:\t0\nflags:\t012000000\nmnt_id:\t29\nino:\t7\n";
        assert_eq!(mount_id(text), Some(29));
        crate::mutations::each(text, 5000, |bytes| {
            let _id = mount_id(bytes);
        });
    }
}
