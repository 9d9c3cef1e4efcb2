//! What the control plane may ask over HTTP through the tunnel (generation G1). What this agent does not do is
//! refused with a sentence.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::{App, status};
use crate::wire::one_line;

/// Message types that have an answer.
const SUPPORTED: [&str; 4] = ["ping", "get_status", "get_metrics", "heartbeat"];

pub(super) async fn status(State(app): State<App>) -> Json<Value> {
    Json(status_value(&app))
}

fn status_value(app: &App) -> Value {
    let hub = &app.web.hub;
    let facts = hub.facts();
    let (version, nodes, pods) = hub.inventory();
    json!({
        "agent": {
            "id": hub.agent_id(),
            "name": facts.agent_name,
            "cluster": facts.cluster_name,
            "cluster_id": hub.cluster(),
            "version": facts.agent_version,
        },
        "cluster": { "version": version, "nodes": nodes, "pods": pods },
        "connection_state": hub.connection().as_str(),
        "tunnel_status": hub.tunnel_word(),
        "containers": hub.agent_state().containers,
        "timestamp": status::now(),
    })
}

/// The control plane's sign of life to us: it is answered with ours.
pub(super) async fn heartbeat(State(app): State<App>) -> Json<Value> {
    Json(status::health_value(&app.web.hub))
}

pub(super) async fn message(State(app): State<App>, body: Bytes) -> Response {
    let message: Value = match serde_json::from_slice(&body) {
        Ok(message) => message,
        Err(_) => return error(StatusCode::BAD_REQUEST, "the message is no JSON"),
    };
    let Some(kind) = message.get("type").and_then(Value::as_str) else {
        return error(StatusCode::BAD_REQUEST, "the message has no type");
    };
    match answer(&app, kind) {
        Some(answer) => Json(answer).into_response(),
        None => error(
            StatusCode::NOT_IMPLEMENTED,
            &format!(
                "messages of type {:?} are not supported; supported: {}",
                one_line(kind),
                SUPPORTED.join(", ")
            ),
        ),
    }
}

/// The answer to a message, here and on `/ws`.
pub(super) fn answer(app: &App, kind: &str) -> Option<Value> {
    let (kind, data) = match kind {
        "ping" => ("pong", Value::Null),
        "get_status" => ("status_response", status_value(app)),
        "get_metrics" => ("metrics_response", status::runtime_value(&app.web.hub)),
        "heartbeat" => ("heartbeat_ack", status::health_value(&app.web.hub)),
        _ => return None,
    };
    Some(json!({ "type": kind, "timestamp": status::now(), "data": data }))
}

pub(super) async fn command(Path(runner): Path<String>) -> Response {
    error(
        StatusCode::NOT_IMPLEMENTED,
        &format!(
            "runner {:?}: this agent runs no commands; use the Kubernetes API at /api/k8s/ or /ws/k8s, where policy \
             and audit apply",
            one_line(&runner)
        ),
    )
}

fn error(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
