//! The processes of the self-test. They talk through libc, as other programs do, and tell what the library has written about it.

use std::io::{BufRead, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tssx_core::ledger::view::SlotSnapshot;
use tssx_core::reason::Reason;

use super::PATIENCE;
use crate::ledgers::own_slots;
use crate::output::result;

/// Bytes of a message.
pub(crate) const SIZE: usize = 1024;
/// Round trips before those that count: past the upgrade.
const WARM_UP: u64 = 1000;
/// Round trips that count.
pub(crate) const COUNT: u64 = 2000;

/// What a process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Tell whether this file is mapped.
    Look(PathBuf),
    /// Accept one connection and send everything back.
    Serve(PathBuf),
    /// Connect, send, and check what comes back; with a pause before the round trips that count.
    Ask(PathBuf),
}

/// What a process prints, one JSON text a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Statement {
    /// Whether the library is mapped.
    pub(crate) mapped: bool,
    /// The library's statistics on the connection; `None` where it keeps none.
    pub(crate) counts: Option<Counts>,
}

/// From the ledger's slot of an end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) ring_tx_bytes: u64,
    pub(crate) ring_rx_bytes: u64,
    pub(crate) doorbells: u64,
    pub(crate) doorbell_bytes: u64,
    pub(crate) sleeps: u64,
    /// Why the end is on the kernel socket: the reason's name and the sentence for it.
    pub(crate) reason: Option<(String, String)>,
}

impl Counts {
    fn of(slot: &SlotSnapshot) -> Self {
        let reason = match Reason::from_code(slot.reason) {
            Some(Reason::None) => None,
            Some(reason) => Some((reason.name().to_owned(), reason.explanation().to_owned())),
            None => Some((format!("reason-{}", slot.reason), String::from("not a reason that this release knows"))),
        };
        Self {
            ring_tx_bytes: slot.ring_tx_bytes,
            ring_rx_bytes: slot.ring_rx_bytes,
            doorbells: slot.doorbell_tx_calls.saturating_add(slot.doorbell_rx_calls),
            doorbell_bytes: slot.doorbell_tx_bytes.saturating_add(slot.doorbell_rx_bytes),
            sleeps: slot.sleeps,
            reason,
        }
    }
}

impl Task {
    /// Does it.
    ///
    /// # Errors
    /// The other end does not come, is silent for too long, or sends something else than it should.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Look(library) => {
                let maps = std::fs::read("/proc/self/maps").context("cannot read /proc/self/maps: mount /proc")?;
                let name = library.as_os_str().as_encoded_bytes();
                let mapped = maps.split(|byte| *byte == b'\n').any(|line| line.ends_with(name));
                tell(&Statement { mapped, counts: None })
            }
            Self::Serve(socket) => serve(socket),
            Self::Ask(socket) => ask(socket),
        }
    }
}

fn tell(statement: &Statement) -> anyhow::Result<()> {
    Ok(result(&(serde_json::to_string(statement)? + "\n"))?)
}

/// What the library says of this process's one connection.
fn state() -> anyhow::Result<()> {
    let counts = own_slots()?.as_deref().and_then(<[SlotSnapshot]>::first).map(Counts::of);
    tell(&Statement { mapped: true, counts })
}

fn serve(socket: &PathBuf) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    tell(&Statement::default())?;
    let (mut stream, _) = listener.accept().context("cannot accept")?;
    bounded(&stream)?;
    let mut buffer = [0; SIZE];
    loop {
        match stream.read(&mut buffer).context("receiving")? {
            0 => break,
            size => stream.write_all(buffer.get(..size).unwrap_or_default()).context("sending")?,
        }
    }
    state()
}

fn ask(socket: &PathBuf) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    bounded(&stream)?;
    (0..WARM_UP).try_for_each(|number| round_trip(&mut stream, number))?;
    state()?;
    if std::io::stdin().lock().read_line(&mut String::new())? == 0 {
        bail!("nobody waits for the result any more");
    }
    (WARM_UP..WARM_UP + COUNT).try_for_each(|number| round_trip(&mut stream, number))?;
    state()
}

fn bounded(stream: &UnixStream) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream.set_write_timeout(Some(PATIENCE))?)
}

/// Sends a message that no other is like, and checks what comes back.
fn round_trip(stream: &mut UnixStream, number: u64) -> anyhow::Result<()> {
    let bytes = number.to_le_bytes().into_iter().cycle().zip(0_u8..=250).map(|(byte, place)| byte ^ place);
    let message: Vec<u8> = bytes.cycle().take(SIZE).collect();
    stream.write_all(&message).context("sending")?;
    let mut answer = [0; SIZE];
    stream.read_exact(&mut answer).context("receiving")?;
    ensure!(message == answer, "message {number} came back changed");
    Ok(())
}
