//! The recipes' programs: what each needs before it runs, when it is ready, how its answers are checked and its rate is read.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::script::{self, Line, Pair, Tracer};
use super::stage::Stage;
use crate::measure::Running;

/// What the client of redis must print.
const REDIS_ANSWERS: &str = "set 300\ngot 300\ngot in pipelines 300\nb'$-1\\r\\n' b':300\\r\\n' b'-ERR'\ndone\n";
/// Transactions of the script that checks PostgreSQL's answers.
const CHECKED: u64 = 200;

/// Which programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Redis,
    Postgres,
    Memcached,
    /// nginx keeps its connections to php-fpm.
    Kept,
    /// It opens one for each request.
    Short,
}

impl Kind {
    /// How its paragraph of the script begins.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "PostgreSQL",
            Self::Memcached => "memcached",
            Self::Kept | Self::Short => "nginx",
        }
    }

    /// The socket's name in the stage's folder.
    pub(super) fn socket(self) -> &'static str {
        if self == Self::Postgres { ".s.PGSQL.5432" } else { "socket" }
    }

    /// Milliseconds between two requests: short connections come slowly enough for all of them to be counted on a small machine.
    fn pause(self) -> u64 {
        if self == Self::Short { 3 } else { 0 }
    }
}

/// Programs on a stage.
pub(super) struct Programs<'a> {
    pub(super) kind: Kind,
    pub(super) stage: Stage<'a>,
    pub(super) tracer: Tracer,
    pair: Pair,
    /// Of nginx.
    port: u16,
}

/// What runs; the client's end is ended first.
pub(super) struct Serving {
    _nginx: Option<Running>,
    _server: Running,
}

impl<'a> Programs<'a> {
    /// Prepares them.
    pub(super) fn new(kind: Kind, stage: Stage<'a>) -> Result<Self> {
        let (tracer, pair) = (script::tracer()?, script::pair(kind.heading())?);
        let programs = Self { kind, stage, tracer, pair, port: free_port()? };
        match kind {
            Kind::Redis => {
                let client = include_str!("../../../tssx-preload/tests/behaviour/programs/redis_client.py");
                programs.stage.write("redis_client.py", client)?;
            }
            Kind::Postgres => programs.prepare_postgres()?,
            Kind::Memcached => programs.stage.write("memcached_client.py", include_str!("programs/memcached_client.py"))?,
            Kind::Kept | Kind::Short => programs.prepare_php()?,
        }
        Ok(programs)
    }

    fn prepare_postgres(&self) -> Result<()> {
        let script = include_str!("../../../tssx-preload/tests/behaviour/servers/programs/checked.pgbench");
        self.stage.write("checked.pgbench", script)?;
        self.here("initdb --username=tester --no-locale --encoding=UTF8 --auth=trust --no-sync -D data")?;
        // What a test has no need of, in the file that an operator would change too.
        let settings = "fsync = off\njit = off\nautovacuum = off\n";
        let file = self.stage.path("data/postgresql.conf");
        std::fs::write(&file, std::fs::read_to_string(&file)? + settings)?;
        let _serving = self.serve(false)?;
        self.here("pgbench --initialize --quiet postgres")
    }

    fn prepare_php(&self) -> Result<()> {
        let here = self.stage.path("").display().to_string();
        let here = here.trim_end_matches('/');
        let socket = self.stage.socket().display().to_string();
        let [upstream, location] = self.pair.configuration.as_slice() else {
            anyhow::bail!("recipes.sh configures nginx by two lines")
        };
        let (mut upstream, mut location) = (upstream.replace("$SOCKET", &socket), (*location).to_owned());
        if self.kind == Kind::Short {
            for (text, part) in
                [(&mut upstream, " keepalive 8; keepalive_requests 1000000;"), (&mut location, " fastcgi_keep_conn on;")]
            {
                ensure!(text.contains(part), "recipes.sh does not say{part}");
                *text = text.replace(part, "");
            }
        }
        let text = include_str!("programs/nginx.conf").replace("UPSTREAM", &upstream).replace("LOCATION", &location);
        self.stage.write("nginx.conf", &text.replace("HERE", here).replace("PORT", &self.port.to_string()))?;
        self.stage.write("php-fpm.conf", &include_str!("programs/php-fpm.conf").replace("HERE", here))?;
        self.stage.write("fastcgi_params", include_str!("programs/fastcgi_params"))?;
        self.stage.write("php.ini", "")?;
        self.stage.write("page.php", include_str!("programs/page.php"))?;
        self.stage.write("http_client.py", include_str!("programs/http_client.py"))
    }

    /// Starts the server, and nginx where that is its client, with the environment that was suggested or without.
    pub(super) fn serve(&self, accelerated: bool) -> Result<Serving> {
        if self.stage.socket().exists() {
            std::fs::remove_file(self.stage.socket())?; // not every server takes the place of a name that is there
        }
        let signal = if self.kind == Kind::Postgres { Signal::SIGINT } else { Signal::SIGTERM };
        let server = self.stage.server(self.shell(&self.pair.server, accelerated, 0), signal, || self.is_ready())?;
        let nginx = match self.kind {
            Kind::Kept | Kind::Short => {
                let ready = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
                Some(self.stage.server(self.shell(&self.pair.client, accelerated, 0), Signal::SIGTERM, ready)?)
            }
            _ => None,
        };
        Ok(Serving { _nginx: nginx, _server: server })
    }

    fn is_ready(&self) -> bool {
        match self.kind {
            Kind::Postgres => self.here("psql -d postgres -c 'SELECT 1'").is_ok(),
            _ => UnixStream::connect(self.stage.socket()).is_ok(),
        }
    }

    /// A load of so many requests. Of nginx and php-fpm both ends run already: who asks nginx is no end of theirs.
    pub(super) fn load(&self, accelerated: bool, many: u64) -> Command {
        match self.kind {
            Kind::Redis | Kind::Postgres | Kind::Memcached => self.shell(&self.pair.client, accelerated, many),
            Kind::Kept | Kind::Short => {
                let mut command = self.shell(&Line::new("python3 http_client.py $PORT $MANY $PAUSE"), false, many);
                command.env("PORT", self.port.to_string()).env("PAUSE", self.kind.pause().to_string());
                command
            }
        }
    }

    /// What the load says of its rate, requests a second.
    pub(super) fn rate(&self, text: &str) -> Result<f64> {
        let after = |before: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(before))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let rate = match self.kind {
            Kind::Redis => {
                text.rsplit_once(" requests per second").and_then(|(text, _)| text.split_whitespace().last()?.parse().ok())
            }
            Kind::Postgres => after("tps = "),
            Kind::Memcached | Kind::Kept | Kind::Short => after("rate "),
        };
        rate.with_context(|| format!("{}: the load does not tell its rate: {text:?}", self.kind.heading()))
    }

    /// Has answers checked by a client of their own; the loads of memcached and nginx check each answer themselves.
    pub(super) fn check(&self, accelerated: bool) -> Result<()> {
        match self.kind {
            Kind::Redis => {
                let said =
                    self.stage.ends(&mut self.shell(&Line::new("python3 redis_client.py $SOCKET"), accelerated, 0), &[0])?.stdout;
                ensure!(said == REDIS_ANSWERS, "redis: wrong answers: {said}");
                self.stage.ends(&mut self.shell(&Line::new("redis-cli -s $SOCKET flushall"), accelerated, 0), &[0]).map(|_| ())
            }
            Kind::Postgres => {
                let script = Line::new("pgbench -n -f checked.pgbench -c 2 -t $MANY postgres");
                let said = self.stage.ends(&mut self.shell(&script, accelerated, CHECKED), &[0])?.stdout;
                ensure!(said.contains("number of failed transactions: 0"), "PostgreSQL: {said}");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A line, in a shell that has read what was suggested or not.
    fn shell(&self, line: &Line, accelerated: bool, many: u64) -> Command {
        self.stage.shell(line, accelerated.then_some(&self.tracer.read), many)
    }

    /// Runs a preparation.
    fn here(&self, text: &'static str) -> Result<()> {
        self.stage.run(&Line::new(text)).map(|_| ())
    }
}

/// A port that nobody listens at. Somebody else may take it before nginx does, who then says so.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
