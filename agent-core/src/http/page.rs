//! The page: what it shows is made from the hub, what it asks for goes to the link and to tunnel-sidecar.

use std::time::Duration;

use dashboard::{
    Action, Agent, At, Condition, Container, Door, Feed, Forward, ForwardState, Heartbeat, OpenStream, Page,
    Phase, Proxy, SessionState, Snapshot, Status, Tunnel,
};
use proto::v1::{self, proxy_client::ProxyClient, tunnel_client::TunnelClient};
use runtime::local::{self, LocalChannel};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Web, auth};
use crate::hub::Hub;

/// Changes are shown together, at most this often.
const GATHER: Duration = Duration::from_millis(250);
/// Times on the page ("last heard …") move on also when nothing happens.
const REFRESH: Duration = Duration::from_secs(5);
/// As many streams as the page shows.
const SHOWN: usize = 50;
/// A sibling answers a wish at once.
const ASK: Duration = Duration::from_secs(5);

/// The page with its actions, and the task that feeds it.
pub(super) fn make(web: &Web) -> Page {
    let (feed, snapshots) = dashboard::feed(snapshot(&web.hub, Vec::new()));
    let streams = local::channel(&web.proxy_grpc, web.proxy_token.clone(), crate::BUILD)
        .map(ProxyClient::new)
        .inspect_err(|error| warn!(%error, "the page will show no open streams"));
    let (hub, leaving) = (web.hub.clone(), web.leaving.clone());
    web.supervisor
        .spawn("page-feed", publish(feed, hub, streams.ok(), leaving));
    let operator = web.operator.clone();
    let (beat, register) = (web.commands.clone(), web.commands.clone());
    let (address, token) = (web.tunnel_grpc.clone(), web.tunnel_token.clone());
    Page::new(snapshots, move |candidate| auth::is_token(&operator, candidate))
        .allow_hosts(web.config.allowed_hosts.clone())
        .action(Action::Heartbeat, move || {
            let commands = beat.clone();
            async move {
                let result = commands.beat().await?;
                if result.accepted {
                    Ok(format!("accepted, {} ms", result.duration_ms))
                } else {
                    Err(result.error)
                }
            }
        })
        .action(Action::Reregister, move || {
            let commands = register.clone();
            async move {
                commands
                    .register()
                    .await
                    .map(|cluster| format!("registered as cluster {cluster}"))
            }
        })
        .action(Action::Reconnect, move || {
            let (address, token) = (address.clone(), token.clone());
            async move {
                let channel =
                    local::channel(&address, token, crate::BUILD).map_err(|error| error.to_string())?;
                let request = v1::ReconnectRequest {
                    reason: "asked for on the page".to_owned(),
                };
                match timeout(ASK, TunnelClient::new(channel).reconnect(request)).await {
                    Ok(Ok(_)) => Ok("tunnel-sidecar connects anew".to_owned()),
                    Ok(Err(status)) => Err(format!("tunnel-sidecar: {}", status.message())),
                    Err(_) => Err("tunnel-sidecar does not answer".to_owned()),
                }
            }
        })
}

async fn publish(
    feed: Feed,
    hub: Hub,
    mut proxy: Option<ProxyClient<LocalChannel>>,
    leaving: CancellationToken,
) {
    let mut changes = hub.changes();
    loop {
        let streams = match &mut proxy {
            Some(proxy) if hub.streams_open() > 0 => open_streams(proxy).await,
            Some(_) | None => Vec::new(),
        };
        feed.publish(snapshot(&hub, streams));
        let next = Instant::now() + REFRESH;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
            () = leaving.cancelled() => return,
        }
        sleep(GATHER).await;
        changes.mark_unchanged();
    }
}

/// The streams that k8s-proxy holds at this moment; none while it does not answer.
async fn open_streams(proxy: &mut ProxyClient<LocalChannel>) -> Vec<OpenStream> {
    match timeout(ASK, proxy.list_streams(v1::ListStreamsRequest {})).await {
        Ok(Ok(answer)) => answer
            .into_inner()
            .streams
            .iter()
            .take(SHOWN)
            .map(stream)
            .collect(),
        Ok(Err(status)) => {
            debug!(%status, "k8s-proxy does not list its streams");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn snapshot(hub: &Hub, streams: Vec<OpenStream>) -> Snapshot {
    let agent = hub.agent();
    Snapshot {
        containers: agent.containers.iter().map(container).collect(),
        heartbeats: agent.heartbeats.iter().map(heartbeat).collect(),
        tunnel: agent.tunnel.as_ref().map(tunnel).unwrap_or_default(),
        proxy: agent.proxy.as_ref().map(proxy).unwrap_or_default(),
        streams,
        agent: Agent {
            phase: phase(agent.phase()),
            id: agent.agent_id.into(),
            cluster_uuid: agent.cluster_uuid.into(),
            cluster_name: agent.cluster_name.into(),
            reason: agent.phase_reason.into(),
            control_plane: agent.control_plane.into(),
            started: At::from(hub.started_at()),
            version: hub.facts().build.version.into(),
            nodes: u64::try_from(agent.nodes).ok(),
            pods: u64::try_from(agent.pods).ok(),
            kubernetes_version: agent.kubernetes_version.into(),
        },
    }
}

fn stream(stream: &v1::Stream) -> OpenStream {
    OpenStream {
        id: stream.id,
        door: stream.door.as_str().into(),
        user: stream.user.as_str().into(),
        method: stream.method.as_str().into(),
        path: stream.path.as_str().into(),
        watch: stream.watch,
        opened: at(stream.opened.as_ref()),
        events: stream.events,
        bytes: stream.bytes,
        rewatches: stream.rewatches,
    }
}

fn at(timestamp: Option<&prost_types::Timestamp>) -> Option<At> {
    timestamp.map(|timestamp| At::from_parts(timestamp.seconds, timestamp.nanos))
}

fn phase(phase: v1::Phase) -> Phase {
    match phase {
        v1::Phase::Unspecified | v1::Phase::Loading => Phase::Loading,
        v1::Phase::Unregistered => Phase::Unregistered,
        v1::Phase::Registering => Phase::Registering,
        v1::Phase::Active => Phase::Active,
        v1::Phase::Lapsed => Phase::Lapsed,
        v1::Phase::Refused => Phase::Refused,
        v1::Phase::Draining => Phase::Draining,
    }
}

fn container(container: &v1::Container) -> Container {
    let version = container
        .build
        .as_ref()
        .map(|build| build.version.as_str())
        .unwrap_or_default();
    Container {
        name: container.name.as_str().into(),
        known: container.known,
        unknown_since: at(container.unknown_since.as_ref()),
        last_report: at(container.last_report.as_ref()),
        ready: container.ready,
        conditions: container.conditions.iter().map(condition).collect(),
        instances_seen: container.instances_seen,
        version: version.into(),
    }
}

fn condition(condition: &v1::Condition) -> Condition {
    Condition {
        name: condition.name.as_str().into(),
        status: match condition.status() {
            v1::ConditionStatus::True => Status::True,
            v1::ConditionStatus::False => Status::False,
            v1::ConditionStatus::NotApplicable | v1::ConditionStatus::Unspecified => Status::NotApplicable,
        },
        reason: condition.reason.as_str().into(),
        since: at(condition.since.as_ref()).unwrap_or_default(),
    }
}

fn heartbeat(beat: &v1::HeartbeatResult) -> Heartbeat {
    Heartbeat {
        at: at(beat.at.as_ref()).unwrap_or_default(),
        accepted: beat.accepted,
        status: u16::try_from(beat.http_status).unwrap_or_default(),
        ms: beat.duration_ms,
        error: beat.error.as_str().into(),
    }
}

fn tunnel(status: &v1::TunnelStatus) -> Tunnel {
    Tunnel {
        state: match status.state() {
            v1::SessionState::Unspecified | v1::SessionState::Idle => SessionState::Idle,
            v1::SessionState::Connecting => SessionState::Connecting,
            v1::SessionState::Connected => SessionState::Connected,
            v1::SessionState::Backoff => SessionState::Backoff,
        },
        reason: status.reason.as_str().into(),
        server: status.server.as_str().into(),
        fingerprint: status.fingerprint.as_str().into(),
        connected_since: at(status.connected_since.as_ref()),
        next_retry: at(status.next_retry.as_ref()),
        connects: status.connects_total,
        round_trip_us: Some(status.round_trip_us).filter(|us| *us > 0),
        forwards: status.forwards.iter().map(forward).collect(),
    }
}

fn forward(status: &v1::ForwardStatus) -> Forward {
    Forward {
        name: status.name.as_str().into(),
        remote_port: u16::try_from(status.remote_port).unwrap_or_default(),
        target: status.target.as_str().into(),
        dials: status.dials.as_str().into(),
        state: match status.state() {
            v1::ForwardState::Unspecified | v1::ForwardState::Pending => ForwardState::Pending,
            v1::ForwardState::Listening => ForwardState::Listening,
            v1::ForwardState::Failed => ForwardState::Failed,
            v1::ForwardState::Refused => ForwardState::Refused,
        },
        reason: status.reason.as_str().into(),
        connections_open: status.connections_open,
        connections_total: status.connections_total,
        bytes_in: status.bytes_in,
        bytes_out: status.bytes_out,
    }
}

fn proxy(status: &v1::ProxyStatus) -> Proxy {
    Proxy {
        doors: status.doors.iter().map(door).collect(),
        streams_open: status.streams_open,
        watches_open: status.watches_open,
        requests: status.requests_total,
        refused: status.refused_total,
        rewatched: status.rewatched_total,
        certificate_sha256: status.certificate_sha256.as_str().into(),
        read_only: status.read_only,
        upstream: status.upstream.as_str().into(),
    }
}

fn door(status: &v1::DoorStatus) -> Door {
    Door {
        name: status.name.as_str().into(),
        address: status.address.as_str().into(),
        open: status.open,
        reason: status.reason.as_str().into(),
        since: at(status.since.as_ref()),
    }
}
