//! What a round trip would save where the recording itself tells how long its receives took from the arrival of the bytes to their end.
//!
//! Two of these waits and two sends are a plain round trip, whatever CPUs the ends had; what it took besides, the ends computed. Rings
//! replace the former by what the calibration says of them, and leave the latter. So the plain side needs no guess of where the ends ran:
//! the same exchange takes 8 µs on one CPU and 45 µs between two that fall asleep, on one host.

use super::{ANSWERED, Table};
use crate::calibration::{Shape, Spread};
use crate::evidence::TimeCount;

/// Fewer waits say nothing.
const LEAST_WAITS: u64 = 100;
/// A round trip that takes no longer than so many times that of two ends on one CPU may have been one.
const NEAR: f64 = 2.0;
/// The mean of what lies anywhere between a power of two and the next, by that power, where each doubling is as likely: 1 / ln 2.
const MEAN_OF_DOUBLING: f64 = std::f64::consts::LOG2_E;

/// A round trip: what it takes now, would take, and saves, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trip {
    pub(super) plain: Spread,
    pub(super) rings: Spread,
    pub(super) saved: Spread,
}

/// The mean wait: at least, likely and at most what its powers of two say; `None` of too few.
pub(super) fn mean(waits: &[TimeCount]) -> Option<Spread> {
    let count: u64 = waits.iter().map(|wait| wait.count).sum();
    let sum: f64 = waits.iter().map(|wait| wait.from_ns as f64 * wait.count as f64).sum();
    let least = sum / count as f64;
    (count >= LEAST_WAITS).then_some(Spread { least, median: least * MEAN_OF_DOUBLING, most: least * 2.0 })
}

impl Table<'_> {
    /// A round trip whose receives waited so long, where an end that is never idle makes one in `each_ns`.
    pub(super) fn trip_of_waits(&self, wait: Spread, each_ns: f64) -> Option<Trip> {
        let send = self.mean(Shape::Stream, &|point| point.plain.time_ns.median)?;
        let plain = |wait: f64| (2.0 * (wait + send)).min(each_ns);
        let plain = Spread { least: plain(wait.least), median: plain(wait.median), most: plain(wait.most) };
        let each_shape = |of: &dyn Fn(Shape) -> Option<f64>| ANSWERED.map(of).into_iter().collect::<Option<Vec<f64>>>();
        let with_pause = |plain: f64| {
            let pause_us = (each_ns - plain) / 1e3;
            each_shape(&|shape| Some(self.mean(shape, &|point| point.rings.time_ns.median)? + self.behind_pause(shape, pause_us)?))
        };
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let greatest = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
        let best = each_shape(&|shape| self.mean(shape, &|point| point.rings.time_ns.least))?;
        let two = Spread {
            least: best.into_iter().fold(f64::INFINITY, f64::min),
            median: mean(with_pause(plain.median)?),
            most: greatest(with_pause(plain.least)?),
        };
        let mut saved = Spread { least: plain.least - two.most, median: plain.median - two.median, most: plain.most - two.least };
        let one_cpu = each_shape(&|shape| self.on_one_cpu(shape).map(|point| point.plain.time_ns.median))?;
        if plain.least < NEAR * greatest(one_cpu) {
            // On one CPU, and whether the other is free for rings the recording does not tell.
            let shared = each_shape(&|shape| self.shared(shape))?.into_iter().fold(f64::INFINITY, f64::min);
            saved.least = saved.least.min(shared);
            saved.median = f64::midpoint(shared, saved.median.max(shared));
        }
        saved.median = saved.median.max(saved.least);
        saved.most = saved.most.max(saved.median);
        Some(Trip { plain, rings: two, saved })
    }

    /// What a round trip through rings takes longer where the ends compute so many microseconds for each, and sleep meanwhile.
    fn behind_pause(&self, shape: Shape, pause_us: f64) -> Option<f64> {
        let paused = || self.points.iter().filter(|point| point.shape == shape && point.pause_us > 0);
        let size = paused().next()?.bytes;
        let without = self.at(shape, size as f64, &|point| point.rings.time_ns.median)?;
        let more = |rings: f64| (rings - without).max(0.0);
        let points = paused().map(|point| (point.pause_us as f64, more(point.rings.time_ns.median)));
        super::between(points.chain([(0.0, 0.0)]).collect(), pause_us)
    }
}
