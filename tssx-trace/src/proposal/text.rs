//! The proposal as a file to be used: for a shell and `EnvironmentFile=`, as drop-ins of systemd, or for compose.
//!
//! Every character that a format reads in its own way is escaped as that format wants it; a name that none can hold was left out before.

use crate::env_file::{comment, line};
use crate::gain;
use crate::proposal::{Item, Place, Proposal, Target};

impl Proposal<'_> {
    /// `KEY="value"` lines that a shell sources and systemd takes as `EnvironmentFile=`.
    ///
    /// # Errors
    /// Where a value has what cannot stand there.
    pub(crate) fn shell(&self) -> anyhow::Result<String> {
        let mut lines = vec![
            comment(
                "Written by `tssx-trace suggest`. For a shell: set -a; . ./FILE; set +a   For systemd: EnvironmentFile=/path/FILE",
            ),
            comment("Start both the server and its clients with it. To turn it off: unset LD_PRELOAD."),
        ];
        lines.extend(self.comments());
        lines.push(String::new());
        for (key, value) in self.variables() {
            lines.push(line(key, &value)?);
        }
        Ok(lines.join("\n") + "\n")
    }

    /// One drop-in for each unit, systemd.unit(5); with `only`, that unit's alone, as the file itself. `None`: no such unit.
    pub(crate) fn systemd(&self, only: Option<&str>) -> Option<String> {
        let units: Vec<_> = self.targets.iter().filter_map(|target| Some((drop_in(&target.place)?, target))).collect();
        let mut lines = vec![comment(
            "Written by `tssx-trace suggest --format systemd`. After a change: systemctl daemon-reload, and restart the units.",
        )];
        if let Some(only) = only {
            let is_it = |target: &Target| matches!(&target.place, Place::Unit { unit, .. } if unit == only);
            let (_, target) = units.iter().find(|(_, target)| is_it(target))?;
            let concerns = |item: &&Item<'_>| item.selection.as_ref().is_ok_and(|word| target.patterns.contains(word));
            lines.extend(self.gains(self.items.iter().filter(concerns)));
            lines.extend(self.unit(target));
            return Some(lines.join("\n") + "\n");
        }
        lines.extend(self.comments());
        for (file, target) in &units {
            lines.extend([String::new(), comment(&format!("file {file}"))]);
            lines.extend(self.unit(target));
        }
        Some(lines.join("\n") + "\n")
    }

    fn unit(&self, target: &Target) -> Vec<String> {
        let words = target.words().join(" ");
        let mut lines = vec![comment(&target.line()), String::from("[Service]")];
        lines.extend([("USE_TSSX", &words), ("LD_PRELOAD", &self.library)].map(|(key, value)| assignment(key, value)));
        lines
    }

    /// An extension for `compose.yaml` that services merge.
    pub(crate) fn compose(&self) -> String {
        let mut lines = vec![
            comment("Written by `tssx-trace suggest --format compose`. Copy x-tssx to the top level of compose.yaml, and merge it"),
            comment(
                "in the services of both ends with `<<: *tssx`. A service with an environment or volumes of its own needs these lines in its own.",
            ),
        ];
        lines.extend(self.comments());
        lines.extend([String::from("x-tssx: &tssx"), String::from("  environment:")]);
        lines.extend(self.variables().map(|(key, value)| format!("    {key}: {}", yaml(&value))));
        let library = yaml(&self.library);
        lines.extend([String::from("  volumes:"), String::from("    - type: bind"), format!("      source: {library}")]);
        lines.extend([format!("      target: {library}"), String::from("      read_only: true")]);
        lines.join("\n") + "\n"
    }

    /// What the evidence is, why each socket is in or out, what it would gain, and where the environment is set.
    fn comments(&self) -> Vec<String> {
        let head = &self.recording.head;
        let seconds = head.window_ms as f64 / 1000.0;
        let mut lines = vec![comment(&format!(
            "Evidence: {seconds:.1} s on Linux {}, mode {}; calls are sends of both ends.",
            head.kernel, head.mode
        ))];
        if head.losses.any() {
            lines.push(comment("Some traffic of that window could not be counted: the figures are lower bounds."));
        }
        lines.extend(self.items.iter().flat_map(|item| item.lines(self.recording)).map(|text| comment(&text)));
        lines.extend(self.gains(self.items.iter()));
        if !self.targets.is_empty() {
            lines.push(comment("Set it for:"));
        }
        lines.extend(self.targets.iter().map(|target| comment(&format!("    {}", target.line()))));
        lines
    }

    /// What these would gain; nothing without a calibration.
    fn gains<'a>(&self, items: impl Iterator<Item = &'a Item<'a>>) -> Vec<String> {
        let services = items.map(|item| item.service);
        let gains = self.calibration.map(|calibration| gain::comments(calibration, self.recording, services));
        gains.unwrap_or_default().iter().map(|text| comment(text)).collect()
    }
}

/// The file of a unit's drop-in.
fn drop_in(place: &Place) -> Option<String> {
    match place {
        Place::Unit { unit, user: None } => Some(format!("/etc/systemd/system/{unit}.d/tssx.conf")),
        Place::Unit { unit, user: Some(_) } => Some(format!("~/.config/systemd/user/{unit}.d/tssx.conf")),
        Place::Container { .. } | Place::Command { .. } => None,
    }
}

/// `Environment=` of systemd.exec(5): quoted as systemd.syntax(7) says, and with `%` doubled, which begins a specifier. `$` means nothing there.
fn assignment(key: &str, value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!("Environment=\"{key}={escaped}\"")
}

/// A double-quoted scalar of YAML 1.2 (7.3.1), with `$` doubled, which compose would expand.
fn yaml(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$");
    format!("\"{escaped}\"")
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
