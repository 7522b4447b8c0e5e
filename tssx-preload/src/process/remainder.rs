//! Handing what is left in rings on to the next image of this process: tssx-core's remainder.rs, a memfd for each, and their numbers in an
//! environment variable. The constructor of the next image takes both away.
//!
//! Only where the next image is going to load us, as far as its environment says. What it inherits and nobody can give back is lost
//! otherwise: it lies in a ring. So an image that cannot have it, for want of memory or by a filter, ends at once, as the dynamic linker ends one that it cannot load.

#![allow(unsafe_code, reason = "reads and makes an environment")]

use core::ffi::{CStr, c_char, c_int};
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::ledger::layout::{MODE_FINAL, MODE_RING, ROLE_ACCEPTOR};
use tssx_core::ledger::slots;
use tssx_core::reason::Reason;
use tssx_core::remainder::{Packed, pack, unpack};
use tssx_core::ring::consumer::Consumer;
use tssx_core::segment::Side;
use tssx_core::sys;

use super::images::is_inherited;
use crate::endpoint::{Endpoint, Way, lock_stream};
use crate::fd_table::{self, Entry};
use crate::init;
use crate::socket::establish;

/// An environment, as exec(3) has it.
pub(crate) type Strings = *const *const c_char;

const VARIABLE: &CStr = c"TSSX_REMAINDER";
/// Descriptors that can be handed on in one exec; more than any program that is started with its connections has.
const MOST: usize = 32;
/// Bytes of "fd:memfd:role,".
const WORDS: usize = 36;

#[derive(Clone, Copy)]
struct Kept {
    fd: c_int,
    endpoint: &'static Endpoint,
    side: Side,
    packed: Packed,
    /// The memfd under a number that the next image inherits.
    memfd: c_int,
}

/// What goes along.
pub(crate) struct Remainders {
    kept: [Option<Kept>; MOST],
    count: usize,
    text: Text,
    environment: Option<(*mut u8, usize)>,
    /// Something is left, and there is no memory or no descriptor for it.
    is_short: bool,
}

struct Text {
    bytes: [u8; MOST * WORDS + 32],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let place = self.bytes.get_mut(self.length..self.length + text.len()).ok_or(core::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

/// Calls `visit` for each string of an environment.
///
/// # Safety
/// `environment` is null or ends in a null pointer, and its strings end in NUL.
unsafe fn each(environment: Strings, mut visit: impl FnMut(&CStr)) -> usize {
    let mut count = 0;
    // SAFETY: the caller's.
    unsafe {
        while !environment.is_null() && !(*environment.add(count)).is_null() {
            visit(CStr::from_ptr(*environment.add(count)));
            count += 1;
        }
    }
    count
}

impl Remainders {
    /// Packs what the inherited connections have left, for an image of this environment.
    ///
    /// # Safety
    /// As exec(3)'s environment.
    pub(crate) unsafe fn pack(environment: Strings) -> Self {
        let mut all = Self {
            kept: [None; MOST],
            count: 0,
            text: Text { bytes: [0; MOST * WORDS + 32], length: 0 },
            environment: None,
            is_short: false,
        };
        let (mut preloads, mut selects, mut disabled) = (false, false, false);
        // SAFETY: the caller's.
        unsafe {
            each(environment, |text| {
                preloads |= text.to_bytes().starts_with(b"LD_PRELOAD=");
                selects |= text.to_bytes().starts_with(b"USE_TSSX=");
                disabled |= text.to_bytes().starts_with(b"TSSX_DISABLE=");
            });
        }
        if preloads && selects && !disabled {
            fd_table::for_each(0, u32::MAX, |fd, entry| {
                if let Entry::Stream(endpoint) = entry
                    && is_inherited(fd, endpoint)
                {
                    all.keep(fd, endpoint);
                }
            });
        }
        all
    }

    fn keep(&mut self, fd: c_int, endpoint: &'static Endpoint) {
        let same = self.kept.iter().flatten().find(|kept| core::ptr::eq(kept.endpoint, endpoint)).copied();
        let Some(place) = self.kept.get_mut(self.count) else { return };
        *place = same.map(|kept| Kept { fd, ..kept }).or_else(|| Kept::new(fd, endpoint));
        self.count += usize::from(place.is_some());
        self.is_short |= place.is_none() && is_unread(fd);
    }

    /// The environment with the variable that tells of it; `environment` itself if nothing goes along. `None` if something should and cannot:
    /// the other program must not begin without it, as it would not where the kernel has no memory.
    ///
    /// # Safety
    /// As [`Self::pack`]; the result lives as long as `self`.
    pub(crate) unsafe fn told(&mut self, environment: Strings) -> Option<Strings> {
        if self.is_short {
            return None;
        }
        if self.count == 0 {
            return Some(environment);
        }
        let _ = write!(self.text, "{}=", VARIABLE.to_str().unwrap_or(""));
        for kept in self.kept.iter().flatten() {
            let _ = write!(self.text, "{}:{}:{},", kept.fd, kept.memfd, kept.side as usize);
        }
        // SAFETY: the caller's.
        let count = unsafe { each(environment, |_| {}) };
        let size = (count + 2) * size_of::<*const c_char>();
        let place = sys::map(-1, size).ok()?;
        self.environment = Some((place, size));
        let strings = place.cast::<*const c_char>();
        // SAFETY: room for all of the environment's strings, ours, and the null that the fresh mapping ends with. The text ends in NUL: its
        // room is larger than all that is written.
        unsafe {
            for index in 0..count {
                strings.add(index).write(*environment.add(index));
            }
            strings.add(count).write(self.text.bytes.as_ptr().cast());
        }
        Some(strings.cast_const())
    }

    /// The other program did not begin.
    pub(crate) fn put_back(self) {
        for (index, kept) in self.kept.iter().flatten().enumerate() {
            let first = self.kept.iter().flatten().take(index).all(|other| other.memfd != kept.memfd);
            if first {
                sys::close(kept.memfd);
                sys::close(kept.packed.memfd);
                if let Some(rx) = lock_stream(kept.fd, Way::Rx)
                    && let Some(segment) = rx.segment
                {
                    kept.packed.put_back(&segment);
                }
            }
        }
        if let Some((place, size)) = self.environment {
            // SAFETY: mapped by `told`; exec has returned, and nobody else knew of it.
            unsafe { sys::unmap(place, size) };
        }
    }
}

impl Kept {
    fn new(fd: c_int, endpoint: &'static Endpoint) -> Option<Self> {
        /// Out of the way of the standard descriptors.
        const LOWEST: usize = 3;
        let rx = lock_stream(fd, Way::Rx).filter(|rx| rx.slot.rx_mode.load(Relaxed) == MODE_RING)?;
        let segment = rx.segment?;
        let side = if rx.slot.role.load(Relaxed) == ROLE_ACCEPTOR { Side::Acceptor } else { Side::Connector };
        let packed = pack(&segment, side)?;
        let Ok(memfd) = sys::fcntl(packed.memfd, libc::F_DUPFD, LOWEST) else {
            packed.put_back(&segment);
            sys::close(packed.memfd);
            return None;
        };
        Some(Self { fd, endpoint, side, packed, memfd })
    }
}

/// Whether the connection has bytes in its ring that nobody has read.
fn is_unread(fd: c_int) -> bool {
    let rx = lock_stream(fd, Way::Rx).filter(|rx| rx.slot.rx_mode.load(Relaxed) == MODE_RING);
    let consumer =
        rx.and_then(|rx| rx.segment).and_then(|segment| Consumer::open(&segment).ok().map(|consumer| consumer.available()));
    consumer.is_some_and(|unread| unread > 0)
}

/// At the start of an image: takes what the last one has left. True if anything was.
pub(crate) fn adopt() -> bool {
    // SAFETY: a valid C string; in the constructor there is one thread.
    let text = unsafe { libc::getenv(VARIABLE.as_ptr()) };
    if text.is_null() || init::active().is_none() {
        return false;
    }
    // SAFETY: getenv's, and valid until unsetenv below.
    let text = unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("");
    let mut last = None;
    for word in text.split(',') {
        let mut numbers = word.split(':').map(str::parse::<c_int>);
        let (Some(Ok(fd)), Some(Ok(memfd)), Some(Ok(side))) = (numbers.next(), numbers.next(), numbers.next()) else { continue };
        last = match last {
            Some((before, endpoint)) if before == memfd => {
                if Endpoint::attach(endpoint, fd).is_err() {
                    cannot_begin();
                }
                Some((before, endpoint))
            }
            _ => match adopt_one(fd, memfd, side) {
                Ok(adopted) => adopted.map(|endpoint| (memfd, endpoint)),
                Err(_) => cannot_begin(),
            },
        };
    }
    close_all(text);
    // SAFETY: as above.
    unsafe { libc::unsetenv(VARIABLE.as_ptr()) };
    true
}

/// A program that read on would see the end of the stream in the middle of it.
pub(crate) fn cannot_begin() -> ! {
    init::complain(&[b"tssx: what an inherited connection has left unread cannot be had: the program cannot begin\n"]);
    sys::exit_group(127);
    sys::abort()
}

/// The memfds are not the program's.
fn close_all(text: &str) {
    let memfds = || text.split(',').filter_map(|word| word.split(':').nth(1)?.parse::<c_int>().ok());
    for (index, memfd) in memfds().enumerate() {
        if memfds().take(index).all(|before| before != memfd)
            && unpack(memfd, Side::Acceptor).map(tssx_core::segment::Segment::discard).is_ok()
        {
            sys::close(memfd);
        }
    }
}

/// `None` if there is no such connection, or nothing was left of it.
///
/// # Errors
/// [`Reason::NoMemory`].
fn adopt_one(fd: c_int, memfd: c_int, side: c_int) -> Result<Option<&'static Endpoint>, Reason> {
    let side = if side == Side::Acceptor as c_int { Side::Acceptor } else { Side::Connector };
    let segment = match unpack(memfd, side) {
        Err(Reason::NoMemory) => return Err(Reason::NoMemory),
        Err(_) => return Ok(None),
        Ok(segment) => segment,
    };
    let Some(endpoint) = establish::inherited(fd, side)? else {
        segment.discard();
        return Ok(None);
    };
    let (Some(rx), Some(tx)) = (lock_stream(fd, Way::Rx), lock_stream(fd, Way::Tx)) else { return Err(Reason::NoMemory) };
    endpoint.join(segment);
    rx.slot.rx_mode.store(MODE_RING, Relaxed);
    tx.slot.tx_mode.store(MODE_FINAL, Relaxed);
    establish::note_options(fd, rx.slot);
    let own = segment.own_side();
    own.holders.store(1, Relaxed);
    own.refused.store(1, Relaxed);
    if let Some(ledger) = init::ledger() {
        slots::mark_plain(ledger, rx.slot, Reason::DescriptorTravels);
    }
    Ok(Some(endpoint))
}
