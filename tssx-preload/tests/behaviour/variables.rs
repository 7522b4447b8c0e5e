//! Variables of any bytes: each that the library reads is mutated, and the program that it is loaded into must do what it does without, while
//! a value that cannot be used is told once, on standard error and in the log.
//!
//! The program talks to itself over a connection whose name is selected, and reads its standard input: a stream socket, which is what
//! `TSSX_REMAINDER` is about, together with the descriptor of a memory that looks like a segment and is none.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use libtest_mimic::{Failed, Trial};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tssx_core::layout::{CAPACITY_MIN, segment_size};

use crate::environment::without_library;
use crate::harness::{DEADLINE, same};
use crate::library::library;
use crate::mutations;
use crate::policy::{ParseError, Policy};
use crate::process::{Ended, Process};
use crate::programs::compile;

/// Values of each variable that are tried.
const COUNT: usize = 60;
/// Selections that are tried, and names.
const SELECTIONS: usize = 10_000;
/// The connection's name.
const SOCKET: &str = "x.sock";
const LOG: &str = "log";

/// Good values, which go together. `FD` is the number of a memory.
const VARIABLES: [(&str, &str); 7] = [
    ("USE_TSSX", "/run/x[a-c]*/?.sock @name /a\\ b x.s*"),
    ("TSSX_REMAINDER", "0:FD:0,1:FD:1,FD:FD:0,0:0:0,"),
    ("TSSX_UPGRADE_AFTER", "2"),
    ("TSSX_SPIN_US", "50"),
    ("TSSX_MEMORY_MAX", "64M"),
    ("TSSX_LOG", LOG),
    ("TSSX_DISABLE", "0"),
];

/// A value of each variable that can have one which is of no use: no few mutations may come to one.
const USELESS: [(&str, &[u8]); 5] = [
    ("USE_TSSX", b"x.s* \\"),
    ("TSSX_UPGRADE_AFTER", b"-1"),
    ("TSSX_SPIN_US", b"1000001"),
    ("TSSX_MEMORY_MAX", b"17592186044416M"),
    ("TSSX_LOG", b"."),
];

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    let all = VARIABLES.iter().map(|(name, _)| Trial::test(format!("any-bytes-in-{name}"), || any_bytes_in(name)));
    all.chain([Trial::test("any-bytes-as-a-selection", any_selection), Trial::test("any-bytes-as-a-name-with-escapes", any_name)])
        .collect()
}

/// What the program inherits and is told of.
struct Setting {
    program: std::path::PathBuf,
    memory: File,
}

impl Setting {
    fn new(directory: &Path) -> Result<Self, Failed> {
        let program = compile(include_str!("programs/talks_to_itself.c"), &directory.join("program"), &[])?;
        // Of a segment's size, and sealed as one is; inherited.
        let mut memory = File::from(memfd_create(c"any bytes", MFdFlags::MFD_ALLOW_SEALING)?);
        memory.set_len(segment_size(CAPACITY_MIN))?;
        memory.write_all(&[0x55; 8192])?;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
        Ok(Self { program, memory })
    }

    fn good(&self, name: &str) -> String {
        let (_, good) = VARIABLES.iter().find(|(known, _)| *known == name).expect("one of them");
        good.replace("FD", &self.memory.as_raw_fd().to_string())
    }

    /// Runs it in `directory`, with the library if there is a variable to set to a value.
    fn run(&self, directory: &Path, variable: Option<(&str, &[u8])>) -> Result<Ended, Failed> {
        let (mut near, far) = UnixStream::pair()?;
        near.write_all(b"what is sent")?;
        near.shutdown(Shutdown::Write)?;
        let mut command = Command::new(&self.program);
        without_library(&mut command);
        command.arg(SOCKET).current_dir(directory).stdin(Stdio::null());
        if let Some((name, value)) = variable {
            command.env("LD_PRELOAD", library()).envs(VARIABLES.map(|(name, _)| (name, self.good(name))));
            command.env(name, OsStr::from_bytes(value));
        }
        Ok(Process::start_reading(&mut command, OwnedFd::from(far).into())?.finish(Instant::now() + DEADLINE))
    }
}

fn any_bytes_in(name: &str) -> Result<(), Failed> {
    let place = tempfile::tempdir()?;
    let setting = Setting::new(place.path())?;
    let plain_place = tempfile::tempdir()?;
    let plain = setting.run(plain_place.path(), None)?;
    if plain.code != Some(0) || !plain.stdout.ends_with("then 0\nthe child ended with 0\nwhat is sent, and 0\n") {
        return Err(format!("the program itself is wrong: {}", plain.all()).into());
    }
    let (mut failure, mut upgraded, mut told) = (Ok(()), 0, 0);
    if let Some((_, value)) = USELESS.iter().find(|(known, _)| *known == name)
        && !one(&setting, &plain, name, value)?.told
    {
        return Err(format!("{name}={} is used", value.escape_ascii()).into());
    }
    mutations::each(setting.good(name).as_bytes(), COUNT, |bytes| {
        // An environment holds no NUL; and a log stays in the directory.
        let value: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0 && (name != "TSSX_LOG" || *byte != b'/')).collect();
        if failure.is_ok() {
            let wrong = |error: Failed| format!("{name}={}: {}", value.escape_ascii(), error.message().unwrap_or_default()).into();
            let seen = one(&setting, &plain, name, &value).map_err(wrong);
            failure = seen.map(|seen| (upgraded, told) = (upgraded + u32::from(seen.upgraded), told + u32::from(seen.told)));
        }
    });
    println!("{name}: {upgraded} upgraded, {told} told to be of no use");
    if failure.is_ok() && upgraded == 0 {
        return Err("no connection was ever upgraded".into());
    }
    failure
}

/// What came of a value.
struct Seen {
    upgraded: bool,
    told: bool,
}

fn one(setting: &Setting, plain: &Ended, name: &str, value: &[u8]) -> Result<Seen, Failed> {
    let directory = tempfile::tempdir()?;
    let ended = setting.run(directory.path(), Some((name, value)))?;
    if ended.code != Some(0) {
        return Err(ended.all().into());
    }
    same(&plain.stdout, &ended.stdout)?;
    let file = if name == "TSSX_LOG" { OsStr::from_bytes(value) } else { OsStr::new(LOG) };
    let in_file = if file.is_empty() { None } else { std::fs::read_to_string(directory.path().join(file)).ok() };
    let to_stderr = name == "TSSX_LOG" && value == b"stderr";
    let log = if to_stderr { ended.stderr.clone() } else { in_file.clone().unwrap_or_default() };
    let unusable = if name == "TSSX_LOG" { in_file.is_none() && !value.is_empty() } else { !is_usable(name, value) };
    let complaint = ended.stderr.strip_prefix("tssx: ");
    let told = match complaint {
        Some(line) if unusable && line.lines().count() == 1 && line.starts_with(name) => name == "TSSX_LOG" || log.contains(line),
        None => !unusable,
        Some(_) => to_stderr,
    };
    if !told || (complaint.is_none() && !ended.stderr.is_empty()) {
        return Err(format!("usable: {}, and it says: {}log:\n{log}", !unusable, ended.all()).into());
    }
    Ok(Seen { upgraded: log.contains("upgraded"), told: unusable })
}

/// Whether README's table takes this value.
fn is_usable(name: &str, value: &[u8]) -> bool {
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    match name {
        // The others are about lengths, which no few mutations reach.
        "USE_TSSX" => !value.iter().fold(false, |escaped, byte| *byte == b'\\' && !escaped),
        "TSSX_UPGRADE_AFTER" => number(value).is_some_and(|count| count <= u64::MAX / 16),
        "TSSX_SPIN_US" => number(value).is_some_and(|time| time <= 1_000_000),
        "TSSX_MEMORY_MAX" => {
            let units: [(&[u8], u32); 4] = [(b"kK", 10), (b"mM", 20), (b"gG", 30), (b"tT", 40)];
            let unit = units.iter().find(|(letters, _)| value.last().is_some_and(|last| letters.contains(last)));
            let (digits, shift) = unit.map_or((value, 0), |(_, shift)| (&value[..value.len() - 1], *shift));
            number(digits).is_some_and(|bytes| bytes.checked_mul(1 << shift).is_some())
        }
        _ => true,
    }
}

fn any_selection() -> Result<(), Failed> {
    let many = "x ".repeat(256);
    let long = "y".repeat(108);
    let full = format!("/{}", "z[".repeat(8190));
    let mut refused = Vec::new();
    let mut policy = Box::new(Policy::empty());
    for good in [VARIABLES[0].1, &many, &long, &full] {
        mutations::each(good.as_bytes(), SELECTIONS / 4, |text| match policy.parse(text) {
            Ok(()) => {
                let words = text.split(|byte| b" \t\n".contains(byte)).filter(|word| !word.is_empty()).count();
                assert!(policy.is_empty() == (words == 0));
                let _selected = [&b"x.sock"[..], b"\0name", b"/a b"].map(|name| policy.selects(name));
            }
            Err(error) => refused.push(error),
        });
    }
    let all = [ParseError::TooLong, ParseError::TooMany, ParseError::EndsInBackslash, ParseError::NameTooLong];
    match all.iter().find(|error| !refused.contains(error)) {
        Some(never) => Err(format!("{never:?} was never said").into()),
        None => Ok(()),
    }
}

fn any_name() -> Result<(), Failed> {
    let mut policy = Box::new(Policy::empty());
    mutations::each(b"/run/a b/*[x]?\\\xff.sock", SELECTIONS, |bytes| {
        // A path ends before its first NUL.
        let name: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
        let text: Vec<u8> = name.iter().flat_map(|byte| [b'\\', *byte]).collect();
        policy.parse(&text).expect("short");
        assert!(name.is_empty() || policy.selects(&name), "it selects itself");
        assert!(!policy.selects(&[&name, &b"x"[..]].concat()) && !policy.selects(b"/another"), "and no other");
    });
    Ok(())
}
