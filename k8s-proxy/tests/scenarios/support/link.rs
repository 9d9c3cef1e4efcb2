//! The control plane's end of a link that speaks HTTP/2.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    ext::Protocol,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::{
    carrier::{Carrier, MAX_MESSAGE},
    secret::SecretString,
    tls,
    websocket::{self, Connect},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::JoinSet,
};
use tokio_tungstenite::WebSocketStream;
use url::Url;

use super::soon;

/// Windows as the contract wants them.
pub(crate) const WINDOWS: (u32, u32) = (256 * 1024, i32::MAX as u32);

/// hyper's own tasks, which hold the socket: without them it is gone.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().unwrap().spawn(task);
    }
}

pub(crate) struct Link {
    tasks: Tasks,
    pub(crate) sender: SendRequest<Full<Bytes>>,
    pub(crate) connection: tokio::task::JoinHandle<hyper::Result<()>>,
    /// The proxy has said that it carries two-way connections.
    upgrades: watch::Receiver<bool>,
}

impl Link {
    /// Dials one of the served WebSockets.
    pub(crate) async fn connect(address: SocketAddr, path: &str, token: &str) -> Self {
        Self::with_windows(address, path, token, WINDOWS).await
    }

    pub(crate) async fn with_windows(
        address: SocketAddr,
        path: &str,
        token: &str,
        windows: (u32, u32),
    ) -> Self {
        let url = Url::parse(&format!("ws://{address}{path}")).unwrap();
        let bearer = SecretString::from(token);
        let connecting = websocket::negotiate(
            Connect {
                url: &url,
                bearer: Some(&bearer),
                subprotocol: Some("pipeops.k8s.h2"),
                tls: tls::client_config(None, &[]).unwrap_or_else(|_| no_roots()),
                timeout: Duration::from_secs(30),
                max_message: MAX_MESSAGE,
            },
            |stream| stream,
        );
        let (socket, taken) = connecting.await.unwrap();
        assert!(taken, "HTTP/2 is taken where it is offered");
        Self::over(socket, windows).await
    }

    pub(crate) async fn over<S>(socket: WebSocketStream<S>, windows: (u32, u32)) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tasks = Tasks::default();
        let (sender, connection) = Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(windows.0)
            .initial_connection_window_size(windows.1)
            .handshake(TokioIo::new(Carrier::new(socket)))
            .await
            .unwrap();
        let (said, upgrades) = watch::channel(false);
        let connection = tokio::spawn(async move {
            let mut connection = pin!(connection);
            poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                let carries = connection.is_extended_connect_protocol_enabled();
                said.send_if_modified(|said| carries && !std::mem::replace(said, true));
                polled
            })
            .await
        });
        Self {
            tasks,
            sender,
            connection,
            upgrades,
        }
    }

    /// Drops the socket without a word.
    pub(crate) fn cut(&self) {
        self.tasks.0.lock().unwrap().abort_all();
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        soon("an answer", self.sender.clone().send_request(request))
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = self.send(get(path)).await;
        let status = response.status().as_u16();
        let body = soon("a body", response.into_body().collect())
            .await
            .unwrap()
            .to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// An extended CONNECT; `Err` with status and body when it is refused.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
        subprotocols: &str,
    ) -> Result<(http::HeaderMap, TokioIo<Upgraded>), (u16, String)> {
        let mut upgrades = self.upgrades.clone();
        soon("SETTINGS", upgrades.wait_for(|carries| *carries))
            .await
            .unwrap();
        let mut request = get(path);
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from_static(protocol));
        if !subprotocols.is_empty() {
            request
                .headers_mut()
                .insert("sec-websocket-protocol", subprotocols.parse().unwrap());
        }
        let response = self.send(request).await;
        if response.status() != 200 {
            let status = response.status().as_u16();
            let body = soon("a body", response.into_body().collect())
                .await
                .unwrap()
                .to_bytes();
            return Err((status, String::from_utf8(body.to_vec()).unwrap()));
        }
        let headers = response.headers().clone();
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        Ok((headers, TokioIo::new(upgraded)))
    }
}

fn no_roots() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Arc::new(config)
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .uri(format!("http://kubernetes{path}"))
        .body(Full::default())
        .unwrap()
}
