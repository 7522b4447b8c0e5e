//! One run of a scenario under ptrace(2): every system call of every process is looked at, and one of the library's is answered in the
//! kernel's place.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::heap::{self, Heap};
use super::site::Site;
use super::symbols::Symbols;
use super::unwind::{Spot, Unwinder};

/// Which of the times that a site is passed fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum When {
    /// Only the one of this number, from 0.
    Only(u32),
    /// So many from the first on: what a kernel says that is short of memory for a moment.
    Spell(u32),
    /// All.
    Always,
    /// All of the library's own calls of this system call, at whatever site: an older kernel, or a filter.
    Everywhere,
    /// Of all calls of the run that take memory ([`heap::takes_memory`]) the one of this number, from 0.
    Allocation(u32),
    /// That one and all that follow: no memory is left.
    AllocationsFrom(u32),
}

/// What is to fail.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// Where.
    pub site: Site,
    /// Which system call there.
    pub number: u64,
    /// With which error.
    pub errno: Errno,
    /// Which of its calls.
    pub when: When,
}

impl When {
    /// Whether the call of this number, from 0, is among them.
    fn includes(self, this: u32) -> bool {
        match self {
            Self::Only(number) | Self::Allocation(number) => number == this,
            Self::Spell(count) => this < count,
            Self::AllocationsFrom(first) => this >= first,
            Self::Always | Self::Everywhere => true,
        }
    }

    /// Whether calls are counted that take memory, wherever they are made.
    pub(super) fn is_of_memory(self) -> bool {
        matches!(self, Self::Allocation(_) | Self::AllocationsFrom(_))
    }

    /// Whether nothing is of interest behind the first.
    fn is_single(self) -> bool {
        matches!(self, Self::Only(_) | Self::Allocation(_))
    }
}

impl Fault {
    fn aims_at(&self, site: &Site, number: u64) -> bool {
        match self.when {
            When::Allocation(_) | When::AllocationsFrom(_) => heap::takes_memory(site, number),
            When::Everywhere => number == self.number && site.own,
            _ => number == self.number && *site == self.site,
        }
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The library's calls, and how often each was made.
    pub calls: BTreeMap<(Site, u64), u32>,
    /// The library's calls that take memory, in their order.
    pub allocations: Vec<(Site, u64)>,
    /// How many calls were answered in the kernel's place.
    pub injected: u32,
    /// At which sites.
    pub failed: BTreeSet<Site>,
    /// Processes that a signal has ended.
    pub killed: Vec<Signal>,
    /// The exit status of the first process.
    pub status: Option<i32>,
    /// Nothing had ended by then, and was killed.
    pub hung: bool,
    /// Where each process was when it was.
    pub stuck: Vec<String>,
}

/// Files that are mapped executable in one process, with what is to be added to their own addresses.
#[derive(Clone, Default)]
struct Modules {
    executable: Vec<(u64, u64, usize)>,
    bias: Vec<(PathBuf, u64)>,
}

impl Modules {
    fn of(pid: Pid) -> Self {
        let mut modules = Self::default();
        let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(range), Some(access), Some(path)) = (words.next(), words.next(), words.nth(3)) else { continue };
            let range = range.split_once('-').map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)));
            let (Some((Ok(start), Ok(end))), true) = (range, path.starts_with('/')) else { continue };
            let known = modules.bias.iter().position(|(known, _)| known.as_os_str() == path);
            let index = known.unwrap_or_else(|| {
                modules.bias.push((PathBuf::from(path), start));
                modules.bias.len() - 1
            });
            if access.contains('x') {
                modules.executable.push((start, end, index));
            }
        }
        modules
    }

    fn find(&self, address: u64) -> Option<(&PathBuf, u64)> {
        let (_, _, index) = self.executable.iter().find(|(start, end, _)| (*start..*end).contains(&address))?;
        self.bias.get(*index).map(|(path, bias)| (path, *bias))
    }
}

/// Runs scenarios, one after the other, and remembers what it learnt of the files.
pub(super) struct Tracer {
    symbols: Symbols,
    heap: Option<Heap>,
    unwinders: HashMap<PathBuf, Option<Unwinder>>,
    sites: HashMap<Vec<u64>, Site>,
}

/// What goes on in one run.
struct State<'a> {
    fault: Option<&'a Fault>,
    root: Pid,
    run: Run,
    /// Threads that have been seen, and whether they are inside of a system call.
    inside: HashMap<Pid, bool>,
    answers: HashMap<Pid, Errno>,
    modules: HashMap<Pid, Modules>,
    born: HashSet<Pid>,
    /// Nothing more is to be looked at.
    quiet: bool,
}

impl State<'_> {
    /// Counts a call of the library; how many came before it there.
    fn count(&mut self, site: &Site, number: u64) -> u32 {
        let passed = self.run.calls.entry((site.clone(), number)).or_insert(0);
        *passed += 1;
        *passed - 1
    }
}

impl Tracer {
    /// For the library that `symbols` was read from; with `heap`, allocations are seen too.
    pub(super) fn new(symbols: Symbols, heap: Option<Heap>) -> Self {
        Self { symbols, heap, unwinders: HashMap::new(), sites: HashMap::new() }
    }

    /// What makes allocations seen.
    pub(super) fn heap(&self) -> Option<&Heap> {
        self.heap.as_ref()
    }

    /// What is known of the library.
    pub(super) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Starts the command, which asks to be traced and becomes the scenario (`scenario::start`), and stays with all that it starts until the last has ended.
    ///
    /// # Errors
    /// It cannot be started or traced.
    pub(super) fn run(&mut self, command: &mut Command, fault: Option<&Fault>, deadline: Duration) -> Result<Run> {
        use std::os::unix::process::CommandExt;
        let child =
            command.process_group(0).spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let root = Pid::from_raw(child.id().cast_signed());
        match waitpid(root, Some(WaitPidFlag::__WALL)).context("waiting for the scenario's exec")? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            other => bail!("the scenario did not ask to be traced: {other:?}"),
        }
        ptrace::setoptions(
            root,
            Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACEVFORK
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_EXITKILL,
        )?;
        let mut state = State {
            fault,
            root,
            run: Run::default(),
            inside: HashMap::from([(root, false)]),
            answers: HashMap::new(),
            modules: HashMap::new(),
            born: HashSet::from([root]),
            quiet: false,
        };
        ptrace::syscall(root, None)?;
        let (ended, watch) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            let late = watch.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout);
            let stuck = if late { where_they_are(root) } else { Vec::new() };
            if late {
                // Reaped only once this thread has ended: the id is still theirs.
                let _ = killpg(root, Signal::SIGKILL);
            }
            (late, stuck)
        });
        let outcome = self.follow(&mut state);
        drop(ended);
        if outcome.is_err() {
            let _ = killpg(root, Signal::SIGKILL);
        }
        let (hung, stuck) = watchdog.join().unwrap_or_default();
        outcome?;
        (state.run.hung, state.run.stuck) = (hung, stuck);
        Ok(state.run)
    }

    fn follow(&mut self, state: &mut State<'_>) -> Result<()> {
        loop {
            let event = match waitpid(None::<Pid>, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Ok(event) => event,
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for the scenario"),
            };
            let (pid, deliver) = match event {
                WaitStatus::Exited(pid, status) => {
                    if pid == state.root {
                        state.run.status = Some(status);
                    }
                    continue;
                }
                WaitStatus::Signaled(_, signal, _) => {
                    state.run.killed.push(signal);
                    continue;
                }
                WaitStatus::PtraceSyscall(pid) => {
                    // A process may be killed at any moment; then the next event says so.
                    match self.system_call(state, pid) {
                        Ok(()) => {}
                        Err(error) if error.downcast_ref() == Some(&Errno::ESRCH) => {}
                        Err(error) => return Err(error),
                    }
                    (pid, None)
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    if event == libc::PTRACE_EVENT_EXEC {
                        state.modules.remove(&pid);
                    }
                    (pid, None)
                }
                // What a new thread begins with.
                WaitStatus::Stopped(pid, Signal::SIGSTOP) if state.born.insert(pid) => (pid, None),
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                _ => continue,
            };
            let on = if state.quiet { ptrace::cont(pid, deliver) } else { ptrace::syscall(pid, deliver) };
            match on {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).context("letting the scenario go on"),
            }
        }
    }

    fn system_call(&mut self, state: &mut State<'_>, pid: Pid) -> Result<()> {
        let inside = state.inside.entry(pid).or_insert(false);
        *inside = !*inside;
        if *inside {
            return if state.quiet { Ok(()) } else { self.enter(state, pid) };
        }
        if let Some(errno) = state.answers.remove(&pid) {
            let mut registers = ptrace::getregs(pid)?;
            registers.rax = i64::from(-(errno as i32)).cast_unsigned();
            ptrace::setregs(pid, registers)?;
            state.quiet = state.fault.is_some_and(|fault| fault.when.is_single());
        }
        Ok(())
    }

    fn enter(&mut self, state: &mut State<'_>, pid: Pid) -> Result<()> {
        let mut registers = ptrace::getregs(pid)?;
        let Some(site) = self.site(state, pid, &registers) else { return Ok(()) };
        let number = registers.orig_rax;
        let aimed = state.fault.filter(|fault| fault.aims_at(&site, number));
        let mut this = state.count(&site, number);
        if heap::takes_memory(&site, number) {
            if state.fault.is_some_and(|fault| fault.when.is_of_memory()) {
                this = u32::try_from(state.run.allocations.len())?;
            }
            state.run.allocations.push((site.clone(), number));
        }
        let Some(fault) = aimed.filter(|fault| fault.when.includes(this)) else { return Ok(()) };
        state.run.injected += 1;
        state.run.failed.insert(site);
        state.answers.insert(pid, fault.errno);
        // A close that fails has closed all the same (close(2), "Dealing with error returns from close").
        if number != libc::SYS_close.cast_unsigned() {
            registers.orig_rax = u64::MAX;
            ptrace::setregs(pid, registers)?;
        }
        Ok(())
    }

    /// The library's call site, if it is one.
    fn site(&mut self, state: &mut State<'_>, pid: Pid, registers: &user_regs_struct) -> Option<Site> {
        let mut spot = Spot { instruction: registers.rip, stack: registers.rsp, frame: registers.rbp };
        let modules = state.modules.entry(pid).or_insert_with(|| Modules::of(pid));
        if modules.find(spot.instruction).is_none() {
            *modules = Modules::of(pid);
        }
        let (path, bias) = modules.find(spot.instruction)?;
        let own = *path == self.symbols.path;
        let mut chain = Vec::new();
        if own {
            chain.push(spot.instruction - bias - 1);
        } else if !heap::is_between(self.heap.as_ref(), path, registers.orig_rax) {
            return None;
        }
        while chain.last().is_none_or(|last| self.symbols.is_door(*last)) {
            let (path, bias) = modules.find(spot.instruction)?;
            let unwinder = self.unwinders.entry(path.clone()).or_insert_with(|| Unwinder::read(path).ok()).as_mut()?;
            let read = |address: u64| ptrace::read(pid, address as ptrace::AddressType).ok().map(i64::cast_unsigned);
            spot = unwinder.caller(spot, bias, read)?;
            let (path, bias) = modules.find(spot.instruction)?;
            if *path != self.symbols.path {
                // The function of libc's that the library has called may call others before one of them takes memory.
                let deeper = chain.is_empty() && registers.orig_rax == heap::NUMBER;
                if deeper && heap::is_between(self.heap.as_ref(), path, heap::NUMBER) {
                    continue;
                }
                return None;
            }
            chain.push(spot.instruction - bias - 1);
        }
        let symbols = &self.symbols;
        Some(self.sites.entry(chain).or_insert_with_key(|chain| Site { own, place: symbols.place(chain) }).clone())
    }
}

/// What a person would want to know of processes that hang: each one's system call and place in the kernel.
fn where_they_are(group: Pid) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let members = pids.filter(|pid| nix::unistd::getpgid(Some(Pid::from_raw(*pid))) == Ok(group));
    members
        .map(|pid| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            format!("{pid} is in {} (system call {})", read("wchan"), read("syscall").trim())
        })
        .collect()
}
