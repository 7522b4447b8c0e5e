//! What is looked at for a part of the window only: see `tssx-ebpf/src/look.rs`.

#![allow(unsafe_code, reason = "aya's Pod promises that any bytes are a valid record")]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use aya::{Btf, Ebpf, Pod};
use tssx_ebpf::closer::{SIGNALS_MAP, WAKEUPS_MAP, Wakeups};

use super::{attach_one, detach_one, load_one};
use crate::kernel_types::KernelTypes;
use crate::mode::{CloserHooks, Hook};
use crate::output::note;

/// [`Wakeups`] as aya reads it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw(Wakeups);
// SAFETY: integers only and no padding, so every bit pattern is valid.
unsafe impl Pod for Raw {}

/// What was seen. `None`: not looked for, or this machine does not allow it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// How long.
    pub(crate) lasted: Option<Duration>,
    /// What keeps sockets on the kernel socket, by their inode: bits of [`tssx_ebpf::closer`].
    pub(crate) signals: Option<HashMap<u64, u32>>,
    /// Receives that somebody waited for, by the socket's cookie.
    pub(crate) wakeups: Option<HashMap<u64, Wakeups>>,
}

/// The programs that look closer.
pub(super) struct Closer {
    hooks: CloserHooks,
    since: Instant,
    lasted: Option<Duration>,
}

impl Closer {
    /// Loads and attaches what this machine allows, and tells of what it does not.
    pub(super) fn start(ebpf: &mut Ebpf, btf: &Btf, types: &KernelTypes) -> Self {
        let mut hooks = CloserHooks::of(types);
        for part in [&mut hooks.signals, &mut hooks.wakeups] {
            if let Err(error) = attach(ebpf, btf, part) {
                note(&format!("warning: less is seen of how sockets are used: {error:#}"));
                *part = &[];
            }
        }
        Self { hooks, since: Instant::now(), lasted: None }
    }

    /// Detaches them; does nothing the second time.
    pub(super) fn end(&mut self, ebpf: &mut Ebpf) -> anyhow::Result<()> {
        if self.lasted.is_none() {
            self.lasted = Some(self.since.elapsed());
            for hook in self.hooks.signals.iter().chain(self.hooks.wakeups) {
                detach_one(ebpf, *hook).with_context(|| format!("cannot detach {}", hook.program))?;
            }
        }
        Ok(())
    }

    /// What was seen until now.
    pub(super) fn seen(&self, ebpf: &Ebpf) -> anyhow::Result<Seen> {
        let signals: aya::maps::HashMap<_, u64, u32> = map(ebpf, SIGNALS_MAP)?.try_into()?;
        let wakeups: aya::maps::HashMap<_, u64, Raw> = map(ebpf, WAKEUPS_MAP)?.try_into()?;
        let read = || "cannot read what was seen of sockets";
        let signals: HashMap<_, _> = signals.iter().collect::<Result<_, _>>().with_context(read)?;
        let wakeups = wakeups.iter().map(|entry| entry.map(|(cookie, Raw(wakeups))| (cookie, wakeups)));
        let wakeups: HashMap<_, _> = wakeups.collect::<Result<_, _>>().with_context(read)?;
        Ok(Seen {
            lasted: Some(self.lasted.unwrap_or_else(|| self.since.elapsed())),
            signals: (!self.hooks.signals.is_empty()).then_some(signals),
            wakeups: (!self.hooks.wakeups.is_empty()).then_some(wakeups),
        })
    }
}

fn map<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a aya::maps::Map> {
    ebpf.map(name).ok_or_else(|| anyhow!("the object has no map {name}"))
}

/// Attaches all of them or none.
fn attach(ebpf: &mut Ebpf, btf: &Btf, hooks: &[Hook]) -> anyhow::Result<()> {
    for hook in hooks {
        load_one(ebpf, *hook, btf)?;
    }
    for (at, hook) in hooks.iter().enumerate() {
        if let Err(error) = attach_one(ebpf, *hook) {
            hooks.iter().take(at).try_for_each(|hook| detach_one(ebpf, *hook))?;
            return Err(error);
        }
    }
    Ok(())
}
