//! An apiserver that does what a test says, over plain HTTP/1.1 or over TLS with h2.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::soon;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request as the apiserver saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An open answer, written by the test.
pub(crate) struct Stream {
    pub(crate) request: Seen,
    sender: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
}

impl Stream {
    pub(crate) async fn send(&self, text: impl Into<Bytes>) {
        self.sender
            .send(Ok(Frame::data(text.into())))
            .await
            .expect("the answer is still read");
    }

    pub(crate) async fn event(&self, kind: &str, version: &str) {
        self.send(event(kind, version)).await;
    }

    /// Breaks the connection in the middle of the answer.
    pub(crate) async fn cut(self) {
        self.sender.send(Err(std::io::Error::other("cut"))).await.ok();
    }

    /// Waits until nobody reads the answer any more.
    pub(crate) async fn closed(&self) {
        soon("the upstream call is closed", self.sender.closed()).await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends far more than a stalled reader takes, without waiting until it is sure that nothing is taken any more.
    pub(crate) async fn flood_quickly(&self) {
        let piece: Bytes = vec![b'x'; 64 * 1024].into();
        let send = || self.sender.send(Ok(Frame::data(piece.clone())));
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(20), send()).await {}
    }

    /// Sends until nothing is taken for a while; returns the bytes that were.
    pub(crate) async fn flood(&self, piece: Bytes) -> usize {
        let mut sent = 0;
        while let Ok(Ok(())) = tokio::time::timeout(
            Duration::from_millis(500),
            self.sender.send(Ok(Frame::data(piece.clone()))),
        )
        .await
        {
            sent += piece.len();
        }
        sent
    }
}

/// One line of a JSON watch.
pub(crate) fn event(kind: &str, version: &str) -> String {
    let object =
        json!({"kind": "Pod", "metadata": {"name": format!("pod-{version}"), "resourceVersion": version}});
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// A scripted answer for requests whose path holds a text.
#[derive(Clone, Debug)]
struct Script {
    part: String,
    status: StatusCode,
    headers: Vec<(&'static str, String)>,
    body: String,
}

/// An upgraded call: the apiserver echoes what it is sent until the test or the caller ends it.
pub(crate) struct Tunnel {
    pub(crate) request: Seen,
    ended: watch::Receiver<bool>,
    end: Arc<Notify>,
}

impl Tunnel {
    /// Ends it from the apiserver's side.
    pub(crate) fn end(&self) {
        self.end.notify_one();
    }

    /// Waits until it has ended.
    pub(crate) async fn closed(&mut self) {
        soon("the upgraded call is closed", self.ended.wait_for(|ended| *ended))
            .await
            .unwrap();
    }
}

struct State {
    tunnels: mpsc::Sender<Tunnel>,
    seen: Mutex<Vec<Seen>>,
    scripts: Mutex<VecDeque<Script>>,
    streams: mpsc::Sender<Stream>,
    content_type: Mutex<&'static str>,
    up: watch::Sender<bool>,
    cut: Notify,
}

/// The apiserver.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: Option<String>,
    state: Arc<State>,
    streams: tokio::sync::Mutex<mpsc::Receiver<Stream>>,
    tunnels: tokio::sync::Mutex<mpsc::Receiver<Tunnel>>,
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::with(false).await
    }

    /// With TLS and h2, as the real one.
    pub(crate) async fn start_tls() -> Self {
        Self::with(true).await
    }

    async fn with(tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (streams, receiver) = mpsc::channel(1024);
        let (tunnels, upgraded) = mpsc::channel(1024);
        let state = Arc::new(State {
            tunnels,
            seen: Mutex::default(),
            scripts: Mutex::default(),
            streams,
            content_type: Mutex::new("application/json"),
            up: watch::Sender::new(true),
            cut: Notify::new(),
        });
        let made = tls.then(k8s_proxy::doors::certificate::make).map(Result::unwrap);
        let acceptor = made
            .as_ref()
            .map(|made| TlsAcceptor::from(Arc::clone(&made.config)));
        let accepting = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                if !*accepting.up.borrow() {
                    continue;
                }
                tcp.set_nodelay(true).unwrap();
                let (state, acceptor) = (Arc::clone(&accepting), acceptor.clone());
                tokio::spawn(async move {
                    let cut = Arc::clone(&state);
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    let builder = Builder::new(TokioExecutor::new());
                    let serve = async {
                        match acceptor {
                            None => builder
                                .serve_connection_with_upgrades(TokioIo::new(tcp), service)
                                .await
                                .ok(),
                            Some(acceptor) => {
                                let io = TokioIo::new(acceptor.accept(tcp).await.ok()?);
                                builder.serve_connection_with_upgrades(io, service).await.ok()
                            }
                        }
                    };
                    tokio::select! { _ = serve => {}, () = cut.cut.notified() => {} }
                });
            }
        });
        Self {
            address,
            ca_pem: made.map(|made| made.pem),
            state,
            streams: tokio::sync::Mutex::new(receiver),
            tunnels: tokio::sync::Mutex::new(upgraded),
        }
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.address.port())
    }

    /// The next watch or followed log that was opened.
    pub(crate) async fn stream(&self) -> Stream {
        let mut streams = self.streams.lock().await;
        soon("a stream is opened", streams.recv()).await.unwrap()
    }

    /// The next upgraded call.
    pub(crate) async fn tunnel(&self) -> Tunnel {
        let mut tunnels = self.tunnels.lock().await;
        soon("an upgraded call", tunnels.recv()).await.unwrap()
    }

    /// Whether a stream waits that the test has not taken.
    pub(crate) async fn has_stream(&self) -> bool {
        !self.streams.lock().await.is_empty()
    }

    /// Answers the next request whose path and query hold `part`.
    pub(crate) fn script(&self, part: &str, status: u16, headers: &[(&'static str, &str)], body: &str) {
        self.state.scripts.lock().unwrap().push_back(Script {
            part: part.to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            body: body.to_owned(),
        });
    }

    pub(crate) fn set_content_type(&self, kind: &'static str) {
        *self.state.content_type.lock().unwrap() = kind;
    }

    /// Cuts every connection and takes no new ones, or comes back.
    pub(crate) fn set_up(&self, up: bool) {
        self.state.up.send_replace(up);
        if !up {
            self.cut_all();
        }
    }

    /// Cuts every connection.
    pub(crate) fn cut_all(&self) {
        self.state.cut.notify_waiters();
    }

    /// Requests so far, the probes of the proxy itself left out.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter()
            .filter(|seen| seen.path != "/version")
            .cloned()
            .collect()
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
    };
    state.seen.lock().unwrap().push(seen.clone());
    let whole = format!("{}?{}", seen.path, seen.query);
    let script = {
        let mut scripts = state.scripts.lock().unwrap();
        let at = scripts.iter().position(|script| whole.contains(&script.part));
        at.and_then(|at| scripts.remove(at))
    };
    if let Some(script) = script {
        let mut response = full(script.status, script.body);
        for (name, value) in script.headers {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        return Ok(response);
    }
    if let Some(upgrade) = upgrade.filter(|_| seen.headers.contains_key("upgrade")) {
        return Ok(switch(&state, seen, upgrade).await);
    }
    if seen.query.contains("watch=true") || seen.query.contains("follow=true") {
        let (sender, receiver) = mpsc::channel(1);
        let mut response = Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync());
        let kind = if seen.query.contains("follow") {
            "text/plain"
        } else {
            *state.content_type.lock().unwrap()
        };
        response
            .headers_mut()
            .insert("content-type", kind.parse().unwrap());
        state
            .streams
            .send(Stream {
                request: seen,
                sender,
            })
            .await
            .ok();
        return Ok(response);
    }
    if seen.query.contains("hang=true") {
        std::future::pending::<()>().await;
    }
    if let Some(size) = seen
        .query
        .strip_prefix("size=")
        .and_then(|size| size.parse().ok())
    {
        return Ok(full(StatusCode::OK, "x".repeat(size)));
    }
    let headers: serde_json::Map<_, _> = seen
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    let echo = json!({
        "method": seen.method, "path": seen.path, "query": seen.query, "headers": headers,
        "body": String::from_utf8_lossy(&seen.body),
    });
    Ok(full(StatusCode::OK, echo.to_string()))
}

async fn switch(state: &State, seen: Seen, upgrade: hyper::upgrade::OnUpgrade) -> Response<Body> {
    let (over, ended) = watch::channel(false);
    let end = Arc::new(Notify::new());
    let mut response = full(StatusCode::SWITCHING_PROTOCOLS, String::new());
    let headers = response.headers_mut();
    headers.clear();
    headers.insert("connection", "Upgrade".parse().unwrap());
    headers.insert("upgrade", seen.headers["upgrade"].clone());
    if let Some(protocols) = seen.headers.get("sec-websocket-protocol") {
        let first = protocols.to_str().unwrap().split(',').next().unwrap();
        headers.insert("sec-websocket-protocol", first.parse().unwrap());
    }
    if let Some(key) = seen.headers.get("sec-websocket-key") {
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        headers.insert("sec-websocket-accept", accept.parse().unwrap());
    }
    let ending = Arc::clone(&end);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            tokio::select! {
                _ = tokio::io::copy(&mut read, &mut write) => {}
                () = ending.notified() => {}
            }
        }
        over.send_replace(true);
    });
    let tunnel = Tunnel {
        request: seen,
        ended,
        end,
    };
    state.tunnels.send(tunnel).await.ok();
    response
}

fn full(status: StatusCode, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    response
}
