//! The state of the view: what was seen, and what the person at the keyboard wants of it. It knows no terminal.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::columns::Column;
use super::row::{History, Row, Value};
use crate::filter::Filter;
use crate::recording::{Head, Recording};
use crate::report::Recent;
use crate::report::follow::{Course, Key};

/// How long a socket whose connections have all ended is still shown, milliseconds.
const LINGER_MS: u64 = 10_000;

/// What holds for the window as a whole, until now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) mode: String,
    pub(super) limits: Vec<String>,
    /// Better modes that do not work here.
    pub(super) refused: Vec<String>,
    pub(super) elapsed_ms: u64,
    /// What was lost since the start, one sentence each.
    pub(super) losses: Vec<String>,
    /// The tracer's processor time in the last interval, as a share of one CPU; `None`: not measured.
    pub(super) own_cpu: Option<f64>,
    /// Mean time of one run of a kernel program, nanoseconds; `None`: not measured.
    pub(super) event_ns: Option<f64>,
}

/// The view's state.
pub(crate) struct Model {
    /// `None` until the first interval has ended.
    pub(super) window: Option<Window>,
    /// Every socket that the options of the command line admit.
    pub(super) rows: Vec<Row>,
    pub(super) history: History,
    pub(super) sort: Column,
    pub(super) reversed: bool,
    /// Text that a row must have to be shown, and whether it is being typed.
    pub(super) filter: String,
    pub(super) typing: bool,
    /// The row that details are shown of; `None`: whichever is the first.
    selected: Option<Key>,
    options: Filter,
    course: Course,
    /// Sockets whose connections have all ended, and when that was seen: milliseconds since the start.
    ended: HashMap<Key, u64>,
    own_cpu_ms: Option<f64>,
}

impl Model {
    /// Nothing seen yet; `options` leaves sockets out for good.
    pub(crate) fn new(options: Filter, sort: Column) -> Self {
        Self {
            window: None,
            rows: Vec::new(),
            history: History::default(),
            sort,
            reversed: false,
            filter: String::new(),
            typing: false,
            selected: None,
            options,
            course: Course::default(),
            ended: HashMap::new(),
            own_cpu_ms: None, // what starting cost is of no interval
        }
    }

    /// An interval has ended; `recording` is the window from its start until now.
    pub(crate) fn update(&mut self, recording: &Recording) {
        let before = self.window.as_ref().map_or(0, |window| window.elapsed_ms);
        let steps = self.course.step(recording);
        let shown = steps.into_iter().filter(|(service, _)| service.connections > 0 && self.options.admits(service));
        self.rows = shown.map(|(service, recent)| Row::new(recording, service, recent)).collect();
        self.drop_ended(recording.head.window_ms);
        self.history.add(&self.rows);
        let own_cpu_ms = recording.head.cost.own_cpu_ms;
        let time_ms = recording.head.window_ms.saturating_sub(before).max(1) as f64;
        let own_cpu = own_cpu_ms.zip(self.own_cpu_ms).map(|(now, before)| (now - before).max(0.0) / time_ms);
        self.own_cpu_ms = own_cpu_ms;
        self.window = Some(window(&recording.head, own_cpu));
        self.arrange();
    }

    /// Leaves out the rows that have had no open connection for [`LINGER_MS`].
    fn drop_ended(&mut self, now_ms: u64) {
        let since = |row: &Row| (row.key.clone(), self.ended.get(&row.key).copied().unwrap_or(now_ms));
        self.ended = self.rows.iter().filter(|row| row.has_ended()).map(since).collect();
        self.rows.retain(|row| self.ended.get(&row.key).is_none_or(|since| now_ms - since < LINGER_MS));
    }

    /// The rows that the typed filter leaves in, in order.
    pub(super) fn shown(&self) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.has(&self.filter)).collect()
    }

    /// Where in [`Self::shown`] the selected row is; 0 where it is not.
    pub(super) fn position(&self) -> usize {
        let is_selected = |row: &&Row| Some(&row.key) == self.selected.as_ref();
        self.shown().iter().position(is_selected).unwrap_or(0)
    }

    /// Selects the row so many lines below, or above, the selected one.
    pub(super) fn move_by(&mut self, lines: isize) {
        let last = self.shown().len().saturating_sub(1);
        self.selected = match self.position().saturating_add_signed(lines).min(last) {
            0 => None,
            position => self.shown().get(position).map(|row| row.key.clone()),
        };
    }

    /// Sorts by the column so many places further on, around the ends.
    pub(super) fn sort_by_next(&mut self, forward: bool) {
        let columns = Column::sortable();
        let at = columns.iter().position(|column| *column == self.sort).unwrap_or(0);
        let next = if forward { at + 1 } else { at + columns.len() - 1 };
        self.sort = columns.get(next % columns.len()).copied().unwrap_or(self.sort);
        self.reversed = false;
        self.arrange();
    }

    /// Turns the order round.
    pub(super) fn reverse(&mut self) {
        self.reversed = !self.reversed;
        self.arrange();
    }

    /// What all rows that are shown did in the last interval; `None`: there is none.
    pub(super) fn total(&self) -> Option<Recent> {
        self.shown().into_iter().map(|row| row.recent).reduce(Recent::with)
    }

    /// Puts the rows into order; equal ones by name.
    fn arrange(&mut self) {
        let (sort, reversed) = (self.sort, self.reversed);
        self.rows
            .sort_by(|a, b| order(a, b, sort, reversed).then_with(|| a.name.cmp(&b.name)).then_with(|| a.server.cmp(&b.server)));
    }
}

/// What was not measured comes last in either direction.
fn order(a: &Row, b: &Row, by: Column, reversed: bool) -> Ordering {
    let turn = |order: Ordering| if reversed { order.reverse() } else { order };
    match (a.value(by), b.value(by)) {
        (Value::Number(Some(a)), Value::Number(Some(b))) => turn(b.total_cmp(&a)),
        (Value::Number(a), Value::Number(b)) => a.is_none().cmp(&b.is_none()),
        (Value::Text(a), Value::Text(b)) => turn(a.cmp(b)),
        _ => Ordering::Equal,
    }
}

fn window(head: &Head, own_cpu: Option<f64>) -> Window {
    Window {
        mode: head.mode.clone(),
        limits: head.mode_limits.clone(),
        refused: head.refused_modes.iter().map(|refusal| refusal.mode.clone()).collect(),
        elapsed_ms: head.window_ms,
        losses: head.losses.sentences(head.tracer.max_sockets),
        own_cpu,
        event_ns: head.cost.event_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::ServiceRecord;
    use crate::recording::samples::{busy, process, recording_of};

    fn services() -> Vec<ServiceRecord> {
        let of =
            |path: &[u8], bytes: Option<u64>, pid| ServiceRecord { bytes, servers: vec![process(pid, "server", 0)], ..busy(path) };
        vec![
            of(b"/run/b", Some(500), 3),
            of(b"/run/a", Some(900), 2),
            of(b"/run/c", None, 1),
            ServiceRecord { connections: 0, ..busy(b"/run/idle") },
        ]
    }

    fn model(sort: Column) -> Model {
        let mut model = Model::new(Filter::default(), sort);
        model.update(&recording_of(services()));
        model
    }

    fn names(model: &Model) -> String {
        model.shown().iter().map(|row| row.name.trim_start_matches("/run/")).collect()
    }

    #[test]
    fn rows_are_sorted_by_any_column_in_either_direction_and_what_was_not_measured_is_last() {
        let mut model = model(Column::Bytes);
        assert_eq!(names(&model), "abc");
        model.reverse();
        assert_eq!(names(&model), "bac");
        model.sort_by_next(false);
        assert_eq!((model.sort, model.reversed, names(&model).as_str()), (Column::Calls, false, "abc"), "equal ones by name");
        let there: Vec<Column> = (0..8)
            .map(|_| {
                model.sort_by_next(true);
                model.sort
            })
            .collect();
        assert_eq!(there.last(), Some(&Column::Calls), "around: {there:?}");
        model.sort = Column::Server;
        model.arrange();
        assert_eq!(names(&model), "cab");
    }

    #[test]
    fn a_selection_stays_with_its_row_while_the_order_changes() {
        let mut model = model(Column::Bytes);
        model.move_by(1);
        assert_eq!(model.shown()[model.position()].name, "/run/b");
        model.reverse();
        assert_eq!((model.position(), names(&model).as_str()), (0, "bac"));
        model.move_by(isize::MAX);
        assert_eq!(model.position(), 2);
        model.filter = String::from("/run/a");
        assert_eq!((model.position(), names(&model).as_str()), (0, "a"), "what is filtered out is not selected");
        model.move_by(-1);
        model.filter.clear();
        assert_eq!(model.position(), 0);
    }

    #[test]
    fn each_interval_has_the_rates_of_its_own_time_and_shares_of_its_own_cpu() {
        let mut model = Model::new(Filter::default(), Column::Bytes);
        let at = |window_ms, bytes, own_cpu_ms| {
            let mut recording = recording_of(vec![ServiceRecord {
                bytes: Some(bytes),
                ring_bytes: Some(bytes / 2),
                selected: 1,
                ..busy(b"/run/a")
            }]);
            recording.head.window_ms = window_ms;
            recording.head.cost.own_cpu_ms = own_cpu_ms;
            recording
        };
        let figures = |model: &Model| {
            let total = model.total().expect("a row");
            let own_cpu = model.window.as_ref().and_then(|window| window.own_cpu);
            (total.bytes.map(|bytes| total.per_second(bytes)), total.hit_rate(), own_cpu)
        };
        model.update(&at(1000, 4000, Some(10.0)));
        assert_eq!(figures(&model), (Some(4000.0), Some(0.5), None));
        model.update(&at(3000, 4000, Some(50.0)));
        assert_eq!(figures(&model), (Some(0.0), None, Some(0.02)));
        model.update(&at(3500, 5000, None));
        assert_eq!(figures(&model), (Some(2000.0), Some(0.5), None));
        assert_eq!(model.history.last(&model.rows[0].key, 3), [Some(4000), Some(0), Some(2000)]);
    }

    #[test]
    fn a_socket_without_an_open_connection_stays_for_a_while_and_comes_back_with_one() {
        let mut model = Model::new(Filter::default(), Column::Bytes);
        let mut shown = |window_ms, open| {
            let mut recording = recording_of(vec![ServiceRecord { open, ..busy(b"/run/a") }]);
            recording.head.window_ms = window_ms;
            model.update(&recording);
            model.rows.first().map(|row| (row.has_ended(), row.text(Column::Connections)))
        };
        let (ended, open) = (Some((true, String::from("0"))), Some((false, String::from("1"))));
        assert_eq!(shown(1000, Some(1)), open);
        assert_eq!([2000, 6000, 11_999].map(|now| shown(now, Some(0))), [ended.clone(), ended.clone(), ended.clone()]);
        assert_eq!([12_000, 20_000].map(|now| shown(now, Some(0))), [None, None]);
        assert_eq!(shown(21_000, Some(1)), open);
        assert_eq!(shown(22_000, Some(0)), ended, "its time begins anew");
        assert_eq!(shown(40_000, None), Some((false, String::from("-"))), "what is not known has not ended");
    }

    #[test]
    fn options_leave_sockets_out_for_good() {
        let mut model = Model::new(Filter { pid: vec![2], ..Filter::default() }, Column::Bytes);
        model.update(&recording_of(services()));
        assert_eq!((names(&model).as_str(), model.rows.len()), ("a", 1));
    }
}
