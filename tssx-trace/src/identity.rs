//! Whose a process is and in which container it runs, by /proc/PID/status and /proc/PID/cgroup (proc_pid_status(5), cgroups(7)).

use crate::{container, foreign};

/// Owner and place of one process. Each is `None` where /proc did not tell, as of a process that is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Effective user, as numbered in our user namespace.
    pub(crate) uid: Option<u32>,
    /// Path of the control group, printable.
    pub(crate) cgroup: Option<String>,
    /// The container that this is the control group of.
    pub(crate) container: Option<String>,
}

impl Identity {
    /// Asks /proc.
    pub(crate) fn of(pid: u32) -> Self {
        let read = |file: &str| foreign::read(pid, file).unwrap_or_default();
        let cgroup = cgroup(&read("cgroup"));
        let container = cgroup.as_deref().and_then(container::of);
        Self { uid: uid(&read("status")), cgroup, container }
    }
}

/// The second number of `Uid:`, which is the effective user.
fn uid(status: &[u8]) -> Option<u32> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The path of the process's group: of version 2 if it is in one below the root, else the longest of version 1.
fn cgroup(text: &[u8]) -> Option<String> {
    let mut longest: Option<&[u8]> = None;
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (Some(hierarchy), Some(_), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if hierarchy == b"0" && path.len() > 1 {
            return Some(crate::names::escape(path));
        }
        if longest.is_none_or(|known| known.len() < path.len()) {
            longest = Some(path);
        }
    }
    longest.map(crate::names::escape)
}

/// Whether `pattern` names this control group or a container that it belongs to: the whole path, one of its components, the
/// same without what container runtimes put around a container's name, or the first 12 digits or more of a container's number.
pub(crate) fn is_in(cgroup: &str, pattern: &str) -> bool {
    let matches = |text: &str| tssx_core::glob::glob(pattern.as_bytes(), text.as_bytes());
    let abbreviates =
        |name: &str| pattern.len() >= 12 && pattern.bytes().all(|byte| byte.is_ascii_hexdigit()) && name.starts_with(pattern);
    let is_named = |component: &str| {
        let bare = container::bare(component);
        matches(component) || matches(bare) || abbreviates(bare)
    };
    matches(cgroup) || cgroup.split('/').filter(|component| !component.is_empty()).any(is_named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_identity_is_found() {
        let own = Identity::of(std::process::id());
        assert_eq!(own.uid, Some(rustix::process::geteuid().as_raw()));
        assert_eq!(Identity::of(u32::MAX), Identity::default());
    }

    #[test]
    fn proc_is_read_as_it_is_and_whatever_else_it_says() {
        assert_eq!(uid(b"Name:\tx\nUid:\t1\t2\t3\t4\n"), Some(2));
        assert_eq!(cgroup(b"0::/system.slice/a.service\n"), Some("/system.slice/a.service".into()));
        assert_eq!(cgroup(b"12:cpu:/docker/abc\n1:name=systemd:/\n0::/\n"), Some("/docker/abc".into()));
        assert_eq!(cgroup(b"0::/\n"), Some("/".into()));
        for nonsense in [&b""[..], b"Uid:", b"Uid:\t-1\t\xff", b"0:", b":", b"\0\0"] {
            assert_eq!((uid(nonsense), cgroup(nonsense)), (None, None), "{nonsense:?}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        crate::mutations::each(
            b"12:cpu,cpuacct:/x/lxc.payload.web\n0::/system.slice/docker-00.scope\nUid:\t1\t2\n",
            20_000,
            |bytes| {
                let _uid = uid(bytes);
                let _container = cgroup(bytes).as_deref().and_then(container::of);
            },
        );
        let number = "4f1d2c3b4a5968778695a4b3c2d1e0f04f1d2c3b4a5968778695a4b3c2d1e0f0";
        crate::mutations::each(number.as_bytes(), 20_000, |bytes| {
            // On either side: the one comes from /proc, the other from the command line.
            let text = String::from_utf8_lossy(bytes);
            let is_found = is_in(&format!("/a/docker-{number}.scope"), &text);
            let is_number = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(!is_number || is_found == (text.len() >= 12 && number.starts_with(&*text)), "{text}");
            let _in = is_in(&format!("/a/docker-{text}.scope"), number);
        });
    }

    #[test]
    fn a_container_is_named_by_path_component_name_or_the_start_of_its_number() {
        let number = "4f1d2c3b4a5968778695a4b3c2d1e0f04f1d2c3b4a5968778695a4b3c2d1e0f0";
        let docker = format!("/system.slice/docker-{number}.scope");
        for pattern in [number, &number[..12], "docker-*", "system.slice", "/system.slice/*", &docker] {
            assert!(is_in(&docker, pattern), "{pattern}");
        }
        assert!(!is_in(&docker, &number[..11]) && !is_in(&docker, "") && !is_in(&docker, "redis"));
        assert!(is_in("/lxc.payload.web/init.scope", "web") && is_in("/system.slice/redis.service", "redis"));
    }
}
