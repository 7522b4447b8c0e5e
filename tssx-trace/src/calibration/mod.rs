//! The calibration: what an exchange over a Unix socket costs on this host, plain and through rings, by size of the message.
//!
//! [`measure`] takes it with two processes of [`peer`]; this file is what is kept of it, versioned JSON that
//! `schema/calibration-1.json` describes, and where it is kept.

pub(crate) mod measure;
pub(crate) mod peer;

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the file says it is.
const FORMAT: &str = "tssx-trace calibration";
/// Version of the layout; raised when a field changes its meaning or goes.
const VERSION: u32 = 1;
/// A larger file is no calibration.
const MAX_BYTES: u64 = 1 << 20;
/// Where root keeps it, and everybody may read it.
const SYSTEM_PATH: &str = "/var/cache/tssx/calibration.json";

/// How two programs use their connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shape {
    /// One sends and waits in `read` for an answer of the same size.
    RoundTrip,
    /// The same, and both wait in `epoll_wait`, as event-driven programs do.
    Events,
    /// One sends without waiting, the other reads.
    Stream,
}

impl Shape {
    /// As in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RoundTrip => "round_trip",
            Self::Events => "events",
            Self::Stream => "stream",
        }
    }
}

/// The least, the middle and the largest of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of these values; `None` of none.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Self { least: *values.first()?, median: *values.get(values.len() / 2)?, most: *values.last()? })
    }
}

/// One operation (a round trip, or a message of a stream) over one kind of connection, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// From one to the next, less what the ends computed in between.
    pub(crate) time_ns: Spread,
    /// CPU time of the end that begins, the same subtracted.
    pub(crate) client_cpu_ns: f64,
    /// CPU time of the end that answers or reads.
    pub(crate) server_cpu_ns: f64,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) shape: Shape,
    /// Size of each message.
    pub(crate) bytes: u64,
    /// What both ends together computed for each round trip, microseconds; a wait that is long enough ends in a sleep.
    pub(crate) pause_us: u64,
    /// Whether both ends had to share one CPU; else each had one of its own.
    pub(crate) one_cpu: bool,
    pub(crate) plain: Cost,
    pub(crate) rings: Cost,
    /// Time of an operation less by rings, each round for itself: negative where rings cost more.
    pub(crate) saved_ns: Spread,
}

/// What was measured on one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    format: String,
    version: u32,
    /// When it was taken, milliseconds since 1970.
    pub(crate) measured_unix_ms: u64,
    pub(crate) kernel: String,
    /// CPUs that the ends could run on.
    pub(crate) cpus: u64,
    /// Version of the tracer.
    pub(crate) tracer: String,
    /// The library that was measured.
    pub(crate) library: String,
    /// How often each measurement was made, plain and with rings in turn.
    pub(crate) rounds: u32,
    pub(crate) points: Vec<Point>,
}

impl Calibration {
    /// One of now.
    pub(crate) fn new(library: &Path, rounds: u32, points: Vec<Point>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            format: FORMAT.into(),
            version: VERSION,
            measured_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            tracer: env!("CARGO_PKG_VERSION").into(),
            library: library.to_string_lossy().into_owned(),
            rounds,
            points,
        }
    }

    /// The file's text.
    pub(crate) fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads a calibration.
    ///
    /// # Errors
    /// One that names the file and the remedy: none there, not a calibration, or of another version.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("no calibration at {shown}: take one with `tssx-trace bench`"))?;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).with_context(|| format!("cannot read the calibration {shown}"))?;
        Self::parse(&text)
            .with_context(|| format!("{shown} is not a calibration that this release reads: take one with `tssx-trace bench`"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let read: Self = serde_json::from_str(text)?;
        if read.format != FORMAT || read.version != VERSION {
            bail!("it is `{}` version {}", read.format.escape_default(), read.version);
        }
        let spreads = |point: &Point| [point.plain.time_ns, point.rings.time_ns, point.saved_ns];
        let sound = |spread: Spread| [spread.least, spread.median, spread.most].into_iter().all(f64::is_finite);
        if !read.points.iter().all(|point| spreads(point).into_iter().all(sound)) {
            bail!("a figure in it is no number");
        }
        Ok(read)
    }

    /// The calibration at `path`; without one that of this host, where [`default_path`] would leave it or root has left it.
    ///
    /// # Errors
    /// As [`Calibration::load`], and where this host has none.
    pub(crate) fn named_or_of_host(path: Option<&Path>) -> anyhow::Result<Self> {
        let places = [path.map(Path::to_path_buf).or_else(own_path), Some(PathBuf::from(SYSTEM_PATH))];
        let mut places = places.into_iter().flatten().filter(|place| path.is_some() || place.exists());
        let place = places
            .next()
            .context("this host has no calibration: take one with `tssx-trace bench`, or name one with --calibration")?;
        Self::load(&place)
    }

    /// Writes it to `path`: a new file, which then takes the place of the old one.
    ///
    /// # Errors
    /// Where the directory cannot be made or written to.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let failed = || format!("cannot write the calibration {}: choose another place with --output FILE", path.display());
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(directory).with_context(failed)?;
        let mut file = tempfile::Builder::new().prefix(".tssx-calibration-").tempfile_in(directory).with_context(failed)?;
        file.write_all(self.to_json()?.as_bytes()).with_context(failed)?;
        file.as_file().set_permissions(Permissions::from_mode(0o644)).with_context(failed)?;
        file.persist(path).with_context(failed)?;
        Ok(())
    }
}

/// Where a calibration is kept unless another place is named.
///
/// # Errors
/// Where there is no place: no root, and neither `XDG_CACHE_HOME` nor `HOME` names a directory.
pub(crate) fn default_path() -> anyhow::Result<PathBuf> {
    own_path().context("neither XDG_CACHE_HOME nor HOME names a directory: choose a place with --output FILE")
}

fn own_path() -> Option<PathBuf> {
    place(std::env::var_os("XDG_CACHE_HOME"), rustix::process::geteuid().is_root(), std::env::var_os("HOME"))
}

/// By the basedir specification, which ignores relative paths; for root, who has no cache that others find, [`SYSTEM_PATH`].
fn place(cache: Option<OsString>, root: bool, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|path| path.is_absolute());
    match absolute(cache) {
        Some(cache) => Some(cache.join("tssx/calibration.json")),
        None if root => Some(PathBuf::from(SYSTEM_PATH)),
        None => absolute(home).map(|home| home.join(".cache/tssx/calibration.json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Calibration {
        let time_ns = Spread { least: 1.0, median: 2.0, most: 3.0 };
        let cost = Cost { time_ns, client_cpu_ns: 1.5, server_cpu_ns: 0.5 };
        let point =
            Point { shape: Shape::Events, bytes: 64, pause_us: 0, one_cpu: false, plain: cost, rings: cost, saved_ns: time_ns };
        Calibration::new(Path::new("/l.so"), 3, vec![point])
    }

    #[test]
    fn a_calibration_reads_back_as_it_was_and_anybody_may_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("new/calibration.json");
        let sample = sample();
        sample.save(&path).expect("saved");
        assert_eq!(Calibration::load(&path).expect("loaded"), sample);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(directory.path().join("new")).expect("readable").count(), 1, "no temporary file stays");
    }

    #[test]
    fn another_version_and_other_files_are_refused() {
        let text = sample().to_json().expect("text");
        assert!(Calibration::parse(&text).is_ok());
        assert!(Calibration::parse(&text.replace("\"version\": 1", "\"version\": 2")).is_err());
        assert!(Calibration::parse("{}").is_err());
        crate::mutations::each(text.as_bytes(), 5000, |bytes| {
            let _read = Calibration::parse(&String::from_utf8_lossy(bytes));
        });
        let error = Calibration::load(Path::new("/nonexistent")).expect_err("none there");
        assert!(format!("{error:#}").contains("tssx-trace bench"), "{error:#}");
    }

    #[test]
    fn the_place_is_the_cache_of_the_user() {
        let path = |text: &str| Some(OsString::from(text));
        assert_eq!(place(path("/c"), true, path("/h")), Some("/c/tssx/calibration.json".into()));
        assert_eq!(place(path("relative"), false, path("/h")), Some("/h/.cache/tssx/calibration.json".into()));
        assert_eq!(place(None, true, path("/root")), Some(SYSTEM_PATH.into()));
        assert_eq!(place(None, false, None), None);
    }

    #[test]
    fn a_spread_is_that_of_the_values() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { least: 1.0, median: 2.0, most: 3.0 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
