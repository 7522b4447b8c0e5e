//! nginx with two workers in front of php-fpm over a Unix socket, which is what is accelerated: a family of forked processes at
//! each end. The pool of php-fpm is static, or dynamic, where processes are forked and ended while the load runs.
//!
//! Connections are kept (`fastcgi_keep_conn`). A process of php-fpm serves one connection at a time, so that there must be
//! more of them than connections that nginx may keep, or requests wait for ever, plain as well.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use nix::sys::signal::Signal;

use super::place::{Home, Running, Software, listens};
use super::{MIN_HIT_RATE, accelerated_or_not, asked_for, hit_rate, http, verified};
use crate::mode::{End, Mode};

/// Requests of a run unless `TSSX_SERVER_REQUESTS` says otherwise: enough of them that the first of each connection, which the
/// kernel carries, are less than the share that may.
const REQUESTS: u64 = 20_000;
/// How long the tracer watches.
const WATCH: Duration = Duration::from_secs(2);

/// How php-fpm keeps its processes.
const STATIC: &str = "pm = static\npm.max_children = 32\n";
const DYNAMIC: &str =
    "pm = dynamic\npm.max_children = 32\npm.start_servers = 4\npm.min_spare_servers = 2\npm.max_spare_servers = 6\n";

/// Every trial of this module.
pub(super) fn trials(software: &Arc<Software>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, pool) in [("static", STATIC), ("dynamic", DYNAMIC)] {
        for mode in [Mode::Plain, Mode::Both] {
            let software = Arc::clone(software);
            let trial = move || answers(&software, mode, name, pool);
            trials.push(Trial::test(format!("nginx-and-php-fpm-{name}::{mode:?}"), trial));
        }
    }
    let software = Arc::clone(software);
    let trial = Trial::test("nginx-and-php-fpm-verified-by-the-tracer", move || traced(&software));
    trials.push(trial.with_ignored_flag(!nix::unistd::geteuid().is_root()));
    trials
}

/// Both servers.
struct Pair<'a> {
    home: Home<'a>,
    nginx: Running,
    php: Running,
}

impl<'a> Pair<'a> {
    fn start(software: &'a Software, mode: Mode, pool: &str) -> Result<Self, Failed> {
        let home = Home::new(software, mode)?;
        let here = home.path("").display().to_string();
        let here = here.trim_end_matches('/');
        home.write("echo.php", include_str!("programs/echo.php"))?;
        let text = include_str!("programs/php-fpm.conf").replace("HERE", here).replace("POOL", pool);
        let configuration = home.write("php-fpm.conf", &text)?;
        let mut command = home.command(&home.software.entry("usr/sbin", "php-fpm")?);
        // -n: no php.ini, which would name extensions in the machine's own folders.
        command.args(["--nodaemonize", "-n", "--fpm-config"]).arg(configuration);
        home.preload(&mut command, End::Server, &home.path("php.sock"));
        let php = Running::start("php-fpm", &mut command, Signal::SIGTERM, || listens(&home.path("php.sock")))?;
        let configuration = home.write("nginx.conf", &include_str!("programs/nginx.conf").replace("HERE", here))?;
        let mut command = home.command(&home.software.entry("usr/sbin", "nginx")?);
        command.arg("-e").arg(home.path("nginx.log")).arg("-p").arg(here).arg("-c").arg(configuration);
        home.preload(&mut command, End::Client, &home.path("php.sock"));
        let nginx = Running::start("nginx", &mut command, Signal::SIGTERM, || listens(&home.path("nginx.sock")))?;
        Ok(Self { home, nginx, php })
    }

    fn socket(&self) -> PathBuf {
        self.home.path("nginx.sock")
    }

    /// Adds what the servers said for themselves.
    fn explained(&self, error: &str) -> Failed {
        let log = |name: &str| std::fs::read_to_string(self.home.path(name)).unwrap_or_default();
        format!("{:?}: {error}\n--- nginx\n{}--- php-fpm\n{}", self.home.mode(), log("nginx.log"), log("php-fpm.log")).into()
    }

    fn stop(self) -> Result<(), Failed> {
        let log = std::fs::read_to_string(self.home.path("nginx.log")).unwrap_or_default();
        if ["[error]", "[crit]", "[alert]", "[emerg]"].iter().any(|level| log.contains(level)) {
            return Err(self.explained("every answer was right, but nginx complains"));
        }
        self.nginx.stop()?;
        self.php.stop()
    }
}

fn answers(software: &Software, mode: Mode, name: &str, pool: &str) -> Result<(), Failed> {
    let requests = asked_for("TSSX_SERVER_REQUESTS", REQUESTS)?;
    let pair = Pair::start(software, mode, pool)?;
    let start = Instant::now();
    let right = http::load(&pair.socket(), requests, &AtomicBool::new(false)).map_err(|error| pair.explained(&error))?;
    let seconds = start.elapsed().as_secs_f64();
    if right != requests {
        return Err(pair.explained(&format!("only {right} of {requests} answers")));
    }
    print!("nginx and php-fpm {mode:?}, {name}: {right} of {requests} answers right in {seconds:.1} s");
    let counted = [pair.nginx.counted()?, pair.php.counted()?];
    for counted in &counted {
        accelerated_or_not(mode, counted)?;
    }
    if mode.may_accelerate() {
        let rates = counted.map(|counted| hit_rate(&counted));
        let [nginx, php] = &counted;
        println!(
            "; hit rates by the ledgers {:.5} and {:.5}; {} of {} connections accelerated",
            rates[0], rates[1], php.accelerated, nginx.selected
        );
        if rates.iter().any(|rate| *rate < MIN_HIT_RATE) {
            return Err(pair.explained(&format!("too few bytes through rings: {counted:?}")));
        }
    } else {
        println!();
    }
    pair.stop()
}

/// The tracer's figures while the load runs.
fn traced(software: &Software) -> Result<(), Failed> {
    let pair = Pair::start(software, Mode::Both, STATIC)?;
    let (stop, socket) = (AtomicBool::new(false), pair.socket());
    let (right, table) = std::thread::scope(|scope| {
        let load = scope.spawn(|| http::load(&socket, u64::MAX, &stop));
        std::thread::sleep(Duration::from_millis(500)); // past the operations before an upgrade
        let table = verified(&pair.home.path("php.sock"), WATCH);
        stop.store(true, Ordering::Relaxed);
        (load.join(), table)
    });
    let right = right.map_err(|_| "the load panicked")?.map_err(|error| pair.explained(&error))?;
    print!("nginx and php-fpm, static, {right} answers right\n{}", table?);
    pair.stop()
}
