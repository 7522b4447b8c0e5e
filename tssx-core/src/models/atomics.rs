//! loom's atomics, and a way to break the code under test in one place.
//!
//! A statistic that orders nothing is [`Default`]: an ordinary counter, so that it adds no interleavings. What the
//! protocol relies on is made by `new`, and is loom's.

use std::cell::Cell;
use std::sync::atomic as plain;
use std::sync::atomic::Ordering::{self, Relaxed, SeqCst};

/// What is broken on this thread while [`breaking`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// Fences do nothing.
    Fences,
    /// Every access is Relaxed.
    Orders,
}

loom::thread_local! {
    static BROKEN: Cell<Broken> = Cell::new(Broken::Nothing);
}

/// Runs `step` with the given flaw, as if the code of `step` had been written without its fences or orderings.
pub(crate) fn breaking<R>(how: Broken, step: impl FnOnce() -> R) -> R {
    BROKEN.with(|broken| broken.set(how));
    let result = step();
    BROKEN.with(|broken| broken.set(Broken::Nothing));
    result
}

fn broken() -> Broken {
    BROKEN.with(Cell::get)
}

fn order(wanted: Ordering) -> Ordering {
    if broken() == Broken::Orders { Relaxed } else { wanted }
}

pub(crate) fn fence(order: Ordering) {
    if broken() == Broken::Nothing {
        loom::sync::atomic::fence(order);
    }
}

pub(crate) fn spin_loop() {
    loom::thread::yield_now();
}

macro_rules! atomic {
    ($name:ident, $int:ty, $kind:ident, $($rmw:ident)*) => {
        #[derive(Debug)]
        enum $kind {
            Plain(plain::$name),
            Modelled(loom::sync::atomic::$name),
        }

        /// See the module. Boxed, so that the segment's structures keep to the places that layout.rs gives them.
        #[derive(Debug)]
        pub struct $name(Box<$kind>);

        impl Default for $name {
            fn default() -> Self {
                Self(Box::new($kind::Plain(plain::$name::new(0))))
            }
        }

        impl $name {
            pub fn new(value: $int) -> Self {
                Self(Box::new($kind::Modelled(loom::sync::atomic::$name::new(value))))
            }

            pub fn load(&self, wanted: Ordering) -> $int {
                match &*self.0 {
                    $kind::Plain(cell) => cell.load(SeqCst),
                    $kind::Modelled(cell) => cell.load(order(wanted)),
                }
            }

            pub fn store(&self, value: $int, wanted: Ordering) {
                match &*self.0 {
                    $kind::Plain(cell) => cell.store(value, SeqCst),
                    $kind::Modelled(cell) => cell.store(value, order(wanted)),
                }
            }

            pub fn compare_exchange(&self, old: $int, new: $int, ok: Ordering, no: Ordering) -> Result<$int, $int> {
                match &*self.0 {
                    $kind::Plain(cell) => cell.compare_exchange(old, new, SeqCst, SeqCst),
                    $kind::Modelled(cell) => cell.compare_exchange(old, new, order(ok), order(no)),
                }
            }

            /// loom's never fails spuriously; a failure only makes the caller try again.
            pub fn compare_exchange_weak(&self, old: $int, new: $int, ok: Ordering, no: Ordering) -> Result<$int, $int> {
                self.compare_exchange(old, new, ok, no)
            }

            $(pub fn $rmw(&self, value: $int, wanted: Ordering) -> $int {
                match &*self.0 {
                    $kind::Plain(cell) => cell.$rmw(value, SeqCst),
                    $kind::Modelled(cell) => cell.$rmw(value, order(wanted)),
                }
            })*
        }
    };
}

atomic!(AtomicU32, u32, Kind32, swap fetch_add fetch_sub fetch_or fetch_and fetch_max);
atomic!(AtomicU64, u64, Kind64, swap fetch_add fetch_sub fetch_or fetch_and fetch_max);
