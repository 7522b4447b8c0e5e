//! The arithmetic of predictions, on a host whose figures are round.

use std::path::Path;

use super::*;
use crate::evidence::{Evidence, TimeCount};
use crate::recording::FlowRecord;
use crate::recording::samples::{busy, recording_of};

fn flat(value: f64) -> Spread {
    Spread { least: value * 0.9, median: value, most: value * 1.1 }
}

fn point(shape: Shape, bytes: u64, pause_us: u64, one_cpu: bool, plain: f64, rings: f64) -> Point {
    let cost = |time| Cost { time_ns: flat(time), client_cpu_ns: time / 2.0, server_cpu_ns: time / 4.0 };
    Point { shape, bytes, pause_us, one_cpu, plain: cost(plain), rings: cost(rings), saved_ns: flat(plain - rings) }
}

/// A host on which round trips of any size take 10 µs instead of 1, messages of a stream 1 instead of 0.1.
fn host() -> Calibration {
    let mut points = Vec::new();
    for shape in [Shape::RoundTrip, Shape::Events] {
        points.extend([1, 1 << 20].map(|bytes| point(shape, bytes, 0, false, 10_000.0, 1000.0)));
        points.push(point(shape, 64, 1000, false, 10_000.0, 9000.0));
        points.push(point(shape, 64, 0, true, 10_000.0, 8000.0));
    }
    points.extend([1, 1 << 20].map(|bytes| point(Shape::Stream, bytes, 0, false, 1000.0, 100.0)));
    points.push(point(Shape::Stream, 64, 0, true, 1000.0, 200.0));
    Calibration::new(Path::new("/l.so"), 1, points)
}

fn seen(round_trips: f64, one_way: f64, connections: f64) -> Seen {
    Seen { round_trips, one_way, connections, processes: 1.0, sizes: vec![(64.0, 1.0)], wait_ns: None }
}

fn near(value: f64, expected: f64) -> bool {
    (value - expected).abs() <= expected.abs() * 1e-6 + 1e-12
}

#[test]
fn a_client_that_only_waits_gets_what_the_exchange_gets() {
    let gain = predict(&host(), &seen(100_000.0, 0.0, 1.0)).expect("complete");
    assert!(near(gain.saved_per_second.median, 0.9), "{gain:?}");
    assert!(near(gain.rate_factor.median, 10.0), "{gain:?}");
    assert!(near(gain.saved_per_second.least, 0.18), "where the ends share a CPU: {gain:?}");
    assert!(gain.saved_per_second.most >= 0.9 && gain.rate_factor.most >= 9.99, "{gain:?}");
    assert!(near(gain.round_trip_plain_ns.expect("answered").median, 10_000.0), "{gain:?}");
    assert!(near(gain.round_trip_rings_ns.expect("answered").median, 1000.0), "{gain:?}");
}

/// The same host, and receives that waited so long.
fn waited(round_trips: f64, wait_ns: u64) -> Gain {
    let wait_ns = waits::mean(&[TimeCount { from_ns: wait_ns, count: 1000 }]);
    predict(&host(), &Seen { wait_ns, ..seen(round_trips, 0.0, 1.0) }).expect("complete")
}

#[test]
fn recorded_waits_are_what_a_plain_round_trip_takes() {
    // Two waits of 16 to 32 µs and two sends of 1 µs: 34 to 66 µs, of which one in 50 µs leaves 16 at most for computing.
    let gain = waited(20_000.0, 16_000);
    assert!(near(gain.round_trip_plain_ns.expect("answered").least, 34_000.0), "{gain:?}");
    assert!(near(gain.rate_factor.most, 50.0 / 0.9), "computing nothing, the best of the rings: {gain:?}");
    let behind = 8.0 * 16.0 / 1000.0;
    assert!(near(gain.rate_factor.least, 50.0 / (16.0 + 1.0 + behind)), "{gain:?}");
    assert!(
        near(
            gain.saved_per_second.median,
            20_000.0
                * (16_000.0 * 2.0 * std::f64::consts::LOG2_E + 2000.0 - 1000.0 - 8.0 * (48.0 - 32.0 * std::f64::consts::LOG2_E))
                / 1e9
        ),
        "{gain:?}"
    );
}

#[test]
fn ends_that_may_have_shared_a_cpu_gain_at_least_what_is_saved_on_one() {
    let gain = waited(100_000.0, 3000);
    assert!(near(gain.saved_per_second.least, 0.18), "{gain:?}");
    assert!(gain.saved_per_second.median < gain.saved_per_second.most && gain.saved_per_second.most <= 0.91 + 1e-9, "{gain:?}");
}

#[test]
fn few_waits_and_a_crowd_are_judged_by_the_calibration() {
    assert_eq!(waits::mean(&[TimeCount { from_ns: 1000, count: 99 }]), None);
    let crowd = Seen { wait_ns: Some(flat(20_000.0)), ..seen(100_000.0, 0.0, 50.0) };
    assert_eq!(predict(&host(), &crowd), predict(&host(), &seen(100_000.0, 0.0, 50.0)));
}

#[test]
fn turns_tell_answers_from_two_streams() {
    let evidence = |turns| Some(Evidence { turns, ..Evidence::default() });
    let flow = FlowRecord { send_calls: Some(1000), ..FlowRecord::default() };
    let of = |turns| {
        let service =
            ServiceRecord { client_to_server: flow, server_to_client: flow, evidence: evidence(turns), ..busy(b"/run/x") };
        let recording = recording_of(vec![service]);
        let seen = Seen::of(&recording, &recording.services[0]).expect("traffic");
        (seen.round_trips, seen.one_way)
    };
    let all = of(None).0;
    assert_eq!((of(Some(2000)), of(None)), ((all, 0.0), (all, 0.0)), "each message is answered");
    assert_eq!(of(Some(20)).0 * 100.0, all);
    assert!(near(of(Some(20)).1, all * 1.98), "of two streams both count: {:?}", of(Some(20)));
}

#[test]
fn ends_that_compute_gain_less_and_the_less_the_longer() {
    let median = |round_trips| predict(&host(), &seen(round_trips, 0.0, 1.0)).expect("complete").saved_per_second.median;
    assert!(near(median(1e6 / 1010.0), 1e6 / 1010.0 * 1e-6), "computing 1000 µs saves 1 µs of 9");
    assert!(median(50_000.0) < 50_000.0 * 9e-6);
    assert!(median(10.0) < 1e-4);
}

#[test]
fn plain_ends_that_are_faster_than_two_cpus_allow_were_on_one() {
    let mut calibration = host();
    for one in calibration.points.iter_mut().filter(|point| point.one_cpu) {
        (one.plain.time_ns, one.saved_ns) = (flat(5000.0), flat(500.0));
    }
    let fast = predict(&calibration, &seen(150_000.0, 0.0, 1.0)).expect("complete");
    assert!(near(fast.saved_per_second.median, 150_000.0 * (4e-6 * fast_share(150_000.0))), "{fast:?}");
    assert!(fast.saved_per_second.most < 150_000.0 * 4.2e-6, "{fast:?}");
    let slow = predict(&calibration, &seen(20_000.0, 0.0, 1.0)).expect("complete");
    assert!(near(slow.saved_per_second.most, 20_000.0 * 9.9e-6), "{slow:?}");
}

/// What is left of the saving where the ends compute the rest of the time, by the point of 1000 µs.
fn fast_share(rate: f64) -> f64 {
    1.0 - (1e6 / rate - 5.0) / 1000.0 * (8.0 / 9.0)
}

#[test]
fn a_stream_gains_by_its_messages_and_has_no_latency() {
    let gain = predict(&host(), &seen(0.0, 500_000.0, 1.0)).expect("complete");
    assert!(near(gain.saved_per_second.median, 0.45), "{gain:?}");
    assert!(near(gain.client_cpu.median, 0.225) && near(gain.server_cpu.median, 0.1125), "{gain:?}");
    assert_eq!((gain.round_trip_plain_ns, gain.round_trip_rings_ns), (None, None));
}

#[test]
fn a_process_with_a_crowd_of_connections_may_gain_by_its_calls_alone() {
    let gain = predict(&host(), &seen(100_000.0, 0.0, 50.0)).expect("complete");
    assert!(near(gain.saved_per_second.least, 0.162), "{gain:?}");
    assert!(near(gain.saved_per_second.median, 0.54), "half of what 9 µs and twice 0.9 µs come to: {gain:?}");
    assert!(gain.rate_factor.least < 1.01 && gain.rate_factor.most > 5.0, "{gain:?}");
}

#[test]
fn no_rate_grows_by_more_than_the_bare_exchange() {
    let gain = predict(&host(), &seen(10_000_000.0, 0.0, 1.0)).expect("complete");
    assert!(gain.rate_factor.most <= 10.0 + 1e-6, "{gain:?}");
}

#[test]
fn sizes_between_are_in_proportion_and_beyond_as_the_nearest() {
    let points = [1, 16].map(|bytes| point(Shape::Stream, bytes, 0, false, bytes as f64, 0.0));
    let table = Table { points: &points, sizes: &[] };
    let at = |size| table.at(Shape::Stream, size, &|point| point.plain.time_ns.median).expect("points");
    assert!([(1.0, 1.0), (4.0, 8.5), (16.0, 16.0), (999.0, 16.0), (0.0, 1.0)].iter().all(|(size, value)| near(at(*size), *value)));
}

#[test]
fn an_incomplete_calibration_predicts_nothing() {
    let mut calibration = host();
    calibration.points.retain(|point| point.shape != Shape::Events);
    assert_eq!(predict(&calibration, &seen(1000.0, 0.0, 1.0)), None);
}

#[test]
fn the_line_tells_range_and_unit() {
    let line = predict(&host(), &seen(100_000.0, 0.0, 1.0)).expect("complete").line();
    assert!(line.starts_with("predicted: 0.900 (0.180 to 0.910) s saved each second"), "{line}");
    assert!(line.contains("likely 1.00 µs instead of 10.00 µs"), "{line}");
}
