//! Where the environment of each end is set: a unit of systemd, a container, or the command that starts it.
//!
//! A unit is told by the control group, systemd.unit(5): the last component that ends in `.service`. Below `user@UID.service` it is a unit of
//! that user's own manager. The recording has no command lines, which may hold secrets: a command is its program's path.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Item;
use crate::advice::{Side, deciding};
use crate::names::unescape;
use crate::recording::{ProcessRecord, Recording};

/// Where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Place {
    /// A service of the system's manager, or of a user's.
    Unit { unit: String, user: Option<u32> },
    /// A container.
    Container { container: String },
    /// Started by hand, or by something that leaves no trace of itself.
    Command { program: String },
}

/// One place and the ends that are started there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Target {
    #[serde(flatten)]
    pub(crate) place: Place,
    /// The processes there, `PID name`.
    pub(crate) processes: Vec<String>,
    /// The words of USE_TSSX that concern it, in the order of the proposal.
    pub(crate) patterns: Vec<String>,
    /// Which end it is of each of them.
    pub(crate) ends: Vec<Side>,
}

/// The places of all ends of the selected sockets.
pub(super) fn of(recording: &Recording, items: &[Item<'_>]) -> Vec<Target> {
    let mut targets: BTreeMap<Place, Target> = BTreeMap::new();
    for item in items {
        let Ok(pattern) = &item.selection else { continue };
        for side in Side::BOTH {
            for process in deciding(item.service, side) {
                let place = place(recording, process);
                let fresh = || Target { place: place.clone(), processes: Vec::new(), patterns: Vec::new(), ends: Vec::new() };
                let target = targets.entry(place.clone()).or_insert_with(fresh);
                let shown = format!("{} {}", process.pid, process.name);
                if !target.processes.contains(&shown) {
                    target.processes.push(shown);
                }
                let known = target.patterns.iter().zip(&target.ends).any(|(known, end)| known == pattern && *end == side);
                if !known {
                    target.patterns.push(pattern.clone());
                    target.ends.push(side);
                }
            }
        }
    }
    targets.into_values().collect()
}

fn place(recording: &Recording, process: &ProcessRecord) -> Place {
    if let Some(container) = &process.container {
        return Place::Container { container: container.clone() };
    }
    if let Some((unit, user)) = process.cgroup.as_deref().and_then(unit) {
        return Place::Unit { unit, user };
    }
    let program = recording.program(process.pid).and_then(|program| program.program.clone());
    Place::Command { program: program.unwrap_or_else(|| process.name.clone()) }
}

/// The unit that a control group is of, and whose manager runs it.
fn unit(cgroup: &str) -> Option<(String, Option<u32>)> {
    let text = String::from_utf8(unescape(cgroup).ok()?).ok()?;
    let mut user = None;
    let mut found = None;
    for component in text.split('/').filter(|component| component.ends_with(".service")) {
        match component.strip_prefix("user@").and_then(|rest| rest.strip_suffix(".service")) {
            Some(number) => (user, found) = (Some(number.parse().ok()?), None),
            None => found = Some(component.to_owned()),
        }
    }
    // It becomes a file's name: what systemd allows in one, and nothing else.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    found.filter(|unit| unit.bytes().all(allowed)).map(|unit| (unit, user))
}

impl Place {
    fn text(&self) -> String {
        match self {
            Self::Unit { unit, user: None } => format!("unit {unit}"),
            Self::Unit { unit, user: Some(user) } => format!("unit {unit} of user {user}"),
            Self::Container { container } => format!("container {container}"),
            Self::Command { program } => format!("command {program}"),
        }
    }
}

/// Where the environment of a process is set, for people.
pub(crate) fn place_of(recording: &Recording, process: &ProcessRecord) -> String {
    place(recording, process).text()
}

impl Target {
    /// The words for it, each once.
    pub(crate) fn words(&self) -> Vec<&str> {
        let mut words: Vec<&str> = Vec::new();
        for pattern in &self.patterns {
            if !words.contains(&pattern.as_str()) {
                words.push(pattern);
            }
        }
        words
    }

    /// What it is, and which ends of what, in one line.
    pub(crate) fn line(&self) -> String {
        let place = self.place.text();
        let ends: Vec<_> =
            self.ends.iter().zip(&self.patterns).map(|(end, pattern)| format!("{} of {pattern}", end.name())).collect();
        format!("{place}: {} ({})", ends.join(", "), self.processes.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proposal::{Limits, Proposal};
    use crate::recording::samples::{busy, recording_of};

    #[test]
    fn units_are_told_by_their_control_groups_and_what_is_none_is_none() {
        let unit = |text: &str| unit(text);
        let system = |name: &str| Some((name.to_owned(), None));
        assert_eq!(unit("/system.slice/redis-server.service"), system("redis-server.service"));
        assert_eq!(unit("/system.slice/system-postgresql.slice/postgresql@15-main.service"), system("postgresql@15-main.service"));
        assert_eq!(unit("/system.slice/a\\\\x2db.service/sub"), system("a\\x2db.service"), "a recording escapes the backslash");
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service";
        assert_eq!(unit(user), Some((String::from("web.service"), Some(1000))));
        for none in [
            "/",
            "",
            "/user.slice/user-0.slice/session-1.scope",
            "/user.slice/user@7.service/init.scope",
            "/x/a b.service",
            "/x/..service/$(id).service",
        ] {
            assert_eq!(unit(none), None, "{none}");
        }
    }

    #[test]
    fn no_control_group_makes_it_panic_and_a_unit_is_the_name_of_one_file() {
        let good = b"/user.slice/user-1000.slice/user@1000.service/app.slice/a\\\\x2db@1:c.service/sub";
        assert!(unit(&String::from_utf8_lossy(good)).is_some());
        crate::mutations::each(good, 20_000, |bytes| {
            if let Some((name, _)) = unit(&String::from_utf8_lossy(bytes)) {
                assert!(name.ends_with(".service") && !name.contains(['/', '\0', '\n', ' ', '"', '$']), "{name}");
            }
        });
    }

    #[test]
    fn each_place_has_its_ends_and_only_its_own_words() {
        let mut other = busy(b"/run/other");
        other.servers[0].cgroup = Some("/system.slice/other.service".into());
        let mut recording = recording_of(vec![busy(b"/run/x"), other]);
        recording.services[0].servers[0].container = Some("web".into());
        let proposal = Proposal::new(&recording, "/l.so".into(), Limits { min_calls: 1.0, possible: false });
        let lines: Vec<_> = proposal.targets.iter().map(Target::line).collect();
        assert_eq!(
            lines,
            [
                "unit other.service: server of /run/other (10 server)",
                "container web: server of /run/x (10 server)",
                "command /usr/bin/program-11: client of /run/x, client of /run/other (11 client)",
            ]
        );
    }
}
