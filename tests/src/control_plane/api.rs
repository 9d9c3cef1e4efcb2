//! What agents call: registration, heartbeat, the tunnel's status, the WebSocket of the proxy.
//!
//! Every request passes the same gate: it is counted, a fault may strike, then its token is checked.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State as Shared},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    book::{Heartbeat, Registered, Registration, rfc3339},
    config::{KnownAgent, TunnelApi, TunnelWish, Vocabulary},
    faults::{Effect, Route},
    link::http2::SUBPROTOCOL,
    links, prove,
    secrets::{bearer, same},
    state::State,
};

/// Larger than any heartbeat with every block that upstream knows.
const MAX_BODY: usize = 1024 * 1024;
/// The workspace of every cluster; agents expect a number.
const WORKSPACE: u32 = 1;

type App = Arc<State>;

/// The routes of agents.
pub(super) fn router(state: &App) -> Router {
    let gate = |route: Route, label: &'static str| {
        let gate = Gate { route, label };
        (Extension(gate), from_fn_with_state(Arc::clone(state), pass))
    };
    const REGISTER: &str = "/api/v1/clusters/agent/register";
    const HEARTBEAT: &str = "/api/v1/clusters/agent/{id}/heartbeat";
    const PROXY: &str = "/api/v1/clusters/agent/{id}/proxy";
    const SEEDS: &str = "/api/v1/tunnel/status";
    const OLDER: &str = "/api/agents/{id}/tunnel/status";
    let mut router = Router::new()
        .route(
            REGISTER,
            post(register).layer(gate(Route::Register, "POST /api/v1/clusters/agent/register")),
        )
        .route(
            HEARTBEAT,
            post(heartbeat).layer(gate(
                Route::Heartbeat,
                "POST /api/v1/clusters/agent/{id}/heartbeat",
            )),
        )
        .route(
            PROXY,
            get(proxy).layer(gate(Route::ProxyDial, "GET /api/v1/clusters/agent/{id}/proxy")),
        );
    if state.config.tunnel_api != TunnelApi::Older {
        let gate = gate(Route::TunnelStatus, "GET /api/v1/tunnel/status");
        router = router.route(SEEDS, get(seeds_status).layer(gate));
    }
    if state.config.tunnel_api != TunnelApi::Seeds {
        let gate = gate(Route::TunnelStatus, "GET /api/agents/{id}/tunnel/status");
        router = router.route(OLDER, get(older_status).layer(gate));
    }
    router
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::clone(state))
}

#[derive(Clone, Copy)]
struct Gate {
    route: Route,
    label: &'static str,
}

async fn pass(Shared(state): Shared<App>, request: Request, next: Next) -> Response {
    let Some(Gate { route, label }) = request.extensions().get::<Gate>().copied() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    state.book().asked(label);
    let mut clearing = state.faults.clearing();
    let effect = state.faults.strike(route);
    if effect == Some(Effect::Hang) {
        // The sender lives as long as the state, so this ends by a clearing only.
        let _ = clearing.changed().await;
    }
    // The proxy has a token of its own, which its handler checks.
    let known = route == Route::ProxyDial || state.accepts(bearer(request.headers()));
    let response = match effect {
        Some(Effect::Refuse(answer)) => {
            if route == Route::Register {
                attempt(&state, None, answer.status, Value::Null);
            }
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let text = answer
                .error
                .unwrap_or_else(|| status.canonical_reason().unwrap_or("refused").to_owned());
            let mut response = error(status, &text);
            if let Some(seconds) = answer.retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            response
        }
        _ if !known => {
            if route == Route::Register {
                attempt(&state, None, StatusCode::UNAUTHORIZED.as_u16(), Value::Null);
            }
            error(StatusCode::UNAUTHORIZED, "invalid token")
        }
        _ => next.run(request).await,
    };
    state.book().answered(label, response.status().as_u16());
    response
}

fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "success": false, "error": text }))).into_response()
}

fn attempt(state: &State, cluster: Option<&str>, status: u16, body: Value) {
    let attempt = Registration {
        received_at: SystemTime::now(),
        at: Instant::now(),
        status,
        body,
    };
    state.book().attempt(cluster, attempt);
}

async fn register(Shared(state): Shared<App>, body: Bytes) -> Response {
    let (status, id, answer) = match serde_json::from_slice::<Value>(&body) {
        Ok(told) => {
            let (status, id, answer) = registered(&state, &told);
            attempt(&state, id.as_deref(), status.as_u16(), told);
            (status, id, answer)
        }
        Err(reason) => {
            attempt(&state, None, StatusCode::BAD_REQUEST.as_u16(), Value::Null);
            (
                StatusCode::BAD_REQUEST,
                None,
                json!({ "success": false, "error": format!("no JSON: {reason}") }),
            )
        }
    };
    tracing::info!(%status, cluster = id.as_deref().unwrap_or("none"), "register");
    (status, Json(answer)).into_response()
}

fn registered(state: &State, told: &Value) -> (StatusCode, Option<String>, Value) {
    let text = |key: &str| {
        told.get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let refuse = |status, text: &str| (status, None, json!({ "success": false, "error": text }));
    let Some(agent_id) = text("agent_id") else {
        return refuse(StatusCode::BAD_REQUEST, "agent_id is missing");
    };
    let (name, hint) = (text("name").unwrap_or(agent_id), text("cluster_id"));
    let mut book = state.book();
    let registered = book.register(agent_id, name, hint, SystemTime::now(), state.config.tunnel);
    let Some((cluster, registered)) = registered else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many clusters");
    };
    let id = cluster.id.clone();
    if cluster.forwards.is_empty()
        && state.chisel.is_some()
        && let Err(reason) = state.allot(&mut book, &id, &state.config.forwards, false)
    {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string());
    }
    let status = match (registered, state.config.known_agent) {
        (Registered::New, _) => StatusCode::CREATED,
        (Registered::Again, KnownAgent::Ok) => StatusCode::OK,
        (Registered::Again, KnownAgent::Conflict) => StatusCode::CONFLICT,
    };
    let answer = book
        .cluster(&id)
        .map_or(Value::Null, |cluster| welcome(state, cluster, told, status));
    (status, Some(id), answer)
}

/// The answer in all three shapes that agents were ever taught: flat, nested in `cluster`, and legacy in `data`.
fn welcome(state: &State, cluster: &super::book::Cluster, told: &Value, status: StatusCode) -> Value {
    let registered_at = rfc3339(cluster.registered_at);
    let api_server = state.front_url(&cluster.id);
    let tunnel_url = state
        .chisel
        .as_ref()
        .map(|chisel| chisel.url(&state.config.public_host));
    let told = |key: &str| told.get(key).cloned().unwrap_or_default();
    let mut answer = json!({
        "success": status != StatusCode::CONFLICT,
        "cluster_id": cluster.id, "cluster_uuid": cluster.id, "name": cluster.name, "status": "active",
        "agent_id": cluster.agent_id, "api_server": api_server, "tunnel_url": tunnel_url,
        "workspace_id": WORKSPACE, "registered_at": registered_at,
        "cluster": {
            "id": cluster.id, "uuid": cluster.id, "name": cluster.name, "status": "active",
            "tunnel_status": "disconnected", "agent_id": cluster.agent_id, "agent_hostname": told("hostname"),
            "agent_version": told("agent_version"), "cloud_provider": told("cloud_provider"),
            "region": told("region"), "cluster_version": told("k8s_version"), "workspace_id": WORKSPACE,
            "registered_at": registered_at, "token": "", "api_server": api_server,
        },
        "data": {
            "cluster_id": cluster.id, "status": "active", "tunnel_url": tunnel_url, "registered_at": registered_at,
        },
    });
    if state.config.hand_out_proxy {
        answer["proxy_url"] = state.proxy_url(&cluster.id).into();
        answer["proxy_token"] = cluster.proxy_token.clone().into();
    }
    if status == StatusCode::CONFLICT {
        answer["error"] = "cluster already registered".into();
    }
    answer
}

async fn heartbeat(Shared(state): Shared<App>, Path(id): Path<String>, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice(&body) else {
        return error(StatusCode::BAD_REQUEST, "no JSON");
    };
    let received_at = SystemTime::now();
    if !state.book().heartbeat(
        &id,
        Heartbeat {
            received_at,
            at: Instant::now(),
            body,
        },
    ) {
        return error(StatusCode::NOT_FOUND, "cluster not registered");
    }
    let mut answer =
        json!({ "success": true, "status": "ok", "cluster_id": id, "received_at": rfc3339(received_at) });
    if let Some(limits) = state
        .book()
        .cluster(&id)
        .and_then(|cluster| cluster.limits.clone())
    {
        answer["proxy_limits"] = limits;
    }
    Json(answer).into_response()
}

#[derive(Deserialize)]
struct AgentQuery {
    #[serde(default)]
    agent_id: String,
}

async fn seeds_status(Shared(state): Shared<App>, Query(query): Query<AgentQuery>) -> Response {
    status(
        &state,
        &query.agent_id,
        state.config.vocabulary != Vocabulary::Older,
    )
}

async fn older_status(Shared(state): Shared<App>, Path(agent_id): Path<String>) -> Response {
    status(&state, &agent_id, state.config.vocabulary == Vocabulary::Seeds)
}

fn status(state: &State, agent_id: &str, seeds: bool) -> Response {
    let book = state.book();
    let Some(cluster) = book.cluster_of(agent_id) else {
        return error(StatusCode::NOT_FOUND, "agent not registered");
    };
    let tunnel = state.tunnel(cluster);
    let address = if seeds { "tunnel_url" } else { "tunnel_server_addr" };
    let (idle, required, active) = if seeds {
        ("idle", "ready", "ready")
    } else {
        ("IDLE", "REQUIRED", "ACTIVE")
    };
    let Some(chisel) = state
        .chisel
        .as_ref()
        .filter(|_| cluster.wish == TunnelWish::Required)
    else {
        let poll_frequency = state.config.poll_frequency;
        return Json(json!({ "status": idle, "forwards": [], "poll_frequency": poll_frequency }))
            .into_response();
    };
    let up = !tunnel.forwards.is_empty() && tunnel.forwards.iter().all(|forward| forward.listening);
    let forwards = tunnel
        .forwards
        .iter()
        .map(|forward| json!({"name": forward.name, "remote_port": forward.port}));
    // Agents that do not know this name have no such forward, and leave it out.
    let echo = cluster
        .echo
        .map(|port| json!({"name": prove::ECHO, "remote_port": port}));
    Json(json!({
        "status": if up { active } else { required },
        "forwards": forwards.chain(echo).collect::<Vec<_>>(),
        "credentials": STANDARD.encode(chisel.credentials()),
        "poll_frequency": state.config.poll_frequency,
        address: tunnel.server,
        "server_fingerprint": tunnel.fingerprint,
    }))
    .into_response()
}

async fn proxy(Shared(state): Shared<App>, Path(id): Path<String>, mut request: Request) -> Response {
    let token = state
        .book()
        .cluster(&id)
        .filter(|cluster| cluster.known)
        .map(|cluster| cluster.proxy_token.clone());
    let accepted = token
        .zip(bearer(request.headers()))
        .is_some_and(|(token, given)| same(&token, given));
    if !accepted {
        return error(StatusCode::UNAUTHORIZED, "invalid proxy token");
    }
    let key = match links::handshake(request.headers()) {
        Ok(key) => key,
        Err((status, text)) => return error(status, text),
    };
    let Some(upgrade) = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>() else {
        return error(
            StatusCode::UPGRADE_REQUIRED,
            "this connection cannot become a WebSocket",
        );
    };
    let http2 = state.config.link.http2 && links::offers_http2(request.headers());
    // Weak: a connection that never finishes its upgrade must not keep the control plane.
    let state = Arc::downgrade(&state);
    tokio::spawn(async move {
        let Some(state) = state.upgrade() else { return };
        if let Err(error) = links::accepted(&state.links, upgrade, http2, &id, state.config.link).await {
            tracing::info!(cluster = id, error = format!("{error:#}"), "link refused");
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, key),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    if http2 {
        let picked = http::HeaderValue::from_static(SUBPROTOCOL);
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, picked);
    }
    response
}
