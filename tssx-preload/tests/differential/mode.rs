//! How the library is present in a pair of players.

use std::path::Path;
use std::process::Command;

use crate::environment::without_library;
use crate::library::library;
use crate::words::Side;

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
    /// At the accepting end only.
    ServerOnly,
    /// At the connecting end only.
    ClientOnly,
}

/// Every mode that is held against [`Mode::Plain`].
pub(crate) const PRELOADED: [Mode; 5] = [Mode::Both, Mode::BothAtOnce, Mode::BothAsleep, Mode::ServerOnly, Mode::ClientOnly];

impl Mode {
    fn has_library(self, side: Side) -> bool {
        match self {
            Self::Plain => false,
            Self::ServerOnly => side == Side::Server,
            Self::ClientOnly => side == Side::Client,
            Self::Both | Self::BothAtOnce | Self::BothAsleep => true,
        }
    }

    /// Whether both ends have the library.
    pub(crate) fn may_accelerate(self) -> bool {
        matches!(self, Self::Both | Self::BothAtOnce | Self::BothAsleep)
    }

    /// Its share of generated programs, in tenths.
    pub(crate) fn share(self) -> u64 {
        match self {
            Self::Plain => 0,
            Self::Both => 3,
            Self::BothAtOnce | Self::BothAsleep => 2,
            Self::ServerOnly | Self::ClientOnly => 1,
        }
    }

    /// Prepares `command` to be this side, with `socket` selected.
    pub(crate) fn apply(self, command: &mut Command, side: Side, socket: &Path) {
        without_library(command);
        if !self.has_library(side) {
            return;
        }
        command.env("LD_PRELOAD", library()).env("USE_TSSX", socket);
        match self {
            Self::BothAtOnce => command.env("TSSX_UPGRADE_AFTER", "1"),
            Self::BothAsleep => command.env("TSSX_SPIN_US", "0"),
            _ => command,
        };
    }
}
