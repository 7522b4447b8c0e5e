//! Offers that should not be: what a visitor of the victim's mailbox may bring, and who it may be.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, sendmsg, socket,
};
use nix::unistd::{Uid, geteuid, pipe, seteuid};
use tssx_core::layout::{ASLEEP, CAPACITY_MAX, CAPACITY_MIN, Direction, SEGMENT_MAGIC, SEGMENT_VERSION, segment_size};

use super::fields::{direction, side};
use super::memory::Memory;
use super::peer::Peer;

/// Bytes of an honest segment here: the smallest.
pub(super) const LENGTH: usize = segment_size(CAPACITY_MIN) as usize;
/// What an honest visitor says.
const TEXT: &[u8] = b"TSSXOFR1";
/// A user who is nobody's peer here.
const NOBODY: u32 = 65_534;
/// More descriptors than any buffer has room for, within the kernel's limit of 253.
const MANY: usize = 200;
/// More visitors than a mailbox takes.
const CROWD: usize = 8;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Abuse {
    WrongMagic,
    WrongVersion,
    WrongCapacity,
    OtherInode,
    Unsealed,
    NoShrinkSeal,
    NoGrowSeal,
    NoSealSeal,
    WriteSealed,
    ReadOnly,
    Empty,
    PageShort,
    ByteLong,
    OddSize,
    TooLarge,
    Terabyte,
    Pipe,
    Socket,
    Device,
    File,
    Directory,
    EventCounter,
    WrongText,
    ShortText,
    LongText,
    NoText,
    NoDescriptor,
    TwoDescriptors,
    ManyDescriptors,
    Silent,
    Crowd,
    /// Memory that another connection has already.
    Replayed,
    /// An honest offer, by another user.
    Stranger,
    /// Another user has bound the name of the victim's mailbox.
    Squatter,
    /// Another user listens in the place of the attacker's mailbox, to get the victim's segment.
    Impostor,
    /// A mailbox where nobody looks.
    Unattended,
    /// Nothing at all.
    Nothing,
}

impl Abuse {
    pub(super) const ALL: [Self; 37] = [
        Self::WrongMagic,
        Self::WrongVersion,
        Self::WrongCapacity,
        Self::OtherInode,
        Self::Unsealed,
        Self::NoShrinkSeal,
        Self::NoGrowSeal,
        Self::NoSealSeal,
        Self::WriteSealed,
        Self::ReadOnly,
        Self::Empty,
        Self::PageShort,
        Self::ByteLong,
        Self::OddSize,
        Self::TooLarge,
        Self::Terabyte,
        Self::Pipe,
        Self::Socket,
        Self::Device,
        Self::File,
        Self::Directory,
        Self::EventCounter,
        Self::WrongText,
        Self::ShortText,
        Self::LongText,
        Self::NoText,
        Self::NoDescriptor,
        Self::TwoDescriptors,
        Self::ManyDescriptors,
        Self::Silent,
        Self::Crowd,
        Self::Replayed,
        Self::Stranger,
        Self::Squatter,
        Self::Impostor,
        Self::Unattended,
        Self::Nothing,
    ];

    pub(super) fn victim_accepts(self) -> bool {
        !matches!(self, Self::Impostor | Self::Unattended)
    }

    /// Whether only root can play it, because it takes two users.
    pub(super) fn needs_root(self) -> bool {
        matches!(self, Self::Stranger | Self::Squatter | Self::Impostor)
    }
}

/// What is brought, and kept to look at.
struct Offer {
    files: Vec<OwnedFd>,
    text: Vec<u8>,
    /// If the victim could join it: whether it has.
    memory: Option<Memory>,
}

/// Plays one on a connection that has carried a message. What it holds on to is returned.
///
/// # Errors
/// What the attacker itself could not do, or a victim that joined what it should not.
pub(super) fn abuse(abuse: Abuse, peer: &Peer, before: Option<&File>) -> Result<Vec<OwnedFd>> {
    match abuse {
        Abuse::Nothing | Abuse::Unattended => return Ok(Vec::new()),
        Abuse::Impostor => return as_nobody(|| listener(peer.own_inode())).map(|fd| vec![fd]),
        Abuse::Squatter => return as_nobody(|| listener(peer.victim_inode()?)).map(|fd| vec![fd]),
        _ => {}
    }
    let (own, to) = (peer.own_inode(), peer.victim_inode()?);
    let offer = make(abuse, own, to, before)?;
    if let Some(memory) = offer.memory.as_ref().filter(|_| abuse != Abuse::Replayed) {
        Peer::say_joined(memory, peer.victim, 0);
    }
    let visit = || visitor(to).and_then(|socket| deliver(&socket, &offer, abuse).map(|()| socket));
    let mut kept: Vec<OwnedFd> = match abuse {
        Abuse::Stranger => as_nobody(visit).into_iter().collect(),
        Abuse::Crowd => (0..CROWD).map_while(|_| visit().ok()).collect(),
        _ => visit().into_iter().collect(),
    };
    kept.extend(offer.files);
    Ok(kept)
}

/// Whether what a victim has joined is right: an abuse that is none, or that it cannot know.
pub(super) fn check(abuse: Abuse, victim: usize, kept: &[OwnedFd]) -> Result<()> {
    for fd in kept {
        let file = File::from(fd.try_clone()?);
        if !matches!(abuse, Abuse::Replayed | Abuse::Crowd) && file.metadata()?.len() == LENGTH as u64 {
            // One that is sealed against writing cannot be mapped, by the victim neither.
            let Ok(memory) = Memory::map(&file, LENGTH) else { continue };
            ensure!(memory.load(side(victim), 4) == 0, "the victim has joined what it was offered: {abuse:?}");
        }
    }
    Ok(())
}

/// Does something as another user. Nobody else runs in this process meanwhile but threads that store into memory.
fn as_nobody<T>(what: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = geteuid();
    seteuid(Uid::from_raw(NOBODY)).context("only root can be somebody else")?;
    let result = what();
    seteuid(own).context("cannot be ourselves again")?;
    result
}

fn address(inode: u64) -> Result<UnixAddr> {
    Ok(UnixAddr::new_abstract(format!("tssx/3/{inode:016x}").as_bytes())?)
}

fn seqpacket() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// An honest offer to whoever's mailbox this is; the memory, if it could be delivered.
pub(super) fn visit(inode: u64) -> Result<Option<Memory>> {
    let file = segment(1, inode)?;
    let memory = Memory::map(&file, LENGTH)?;
    Peer::say_joined(&memory, 1, 0);
    let offer = Offer { files: vec![file.into()], text: TEXT.to_vec(), memory: None };
    let delivered = visitor(inode).and_then(|socket| deliver(&socket, &offer, Abuse::Stranger));
    // Closed meanwhile, or full: a mailbox is open for moments only.
    Ok(delivered.is_ok().then_some(memory))
}

/// A mailbox of ours.
pub(super) fn listener(inode: u64) -> Result<OwnedFd> {
    let fd = seqpacket()?;
    bind(fd.as_raw_fd(), &address(inode)?).context("the name is taken")?;
    listen(&fd, Backlog::new(1)?)?;
    Ok(fd)
}

fn visitor(inode: u64) -> Result<OwnedFd> {
    let fd = seqpacket()?;
    connect(fd.as_raw_fd(), &address(inode)?).context("the victim's mailbox is not open")?;
    Ok(fd)
}

fn deliver(socket: &OwnedFd, offer: &Offer, abuse: Abuse) -> Result<()> {
    if abuse == Abuse::Silent {
        return Ok(());
    }
    let files: Vec<RawFd> = offer.files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let beside = if files.is_empty() { &[] } else { rights.as_slice() };
    sendmsg::<()>(socket.as_raw_fd(), &[std::io::IoSlice::new(&offer.text)], beside, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// An honest segment, but that its directions are as the peer wants them.
pub(super) fn segment(own: u64, to: u64) -> Result<File> {
    let file = unsealed(LENGTH as u64)?;
    seal(&file, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL)?;
    write_header(&Memory::map(&file, LENGTH)?, own, to);
    Ok(file)
}

fn write_header(memory: &Memory, own: u64, to: u64) {
    memory.store(8, 4, u64::from(SEGMENT_VERSION));
    memory.store(16, 8, CAPACITY_MIN);
    memory.store(24, 8, own);
    memory.store(32, 8, to);
    let asleep = std::mem::offset_of!(Direction, asleep);
    [0, 1].into_iter().for_each(|side| memory.store(direction(side) + asleep, 4, u64::from(ASLEEP)));
    memory.store(0, 8, SEGMENT_MAGIC);
}

fn unsealed(length: u64) -> Result<File> {
    let fd = memfd_create(c"hostile", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).context("cannot make a memfd")?;
    let file = File::from(fd);
    file.set_len(length)?;
    Ok(file)
}

fn seal(file: &File, seals: SealFlag) -> Result<()> {
    fcntl(file, FcntlArg::F_ADD_SEALS(seals)).context("cannot seal")?;
    Ok(())
}

fn make(abuse: Abuse, own: u64, to: u64, before: Option<&File>) -> Result<Offer> {
    let whole = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    let sized = |length: u64| unsealed(length).and_then(|file| seal(&file, whole).map(|()| file));
    let file = match abuse {
        Abuse::Unsealed => unsealed(LENGTH as u64)?,
        Abuse::NoShrinkSeal | Abuse::NoGrowSeal | Abuse::NoSealSeal => {
            let file = unsealed(LENGTH as u64)?;
            let missing = match abuse {
                Abuse::NoShrinkSeal => SealFlag::F_SEAL_SHRINK,
                Abuse::NoGrowSeal => SealFlag::F_SEAL_GROW,
                _ => SealFlag::F_SEAL_SEAL,
            };
            seal(&file, whole - missing)?;
            file
        }
        Abuse::WriteSealed => {
            let file = unsealed(LENGTH as u64)?;
            write_header(&Memory::map(&file, LENGTH)?, own, to);
            seal(&file, whole | SealFlag::F_SEAL_WRITE)?;
            file
        }
        Abuse::Empty => sized(0)?,
        Abuse::PageShort => sized(LENGTH as u64 - 4096)?,
        Abuse::ByteLong => sized(LENGTH as u64 + 1)?,
        Abuse::OddSize => sized(LENGTH as u64 + 8192)?,
        Abuse::TooLarge => sized(segment_size(CAPACITY_MAX * 2))?,
        Abuse::Terabyte => sized(segment_size(1 << 40))?,
        Abuse::Replayed => before.map_or_else(|| segment(own, to), |file| Ok(file.try_clone()?))?,
        _ => segment(own, to)?,
    };
    let memory = match file.metadata()?.len() {
        // Replayed memory has the header of another connection, and any size.
        length if abuse == Abuse::Replayed => Some(Memory::map(&file, usize::try_from(length)?)?),
        length if length == LENGTH as u64 && abuse != Abuse::WriteSealed => Some(Memory::map(&file, LENGTH)?),
        _ => None,
    };
    if let Some(memory) = &memory {
        if abuse == Abuse::Replayed {
            memory.store(32, 8, to);
        } else {
            write_header(memory, own, to);
        }
        match abuse {
            Abuse::WrongMagic => memory.store(0, 8, SEGMENT_MAGIC ^ 1 << 63),
            Abuse::WrongVersion => memory.store(8, 4, u64::from(SEGMENT_VERSION) + 1),
            Abuse::WrongCapacity => memory.store(16, 8, CAPACITY_MIN * 2),
            Abuse::OtherInode => memory.store(32, 8, to + 1),
            _ => {}
        }
    }
    Ok(Offer { files: descriptors(abuse, file)?, text: text(abuse), memory })
}

fn text(abuse: Abuse) -> Vec<u8> {
    match abuse {
        Abuse::WrongText => b"TSSXOFR2".to_vec(),
        Abuse::ShortText => b"TSSXOFR".to_vec(),
        Abuse::LongText => [TEXT, &[0; 4000]].concat(),
        Abuse::NoText => Vec::new(),
        _ => TEXT.to_vec(),
    }
}

fn descriptors(abuse: Abuse, memory: File) -> Result<Vec<OwnedFd>> {
    let opened = |path: &str| OpenOptions::new().read(true).open(path).with_context(|| format!("cannot open {path}"));
    let one: OwnedFd = match abuse {
        Abuse::NoDescriptor => return Ok(Vec::new()),
        Abuse::Pipe => pipe()?.0,
        Abuse::Socket => seqpacket()?,
        Abuse::Device => opened("/dev/zero")?.into(),
        Abuse::Directory => File::open(Path::new("/"))?.into(),
        Abuse::EventCounter => EventFd::new()?.as_fd().try_clone_to_owned()?,
        Abuse::File => {
            let file = tempfile::tempfile()?;
            file.set_len(LENGTH as u64)?;
            file.into()
        }
        Abuse::ReadOnly => opened(&format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into(),
        Abuse::TwoDescriptors | Abuse::ManyDescriptors => {
            let count = if abuse == Abuse::TwoDescriptors { 2 } else { MANY };
            return (0..count).map(|_| Ok(memory.try_clone()?.into())).collect();
        }
        _ => memory.into(),
    };
    Ok(vec![one])
}
