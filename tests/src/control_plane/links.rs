//! All open links, however they came about: the proxy dialled, or the control plane did.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use runtime::websocket::{self, Connect};
use tokio::sync::watch;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::link::{
    Direction, LinkLimits, ProxyLink,
    http2::{Hold, SUBPROTOCOL, Stallable},
};

/// Links to one cluster at once; the proxy of one pod needs one, two while it replaces it.
const MAX_LINKS: usize = 64;
/// Time for a WebSocket handshake that we begin.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Open links, oldest first.
#[derive(Debug)]
pub(super) struct Links {
    open: Mutex<Vec<Arc<ProxyLink>>>,
    next: AtomicU64,
    /// Counts up with each new link.
    news: watch::Sender<u64>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            next: AtomicU64::new(1),
            news: watch::Sender::new(0),
        }
    }
}

impl Links {
    /// Open links of a cluster, newest last.
    pub(super) fn of(&self, cluster: &str) -> Vec<Arc<ProxyLink>> {
        let mut open = self.lock();
        open.retain(|link| link.is_open());
        open.iter()
            .filter(|link| link.cluster() == cluster)
            .cloned()
            .collect()
    }

    /// The newest open link of a cluster.
    pub(super) fn newest(&self, cluster: &str) -> Option<Arc<ProxyLink>> {
        self.of(cluster).pop()
    }

    /// Waits for an open link with a number above `after`.
    pub(super) async fn wait(&self, cluster: &str, after: u64) -> Arc<ProxyLink> {
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            if let Some(link) = self.newest(cluster).filter(|link| link.id() > after) {
                return link;
            }
            // The sender lives as long as `self`.
            let _ = news.changed().await;
        }
    }

    /// Cuts the links of a cluster, or all.
    pub(super) fn cut(&self, cluster: Option<&str>, reason: &str) {
        self.lock().retain(|link| {
            let hit = cluster.is_none_or(|cluster| link.cluster() == cluster);
            if hit {
                link.cut(reason);
            }
            !hit
        });
    }

    /// Serves a connection whose WebSocket handshake is over.
    async fn add<S>(
        &self,
        socket: WebSocketStream<Stallable<S>>,
        hold: Hold,
        http2: bool,
        cluster: &str,
        direction: Direction,
        limits: LinkLimits,
    ) -> Result<Arc<ProxyLink>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        if self.of(cluster).len() >= MAX_LINKS {
            bail!("cluster {cluster} has {MAX_LINKS} links already");
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let link = if http2 {
            ProxyLink::start_http2(socket, hold, id, cluster, direction, limits).await?
        } else {
            // Frames have a stall of their own, above the socket.
            ProxyLink::start(socket, id, cluster, direction, limits)
        };
        self.lock().push(Arc::clone(&link));
        self.news.send_modify(|count| *count += 1);
        tracing::info!(cluster, link = id, ?direction, http2, "link open");
        Ok(link)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<ProxyLink>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.cut(None, "the control plane stopped");
    }
}

/// What a WebSocket handshake of a proxy has to look like; an error is the status and the sentence for it.
pub(super) fn handshake(headers: &http::HeaderMap) -> Result<String, (http::StatusCode, &'static str)> {
    let has = |name: http::HeaderName, word: &str| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    if !has(http::header::CONNECTION, "upgrade") || !has(http::header::UPGRADE, "websocket") {
        return Err((http::StatusCode::UPGRADE_REQUIRED, "this is a WebSocket"));
    }
    if !has(http::header::SEC_WEBSOCKET_VERSION, "13") {
        return Err((http::StatusCode::BAD_REQUEST, "the WebSocket version is not 13"));
    }
    let key = headers
        .get(http::header::SEC_WEBSOCKET_KEY)
        .ok_or((http::StatusCode::BAD_REQUEST, "no key"))?;
    Ok(derive_accept_key(key.as_bytes()))
}

/// Whether a proxy offers HTTP/2.
pub(super) fn offers_http2(headers: &http::HeaderMap) -> bool {
    let offered = headers
        .get_all(http::header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    offered.into_iter().any(|offered| offered.trim() == SUBPROTOCOL)
}

/// Takes over a connection whose handshake was answered.
pub(super) async fn accepted(
    links: &Links,
    upgrade: hyper::upgrade::OnUpgrade,
    http2: bool,
    cluster: &str,
    limits: LinkLimits,
) -> Result<()> {
    let hold = Hold::new();
    let stream = TokioIo::new(upgrade.await.context("the connection ended before its upgrade")?);
    let stream = Stallable::new(stream, &hold);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(&limits))).await;
    links
        .add(socket, hold, http2, cluster, Direction::FromProxy, limits)
        .await?;
    Ok(())
}

/// Dials a proxy's WebSocket.
pub(super) async fn dial(
    links: &Links,
    cluster: &str,
    url: &str,
    bearer: &str,
    limits: LinkLimits,
) -> Result<Arc<ProxyLink>> {
    let url = url::Url::parse(url).with_context(|| format!("{url} is no WebSocket URL"))?;
    if url.scheme() != "ws" {
        bail!("only ws:// is dialled: what the tunnel brings is on the loopback");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // Never used, since there is no TLS here.
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let hold = Hold::new();
    let bearer = secrecy::SecretString::from(bearer);
    let dialling = websocket::negotiate(
        Connect {
            url: &url,
            bearer: Some(&bearer),
            subprotocol: limits.http2.then_some(SUBPROTOCOL),
            tls: Arc::new(tls),
            timeout: HANDSHAKE,
            max_message: limits.max_frame_in,
        },
        |stream| Stallable::new(stream, &hold),
    );
    let (socket, http2) = dialling
        .await
        .with_context(|| format!("WebSocket handshake with {url}"))?;
    links
        .add(socket, hold.clone(), http2, cluster, Direction::ToProxy, limits)
        .await
}

/// The URL of a proxy's WebSocket behind a forward.
pub(super) fn forward_url(address: SocketAddr) -> String {
    format!("ws://{address}/ws/k8s")
}

fn config(limits: &LinkLimits) -> WebSocketConfig {
    let max = Some(limits.max_frame_in);
    WebSocketConfig::default()
        .max_message_size(max)
        .max_frame_size(max)
}
