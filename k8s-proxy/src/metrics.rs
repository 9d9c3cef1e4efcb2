//! The figures of the data path. No label carries anything a caller chose freely.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use runtime::metrics::Metrics;

/// Seconds until the head of an answer; the apiserver answers most calls within milliseconds.
const LATENCY: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

/// Seconds that a reader let us wait: from the time of a slow write to one that has gone home.
const BLOCKED: [f64; 8] = [0.001, 0.01, 0.1, 1.0, 5.0, 30.0, 120.0, 600.0];

/// Registered collectors; clones share them.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    /// Finished calls by door, verb, resource class and status.
    pub requests: IntCounterVec,
    /// Calls that went wrong, by door, verb, resource class and error.
    pub errors: IntCounterVec,
    /// Seconds from a call's arrival to its end, watches and followed logs left out.
    pub seconds: HistogramVec,
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
    /// Bytes that wait: in queues, for readers that are stalled, in bodies that are gathered.
    pub queue_bytes: IntGauge,
    /// Calls ended because their reader took nothing.
    pub stalled: IntCounter,
    /// Milliseconds for which a peer's HTTP/2 connection window was full.
    pub window_blocked: IntCounter,
    /// Open calls by door whose reader has taken nothing for a second.
    pub stalled_now: IntGaugeVec,
    /// Seconds that readers let us wait, by door: their windows or their sockets were full.
    pub blocked_seconds: HistogramVec,
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
            errors: metrics.counter_vec(
                "pipeops_proxy_request_errors_total",
                "Kubernetes calls that were refused, broke, or were answered with 5xx.",
                &["door", "verb", "class", "error"],
            ),
            seconds: metrics.histogram_vec(
                "pipeops_proxy_request_seconds",
                "Seconds from a call's arrival to the end of its answer, watches and followed logs left out.",
                &["door", "verb", "class"],
                &LATENCY,
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
                "Bytes that wait: in queues, for stalled readers, in bodies that are gathered.",
            ),
            stalled: metrics.counter(
                "pipeops_proxy_stalled_total",
                "Calls ended because their reader took nothing.",
            ),
            window_blocked: metrics.counter(
                "pipeops_proxy_peer_window_blocked_milliseconds_total",
                "Milliseconds for which a control plane's HTTP/2 connection window took no new answer.",
            ),
            stalled_now: metrics.gauge_vec(
                "pipeops_proxy_streams_stalled",
                "Open calls whose reader has taken nothing for a second.",
                &["door"],
            ),
            blocked_seconds: metrics.histogram_vec(
                "pipeops_proxy_blocked_seconds",
                "Seconds that a reader let us wait: its window or its socket was full.",
                &["door"],
                &BLOCKED,
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
