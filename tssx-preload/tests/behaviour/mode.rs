//! How the library is present in the processes under test.

use std::path::Path;
use std::process::Command;

use crate::environment::without_library;
use crate::library::library;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Binds, listens and accepts.
    Server,
    /// Connects.
    Client,
}

/// How the library is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// At neither end: the oracle.
    Plain,
    /// At both ends.
    Both,
    /// At both ends, upgrading at the first operation.
    BothAtOnce,
    /// At both ends, never spinning: every wait sleeps and every wake-up rings the doorbell.
    BothAsleep,
    /// At both ends, every wait spinning for as long as the library allows.
    BothSpinning,
    /// At the accepting end only.
    ServerOnly,
    /// At the connecting end only.
    ClientOnly,
    /// At both ends, switched off by `TSSX_DISABLE`.
    Disabled,
}

/// Every mode that is held against [`Mode::Plain`].
pub(crate) const PRELOADED: [Mode; 7] =
    [Mode::Both, Mode::BothAtOnce, Mode::BothAsleep, Mode::BothSpinning, Mode::ServerOnly, Mode::ClientOnly, Mode::Disabled];

impl Mode {
    /// Whether the library is loaded at this end.
    pub(crate) fn has_library(self, end: End) -> bool {
        match self {
            Self::Plain => false,
            Self::ServerOnly => end == End::Server,
            Self::ClientOnly => end == End::Client,
            Self::Both | Self::BothAtOnce | Self::BothAsleep | Self::BothSpinning | Self::Disabled => true,
        }
    }

    /// Whether both ends have a working library.
    pub(crate) fn may_accelerate(self) -> bool {
        matches!(self, Self::Both | Self::BothAtOnce | Self::BothAsleep | Self::BothSpinning)
    }

    /// Prepares `command` to be this `end`, with `socket` selected.
    pub(crate) fn apply(self, command: &mut Command, end: End, socket: &Path) {
        without_library(command);
        if !self.has_library(end) {
            return;
        }
        command.env("LD_PRELOAD", library()).env("USE_TSSX", socket);
        match self {
            Self::BothAtOnce => command.env("TSSX_UPGRADE_AFTER", "1"),
            Self::BothAsleep => command.env("TSSX_SPIN_US", "0"),
            Self::BothSpinning => command.env("TSSX_SPIN_US", "1000000"),
            Self::Disabled => command.env("TSSX_DISABLE", "1"),
            _ => command,
        };
    }
}
