//! What `suggest` prints, read by the readers themselves: systemd's own parsers of `EnvironmentFile=` and of units, sh and bash, for names of
//! bytes that mean something to any of them.
//!
//! systemd need not run for it: its library has the one parser, and its manager with `--test` prints what the other made of a unit. Both are
//! below `TSSX_SYSTEMD`, which `cargo xtask test` sets: the machine's own systemd, or Debian's, unpacked.

mod common;
#[path = "../../tssx-core/src/mutations.rs"]
#[allow(dead_code, reason = "only the generator is used here")]
mod mutations;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::TRACER;
use mutations::Random;
use serde_json::{Value, json};

/// A process without any privilege.
const NOBODY: u32 = 65534;
/// Recordings, and names in each.
const ROUNDS: u64 = 10;
const NAMES: usize = 60;
/// The unit of the server in every recording.
const UNIT: &str = "redis-server.service";
const LIBRARY: &str = "/usr/lib/tssx/libtssx_preload.so";

/// What names are made of, the first part of it more often: all that a parser may take for something else.
const PIECES: [&[u8]; 52] = [
    b" ",
    b"\"",
    b"'",
    b"$",
    b"%",
    b"#",
    b";",
    b"\\",
    b"`",
    b"*",
    b"?",
    b"[",
    b"]",
    b"{a,b}",
    b"~",
    b"!",
    b"&",
    b"|",
    b"<",
    b">",
    b"(",
    b")",
    b"=",
    b":",
    b",",
    b"@",
    b"%h",
    b"%%",
    b"%n",
    b"$HOME",
    b"${x}",
    b"$(id)",
    b"\\x41",
    b"\\n",
    b"\\u00e4",
    b"\\\\",
    b"''",
    b"a",
    b"-",
    b"..",
    "ü€𝄞".as_bytes(),
    "\u{feff}".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{a0}".as_bytes(),
    "\u{fdd0}".as_bytes(),
    "\u{fffe}".as_bytes(),
    "\u{9b}".as_bytes(),
    b"\n",
    b"\t",
    b"\r",
    b"\x1b[31m",
    b"\xff\xc3",
];
/// How many of them can be written.
const WRITABLE: usize = 44;

/// Where systemd is.
struct Systemd {
    root: PathBuf,
}

impl Systemd {
    fn new() -> Self {
        let root = std::env::var_os("TSSX_SYSTEMD").expect(
            "TSSX_SYSTEMD must name the folder in which systemd is, / for the machine's own: run these tests by `cargo xtask test`",
        );
        Self { root: root.into() }
    }

    /// The one file that matches in one of the folders.
    fn find(&self, folders: &[&str], matches: impl Fn(&str) -> bool) -> PathBuf {
        let entries = folders.iter().filter_map(|folder| std::fs::read_dir(self.root.join(folder)).ok());
        let mut paths = entries.flatten().map(|entry| entry.expect("an entry").path());
        let is_it = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(&matches);
        paths.find(is_it).unwrap_or_else(|| panic!("{} has no systemd in {folders:?}", self.root.display()))
    }

    fn shared(&self) -> PathBuf {
        let own = format!("usr/lib/{}-linux-gnu/systemd", std::env::consts::ARCH);
        self.find(&[&own, "usr/lib/systemd", "lib/systemd"], |name| name.starts_with("libsystemd-shared-") && name.ends_with(".so"))
    }

    /// A command that finds the libraries that were unpacked with it.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.arg("60").arg(program);
        if self.root != Path::new("/") {
            let own = ["usr/lib", "lib"].map(|folder| self.root.join(folder).join(format!("{}-linux-gnu", std::env::consts::ARCH)));
            let folders = own.into_iter().chain(self.shared().parent().map(Path::to_path_buf));
            command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).expect("no colons"));
        }
        command
    }

    /// What a unit gets from an environment file; `Err`: why systemd takes nothing of it.
    fn environment_file(&self, reader: &Path, file: &Path) -> Result<Vec<Vec<u8>>, String> {
        let output = self.command(reader).arg(self.shared()).arg(file).output().expect("it starts");
        match output.status.code() {
            Some(0) => Ok(output.stdout.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect()),
            Some(3) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            other => panic!("{other:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// The variables that systemd gives [`UNIT`] by a drop-in.
    fn unit(&self, drop_in: &[u8]) -> Vec<Vec<u8>> {
        let directory = tempfile::tempdir().expect("a directory");
        open(directory.path(), 0o777); // it is the runtime directory too
        let folder = directory.path().join(format!("{UNIT}.d"));
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(directory.path().join(UNIT), "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/true\n")
            .expect("written");
        std::fs::write(folder.join("tssx.conf"), drop_in).expect("written");
        let manager = self.find(&["usr/lib/systemd", "lib/systemd"], |name| name == "systemd");
        let mut command = self.command(&manager);
        command.args(["--user", "--test", "--unit", UNIT]).env("SYSTEMD_UNIT_PATH", directory.path());
        command.env("HOME", directory.path()).env("XDG_RUNTIME_DIR", directory.path());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY); // root's manager tests nothing
        }
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = output.stdout.split(|byte| *byte == b'\n');
        let block = lines.skip_while(|line| !line.ends_with(format!("Unit {UNIT}:").as_bytes()));
        let assignments = block.filter_map(|line| line.strip_prefix(b"\t\tEnvironment: ").map(<[u8]>::to_vec));
        assignments.collect()
    }
}

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("opened");
}

/// A name, different from all others by its number.
fn name(random: &mut Random, number: usize) -> Vec<u8> {
    let mut name = if random.below(5) == 0 { format!("@{number}/").into_bytes() } else { format!("/run/{number}-").into_bytes() };
    let pieces = if random.below(4) == 0 { PIECES.len() } else { WRITABLE };
    for _ in 0..=random.below(12) {
        let piece = PIECES[random.below(pieces)];
        if name.len() + piece.len() < 100 {
            name.extend(piece);
        }
    }
    name
}

/// Whether every reader takes the name: systemd's wants UTF-8 without control characters and what Unicode says are no characters.
fn is_writable(name: &[u8]) -> bool {
    let is_none = |c: char| c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    std::str::from_utf8(name).is_ok_and(|text| !text.contains(is_none))
}

/// A name as recordings show it.
fn displayed(name: &[u8]) -> String {
    let bytes = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let shown = |c: char| match c {
        '\\' => String::from("\\\\"),
        plain if plain.is_control() => bytes(plain.to_string().as_bytes()),
        plain => plain.to_string(),
    };
    name.utf8_chunks().map(|chunk| chunk.valid().chars().map(shown).collect::<String>() + &bytes(chunk.invalid())).collect()
}

/// A recording of these sockets, all busy, each a service of [`UNIT`].
fn recording(names: &[Vec<u8>]) -> Value {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/busy.json");
    let mut recording: Value = serde_json::from_slice(&std::fs::read(kept).expect("kept")).expect("JSON");
    let all = recording["services"].as_array().expect("a list");
    let mut busy = all.iter().find(|service| service["display"] == "/run/redis.sock").expect("there").clone();
    for (field, value) in [("selected", json!(0)), ("accelerated", json!(0)), ("reasons", json!([])), ("ring_calls", Value::Null)] {
        busy[field] = value;
    }
    busy["ring_bytes"] = Value::Null;
    busy["file"] = Value::Null;
    let service = |name: &Vec<u8>| {
        let mut service = busy.clone();
        let (kind, bytes) = name.strip_prefix(b"@").map_or(("path", &name[..]), |rest| ("abstract", rest));
        let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        service["name"] = json!({"kind": kind, "name": escaped});
        service["display"] = json!(displayed(name));
        service
    };
    recording["services"] = names.iter().map(service).collect();
    recording["unnamed"] = json!([]);
    recording
}

fn suggest(recording: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new(TRACER).args(["suggest", "--from"]).arg(recording).args(options).env_remove("TSSX_PRELOAD").output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The names that the library reads out of `USE_TSSX`: a blank ends one, a backslash makes the next byte an ordinary one.
fn words(value: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut words = vec![Vec::new()];
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => words.last_mut().expect("a word").extend(bytes.next()),
            b' ' => words.push(Vec::new()),
            other => words.last_mut().expect("a word").push(*other),
        }
    }
    words.into_iter().collect()
}

/// The value of `USE_TSSX` among assignments, which must be all that there are with the library's.
fn selection(assignments: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
    let [first, second] = assignments else { panic!("{} assignments: {assignments:?}", assignments.len()) };
    assert_eq!(String::from_utf8_lossy(second), format!("LD_PRELOAD={LIBRARY}"));
    words(first.strip_prefix(b"USE_TSSX=").unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(first))))
}

/// What a shell has in both variables when it has sourced the file.
fn sourced(shell: &str, file: &Path) -> Vec<Vec<u8>> {
    let script = "set -eu; set -a; . \"$1\"; set +a; printf 'USE_TSSX=%s\\0LD_PRELOAD=%s' \"$USE_TSSX\" \"$LD_PRELOAD\"";
    let output = Command::new(shell).args(["-c", script, "sh"]).arg(file).env_clear().output().expect("a shell");
    assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Builds the reader of environment files.
fn reader(directory: &Path) -> PathBuf {
    let program = directory.join("environment_file");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/environment_file.c");
    let built = Command::new("cc").args(["-Wall", "-Werror", "-o"]).arg(&program).arg(source).status();
    assert!(built.expect("cc starts: install a C compiler").success());
    program
}

#[test]
fn every_reader_takes_every_name_byte_for_byte_or_it_is_a_comment() {
    let seed = std::env::var("TSSX_SEED").map_or(0x7550_0007, |seed| seed.parse().expect("TSSX_SEED is a number"));
    println!("names with TSSX_SEED={seed}");
    let (systemd, directory) = (Systemd::new(), tempfile::tempdir().expect("a directory"));
    let reader = reader(directory.path());
    let (mut written, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let mut random = Random::new(seed + round * 2);
        let names: Vec<_> = (0..NAMES).map(|number| name(&mut random, number)).collect();
        let expected: BTreeSet<_> = names.iter().filter(|name| is_writable(name)).cloned().collect();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("recording.json"), recording(&names).to_string()).expect("written");
        let file = suggest(&path("recording.json"), &[]);
        let out = file.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"# out ")).count();
        assert_eq!((out, expected.len() + out), (names.len() - expected.len(), NAMES), "{}", String::from_utf8_lossy(&file));
        std::fs::write(path("tssx.env"), &file).expect("written");
        for shell in ["sh", "bash"] {
            assert_eq!(selection(&sourced(shell, &path("tssx.env"))), expected, "{shell}, round {round}");
        }
        let taken = systemd.environment_file(&reader, &path("tssx.env")).unwrap_or_else(|why| panic!("round {round}: {why}"));
        assert_eq!(selection(&taken), expected, "EnvironmentFile=, round {round}");
        for options in [&["--format", "systemd", "--unit", UNIT][..], &["--format", "systemd"]] {
            let mut text = suggest(&path("recording.json"), options);
            // Without a unit's name the drop-ins of all are printed, one below the other: this one's is up to the next.
            let start = text.windows(9).position(|window| window == b"[Service]").expect("a drop-in");
            let rest = text.split_off(start);
            let end = rest.windows(6).position(|window| window == b"# file").unwrap_or(rest.len());
            assert_eq!(selection(&systemd.unit(&[&text, &rest[..end]].concat())), expected, "{options:?}, round {round}");
        }
        written += expected.len();
        refused += out;
    }
    assert!(written > 400 && refused > 30, "names of both kinds: {written} {refused}");
}

#[test]
fn the_readers_are_not_blind() {
    let (systemd, directory) = (Systemd::new(), tempfile::tempdir().expect("a directory"));
    let reader = reader(directory.path());
    let read = |text: &[u8]| {
        let file = directory.path().join("tssx.env");
        std::fs::write(&file, text).expect("written");
        systemd.environment_file(&reader, &file)
    };
    // What becomes of values that are not written as `suggest` writes them.
    let taken = read(b"A=b c \nB=\"x\\$\\y\"'z'\n# c\\\nC=hidden\nD=\"$HOME %h\"\nE=\"tab\tbed\"\n").expect("taken");
    assert_eq!(taken, [&b"A=b c"[..], b"B=x$\\yz", b"D=$HOME %h", b"E=tab\tbed"].map(<[u8]>::to_vec));
    for not_text in [&b"A=\"\xff\"\n"[..], "A=\"\u{fffe}\"\n".as_bytes()] {
        assert!(read(not_text).is_err(), "{not_text:?}");
    }
    let unit = |lines: &str| systemd.unit(format!("[Service]\n{lines}\n").as_bytes());
    assert_eq!(unit("Environment=\"A=%N\" B=x\\x20y \"C=%%N\""), [&b"A=redis-server"[..], b"B=x y", b"C=%N"].map(<[u8]>::to_vec));
}
