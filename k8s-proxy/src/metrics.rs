//! The figures of the data path. No label carries anything a caller chose freely.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use runtime::metrics::Metrics;

/// Seconds until the head of an answer; the apiserver answers most calls within milliseconds.
const LATENCY: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

/// Registered collectors; clones share them.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    /// Finished calls by door, verb, resource class and status.
    pub requests: IntCounterVec,
    /// Refused calls by cause.
    pub refused: IntCounterVec,
    /// Open calls by door.
    pub streams: IntGaugeVec,
    /// Open watches.
    pub watches: IntGauge,
    /// Watches opened again upstream, unseen by their callers.
    pub rewatched: IntCounter,
    /// Watch events passed on.
    pub events: IntCounter,
    /// Bytes that wait in the queues of frame connections.
    pub queue_bytes: IntGauge,
    /// Calls ended because their reader took nothing.
    pub stalled: IntCounter,
    /// Milliseconds for which a peer's HTTP/2 connection window was full.
    pub window_blocked: IntCounter,
    /// Seconds until the head of the apiserver's answer, watches left out.
    pub upstream_seconds: Histogram,
    /// Failed calls upstream by cause.
    pub upstream_errors: IntCounterVec,
    /// Open connections to the apiserver by protocol.
    pub upstream_connections: IntGaugeVec,
    /// Dials of control planes by result.
    pub dials: IntCounterVec,
}

impl ProxyMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.counter_vec(
                "pipeops_proxy_requests_total",
                "Finished Kubernetes calls.",
                &["door", "verb", "class", "code"],
            ),
            refused: metrics.counter_vec(
                "pipeops_proxy_refused_total",
                "Calls refused before the apiserver.",
                &["cause"],
            ),
            streams: metrics.gauge_vec("pipeops_proxy_streams_open", "Open calls.", &["door"]),
            watches: metrics.gauge("pipeops_proxy_watches_open", "Open watches."),
            rewatched: metrics.counter(
                "pipeops_proxy_rewatched_total",
                "Watches opened again at the apiserver, unseen by their callers.",
            ),
            events: metrics.counter("pipeops_proxy_watch_events_total", "Watch events passed on."),
            queue_bytes: metrics.gauge(
                "pipeops_proxy_queue_bytes",
                "Bytes waiting in queues of frame connections.",
            ),
            stalled: metrics.counter(
                "pipeops_proxy_stalled_total",
                "Calls ended because their reader took nothing.",
            ),
            window_blocked: metrics.counter(
                "pipeops_proxy_peer_window_blocked_milliseconds_total",
                "Milliseconds for which a control plane's HTTP/2 connection window took no new answer.",
            ),
            upstream_seconds: metrics.histogram(
                "pipeops_proxy_upstream_seconds",
                "Seconds until the head of the apiserver's answer, watches and followed logs left out.",
                &LATENCY,
            ),
            upstream_errors: metrics.counter_vec(
                "pipeops_proxy_upstream_errors_total",
                "Calls that got no answer from the apiserver.",
                &["cause"],
            ),
            upstream_connections: metrics.gauge_vec(
                "pipeops_proxy_upstream_connections",
                "Open connections to the apiserver.",
                &["protocol"],
            ),
            dials: metrics.counter_vec(
                "pipeops_proxy_dials_total",
                "Dials of control planes.",
                &["result"],
            ),
        }
    }
}
