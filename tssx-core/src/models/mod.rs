//! Model checks of the concurrency arguments: the protocol's own functions, in every interleaving and with every stale value
//! that the memory model allows, up to a bound on preemptions. Built and run only by
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --profile models -p tssx-core --lib models
//! ```
//!
//! [`crate::sync`] puts [`atomics`] and [`kernel`] in the place of the real ones. What the callers in tssx-preload do
//! around the protocol's functions is repeated here, short, and named after the function it stands for.
//!
//! Each model states its property, and each is also run with a flaw that must break it: a fence left out, orderings
//! weakened, a second look not taken. That shows that the model can see the failure it excludes. What it guards is broken too, one place at a
//! time: `cargo xtask mutants` makes the changes of `mutants.toml` in a copy of the code, and for each some model must fail. The document of a model
//! says its property and its bound, which that command prints.
//!
//! Limits. loom treats SeqCst accesses as AcqRel (fences are exact), so nothing here relies on more. It does not
//! produce values that are stored later in program order (load buffering); no argument of ours has that shape. A
//! model's kernel calls are serialised by the queue's lock, as af_unix.c's are. Preemptions are bounded by
//! `LOOM_MAX_PREEMPTIONS`, else by the number each model gives; switches where a thread waits are never counted.

pub(crate) mod atomics;
#[cfg(test)]
mod closing;
#[cfg(test)]
mod consent;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod exclusion;
pub(crate) mod kernel;
#[cfg(test)]
mod recalled;
#[cfg(test)]
mod room;
#[cfg(test)]
mod wake;
#[cfg(test)]
mod warm;
#[cfg(test)]
mod winding_down;
pub(crate) mod world;

#[cfg(test)]
mod support {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::atomics::{Broken, breaking};

    /// Explores `model` with at most `preemptions` involuntary switches, and says how many executions that took.
    pub(super) fn explore(name: &str, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let executions = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&executions);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(preemptions));
        builder.max_branches = 100_000;
        let bound = builder.preemption_bound;
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            model();
        });
        let bound = bound.map_or_else(|| "any number of".to_owned(), |bound| format!("at most {bound}"));
        println!("{name}: {} executions, {bound} preemptions", executions.load(Ordering::Relaxed));
    }

    /// `step`, without its fences if `flawed`.
    pub(super) fn unfenced_if<R>(flawed: bool, step: impl FnOnce() -> R) -> R {
        breaking(if flawed { Broken::Fences } else { Broken::Nothing }, step)
    }

    /// `step`, all Relaxed if `flawed`.
    pub(super) fn relaxed_if<R>(flawed: bool, step: impl FnOnce() -> R) -> R {
        breaking(if flawed { Broken::Orders } else { Broken::Nothing }, step)
    }
}
