//! The emulated machine: QEMU, watched by its console until it powers off or its time is over.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernel::Kernel;
use super::lines::Line;
use crate::measure::Running;
use crate::{paths, run};

/// The emulator's program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Longest that the machine may run; only one that hangs does.
const DEADLINE: Duration = Duration::from_secs(300);
/// Longest that it may be silent between two lines of ours.
const SILENCE: Duration = Duration::from_secs(120);
/// Memory of the guest in MiB. The file system is in it.
const MEMORY: &str = "1024";
/// CPUs of the guest. Two, because what two processes share is tested.
const CPUS: &str = "2";
/// A panic ends the machine at once; only errors of the kernel are printed between our lines.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 loglevel=4 rdinit=/init -- vm-guest";
/// Lines of the console that are shown when something failed.
const TAIL: usize = 60;

/// What became of the guest's tests.
#[derive(Debug, Default)]
pub(super) struct Story {
    /// Names of those that passed.
    pub passed: Vec<String>,
    /// Those that failed, or never ended, each with what the console showed.
    pub failed: Vec<(String, String)>,
    /// Why the whole is not to be believed, if so.
    pub broken: Option<String>,
    /// The test that runs.
    current: Option<(String, VecDeque<String>)>,
    /// The last lines of all.
    tail: VecDeque<String>,
    /// How many tests the guest says it ran.
    told: Option<usize>,
}

/// Boots the machine and listens; the whole console goes to the file `log`.
///
/// # Errors
/// QEMU cannot be started or the log not be written. What fails inside is in the story.
pub(super) fn boot(kernel: &Kernel, image: &Path, log: &Path) -> Result<Story> {
    let mut command =
        Command::new(paths::find_program(QEMU).with_context(|| format!("{QEMU} is missing: run `cargo xtask setup`"))?);
    // Emulated, not virtualised: works on every machine, and the same on each.
    // One thread for both CPUs: with one each, a CPU may go on for ever in a breakpoint that the other has put into the kernel's code and taken away
    // again, as the kernel does whenever tracing begins.
    command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", CPUS, "-m", MEMORY]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image).args(["-append", KERNEL_ARGUMENTS]);
    println!("$ {}", run::shown(&command));
    let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut machine = Running::start_with(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let lines = console(&mut machine)?;
    let (start, mut story) = (Instant::now(), Story::default());
    let ending = loop {
        let left = DEADLINE.saturating_sub(start.elapsed());
        match lines.recv_timeout(left.min(SILENCE)) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                story.hear(&line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Some(format!("it said nothing new for too long and was killed after {} s", start.elapsed().as_secs()));
            }
        }
    };
    drop(machine); // killed by its id if it still runs
    story.close(ending);
    Ok(story)
}

/// The console's lines, as they come.
fn console(machine: &mut Running) -> Result<mpsc::Receiver<String>> {
    let output = machine.child().stdout.take().context("standard output was asked for")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}

impl Story {
    fn hear(&mut self, text: &str) {
        keep(&mut self.tail, text);
        match Line::parse(text) {
            Some(Line::Begin(name)) => self.current = Some((name, VecDeque::new())),
            Some(Line::End(name, passed, time)) => {
                let said = self.current.take().filter(|(current, _)| *current == name).map(|(_, lines)| joined(&lines));
                println!("vm: {name} ... {} ({:.1} s)", if passed { "ok" } else { "FAILED" }, time.as_secs_f64());
                match (passed, said) {
                    (true, Some(_)) => self.passed.push(name),
                    (false, Some(said)) => self.failed.push((name, said)),
                    (_, None) => self.failed.push((name, "it ended and had not begun".to_owned())),
                }
            }
            Some(Line::All(count)) => self.told = Some(count),
            None => {
                if let Some((_, lines)) = &mut self.current {
                    keep(lines, text);
                }
            }
        }
    }

    /// Judges the whole, once nothing more comes.
    fn close(&mut self, ending: Option<String>) {
        if let Some((name, lines)) = self.current.take() {
            self.failed.push((name, format!("the machine ended in the middle of it\n{}", joined(&lines))));
        }
        let heard = self.passed.len() + self.failed.len();
        let wrong = match (ending, self.told) {
            (Some(ending), _) => ending,
            (None, None) => "it ended before it had run all of its tests".to_owned(),
            (None, Some(0)) => "it ran no test".to_owned(),
            (None, Some(told)) if told != heard => format!("it says that it ran {told} tests, and told of {heard}"),
            (None, Some(_)) => return,
        };
        self.broken =
            Some(format!("the virtual machine is not to be believed: {wrong}; the end of its console:\n{}", joined(&self.tail)));
    }
}

fn keep(lines: &mut VecDeque<String>, text: &str) {
    if lines.len() == TAIL {
        lines.pop_front();
    }
    lines.push_back(text.to_owned());
}

fn joined(lines: &VecDeque<String>) -> String {
    lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, ending: Option<&str>) -> Story {
        let mut story = Story::default();
        text.lines().for_each(|line| story.hear(line));
        story.close(ending.map(str::to_owned));
        story
    }

    #[test]
    fn a_whole_story_is_believed_and_a_failure_keeps_its_words() {
        let text = "boot\n@tssx-vm begin a\n@tssx-vm passed a 5\n@tssx-vm begin b\nwhy\n@tssx-vm failed b 6\n@tssx-vm all 2";
        let story = told(text, None);
        assert_eq!((story.passed, story.failed), (vec!["a".to_owned()], vec![("b".to_owned(), "why".to_owned())]));
        assert_eq!(story.broken, None);
    }

    #[test]
    fn what_is_cut_off_missing_or_silent_is_not_believed() {
        let cut = told("@tssx-vm begin a\nKernel panic", None);
        assert!(cut.failed.iter().any(|(name, said)| name == "a" && said.contains("Kernel panic")));
        assert!(cut.broken.is_some_and(|text| text.contains("before it had run all")));
        assert!(told("@tssx-vm all 0", None).broken.is_some_and(|text| text.contains("no test")));
        assert!(told("@tssx-vm begin a\n@tssx-vm passed a 5\n@tssx-vm all 2", None).broken.is_some());
        assert!(told("@tssx-vm begin a\n@tssx-vm passed a 5\n@tssx-vm all 1", Some("late")).broken.is_some());
        assert!(told("", None).broken.is_some());
    }
}
