//! The state of the agent in the seeds' JSON: every value is looked up when it is asked for.

use std::{fs, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use runtime::conditions::Status;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::App;
use crate::{hub::Hub, metrics::Connection, reports::timestamp};

/// `statm` counts pages of this size on every platform we build for.
const PAGE: u64 = 4096;
const MIB: f64 = 1024.0 * 1024.0;

pub(super) async fn health(State(app): State<App>) -> Json<Value> {
    Json(health_value(&app.web.hub))
}

/// Also what `/ws` and the event stream tell.
pub(super) fn health_value(hub: &Hub) -> Value {
    let state = hub.connection();
    json!({
        "status": if hub.conditions().ready() { "healthy" } else { "degraded" },
        "timestamp": now(),
        "version": hub.facts().build.version,
        "connected": state == Connection::Connected,
        "registered": hub.cluster().is_some(),
        "connection_state": state.as_str(),
        "agent_id": hub.agent_id(),
        "cluster_id": hub.cluster(),
        "tunnel_status": hub.tunnel_word(),
        "containers": hub.agent_state().containers,
    })
}

pub(super) async fn ready(State(app): State<App>) -> Response {
    let hub = &app.web.hub;
    let ready = hub.conditions().ready();
    let mut body = json!({
        "status": if ready { "ready" } else { "not_ready" },
        "healthy": ready,
        "timestamp": now(),
        "consecutive_failures": hub.failures_in_a_row(),
        "conditions": conditions(hub),
    });
    merge(&mut body, connection(hub));
    if !ready {
        let bad = hub
            .conditions()
            .snapshot()
            .into_iter()
            .find(|c| c.status == Status::False);
        let reason = bad.map(|bad| format!("{}: {}", bad.name, bad.reason));
        merge(&mut body, json!({ "reason": reason }));
    }
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(body)).into_response()
}

pub(super) async fn detailed(State(app): State<App>) -> Json<Value> {
    let hub = &app.web.hub;
    let facts = hub.facts();
    let process = process();
    let mut health = connection(hub);
    merge(
        &mut health,
        json!({
            "healthy": hub.conditions().ready(),
            "consecutive_failures": hub.failures_in_a_row(),
            "truthful_probes_enabled": true,
        }),
    );
    let agent = hub.agent();
    let tunnel = agent.tunnel.unwrap_or_default();
    let (version, nodes, pods) = hub.inventory();
    Json(json!({
        "status": if hub.conditions().ready() { "healthy" } else { "degraded" },
        "agent": {
            "version": facts.build.version,
            "uptime": duration(hub.now()),
            "start_time": timestamp(hub.started_at()),
            "agent_id": hub.agent_id(),
            "cluster_id": hub.cluster(),
            "name": facts.agent_name,
            "cluster_name": facts.cluster_name,
        },
        "cluster": { "version": version, "nodes": nodes, "pods": pods },
        "tunnel": {
            "type": "chisel",
            "status": hub.tunnel_word(),
            "reason": tunnel.reason,
            "server": tunnel.server,
            "forwards": tunnel.forwards.iter().map(|forward| json!({
                "name": forward.name,
                "remote_port": forward.remote_port,
                "target": forward.target,
                "state": forward.state().as_str_name().trim_start_matches("FORWARD_STATE_").to_lowercase(),
                "reason": forward.reason,
                "connections": forward.connections_open,
            })).collect::<Vec<_>>(),
        },
        "features": feature_map(&app),
        "connectivity": { "method": "http", "status": hub.connection().as_str() },
        "runtime": { "memory_mb": process.rss_mb, "goroutines": process.tasks, "gc_cycles": 0 },
        "connection_health": health,
        "conditions": conditions(hub),
        "containers": hub.agent_state().containers,
        "timestamp": now(),
    }))
}

pub(super) async fn features(State(app): State<App>) -> Json<Value> {
    Json(json!({ "features": feature_map(&app), "timestamp": now() }))
}

fn feature_map(app: &App) -> Value {
    let hub = &app.web.hub;
    let agent = hub.agent();
    let tunnel = agent.tunnel.unwrap_or_default();
    let proxy = agent.proxy.unwrap_or_default();
    json!({
        "portainer_tunnel": hub.tunnel_word() == "connected",
        "multi_port_forward": tunnel.forwards.len() > 1,
        "direct_k8s_access": hub.proxy_known() && proxy.doors.iter().any(|door| door.open),
        "metrics": true,
        "health_monitoring": true,
        "runtime_metrics": true,
        "websocket": app.web.config.websocket,
        "sse": app.web.config.sse,
        "dashboard": app.web.config.dashboard,
        "runner_commands": false,
        "log_streaming": false,
        "feature_version": hub.facts().build.version,
    })
}

pub(super) async fn runtime(State(app): State<App>) -> Json<Value> {
    Json(runtime_value(&app.web.hub))
}

/// The Go agent's names; what a program without a garbage collector does not have is zero because it is.
pub(super) fn runtime_value(hub: &Hub) -> Value {
    let process = process();
    json!({
        "memory": {
            "alloc_mb": process.rss_mb,
            "sys_mb": process.virtual_mb,
            "rss_mb": process.rss_mb,
        },
        "gc": { "num_gc": 0, "pause_total_ns": 0, "last_gc": null },
        "runtime": {
            "goroutines": process.tasks,
            "tasks": process.tasks,
            "cpus": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            "rust_version": hub.facts().build.rustc,
        },
        "uptime": duration(hub.now()),
        "timestamp": now(),
    })
}

/// Tries the links now, instead of telling what was last known.
pub(super) async fn connectivity(State(app): State<App>) -> Json<Value> {
    let started = Instant::now();
    let (kubernetes, beat) = tokio::join!(app.web.door.version(), app.web.commands.beat());
    let kubernetes_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let kubernetes_ok = kubernetes.is_ok();
    let (beat_ok, beat_note, beat_ms) = match beat {
        Ok(result) => (result.accepted, result.error, Some(result.duration_ms)),
        Err(reason) => (false, reason, None),
    };
    let tunnel = app.web.hub.tunnel_connected();
    let all = kubernetes_ok && beat_ok && tunnel != Some(false);
    Json(json!({
        "overall_status": if all { "healthy" } else { "degraded" },
        "tests": {
            "kubernetes_api": {
                "status": kubernetes_ok,
                "method": "GET /version through k8s-proxy",
                "note": match kubernetes {
                    Ok(info) => info.git_version,
                    Err(error) => error.to_string(),
                },
                "duration_ms": kubernetes_ms,
            },
            "control_plane": {
                "status": beat_ok,
                "method": "heartbeat",
                "note": beat_note,
                "duration_ms": beat_ms,
            },
            "tunnel": { "status": tunnel, "method": "report of tunnel-sidecar", "note": app.web.hub.tunnel_word() },
        },
        "timestamp": now(),
    }))
}

fn connection(hub: &Hub) -> Value {
    let state = hub.connection();
    let last = hub.last_accepted();
    json!({
        "connected": state == Connection::Connected,
        "registered": hub.cluster().is_some(),
        "state": state.as_str(),
        "connection_state": state.as_str(),
        "last_heartbeat": last.map(|(_, at)| timestamp(at)),
        "time_since_heartbeat": last.map(|(ago, _)| duration(ago)),
    })
}

fn conditions(hub: &Hub) -> Vec<Value> {
    let list = hub.conditions().snapshot().into_iter();
    list.map(|condition| {
        json!({
            "name": condition.name,
            "status": condition.status.as_str(),
            "reason": condition.reason,
            "since": timestamp(condition.since),
        })
    })
    .collect()
}

struct Process {
    rss_mb: f64,
    virtual_mb: f64,
    tasks: usize,
}

fn process() -> Process {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm
        .split(' ')
        .map(|pages| pages.parse::<u64>().unwrap_or_default());
    let mut mb = || pages.next().unwrap_or_default().saturating_mul(PAGE) as f64 / MIB;
    let (virtual_mb, rss_mb) = (mb(), mb());
    Process {
        rss_mb,
        virtual_mb,
        tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
    }
}

pub(super) fn now() -> String {
    timestamp(std::time::SystemTime::now())
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}
