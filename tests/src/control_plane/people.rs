//! What people and scripts ask and order: what agents told, and faults. JSON, on the API listener.
//!
//! Open to the loopback; from elsewhere it needs the admin token.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, Query, Request, State as Shared},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    book::rfc3339,
    chisel::KeyChange,
    config::TunnelWish,
    faults::{Answer, Effect, Route},
    secrets::{bearer, blank, same},
    state::State,
    steer,
};

/// Time for the answer to leave before its own listener is taken away.
const BEFORE_DOWN: Duration = Duration::from_millis(200);
/// How long the API may be taken away by one order.
const MAX_DOWN: u64 = 3600;

type App = Arc<State>;

/// The routes for people.
pub(super) fn router(state: &App) -> Router {
    Router::new()
        .route("/clusters", get(clusters))
        .route("/clusters/{id}", get(cluster))
        .route("/clusters/{id}/heartbeats", get(heartbeats))
        .route("/clusters/{id}/registrations", get(registrations))
        .route("/clusters/{id}/tunnel", get(tunnel))
        .route("/clusters/{id}/links", get(links))
        .route("/clusters/{id}/kubeconfig", get(kubeconfig))
        .route(
            "/requests",
            get(async |Shared(state): Shared<App>| Json(state.book().requests())),
        )
        .route(
            "/faults",
            get(async |Shared(state): Shared<App>| Json(state.faults.view())).post(fault),
        )
        .layer(from_fn_with_state(Arc::clone(state), admitted))
        .with_state(Arc::clone(state))
}

async fn admitted(
    Shared(state): Shared<App>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let token = bearer(request.headers()).is_some_and(|token| same(token, &state.admin_token));
    if peer.ip().to_canonical().is_loopback() || token {
        return next.run(request).await;
    }
    (
        StatusCode::UNAUTHORIZED,
        Json(json!({ "error": "this needs the admin token" })),
    )
        .into_response()
}

fn unknown(id: &str) -> Response {
    (
        StatusCode::NOT_FOUND,
        Json(json!({ "error": format!("no cluster {id}") })),
    )
        .into_response()
}

async fn clusters(Shared(state): Shared<App>) -> Response {
    let clusters: Vec<_> = state
        .book()
        .clusters()
        .into_iter()
        .map(super::book::Cluster::view)
        .collect();
    Json(clusters).into_response()
}

async fn cluster(Shared(state): Shared<App>, Path(id): Path<String>) -> Response {
    let book = state.book();
    book.cluster(&id)
        .map_or_else(|| unknown(&id), |cluster| Json(cluster.view()).into_response())
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn heartbeats(
    Shared(state): Shared<App>,
    Path(id): Path<String>,
    Query(limit): Query<Limit>,
) -> Response {
    let Some(all) = state.book().cluster(&id).map(super::book::Cluster::heartbeats) else {
        return unknown(&id);
    };
    let skip = limit.limit.map_or(0, |limit| all.len().saturating_sub(limit));
    let shown = all.into_iter().skip(skip);
    let shown =
        shown.map(|beat| json!({ "received_at": rfc3339(beat.received_at), "body": blank(beat.body) }));
    Json(shown.collect::<Vec<_>>()).into_response()
}

async fn registrations(Shared(state): Shared<App>, Path(id): Path<String>) -> Response {
    let Some(all) = state.book().cluster(&id).map(super::book::Cluster::registrations) else {
        return unknown(&id);
    };
    let shown = all.into_iter().map(|call| {
        json!({ "received_at": rfc3339(call.received_at), "status": call.status, "body": blank(call.body) })
    });
    Json(shown.collect::<Vec<_>>()).into_response()
}

async fn tunnel(Shared(state): Shared<App>, Path(id): Path<String>) -> Response {
    let book = state.book();
    book.cluster(&id).map_or_else(
        || unknown(&id),
        |cluster| Json(state.tunnel(cluster)).into_response(),
    )
}

async fn links(Shared(state): Shared<App>, Path(id): Path<String>) -> Response {
    if state.book().cluster(&id).is_none() {
        return unknown(&id);
    }
    Json(
        state
            .links
            .of(&id)
            .iter()
            .map(|link| link.view())
            .collect::<Vec<_>>(),
    )
    .into_response()
}

async fn kubeconfig(Shared(state): Shared<App>, Path(id): Path<String>) -> Response {
    if state.book().cluster(&id).is_none() {
        return unknown(&id);
    }
    match state.kubeconfig(&id) {
        Some(text) => ([(header::CONTENT_TYPE, "application/yaml")], text).into_response(),
        None => (
            StatusCode::NOT_FOUND,
            Json(json!({ "error": "there is no front" })),
        )
            .into_response(),
    }
}

/// One order; exactly one of them per request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Refuse {
        route: Route,
        #[serde(flatten)]
        answer: Answer,
        times: Option<u32>,
    },
    Hang {
        route: Route,
        times: Option<u32>,
    },
    Clear(bool),
    Forget(String),
    Down {
        seconds: u64,
    },
    Redeploy(bool),
    CloseLinks(String),
    StallLinks {
        cluster: String,
        on: bool,
    },
    Tunnel {
        cluster: String,
        wish: TunnelWish,
    },
    /// `null` asks for nothing any more.
    Limits {
        cluster: String,
        limits: Option<Value>,
    },
    ChangePorts(String),
    Chisel(ChiselOrder),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ChiselOrder {
    Kill,
    Restart,
    RestartNewKey,
    NewPassword,
}

async fn fault(Shared(state): Shared<App>, body: bytes::Bytes) -> Response {
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => {
            return (
                StatusCode::BAD_REQUEST,
                Json(json!({ "error": error.to_string() })),
            )
                .into_response();
        }
    };
    match obey(&state, order).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => (
            StatusCode::CONFLICT,
            Json(json!({ "error": format!("{error:#}") })),
        )
            .into_response(),
    }
}

async fn obey(state: &App, order: Order) -> anyhow::Result<Value> {
    match order {
        Order::Refuse { route, answer, times } => {
            state.faults.add(route, Effect::Refuse(answer), times.into())
        }
        Order::Hang { route, times } => state.faults.add(route, Effect::Hang, times.into()),
        Order::Clear(false) | Order::Redeploy(false) => {}
        Order::Clear(true) => state.faults.clear(),
        Order::Forget(id) => steer::forget(state, &id)?,
        Order::Down { seconds } => {
            let (door, state) = (state.door()?, Arc::downgrade(state));
            tokio::spawn(async move {
                tokio::time::sleep(BEFORE_DOWN).await;
                if let Some(state) = state.upgrade() {
                    state.links.cut(None, "the control plane went down");
                }
                door.down().await;
                tokio::time::sleep(Duration::from_secs(seconds.min(MAX_DOWN))).await;
                if let Err(error) = door.up().await {
                    tracing::error!(error = format!("{error:#}"), "the API cannot come back");
                }
            });
        }
        Order::Redeploy(true) => {
            let state = Arc::clone(state);
            tokio::spawn(async move {
                tokio::time::sleep(BEFORE_DOWN).await;
                steer::redeploy(&state);
            });
        }
        Order::CloseLinks(id) => state.links.cut(Some(&id), "closed by the control plane"),
        Order::StallLinks { cluster, on } => state.links.of(&cluster).iter().for_each(|link| link.stall(on)),
        Order::Tunnel { cluster, wish } => steer::set_tunnel(state, &cluster, wish)?,
        Order::Limits { cluster, limits } => steer::set_limits(state, &cluster, limits)?,
        Order::ChangePorts(id) => steer::change_ports(state, &id)?,
        Order::Chisel(order) => {
            let chisel = steer::chisel(state)?;
            match order {
                ChiselOrder::Kill => chisel.kill().await?,
                ChiselOrder::Restart => chisel.restart(KeyChange::Same).await?,
                ChiselOrder::RestartNewKey => chisel.restart(KeyChange::New).await?,
                ChiselOrder::NewPassword => chisel.new_password().await?,
            }
        }
    }
    Ok(json!({ "done": true, "faults": state.faults.view() }))
}
