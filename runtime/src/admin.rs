//! What kubelet, Prometheus and people ask of every process: `/livez /readyz /metrics /version`.

use std::{fmt::Write as _, io, net::SocketAddr, time::SystemTime};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{build::BuildInfo, conditions::Conditions, metrics::Metrics, supervise::Supervisor};

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for {what}: is the port taken, or the address not ours? Change the setting for {what}"
)]
pub struct BindError {
    what: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Binds a TCP listener; `what` names its setting in the error.
///
/// # Errors
/// When the address cannot be bound.
pub async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError {
        what,
        address,
        source,
    })
}

#[derive(Clone)]
struct Admin {
    build: BuildInfo,
    conditions: Conditions,
    metrics: Metrics,
}

/// The routes. `/livez` answers as long as the event loop turns; `/readyz` is 503 while a condition is false.
pub fn router(build: BuildInfo, conditions: Conditions, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .route("/version", get(version))
        .with_state(Admin {
            build,
            conditions,
            metrics,
        })
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let status = if admin.conditions.ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        describe(&admin.conditions),
    )
        .into_response()
}

/// One line a condition: its status, its name, why and since how many seconds.
pub fn describe(conditions: &Conditions) -> String {
    let now = SystemTime::now();
    let mut out = String::from(if conditions.ready() {
        "ready\n"
    } else {
        "not ready\n"
    });
    for condition in conditions.snapshot() {
        let since = now.duration_since(condition.since).unwrap_or_default().as_secs();
        let (status, name, reason) = (condition.status.as_str(), condition.name, &condition.reason);
        writeln!(out, "{status:<13} {name}: {reason} (for {since} s)").ok();
    }
    out
}

async fn text(State(admin): State<Admin>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        admin.metrics.text(),
    )
        .into_response()
}

async fn version(State(admin): State<Admin>) -> Response {
    let BuildInfo {
        name,
        version,
        git_commit,
        rustc,
    } = admin.build;
    Json(json!({ "name": name, "version": version, "git_commit": git_commit, "rustc": rustc }))
        .into_response()
}

/// Serves `router` until the drain, then lets open requests finish until everything has to go.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_http(listener: TcpListener, router: Router, supervisor: Supervisor) -> io::Result<()> {
    let draining = supervisor.clone();
    let served = axum::serve(
        listener,
        router.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(async move { draining.draining().await });
    tokio::select! {
        result = async { served.await } => result,
        () = supervisor.cut() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{build::build_info, conditions::Status};
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    async fn get_path(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn probes_tell_the_truth() {
        let (build, conditions) = (build_info("test"), Conditions::new());
        let router = router(build, conditions.clone(), Metrics::new(build));
        conditions.set("Link", Status::False, "connecting to example");
        assert_eq!(get_path(&router, "/livez").await.0, StatusCode::OK);
        let (status, body) = get_path(&router, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            body.starts_with("not ready\n") && body.contains("False         Link: connecting to example")
        );
        conditions.set("Link", Status::True, "connected");
        assert_eq!(get_path(&router, "/readyz").await.0, StatusCode::OK);
        assert!(
            get_path(&router, "/metrics")
                .await
                .1
                .contains("pipeops_build_info")
        );
        assert!(get_path(&router, "/version").await.1.contains(build.version));
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = bind("--http-listen", "127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let error = bind("--http-listen", taken.local_addr().unwrap())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--http-listen") && error.contains("127.0.0.1:"),
            "{error}"
        );
    }
}
