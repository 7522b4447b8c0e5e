//! Where metrics are served: a TCP address or a Unix socket.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};

/// What `--listen` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let wrong =
            |_| format!("`{text}` is no place to serve at: write 127.0.0.1:9437, [::1]:9437 or the absolute path of a Unix socket");
        text.parse().map(Self::Tcp).map_err(wrong)
    }
}

/// A place that is served.
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(UnixListener),
}

/// Takes the file of a Unix socket away again.
pub(crate) struct Removal(Option<PathBuf>);

impl Drop for Removal {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _gone = std::fs::remove_file(path); // by somebody else, then
        }
    }
}

impl Place {
    /// Listens there. A Unix socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// Where the place is taken or forbidden.
    pub(crate) fn listen(&self) -> anyhow::Result<(Listener, Removal, String)> {
        match self {
            Self::Tcp(address) => {
                let failed = || format!("cannot listen at {address}: choose another --listen");
                let listener = std::net::TcpListener::bind(address).with_context(failed)?;
                listener.set_nonblocking(true).with_context(failed)?;
                let shown = format!("http://{}/metrics", listener.local_addr().with_context(failed)?);
                Ok((Listener::Tcp(listener), Removal(None), shown))
            }
            Self::Unix(path) => {
                let shown = path.display();
                if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
                    if UnixStream::connect(path).is_ok() {
                        bail!("cannot listen at {shown}: somebody serves there; choose another --listen");
                    }
                    std::fs::remove_file(path).with_context(|| format!("cannot replace {shown}, where nobody serves any more"))?;
                }
                let failed = || format!("cannot listen at {shown}: choose another --listen");
                let listener = UnixListener::bind(path).with_context(failed)?;
                listener.set_nonblocking(true).with_context(failed)?;
                Ok((Listener::Unix(listener), Removal(Some(path.clone())), format!("Unix socket {shown}, /metrics")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_addresses_or_paths() {
        assert!(matches!("127.0.0.1:9437".parse(), Ok(Place::Tcp(_))));
        assert!(matches!("[::1]:0".parse(), Ok(Place::Tcp(_))));
        assert_eq!("/run/x".parse(), Ok(Place::Unix("/run/x".into())));
        for wrong in ["", "9437", "localhost:9437", "127.0.0.1", "run/x"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_socket_that_is_served_is_left_alone_and_one_that_was_left_behind_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let place = Place::Unix(path.clone());
        drop(UnixListener::bind(&path).expect("bound"));
        let served = place.listen().expect("replaced");
        let error = place.listen().err().expect("refused");
        assert!(error.to_string().contains("somebody serves there"), "{error:#}");
        drop(served);
        assert!(!path.exists());
        std::fs::write(&path, "precious").expect("written");
        assert!(place.listen().is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "precious");
    }
}
