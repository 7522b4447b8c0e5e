//! What `--follow` shows at the end of each interval: the last interval's rates, and the totals until now.

use std::collections::HashMap;

use serde::Serialize;

use super::{Line, Recent, Report, Selection, View, line};
use crate::inventory::Kind;
use crate::losses::Losses;
use crate::names::SocketName;
use crate::places::FileRecord;
use crate::recording::{Recording, ServiceRecord};
use crate::screen::Screen;

/// First line of an interval.
#[derive(Serialize)]
pub(crate) struct IntervalRecord<'a> {
    /// Counts from 1.
    number: u64,
    /// Milliseconds from the start to the end of this interval.
    elapsed_ms: u64,
    /// Length of this interval in milliseconds.
    interval_ms: u64,
    mode: &'a str,
    /// Since the start.
    losses: Losses,
    view: &'a View,
}

/// One socket in one interval.
#[derive(Serialize)]
pub(crate) struct RateRecord<'a> {
    number: u64,
    name: Option<&'a SocketName>,
    display: &'a str,
    network: Option<u64>,
    file: Option<&'a FileRecord>,
    kind: Kind,
    /// Since the start.
    connections: u64,
    calls: Option<u64>,
    bytes: Option<u64>,
    ring_bytes: Option<u64>,
    /// Within this interval.
    interval_calls: Option<u64>,
    interval_bytes: Option<u64>,
}

/// What tells a service from others.
pub(crate) type Key = (Option<SocketName>, Kind, Place);
/// What tells sockets of one name from each other: device and inode of the file, or the network namespace.
type Place = (Option<(u64, u32)>, Option<u64>);
/// Its calls, bytes and ring bytes since the start.
type Totals = [Option<u64>; 3];

/// Totals of each service at the end of the interval before.
#[derive(Default)]
pub(crate) struct Course {
    before: HashMap<Key, Totals>,
    elapsed_ms: u64,
    number: u64,
}

/// How an interval is shown.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Table { all: bool, screen: Screen },
    Lines,
}

impl Course {
    /// The text of the interval that ends with this recording; `recording` is the window from its start until now.
    ///
    /// # Errors
    /// Where it cannot be written as JSON.
    pub(crate) fn interval(&mut self, recording: &Recording, selection: &Selection, shape: Shape) -> anyhow::Result<String> {
        self.number += 1;
        let interval_ms = self.since(recording);
        let report = Report::new(recording, selection, |service| self.recent(service, interval_ms).calls);
        let text = match shape {
            Shape::Table { all, screen } => report.text_with(all, screen, |service| self.recent(service, interval_ms)),
            Shape::Lines => self.lines(&report, interval_ms)?,
        };
        self.end(recording);
        Ok(text)
    }

    /// What each service did since the step before, those without a name last; `recording` is the window from its start until now.
    pub(crate) fn step<'a>(&mut self, recording: &'a Recording) -> Vec<(&'a ServiceRecord, Recent)> {
        let interval_ms = self.since(recording);
        let all = recording.services.iter().chain(&recording.unnamed);
        let recent = all.map(|service| (service, self.recent(service, interval_ms))).collect();
        self.end(recording);
        recent
    }

    /// Milliseconds since the interval before.
    fn since(&self, recording: &Recording) -> u64 {
        recording.head.window_ms.saturating_sub(self.elapsed_ms)
    }

    /// The interval ends with this recording.
    fn end(&mut self, recording: &Recording) {
        self.elapsed_ms = recording.head.window_ms;
        let all = recording.services.iter().chain(&recording.unnamed);
        self.before = all.map(|service| (key(service), totals(service))).collect();
    }

    fn lines(&self, report: &Report<'_>, interval_ms: u64) -> anyhow::Result<String> {
        let head = &report.recording.head;
        let mut text = line(&Line::Interval(IntervalRecord {
            number: self.number,
            elapsed_ms: head.window_ms,
            interval_ms,
            mode: &head.mode,
            losses: head.losses,
            view: &report.view,
        }))?;
        for service in report.services.iter().chain(&report.unnamed) {
            let recent = self.recent(service, interval_ms);
            text.push_str(&line(&Line::Rate(RateRecord {
                number: self.number,
                name: service.name.as_ref(),
                display: &service.display,
                network: service.network,
                file: service.file.as_ref(),
                kind: service.kind,
                connections: service.connections,
                calls: service.calls,
                bytes: service.bytes,
                ring_bytes: service.ring_bytes,
                interval_calls: recent.calls,
                interval_bytes: recent.bytes,
            }))?);
        }
        Ok(text)
    }

    /// What the service did since the interval before. A total can shrink when a connection gets its name late and moves to
    /// another service: that is no traffic.
    fn recent(&self, service: &ServiceRecord, time_ms: u64) -> Recent {
        let before = self.before.get(&key(service)).copied().unwrap_or([Some(0); 3]);
        let now = totals(service);
        // `None` before: none had been counted, while something was lost. What there is now came since.
        let grew = |at: usize| Some(now[at]?.saturating_sub(before[at].unwrap_or(0)));
        Recent { calls: grew(0), bytes: grew(1), ring_bytes: grew(2), time_ms }
    }
}

fn totals(service: &ServiceRecord) -> Totals {
    [service.calls, service.bytes, service.ring_bytes]
}

/// What tells this service from others.
pub(crate) fn key(service: &ServiceRecord) -> Key {
    let file = service.file.as_ref().map(|file| (file.device, file.inode));
    (service.name.clone(), service.kind, (file, service.network))
}
