//! Real servers for the behaviour tests and the recipes: PostgreSQL, nginx, php-fpm, gunicorn and memcached, from Debian's archive.
//!
//! They are fetched ([`crate::archive`]) and unpacked into the target folder, never installed: a developer's machine must not
//! find itself running services because somebody tested. For PostgreSQL the source package of the very same version comes
//! too, because the inputs of its regression tests are in no other.
//!
//! The packages themselves are always fetched; of what they depend on, only what the machine lacks. Names carry no version:
//! apt takes regular expressions, and the release of the machine decides.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::archive::{Apt, DOWNLOAD_DEADLINE};
use crate::{paths, run};

/// Longest that unpacking and compiling may take on a small machine.
const LOCAL_DEADLINE: Duration = Duration::from_secs(120);

/// What the tests run.
const PACKAGES: [&str; 5] = ["^postgresql-[0-9]+$", "^php[0-9.]+-fpm$", "nginx", "gunicorn", "memcached"];
/// Dependencies that nothing here calls, or that must come from the machine: a second libc would not fit its loader.
const UNUSED: [&str; 12] = [
    "adduser",
    "debconf",
    "init-system-helpers",
    "libc-bin",
    "libc6",
    "libllvm",
    "libz3",
    "locales",
    "lsb-base",
    "perl",
    "ssl-cert",
    "systemd",
];
/// Parts of the unpacked packages that no program reads: they would only be copied about.
const UNREAD: [&str; 4] = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian"];
/// Changes whenever the folder must be made anew.
const RECIPE: &str = "2";

/// The folder with the servers, for `TSSX_SERVERS`; fetched if it is not there.
///
/// # Errors
/// The machine is no Debian, the archive cannot be reached, or what was unpacked does not run.
pub(crate) fn fetch() -> Result<PathBuf> {
    let place = paths::target().join("servers");
    if fs::read_to_string(place.join("complete")).is_ok_and(|recipe| recipe == RECIPE) {
        println!("setup: found PostgreSQL, nginx, php-fpm, gunicorn and memcached in {}", place.display());
        return Ok(place);
    }
    println!("setup: missing servers (the tests drive them over Unix sockets): unpacking them into {}", place.display());
    if paths::find_program("apt-get").is_none() || paths::find_program("dpkg-deb").is_none() {
        bail!(
            "this is no Debian: the tests' servers (PostgreSQL, nginx, php-fpm, gunicorn, memcached) are taken from Debian's packages"
        );
    }
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("clearing {}", place.display()))?;
    }
    fill(&place).context("the servers could not be fetched: is Debian's archive within reach? Try `apt-get update`")?;
    fs::write(place.join("complete"), RECIPE)?;
    Ok(place)
}

fn fill(place: &Path) -> Result<()> {
    let parts = Parts::new(&place.join("apt"))?;
    let names = parts.apt.missing(&PACKAGES, &UNUSED)?;
    let postgres = find(&names, "postgresql-", |rest| rest.bytes().all(|byte| byte.is_ascii_digit()))?;
    let version = parts.source(&postgres)?;
    parts.packages(&names, &postgres, &version)?;
    let root = place.join("root");
    fs::create_dir_all(&root)?;
    for package in files(&parts.packages, ".deb")? {
        run::capture_success(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&root), LOCAL_DEADLINE)?;
    }
    for part in UNREAD {
        if root.join(part).exists() {
            fs::remove_dir_all(root.join(part))?;
        }
    }
    regress(place, &root, &parts.sources, &postgres)?;
    probe(&root, &postgres)?;
    fs::remove_dir_all(place.join("apt"))?;
    Ok(())
}

/// The packages and sources of the servers.
struct Parts {
    apt: Apt,
    /// The packages go here.
    packages: PathBuf,
    /// The source package goes here.
    sources: PathBuf,
}

impl Parts {
    fn new(place: &Path) -> Result<Self> {
        let (packages, sources) = (place.join("packages"), place.join("sources"));
        for folder in [&packages, &sources] {
            fs::create_dir_all(folder)?;
        }
        Ok(Self { apt: Apt::new(place, None)?, packages, sources })
    }

    /// Fetches the newest source package that the archive really has, and returns its version.
    fn source(&self, package: &str) -> Result<String> {
        // Some mirrors name sources that they do not have.
        let older = self.apt.releases().iter().map(|release| format!("{package}/{release}"));
        for name in std::iter::once(package.to_owned()).chain(older) {
            let mut command = self.apt.get();
            command.args(["source", "--download-only", &name]).current_dir(&self.sources);
            if run::run(&mut command, DOWNLOAD_DEADLINE).is_ok() {
                return self.fetched_version();
            }
            println!("setup: the archive does not have the sources of {name}");
        }
        bail!("no sources of {package} can be fetched");
    }

    fn fetched_version(&self) -> Result<String> {
        let description = files(&self.sources, ".dsc")?.pop().context("a source package has a description")?;
        let text = fs::read_to_string(description)?;
        let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
        Ok(version.context("a source package has a version")?.trim().to_owned())
    }

    /// Fetches the packages; those of PostgreSQL in the version of its sources, and its headers with them.
    fn packages(&self, names: &[String], postgres: &str, version: &str) -> Result<()> {
        let number = postgres.trim_start_matches("postgresql-");
        let own = [postgres.to_owned(), format!("postgresql-client-{number}"), format!("postgresql-server-dev-{number}")];
        let mut command = self.apt.get();
        command.arg("download").args(names.iter().filter(|name| !own.contains(name)));
        command.args(own.iter().map(|name| format!("{name}={version}"))).current_dir(&self.packages);
        run::run(&mut command, DOWNLOAD_DEADLINE)
    }
}

fn find(names: &[String], start: &str, rest_fits: fn(&str) -> bool) -> Result<String> {
    let found = names.iter().find(|name| name.strip_prefix(start).is_some_and(rest_fits));
    found.cloned().with_context(|| format!("the archive has no {start}…"))
}

/// The files of a folder whose names end so, sorted.
fn files(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut found: Vec<_> = paths.filter(|path| path.to_string_lossy().ends_with(end)).collect();
    found.sort();
    Ok(found)
}

/// The inputs of PostgreSQL's regression tests, with the C functions that they load.
fn regress(place: &Path, root: &Path, sources: &Path, postgres: &str) -> Result<()> {
    let number = postgres.trim_start_matches("postgresql-");
    let archives = fs::read_dir(sources)?.filter_map(Result::ok).map(|entry| entry.path());
    let archive =
        archives.into_iter().find(|path| path.to_string_lossy().contains(".orig.tar.")).context("the sources' archive")?;
    let unpacked = sources.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(&unpacked)
        .args(["--strip-components=1", "--no-same-owner"]);
    run::capture_success(tar.args(["--wildcards", "*/src/test/regress", "*/contrib/spi"]), LOCAL_DEADLINE)?;
    let inputs = place.join("regress");
    fs::rename(unpacked.join("src/test/regress"), &inputs)?;
    let headers = root.join("usr/include/postgresql");
    for (source, library) in [
        (inputs.join("regress.c"), "regress.so"),
        (unpacked.join("contrib/spi/autoinc.c"), "autoinc.so"),
        (unpacked.join("contrib/spi/refint.c"), "refint.so"),
    ] {
        let mut gcc = Command::new("gcc");
        gcc.args(["-shared", "-fPIC", "-O1", "-w", "-DREFINT_VERBOSE", "-I"]).arg(headers.join(number).join("server"));
        gcc.arg("-I").arg(headers.join("internal")).arg("-I").arg(&headers).arg(source).arg("-o").arg(inputs.join(library));
        run::capture_success(&mut gcc, LOCAL_DEADLINE)?;
    }
    Ok(())
}

/// What was unpacked must run on this machine.
fn probe(root: &Path, postgres: &str) -> Result<()> {
    let programs = root.join("usr/lib/postgresql").join(postgres.trim_start_matches("postgresql-")).join("bin");
    let php = fs::read_dir(root.join("usr/sbin"))?.filter_map(Result::ok).map(|entry| entry.path());
    let php = php.into_iter().find(|path| path.to_string_lossy().contains("/php-fpm")).context("php-fpm was not unpacked")?;
    let libraries = ["usr/lib", "lib"].map(|folder| root.join(folder).join(format!("{}-linux-gnu", std::env::consts::ARCH)));
    let libraries = std::env::join_paths(libraries)?;
    for (program, argument) in [
        (programs.join("postgres"), "--version"),
        (programs.join("pgbench"), "--version"),
        (programs.join("psql"), "--version"),
        (php, "-v"),
        (root.join("usr/sbin/nginx"), "-v"),
        (root.join("usr/bin/memcached"), "--version"),
    ] {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", &libraries);
        run::capture_success(command.arg(argument), LOCAL_DEADLINE)?;
    }
    Ok(())
}
