//! Which container a process is in, by its control group, cgroups(7).
//!
//! The kernel knows no containers. Their managers put each into a control group whose name has the container's id: that is
//! what is looked for, and what is no such name is no container.

/// Digits of the ids that docker, podman, containerd and CRI-O give.
const ID_DIGITS: usize = 64;

/// Id or name of the container that a control group is made for; the innermost one.
pub(crate) fn of(cgroup: &str) -> Option<String> {
    cgroup.rsplit('/').find_map(container)
}

/// The container that one directory of a control group's path is made for.
fn container(directory: &str) -> Option<String> {
    let name = without_unit_type(directory);
    // lxc.payload.NAME, machine-NAME of systemd-nspawn
    if let Some(named) = name.strip_prefix("lxc.payload.").or_else(|| name.strip_prefix("machine-")) {
        return (!named.is_empty()).then(|| named.to_owned());
    }
    // docker-ID, libpod-ID, cri-containerd-ID, crio-ID, or the id alone
    let id = name.rsplit('-').next()?;
    (id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// A directory's name without what a manager puts around the name of its container: `docker-4f1d….scope` is `4f1d…`.
pub(crate) fn bare(directory: &str) -> &str {
    const RUNTIMES: [&str; 6] = ["docker-", "libpod-", "cri-containerd-", "crio-", "machine-", "lxc.payload."];
    let name = without_unit_type(directory);
    RUNTIMES.iter().find_map(|runtime| name.strip_prefix(runtime)).unwrap_or(name)
}

fn without_unit_type(directory: &str) -> &str {
    directory.strip_suffix(".scope").or_else(|| directory.strip_suffix(".service")).unwrap_or(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_each_manager_are_recognised_and_services_are_none() {
        let id = "0123456789abcdef".repeat(4);
        for (path, expected) in [
            (format!("/system.slice/docker-{id}.scope"), Some(id.as_str())),
            (format!("/kubepods.slice/pod1/cri-containerd-{id}.scope/init"), Some(id.as_str())),
            (format!("/docker/{id}"), Some(id.as_str())),
            (String::from("/lxc.payload.web/system.slice"), Some("web")),
            (String::from("/system.slice/redis-server.service"), None),
            (String::from("/"), None),
            (String::new(), None),
        ] {
            assert_eq!(of(&path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn no_control_group_makes_it_panic_and_a_container_is_part_of_its_path() {
        let id = "0123456789abcdef".repeat(4);
        let good = format!("/kubepods.slice/pod1/cri-containerd-{id}.scope/lxc.payload.web/machine-x.service");
        crate::mutations::each(good.as_bytes(), 20_000, |bytes| {
            let path = String::from_utf8_lossy(bytes);
            assert!(of(&path).is_none_or(|container| !container.is_empty() && path.contains(&container)));
            assert!(path.split('/').all(|directory| directory.contains(bare(directory))));
        });
    }
}
