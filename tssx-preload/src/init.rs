//! Starting up: once, lazily, and inert unless asked.
//!
//! The constructor and every entry point that might select a socket call [`active`]. The first one reads the environment; the
//! others pass by as if the library were not there until it is done. A process without `USE_TSSX`, one that runs with
//! another user's rights (AT_SECURE), and one on a libc other than glibc are inert.

#![allow(unsafe_code, reason = "reads the environment and the auxiliary vector through libc, and owns two statics")]

use core::ffi::CStr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use tssx_core::budget;
use tssx_core::ledger::slots;
use tssx_core::ledger::view::LedgerView;
use tssx_core::sys;

use crate::policy::{Policy, PolicyCell};
use crate::process::{self, log};

const NEW: u32 = 0;
const RUNNING: u32 = 1;
const ACTIVE: u32 = 2;
const INERT: u32 = 3;

/// Operations before a connection tries to upgrade, unless `TSSX_UPGRADE_AFTER` says otherwise.
const UPGRADE_AFTER: u64 = 4;
/// Longest spin for one wait, microseconds, unless `TSSX_SPIN_US` says otherwise.
const SPIN_US: u64 = 40;
/// Upper bound for `TSSX_SPIN_US`: one second.
const SPIN_US_MAX: u64 = 1_000_000;
/// No spin lasts longer, microseconds, whatever is asked for: who spins is not interrupted by a signal, and does not see that the peer has died.
pub(crate) const SPIN_US_BOUND: u64 = 1000;

static STATE: AtomicU32 = AtomicU32::new(NEW);
static POLICY: PolicyCell = PolicyCell::new();
static THRESHOLD: AtomicU64 = AtomicU64::new(UPGRADE_AFTER);
static SPIN: AtomicU64 = AtomicU64::new(SPIN_US);

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    active();
}

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;

/// Nothing is torn down: calls arrive after this. Only the ledger of a forked family is told.
extern "C" fn destructor() {
    if STATE.load(Acquire) == ACTIVE {
        process::leaving();
    }
}

/// The policy, if the library has anything to do in this process.
pub(crate) fn active() -> Option<&'static Policy> {
    match STATE.load(Acquire) {
        ACTIVE => Some(POLICY.get()),
        NEW => start(),
        _ => None,
    }
}

/// Operations before a connection tries to upgrade.
pub(crate) fn threshold() -> u64 {
    THRESHOLD.load(Relaxed)
}

/// Longest spin for one wait, microseconds; 0 = never spin.
pub(crate) fn spin_us() -> u64 {
    SPIN.load(Relaxed)
}

/// Longest pause of a sender for a receiver that wants to compare counts, microseconds; 0 where both cannot run at once.
pub(crate) fn pause_us() -> u64 {
    const PAUSE_US: u64 = 30;
    if SPIN.load(Relaxed) == 0 { 0 } else { PAUSE_US }
}

fn start() -> Option<&'static Policy> {
    if STATE.compare_exchange(NEW, RUNNING, AcqRel, Acquire).is_err() {
        return None;
    }
    let state = if configure() { ACTIVE } else { INERT };
    if state == ACTIVE {
        process::start();
    }
    STATE.store(state, Release);
    (state == ACTIVE).then(|| POLICY.get())
}

fn configure() -> bool {
    if !is_glibc() || is_secure() || variable(c"TSSX_DISABLE").is_some_and(|value| !matches!(value, b"" | b"0")) {
        return false;
    }
    let Some(text) = variable(c"USE_TSSX") else {
        return false;
    };
    variable(c"TSSX_LOG").into_iter().for_each(log::start);
    // SAFETY: only the one thread that moved STATE to RUNNING comes here, and readers wait for ACTIVE.
    let policy = unsafe { POLICY.get_mut() };
    if let Err(error) = policy.parse(text) {
        complain(&[error.message()]);
        return false;
    }
    let numbers = [(c"TSSX_UPGRADE_AFTER", &THRESHOLD, u64::MAX / 16), (c"TSSX_SPIN_US", &SPIN, SPIN_US_MAX)];
    for (name, cell, most) in numbers {
        match variable(name).map(number) {
            None => {}
            Some(Some(value)) if value <= most => cell.store(value, Relaxed),
            Some(_) => {
                complain(&[b"tssx: ", name.to_bytes(), b" is not a number in its range; the library stays out of the way\n"]);
                return false;
            }
        }
    }
    let Some(memory_max) = variable(c"TSSX_MEMORY_MAX").map_or_else(default_memory_max, size) else {
        complain(&[b"tssx: TSSX_MEMORY_MAX is no size (bytes, or a number with K, M, G or T); the library stays out of the way\n"]);
        return false;
    };
    budget::limit(memory_max);
    SPIN.fetch_min(SPIN_US_BOUND, Relaxed);
    if sys::usable_cpus() == 1 {
        SPIN.store(0, Relaxed); // the peer cannot run while we spin
    }
    !policy.is_empty()
}

/// Half of the machine's memory.
fn default_memory_max() -> Option<u64> {
    Some(match sys::physical_memory() {
        0 => u64::MAX,
        bytes => bytes / 2,
    })
}

/// A number of bytes, or of the units K, M, G, T, which are powers of 1024.
fn size(text: &[u8]) -> Option<u64> {
    let unit = text.last().and_then(|last| b"KMGT".iter().position(|unit| *unit == last.to_ascii_uppercase()));
    let (digits, shift) = match (unit, text.split_last()) {
        (Some(power), Some((_, digits))) => (digits, 10 * (power + 1)),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

/// Tells of a variable that cannot be used, or why the program cannot begin, on standard error and in the log.
pub(crate) fn complain(parts: &[&[u8]]) {
    parts.iter().for_each(|part| sys::write_stderr(part));
    log::say_complaint(parts);
}

fn number(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

fn variable(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: a valid C string; the value is only used during start-up, in the thread that initialises.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() { None } else { Some(CStr::from_ptr(value).to_bytes()) }
    }
}

/// musl loads us too when the environment names us, but has neither the entry points nor the semantics; there we do nothing.
fn is_glibc() -> bool {
    // SAFETY: a valid C string; looking a symbol up has no precondition.
    unsafe { !libc::dlsym(libc::RTLD_DEFAULT, c"gnu_get_libc_version".as_ptr()).is_null() }
}

/// A set-user-id program, or one with raised capabilities: its user must not choose what it maps.
fn is_secure() -> bool {
    // SAFETY: getauxval has no precondition.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

static LEDGER: LedgerCell = LedgerCell::new();

/// The process's ledger; made when the first connection is selected. `None` if there is no memory for one.
pub(crate) fn ledger() -> Option<&'static LedgerView> {
    LEDGER.get()
}

/// The ledger, if there is one by now.
pub(crate) fn ledger_if_made() -> Option<&'static LedgerView> {
    (LEDGER.state.load(Acquire) == ACTIVE).then(|| LEDGER.get()).flatten()
}

/// Holds the one ledger.
struct LedgerCell {
    view: core::cell::UnsafeCell<Option<LedgerView>>,
    state: AtomicU32,
}

// SAFETY: the view is written once, between NEW → RUNNING and the Release store of ACTIVE, and read only after it.
unsafe impl Sync for LedgerCell {}

impl LedgerCell {
    const fn new() -> Self {
        Self { view: core::cell::UnsafeCell::new(None), state: AtomicU32::new(NEW) }
    }

    fn get(&'static self) -> Option<&'static LedgerView> {
        if self.state.load(Acquire) != ACTIVE {
            self.make();
        }
        // Another thread is making it, for a few system calls: a connection must not be left out for that.
        while self.state.load(Acquire) == RUNNING {
            sys::yield_now();
        }
        if self.state.load(Acquire) == ACTIVE {
            // SAFETY: see the Sync impl.
            unsafe { (*self.view.get()).as_ref() }
        } else {
            None
        }
    }

    #[cold]
    fn make(&self) {
        if self.state.compare_exchange(NEW, RUNNING, AcqRel, Acquire).is_err() {
            return;
        }
        let made = slots::create().ok();
        let state = if made.is_some() { ACTIVE } else { INERT };
        // SAFETY: see the Sync impl.
        unsafe { *self.view.get() = made };
        self.state.store(state, Release);
    }
}
