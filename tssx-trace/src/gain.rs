//! What a socket would gain: the calibration of this host multiplied with what a recording has seen of the socket.
//!
//! It is arithmetic on two files and looks at nothing else. Every figure is a range: from the least of what fits the way in which the
//! programs may use their connections to the most. [`ASSUMPTIONS`] says what is taken for granted.

mod waits;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::calibration::{Calibration, Cost, Point, Shape, Spread};
use crate::inventory::Kind;
use crate::output::{short, time};
use crate::recording::{Recording, ServiceRecord};

/// What holds for every prediction.
pub(crate) const ASSUMPTIONS: [&str; 6] = [
    "messages as many and as large as in the recording; those that followed a receive at their end (turns) answer one, the others stream",
    "a plain round trip takes two sends and two of the waits that were recorded, and what is left of its time the ends compute; with rings they compute as long",
    "with rings each end has a CPU of its own; where the plain ends may have shared one: likely half of what that saves, at least what is saved on one CPU",
    "of a process with several connections, and where no waits were recorded, plain round trips are those of the calibration, likely on one CPU, and likely every other message of such a process is there before it waits",
    "times come from this host's calibration, taken when it was as busy as it was then",
    "the rate grows by the factor only where a client waits for each answer before it goes on, and at least one end is never idle otherwise",
];

/// The shapes in which messages are answered.
const ANSWERED: [Shape; 2] = [Shape::RoundTrip, Shape::Events];
/// Of a calibration that lacks points.
const INCOMPLETE: &str = "the calibration is not complete: take one with `tssx-trace bench`";

/// What counts of a recording.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Messages a second that one of the other direction answers, by pairs.
    pub(crate) round_trips: f64,
    /// Messages a second that nothing answers.
    pub(crate) one_way: f64,
    /// Connections, and processes of the end that has fewer.
    pub(crate) connections: f64,
    pub(crate) processes: f64,
    /// Sizes of messages in bytes, each with its share.
    pub(crate) sizes: Vec<(f64, f64)>,
    /// From the arrival of bytes to the end of the receive that took them, nanoseconds; `None`: not recorded.
    pub(crate) wait_ns: Option<Spread>,
}

/// What to expect. Each range is of all connections of the socket together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gain {
    /// Time that calls and waits take less, seconds for each second; negative where rings cost more.
    pub(crate) saved_per_second: Spread,
    /// CPU time that the clients take less, in shares of one CPU, at the rate of the recording.
    pub(crate) client_cpu: Spread,
    /// The same of the servers.
    pub(crate) server_cpu: Spread,
    /// A message there and one back, nanoseconds, plain; `None` where nothing is answered.
    pub(crate) round_trip_plain_ns: Option<Spread>,
    /// The same through rings.
    pub(crate) round_trip_rings_ns: Option<Spread>,
    /// Rate of messages by rate of messages before, where the ends do nothing but wait for each other and compute.
    pub(crate) rate_factor: Spread,
}

impl Seen {
    /// Of one socket.
    ///
    /// # Errors
    /// Why nothing can be said of it, in words.
    pub(crate) fn of(recording: &Recording, service: &ServiceRecord) -> Result<Self, &'static str> {
        let calls = service.calls.ok_or("its traffic was not counted")?;
        let (there, back) = (service.client_to_server.send_calls, service.server_to_client.send_calls);
        let (there, back) = there.zip(back).ok_or("the directions were not counted apart")?;
        if service.ring_calls.is_some_and(|calls| calls > 0) {
            return Err("it was accelerated already while it was watched");
        }
        if calls == 0 || service.connections == 0 {
            return Err("no traffic while it was watched");
        }
        let evidence = service.evidence.as_ref();
        // Both ends of a round trip take a turn.
        let turns = evidence.and_then(|evidence| evidence.turns).map(|turns| turns.div_ceil(2));
        let pairs = turns.unwrap_or(u64::MAX).min(there).min(back);
        Ok(Self {
            round_trips: recording.per_second(pairs),
            one_way: recording.per_second(unanswered(there, back, turns, pairs)),
            wait_ns: evidence.and_then(|evidence| waits::mean(evidence.wakeups.as_deref()?)),
            connections: service.connections as f64,
            processes: service.servers.len().min(service.clients.len()).max(1) as f64,
            sizes: sizes(service),
        })
    }
}

/// Messages that nothing answers. Without turns the longer direction tells: its surplus.
fn unanswered(there: u64, back: u64, turns: Option<u64>, pairs: u64) -> u64 {
    let all = there.saturating_add(back).saturating_sub(pairs.saturating_mul(2));
    if turns.is_some() { all } else { there.max(back) - pairs }
}

/// The sizes of sends: of each power of two the middle, or the mean where only that is known.
fn sizes(service: &ServiceRecord) -> Vec<(f64, f64)> {
    let counted = service.evidence.iter().flat_map(|evidence| &evidence.kernel_sizes);
    let counted: Vec<_> = counted.map(|size| (size.from_bytes.max(1) as f64, size.calls as f64)).collect();
    let all: f64 = counted.iter().map(|(_, calls)| calls).sum();
    if all > 0.0 {
        return counted.into_iter().map(|(from, calls)| (from * std::f64::consts::SQRT_2, calls / all)).collect();
    }
    vec![(service.mean_size().unwrap_or(1.0).max(1.0), 1.0)]
}

/// What a calibration says of what was seen; `None` where it lacks the points for it.
pub(crate) fn predict(calibration: &Calibration, seen: &Seen) -> Option<Gain> {
    let table = Table { points: &calibration.points, sizes: &seen.sizes };
    let lanes = seen.connections.min(seen.processes);
    let stream = table.spread(Shape::Stream, |point| point.saved_ns)?;
    let each_ns = lanes * 1e9 / seen.round_trips.max(f64::MIN_POSITIVE);
    let alone = seen.connections <= seen.processes && seen.round_trips > 0.0;
    let waited = match seen.wait_ns.filter(|_| alone) {
        Some(wait) => Some(table.trip_of_waits(wait, each_ns)?),
        None => None,
    };
    let mut trip = match waited {
        Some(waited) => waited.saved,
        None => widest(&ANSWERED.map(|shape| table.trip(shape, each_ns)))?,
    };
    if seen.connections > seen.processes {
        // A process with several connections often finds the next message without having waited for it: then the calls alone count.
        let (least, calls) = (trip.least.min(2.0 * stream.least), 2.0 * stream.median);
        trip = Spread { least, median: f64::midpoint(trip.median, calls), most: trip.most.max(calls) };
    }
    let per_second = |of: fn(&Spread) -> f64| (seen.round_trips * of(&trip) + seen.one_way * of(&stream)) / 1e9;
    let saved =
        Spread { least: per_second(|one| one.least), median: per_second(|one| one.median), most: per_second(|one| one.most) };
    let cpu = |of: fn(&Cost) -> f64| {
        let of = |shape| table.mean(shape, &|point| of(&point.plain) - of(&point.rings));
        let (one_way, trips) = (of(Shape::Stream)?, [of(Shape::RoundTrip)?, of(Shape::Events)?, 2.0 * of(Shape::Stream)?]);
        Spread::of(trips.into_iter().map(|trip| (seen.round_trips * trip + seen.one_way * one_way) / 1e9).collect())
    };
    let answered = |spreads: [Option<Spread>; 2]| widest(&spreads).filter(|_| seen.round_trips > 0.0);
    let bare = |shape| {
        let plain = table.mean(shape, &|point| point.plain.time_ns.median)? + table.beside(shape)?;
        Some(plain / table.mean(shape, &|point| point.rings.time_ns.median)?)
    };
    let mut best = [bare(Shape::RoundTrip)?, bare(Shape::Events)?, bare(Shape::Stream)?].into_iter().fold(1.0, f64::max);
    if let Some(waited) = waited {
        best = best.max(each_ns / waited.rings.least.max(f64::MIN_POSITIVE));
    }
    let factor = |saved: f64, lanes: f64| if saved < lanes { (lanes / (lanes - saved)).min(best) } else { best };
    Some(Gain {
        saved_per_second: saved,
        client_cpu: cpu(|cost| cost.client_cpu_ns)?,
        server_cpu: cpu(|cost| cost.server_cpu_ns)?,
        round_trip_plain_ns: waited.map(|waited| waited.plain).or_else(|| {
            answered(ANSWERED.map(|shape| {
                let (two, beside) = (table.spread(shape, |point| point.plain.time_ns)?, table.beside(shape)?);
                Some(Spread { least: two.least + beside, median: two.median + beside, ..two })
            }))
        }),
        round_trip_rings_ns: waited
            .map(|waited| waited.rings)
            .or_else(|| answered(ANSWERED.map(|shape| table.spread(shape, |point| point.rings.time_ns)))),
        rate_factor: Spread {
            least: factor(saved.least, seen.connections),
            median: factor(saved.median, lanes),
            most: factor(saved.most, lanes),
        },
    })
}

/// From the least of several to the most of them, with the middle of their medians.
fn widest(spreads: &[Option<Spread>]) -> Option<Spread> {
    let known: Vec<Spread> = spreads.iter().copied().collect::<Option<_>>()?;
    let fold = |start: f64, of: fn(&Spread) -> f64, by: fn(f64, f64) -> f64| known.iter().map(of).fold(start, by);
    let median = known.iter().map(|one| one.median).sum::<f64>() / known.len() as f64;
    let least = fold(f64::INFINITY, |one| one.least, f64::min).min(median);
    Some(Spread { least, median, most: fold(f64::NEG_INFINITY, |one| one.most, f64::max).max(median) })
}

/// The points of a calibration, and the sizes in question.
struct Table<'a> {
    points: &'a [Point],
    sizes: &'a [(f64, f64)],
}

impl Table<'_> {
    /// What a round trip saves where an end that is never idle makes one in so many nanoseconds: what it does not take of that itself,
    /// the ends compute.
    fn trip(&self, shape: Shape, each_ns: f64) -> Option<Spread> {
        let two = self.spread(shape, |point| point.saved_ns)?;
        let plain = self.mean(shape, &|point| point.plain.time_ns.median)?;
        let rings = self.mean(shape, &|point| point.rings.time_ns.least)?;
        // The scheduler wakes a waiter beside its waker as a rule, and does not where both spin: one CPU plain, two with rings.
        let beside = self.beside(shape)?;
        let near = two.median + beside;
        let pause_us = (each_ns - (plain + beside)).max(0.0) / 1e3;
        let likely = near * self.share(shape, pause_us)?;
        // An exchange that is as fast as that cannot have been one between two CPUs; one that is slower may have slept, and cannot save
        // more than all the time it takes.
        let slept = two.most.max(self.slept(shape, pause_us)?).min(each_ns - rings);
        let most = if each_ns < plain { plain + beside - rings } else { slept };
        let least = two.least.min(likely).min(self.shared(shape)?);
        Some(Spread { least, median: likely, most: most.max(near).max(likely) })
    }

    /// A figure of a point, by the shares of the sizes.
    fn mean(&self, shape: Shape, of: &dyn Fn(&Point) -> f64) -> Option<f64> {
        self.sizes.iter().map(|(size, share)| Some(self.at(shape, *size, of)? * share)).sum()
    }

    fn spread(&self, shape: Shape, of: fn(&Point) -> Spread) -> Option<Spread> {
        Some(Spread {
            least: self.mean(shape, &|point| of(point).least)?,
            median: self.mean(shape, &|point| of(point).median)?,
            most: self.mean(shape, &|point| of(point).most)?,
        })
    }

    /// A figure of messages of `size` bytes: between the two next sizes in proportion to the logarithm, outside that of the nearest.
    fn at(&self, shape: Shape, size: f64, of: &dyn Fn(&Point) -> f64) -> Option<f64> {
        let fits = |point: &&Point| point.shape == shape && point.pause_us == 0 && !point.one_cpu && point.bytes > 0;
        let points = self.points.iter().filter(fits).map(|point| ((point.bytes as f64).log2(), of(point)));
        between(points.collect(), size.max(1.0).log2())
    }

    /// What part is saved of what would be if the ends computed nothing, where they compute so many microseconds for each round trip.
    fn share(&self, shape: Shape, pause_us: f64) -> Option<f64> {
        let paused = || self.points.iter().filter(|point| point.shape == shape && point.pause_us > 0);
        let size = paused().next()?.bytes;
        let without = self.at(shape, size as f64, &|point| point.saved_ns.median)?;
        let part = |point: &Point| (point.saved_ns.median / without.max(f64::MIN_POSITIVE)).clamp(-1.0, 1.0);
        between(paused().map(|point| (point.pause_us as f64, part(point))).chain([(0.0, 1.0)]).collect(), pause_us)
    }

    /// The most that is saved where the ends compute so many microseconds for each round trip, and sleep meanwhile.
    fn slept(&self, shape: Shape, pause_us: f64) -> Option<f64> {
        let paused = self.points.iter().filter(|point| point.shape == shape && point.pause_us > 0);
        between(paused.map(|point| (point.pause_us as f64, point.saved_ns.most)).collect(), pause_us)
    }

    fn on_one_cpu(&self, shape: Shape) -> Option<&Point> {
        self.points.iter().find(|point| point.shape == shape && point.one_cpu)
    }

    /// What is saved where both ends share a CPU.
    fn shared(&self, shape: Shape) -> Option<f64> {
        self.on_one_cpu(shape).map(|point| point.saved_ns.least)
    }

    /// By how much a plain round trip takes longer on one CPU than on two; mostly negative.
    fn beside(&self, shape: Shape) -> Option<f64> {
        let one = self.on_one_cpu(shape)?;
        let two = self.at(shape, one.bytes as f64, &|point| point.plain.time_ns.median)?;
        Some((one.plain.time_ns.median - two).min(0.0))
    }
}

/// The value at `x` of the line through the points.
fn between(mut points: Vec<(f64, f64)>, x: f64) -> Option<f64> {
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    let above = points.iter().position(|point| point.0 >= x).unwrap_or(points.len());
    let right = points.get(above).or(points.last())?;
    let left = above.checked_sub(1).and_then(|index| points.get(index)).unwrap_or(right);
    let width = right.0 - left.0;
    Some(if width > 0.0 { left.1 + (right.1 - left.1) * (x - left.0) / width } else { right.1 })
}

impl Gain {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let range = |of: Spread, digits: usize| format!("{:.digits$} ({:.digits$} to {:.digits$})", of.median, of.least, of.most);
        let trips = match (self.round_trip_plain_ns, self.round_trip_rings_ns) {
            (Some(plain), Some(rings)) => {
                format!("; a bare round trip likely {} instead of {}", time(rings.median), time(plain.median))
            }
            _ => String::new(),
        };
        let cpu = |of: Spread| format!("{}% to {}%", short_signed(of.least * 100.0), short_signed(of.most * 100.0));
        format!(
            "predicted: {} s saved each second; CPU less, of one: clients {}, servers {}; rate if they wait for each other {} times{trips}",
            range(self.saved_per_second, 3),
            cpu(self.client_cpu),
            cpu(self.server_cpu),
            range(self.rate_factor, 2)
        )
    }
}

fn short_signed(value: f64) -> String {
    if value < 0.0 { format!("-{}", short(-value)) } else { short(value) }
}

/// What a calibration says of one socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prediction {
    /// `None`: see `reason`.
    pub(crate) predicted: Option<Gain>,
    /// Why nothing can be predicted.
    pub(crate) reason: Option<Cow<'static, str>>,
}

impl Prediction {
    /// Of one socket of a recording.
    pub(crate) fn of(calibration: &Calibration, recording: &Recording, service: &ServiceRecord) -> Self {
        let stream = if service.kind == Kind::Stream { Ok(()) } else { Err("it is no stream socket") };
        match stream.and_then(|()| Seen::of(recording, service)).map(|seen| predict(calibration, &seen)) {
            Ok(Some(gain)) => Self { predicted: Some(gain), reason: None },
            Ok(None) => Self { predicted: None, reason: Some(INCOMPLETE.into()) },
            Err(reason) => Self { predicted: None, reason: Some(reason.into()) },
        }
    }

    /// One line for people.
    fn line(&self) -> String {
        match (&self.predicted, self.reason.as_deref()) {
            (Some(gain), _) => gain.line(),
            (None, reason) => format!("no prediction: {}", reason.unwrap_or("unknown")),
        }
    }
}

/// What each of these services of a recording would gain, and what that rests on, line by line.
pub(crate) fn comments<'a>(
    calibration: &Calibration,
    recording: &Recording,
    services: impl Iterator<Item = &'a ServiceRecord>,
) -> Vec<String> {
    let talking = services.filter(|service| service.calls != Some(0) && service.kind == Kind::Stream);
    let line = |service| Prediction::of(calibration, recording, service).line();
    let mut lines: Vec<_> = talking.map(|service| format!("gain {}: {}", service.display, line(service))).collect();
    lines.extend(ASSUMPTIONS.map(|assumption| format!("gain assumes: {assumption}")));
    lines
}

/// What was predicted beside what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// The socket, as text.
    pub(crate) display: String,
    #[serde(flatten)]
    pub(crate) prediction: Prediction,
    /// Sending calls a second when it was recorded, and now.
    pub(crate) calls_before: Option<f64>,
    pub(crate) calls_now: Option<f64>,
    /// The second by the first.
    pub(crate) achieved_factor: Option<f64>,
}

/// Each named socket that two recordings share: the first from before, plain, the second from now.
pub(crate) fn compare(calibration: &Calibration, before: &Recording, now: &Recording) -> Vec<Comparison> {
    let same = |service: &ServiceRecord| {
        now.services.iter().find(|other| other.socket_name() == service.socket_name() && other.network == service.network)
    };
    let rate = |recording: &Recording, service: &ServiceRecord| service.calls.map(|calls| recording.per_second(calls));
    let pairs = before.services.iter().filter_map(|service| Some((service, same(service)?)));
    let comparison = |(old, new): (&ServiceRecord, &ServiceRecord)| {
        let (calls_before, calls_now) = (rate(before, old), rate(now, new));
        let factor = calls_before.filter(|rate| *rate > 0.0).zip(calls_now).map(|(before, now)| now / before);
        Comparison {
            display: old.display.clone(),
            prediction: Prediction::of(calibration, before, old),
            calls_before,
            calls_now,
            achieved_factor: factor,
        }
    };
    pairs.map(comparison).collect()
}

impl Comparison {
    /// Lines for people.
    pub(crate) fn text(&self) -> String {
        let Self { display, .. } = self;
        let predicted = self.prediction.line();
        let achieved = match (self.calls_before, self.calls_now, self.achieved_factor) {
            (Some(before), Some(now), Some(factor)) => {
                let place = self.prediction.predicted.as_ref().map_or("", |gain| match gain.rate_factor {
                    range if factor < range.least => " (below the prediction; is the load one that waits for its answers?)",
                    range if factor > range.most => " (above the prediction)",
                    _ => " (within the prediction)",
                });
                format!("achieved: {} sending calls/s instead of {}: {factor:.2} times{place}", short(now), short(before))
            }
            _ => String::from("achieved: not measured"),
        };
        format!("{display}: {predicted}\n{display}: {achieved}\n")
    }
}

#[cfg(test)]
#[path = "gain_tests.rs"]
mod tests;
