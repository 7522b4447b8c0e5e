//! What of a recording a report shows, and in which order. A filter never touches the recording itself.

use std::cmp::Ordering;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tssx_core::glob::{glob, matches};

use crate::identity::is_in;
use crate::names::SocketName;
use crate::recording::{ProcessRecord, ServiceRecord};

/// Which sockets to show. Values of one option are alternatives, different options must all hold. Those about processes
/// must hold for one and the same process, at either end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Serialize)]
pub(crate) struct Filter {
    /// Show only sockets whose name matches, as in USE_TSSX: a path, a glob, or @name; may be repeated, as each of these
    #[arg(long, value_name = "PATTERN")]
    pub(crate) socket: Vec<String>,
    /// Show only sockets that a process with this number uses
    #[arg(long, value_name = "N")]
    pub(crate) pid: Vec<u32>,
    /// Show only sockets that a process with this name uses (a glob, as ps shows it)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) comm: Vec<String>,
    /// Show only sockets that a process of this user uses
    #[arg(long, value_name = "N")]
    pub(crate) uid: Vec<u32>,
    /// Show only sockets that a process in this container or control group uses: name, glob, or first 12 digits of the number
    #[arg(long, value_name = "PATTERN")]
    pub(crate) container: Vec<String>,
}

/// By what a report is sorted; the largest first, names from A to Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sort {
    /// What both ends sent
    Bytes,
    /// Sending calls of both ends
    Calls,
    /// Sending calls a second, with --follow of the last interval
    Rate,
    /// Connections of the window
    Connections,
    /// Mean bytes of a call
    Mean,
    /// Bytes through rings
    Ring,
    /// Name of the socket
    Name,
}

impl Filter {
    /// Whether it lets everything through.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a report is to show this service.
    pub(crate) fn admits(&self, service: &ServiceRecord) -> bool {
        let asks_for_processes = !(self.pid.is_empty() && self.comm.is_empty() && self.uid.is_empty() && self.container.is_empty());
        let mut processes = service.servers.iter().chain(&service.clients);
        self.admits_name(service) && (!asks_for_processes || processes.any(|process| self.admits_process(process)))
    }

    fn admits_name(&self, service: &ServiceRecord) -> bool {
        let names = || [&service.name, &service.absolute].into_iter().flatten();
        self.socket.is_empty() || self.socket.iter().any(|pattern| names().any(|name| is_named(name, pattern)))
    }

    fn admits_process(&self, process: &ProcessRecord) -> bool {
        let comm = |pattern: &String| glob(pattern.as_bytes(), process.name.as_bytes());
        let container = |pattern: &String| process.cgroup.as_ref().is_some_and(|cgroup| is_in(cgroup, pattern));
        (self.pid.is_empty() || self.pid.contains(&process.pid))
            && (self.comm.is_empty() || self.comm.iter().any(comm))
            && (self.uid.is_empty() || process.uid.is_some_and(|uid| self.uid.contains(&uid)))
            && (self.container.is_empty() || self.container.iter().any(container))
    }
}

fn is_named(name: &SocketName, pattern: &str) -> bool {
    match name {
        SocketName::Path(path) => matches(pattern.as_bytes(), path),
        SocketName::Abstract(rest) => matches(pattern.as_bytes(), &[b"\0", rest.as_slice()].concat()),
    }
}

impl Sort {
    /// Puts services into order; equal ones by name. `rate` is a service's calls in the time that rates are about.
    pub(crate) fn apply(self, services: &mut [&ServiceRecord], rate: impl Fn(&ServiceRecord) -> Option<u64>) {
        let names = |a: &ServiceRecord, b: &ServiceRecord| a.name.cmp(&b.name).then_with(|| a.kind.cmp(&b.kind));
        services.sort_by(|a, b| {
            let order = match self {
                Self::Bytes => b.bytes.cmp(&a.bytes),
                Self::Calls => b.calls.cmp(&a.calls),
                Self::Rate => rate(b).cmp(&rate(a)),
                Self::Connections => b.connections.cmp(&a.connections),
                Self::Mean => b.mean_size().partial_cmp(&a.mean_size()).unwrap_or(Ordering::Equal),
                Self::Ring => b.ring_bytes.cmp(&a.ring_bytes),
                Self::Name => Ordering::Equal,
            };
            order.then_with(|| names(a, b))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::samples::busy;

    fn service(name: SocketName, servers: Vec<ProcessRecord>, calls: u64, bytes: u64) -> ServiceRecord {
        ServiceRecord {
            display: name.to_string(),
            name: Some(name),
            servers,
            clients: vec![],
            calls: Some(calls),
            bytes: Some(bytes),
            ..busy(b"x")
        }
    }

    fn process(pid: u32, name: &str, uid: Option<u32>, cgroup: Option<&str>) -> ProcessRecord {
        ProcessRecord { pid, name: name.into(), uid, cgroup: cgroup.map(Into::into), container: None }
    }

    fn path(text: &str) -> SocketName {
        SocketName::Path(text.into())
    }

    #[test]
    fn names_match_as_in_use_tssx_relative_ones_by_their_absolute_path_too() {
        let mut relative = service(path("x.sock"), vec![], 0, 0);
        relative.absolute = Some(path("/srv/x.sock"));
        let abstract_one = service(SocketName::Abstract(b"x\xff".to_vec()), vec![], 0, 0);
        let by = |pattern: &str| Filter { socket: vec![pattern.into()], ..Filter::default() };
        assert!(by("/srv/*").admits(&relative) && by("x.*").admits(&relative) && !by("/run/*").admits(&relative));
        assert!(by("@x*").admits(&abstract_one) && by("*").admits(&abstract_one) && !by("x*").admits(&abstract_one));
        let mut nameless = relative.clone();
        (nameless.name, nameless.absolute) = (None, None);
        assert!(!by("*").admits(&nameless) && Filter::default().admits(&nameless));
    }

    #[test]
    fn what_is_asked_of_a_process_must_hold_for_one_process_and_what_is_unknown_does_not_hold() {
        let both = service(path("/x"), vec![process(1, "one", Some(0), None), process(2, "two", None, Some("/docker/abc"))], 0, 0);
        let admits = |filter: Filter| filter.admits(&both);
        assert!(admits(Filter { pid: vec![1], comm: vec!["o*".into()], uid: vec![7, 0], ..Filter::default() }));
        assert!(!admits(Filter { pid: vec![2], comm: vec!["one".into()], ..Filter::default() }));
        assert!(!admits(Filter { pid: vec![2], uid: vec![0], ..Filter::default() }));
        assert!(admits(Filter { pid: vec![9, 2], container: vec!["abc".into()], ..Filter::default() }));
        assert!(!admits(Filter { pid: vec![1], container: vec!["*".into()], ..Filter::default() }));
    }

    #[test]
    fn each_order_is_its_own_and_what_was_not_counted_comes_last() {
        let mut all = [
            service(path("/b"), vec![], 1, 500),
            service(path("/a"), vec![], 3, 300),
            service(path("/c"), vec![], 2, 400),
            service(path("/d"), vec![], 0, 0),
        ];
        (all[3].calls, all[3].bytes, all[3].connections, all[2].ring_bytes) = (None, None, 9, Some(1));
        let order = |sort: Sort| {
            let mut list: Vec<_> = all.iter().collect();
            sort.apply(&mut list, |service| service.bytes.map(|bytes| 1000 - bytes));
            list.iter().map(|service| service.display.as_str()).collect::<String>()
        };
        assert_eq!(order(Sort::Bytes), "/b/c/a/d");
        assert_eq!(order(Sort::Calls), "/a/c/b/d");
        assert_eq!(order(Sort::Rate), "/a/c/b/d");
        assert_eq!(order(Sort::Connections), "/d/a/b/c");
        assert_eq!(order(Sort::Mean), "/b/c/a/d");
        assert_eq!(order(Sort::Ring), "/c/a/b/d");
        assert_eq!(order(Sort::Name), "/a/b/c/d");
    }
}
