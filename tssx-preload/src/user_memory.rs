//! Whether the program's memory can be accessed, asked without a system call where it was asked before.
//!
//! The kernel answers EFAULT for a bad pointer; a copy of ours would be a SIGSEGV. A library has no business installing a
//! handler for that, so a page is checked before it is first copied from or to: the kernel is asked to fault it in, which is
//! what the copy would do anyway (madvise(2), MADV_POPULATE_…), and the answer is remembered in a small table. The table holds no lock: an entry is one word, and one that is overwritten only
//! costs another question. All entries are forgotten when the program unmaps, moves or protects memory through libc
//! (`abi/mapping.rs`). What libc unmaps by itself is not seen: a pointer into memory that was freed is not told from a good one, and
//! faults as it would in the program's own hands.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use tssx_core::sys::{self, Errno};

/// Bytes of a page, and bits of an address inside one.
const PAGE: usize = 4096;
const PAGE_BITS: u32 = 12;
/// Addresses below are never mapped (vm.mmap_min_addr); a null pointer with an offset ends up here.
const LOWEST: usize = PAGE;
/// First address that is not user space on x86-64 (TASK_SIZE_MAX with 47 bits) and arm64 (48 bits). Where a CPU has more bits, a
/// program gets higher addresses only if it asks for them, and such are asked about one by one.
const HIGHEST: usize = if cfg!(target_arch = "x86_64") { (1 << 47) - PAGE } else { 1 << 48 };
/// Pages that are remembered. Those that share a place only cost each other questions.
const PLACES: usize = 2048;
/// Pages that a place remembers, the last one first.
const WAYS: usize = 2;
/// Bits of an entry behind the page's number: an epoch, and whether the page can be written.
const EPOCH_BITS: u32 = 27;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;

static PAGES: [[AtomicU64; WAYS]; PLACES / WAYS] = [const { [const { AtomicU64::new(0) }; WAYS] }; PLACES / WAYS];
/// Raised whenever what was found out may have become wrong. Entries of zero are of no epoch.
static EPOCH: AtomicU64 = AtomicU64::new(1);

/// What is to be done with memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The entry of a page that can be accessed.
fn entry(page: usize, access: Access) -> u64 {
    let epoch = EPOCH.load(Relaxed) & EPOCH_MASK;
    (page as u64) << (EPOCH_BITS + 1) | epoch << 1 | u64::from(access == Access::Write)
}

/// Where a page is remembered. Allocators put buffers at equal distances, large powers of two among them: a multiplication spreads those.
#[inline]
fn place(page: usize) -> &'static [AtomicU64; WAYS] {
    const BITS: u32 = (PLACES / WAYS).trailing_zeros();
    let hash = (page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS);
    &PAGES[usize::try_from(hash).unwrap_or(0) % (PLACES / WAYS)]
}

#[inline]
fn is_known(page: usize, access: Access) -> bool {
    let wanted = entry(page, access);
    // A page that can be written can be read.
    place(page).iter().map(|way| way.load(Relaxed)).any(|found| found == wanted || found == wanted | 1)
}

/// Whether the bytes are in the page of the stack that this very call uses, which can be read and written. Headers and small arrays are, more often
/// than not: they are locals of the caller, and the table's cache lines are cold behind a long system call.
#[inline(always)]
pub(crate) fn is_beside_us(address: usize, length: usize) -> bool {
    let page = sys::stack_pointer() & !(PAGE - 1);
    address.wrapping_sub(page) < PAGE && length <= PAGE - address.wrapping_sub(page)
}

/// How many of the `length` bytes at `address` can be accessed, from the first on.
#[inline]
pub(crate) fn accessible(address: usize, length: usize, access: Access) -> usize {
    let first = address >> PAGE_BITS;
    let known = length <= PAGE
        && (LOWEST..HIGHEST - 2 * PAGE).contains(&address)
        && is_known(first, access)
        && ((address + length.max(1) - 1) >> PAGE_BITS == first || is_known(first + 1, access));
    if known { length } else { walk(address, length, access) }
}

/// Whether all of the `length` bytes at `address` can be accessed.
#[inline(always)]
pub(crate) fn is_accessible(address: usize, length: usize, access: Access) -> bool {
    is_beside_us(address, length) || accessible(address, length, access) == length
}

/// Whether the kernel refuses memory that ends at `end` unseen, because no program has such an address (`access_ok`).
pub(crate) fn is_beyond(end: usize) -> bool {
    end > HIGHEST && !sys::is_readable(end.saturating_sub(1))
}

/// As [`accessible`], for memory that is large or not known.
fn walk(address: usize, length: usize, access: Access) -> usize {
    if length == 0 {
        return 0;
    }
    let Some(end) = address.checked_add(length).filter(|end| address >= LOWEST && !is_beyond(*end)) else { return 0 };
    let last = (end - 1) >> PAGE_BITS;
    let mut page = address >> PAGE_BITS;
    while page <= last {
        if is_known(page, access) {
            page += 1;
            continue;
        }
        let mut behind = page + 1;
        while behind <= last && behind - page < PLACES / 2 && !is_known(behind, access) {
            behind += 1;
        }
        let good = ask(page, behind, access);
        (page..good).for_each(|page| remember(page, access));
        if good < behind {
            return (good << PAGE_BITS).saturating_sub(address);
        }
        page = behind;
    }
    length
}

fn remember(page: usize, access: Access) {
    let ([last, before], fresh) = (place(page), entry(page, access));
    let found = last.load(Relaxed);
    // The same page for less, or an answer that has become wrong, is not worth a way.
    if found | 1 != fresh | 1 && found & (EPOCH_MASK << 1) == fresh & (EPOCH_MASK << 1) {
        before.store(found, Relaxed);
    }
    last.store(fresh, Relaxed);
}

/// Asks the kernel for the pages from `page` to before `behind`: the first that cannot be accessed, or `behind`.
#[cold]
fn ask(page: usize, behind: usize, access: Access) -> usize {
    let write = access == Access::Write;
    let populate = |from: usize, to: usize| sys::populate(from << PAGE_BITS, (to - from) << PAGE_BITS, write);
    if populate(page, behind).is_ok() {
        return behind;
    }
    // One by one. An old kernel does not know the question, one that is short of something does not answer, and a filter (seccomp(2)) may
    // forbid it: then reading, at least, can be asked for, and what it says of a page that is only to be written is believed.
    let one = |page: usize| match populate(page, page + 1) {
        Ok(()) => true,
        Err(Errno(libc::EFAULT | libc::ENOMEM | libc::EHWPOISON)) => false,
        Err(Errno(libc::EINVAL)) if is_supported() => false,
        Err(_) => sys::is_readable(page << PAGE_BITS),
    };
    (page..behind).find(|page| !one(*page)).unwrap_or(behind)
}

/// Whether the kernel knows the question: it must say yes for our own stack.
fn is_supported() -> bool {
    let local = 0_u8;
    let page = core::ptr::from_ref(&local).addr() & !(PAGE - 1);
    sys::populate(page, PAGE, true).is_ok()
}

/// The program has changed what is mapped, or how.
pub(crate) fn forget_all() {
    EPOCH.fetch_add(1, Relaxed);
}
