//! A report: what one recording says under one filter. The live run and the replay of its recording print the same.
//!
//! [`text`] is for people, [`Report::json`] and [`Report::lines`] for programs, as `schema/` describes them.

pub(crate) mod follow;
mod text;

use serde::Serialize;

pub(crate) use self::text::Recent;
use crate::filter::{Filter, Sort};
use crate::recording::{Head, Recording, ServiceRecord};

/// What to show of a recording, and how.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) filter: Filter,
    pub(crate) sort: Sort,
}

/// What a report left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct View {
    pub(crate) filter: Filter,
    pub(crate) sort: Sort,
    /// Named sockets, and connections with a name or without, that the filter left out.
    pub(crate) sockets_left_out: u64,
    pub(crate) connections_left_out: u64,
}

/// One recording under one filter.
pub(crate) struct Report<'a> {
    pub(crate) recording: &'a Recording,
    pub(crate) services: Vec<&'a ServiceRecord>,
    pub(crate) unnamed: Vec<&'a ServiceRecord>,
    pub(crate) view: View,
}

impl<'a> Report<'a> {
    /// Filters and sorts. `rate` is a service's calls in the time that rates are about.
    pub(crate) fn new(recording: &'a Recording, selection: &Selection, rate: impl Fn(&ServiceRecord) -> Option<u64>) -> Self {
        let Selection { filter, sort } = selection.clone();
        let (mut services, out): (Vec<_>, Vec<_>) = recording.services.iter().partition(|service| filter.admits(service));
        let (unnamed, out_unnamed): (Vec<_>, Vec<_>) = recording.unnamed.iter().partition(|service| filter.admits(service));
        sort.apply(&mut services, rate);
        let sockets_left_out = out.len() as u64;
        let connections_left_out = out.iter().chain(&out_unnamed).map(|service| service.connections).sum();
        Self { recording, services, unnamed, view: View { filter, sort, sockets_left_out, connections_left_out } }
    }

    /// The report of a whole window.
    pub(crate) fn of(recording: &'a Recording, selection: &Selection) -> Self {
        Self::new(recording, selection, |service| service.calls)
    }

    /// One JSON document: the recording, filtered and sorted, and the view.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            head: Head,
            view: &'a View,
            services: &'a [&'a ServiceRecord],
            unnamed: &'a [&'a ServiceRecord],
        }
        let head = self.recording.head.as_report();
        let document = Document { head, view: &self.view, services: &self.services, unnamed: &self.unnamed };
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }

    /// The same as one line for the window and one for each service.
    pub(crate) fn lines(&self) -> anyhow::Result<String> {
        let head = self.recording.head.as_report();
        let mut text = line(&Line::Window { head: &head, view: &self.view })?;
        for service in &self.services {
            text.push_str(&line(&Line::Service(service))?);
        }
        for service in &self.unnamed {
            text.push_str(&line(&Line::Unnamed(service))?);
        }
        Ok(text)
    }
}

/// One line of `--format jsonl`.
#[derive(Serialize)]
#[serde(tag = "record", rename_all = "lowercase")]
enum Line<'a> {
    /// First of the final report.
    Window {
        #[serde(flatten)]
        head: &'a Head,
        view: &'a View,
    },
    /// One named socket.
    Service(&'a ServiceRecord),
    /// All connections of one kind without a name.
    Unnamed(&'a ServiceRecord),
    /// With `--follow`: first of one interval.
    Interval(follow::IntervalRecord<'a>),
    /// With `--follow`: one socket in one interval.
    Rate(follow::RateRecord<'a>),
}

fn line(line: &Line<'_>) -> anyhow::Result<String> {
    Ok(serde_json::to_string(line)? + "\n")
}
