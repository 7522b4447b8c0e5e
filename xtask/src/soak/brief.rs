//! Short-lived processes, which the parent starts one after another: one that is killed while it floods, and one that becomes another
//! program in mid-stream.

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::hello::Hello;
use super::stage::Lane;
use super::talk::{Course, Ended, Style};
use super::{BLOCKING, EPOLL, EndOptions, FORK, POLL, Role};
use crate::environment::without_library;
use crate::exchange::{Dice, Pattern, connect, received};
use crate::paths;

/// What one that is to be killed says when it has its connection.
pub(super) const CONNECTED: &str = "connected";
/// Most messages before and after exec, and most bytes of one.
const MESSAGES_MAX: u64 = 60;
const MESSAGE_MAX: u64 = 16 << 10;

/// Where both come to.
fn socket(options: &EndOptions, dice: &mut Dice) -> std::path::PathBuf {
    options.directory.join(dice.pick(&[BLOCKING, EPOLL, POLL, FORK]))
}

/// Floods a server until it is killed.
///
/// # Errors
/// A wrong byte, or nobody kills it.
pub(super) fn victim(options: &EndOptions) -> Result<()> {
    let mut dice = Dice::new(options.seed, 5);
    let stream = connect(&socket(options, &mut dice))?;
    let hello = Hello { mortal: true, inherited_after: dice.below(20), ..Hello::echo(dice.next()) };
    hello.say(&stream)?;
    let mut out = std::io::stdout();
    writeln!(out, "{CONNECTED}").and_then(|()| out.flush())?;
    let lane = Lane::default();
    let ended = Course::new(&stream, hello.seed, &lane).flood(&mut dice)?;
    bail!("the server has ended the connection: {ended:?}")
}

/// Speaks, and then becomes another program that goes on; at that moment bytes may be on their way.
///
/// # Errors
/// A wrong byte, or exec fails.
pub(super) fn ancestor(options: &EndOptions) -> Result<()> {
    let mut dice = Dice::new(options.seed, 6);
    let stream = connect(&socket(options, &mut dice))?;
    let hello = Hello { inherited_after: dice.below(20), ..Hello::echo(dice.next()) };
    hello.say(&stream)?;
    let lane = Lane::default();
    let mut course = Course::new(&stream, hello.seed, &lane);
    speak(&mut course, &mut dice)?;
    let owed = if dice.one_in(2) { dice.size(MESSAGE_MAX) } else { 0 };
    let lead = course.position % 8;
    let mut bytes = vec![0; (lead + owed) as usize];
    Pattern(hello.seed).fill(course.position - lead, &mut bytes);
    (&stream).write_all(bytes.get(lead as usize..).unwrap_or_default())?;
    fcntl(&stream, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut command = Command::new(paths::OWN_PROGRAM);
    command.args(["soak-end", "heir", "--directory"]).arg(&options.directory);
    command.args(["--seed", &hello.seed.to_string(), "--descriptor", &stream.as_raw_fd().to_string()]);
    command.args(["--position", &course.position.to_string(), "--owed", &owed.to_string()]);
    if dice.one_in(4) {
        without_library(&mut command);
    }
    Err(command.exec()).context("cannot become another program")
}

/// The other program.
///
/// # Errors
/// A wrong byte, or the descriptor is none.
pub(super) fn heir(options: &EndOptions) -> Result<()> {
    let descriptor: RawFd = options.descriptor.context("an heir needs --descriptor")?;
    let stream = UnixStream::from(received(descriptor));
    let lane = Lane::default();
    let mut course = Course::new(&stream, options.seed, &lane);
    course.position = options.position;
    course.collect(options.owed)?;
    speak(&mut course, &mut Dice::new(options.seed, 7))
}

fn speak(course: &mut Course<'_>, dice: &mut Dice) -> Result<()> {
    let messages = dice.size(MESSAGES_MAX) - 1;
    let ended = course.converse(messages, MESSAGE_MAX, Style::blocking(), dice)?;
    ensure!(ended == Ended::Enough, "the server has ended the connection");
    Ok(())
}

/// Plays the role.
///
/// # Errors
/// Whatever must not be.
pub(super) fn play(options: &EndOptions) -> Result<()> {
    match options.role {
        Role::Victim => victim(options),
        Role::Ancestor => ancestor(options),
        _ => heir(options),
    }
}
