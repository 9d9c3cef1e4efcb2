//! What Prometheus is told, per forward by name and per session.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use runtime::metrics::Metrics;

/// Seconds, from a loopback to a link that is about to be given up.
const SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 2.0, 10.0,
];

/// The metrics of this process; clones share them.
#[derive(Clone, Debug)]
pub struct TunnelMetrics {
    open: IntGaugeVec,
    opens: IntCounterVec,
    bytes: IntCounterVec,
    dial: HistogramVec,
    /// Sessions that are open.
    pub sessions: IntGauge,
    /// Forwards the server listens for.
    pub listening: IntGauge,
    /// Sessions opened since the start.
    pub connects: IntCounter,
    /// Sessions that ended or did not come about, by cause.
    pub ends: IntCounterVec,
    /// Ping round trips.
    pub round_trip: Histogram,
    /// From the dial to the accepted config.
    pub handshake: Histogram,
}

/// What became of a connection the server offered; the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The target answered and bytes flow.
    Accepted,
    /// The target could not be reached.
    TargetFailed,
    /// What it resolved to is on the never-list.
    Forbidden,
    /// Too many connections are open.
    Limit,
    /// This process is shutting down.
    Draining,
}

impl Opened {
    const ALL: [Self; 5] = [
        Self::Accepted,
        Self::TargetFailed,
        Self::Forbidden,
        Self::Limit,
        Self::Draining,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::TargetFailed => "target_failed",
            Self::Forbidden => "forbidden",
            Self::Limit => "limit",
            Self::Draining => "draining",
        }
    }
}

/// The counters of one forward; they outlive its sessions.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Open connections.
    pub open: IntGauge,
    /// Bytes from the server to the target.
    pub bytes_in: IntCounter,
    /// Bytes from the target to the server.
    pub bytes_out: IntCounter,
    /// Time to reach the target.
    pub dial: Histogram,
    opens: [(Opened, IntCounter); 5],
}

impl Counters {
    /// Counts what became of one offered connection.
    pub fn opened(&self, result: Opened) {
        if let Some((_, counter)) = self.opens.iter().find(|(kind, _)| *kind == result) {
            counter.inc();
        }
    }

    /// How often that happened.
    pub fn count(&self, result: Opened) -> u64 {
        self.opens
            .iter()
            .find(|(kind, _)| *kind == result)
            .map_or(0, |(_, counter)| counter.get())
    }
}

impl TunnelMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            open: metrics.gauge_vec(
                "pipeops_tunnel_connections_open",
                "Connections that are open, by forward.",
                &["forward"],
            ),
            opens: metrics.counter_vec(
                "pipeops_tunnel_connections_total",
                "Connections the server offered, by forward and by what became of them.",
                &["forward", "result"],
            ),
            bytes: metrics.counter_vec(
                "pipeops_tunnel_bytes_total",
                "Bytes carried, by forward; direction `in` is from the server to the target.",
                &["forward", "direction"],
            ),
            dial: metrics.histogram_vec(
                "pipeops_tunnel_target_dial_seconds",
                "Time to reach a target, by forward.",
                &["forward"],
                &SECONDS,
            ),
            sessions: metrics.gauge(
                "pipeops_tunnel_sessions_open",
                "Sessions with the chisel server that are open.",
            ),
            listening: metrics.gauge(
                "pipeops_tunnel_forwards_listening",
                "Forwards the chisel server listens for.",
            ),
            connects: metrics.counter(
                "pipeops_tunnel_sessions_total",
                "Sessions opened with the chisel server.",
            ),
            ends: metrics.counter_vec(
                "pipeops_tunnel_session_ends_total",
                "Sessions that ended or did not come about, by cause.",
                &["cause"],
            ),
            round_trip: metrics.histogram(
                "pipeops_tunnel_round_trip_seconds",
                "Round trips of pings to the chisel server.",
                &SECONDS,
            ),
            handshake: metrics.histogram(
                "pipeops_tunnel_handshake_seconds",
                "Time from the dial to the accepted session.",
                &SECONDS,
            ),
        }
    }

    /// Forgets a forward that is gone, so that names that come and go do not pile up.
    pub fn forget(&self, name: &str) {
        // A value that was never used is not there to be removed.
        self.open.remove_label_values(&[name]).ok();
        self.dial.remove_label_values(&[name]).ok();
        for result in Opened::ALL {
            self.opens.remove_label_values(&[name, result.label()]).ok();
        }
        for direction in ["in", "out"] {
            self.bytes.remove_label_values(&[name, direction]).ok();
        }
    }

    /// The counters of one forward.
    pub fn forward(&self, name: &str) -> Counters {
        let opens = Opened::ALL.map(|result| (result, self.opens.with_label_values(&[name, result.label()])));
        Counters {
            open: self.open.with_label_values(&[name]),
            bytes_in: self.bytes.with_label_values(&[name, "in"]),
            bytes_out: self.bytes.with_label_values(&[name, "out"]),
            dial: self.dial.with_label_values(&[name]),
            opens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_that_is_gone_leaves_no_labels() {
        let metrics = Metrics::new(crate::BUILD);
        let tunnel = TunnelMetrics::new(&metrics);
        let counters = tunnel.forward("gone");
        counters.opened(Opened::Limit);
        counters.dial.observe(0.1);
        counters.bytes_in.inc_by(7);
        assert!(
            metrics
                .text()
                .contains("pipeops_tunnel_connections_total{forward=\"gone\",result=\"limit\"} 1")
        );
        tunnel.forget("gone");
        assert!(!metrics.text().contains("gone"), "{}", metrics.text());
    }
}
