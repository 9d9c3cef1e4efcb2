//! The HTTP and HTTPS doors: `ANY /api/k8s/<kubernetes path>`, pass-through of the apiserver's own paths, and the
//! served WebSockets. HTTP/1.1 and h2; bodies stream both ways.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use runtime::{
    accept::{accept, until_drained},
    supervise::Supervisor,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::{
    board::Board,
    body::{DoorBody, take_body},
    gate::Gate,
    served,
    upgrade::{self, Asked},
    watchdog::{WRITE_LIMIT, Watchdog},
};
use crate::{
    engine::{Ask, Engine},
    path,
    shared::Shared,
    status::Failure,
    stop::stoppable,
    streams::Cancel,
    upstream::Supervised,
};

/// Where the Kubernetes API hangs for callers of the seeds.
const PREFIX: &str = "/api/k8s";
/// The apiserver's own paths that are passed through.
const ROOTS: [&str; 8] = [
    "/api", "/apis", "/version", "/openapi", "/healthz", "/readyz", "/livez", "/metrics",
];
pub(super) const METHODS: [Method; 7] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::HEAD,
    Method::OPTIONS,
];

/// Head of a request; a slow client costs a connection and no more.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// A caller that does not finish its TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// A head must fit in; large tokens and many groups do.
const H1_BUFFER: usize = 64 * 1024;
const H2_HEADER_LIST: u32 = 256 * 1024;
const H2_STREAMS: u32 = 250;
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const H2_SEND_BUFFER: usize = 64 * 1024;
/// Connections at once to one door; more wait in the kernel's queue. With [`H1_BUFFER`] it bounds what unfinished
/// heads can hold to 256 MiB, and open watches of HTTP/1.1 callers fit in many times over.
const MAX_CONNECTIONS: usize = 4096;
/// Name of each connection's task.
const CONNECTION: &str = "door connection";

/// One door.
#[derive(Clone, Debug)]
pub struct Door {
    /// `http` or `https`.
    pub name: Arc<str>,
    /// Carries out the calls.
    pub engine: Engine,
    /// Says who may come in.
    pub gate: Gate,
    /// For served WebSockets.
    pub shared: Shared,
    /// Where sessions over served WebSockets tell how they are.
    pub board: Board,
    /// Owns the connections.
    pub supervisor: Supervisor,
    /// TLS, for the HTTPS door.
    pub tls: Option<Arc<ServerConfig>>,
}

/// Accepts until the drain.
///
/// # Errors
/// None at present; connections fail alone.
pub async fn serve(listener: TcpListener, door: Door) -> io::Result<()> {
    let supervisor = door.supervisor.clone();
    accept(listener, CONNECTION, MAX_CONNECTIONS, supervisor, move |tcp| {
        stoppable(Box::pin(connection(tcp, door.clone())))
    })
    .await
}

async fn connection(tcp: TcpStream, door: Door) {
    let Some(tls) = door.tls.clone() else {
        return speak(tcp, door).await;
    };
    match timeout(TLS_TIMEOUT, TlsAcceptor::from(tls).accept(tcp)).await {
        Ok(Ok(stream)) => speak(stream, door).await,
        Ok(Err(error)) => debug!(door = %door.name, %error, "TLS failed"),
        Err(_) => debug!(door = %door.name, "TLS took too long"),
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, door: Door) {
    let mut builder = Builder::new(Supervised(door.supervisor.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(H1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(H2_HEADER_LIST)
        .max_concurrent_streams(H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BUFFER)
        .enable_connect_protocol()
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    let service = {
        let door = door.clone();
        service_fn(move |request| {
            let door = door.clone();
            // Boxed: once the head is there its memory goes, while the answer itself may last for hours.
            Box::pin(async move { Ok::<_, Infallible>(door.answer(request).await) })
        })
    };
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    until_drained(served, CONNECTION, &door.supervisor).await;
}

impl Door {
    async fn answer(&self, request: Request<Incoming>) -> Response<DoorBody> {
        match self.route(request).await {
            Ok(response) => response,
            Err(failure) => {
                self.engine
                    .metrics()
                    .refused
                    .with_label_values(&[failure.cause])
                    .inc();
                failure.response(DoorBody::Full(Bytes::from(failure.json())))
            }
        }
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<DoorBody>, Failure> {
        if let Some(name) = served::door_name(request.uri().path()) {
            return self.upgrade(name, request);
        }
        let kubernetes = kubernetes_path(request.uri().path()).ok_or_else(|| {
            let sentence = "not served here: use /api/k8s/<path>, or a path of the Kubernetes API";
            Failure::new(StatusCode::NOT_FOUND, "no_route", sentence)
        })?;
        let admitted = self.gate.admit_http(request.headers())?;
        let asked = Asked::read(&request)?;
        if asked.is_none() && !METHODS.contains(request.method()) {
            return Err(Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                "this method is not one of Kubernetes'",
            ));
        }
        let uri = path::join(kubernetes, request.uri().query())
            .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, "path", error.to_string()))?;
        let (mut parts, body) = request.into_parts();
        let on = asked.as_ref().map(|_| upgrade::on(&mut parts));
        let mut ask = Ask {
            door: Arc::clone(&self.name),
            caller: admitted.caller,
            request_id: String::new(),
            method: parts.method,
            uri,
            headers: parts.headers,
            authorization: admitted.authorization,
            body: take_body(body).await?,
            rewatch_clean_end: false,
            cancel: Cancel::default(),
        };
        if let (Some(asked), Some(on)) = (asked, on) {
            asked.prepare(&mut ask);
            return Ok(upgrade::carry(&self.engine, &self.supervisor, ask, &asked, on).await);
        }
        Ok(self
            .engine
            .call(ask)
            .await
            .map(|body| DoorBody::Engine(Box::new(body))))
    }

    fn upgrade(&self, name: &'static str, request: Request<Incoming>) -> Result<Response<DoorBody>, Failure> {
        let caller = self.gate.admit_websocket(request.headers())?;
        let accept = served::accept_key(&request)?;
        let protocol = served::protocol(request.headers());
        let door = self.clone();
        self.supervisor.spawn("WebSocket", async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => {
                    let stream = Watchdog::new(TokioIo::new(upgraded), WRITE_LIMIT);
                    served::run(stream, &door, name, caller, protocol).await;
                }
                Err(error) => debug!(%error, "a WebSocket did not come about"),
            }
        });
        Ok(served::switching(&accept, protocol, DoorBody::Full(Bytes::new())))
    }
}

/// The Kubernetes path behind a path of ours.
fn kubernetes_path(path: &str) -> Option<&str> {
    let below = |root: &str| {
        path.strip_prefix(root)
            .filter(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some(rest) = below(PREFIX) {
        return Some(if rest.is_empty() { "/" } else { rest });
    }
    ROOTS.iter().any(|root| below(root).is_some()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_kubernetes_or_nowhere() {
        for (path, expected) in [
            ("/api/k8s/api/v1/pods", Some("/api/v1/pods")),
            ("/api/k8s", Some("/")),
            ("/api/k8s/", Some("/")),
            ("/api/k8sx", Some("/api/k8sx")),
            ("/api/v1/pods", Some("/api/v1/pods")),
            ("/api", Some("/api")),
            ("/apis/apps/v1", Some("/apis/apps/v1")),
            ("/version", Some("/version")),
            ("/versionx", None),
            ("/", None),
            ("/logs", None),
            ("/dashboard", None),
        ] {
            assert_eq!(kubernetes_path(path), expected, "{path}");
        }
    }
}
