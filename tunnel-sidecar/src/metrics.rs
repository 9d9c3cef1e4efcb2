//! What Prometheus is told, per forward by name and per session.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use runtime::metrics::Metrics;

use crate::plan::LaneId;

/// Seconds, from a loopback to a link that is about to be given up.
const SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 2.0, 10.0,
];

/// The metrics of this process; clones share them.
#[derive(Clone, Debug)]
pub struct TunnelMetrics {
    open: IntGaugeVec,
    idle_closed: IntCounterVec,
    stalls: HistogramVec,
    proof_age: IntGaugeVec,
    proof_trip: HistogramVec,
    session_trip: HistogramVec,
    session_rekeys: IntGaugeVec,
    session_handshake: HistogramVec,
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
    /// Too many connections are open, of the process or of this forward.
    Limit,
    /// The system has no socket left for us.
    Exhausted,
    /// This process is shutting down.
    Draining,
}

impl Opened {
    const ALL: [Self; 6] = [
        Self::Accepted,
        Self::TargetFailed,
        Self::Forbidden,
        Self::Limit,
        Self::Exhausted,
        Self::Draining,
    ];

    /// The value of the label `result`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::TargetFailed => "target_failed",
            Self::Forbidden => "forbidden",
            Self::Limit => "limit",
            Self::Exhausted => "exhausted",
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
    /// Connections that were closed because nothing moved on them.
    pub idle_closed: IntCounter,
    /// Waits of bytes from the server for the target, which eat the window we grant.
    pub stalls_in: Histogram,
    /// Waits of bytes from the target for the server's window or the link, where the forward has a rate.
    pub stalls_out: Histogram,
    /// Round trips of bytes that the server side sent through this forward.
    pub proof_trip: Histogram,
    /// Whole seconds since the last one; -1 before the first.
    pub proof_age: IntGauge,
    opens: [(Opened, IntCounter); 6],
}

/// The figures of one session; they outlive its losses.
#[derive(Clone, Debug)]
pub struct SessionFigures {
    /// Ping round trips.
    pub round_trip: Histogram,
    /// Key exchanges after the first.
    pub rekeys: IntGauge,
    /// From the dial to the accepted config.
    pub handshake: Histogram,
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
            idle_closed: metrics.counter_vec(
                "pipeops_tunnel_idle_closed_total",
                "Connections closed because nothing moved on them, by forward.",
                &["forward"],
            ),
            stalls: metrics.histogram_vec(
                "pipeops_tunnel_stall_seconds",
                "Waits of bytes: `in` for the target to read; `out`, where a forward has a rate, for the server's window.",
                &["forward", "direction"],
                &SECONDS,
            ),
            proof_age: metrics.gauge_vec(
                "pipeops_tunnel_proof_age_seconds",
                "Seconds since bytes went from the server side through the forward and back; -1 before the first.",
                &["forward"],
            ),
            proof_trip: metrics.histogram_vec(
                "pipeops_tunnel_proof_round_trip_seconds",
                "Round trips of bytes from us to the server side and back, by forward.",
                &["forward"],
                &SECONDS,
            ),
            session_trip: metrics.histogram_vec(
                "pipeops_tunnel_session_round_trip_seconds",
                "Round trips of pings, by session.",
                &["session"],
                &SECONDS,
            ),
            session_rekeys: metrics.gauge_vec(
                "pipeops_tunnel_session_rekeys",
                "Key exchanges after the first, by session that is open.",
                &["session"],
            ),
            session_handshake: metrics.histogram_vec(
                "pipeops_tunnel_session_handshake_seconds",
                "Time from the dial to the accepted session, by session.",
                &["session"],
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
        self.idle_closed.remove_label_values(&[name]).ok();
        self.proof_age.remove_label_values(&[name]).ok();
        self.proof_trip.remove_label_values(&[name]).ok();
        for result in Opened::ALL {
            self.opens.remove_label_values(&[name, result.label()]).ok();
        }
        for direction in ["in", "out"] {
            self.bytes.remove_label_values(&[name, direction]).ok();
            self.stalls.remove_label_values(&[name, direction]).ok();
        }
    }

    /// The counters of one forward.
    pub fn forward(&self, name: &str) -> Counters {
        let opens = Opened::ALL.map(|result| (result, self.opens.with_label_values(&[name, result.label()])));
        let proof_age = self.proof_age.with_label_values(&[name]);
        proof_age.set(-1);
        Counters {
            open: self.open.with_label_values(&[name]),
            bytes_in: self.bytes.with_label_values(&[name, "in"]),
            bytes_out: self.bytes.with_label_values(&[name, "out"]),
            dial: self.dial.with_label_values(&[name]),
            idle_closed: self.idle_closed.with_label_values(&[name]),
            stalls_in: self.stalls.with_label_values(&[name, "in"]),
            stalls_out: self.stalls.with_label_values(&[name, "out"]),
            proof_trip: self.proof_trip.with_label_values(&[name]),
            proof_age,
            opens,
        }
    }

    /// The figures of one session.
    pub fn session(&self, id: LaneId) -> SessionFigures {
        let label = id.to_string();
        SessionFigures {
            round_trip: self.session_trip.with_label_values(&[&label]),
            rekeys: self.session_rekeys.with_label_values(&[&label]),
            handshake: self.session_handshake.with_label_values(&[&label]),
        }
    }

    /// Forgets a session that will not come back.
    pub fn forget_session(&self, id: LaneId) {
        let label = id.to_string();
        // One that never opened has none.
        self.session_trip.remove_label_values(&[&label]).ok();
        self.session_rekeys.remove_label_values(&[&label]).ok();
        self.session_handshake.remove_label_values(&[&label]).ok();
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
        counters.stalls_out.observe(0.1);
        tunnel.session(4711).rekeys.set(1);
        assert!(
            metrics
                .text()
                .contains("pipeops_tunnel_connections_total{forward=\"gone\",result=\"limit\"} 1")
        );
        tunnel.forget("gone");
        tunnel.forget_session(4711);
        let text = metrics.text();
        assert!(!text.contains("gone") && !text.contains("4711"), "{text}");
    }
}
