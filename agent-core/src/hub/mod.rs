//! What agent-core knows at this moment, in one place: for the heartbeat, the local API, the page and the metrics.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use proto::v1::{Agent, Container, HeartbeatResult, ProxyReport, SessionState, TunnelReport};
use runtime::{
    build::{BuildInfo, instance_id},
    conditions::{Conditions, Status},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    metrics::{Connection, CoreMetrics},
    reports::Slot,
    session::Phase,
    wire::heartbeat::{AgentState, ContainerState, Metadata, ProxyState},
};

mod convert;

pub(crate) use self::convert::build;
use self::convert::{condition, container, container_state, wire_phase};

/// Heartbeats that are remembered for people.
const HEARTBEATS: usize = 60;

/// Which sibling a report is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sibling {
    Tunnel,
    Proxy,
}

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) build: BuildInfo,
    pub(crate) agent_name: String,
    pub(crate) agent_version: String,
    pub(crate) cluster_name: String,
    pub(crate) control_plane: String,
    pub(crate) report_timeout: Duration,
}

/// Shared knowledge; clones are handles.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    facts: Facts,
    instance: String,
    conditions: Conditions,
    metrics: CoreMetrics,
    started: Instant,
    started_at: SystemTime,
    known: Mutex<Known>,
    changes: watch::Sender<u64>,
    newest_tunnel: watch::Sender<u64>,
    newest_proxy: watch::Sender<u64>,
}

#[derive(Debug)]
struct Known {
    agent_id: String,
    cluster: String,
    phase: Phase,
    reason: String,
    last_accepted: Option<(Instant, SystemTime)>,
    heartbeats: VecDeque<HeartbeatResult>,
    nodes: Option<u64>,
    pods: Option<u64>,
    version: Option<String>,
    tunnel: Slot<TunnelReport>,
    proxy: Slot<ProxyReport>,
    draining: bool,
}

impl Hub {
    pub(crate) fn new(facts: Facts, conditions: Conditions, metrics: CoreMetrics) -> Self {
        let started_at = SystemTime::now();
        let known = Known {
            agent_id: String::new(),
            cluster: String::new(),
            phase: Phase::Loading,
            reason: "starting".to_owned(),
            last_accepted: None,
            heartbeats: VecDeque::new(),
            nodes: None,
            pods: None,
            version: None,
            tunnel: Slot::new("tunnel-sidecar", started_at),
            proxy: Slot::new("k8s-proxy", started_at),
            draining: false,
        };
        let inner = Inner {
            facts,
            instance: instance_id(),
            conditions,
            metrics,
            started: Instant::now(),
            started_at,
            known: Mutex::new(known),
            changes: watch::Sender::new(0),
            newest_tunnel: watch::Sender::new(0),
            newest_proxy: watch::Sender::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.inner.facts
    }

    pub(crate) fn metrics(&self) -> &CoreMetrics {
        &self.inner.metrics
    }

    pub(crate) fn conditions(&self) -> &Conditions {
        &self.inner.conditions
    }

    /// Since the start of the process: the clock of the session and of the reports.
    pub(crate) fn now(&self) -> Duration {
        self.inner.started.elapsed()
    }

    pub(crate) fn started_at(&self) -> SystemTime {
        self.inner.started_at
    }

    /// A number that rises with every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }

    // Who and where.

    pub(crate) fn set_identity(&self, agent_id: &str, cluster: Option<&str>) {
        {
            let mut known = self.lock();
            agent_id.clone_into(&mut known.agent_id);
            cluster.unwrap_or_default().clone_into(&mut known.cluster);
        }
        self.changed();
    }

    pub(crate) fn agent_id(&self) -> String {
        self.lock().agent_id.clone()
    }

    pub(crate) fn cluster(&self) -> Option<String> {
        Some(self.lock().cluster.clone()).filter(|cluster| !cluster.is_empty())
    }

    pub(crate) fn phase(&self) -> (Phase, String) {
        let known = self.lock();
        (known.phase, known.reason.clone())
    }

    /// Takes over what the session says; returns the phase before.
    pub(crate) fn set_phase(&self, phase: Phase, reason: &str) -> Phase {
        let before = {
            let mut known = self.lock();
            if known.phase == phase && known.reason == reason {
                return phase;
            }
            reason.clone_into(&mut known.reason);
            known.draining |= phase == Phase::Draining;
            std::mem::replace(&mut known.phase, phase)
        };
        self.inner.metrics.connection(self.connection());
        self.changed();
        before
    }

    /// The Go agent's four words for the link.
    pub(crate) fn connection(&self) -> Connection {
        let known = self.lock();
        match known.phase {
            Phase::Active if known.last_accepted.is_some() => Connection::Connected,
            Phase::Active | Phase::Loading | Phase::Unregistered | Phase::Registering => {
                Connection::Connecting
            }
            Phase::Lapsed if known.last_accepted.is_none() => Connection::Connecting,
            Phase::Lapsed => Connection::Reconnecting,
            Phase::Refused | Phase::Draining => Connection::Disconnected,
        }
    }

    // Heartbeats.

    pub(crate) fn beat_done(&self, result: HeartbeatResult) {
        let metrics = &self.inner.metrics;
        metrics.heartbeats.inc();
        metrics
            .heartbeat_duration
            .observe(f64::from(result.duration_ms) / 1000.0);
        if result.accepted {
            metrics.heartbeat_success.inc();
        } else {
            metrics.heartbeat_errors.inc();
            metrics.heartbeat_failures.inc();
        }
        {
            let mut known = self.lock();
            if result.accepted {
                known.last_accepted = Some((Instant::now(), SystemTime::now()));
            }
            if known.heartbeats.len() >= HEARTBEATS {
                known.heartbeats.pop_front();
            }
            known.heartbeats.push_back(result);
        }
        metrics.connection(self.connection());
        self.changed();
    }

    /// How long ago, and when, a heartbeat was last accepted.
    pub(crate) fn last_accepted(&self) -> Option<(Duration, SystemTime)> {
        self.lock().last_accepted.map(|(at, wall)| (at.elapsed(), wall))
    }

    /// Heartbeats in a row that were not accepted.
    pub(crate) fn failures_in_a_row(&self) -> usize {
        self.lock()
            .heartbeats
            .iter()
            .rev()
            .take_while(|beat| !beat.accepted)
            .count()
    }

    pub(crate) fn heartbeat_metadata(&self) -> Metadata {
        let known = self.lock();
        let forwards = known
            .tunnel
            .fresh()
            .and_then(|report| report.status.as_ref())
            .map(|status| {
                let listening = proto::v1::ForwardState::Listening;
                let count = status
                    .forwards
                    .iter()
                    .filter(|forward| forward.state() == listening)
                    .count();
                u32::try_from(count).unwrap_or(u32::MAX)
            });
        Metadata {
            agent_version: self.inner.facts.agent_version.clone(),
            k8s_version: known.version.clone(),
            k8s_nodes: known.nodes,
            k8s_pods: known.pods,
            watches_open: known
                .proxy
                .fresh()
                .and_then(|r| r.status.as_ref())
                .map(|status| status.watches_open),
            forwards_active: forwards,
        }
    }

    /// Whether tunnel-sidecar says that it closed the tunnel because nothing moved.
    pub(crate) fn tunnel_asleep(&self) -> bool {
        let known = self.lock();
        let status = known.tunnel.fresh().and_then(|report| report.status.as_ref());
        status.is_some_and(|status| status.asleep)
    }

    /// `connected`, `connecting` or `disconnected`, as tunnel-sidecar itself says.
    pub(crate) fn tunnel_word(&self) -> &'static str {
        let known = self.lock();
        let state = known
            .tunnel
            .fresh()
            .and_then(|r| r.status.as_ref())
            .map(proto::v1::TunnelStatus::state);
        match state {
            Some(SessionState::Connected) => "connected",
            Some(SessionState::Connecting | SessionState::Backoff) => "connecting",
            Some(SessionState::Idle | SessionState::Unspecified) | None => "disconnected",
        }
    }

    pub(crate) fn agent_state(&self) -> AgentState {
        let ready = self.inner.conditions.ready();
        let mut own = self.inner.conditions.snapshot().into_iter();
        let own = own.find(|condition| condition.status == Status::False);
        let own = own.map_or_else(
            || "ready".to_owned(),
            |bad| format!("{}: {}", bad.name, bad.reason),
        );
        let known = self.lock();
        let core = ContainerState {
            name: self.inner.facts.build.name.to_owned(),
            ready,
            known: true,
            unknown_since: None,
            reason: own,
        };
        let proxy = known.proxy.fresh().and_then(|report| report.status.as_ref());
        AgentState {
            containers: vec![
                core,
                container_state(&known.tunnel),
                container_state(&known.proxy),
            ],
            proxy: proxy.map(|status| ProxyState {
                certificate_sha256: status.certificate_sha256.clone(),
                read_only: status.read_only,
            }),
            draining: known.draining,
        }
    }

    // The cluster.

    pub(crate) fn set_inventory(&self, version: Option<String>, nodes: Option<u64>, pods: Option<u64>) {
        self.inner.metrics.counts(nodes, pods);
        {
            let mut known = self.lock();
            if known.version == version && known.nodes == nodes && known.pods == pods {
                return;
            }
            (known.version, known.nodes, known.pods) = (version, nodes, pods);
        }
        self.changed();
    }

    pub(crate) fn inventory(&self) -> (Option<String>, Option<u64>, Option<u64>) {
        let known = self.lock();
        (known.version.clone(), known.nodes, known.pods)
    }

    // Reports of the siblings.

    /// A new report stream; the older one of the same sibling is told through the channel.
    pub(crate) fn open_stream(&self, sibling: Sibling) -> (u64, watch::Receiver<u64>) {
        let newest = match sibling {
            Sibling::Tunnel => &self.inner.newest_tunnel,
            Sibling::Proxy => &self.inner.newest_proxy,
        };
        let stream = match sibling {
            Sibling::Tunnel => self.lock().tunnel.open(),
            Sibling::Proxy => self.lock().proxy.open(),
        };
        newest.send_replace(stream);
        (stream, newest.subscribe())
    }

    pub(crate) fn take_tunnel(&self, stream: u64, report: TunnelReport) -> bool {
        let taken = self
            .lock()
            .tunnel
            .take(stream, report, self.now(), SystemTime::now());
        self.reports_changed();
        taken
    }

    pub(crate) fn take_proxy(&self, stream: u64, report: ProxyReport) -> bool {
        let taken = self
            .lock()
            .proxy
            .take(stream, report, self.now(), SystemTime::now());
        self.reports_changed();
        taken
    }

    pub(crate) fn close_stream(&self, sibling: Sibling, stream: u64) {
        match sibling {
            Sibling::Tunnel => self.lock().tunnel.close(stream, SystemTime::now()),
            Sibling::Proxy => self.lock().proxy.close(stream, SystemTime::now()),
        }
        self.reports_changed();
    }

    /// Marks siblings that fell silent.
    pub(crate) fn expire_reports(&self) {
        let (now, timeout) = (self.now(), self.inner.facts.report_timeout);
        let expired = {
            let mut known = self.lock();
            let tunnel = known.tunnel.expire(now, timeout);
            known.proxy.expire(now, timeout) || tunnel
        };
        if expired {
            self.reports_changed();
        }
    }

    fn reports_changed(&self) {
        {
            let known = self.lock();
            let metrics = &self.inner.metrics;
            metrics.container(known.tunnel.name, known.tunnel.known(), known.tunnel.ready());
            metrics.container(known.proxy.name, known.proxy.known(), known.proxy.ready());
            metrics.tunnel(known.tunnel.fresh().and_then(|report| report.status.as_ref()));
            metrics.proxy(known.proxy.fresh().and_then(|report| report.status.as_ref()));
        }
        self.changed();
    }

    /// Whether a sibling still holds its report stream, and whether one of them is on its way out.
    pub(crate) fn siblings(&self) -> (bool, bool) {
        let known = self.lock();
        let open = known.tunnel.is_open() || known.proxy.is_open();
        let tunnel_stops =
            known.tunnel.is_open() && known.tunnel.report().is_some_and(|report| report.draining);
        let proxy_stops = known.proxy.is_open() && known.proxy.report().is_some_and(|report| report.draining);
        (open, tunnel_stops || proxy_stops)
    }

    pub(crate) fn tunnel_connected(&self) -> Option<bool> {
        let known = self.lock();
        let status = known.tunnel.fresh()?.status.as_ref()?;
        match status.state() {
            SessionState::Connected => Some(true),
            SessionState::Connecting | SessionState::Backoff => Some(false),
            SessionState::Idle | SessionState::Unspecified => None,
        }
    }

    pub(crate) fn streams_open(&self) -> u32 {
        let known = self.lock();
        known
            .proxy
            .fresh()
            .and_then(|report| report.status.as_ref())
            .map_or(0, |status| status.streams_open)
    }

    pub(crate) fn proxy_known(&self) -> bool {
        self.lock().proxy.known()
    }

    /// Sets the figures that only time changes.
    pub(crate) fn tick_metrics(&self) {
        let since = self.last_accepted().map_or_else(|| self.now(), |(ago, _)| ago);
        let healthy = self.connection() == Connection::Connected;
        self.inner
            .metrics
            .clock(self.now(), if healthy { Duration::ZERO } else { since });
        self.inner.metrics.connection(self.connection());
    }

    /// Everything, as the local API tells it.
    pub(crate) fn agent(&self) -> Agent {
        let own_conditions = self.inner.conditions.snapshot();
        let known = self.lock();
        let facts = &self.inner.facts;
        let core = Container {
            name: facts.build.name.to_owned(),
            known: true,
            last_report: Some(SystemTime::now().into()),
            unknown_since: None,
            instance_id: self.inner.instance.clone(),
            build: Some(build(facts.build)),
            ready: self.inner.conditions.ready(),
            conditions: own_conditions.iter().map(condition).collect(),
            instances_seen: 1,
        };
        let count = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or(-1);
        Agent {
            agent_id: known.agent_id.clone(),
            cluster_uuid: known.cluster.clone(),
            cluster_name: facts.cluster_name.clone(),
            phase: wire_phase(known.phase).into(),
            phase_reason: known.reason.clone(),
            control_plane: facts.control_plane.clone(),
            started_at: Some(self.inner.started_at.into()),
            conditions: own_conditions.iter().map(condition).collect(),
            containers: vec![core, container(&known.tunnel), container(&known.proxy)],
            heartbeats: known.heartbeats.iter().cloned().collect(),
            nodes: count(known.nodes),
            pods: count(known.pods),
            kubernetes_version: known.version.clone().unwrap_or_default(),
            tunnel: known.tunnel.report().and_then(|report| report.status.clone()),
            proxy: known.proxy.report().and_then(|report| report.status.clone()),
        }
    }
}
