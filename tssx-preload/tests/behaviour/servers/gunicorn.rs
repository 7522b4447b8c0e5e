//! gunicorn on a Unix socket, asked by a Python program with several threads: the arbiter forks two workers, which are of the
//! sync kind (a connection is one request, mostly too short to be accelerated) or serve kept connections by threads.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;

use super::place::{Home, Running, Software, listens};
use super::{MIN_HIT_RATE, accelerated_or_not, asked_for, hit_rate};
use crate::mode::{End, Mode};

/// Requests of a run unless `TSSX_SERVER_REQUESTS` says otherwise.
const REQUESTS: u64 = 2_000;
/// Longest that a thousand requests may take, on a loaded machine.
const A_THOUSAND: Duration = Duration::from_secs(15);

/// A kind of workers, and what its clients do with their connections.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    options: &'static [&'static str],
    way: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind { name: "sync", options: &["--worker-class=sync"], way: "each" },
    Kind { name: "gthread", options: &["--worker-class=gthread", "--threads=4", "--keep-alive=30"], way: "keep" },
];

/// Every trial of this module.
pub(super) fn trials(software: &Arc<Software>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for kind in KINDS {
        for mode in [Mode::Plain, Mode::Both, Mode::ServerOnly, Mode::ClientOnly] {
            let software = Arc::clone(software);
            trials.push(Trial::test(format!("gunicorn-{}::{mode:?}", kind.name), move || answers(&software, mode, kind)));
        }
    }
    trials
}

/// Debian's own Python, for which the packages are; another one only where that is missing.
fn python(home: &Home) -> Command {
    let own = Path::new("/usr/bin/python3");
    let mut command = home.command(if own.is_file() { own } else { Path::new("python3") });
    command.arg("-B").env("PYTHONPATH", home.software.root().join("usr/lib/python3/dist-packages"));
    command
}

fn answers(software: &Software, mode: Mode, kind: Kind) -> Result<(), Failed> {
    let requests = asked_for("TSSX_SERVER_REQUESTS", REQUESTS)?;
    let home = Home::new(software, mode)?;
    let socket = home.path("socket");
    home.write("gunicorn_app.py", include_str!("programs/gunicorn_app.py"))?;
    let mut command = python(&home);
    command.args(["-m", "gunicorn", "--workers=2", "--bind"]).arg(format!("unix:{}", socket.display())).args(kind.options);
    command.arg("--worker-tmp-dir").arg(home.path("")).arg("gunicorn_app:app");
    home.preload(&mut command, End::Server, &socket);
    let server = Running::start("gunicorn", &mut command, Signal::SIGTERM, || listens(&socket))?;
    let script = home.write("client.py", include_str!("programs/gunicorn_client.py"))?;
    let mut client = python(&home);
    client.arg(script).arg(&socket).args([kind.way, &requests.to_string()]);
    home.preload(&mut client, End::Client, &socket);
    let start = Instant::now();
    let ended = home.run(&mut client, A_THOUSAND * (requests as u32 / 1000 + 1))?;
    if ended.stdout != format!("right {requests}\n") {
        return Err(format!("{mode:?}: {}", ended.all()).into());
    }
    let counted = server.counted()?;
    print!("gunicorn {}, {mode:?}: {requests} of {requests} answers right in {:.1} s", kind.name, start.elapsed().as_secs_f64());
    println!(
        "; {} of {} connections accelerated, hit rate by the ledger {:.5}",
        counted.accelerated,
        counted.selected,
        hit_rate(&counted)
    );
    if kind.way == "keep" {
        accelerated_or_not(mode, &counted)?;
        if mode.may_accelerate() && hit_rate(&counted) < MIN_HIT_RATE {
            return Err(format!("{mode:?}: too few bytes through rings: {counted:?}").into());
        }
    } else if !mode.may_accelerate() {
        accelerated_or_not(mode, &counted)?;
    }
    server.stop()
}
