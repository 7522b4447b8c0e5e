//! Files of `/proc/PID`. Of some that process determines the length, and we read them with privileges: so what it can make us keep has a bound.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// Most that is kept of one file, bytes. A process with as many mappings as the kernel allows (`vm.max_map_count`, 65 530), few of them of files,
/// has 6 MiB of `maps`.
const MAX_BYTES: u64 = 16 << 20;
/// Longest line, bytes: that of a mapping has at most a path (`PATH_MAX`, with each byte escaped), and some numbers before.
const LINE_MAX: u64 = 32 << 10;

/// All of `/proc/PID/FILE`. `None` if the process is gone, or where there is more than anybody needs.
pub(crate) fn read(pid: impl Display, file: &str) -> Option<Vec<u8>> {
    read_all(open(pid, file)?, MAX_BYTES)
}

/// Whether `/proc/PID/FILE` has nothing in it. `None` if the process is gone, or may not be asked.
pub(crate) fn is_empty(pid: impl Display, file: &str) -> Option<bool> {
    Some(open(pid, file)?.read(&mut [0]).ok()? == 0)
}

/// Shows `each` line of `/proc/PID/FILE`, without its end. `None` if the process is gone.
pub(crate) fn lines(pid: impl Display, file: &str, each: impl FnMut(&[u8])) -> Option<()> {
    all_lines(BufReader::new(open(pid, file)?), each)
}

fn open(pid: impl Display, file: &str) -> Option<File> {
    File::open(format!("/proc/{pid}/{file}")).ok()
}

fn read_all(from: impl Read, most: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(most + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= most).then_some(bytes)
}

/// What is longer than a line can be comes in pieces.
fn all_lines(mut from: impl BufRead, mut each: impl FnMut(&[u8])) -> Option<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut from).take(LINE_MAX).read_until(b'\n', &mut line).ok()? == 0 {
            return Some(());
        }
        each(line.strip_suffix(b"\n").unwrap_or(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_the_bound() {
        assert_eq!(read_all(&[7; 100][..], 100), Some(vec![7; 100]));
        assert_eq!(read_all(std::io::repeat(7), 100), None, "a file without an end");
    }

    #[test]
    fn lines_come_whole_up_to_the_longest() {
        let longest = usize::try_from(LINE_MAX).expect("small");
        let text = [b"one\n\n".as_slice(), &vec![b'x'; longest + 1], b"\nlast"].concat();
        let mut lengths = Vec::new();
        assert_eq!(all_lines(text.as_slice(), |line| lengths.push(line.len())), Some(()));
        assert_eq!(lengths, [3, 0, longest, 1, 4]);
    }

    #[test]
    fn own_files_are_read_and_those_of_nobody_are_not() {
        let own = std::process::id();
        let mut found = 0;
        assert_eq!(lines(own, "maps", |line| found += usize::from(line.ends_with(b"[stack]"))), Some(()));
        assert_eq!(found, 1);
        assert!(read(own, "status").is_some_and(|status| status.starts_with(b"Name:")));
        assert_eq!(
            (is_empty(own, "environ"), is_empty(own, "coredump_filter")),
            (Some(std::env::vars_os().next().is_none()), Some(false))
        );
        assert_eq!((read(u32::MAX, "status"), lines(u32::MAX, "maps", |_| ()), is_empty(u32::MAX, "environ")), (None, None, None));
    }
}
