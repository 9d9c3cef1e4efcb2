//! What kubelet, Prometheus and people ask of every process: `/livez /readyz /metrics /version`.

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    accept::{accept, until_drained},
    build::BuildInfo,
    conditions::Conditions,
    metrics::Metrics,
    supervise::Supervisor,
};

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

/// A request's head must be whole within this time: who sends it byte by byte holds a connection for no longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head, bytes. With [`MAX_CONNECTIONS`] it bounds what unfinished requests can hold to 32 MiB.
const MAX_HEAD: usize = 32 * 1024;
/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Serves `router` over HTTP/1.1 until the drain, then lets open requests finish until everything has to go.
///
/// # Errors
/// None at present: an accept that fails is tried again.
pub async fn serve_http(listener: TcpListener, router: Router, supervisor: Supervisor) -> io::Result<()> {
    const NAME: &str = "http connection";
    let owner = supervisor.clone();
    accept(listener, NAME, MAX_CONNECTIONS, supervisor, move |stream| {
        let (router, supervisor) = (router.clone(), owner.clone());
        async move {
            let mut builder = Builder::new(TokioExecutor::new()).http1_only();
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD);
            let service = TowerToHyperService::new(router);
            let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            until_drained(served, NAME, &supervisor).await;
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{build::build_info, conditions::Status};
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tokio::net::TcpStream;
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
    async fn an_unfinished_head_holds_little_and_not_for_long() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (build, conditions) = (build_info("test"), Conditions::new());
        let supervisor = Supervisor::new(Duration::from_secs(1));
        let listener = bind("--http-listen", "127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(build, conditions, Metrics::new(build));
        supervisor.spawn_critical("http", serve_http(listener, router, supervisor.clone()));
        let mut large = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /livez HTTP/1.1\r\nHost: x\r\nX-Large: {}",
            "a".repeat(4 * MAX_HEAD)
        );
        large.write_all(head.as_bytes()).await.ok();
        let mut answer = Vec::new();
        large.read_to_end(&mut answer).await.ok();
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let closed = tokio::time::timeout(10 * HEAD_TIMEOUT, slow.read(&mut [0; 64])).await;
        assert!(closed.is_ok(), "a head that never ends is not waited for");
        supervisor.drain("test");
        assert_eq!(supervisor.finish().await, crate::supervise::Outcome::Clean);
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
