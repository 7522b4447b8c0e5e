//! Running other programs: each is shown before it runs, has a deadline, and fails with its own words.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How often a running child is looked at. Bounds how late a deadline can be noticed, never a result.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The command as a person would type it (environment changes first).
pub(crate) fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy().replace('\u{1f}', " ");
        Some(format!("{}={}", name.to_string_lossy(), quoted(&value)))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| quoted(&word.to_string_lossy()));
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Shows the command, runs it on our own terminal, and fails unless it exits with 0 before the deadline.
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<()> {
    println!("$ {}", shown(command));
    let text = shown(command);
    let mut child = command.spawn().with_context(|| format!("cannot start `{text}`"))?;
    let status = wait(&mut child, deadline).with_context(|| format!("`{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed ({status})");
    }
    Ok(())
}

/// What a finished program printed.
pub(crate) struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
}

/// Runs the command silently in a process group of its own and returns what it printed.
///
/// # Errors
/// When it cannot be started, or outlives the deadline (its whole group is then killed).
pub(crate) fn capture(command: &mut Command, deadline: Duration) -> Result<Output> {
    let text = shown(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start `{text}`"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, deadline);
    if status.is_err() {
        kill_group(&child);
    }
    let (stdout, stderr) = (collected(&stdout), collected(&stderr));
    let status = status.with_context(|| format!("`{text}` printed:\n{stdout}{stderr}"))?;
    Ok(Output { status, stdout, stderr })
}

/// Like [`capture`], and fails unless the program exits with 0.
pub(crate) fn capture_success(command: &mut Command, deadline: Duration) -> Result<Output> {
    let output = capture(command, deadline)?;
    if !output.status.success() {
        bail!("`{}` failed ({}):\n{}{}", shown(command), output.status, output.stdout, output.stderr);
    }
    Ok(output)
}

/// Shows and runs the command, passing each line of its output on as it comes; returns the lines too.
pub(crate) fn tee(command: &mut Command, deadline: Duration) -> Result<Output> {
    println!("$ {}", shown(command));
    let text = shown(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start `{text}`"))?;
    let stdout = child.stdout.take().context("standard output was asked for")?;
    let reader = thread::spawn(move || {
        let mut all = String::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            println!("{line}");
            all.push_str(&line);
            all.push('\n');
        }
        all
    });
    let status = wait(&mut child, deadline);
    if status.is_err() {
        kill_group(&child);
    }
    let stdout = reader.join().unwrap_or_default();
    Ok(Output { status: status.with_context(|| format!("`{text}`"))?, stdout, stderr: String::new() })
}

/// Waits for the child until the deadline; after it the child is killed by its id and reaped.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("did not end within {} s and was killed", deadline.as_secs());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn kill_group(child: &Child) {
    // The group may be gone already, which is what we want.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
}

fn drain(source: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            // A read error ends the text early; the exit status still tells.
            let _ = source.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

fn collected(receiver: &mpsc::Receiver<Vec<u8>>) -> String {
    // A grandchild that kept the pipe must not hold us up for ever.
    let bytes = receiver.recv_timeout(Duration::from_secs(10)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
