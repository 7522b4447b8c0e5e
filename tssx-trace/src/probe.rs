//! The kernel programs in the running kernel: choosing the mode, loading, attaching, reading.
//!
//! Nothing is pinned: the kernel detaches everything when this process ends, however it ends.

#![allow(unsafe_code, reason = "aya's Pod promises that any bytes are a valid record")]

mod arrivals;
mod births;
mod closer;
mod object;
mod traffic;

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use aya::maps::PerCpuArray;
use aya::programs::Program;
use aya::sys::{Stats, enable_stats};
use aya::{Btf, Ebpf, EbpfLoader, Pod};
use serde::{Deserialize, Serialize};
use tssx_ebpf::birth::{PLACES, SHAPE};
use tssx_ebpf::{
    ARRIVALS_MAP, LOSSES_MAP, Loss, LossCount, MOST_CPUS, OFFSETS, Offset, PID_NAMESPACE_DEVICE, PID_NAMESPACE_INODE, TRAFFIC_MAP,
};

pub(crate) use self::arrivals::{Arrivals, Newcomer};
pub(crate) use self::births::Births;
pub(crate) use self::closer::Seen;
pub(crate) use self::traffic::SocketTraffic;
use crate::kernel_types::KernelTypes;
use crate::losses::Losses;
use crate::mode::{Hook, Mode, Wanted};
use crate::preflight;

/// Inode of the initial pid namespace, `PROC_PID_INIT_INO` in include/linux/proc_ns.h.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// [`LossCount`] as aya reads it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Count(LossCount);
// SAFETY: integers only and no padding (asserted in tssx-ebpf), so every bit pattern is valid.
unsafe impl Pod for Count {}

/// Settings of a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeOptions {
    /// How to measure.
    pub(crate) mode: Wanted,
    /// Refuse a mode that measures no traffic.
    pub(crate) needs_traffic: bool,
    /// Entries of the traffic map: pairs of one socket and one process.
    pub(crate) max_sockets: u32,
    /// Bytes of the ring buffer that tells of new processes: a power of two, a page at least.
    pub(crate) ring_bytes: u32,
    /// Print what the kernel programs log, for diagnosis.
    pub(crate) log: bool,
    /// Look closer too, until [`Probe::end_closer`].
    pub(crate) closer: bool,
}

/// A mode that does not work here, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) mode: String,
    pub(crate) reason: String,
}

/// The attached programs. Dropping it detaches them.
pub(crate) struct Probe {
    mode: Mode,
    refusals: Vec<Refusal>,
    /// `None` in the mode without programs.
    ebpf: Option<Ebpf>,
    closer: Option<closer::Closer>,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

impl Probe {
    /// Loads and attaches the programs of the mode that is wanted, or of the best that works.
    ///
    /// # Errors
    /// One that names what is missing: privilege, BTF, a tracepoint, or what the kernel said.
    pub(crate) fn attach(options: ProbeOptions) -> anyhow::Result<Self> {
        if let Some(mode) = options.mode.0 {
            if options.needs_traffic && !mode.measures_traffic() {
                bail!("mode {} measures no traffic, which this command is about: choose another --mode", mode.name());
            }
            return Self::attach_mode(mode, options);
        }
        preflight::check_privileges()?;
        let mut refusals = Vec::new();
        for mode in Mode::ALL.into_iter().filter(|mode| mode.measures_traffic() || !options.needs_traffic) {
            match Self::attach_mode(mode, options) {
                Ok(probe) => return Ok(Self { refusals, ..probe }),
                Err(error) => refusals.push(Refusal { mode: mode.name().to_owned(), reason: format!("{error:#}") }),
            }
        }
        let reasons: Vec<_> = refusals.iter().map(|refusal| format!("{}: {}", refusal.mode, refusal.reason)).collect();
        Err(anyhow!("no way of measuring traffic works here: {}", reasons.join("; ")))
    }

    /// Loads and attaches the programs of one mode.
    ///
    /// # Errors
    /// As [`Probe::attach`].
    pub(crate) fn attach_mode(mode: Mode, options: ProbeOptions) -> anyhow::Result<Self> {
        let mut probe = Self { mode, refusals: Vec::new(), ebpf: None, closer: None, logger: None };
        if mode.hooks().is_empty() {
            return Ok(probe);
        }
        preflight::check_privileges()?;
        preflight::check_machine(mode)?;
        let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF in /sys/kernel/btf/vmlinux")?;
        let offsets = offsets(mode)?;
        let level: u8 = if options.log { aya_log::Level::Debug as u8 } else { 0 };
        let (device, inode) = pid_namespace()?;
        let shape = crate::shape::shape().unwrap_or_else(|error| {
            crate::output::note(&format!(
                "warning: connections that end before the sockets are listed stay without a name: {error:#}"
            ));
            [0; PLACES]
        });
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global(PID_NAMESPACE_DEVICE, &device, true)
            .override_global(PID_NAMESPACE_INODE, &inode, true)
            .override_global(SHAPE, shape.as_slice(), true)
            .override_global(OFFSETS, offsets.as_slice(), true)
            .map_max_entries(TRAFFIC_MAP, options.max_sockets.saturating_mul(cpus()?.min(MOST_CPUS)))
            .map_max_entries(ARRIVALS_MAP, options.ring_bytes)
            .override_global(aya_log::LEVEL, &level, true)
            .load(&object::for_running_kernel()?)
            .map_err(|error| preflight::explain_load(&error.into()))?;
        for hook in mode.hooks() {
            load_one(&mut ebpf, *hook, &btf)?;
        }
        if options.log {
            log::set_max_level(log::LevelFilter::Debug);
            let logger = aya_log::EbpfLogger::init_with_logger(&mut ebpf, &STDERR_LOG as &'static dyn log::Log);
            probe.logger = Some(logger.context("no log from the kernel programs")?);
        }
        for hook in mode.hooks() {
            attach_one(&mut ebpf, *hook)?;
        }
        if options.closer {
            let types = KernelTypes::of_running_kernel().context("cannot understand the kernel's BTF")?;
            probe.closer = Some(closer::Closer::start(&mut ebpf, &btf, &types));
        }
        probe.ebpf = Some(ebpf);
        Ok(probe)
    }

    /// How this probe measures.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// The better modes that do not work here.
    pub(crate) fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// The processes that begin to use Unix sockets, from now on; `None` in a mode that does not tell. Can be taken once; needs the
    /// event loop.
    ///
    /// # Errors
    /// Where the ring buffer cannot be read or was taken.
    pub(crate) fn arrivals(&mut self) -> anyhow::Result<Option<Arrivals>> {
        let Some(ebpf) = &mut self.ebpf else { return Ok(None) };
        Arrivals::take(ebpf).map(Some)
    }

    /// The sockets that are counted for the first time, from now on; `None` in a mode without programs. Can be taken once.
    ///
    /// # Errors
    /// Where the maps cannot be read or were taken.
    pub(crate) fn births(&mut self) -> anyhow::Result<Option<Births>> {
        self.ebpf.as_mut().map(Births::take).transpose()
    }

    /// Prints what the kernel programs logged since the last call.
    pub(crate) fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Stops counting; what was counted stays readable.
    ///
    /// # Errors
    /// Where the kernel refuses to detach.
    pub(crate) fn detach(&mut self) -> anyhow::Result<()> {
        let Some(ebpf) = &mut self.ebpf else { return Ok(()) };
        for hook in self.mode.hooks().iter().rev() {
            detach_one(ebpf, *hook).with_context(|| format!("cannot detach {}", hook.program))?;
        }
        Ok(())
    }

    /// Ends looking closer.
    ///
    /// # Errors
    /// Where the kernel refuses to detach.
    pub(crate) fn end_closer(&mut self) -> anyhow::Result<()> {
        match (&mut self.closer, &mut self.ebpf) {
            (Some(closer), Some(ebpf)) => closer.end(ebpf),
            _ => Ok(()),
        }
    }

    /// What looking closer has shown.
    ///
    /// # Errors
    /// Where the kernel's maps cannot be read.
    pub(crate) fn closer(&self) -> anyhow::Result<Seen> {
        match (&self.closer, &self.ebpf) {
            (Some(closer), Some(ebpf)) => closer.seen(ebpf),
            _ => Ok(Seen::default()),
        }
    }

    /// What was counted since the programs were attached.
    ///
    /// # Errors
    /// Where the kernel's maps cannot be read.
    pub(crate) fn traffic(&self) -> anyhow::Result<Vec<SocketTraffic>> {
        let Some(ebpf) = &self.ebpf else { return Ok(Vec::new()) };
        traffic::read(ebpf)
    }

    /// Forgets the records of these sockets, which must be gone; takes those out of `cookies` that cannot be forgotten yet.
    ///
    /// # Errors
    /// Where the kernel's maps cannot be read.
    pub(crate) fn forget(&mut self, cookies: &mut HashSet<u64>) -> anyhow::Result<()> {
        match &mut self.ebpf {
            Some(ebpf) if !cookies.is_empty() => traffic::forget(ebpf, cookies),
            _ => Ok(()),
        }
    }

    /// What could not be counted. Read it before [`Probe::detach`], which forgets `missed_events`.
    ///
    /// # Errors
    /// Where the kernel's maps cannot be read.
    pub(crate) fn losses(&self) -> anyhow::Result<Losses> {
        let Some(ebpf) = &self.ebpf else { return Ok(Losses::default()) };
        let map = ebpf.map(LOSSES_MAP).ok_or_else(|| anyhow!("the object has no map {LOSSES_MAP}"))?;
        let map: PerCpuArray<_, Count> = map.try_into()?;
        let mut losses = Losses { missed_events: self.missed_events(ebpf)?, ..Losses::default() };
        for loss in Loss::ALL {
            let values = map.get(&(loss as u32), 0).context("cannot read the kernel's loss counters")?;
            let calls = values.iter().map(|value| value.0.calls).sum();
            let bytes = values.iter().map(|value| value.0.bytes).sum();
            match loss {
                Loss::MapFull => (losses.map_full_calls, losses.map_full_bytes) = (calls, bytes),
                Loss::NoMemory => (losses.no_memory_calls, losses.no_memory_bytes) = (calls, bytes),
                Loss::Refused => (losses.refused_calls, losses.refused_bytes) = (calls, bytes),
                Loss::Unreadable => losses.unreadable_calls = calls,
                Loss::Untold => losses.untold_processes = calls,
                Loss::Unsampled => losses.unsampled_signals = calls,
            }
        }
        Ok(losses)
    }

    /// Time that the kernel spent in the programs, and how often it ran them, while somebody asked it to measure that.
    ///
    /// # Errors
    /// Where the kernel does not tell of the programs.
    pub(crate) fn run_time(&self) -> anyhow::Result<(Duration, u64)> {
        let Some(ebpf) = &self.ebpf else { return Ok(Default::default()) };
        let mut sum = (Duration::ZERO, 0);
        for hook in self.mode.hooks() {
            let program = ebpf.program(hook.program).ok_or_else(|| anyhow!("the object lost its program {}", hook.program))?;
            let info = program.info()?;
            sum = (sum.0 + info.run_time(), sum.1 + info.run_count());
        }
        Ok(sum)
    }

    /// Asks the kernel to measure the time of every program until the answer is dropped; `None` where it refuses.
    pub(crate) fn measure_run_time(&self) -> Option<OwnedFd> {
        self.ebpf.as_ref().and_then(|_| enable_stats(Stats::RunTime).ok())
    }

    /// Events that never reached a program, as the kernel counts them (`recursion_misses` in fdinfo of the program).
    fn missed_events(&self, ebpf: &Ebpf) -> anyhow::Result<u64> {
        let mut missed = 0;
        for hook in self.mode.hooks() {
            let program = ebpf.program(hook.program).ok_or_else(|| anyhow!("the object lost its program {}", hook.program))?;
            let path = format!("/proc/self/fdinfo/{}", program.fd()?.as_fd().as_raw_fd());
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            let count = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
            missed += count.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0); // absent before Linux 5.12
        }
        Ok(missed)
    }
}

/// CPUs that this host may have.
fn cpus() -> anyhow::Result<u32> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow!("cannot read {what}: {error}"))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}

/// Device and inode of our pid namespace, so that the kernel programs number processes as /proc here does.
fn pid_namespace() -> anyhow::Result<(u64, u64)> {
    let metadata = std::fs::metadata("/proc/self/ns/pid").context("cannot read /proc/self/ns/pid: mount /proc")?;
    let inode = if metadata.ino() == INITIAL_PID_NAMESPACE { 0 } else { metadata.ino() };
    Ok((metadata.dev(), inode))
}

/// The structure offsets that the mode's programs need on the running kernel.
fn offsets(mode: Mode) -> anyhow::Result<[u64; Offset::ALL.len()]> {
    let types = KernelTypes::of_running_kernel().context("cannot understand the kernel's BTF in /sys/kernel/btf/vmlinux")?;
    mode.offsets(&types).map_err(|missing| anyhow!("mode {} is not for this kernel: {missing}", mode.name()))
}

fn program(ebpf: &mut Ebpf, hook: Hook) -> anyhow::Result<&mut Program> {
    ebpf.program_mut(hook.program).ok_or_else(|| anyhow!("the object has no program {}", hook.program))
}

fn load_one(ebpf: &mut Ebpf, hook: Hook, btf: &Btf) -> anyhow::Result<()> {
    match program(ebpf, hook)? {
        Program::BtfTracePoint(program) => program.load(hook.target, btf),
        Program::FExit(program) => program.load(hook.target, btf),
        Program::RawTracePoint(program) => program.load(),
        _ => bail!("the program {} is of no kind that the tracer attaches", hook.program),
    }
    .map_err(|error| preflight::explain_hook(hook.target, &error))
}

fn attach_one(ebpf: &mut Ebpf, hook: Hook) -> anyhow::Result<()> {
    match program(ebpf, hook)? {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::FExit(program) => program.attach().map(drop),
        Program::RawTracePoint(program) => program.attach(hook.target).map(drop),
        _ => bail!("the program {} is of no kind that the tracer attaches", hook.program),
    }
    .map_err(|error| preflight::explain_hook(hook.target, &error))
}

fn detach_one(ebpf: &mut Ebpf, hook: Hook) -> anyhow::Result<()> {
    match program(ebpf, hook)? {
        Program::BtfTracePoint(program) => program.unload()?,
        Program::FExit(program) => program.unload()?,
        Program::RawTracePoint(program) => program.unload()?,
        _ => bail!("the program {} is of no kind that the tracer attaches", hook.program),
    }
    Ok(())
}

/// Where the kernel programs' diagnosis goes.
struct StderrLog;

static STDERR_LOG: StderrLog = StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        crate::output::note(&format!("kernel: {}", record.args()));
    }

    fn flush(&self) {}
}
