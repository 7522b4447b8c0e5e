//! Which container a process is in, by its control group: `/proc/PID/cgroup`, cgroups(7).
//!
//! The kernel knows no containers. Their managers put each into a control group whose name has the container's id: that is
//! what is looked for, and what is no such name is no container.

use serde::{Deserialize, Serialize};

/// Digits of the ids that docker, podman, containerd and CRI-O give.
const ID_DIGITS: usize = 64;

/// Where a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Group {
    /// Path of its control group, escaped as names are.
    pub(crate) cgroup: String,
    /// Id or name of the container that the control group is made for.
    pub(crate) container: Option<String>,
}

/// The group of a process; `None` when it is gone.
pub(crate) fn of(pid: u32) -> Option<Group> {
    parse(&std::fs::read(format!("/proc/{pid}/cgroup")).ok()?)
}

/// `ID:CONTROLLERS:PATH` lines: the unified hierarchy's (`0::PATH`), else the first.
fn parse(text: &[u8]) -> Option<Group> {
    let paths = || text.split(|byte| *byte == b'\n').filter_map(|line| Some((line, line.splitn(3, |byte| *byte == b':').nth(2)?)));
    let unified = paths().find(|(line, path)| line.starts_with(b"0::") && path.len() > 1);
    let (_, path) = unified.or_else(|| paths().find(|(_, path)| path.len() > 1)).or_else(|| paths().next())?;
    let container = path.split(|byte| *byte == b'/').rev().find_map(container);
    Some(Group { cgroup: crate::names::escape(path), container })
}

/// The container that one directory of a control group's path is made for.
fn container(directory: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(directory).ok()?;
    let name = name.strip_suffix(".scope").or_else(|| name.strip_suffix(".service")).unwrap_or(name);
    // lxc.payload.NAME, machine-NAME of systemd-nspawn
    if let Some(named) = name.strip_prefix("lxc.payload.").or_else(|| name.strip_prefix("machine-")) {
        return (!named.is_empty()).then(|| crate::names::escape(named.as_bytes()));
    }
    // docker-ID, libpod-ID, cri-containerd-ID, crio-ID, or the id alone
    let id = name.rsplit('-').next()?;
    (id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutations;

    #[test]
    fn containers_of_each_manager_are_recognised_and_services_are_none() {
        let id = "0123456789abcdef".repeat(4);
        for (text, expected) in [
            (format!("0::/system.slice/docker-{id}.scope\n"), Some(id.as_str())),
            (format!("12:cpu:/x\n0::/kubepods.slice/pod1/cri-containerd-{id}.scope/init\n"), Some(id.as_str())),
            (format!("4:memory:/docker/{id}\n0::/\n"), Some(id.as_str())),
            (String::from("0::/lxc.payload.web/system.slice\n"), Some("web")),
            (String::from("0::/system.slice/redis-server.service\n"), None),
            (String::from("0::/\n"), None),
        ] {
            let group = parse(text.as_bytes()).expect("a group");
            assert_eq!(group.container.as_deref(), expected, "{text}");
        }
        assert_eq!(parse(b""), None);
        assert!(of(std::process::id()).is_some());
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        mutations::each(b"12:cpu,cpuacct:/x/lxc.payload.web\n0::/system.slice/docker-00.scope\n", 20_000, |bytes| {
            let _group = parse(bytes);
        });
    }
}
