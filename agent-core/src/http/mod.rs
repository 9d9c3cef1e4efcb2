//! HTTP on 8080: probes, metrics, the seeds' API, the page, and the relay to k8s-proxy.
//!
//! | path | who may |
//! |---|---|
//! | `/livez /readyz /health /ready /version /metrics`, the page's files | everybody |
//! | `/api/agent/* /api/control-plane/* /api/runners/*` | the control plane's token, or the operator |
//! | every other `/api/*`, `/ws` | the operator: token, or session cookie of the page |
//! | `/ws/k8s /ws/control-plane /ws/runner /api/k8s/*` | whoever k8s-proxy lets in: relayed unread |

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Redirect, Response},
    routing::{any, get, post},
};
use runtime::{
    admin, build::BuildInfo, conditions::Conditions, metrics::Metrics, secret::TokenFile,
    supervise::Supervisor,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    config::ServerConfig, control_plane::ControlPlane, hub::Hub, kubernetes::Door, local_api::core::Commands,
};

mod auth;
mod page;
mod realtime;
mod relay;
mod seeds;
mod status;
mod websocket;

/// The seeds' messages are a few hundred bytes.
const MAX_BODY: usize = 64 * 1024;
/// Relayed requests and streams at the same time; k8s-proxy has its own, finer limits.
const MAX_RELAYED: usize = 512;

/// What the handlers share before the router is made.
#[derive(Debug)]
pub(crate) struct Web {
    pub(crate) hub: Hub,
    pub(crate) commands: Commands,
    pub(crate) control_plane: Arc<ControlPlane>,
    pub(crate) door: Door,
    pub(crate) door_url: Url,
    pub(crate) operator: TokenFile,
    /// tunnel-sidecar's local gRPC and the token of the edge to it, for what a person asks of the tunnel.
    pub(crate) tunnel_grpc: String,
    pub(crate) tunnel_token: TokenFile,
    /// k8s-proxy's, for the open streams that the page shows.
    pub(crate) proxy_grpc: String,
    pub(crate) proxy_token: TokenFile,
    pub(crate) config: ServerConfig,
    pub(crate) supervisor: Supervisor,
    pub(crate) leaving: CancellationToken,
}

/// The shared state of the handlers.
#[derive(Clone)]
struct App {
    web: Arc<Web>,
    door_address: Arc<str>,
    realtime: Arc<Semaphore>,
    relayed: Arc<Semaphore>,
    sessions: dashboard::Sessions,
    guard: dashboard::Guard,
}

impl Web {
    pub(crate) fn router(self, build: BuildInfo, conditions: Conditions, metrics: Metrics) -> Router {
        let (host, port) = (
            self.door_url.host_str().unwrap_or("127.0.0.1"),
            self.door_url.port_or_known_default(),
        );
        let door_address = format!("{host}:{}", port.unwrap_or(80)).into();
        let page = page::make(&self);
        let app = App {
            realtime: Arc::new(Semaphore::new(self.config.max_streams)),
            relayed: Arc::new(Semaphore::new(MAX_RELAYED)),
            door_address,
            sessions: page.sessions(),
            guard: page.guard(),
            web: Arc::new(self),
        };
        let config = &app.web.config;

        let open = Router::new()
            .route("/health", get(status::health))
            .route("/ready", get(status::ready));
        let mut operator = Router::new()
            .route("/api/health/detailed", get(status::detailed))
            .route("/api/status/features", get(status::features))
            .route("/api/metrics/runtime", get(status::runtime))
            .route("/api/status/connectivity", get(status::connectivity))
            .route("/api/realtime/logs", get(realtime::logs));
        if config.sse {
            operator = operator.route("/api/realtime/events", get(realtime::events));
        }
        if config.websocket {
            operator = operator.route("/ws", get(websocket::upgrade));
        }
        let operator = operator.layer(middleware::from_fn_with_state(app.clone(), auth::operator));
        let control_plane = Router::new()
            .route("/api/agent/status", get(seeds::status))
            .route("/api/agent/heartbeat", post(seeds::heartbeat))
            .route("/api/control-plane/message", post(seeds::message))
            .route("/api/runners/{runner_id}/command", post(seeds::command))
            .layer(middleware::from_fn_with_state(app.clone(), auth::control_plane));
        let own = open
            .merge(operator)
            .merge(control_plane)
            .layer(DefaultBodyLimit::max(MAX_BODY));
        // Bodies on their way to k8s-proxy have its limits, not ours.
        let relay = Router::new()
            .route("/ws/k8s", any(relay::relay))
            .route("/ws/control-plane", any(relay::relay))
            .route("/ws/runner", any(relay::relay))
            .route("/api/k8s", any(relay::relay))
            .route("/api/k8s/{*path}", any(relay::relay))
            .layer(DefaultBodyLimit::disable());
        let mut router = own.merge(relay).with_state(app.clone());
        if config.dashboard {
            router = router
                .merge(dashboard::router(page))
                .route("/", get(|| async { Redirect::temporary("/dashboard") }))
                .route(
                    "/static/dashboard.html",
                    get(|| async { Redirect::permanent("/dashboard") }),
                );
        }
        router
            .merge(admin::router(build, conditions, metrics))
            .layer(middleware::from_fn_with_state(app, count))
    }
}

/// Counts requests by endpoint, and sets the figures that only time changes before they are read.
async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let endpoint = endpoint(request.uri().path());
    if endpoint == "/metrics" {
        app.web.hub.tick_metrics();
    }
    let response = next.run(request).await;
    let status = response.status();
    app.web
        .hub
        .metrics()
        .http_requests
        .with_label_values(&[endpoint, status.as_str()])
        .inc();
    response.into_response()
}

/// A label from a fixed set: what callers make up must not become a metric each.
fn endpoint(path: &str) -> &'static str {
    const EXACT: [&str; 17] = [
        "/livez",
        "/readyz",
        "/health",
        "/ready",
        "/version",
        "/metrics",
        "/ws",
        "/ws/k8s",
        "/ws/control-plane",
        "/ws/runner",
        "/api/agent/status",
        "/api/agent/heartbeat",
        "/api/control-plane/message",
        "/api/health/detailed",
        "/api/status/features",
        "/api/metrics/runtime",
        "/api/status/connectivity",
    ];
    const BELOW: [&str; 4] = ["/api/k8s", "/api/runners", "/api/realtime", "/dashboard"];
    let exact = EXACT.into_iter().find(|known| *known == path);
    exact
        .or_else(|| BELOW.into_iter().find(|known| path.starts_with(known)))
        .unwrap_or("other")
}
