//! What `/proc/PID` says of a running image beside its file: auxiliary vector, environment, system-call filter, mapped files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A process's system-call filter, seccomp(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Seccomp {
    Off,
    /// Only read, write, exit and sigreturn.
    Strict,
    /// Nothing but what the tracer itself runs under, and the library is known to work beside.
    Inherited,
    /// More: a filter of its own, which nobody can read from outside.
    Filter,
}

/// Type of the entry that says whether the dynamic linker must not trust the environment, getauxval(3).
const AT_SECURE: u64 = 23;
/// Longest list of mapped files that is looked at.
const MAX_FILES: usize = 4096;

/// `AT_SECURE` in `/proc/PID/auxv`; `None` where it is not there.
pub(crate) fn secure(auxv: &[u8]) -> Option<bool> {
    let (entries, _) = auxv.as_chunks::<16>();
    entries.iter().find_map(|entry| {
        let (kind, value) = entry.split_first_chunk::<8>()?;
        let value = u64::from_ne_bytes(*value.first_chunk()?);
        (u64::from_ne_bytes(*kind) == AT_SECURE).then_some(value != 0)
    })
}

/// The lines `Seccomp:` and, from Linux 5.9 on, `Seccomp_filters:` of `/proc/PID/status`; `None` where the first is not there. `own` is
/// the tracer's own status: who is started in a sandbox with it inherits as many filters as it has.
pub(crate) fn seccomp(status: &[u8], own: &[u8]) -> Option<Seccomp> {
    match field_of(status, b"Seccomp:")? {
        b"0" => Some(Seccomp::Off),
        b"1" => Some(Seccomp::Strict),
        b"2" => {
            let filters = |status| field_of(status, b"Seccomp_filters:");
            let same = filters(status).is_some() && filters(status) == filters(own);
            Some(if same { Seccomp::Inherited } else { Seccomp::Filter })
        }
        _ => None,
    }
}

fn field_of<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    Some(status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?.trim_ascii())
}

/// The files that `/proc/PID/maps` shows as mapped for execution: what tells each from others, and its path.
pub(crate) fn programs(maps: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut files = BTreeMap::new();
    for line in maps.split(|byte| *byte == b'\n') {
        let Some((id, path)) = program(line) else { continue };
        if files.len() < MAX_FILES {
            files.insert(id.to_vec(), path.to_vec());
        }
    }
    files
}

/// Device and inode as the line has them, and the path; `None` for what is no file or cannot be executed.
fn program(line: &[u8]) -> Option<(&[u8], &[u8])> {
    // address perms offset dev inode path
    let mut rest = field(line)?.1;
    let (permissions, after) = field(rest)?;
    rest = field(after)?.1;
    let place = rest;
    let (_device, after) = field(rest)?;
    let (_inode, path) = field(after)?;
    let id = place.get(..place.len() - path.len())?.trim_ascii();
    let path = path.trim_ascii_start();
    (permissions.get(2) == Some(&b'x') && path.first() == Some(&b'/')).then_some((id, path))
}

fn field(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|byte| *byte == b' ')?;
    Some(text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_image_is_read_as_what_it_is() {
        let read = |file: &str| std::fs::read(format!("/proc/self/{file}")).expect("there");
        assert_eq!(secure(&read("auxv")), Some(false));
        let status = read("status");
        assert!(matches!(seccomp(&status, &status), Some(Seccomp::Off | Seccomp::Inherited)));
        let own = std::fs::read_link("/proc/self/exe").expect("there").into_os_string().into_encoded_bytes();
        let programs = programs(&read("maps"));
        assert!(programs.values().any(|path| *path == own));
        assert!(programs.values().any(|path| path.ends_with(b"/libc.so.6")));
    }

    #[test]
    fn a_filter_is_inherited_where_there_are_as_many_as_the_tracer_has() {
        let status = |mode: u8, filters: u8| format!("Name:\tx\nSeccomp:\t{mode}\nSeccomp_filters:\t{filters}\n");
        let judged = |mode, filters, own| seccomp(status(mode, filters).as_bytes(), status(own, own / 2).as_bytes());
        assert_eq!(judged(0, 0, 0), Some(Seccomp::Off));
        assert_eq!(judged(1, 0, 0), Some(Seccomp::Strict));
        assert_eq!(
            (judged(2, 1, 0), judged(2, 2, 2), judged(2, 1, 2)),
            (Some(Seccomp::Filter), Some(Seccomp::Filter), Some(Seccomp::Inherited))
        );
        assert_eq!(seccomp(b"Seccomp:\t2\n", b"Seccomp:\t2\n"), Some(Seccomp::Filter), "before 5.9 nobody counts them");
        assert_eq!(seccomp(b"", b""), None);
    }

    #[test]
    fn only_files_that_can_be_executed_count_and_blanks_stay_in_their_names() {
        let maps = b"00-10 r-xp 00000000 08:01 77                   /a b/c.so (deleted)\n10-20 rw-p 0 08:01 78 /d\n20-30 r-xp 0 00:00 0 [vdso]\n30-40 r-xp 0 00:00 0\n";
        let expected: BTreeMap<_, _> = [(b"08:01 77".to_vec(), b"/a b/c.so (deleted)".to_vec())].into();
        assert_eq!(programs(maps), expected);
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        let mut good = b"00-10 r-xp 00000000 08:01 77 /a b/c.so\nSeccomp:\t2\n".to_vec();
        good.extend(AT_SECURE.to_ne_bytes());
        good.extend(1_u64.to_ne_bytes());
        crate::mutations::each(&good, 20_000, |bytes| {
            let _all = (secure(bytes), seccomp(bytes, &good), programs(bytes));
        });
    }
}
