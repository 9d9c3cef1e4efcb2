//! The figures of this process under the names of the seeds and of the Go agent. Each is counted or measured; a
//! value that is not known is NaN, never zero.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use proto::v1::{ForwardState, ProxyStatus, TunnelStatus};
use tracing::warn;

/// The usual buckets of the Prometheus clients.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// `pipeops_agent_connection_state` of the Go agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Disconnected,
    Connecting,
    Connected,
    Reconnecting,
}

impl Connection {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Reconnecting => "reconnecting",
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct CoreMetrics {
    pub(crate) agent_status: IntGauge,
    pub(crate) tunnel_status: IntGauge,
    pub(crate) heartbeats: IntCounter,
    pub(crate) heartbeat_errors: IntCounter,
    pub(crate) registration_attempts: IntCounter,
    pub(crate) http_requests: IntCounterVec,
    pub(crate) forwards_active: IntGauge,
    pub(crate) websockets: IntGauge,
    pub(crate) sse: IntGauge,
    pub(crate) nodes: Gauge,
    pub(crate) pods: Gauge,
    pub(crate) uptime: IntGauge,
    pub(crate) kubernetes_calls: IntCounterVec,
    pub(crate) heartbeat_success: IntCounter,
    pub(crate) heartbeat_failures: IntCounter,
    pub(crate) heartbeat_duration: Histogram,
    connection_state: IntGauge,
    connection_changes: IntCounterVec,
    pub(crate) unhealthy: IntGauge,
    container_known: IntGaugeVec,
    container_ready: IntGaugeVec,
    tcp_active: IntGauge,
    tcp_total: IntCounter,
    tcp_bytes: IntCounterVec,
    tcp_errors: IntCounterVec,
    proxy_active: IntGauge,
    proxy_total: IntCounter,
    last: Mutex<Last>,
}

/// The siblings' counters at the last report, to add only what is new.
#[derive(Debug, Default)]
struct Last {
    connection: Option<Connection>,
    connections: u64,
    bytes_in: u64,
    bytes_out: u64,
    dial_failures: u64,
    requests: u64,
}

impl CoreMetrics {
    pub(crate) fn new(metrics: &runtime::metrics::Metrics) -> Self {
        let float = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help).and_then(|gauge| {
                metrics.registry().register(Box::new(gauge.clone()))?;
                Ok(gauge)
            });
            match gauge {
                Ok(gauge) => {
                    gauge.set(f64::NAN);
                    Some(gauge)
                }
                Err(error) => {
                    warn!(%error, name, "a metric cannot be registered");
                    None
                }
            }
        };
        let unregistered = || prometheus::core::GenericGauge::new("unregistered", "unregistered");
        let nodes = float(
            "pipeops_cluster_nodes_total",
            "Nodes of the cluster; NaN while unknown",
        );
        let pods = float(
            "pipeops_cluster_pods_total",
            "Pods of the cluster; NaN while unknown",
        );
        #[expect(clippy::expect_used, reason = "a constant name is a valid one")]
        let or_unregistered = |gauge: Option<Gauge>| gauge.unwrap_or_else(|| unregistered().expect("valid"));
        Self {
            agent_status: metrics.gauge("pipeops_agent_status", "1 while heartbeats are accepted, else 0"),
            tunnel_status: metrics.gauge("pipeops_tunnel_status", "1 while the tunnel is connected, else 0"),
            heartbeats: metrics.counter("pipeops_heartbeat_total", "Heartbeats sent"),
            heartbeat_errors: metrics.counter(
                "pipeops_heartbeat_errors_total",
                "Heartbeats that were not accepted",
            ),
            registration_attempts: metrics
                .counter("pipeops_registration_attempts_total", "Registrations tried"),
            http_requests: metrics.counter_vec(
                "pipeops_http_requests_total",
                "HTTP requests to this agent",
                &["endpoint", "status"],
            ),
            forwards_active: metrics.gauge("pipeops_tunnel_forwards_active", "Forwards that listen"),
            websockets: metrics.gauge("pipeops_websocket_connections", "Open WebSockets on /ws"),
            sse: metrics.gauge("pipeops_sse_connections", "Open event streams"),
            nodes: or_unregistered(nodes),
            pods: or_unregistered(pods),
            uptime: metrics.gauge(
                "pipeops_agent_uptime_seconds",
                "Seconds since the start of the process",
            ),
            kubernetes_calls: metrics.counter_vec(
                "pipeops_kubernetes_api_calls_total",
                "Calls of agent-core itself to the Kubernetes API",
                &["call", "result"],
            ),
            heartbeat_success: metrics.counter(
                "pipeops_agent_heartbeat_success_total",
                "Heartbeats that were accepted",
            ),
            heartbeat_failures: metrics.counter(
                "pipeops_agent_heartbeat_failures_total",
                "Heartbeats that were not accepted",
            ),
            heartbeat_duration: metrics.histogram(
                "pipeops_agent_heartbeat_duration_seconds",
                "Time to the answer of a heartbeat",
                SECONDS,
            ),
            connection_state: metrics.gauge(
                "pipeops_agent_connection_state",
                "0 disconnected, 1 connecting, 2 connected, 3 reconnecting",
            ),
            connection_changes: metrics.counter_vec(
                "pipeops_agent_connection_state_changes_total",
                "Changes of the connection state by new state",
                &["state"],
            ),
            unhealthy: metrics.gauge(
                "pipeops_agent_unhealthy_duration_seconds",
                "Seconds since the last accepted heartbeat while heartbeats are not accepted, else 0",
            ),
            container_known: metrics.gauge_vec(
                "pipeops_container_known",
                "1 while the container reports, else 0",
                &["container"],
            ),
            container_ready: metrics.gauge_vec(
                "pipeops_container_ready",
                "1 while the container reports that it is ready, else 0",
                &["container"],
            ),
            tcp_active: metrics.gauge(
                "pipeops_agent_tcp_tunnel_active_connections",
                "Open connections through the tunnel",
            ),
            tcp_total: metrics.counter(
                "pipeops_agent_tcp_tunnel_connections_total",
                "Connections through the tunnel",
            ),
            tcp_bytes: metrics.counter_vec(
                "pipeops_agent_tcp_tunnel_bytes_total",
                "Bytes through the tunnel",
                &["direction"],
            ),
            tcp_errors: metrics.counter_vec(
                "pipeops_agent_tcp_tunnel_errors_total",
                "Failures of the tunnel's connections",
                &["error_type"],
            ),
            proxy_active: metrics.gauge(
                "pipeops_agent_websocket_proxy_active_streams",
                "Open streams of k8s-proxy",
            ),
            proxy_total: metrics.counter(
                "pipeops_agent_websocket_proxy_streams_total",
                "Requests that k8s-proxy took in",
            ),
            last: Mutex::default(),
        }
    }

    pub(crate) fn connection(&self, state: Connection) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.connection.replace(state) != Some(state) {
            self.connection_changes.with_label_values(&[state.as_str()]).inc();
        }
        self.connection_state.set(state as i64);
        self.agent_status.set(i64::from(state == Connection::Connected));
    }

    pub(crate) fn container(&self, name: &str, known: bool, ready: bool) {
        self.container_known
            .with_label_values(&[name])
            .set(i64::from(known));
        self.container_ready
            .with_label_values(&[name])
            .set(i64::from(ready));
    }

    /// What tunnel-sidecar reports; `None` while it is unknown.
    pub(crate) fn tunnel(&self, status: Option<&TunnelStatus>) {
        let Some(status) = status else {
            self.tunnel_status.set(0);
            self.forwards_active.set(0);
            self.tcp_active.set(0);
            return;
        };
        let connected = status.state() == proto::v1::SessionState::Connected;
        self.tunnel_status.set(i64::from(connected));
        let listening = status
            .forwards
            .iter()
            .filter(|forward| forward.state() == ForwardState::Listening);
        self.forwards_active.set(clamp(listening.count() as u64));
        let sum = |of: fn(&proto::v1::ForwardStatus) -> u64| {
            status.forwards.iter().map(of).fold(0u64, u64::saturating_add)
        };
        self.tcp_active
            .set(clamp(sum(|forward| forward.connections_open)));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.tcp_total.inc_by(rise(
            &mut last.connections,
            sum(|forward| forward.connections_total),
        ));
        let bytes_in = rise(&mut last.bytes_in, sum(|forward| forward.bytes_in));
        self.tcp_bytes.with_label_values(&["in"]).inc_by(bytes_in);
        let bytes_out = rise(&mut last.bytes_out, sum(|forward| forward.bytes_out));
        self.tcp_bytes.with_label_values(&["out"]).inc_by(bytes_out);
        let failures = rise(
            &mut last.dial_failures,
            sum(|forward| forward.dial_failures_total),
        );
        self.tcp_errors.with_label_values(&["dial"]).inc_by(failures);
    }

    /// What k8s-proxy reports; `None` while it is unknown.
    pub(crate) fn proxy(&self, status: Option<&ProxyStatus>) {
        let Some(status) = status else {
            self.proxy_active.set(0);
            return;
        };
        self.proxy_active.set(i64::from(status.streams_open));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.proxy_total
            .inc_by(rise(&mut last.requests, status.requests_total));
    }

    pub(crate) fn counts(&self, nodes: Option<u64>, pods: Option<u64>) {
        let float = |value: Option<u64>| value.map_or(f64::NAN, |value| value as f64);
        self.nodes.set(float(nodes));
        self.pods.set(float(pods));
    }

    pub(crate) fn clock(&self, uptime: Duration, unhealthy: Duration) {
        self.uptime.set(clamp(uptime.as_secs()));
        self.unhealthy.set(clamp(unhealthy.as_secs()));
    }
}

/// How much a sibling's counter rose; after its restart it counts from zero again.
fn rise(last: &mut u64, now: u64) -> u64 {
    let before = std::mem::replace(last, now);
    now.checked_sub(before).unwrap_or(now)
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::ForwardStatus;
    use runtime::{build::build_info, metrics::Metrics};

    #[test]
    fn both_sets_of_names_are_there_and_unknown_is_not_zero() {
        let registry = Metrics::new(build_info("agent-core"));
        let metrics = CoreMetrics::new(&registry);
        metrics.counts(Some(3), None);
        metrics.connection(Connection::Connected);
        metrics.connection(Connection::Connected);
        let text = registry.text();
        for line in [
            "pipeops_agent_status 1",
            "pipeops_heartbeat_total 0",
            "pipeops_cluster_nodes_total 3",
            "pipeops_cluster_pods_total NaN",
            "pipeops_agent_connection_state 2",
            "pipeops_agent_connection_state_changes_total{state=\"connected\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_siblings_restart_does_not_lose_what_was_counted() {
        let registry = Metrics::new(build_info("agent-core"));
        let metrics = CoreMetrics::new(&registry);
        let report = |connections_total| TunnelStatus {
            forwards: vec![ForwardStatus {
                connections_total,
                ..ForwardStatus::default()
            }],
            ..TunnelStatus::default()
        };
        for total in [5, 7, 1] {
            metrics.tunnel(Some(&report(total)));
        }
        metrics.tunnel(None);
        assert_eq!(metrics.tcp_total.get(), 8);
    }
}
