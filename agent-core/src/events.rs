//! Kubernetes Events on our own Pod, for `kubectl describe pod`. Best effort and rate-limited.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
    jiff::Timestamp,
};
use runtime::{secret::hex, supervise::Supervisor};
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

use crate::{config::PodConfig, hub::Hub, kubernetes::Door};

/// A flapping link must not fill the event store: one event per kind and minute.
const PAUSE: Duration = Duration::from_secs(60);
/// More than this many at once is a storm; the rest is in the log anyway.
const QUEUE: usize = 8;
/// Time for k8s-proxy to come up before its absence is news.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EventKind {
    Registered,
    Refused,
    TunnelUp,
    TunnelDown,
    ProxyLost,
}

impl EventKind {
    fn reason(self) -> &'static str {
        match self {
            Self::Registered => "Registered",
            Self::Refused => "Refused",
            Self::TunnelUp => "TunnelUp",
            Self::TunnelDown => "TunnelDown",
            Self::ProxyLost => "ProxyLost",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Registered | Self::TunnelUp => "Normal",
            Self::Refused | Self::TunnelDown | Self::ProxyLost => "Warning",
        }
    }
}

/// Where events are handed in; never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    queue: mpsc::Sender<(EventKind, String)>,
}

impl Events {
    pub(crate) fn new() -> (Self, mpsc::Receiver<(EventKind, String)>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue }, receiver)
    }

    pub(crate) fn emit(&self, kind: EventKind, message: &str) {
        if self.queue.try_send((kind, message.to_owned())).is_err() {
            debug!(?kind, "an event is dropped: too many at once");
        }
    }
}

/// Sends what is handed in until the drain is over. Outside a pod there is nothing to hang events on.
pub(crate) async fn send(
    mut queue: mpsc::Receiver<(EventKind, String)>,
    pod: PodConfig,
    namespace: String,
    door: Door,
    supervisor: Supervisor,
) {
    let mut last: BTreeMap<EventKind, Instant> = BTreeMap::new();
    loop {
        let (kind, message) = tokio::select! {
            event = queue.recv() => match event {
                Some(event) => event,
                None => return,
            },
            () = supervisor.draining() => return,
        };
        let Some(name) = &pod.name else { continue };
        let now = Instant::now();
        if last.get(&kind).is_some_and(|at| now.duration_since(*at) < PAUSE) {
            continue;
        }
        last.insert(kind, now);
        let namespace = pod.namespace.as_deref().unwrap_or(&namespace);
        let event = event(kind, &message, namespace, name, pod.uid.as_deref());
        if let Err(error) = door.create_event(namespace, &event).await {
            debug!(%error, ?kind, "an event could not be written");
        }
    }
}

/// Watches what the siblings report and tells of the changes that matter.
pub(crate) async fn watch(hub: Hub, events: Events, supervisor: Supervisor) {
    let mut changes = hub.changes();
    let (mut tunnel, mut proxy) = (None, false);
    let started = Instant::now();
    loop {
        tokio::select! {
            Ok(()) = changes.changed() => {}
            () = supervisor.draining() => return,
        }
        let connected = hub.tunnel_connected();
        match (tunnel, connected) {
            (Some(true), Some(false)) => {
                events.emit(EventKind::TunnelDown, "the tunnel is down; it is dialled again")
            }
            (None | Some(false), Some(true)) => events.emit(EventKind::TunnelUp, "the tunnel is connected"),
            _ => {}
        }
        // An idle or silent tunnel is neither up nor down: what counts is what it was before.
        tunnel = connected.or(tunnel);
        let known = hub.proxy_known();
        if proxy && !known && started.elapsed() >= PATIENCE {
            events.emit(
                EventKind::ProxyLost,
                "k8s-proxy does not report; the Kubernetes API is not reachable from outside",
            );
        }
        proxy = known;
    }
}

fn event(kind: EventKind, message: &str, namespace: &str, pod: &str, uid: Option<&str>) -> Event {
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
    let id = hex(&rand::random::<[u8; 8]>());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{pod}.{id}")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        },
        reason: Some(kind.reason().to_owned()),
        type_: Some(kind.kind().to_owned()),
        message: Some(message.chars().take(1000).collect()),
        action: Some(kind.reason().to_owned()),
        count: Some(1),
        event_time: Some(MicroTime(now)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        reporting_component: Some("pipeops.io/agent-core".to_owned()),
        reporting_instance: Some(pod.to_owned()),
        source: Some(EventSource {
            component: Some("agent-core".to_owned()),
            host: None,
        }),
        ..Event::default()
    }
}
