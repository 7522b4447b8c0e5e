//! What one client reports of one round: the figure that its measurement compares, latencies, and CPU time of both ends. A
//! client prints them as one line of JSON, a list, because one program may measure several things in turn.

use serde::{Deserialize, Serialize};

/// What was measured in one round, plain or preloaded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// What the measurement compares, in its own unit.
    pub value: f64,
    /// The least of the many batches that `value` is the median of, where there are batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
    /// How long single messages took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// CPU time of both ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
}

/// Percentiles in nanoseconds. Not every program tells each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half of the messages took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: Option<f64>,
    /// 999 of 1000 took no longer.
    pub p999: Option<f64>,
}

/// CPU seconds for so many messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// Messages in that time.
    pub messages: f64,
    /// Of the client, user and system.
    pub client: f64,
    /// Of the server.
    pub server: f64,
}

impl Cpu {
    /// CPU seconds of both ends for one message.
    pub(crate) fn per_message(&self) -> f64 {
        (self.client + self.server) / self.messages
    }
}

impl Figures {
    /// One figure and nothing else.
    pub(crate) fn of(value: f64) -> Self {
        Self { value, ..Self::default() }
    }

    /// What several clients of one server measured at the same time: their rates add up, and each saw the same CPU time of the server.
    pub(crate) fn together(clients: &[Self]) -> Self {
        let latencies: Vec<Latency> = clients.iter().filter_map(|one| one.latency).collect();
        let cpus: Vec<Cpu> = clients.iter().filter_map(|one| one.cpu).collect();
        let sum = |of: fn(&Cpu) -> f64| cpus.iter().map(of).sum::<f64>();
        Self {
            value: clients.iter().map(|one| one.value).sum(),
            least: None,
            latency: middle(&latencies),
            cpu: (!cpus.is_empty()).then(|| Cpu {
                messages: sum(|cpu| cpu.messages),
                client: sum(|cpu| cpu.client),
                server: sum(|cpu| cpu.server) / cpus.len() as f64,
            }),
        }
    }
}

/// The median of each percentile, over those that have it.
pub(crate) fn middle(latencies: &[Latency]) -> Option<Latency> {
    let of = |part: fn(&Latency) -> Option<f64>| {
        let known: Vec<f64> = latencies.iter().filter_map(part).collect();
        (!known.is_empty()).then(|| median(&known))
    };
    Some(Latency { p50: of(|one| Some(one.p50))?, p99: of(|one| one.p99), p999: of(|one| one.p999) })
}

/// The median, or of an even number the middle between the two in the middle; no number where there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2, middle.checked_sub(1).and_then(|before| sorted.get(before))) {
        (Some(upper), 0, Some(lower)) => f64::midpoint(*upper, *lower),
        (Some(only), ..) => *only,
        (None, ..) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(value: f64, p50: f64, server: f64) -> Figures {
        Figures {
            value,
            least: None,
            latency: Some(Latency { p50, p99: Some(p50 * 2.0), p999: None }),
            cpu: Some(Cpu { messages: 10.0, client: 1.0, server }),
        }
    }

    #[test]
    fn clients_of_one_server_add_up() {
        let all = Figures::together(&[client(1.0, 5.0, 4.0), client(2.0, 7.0, 4.0), client(3.0, 6.0, 4.0)]);
        assert_eq!(all.value, 6.0);
        assert_eq!(all.latency, Some(Latency { p50: 6.0, p99: Some(12.0), p999: None }));
        assert_eq!(all.cpu, Some(Cpu { messages: 30.0, client: 3.0, server: 4.0 }));
        assert!((all.cpu.unwrap().per_message() - 7.0 / 30.0).abs() < 1e-9);
    }

    #[test]
    fn percentiles_that_only_some_tell_are_those_of_these() {
        let some = [Latency { p50: 1.0, p99: None, p999: None }, Latency { p50: 3.0, p99: Some(9.0), p999: None }];
        assert_eq!(middle(&some), Some(Latency { p50: 2.0, p99: Some(9.0), p999: None }));
        assert_eq!(middle(&[]), None);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_report_survives_its_line_of_json() {
        let report = vec![client(1.0, 5.0, 4.0), Figures::of(3.5)];
        let line = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Figures>>(&line).unwrap(), report);
    }
}
