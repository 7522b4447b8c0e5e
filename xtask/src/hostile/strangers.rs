//! Two processes of one user exchange bytes over connection after connection, and a third process, of another user, does to them what it can.
//!
//! It finds their sockets where everybody can (`/proc/net/unix`), visits every mailbox that opens with an honest offer, binds the names of mailboxes
//! that will be opened, asks the kernel for their descriptors and memory, and for the end of their connections. None of it may work, and
//! not a byte may be wrong.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, accept, recvmsg};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use tssx_core::reason::Reason;

use super::control::{self, Control};
use super::fields::side;
use super::{EndOptions, Reaped, offers};
use crate::census::text_of;
use crate::environment::without_library;
use crate::exchange::{Counts, connect};
use crate::run;

/// Connections of one game.
const CONNECTIONS: u64 = 150;
/// Messages on each: enough for rings, and for an attacker to come in time.
const MESSAGES: u64 = 60;
/// Longest that a game may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Two users who are not root: nobody and daemon.
const USERS: [u32; 2] = [65_534, 1];

/// What the stranger says when it has begun.
const READY: &str = "ready";

/// What a stranger has tried.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Tried {
    /// Offers that it could deliver to an open mailbox.
    offers: u64,
    /// Names that it had before their owner.
    names: u64,
    /// Whoever came to these.
    visitors: u64,
    /// Looks at descriptors and memory, by what the kernel said.
    refusals: BTreeMap<String, u64>,
}

/// Plays both orders and prints what was tried.
///
/// # Errors
/// Something worked, or a byte was wrong.
pub(super) fn strangers(preload: &str, seed: u64) -> Result<()> {
    for users in [USERS, [USERS[1], USERS[0]]] {
        let (tried, counts) = game(preload, seed, users).with_context(|| format!("user {} against user {}", users[1], users[0]))?;
        let refusals: Vec<_> = tried.refusals.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!(
            "user {} against user {}: {} offers delivered, {} names of mailboxes taken, {} visitors there; {}; {CONNECTIONS} connections exact, \
             {} in rings; reasons: {}",
            users[1],
            users[0],
            tried.offers,
            tried.names,
            tried.visitors,
            refusals.join(", "),
            counts.upgraded,
            counts.reasons()
        );
        let refused = counts.reasons.get(Reason::PeerCredentials as usize).copied().unwrap_or(0);
        ensure!(tried.offers + tried.names > 0 && tried.refusals.len() > 2, "nothing was tried");
        ensure!(counts.upgraded > 0, "no connection was accelerated in spite of the stranger");
        ensure!(tried.visitors == 0 || refused > 0, "nobody has counted that a stranger was met");
    }
    Ok(())
}

fn game(preload: &str, seed: u64, users: [u32; 2]) -> Result<(Tried, Counts)> {
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
    let own = directory.path().join("own");
    std::fs::create_dir(&own)?;
    chown(&own, Some(users[0]), Some(users[0]))?;
    let end = |name: &str, user: u32, pids: &[u32]| -> Result<Command> {
        let mut command = Command::new(crate::paths::OWN_PROGRAM);
        command.arg(name).arg("--directory").arg(&own).args(["--seed", &seed.to_string(), "--user", &user.to_string()]);
        command.args(pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]));
        without_library(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    };
    let preloaded = |mut command: Command| {
        command.env("LD_PRELOAD", preload).env("USE_TSSX", own.join("*")).env("ASAN_OPTIONS", super::sanitizer::OPTIONS);
        command
    };
    let server = Reaped(preloaded(end("hostile-friend", users[0], &[])?).arg("--accept").stdout(Stdio::null()).spawn()?);
    let mut client = Reaped(preloaded(end("hostile-friend", users[0], &[])?).stdin(Stdio::piped()).spawn()?);
    let pids = [server.0.id(), client.0.id()];
    let mut stranger = Reaped(end("hostile-stranger", users[1], &pids)?.stdin(Stdio::piped()).spawn()?);
    let mut says = BufReader::new(stranger.0.stdout.take().context("its output was asked for")?);
    let mut line = String::new();
    says.read_line(&mut line)?;
    ensure!(line.trim() == READY, "the stranger failed; what it said is above");
    drop(client.0.stdin.take()); // now they begin
    let ended = run::wait(&mut client.0, DEADLINE);
    drop(stranger.0.stdin.take()); // it has seen enough
    ensure!(ended?.success(), "one of the two failed; what it said is above");
    ensure!(
        run::wait(&mut stranger.0, DEADLINE)?.success(),
        "the stranger failed, or got what it should not; what it said is above"
    );
    let counts = client.0.stdout.take().context("its output was asked for")?;
    Ok((serde_json::from_reader(says)?, serde_json::from_reader(counts)?))
}

/// From now on this process is that user's, as any other of that user is.
fn become_user(user: Option<u32>) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let (uid, gid) = (Uid::from_raw(user.context("--user is missing")?), Gid::from_raw(user.unwrap_or(0)));
    setgroups(&[])
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .context("only root can be another user")?;
    set_dumpable(true).context("cannot be seen as others are")
}

/// One of the two.
///
/// # Errors
/// A wrong byte, or an error.
pub(crate) fn friend(options: &EndOptions) -> Result<()> {
    become_user(options.user)?;
    let socket = options.directory.join(control::NAME);
    if options.accept {
        let listener = UnixListener::bind(&socket)?;
        return (0..CONNECTIONS).try_for_each(|_| control::answer(listener.accept()?.0, options.seed));
    }
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?; // until the stranger is there
    for _ in 0..CONNECTIONS {
        Control::new(connect(&socket)?, options.seed).exchange(MESSAGES)?;
    }
    println!("{}", serde_json::to_string(&Counts::of_this_process(CONNECTIONS, 0)?)?);
    Ok(())
}

/// The third, until its standard input ends.
///
/// # Errors
/// It got something.
pub(crate) fn stranger(options: &EndOptions) -> Result<()> {
    become_user(options.user)?;
    let own = options.directory.join(control::NAME);
    let (mut tried, mut names, mut made) = (Tried::default(), BTreeMap::new(), Vec::new());
    let over = std::thread::spawn(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let mut rounds = 0_u64;
    while !over.is_finished() {
        for socket in sockets(&own)? {
            match socket {
                Socket::Mailbox(inode) if !names.contains_key(&inode) => {
                    made.extend(offers::visit(inode)?);
                    tried.offers = made.len() as u64;
                }
                Socket::Stream(inode) if rounds.is_multiple_of(3) => {
                    names.entry(inode).or_insert_with(|| offers::listener(inode).ok());
                }
                _ => {}
            }
        }
        for listener in names.values().flatten() {
            tried.visitors += u64::from(receives_nothing(listener)?);
        }
        options.pid.iter().try_for_each(|pid| pry(*pid, &mut tried))?;
        if rounds == 0 {
            println!("{READY}");
        }
        rounds += 1;
    }
    tried.names = names.values().flatten().count() as u64;
    for memory in made {
        ensure!(memory.load(side(1), 4) == 0, "a stranger's segment was joined");
    }
    println!("{}", serde_json::to_string(&tried)?);
    Ok(())
}

/// What everybody can see.
enum Socket {
    /// A mailbox, for the socket with this inode.
    Mailbox(u64),
    /// A connection that was accepted at the victims' name.
    Stream(u64),
}

fn sockets(own: &Path) -> Result<Vec<Socket>> {
    let table = text_of(Path::new("/proc/net/unix"))?;
    let found = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(6);
        let (inode, name) = (words.next()?.parse().ok()?, words.next()?);
        match name.strip_prefix("@tssx/3/") {
            Some(of) => Some(Socket::Mailbox(u64::from_str_radix(of, 16).ok()?)),
            None => (Path::new(name) == own).then_some(Socket::Stream(inode)),
        }
    });
    Ok(found.collect())
}

/// Whether somebody came; whoever comes must bring nothing.
fn receives_nothing(listener: &OwnedFd) -> Result<bool> {
    let Ok(visitor) = accept(listener.as_raw_fd()) else { return Ok(false) };
    let visitor = super::descriptor::owned(visitor);
    let mut room = nix::cmsg_space!([i32; 4]);
    let mut bytes = [0; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    // The end comes at once, or the message: a visitor does not wait.
    match recvmsg::<()>(visitor.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC) {
        Ok(message) => ensure!(message.bytes == 0 && message.cmsgs()?.next().is_none(), "a stranger was given a segment"),
        Err(Errno::ECONNRESET) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(true)
}

/// Asks the kernel for what another user's process has.
fn pry(pid: u32, tried: &mut Tried) -> Result<()> {
    let mut refused = |what: &str, result: std::io::Result<()>| match result {
        Ok(()) => bail!("{what} of process {pid} worked"),
        Err(error) => {
            // A process that has ended has nothing.
            *tried.refusals.entry(format!("{what}: {}", error.kind())).or_default() += 1;
            Ok(())
        }
    };
    let path = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    refused("list of descriptors", std::fs::read_dir(path("fd")).map(drop))?;
    refused("list of mappings", std::fs::read_dir(path("map_files")).map(drop))?;
    refused("a descriptor", File::open(path("fd/3")).map(drop))?;
    refused("memory", OpenOptions::new().read(true).write(true).open(path("mem")).map(drop))?;
    // Of a process that has just ended they are empty, to everybody.
    let ended = || std::io::Error::from(std::io::ErrorKind::NotFound);
    refused("maps", std::fs::read_to_string(path("maps")).and_then(|maps| if maps.is_empty() { Err(ended()) } else { Ok(()) }))?;
    refused("a signal", kill(Pid::from_raw(pid.cast_signed()), None).map_err(Into::into))
}
